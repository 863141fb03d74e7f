"""`why` and `why-not` of a whole daemon: by its socket, by runnerctl, and by what the log file alone says."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from daemon.control.explaining import Explainer, Unexplained
from daemon.limits import EXPLAIN_BYTES, EXPLAINED_AT_ONCE
from events import catalogue as c
from tests.integration.live import BIN, PATIENCE_S, Live, daemon, ngram
from tests.integration.terminal import shown
from tests.unit.test_interface import DECLARED, check

CONFIG = f"""
devices: {{host: {{budget: 300MiB}}}}
memoryHeadroom: 0
models:
  red: {{cmd: "{ngram("--slots 2")}", memory: 200MiB, slots: 2, aliases: [rouge]}}
  blue: {{cmd: "{ngram("--slots 2")}", memory: 200MiB, slots: 2}}
  huge: {{cmd: "{ngram()}", memory: 400MiB}}
  bad: {{cmd: "{ngram("--fail-load", "no-luck-today")}", memory: 1MiB}}
"""


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """Red was loaded and had to go for blue; bad could not be loaded."""
    with daemon(tmp_path_factory.mktemp("explain"), CONFIG) as live:
        assert live.chat("red")[0] == 200
        assert live.chat("blue")[0] == 200
        assert live.chat("bad")[0] == 502
        yield live


def ctl(live: Live, *arguments: str, code: int = 0) -> dict[str, Any]:
    """runnerctl for a script: its one line."""
    done = subprocess.run(
        [BIN / "runnerctl", "--socket", live.socket, "--json", *arguments],
        capture_output=True, text=True, timeout=PATIENCE_S, check=False,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def first(live: Live, kind: type[c.Payload], model: str) -> str:
    """The id that the first event of a type made for a model."""
    return next(
        event.subject
        for event in live.events()
        if type(event.body) is kind and getattr(event.body, "model", "") == model
    )


def test_a_runner_that_had_to_go(live: Live) -> None:
    red, asked = first(live, c.RunnerLoad, "red"), first(live, c.RequestArrived, "blue")
    told = ctl(live, "why", red)
    assert told["summary"] == (
        f"{red} (red) was unloaded to make room for blue, which {asked} (from 127.0.0.1) had asked for."
    )
    assert [each["verdict"] for each in told["considered"]] == ["victim"]
    (host,) = told["memory"]
    assert host["holders"] == [{"runner": red, "model": "red", "state": "idle", "bytes": 200 << 20}]
    assert told["upto_seq"] > told["decided_seq"] > int(asked[1:])


@pytest.mark.parametrize("subject", ["red", "rouge"])
def test_a_model_by_its_name_and_its_alias(live: Live, subject: str) -> None:
    told = ctl(live, "why", subject)
    assert told["summary"].startswith("red is not loaded now.")
    assert told["absent"]["reason"] == "claimed"


def test_a_request_whose_load_failed(live: Live) -> None:
    told = ctl(live, "why", first(live, c.RequestArrived, "bad"))
    assert "no-luck-today" in told["summary"]
    assert "no-luck-today" in told["output"]
    arrived = next(e for e in live.events() if e.subject == told["subject"])
    ended = next(
        e for e in live.events() if type(e.body) is c.RequestFailed and e.body.request == told["subject"]
    )
    assert sum(phase["ns"] for phase in told["phases"]) == ended.t - arrived.t


def test_the_file_says_what_the_daemon_says(live: Live) -> None:
    runner = first(live, c.RunnerLoad, "red")
    done = subprocess.run(
        [BIN / "runnerlog", "--log", live.log, "--json", "why", runner],
        capture_output=True, text=True, timeout=PATIENCE_S, check=True,
    )  # fmt: skip
    said, told = json.loads(done.stdout), ctl(live, "why", runner)
    assert {**said, "upto_seq": 0} == {**told, "upto_seq": 0}


def test_what_never_fits_is_in_its_own_way(live: Live) -> None:
    told = ctl(live, "why-not", "huge")
    assert (told["verdict"], told["reason"], told["need_bytes"]) == (
        "obstacle",
        "never_fits",
        {"host": 400 << 20},
    )
    assert (told["earliest_ns"], told["latest_ns"]) == (None, None)


def test_a_failed_model_cools_and_says_until_when(live: Live) -> None:
    assert live.chat("bad")[0] in (502, 503)
    told = ctl(live, "why-not", "bad")
    if told["verdict"] == "obstacle":  # the pause may be over by now
        assert told["reason"] == "cooling_down"
        assert told["earliest_ns"] > 0
    else:
        assert told["verdict"] == "at_once"


def test_nobody_of_that_name(live: Live) -> None:
    told = ctl(live, "why", "blu", code=1)
    assert (told["error"], told["nearest"]) == ("io.runnerd.Control.SubjectNotFound", ["blue"])
    assert ctl(live, "why", "r999999", code=1)["subject"] == "r999999"
    assert ctl(live, "why-not", "blu", code=1)["nearest"] == ["blue"]


@pytest.mark.parametrize("command", ["why", "why-not"])
def test_the_file_refuses_a_name_as_the_daemon_does(live: Live, command: str) -> None:
    done = subprocess.run(
        [BIN / "runnerlog", "--log", live.log, "--json", command, "blu"],
        capture_output=True, text=True, timeout=PATIENCE_S, check=False,
    )  # fmt: skip
    assert (done.returncode, json.loads(done.stdout)) == (1, ctl(live, command, "blu", code=1))


@pytest.mark.parametrize(
    ("method", "parameters"), [("Explain", {"subject": "red"}), ("WhyNot", {"model": "red"})]
)
def test_replies_have_the_declared_fields(live: Live, method: str, parameters: dict[str, str]) -> None:
    told = ctl(live, "why" if method == "Explain" else "why-not", "red")
    reply = told if method == "Explain" else {"told": told}
    for field, kind in DECLARED[method][1].items():
        check(reply[field], kind, f"{method}.{field}")


@pytest.mark.parametrize("columns", [80, 40])
def test_a_person_reads_it_on_any_terminal(live: Live, columns: int) -> None:
    for arguments in (["why", "red"], ["why", first(live, c.RequestArrived, "blue")], ["why-not", "red"]):
        seen = shown([BIN / "runnerctl", "--socket", live.socket, *arguments], columns=columns)
        assert seen.code == 0
        assert max(map(len, seen.lines)) <= columns
        assert "Memory" in seen.plain


# --- the process that reads the log ----------------------------------------------------------------------


def child(code: str) -> list[str]:
    return [sys.executable, "-c", code]


async def refused(explainer: Explainer) -> str:
    with pytest.raises(Unexplained) as error:
        await explainer.ask(Path("none"), 1, 1, "why", "r1")
    return error.value.reason


async def test_a_child_that_hangs_or_talks_nonsense_is_given_up() -> None:
    assert await refused(Explainer(child("import signal; signal.pause()"), 0.05)) == "too_long"
    assert await refused(Explainer(child("print('nonsense')"))) == "failed"
    assert await refused(Explainer(child(f"print(' ' * {2 * EXPLAIN_BYTES})"))) == "failed"
    assert await refused(Explainer(["/nonexistent"])) == "failed"
    assert await refused(Explainer()) == "failed"  # there is no such log


async def test_only_a_few_explain_at_once() -> None:
    explainer = Explainer(child("import signal; signal.pause()"))
    async with trio.open_nursery() as nursery:
        for _ in range(EXPLAINED_AT_ONCE):
            nursery.start_soon(explainer.ask, Path("none"), 1, 1, "why", "r1")
        await trio.testing.wait_all_tasks_blocked()
        assert await refused(explainer) == "busy"
        nursery.cancel_scope.cancel()
    assert await refused(Explainer(child("print('nonsense')"))) == "failed"
