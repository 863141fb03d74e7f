"""Keeping the write-ahead log short without making a commit pay for it.

A second connection copies the WAL into the database beside the writer. A busy writer would stay ahead of it
for ever, and the WAL can only be begun anew once all of it is copied: so after each bulk the writer yields
once, for the few pages that have come since. Only if the WAL grows beyond its hard limit all the same (a
reader that does not let go) is the writer slowed down.
"""

from __future__ import annotations

import os
import sqlite3
from typing import Protocol

import trio

from events.commit import is_temporary
from events.envelope import LogError
from events.failpoints import reach
from events.limits import (
    WAL_HARD_BYTES,
    WAL_PACE_S,
    WAL_PAGES_PER_GROUP,
    WAL_ROWS_PER_PAGE,
    WAL_SOFT_PAGES,
    WAL_YIELD_S,
)
from events.trio_sqlite import TrioSqlite


class Writer(Protocol):
    """What is asked to yield."""

    async def hold(self) -> None:
        """Begin no transaction until `release`; return when none is under way."""
        ...

    def release(self) -> None:
        """Go on; also when it is not held."""
        ...


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except FileNotFoundError:
        return 0


class Checkpointer:
    """Decides when to checkpoint, and does it. Everything here belongs to the trio thread."""

    def __init__(self, connection: TrioSqlite, log: str, writer: Writer) -> None:
        self._connection = connection
        self._log = log
        self._wal = f"{log}-wal"
        self._writer = writer
        self._grown_pages = 0
        self._over = False
        self._due = trio.Event()
        self.checkpoints = 0
        self.yields = 0
        self.paced = 0
        self.peak_bytes = 0

    def grew(self, rows: int) -> None:
        """A transaction of so many rows was written. Its pages are estimated: asking would cost more."""
        self.wrote(WAL_PAGES_PER_GROUP + rows // WAL_ROWS_PER_PAGE)

    def wrote(self, pages: int) -> None:
        """So many pages were written into the WAL."""
        self._grown_pages += pages
        if self._grown_pages >= WAL_SOFT_PAGES or self._over:
            self._due.set()

    def log_bytes(self) -> int:
        """The size of the log's file."""
        return _size(self._log)

    def wal_bytes(self) -> int:
        """The size of the WAL's file."""
        size = _size(self._wal)
        self.peak_bytes = max(size, self.peak_bytes)
        return size

    async def run(self) -> None:
        """Checkpoint whenever it is due, until cancelled."""
        while True:
            await self._due.wait()
            self._due = trio.Event()
            try:
                await self._cycle()
            except sqlite3.Error as error:
                if not is_temporary(error):
                    raise

    async def _cycle(self) -> None:
        await self._pass()
        if self._grown_pages:
            await self._pass_while_held()
        self._over = self.wal_bytes() > WAL_HARD_BYTES
        if self._over:
            self.paced += 1
            await self._writer.hold()
            try:
                await trio.sleep(WAL_PACE_S)
            finally:
                self._writer.release()

    async def _pass_while_held(self) -> None:
        self.yields += 1
        await self._writer.hold()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._release_at_last)
                await self._pass()
                nursery.cancel_scope.cancel()
        finally:
            self._writer.release()

    async def _release_at_last(self) -> None:
        await trio.sleep(WAL_YIELD_S)
        self._writer.release()

    async def _pass(self) -> None:
        pages, self._grown_pages = self._grown_pages, 0
        self.checkpoints += 1
        if not await self._connection.run(self._checkpoint):
            self._grown_pages += pages
        self.wal_bytes()

    def _checkpoint(self) -> bool:
        """Whether one could be made. SQLite says "busy" where another program makes one, and where the writer
        is just changing the index of the WAL, which on a busy machine may take a while."""
        reach("checkpoint.before")
        busy, pages, _ = self._connection.raw.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        if pages < 0 and not busy:  # SQLite's answer on a connection that has not met the WAL yet
            raise LogError("the log is not in WAL mode")
        reach("checkpoint.after")
        return int(pages) >= 0
