"""What `why` says of the failures that the project is for: the scenarios' logs, and the text word for word.

RUNNERD_REWRITE=1 rewrites tests/golden/why, to be read as a person would who has never seen the log.
"""

from __future__ import annotations

import io
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from pathlib import Path

import msgspec
import pytest
import trio

from daemon.cli.output import Output
from daemon.cli.told import print_explanation, print_why_not
from daemon.history.obstacle import why_not
from daemon.history.told import Explanation
from daemon.history.why import explain
from events.catalogue import Event
from events.reader import Reader
from events.store import open_store
from statemachines.replay import fold, steps
from tests.unit.scenario_world import Play

ROOT = Path(__file__).parent.parent
AT = 1_795_230_600_000_000_000  # 2026-11-21 03:10:00 UTC

STORIES: dict[str, list[str]] = {
    "ollama_14407_script_with_room_for_one": ["r1", "q5"],
    "ollama_14407_room_for_one": ["r2", "q2"],
    "ollama_sched_keep_alive": ["r1", "a"],
    "ollama_sched_premature_expiry": ["r1"],
    "ollama_sched_orphaned_runner": ["r1"],
    "larql_157_single_flight": ["q2", "r1"],
    "larql_157_load_out_of_memory": ["q2", "r1", "r2", "q3", "q6", "greedy"],
    "larql_157_timeout_frees_slot": ["q1"],
    "llama_swap_swap_race": ["r1", "q3"],
    "exo_1804_dead_runner": ["r1", "q2", "q6", "r3", "q15", "r4"],
    "pinned_is_not_evicted": ["q2"],
    "operator_unload": ["r1", "o1"],
    "model_removed": ["r1", "q2"],
}
"""What is asked about: by the scenario's ids."""


@pytest.fixture(autouse=True)
def _in_utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Times of day are local ones; text fits a terminal of 80 columns."""
    monkeypatch.setenv("TZ", "UTC")
    monkeypatch.setenv("COLUMNS", "80")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def write(path: Path, events: list[Event]) -> None:
    """The log of a story."""

    async def store() -> None:
        async with open_store(path) as log:
            for step in steps(events):
                log.append(step, AT + step[0].t)

    trio.run(store)


def played(name: str) -> Play:
    """A scenario, to its end."""
    run = Play()
    text = (ROOT / "scenarios" / f"{name}.txt").read_text("utf-8")
    for paragraph in re.split(r"\n\s*\n", text.strip("\n"))[1:]:
        lines = paragraph.split("\n")
        commands = lines[: lines.index("----")] if "----" in lines else lines
        if not all(line.startswith("#") for line in commands):
            run.block(commands)
    return run


def text_of(show: Callable[[Output], object]) -> str:
    """What a person reads."""
    with redirect_stdout(io.StringIO()) as text:
        show(Output(False))
    return text.getvalue()


def sound(told: Explanation, events: list[Event]) -> None:
    """What must hold of any explanation."""
    numbers = [line.seq for line in told.lines]
    assert numbers == sorted(numbers) and numbers
    assert all(line.t_ns == events[line.seq - 1].t for line in told.lines)
    assert not re.search(r"None|True|\{|_ns|  ", told.summary + " ".join(line.text for line in told.lines))
    if told.kind == "request":
        mine = [event for event in events if getattr(event.body, "request", "") == told.subject]
        end = (
            next(
                (
                    e
                    for e in mine
                    if type(e.body).__name__.startswith("Request")
                    and e.cause
                    and e.seq == max(x.seq for x in mine if type(x.body).__name__ in ENDS)
                ),
                None,
            )
            if any(type(x.body).__name__ in ENDS for x in mine)
            else None
        )
        began = events[int(told.subject[1:]) - 1].t
        if end is not None:
            assert sum(phase.ns for phase in told.phases) == end.t - began, told


ENDS = (
    "RequestCompleted", "RequestFailed", "RequestCancelled", "RequestTimedOut", "RequestRejected",
    "RequestInterrupted",
)  # fmt: skip


@pytest.mark.parametrize("name", STORIES)
def test_a_story_is_told(name: str, tmp_path: Path) -> None:
    run = played(name)
    events, log = run.world.log, tmp_path / "events.db"
    write(log, events)
    parts = []
    with Reader(log) as reader:
        for short in STORIES[name]:
            (real,) = run.real([short])
            told = explain(reader, real)
            sound(told, events)
            parts.append(
                f"$ runnerlog why {real}\n" + text_of(lambda out, told=told: print_explanation(out, told))
            )
    compare(ROOT / "golden" / "why" / f"{name}.txt", "\n".join(parts))


def compare(path: Path, text: str) -> None:
    if os.environ.get("RUNNERD_REWRITE"):
        path.write_text(text, "utf-8")
    assert path.read_text("utf-8").splitlines() == text.splitlines()


def test_nothing_is_told_twice_as_golden() -> None:
    assert {path.stem for path in (ROOT / "golden" / "why").glob("*.txt")} == set(STORIES) | {"why_not"}


WHY_NOT = {
    "pinned_is_not_evicted": ["b"],
    "load_failure_answers_waiters_and_cools_down": ["a"],
    "what_never_fits_is_refused_at_once": ["a"],
}


def test_obstacles_are_told() -> None:
    parts = []
    for name, models in WHY_NOT.items():
        run = played(name)
        half = run.world.log[: len(run.world.log) // 2]
        for events in (half, run.world.log):
            whole = [event for step in list(steps(events))[:-1] for event in step]
            for model in models:
                told = why_not(fold(whole), model)
                told = msgspec.structs.replace(told, at_ns=AT + told.t_ns)
                parts.append(
                    f"{name}: $ runnerlog why-not {model} --at {told.seq}\n"
                    + text_of(lambda out, told=told: print_why_not(out, told))
                )
    compare(ROOT / "golden" / "why" / "why_not.txt", "\n".join(parts))
