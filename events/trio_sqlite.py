"""aiosqlite under trio: its connection and worker thread, waking trio tasks instead of asyncio futures.

aiosqlite knows only asyncio. Everything of it that touches the event loop goes through three methods, which
are replaced here; SQLAlchemy's `sqlite+aiosqlite` dialect then works under `greenlet_spawn` as it is. Its
thread takes its jobs from a queue of ours. All this is private to aiosqlite, so its version is pinned and a
test watches the seam.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

import aiosqlite
import outcome
import trio
from aiosqlite.core import _STOP_RUNNING_SENTINEL, _connection_worker_thread

T = TypeVar("T")


class _Jobs:
    """The queue of a connection's thread, by an eventfd.

    Who puts a job into a `queue.SimpleQueue` holds the interpreter's lock when the thread wakes: on one
    processor the thread stops who put it, only to wait for the lock, twice over. To write to an eventfd lets
    go of the lock first."""

    def __init__(self) -> None:
        self._jobs: deque[Any] = deque()
        self._bell = os.eventfd(0, os.EFD_CLOEXEC)

    def put_nowait(self, job: Any) -> None:
        """Behind the others."""
        self._jobs.append(job)
        os.eventfd_write(self._bell, 1)

    def get(self) -> Any:
        """The next one; wait for it."""
        while not self._jobs:
            os.read(self._bell, 8)  # not eventfd_read, which a signal breaks off
        return self._jobs.popleft()

    def __del__(self) -> None:
        # Not at the thread's end: who puts the last job may yet be about to ring.
        os.close(self._bell)


class TrioSqlite(aiosqlite.Connection):
    """A SQLite connection that lives in a thread of its own. Jobs run there one at a time, in order."""

    def __init__(self, connector: Callable[[], sqlite3.Connection]) -> None:
        super().__init__(connector, 64)
        self._tx: Any = _Jobs()
        # A program that is told to end must not wait for a hung disk.
        self._thread = threading.Thread(target=_connection_worker_thread, args=(self._tx,), daemon=True)

    async def run(self, job: Callable[[], T], *, may_leave: bool = False) -> T:
        """Run `job` in the connection's thread. Once begun it cannot be cancelled, so it tells the truth; nor
        while it waits for other jobs, which may be for long, unless it `may_leave`: then it never runs."""
        task = trio.lowlevel.current_task()
        token = trio.lowlevel.current_trio_token()
        first = iter((True,))  # who takes it decides: the thread, which begins, or who is cancelled

        def run_in_thread() -> None:
            if next(first, False):
                token.run_sync_soon(trio.lowlevel.reschedule, task, outcome.capture(job))

        def leave(_: object) -> trio.lowlevel.Abort:
            left = may_leave and next(first, False)
            return trio.lowlevel.Abort.SUCCEEDED if left else trio.lowlevel.Abort.FAILED

        self.submit(run_in_thread)
        result: T = await trio.lowlevel.wait_task_rescheduled(leave)
        return result

    def submit(self, job: Callable[[], object]) -> None:
        """Run `job` in the connection's thread and look at no result: it must not raise."""
        self._tx.put_nowait((None, job))

    @property
    def raw(self) -> sqlite3.Connection:
        """The connection itself, for use within jobs."""
        connection: sqlite3.Connection = self._conn
        return connection

    async def _execute(self, fn: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        if self._connection is None:
            raise ValueError("the connection is closed")
        return await self.run(partial(fn, *args, **kwargs))

    async def _connect(self) -> TrioSqlite:
        if self._connection is None:
            try:
                self._connection = await self.run(self._connector)
            except BaseException:
                self.stop()
                raise
        return self

    def stop(self) -> None:
        """Close the connection after the jobs that wait, and end its thread."""
        connection, self._connection, self._running = self._connection, None, False

        def close_and_end() -> object:
            if connection is not None:
                with suppress(sqlite3.Error):  # or the thread would never end
                    connection.close()
            return _STOP_RUNNING_SENTINEL

        self._tx.put_nowait((None, close_and_end))
