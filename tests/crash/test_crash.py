"""A short run of the kill harness, and its list of places; `make crash` is the long one."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from events import failpoints
from events.failpoints import NAMES, NoSuchFailpoint, arm
from tests.crash.run import Tally, at_every_failpoint, at_moments, in_world

ROOT = Path(__file__).resolve().parents[2]
MOMENTS = 20


def reached() -> list[str]:
    """The names that the code reaches, as often as it says so."""
    found = []
    for folder in ("events", "daemon", "statemachines"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] == "reach":
                    [name] = node.args
                    assert isinstance(name, ast.Constant), ast.unparse(node)
                    found.append(str(name.value))
    return found


def test_the_list_of_failpoints_is_what_the_code_has() -> None:
    assert set(reached()) == set(NAMES)
    assert len(NAMES) == len(set(NAMES))


def test_killed_at_every_failpoint(tmp_path: Path) -> None:
    tally = Tally()
    in_world(tmp_path, "every", at_every_failpoint, tally)
    assert [name for name in NAMES if tally.at.get(name) != 1] == []
    assert tally.adopted > len(NAMES) / 4 and tally.whole and tally.watched and tally.operations
    assert tally.leases


def test_killed_at_random_moments(tmp_path: Path) -> None:
    tally = Tally()
    in_world(tmp_path, "moments", at_moments(MOMENTS), tally)
    assert tally.kills == MOMENTS and tally.adopted and tally.whole


@pytest.mark.parametrize("value", ["nowhere", "commit.after:x", "commit.after:-1", "commit.after:0", ":3"])
def test_what_is_no_failpoint_is_refused(value: str) -> None:
    with pytest.raises(NoSuchFailpoint, match=re.escape(NAMES[0])):
        arm({failpoints.VARIABLE: value})


def test_the_variable_is_taken_out_of_the_environment() -> None:
    environ = {failpoints.VARIABLE: "", "HOME": "/"}
    assert arm(environ) == ""
    assert environ == {"HOME": "/"}


def test_what_is_armed_goes_on_into_the_next_program() -> None:
    script = (
        "import os\nfrom events.failpoints import arm, reach, rest\narm(os.environ)\n"
        "reach('commit.before')\nreach('commit.after')\nprint(rest())"
    )
    environ = {**os.environ, failpoints.VARIABLE: "commit.after:3"}
    command = [sys.executable, "-c", script]
    run = subprocess.run(command, env=environ, capture_output=True, text=True, cwd=ROOT, check=True)
    assert run.stdout.strip() == str({failpoints.VARIABLE: "commit.after:2"})
    assert failpoints.rest() == {}


@pytest.mark.parametrize("times", [1, 3])
def test_it_dies_at_the_passage_that_was_asked_for(times: int) -> None:
    script = (
        "import os\nfrom events.failpoints import arm, reach\narm(os.environ)\n"
        "for i in range(5):\n reach('commit.before')\n print(i, flush=True)\n reach('commit.after')"
    )
    environ = {**os.environ, failpoints.VARIABLE: f"commit.after:{times}"}
    command = [sys.executable, "-c", script]
    run = subprocess.run(command, env=environ, capture_output=True, text=True, cwd=ROOT, check=False)
    assert run.returncode == -9
    assert run.stdout.split() == [str(i) for i in range(times)]
