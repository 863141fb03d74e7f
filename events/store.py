"""Opening the event log for writing: its connections, its task, and its part in trio's loop."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import cast

import sqlalchemy as sa
import trio
from sqlalchemy.pool import NullPool
from sqlalchemy.util.concurrency import greenlet_spawn

from events.commit import StoreBroken
from events.envelope import Record
from events.limits import LOCK_S
from events.lock import LogInUse, hold_lock, is_held, lock_path
from events.loop import part_in_loop
from events.opening import Durability, configure, inspect
from events.trio_sqlite import TrioSqlite
from events.witness import TailLost
from events.writing import EventStore, StoreStats


@asynccontextmanager
async def open_store(
    path: str | os.PathLike[str], *, durability: Durability = "process", lock: int | None = None
) -> AsyncIterator[EventStore]:
    """Open the log at `path` for writing, and make or migrate it where that is needed. `lock`: what
    `keep_lock` has given, for `hold_lock`.

    Raises LogInUse, NotALog, SchemaTooNew, TailLost, ChainBroken, OSError or sqlite3.Error on opening, and
    StoreBroken on leaving if the log could not be written: whatever was under way within is then cancelled.
    """
    log = Path(path).absolute()
    lock = hold_lock(log, lock)
    bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    try:
        os.close(
            os.open(log, os.O_RDWR | os.O_CREAT, 0o600)
        )  # before SQLite has locks on it: this would drop them
        log.chmod(0o600)
        engine = _engine(log)
        async with _connection(engine) as writer:
            found = await writer.run(partial(inspect, log, writer.raw, durability))
            async with _connection(engine) as helper:
                await helper.run(partial(configure, helper.raw, durability))
                store = EventStore(log, lock, found, writer, helper, engine, bell)
                with part_in_loop(bell, before=store.begin, after=store.hear):
                    trio.lowlevel.spawn_system_task(store.keep, name="event log")
                    try:
                        with store.body:
                            yield store
                    finally:
                        await store.close()
                if store.broken is not None:
                    raise StoreBroken(f"the event log broke: {store.broken}") from store.broken
    finally:
        os.close(bell)
        os.close(lock)


async def following(store: EventStore, after_seq: int, *, forever: bool) -> AsyncIterator[Record]:
    """Every durable event after `after_seq`, in order and without a gap; then, `forever`, each that comes."""
    while True:
        page = await store.records(after_seq)
        for record in page:
            yield record
            after_seq = record.seq
        if not page:
            if not forever:
                return
            await store.wait(after_seq + 1)


def _engine(log: Path) -> sa.Engine:
    """Each connection lives in a thread of its own and is closed when it is given back."""

    def connect(path: str, **_: object) -> TrioSqlite:
        return TrioSqlite(partial(sqlite3.connect, path, isolation_level=None, timeout=LOCK_S))

    return sa.create_engine(
        sa.URL.create("sqlite+aiosqlite", database=str(log)),
        poolclass=NullPool,
        connect_args={"async_creator_fn": connect},
    )


@asynccontextmanager
async def _connection(engine: sa.Engine) -> AsyncIterator[TrioSqlite]:
    lent = await greenlet_spawn(engine.raw_connection)
    try:
        yield cast("TrioSqlite", lent.driver_connection)
    finally:
        with trio.CancelScope(shield=True):
            await greenlet_spawn(lent.close)


__all__ = [
    "Durability",
    "EventStore",
    "LogInUse",
    "StoreBroken",
    "StoreStats",
    "TailLost",
    "following",
    "is_held",
    "lock_path",
    "open_store",
]
