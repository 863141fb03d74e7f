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
from functools import partial
from pathlib import Path

import msgspec
import pytest
import trio

from daemon.cli.output import Output
from daemon.cli.told import print_explanation, print_why_not
from daemon.explain.obstacle import why_not
from daemon.explain.runner_story import REASONS
from daemon.explain.told import Explanation
from daemon.explain.why import explain, explain_absence
from events import catalogue as c
from events.catalogue import Event
from events.reader import Reader
from events.store import open_store
from statemachines.replay import fold, steps
from tests.unit.scenario_world import Play
from tests.unit.test_scheduler import Core

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
    "lease_revoked_for_an_eviction": ["q1", "r1", "q2"],
    "lease_revoked_for_who_waits": ["q1", "q3"],
    "lease_that_is_not_let_go": ["q1", "r1"],
    "memory_never_back": ["r1"],
    "restart_with_survivors": ["r1"],
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
            parts.append(f"$ runnerlog why {real}\n" + text_of(partial(print_explanation, told=told)))
    compare(ROOT / "golden" / "why" / f"{name}.txt", "\n".join(parts))


def compare(path: Path, text: str) -> None:
    if os.environ.get("RUNNERD_REWRITE"):
        path.write_text(text, "utf-8")
    assert path.read_text("utf-8").splitlines() == text.splitlines()


def test_every_reason_for_which_a_runner_goes_has_its_words() -> None:
    decided = r'(?:RunnerStop\([^"\n]*"\w+", |\bs\.(?:drain|retire)\(\w+, |_gone\(state, runner, )"(\w+)"'
    sources = (ROOT.parent / "statemachines").glob("*.py")
    reasons = {reason for path in sources for reason in re.findall(decided, path.read_text("utf-8"))}
    assert {"evicted", "keep_alive", "hung", "exited", "lease_revoked"} < reasons
    assert reasons - {"evicted"} <= set(REASONS)


def test_requests_are_counted_when_they_have_ended(tmp_path: Path) -> None:
    """Four run at once: each that ends is the last of those that have, and not of those that have begun."""
    events, log = played("larql_157_single_flight").world.log, tmp_path / "events.db"
    write(log, events)
    ends = [event for event in events if isinstance(event.body, c.UpstreamEnded)]
    said = []
    with Reader(log) as reader:
        for end in ends:
            (line,) = [each for each in explain(reader, "r6", end.seq).lines if each.seq == end.seq]
            said.append(line.text)
    assert said[0].endswith(" ended, the first of r6's requests")
    assert said[1].endswith(" ended, the last of r6's 2 requests that have ended so far")
    assert said[3].endswith(" ended, the last of r6's 4 requests that have ended so far")


def test_nobody_asks_in_the_middle_of_a_step(tmp_path: Path) -> None:
    """After a claim, and before its victim is told: what is asked about is what the step comes to."""
    events, log = played("quantum_then_swap").world.log, tmp_path / "events.db"
    write(log, events)
    ends = [event.seq - 1 for event in events[1:] if not event.cause] + [events[-1].seq]
    assert any(isinstance(event.body, c.ClaimMade) and event.seq not in ends for event in events)
    with Reader(log) as reader:
        configured = next(event.seq for event in events if isinstance(event.body, c.ConfigChanged))
        for event in events[configured - 1 :]:
            end = next(seq for seq in ends if seq >= event.seq)
            for model in "ab":
                assert explain_absence(reader, model, event.seq) == explain_absence(reader, model, end)


def test_an_operator_who_asked_in_vain_is_not_nobody(tmp_path: Path) -> None:
    core, log = Core({"big": c.ModelView("d", memory_bytes={"host": 64 << 30})}), tmp_path / "events.db"
    core.take(c.LoadRequested("big", by="uid 0 pid 7"))
    write(log, core.log)
    with Reader(log) as reader:
        told = explain(reader, "big")
    assert "since the log begins, and 1 operator had asked for it." in told.summary
    asked, ended = told.lines
    assert asked.text == "uid 0 pid 7 asked for big to be loaded: o4"
    assert ended.text == "it was refused: never fits"


