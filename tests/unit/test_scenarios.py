"""The stories of tests/scenarios, each played against the core and compared with what the file says.

A difference means that the scheduler decides otherwise than before. If that is meant, rewrite the files with
RUNNERD_REWRITE=1 and review them as a diff: what they `expect` must hold in any case.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.unit.scenario_world import play

SCENARIOS = Path(__file__).parent.parent / "scenarios"


@pytest.mark.parametrize("name", sorted(path.stem for path in SCENARIOS.glob("*.txt")))
def test_scenario(name: str) -> None:
    path = SCENARIOS / f"{name}.txt"
    written = path.read_text("utf-8")
    played = play(written)
    if os.environ.get("RUNNERD_REWRITE"):
        path.write_text(played, "utf-8")
    else:
        assert played.splitlines() == written.splitlines()


def test_every_scenario_proves_something() -> None:
    silent = [path.name for path in SCENARIOS.glob("*.txt") if "\nexpect " not in path.read_text("utf-8")]
    assert not silent


FAILS = """A story.

devices gpu0=8GiB
model a memory=6GiB
start
arrive a
until 20s
expect request q1 failed
----
"""


def test_a_broken_expectation_cannot_be_rewritten_away() -> None:
    with pytest.raises(AssertionError, match=r"q\d+ is completed"):
        play(FAILS)


def test_a_mistyped_command_is_no_comment() -> None:
    with pytest.raises(KeyError, match="arive"):
        play("A story.\n\narive a\n----\n")
