"""What the tests of the event log share: steps to append, and ways to look at and to harm a log."""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path

import trio

from events.catalogue import Event, RequestArrived, RequestDispatched
from events.store import EventStore, open_store


def step(seq: int) -> list[Event]:
    """Two events, as an arrival and its dispatch make them; `seq` is the first."""
    request = f"q{seq}"
    arrived = RequestArrived(model="m", kind="chat", caller="127.0.0.1")
    dispatched = RequestDispatched(request=request, runner="r1")
    return [Event(seq, seq, 0, request, arrived), Event(seq + 1, seq, seq, request, dispatched)]


def append(store: EventStore, steps: int, *, first: int | None = None) -> int:
    """Append so many steps; the last event's number."""
    seq = store.head.seq + 1 if first is None else first
    for _ in range(steps):
        store.append(step(seq), time.time_ns())
        seq += 2
    return seq - 1


def make(log: Path, steps: int) -> None:
    """Make a log of so many steps, outside trio."""

    async def write() -> None:
        async with open_store(log) as store:
            append(store, steps)

    trio.run(write)


def stored(log: Path) -> list[int]:
    """The numbers of the events in a log."""
    connection = sqlite3.connect(log)
    try:
        return [row[0] for row in connection.execute("SELECT seq FROM events ORDER BY seq")]
    finally:
        connection.close()


def vandal(log: Path) -> sqlite3.Connection:
    """A connection to a log whose triggers are gone."""
    connection = sqlite3.connect(log, isolation_level=None)
    names = [row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'")]
    for name in names:
        connection.execute(f"DROP TRIGGER {name}")
    return connection