def test_nothing_is_told_twice_as_golden() -> None:
    assert {path.stem for path in (ROOT / "golden" / "why").glob("*.txt")} == set(STORIES) | {"why_not"}


WHY_NOT = [
    ("quantum_then_swap", "a", 3),
    ("quantum_then_swap", "a", 6),
    ("quantum_then_swap", "b", 6),
    ("quantum_then_swap", "a", 9),
    ("quantum_then_swap", "b", 9),
    ("quantum_then_swap", "b", 11),
    ("quantum_then_swap", "a", 18),
    ("quantum_then_swap", "b", 27),
    ("never_fits_refused", "huge", 3),
    ("group_persistent", "huge", 6),
    ("pinned_is_not_evicted", "b", 16),
    ("other_programs_hold_the_memory", "a", 4),
    ("other_programs_hold_the_memory", "a", 56),
    ("queue_full", "a", 17),
    ("stopping_drains", "a", 29),
    ("load_never_healthy", "a", 16),
    ("concurrency_limit", "a", 17),
]
"""A scenario, a model, and the event after which somebody asks: each another obstacle, or none."""


def test_obstacles_are_told() -> None:
    parts, seen = [], set()
    for name, model, seq in WHY_NOT:
        state = fold(played(name).world.log[:seq])
        told = msgspec.structs.replace(why_not(state, model), at_ns=AT + state.t)
        seen.add((told.verdict, told.reason))
        shown = text_of(partial(print_why_not, told=told))
        parts.append(f"{name}: $ runnerlog why-not {model} --at {seq}\n{shown}")
    assert len(seen) == len(WHY_NOT)
    compare(ROOT / "golden" / "why" / "why_not.txt", "\n".join(parts))


LEASED = [
    (
        "lease_revoked_for_an_eviction", c.RequestDispatched, "b",
        "r6 (a) has the room. It is leased to q4, and its turn is not over.",
        "When it is idle, or its turn is over (in 1 min 0 s at the latest): then q4 is told to let go, and is"
        " cut after 30.0 s.",
    ),
    (
        "lease_revoked_for_an_eviction", c.LeaseRevoked, "b",
        "r6 (a), which is leased to q4, has the room that b needs, and is on the way out for it.",
        "When the lease is let go of: q4 has been told to let go, and is cut in 30.0 s.",
    ),
    (
        "lease_revoked_for_who_waits", c.RequestDispatched, "a",
        "A runner of a is there already: r6 is busy. r6 is leased to q4 and q8.",
        "As soon as a lease is let go of: q4 is told to let go in 1 min 0 s at the earliest.",
    ),
    (
        "lease_revoked_for_who_waits", c.LeaseRevoked, "a",
        "A runner of a is there already: r6 is busy. 1 request would be served before. r6 is leased to q4 and"
        " q8.",
        "As soon as a lease is let go of: q4 has been told to let go, and is cut in 30.0 s.",
    ),
]  # fmt: skip
"""A scenario, the step that has just happened, a model, and what is in its way: a lease."""


@pytest.mark.parametrize(("name", "kind", "model", "sentence", "when"), LEASED)
def test_a_lease_in_the_way_is_told_as_one(
    name: str, kind: type[c.Payload], model: str, sentence: str, when: str
) -> None:
    log = played(name).world.log
    upto = min(i for i, step in enumerate(steps(log)) if any(type(e.body) is kind for e in step))
    state = fold([event for step in list(steps(log))[: upto + 1] for event in step])
    told = why_not(state, model)
    assert (told.sentence, told.when) == (sentence, when)


def test_a_lease_that_would_have_to_go_is_told_so() -> None:
    log = list(steps(played("lease_revoked_for_an_eviction").world.log))
    granted = min(i for i, step in enumerate(log) if any(type(e.body) is c.RequestDispatched for e in step))
    state = fold([event for step in log[: granted + 1] for event in step])
    state.t += 200 * 10**9  # its turn has been over for long, and nobody has asked
    told = why_not(state, "b")
    assert told.sentence.startswith("r6 (a), which is leased to q4, has the room that b needs. It would be")
    assert told.when == (
        "When the lease is let go of: q4 would be told to let go at once, and be cut in 30.0 s."
    )
