"""Salvage: what is intact of a damaged log goes into a new one, in whole steps, with an event that says so.

The new log keeps the identity of the old: its ids are sequence numbers, so what it knows stays true, runners
that it knows can be adopted, and those that it does not know any more are ended at the next start.
"""

from __future__ import annotations

import os
import sqlite3
import time
from pathlib import Path

import msgspec

from daemon.past import EventUnfoldable, fold_one, nearest
from events import schema
from events.catalogue import Event, LogSalvaged
from events.commit import Committer
from events.envelope import EventUnreadable, LogError, Record, decode, encode
from events.limits import GROUP_ROWS
from events.reader import ChainBroken, Head, Reader
from events.segment import Damaged
from events.witness import read_witness
from statemachines.carried import carry, restore
from statemachines.replay import rederive
from statemachines.scheduler import RULES, Scheduler
from statemachines.state import State

Harm = ChainBroken | Damaged | EventUnreadable | EventUnfoldable
"""What a log may be broken by; each has the number of the first event that is not as it was."""


class NothingBroken(LogError):
    """The log is intact: there is nothing to salvage."""


class NothingIntact(LogError):
    """Not even the first step of the log is as it was written."""


class Salvaged(msgspec.Struct, frozen=True):
    """What was kept: events `first` to `last`. What was lost: at least up to `lost_upto`."""

    first: int
    last: int
    last_at: int
    """When that was, UTC ns."""
    broken_seq: int
    what: str
    lost_upto: int


def salvage(broken: Path, fresh: Path) -> Salvaged:
    """Make a new log at `fresh` of the intact steps of another, which is only read. Raises NothingBroken,
    NothingIntact, LogError, OSError (`fresh` exists) or sqlite3.Error; then there is none."""
    with Reader(broken) as reader:
        os.close(os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
        connection = sqlite3.connect(fresh, isolation_level=None)
        try:
            base = reader.base
            schema.migrate(connection, (base.log_id, base.created_at, base.seq, base.hash))
            done = _Salvage(reader, connection).run()
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            connection.close()
        except BaseException:
            connection.close()
            for suffix in ("", "-wal", "-shm"):
                Path(f"{fresh}{suffix}").unlink(missing_ok=True)
            raise
    return done


class _Salvage:
    """Copies steps."""

    def __init__(self, reader: Reader, connection: sqlite3.Connection) -> None:
        self._reader = reader
        self._base = Head(reader.base.seq - 1, reader.base.hash)
        self._committer = Committer(connection, self._base)
        self._state = State()
        self._step: list[Record] = []
        """The one that is being read: whether it is whole shows when the next one begins."""
        self._rows: list[Record] = []
        self._last: Record | None = None

    def run(self) -> Salvaged:
        """Copy until something is broken; then say so. Raises NothingBroken or NothingIntact."""
        try:
            self._reader.check_base()
            self._state, _ = nearest(self._reader, self._base.seq)
            for record in self._reader.verified(self._base):
                if not record.cause:
                    self._take()
                self._step.append(record)
        except (ChainBroken, Damaged, EventUnreadable, EventUnfoldable) as error:
            harm: Harm = error
        else:
            raise NothingBroken("the log is intact")
        self._take_last()
        self._write()
        if self._last is None:
            raise NothingIntact(f"nothing of the log is intact: {harm}")
        lost_upto = max(self._seen(), harm.seq)
        fact = LogSalvaged(harm.seq, lost_upto, str(harm)[:500])
        self._append(Scheduler(self._state).step(fact, self._state.t), self._last)
        return Salvaged(self._base.seq + 1, self._last.seq, self._last.at, harm.seq, str(harm), lost_upto)

    def _take(self) -> None:
        """The step that was read is whole: fold it, and keep it. Raises EventUnfoldable."""
        step, self._step = self._step, []
        for record in step:
            fold_one(self._state, decode(record))
        self._keep(step)

    def _take_last(self) -> None:
        """What was broken came right behind this step: it is whole if the scheduler would end it there."""
        step = self._step
        if not step or step[0].cause or self._state.rules != RULES:
            return
        events = [decode(record) for record in step]
        scheduler = Scheduler(self._copy())
        try:
            whole = rederive(scheduler, events[0]) == events
        except Exception:  # it may be what is broken
            whole = False
        if whole:
            self._state = scheduler.state
            self._keep(step)

    def _copy(self) -> State:
        """The state again: what fails while it is folded must not be left half-way."""
        return restore(carry(self._state))

    def _keep(self, step: list[Record]) -> None:
        self._rows += step
        if step:
            self._last = step[-1]
        if len(self._rows) >= GROUP_ROWS:
            self._write()

    def _write(self) -> None:
        rows, self._rows = self._rows, []
        if rows:
            self._committer.commit([msgspec.structs.astuple(record) for record in rows], _fail)

    def _append(self, events: list[Event], last: Record) -> None:
        rows, previous = [], last.hash
        for event in events:
            rows.append(encode(event, time.time_ns(), previous))
            previous = rows[-1][8]
        self._committer.commit(rows, _fail)

    def _seen(self) -> int:
        """The last event that the log says it had."""
        witness = read_witness(self._reader.path)
        try:
            head = self._reader.head().seq
        except (LogError, sqlite3.Error):
            head = 0
        return max(head, witness.seq if witness else 0)


def _fail(error: sqlite3.Error) -> None:
    """A new file has no other writer to wait for, and a full disk is for a person."""
    raise error


__all__ = ["NothingBroken", "NothingIntact", "Salvaged", "salvage"]
