"""`runnerlog verify` on logs that somebody has altered: each is refused, with its first bad number."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from events import catalogue as c
from events.catalogue import Event
from events.envelope import decode, encode
from events.reader import Reader
from events.store import open_store
from statemachines.replay import Divergence, fold, verify
from statemachines.scheduler import RULES, Scheduler
from statemachines.state import canonical

RUNNERLOG = Path(sys.executable).parent / "runnerlog"
GIB = 1 << 30


def story() -> list[Event]:
    """Two models share memory for one: loads, dispatches, a claim, a swap, a keep-alive that passes."""
    scheduler = Scheduler()
    events: list[Event] = []
    t = 0

    def step(fact: c.Fact, after_ns: int = 1_000_000) -> list[Event]:
        nonlocal t
        t += after_ns
        made = scheduler.step(fact, t)
        events.extend(made)
        return made

    def loaded() -> str:
        return next(reversed(scheduler.state.runners))

    model: dict[str, Any] = {"slots": 2, "memory_bytes": {"host": 6 * GIB}, "keep_alive_ns": 60 * 10**9}
    step(c.DaemonStarted(RULES, "balanced", "boot", "0.1.0"))
    view = {name: c.ModelView(digest=name, **model) for name in ("red", "blue")}
    step(c.ConfigChanged(c.ConfigView(models=view, devices={"host": c.DeviceView(8 * GIB)})))
    for name in ("red", "blue", "red"):
        asked = step(c.RequestArrived(name, "chat"))[0].subject
        step(c.MemoryMeasured({"host": c.Reading(16 * GIB, 12 * GIB)}))
        for runner in [r for r in scheduler.state.runners.values() if not r.live]:
            step(c.ProcessExited(runner.id, 0, 0))
            step(c.MemoryMeasured({"host": c.Reading(16 * GIB, 12 * GIB)}), 2 * 10**9)
        step(c.ProcessSpawned(c.Process(loaded(), 0, "boot", 4711, 1)))
        step(c.ProbeAnswered(loaded(), True))
        step(c.UpstreamEnded(asked, loaded(), True, 100, 200))
    events.extend(scheduler.advance(t + 61 * 10**9))
    assert scheduler.state.counts["completed"] == 3
    return events


@pytest.fixture
async def log(tmp_path: Path) -> Path:
    path = tmp_path / "events.db"
    async with open_store(path) as store:
        for event in story():
            store.append([event], 1)
    return path


def run(path: Path) -> tuple[int, dict[str, object]]:
    done = subprocess.run(
        [RUNNERLOG, "--log", path, "--json", "verify"], capture_output=True, text=True, check=False
    )
    return done.returncode, json.loads(done.stdout)


def edit(path: Path, change: Callable[[sqlite3.Connection], object]) -> None:
    """Change the file as somebody with SQLite would: the triggers do not stop who can drop them."""
    connection = sqlite3.connect(path)
    for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
        connection.execute(f"DROP TRIGGER {name}")
    change(connection)
    connection.commit()
    connection.close()


def rechain(path: Path, events: list[Event]) -> None:
    """Replace a log's events, with a chain that is right: only re-deriving can find what was altered."""
    with Reader(path) as reader:
        previous = reader.base.hash

    def change(connection: sqlite3.Connection) -> None:
        nonlocal previous
        connection.execute("DELETE FROM events")
        for event in events:
            row = encode(event, 1, previous)
            previous = row[8]
            connection.execute("INSERT INTO events VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", row)

    edit(path, change)


async def test_an_intact_log_verifies(log: Path) -> None:
    code, report = run(log)
    assert (code, report["ok"]) == (0, True)
    assert report["events"] == len(story())
    assert report["decisions"] == sum(isinstance(event.body, c.Decision) for event in story())


async def test_replay_gives_the_same_state(log: Path) -> None:
    with Reader(log) as reader:
        _, state = verify(reader.events())
        assert canonical(state) == canonical(fold(map(decode, reader.records())))


async def test_a_flipped_byte_is_found(log: Path) -> None:
    edit(
        log, lambda db: db.execute("UPDATE events SET payload = replace(payload, 'red', 'rad') WHERE seq = 3")
    )
    code, report = run(log)
    assert (code, report["ok"], report["seq"]) == (1, False, 3)


async def test_a_removed_event_is_found(log: Path) -> None:
    edit(log, lambda db: db.execute("DELETE FROM events WHERE seq = 7"))
    code, report = run(log)
    assert (code, report["seq"]) == (1, 7)


async def test_two_swapped_events_are_found(log: Path) -> None:
    def swap(db: sqlite3.Connection) -> None:
        for old, new in ((5, -5), (6, 5), (-5, 6)):
            db.execute("UPDATE events SET seq = ? WHERE seq = ?", (new, old))

    edit(log, swap)
    code, report = run(log)
    assert (code, report["seq"]) == (1, 5)


async def test_an_altered_decision_with_a_right_chain_is_found(log: Path) -> None:
    events = story()
    i = next(i for i, event in enumerate(events) if isinstance(event.body, c.RunnerLoad))
    load = events[i].body
    assert isinstance(load, c.RunnerLoad)
    fields = {name: getattr(load, name) for name in load.__struct_fields__}
    other = c.RunnerLoad(**{**fields, "port": load.port + 7})
    old = events[i]
    events[i] = Event(old.seq, old.t, old.cause, old.subject, other)
    rechain(log, events)
    code, report = run(log)
    assert (code, report["seq"]) == (1, old.seq)


async def test_a_decision_left_out_with_a_right_chain_is_found(log: Path) -> None:
    events = story()
    i = next(i for i, event in enumerate(events) if isinstance(event.body, c.RequestCompleted))
    kept = events[:i] + [
        Event(e.seq - 1, e.t, e.cause - (e.cause > i), e.subject, e.body) for e in events[i + 1 :]
    ]
    rechain(log, kept)
    code, report = run(log)
    assert (code, report["seq"]) == (1, i + 1)


async def test_a_deadline_that_was_not_due_is_found() -> None:
    events = story()
    i = next(i for i, event in enumerate(events) if isinstance(event.body, c.DeadlinePassed))
    early = events[i]
    events[i] = Event(early.seq, early.t - 1, 0, early.subject, early.body)
    with pytest.raises(Divergence) as error:
        verify(events)
    assert error.value.seq == early.seq


async def test_a_log_of_other_rules_is_folded_and_said_so() -> None:
    events = story()
    first = events[0].body
    assert isinstance(first, c.DaemonStarted)
    events[0] = Event(
        1, events[0].t, 0, "", c.DaemonStarted(RULES + 7, first.policy, first.boot_id, first.version)
    )
    report, _ = verify(events)
    assert report.decisions == 0
    assert report.not_rederived == {RULES + 7: report.steps}


def test_a_missing_log_is_said_with_its_own_code(tmp_path: Path) -> None:
    done = subprocess.run(
        [RUNNERLOG, "--log", tmp_path / "none.db", "verify"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 3
    assert "none.db" in done.stderr
