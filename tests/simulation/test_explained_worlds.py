"""Random worlds are explained, in the same words from the beginning of the log and from snapshots; the parts
of each request's time add up."""

from __future__ import annotations

import re
import sqlite3
from pathlib import Path

import pytest

from daemon.explain import walk as walk_module
from daemon.explain.changes import diff
from daemon.explain.told import Explanation
from daemon.explain.unknown import UnknownSubject
from daemon.explain.why import OPERATIONS, explain
from events import catalogue as c
from events.catalogue import Event
from events.pruning import prune
from events.reader import CursorPruned, Head, Reader
from statemachines.replay import fold
from statemachines.state import State
from tests.kept import KeptWorld

ENDS = (
    c.RequestCompleted, c.RequestFailed, c.RequestCancelled, c.RequestTimedOut, c.RequestRejected,
    c.RequestInterrupted,
)  # fmt: skip
RAW = re.compile(r"None|\{|\}|_ns\b|_bytes\b|  ")
"""What is no word for a person."""
EACH = 6
"""Of the runners and requests of a world, one in so many is asked about; all of those that failed."""


def subjects(events: list[Event]) -> list[str]:
    """Who is asked about."""
    makers = (c.RunnerLoad, c.RequestArrived, *OPERATIONS)
    made = [e.subject for e in events if isinstance(e.body, makers)]
    odd = [e.body.runner for e in events if isinstance(e.body, c.RunnerFailed | c.RunnerLost | c.RunnerKill)]
    models = {e.body.model: None for e in events if isinstance(e.body, c.RequestArrived)}
    return [*dict.fromkeys([*made[::EACH], *odd]), *models]


def sound(told: Explanation, events: list[Event]) -> None:
    """What must hold of any explanation."""
    numbers = [line.seq for line in told.lines]
    assert numbers == sorted(numbers)
    for line in told.lines:
        assert line.t_ns == events[line.seq - 1].t
    for text in (told.summary, *(line.text for line in told.lines), *(part.text for part in told.phases)):
        assert text and not RAW.search(text), text
    if told.kind == "request":
        end = next((e for e in events if isinstance(e.body, ENDS) and e.body.request == told.subject), None)
        assert end is not None
        assert sum(part.ns for part in told.phases) == end.t - events[int(told.subject[1:]) - 1].t, told


@pytest.mark.parametrize("seed", [3, 7, 11, 20])
def test_a_world_is_explained(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "events.db"
    events = KeptWorld(path, seed, snapshots=3).log
    asked = subjects(events)
    half = len(events) // 2
    with Reader(path) as reader:
        told = {name: explain(reader, name) for name in asked}
        then = {name: outcome(reader, name, half) for name in asked}
        changed = diff(reader, half // 2, half)
        monkeypatch.setattr(walk_module, "nearest", lambda reader, upto: (State(), Head(0, reader.base.hash)))
        for name in asked:
            sound(told[name], events)
            assert explain(reader, name) == told[name]
            assert outcome(reader, name, half) == then[name]
        assert diff(reader, half // 2, half) == changed
    assert len(told) > 3


@pytest.mark.parametrize("seed", [21, 41, 43])
def test_a_pruned_log_tells_what_it_still_has(seed: int, tmp_path: Path) -> None:
    path = tmp_path / "events.db"
    events = KeptWorld(path, seed, snapshots=3).log
    with Reader(path) as reader:
        cut = list(reader.snapshots())[1]
        there = list(fold(events[: cut.upto]).runners)
        lost = next(e.subject for e in events if isinstance(e.body, c.RunnerLoad) and e.subject not in there)
    connection = sqlite3.connect(path, isolation_level=None)
    prune(connection, cut.upto, cut.hash)
    connection.close()
    with Reader(path) as reader:
        for name in subjects(events):
            told_then = outcome(reader, name, len(events))
            assert told_then is None or told_then.summary
        for name in there:
            told = explain(reader, name)
            assert told.lines and all(line.seq > cut.upto for line in told.lines)
        assert int(lost[1:]) > cut.upto or outcome(reader, lost, len(events)) is None
        with pytest.raises(CursorPruned):
            explain(reader, "m0", cut.upto - 1)


def outcome(reader: Reader, name: str, at: int) -> Explanation | None:
    """What is said of a moment; None: nothing of that name was there yet."""
    try:
        return explain(reader, name, at)
    except UnknownSubject:
        return None
