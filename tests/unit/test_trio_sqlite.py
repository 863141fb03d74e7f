"""The seam to aiosqlite: what of it works under trio, and what the store relies on."""

from __future__ import annotations

import gc
import os
import signal
import sqlite3
import threading
from contextlib import suppress
from pathlib import Path

import pytest
import trio

from events.trio_sqlite import TrioSqlite


async def test_aiosqlite_works_under_trio(tmp_path: Path) -> None:
    connection = TrioSqlite(lambda: sqlite3.connect(tmp_path / "x.db", isolation_level=None))
    thread = connection._thread
    async with connection:
        await connection.execute("CREATE TABLE t (a)")
        await connection.executemany("INSERT INTO t VALUES (?)", [(1,), (2,)])
        cursor = await connection.execute("SELECT a FROM t")
        assert [tuple(row) for row in await cursor.fetchall()] == [(1,), (2,)]
        with pytest.raises(sqlite3.OperationalError):
            await connection.execute("nonsense")
        assert await connection.run(threading.get_ident) == thread.ident != threading.get_ident()
        order: list[int] = []
        async with trio.open_nursery() as nursery:
            for number in range(5):
                nursery.start_soon(connection.run, lambda number=number: order.append(number))
        assert sorted(order) == [0, 1, 2, 3, 4]
    await trio.to_thread.run_sync(thread.join, 5)
    assert not thread.is_alive()
    with pytest.raises(ValueError, match="no active connection"):
        await connection.execute("SELECT 1")


async def test_a_job_once_begun_tells_the_truth_to_a_cancelled_task(tmp_path: Path) -> None:
    connection = TrioSqlite(lambda: sqlite3.connect(tmp_path / "x.db"))
    async with connection:
        with trio.CancelScope() as scope:
            scope.cancel()
            assert await connection.run(lambda: 7) == 7
        assert not scope.cancelled_caught


async def test_a_signal_does_not_end_the_thread(tmp_path: Path) -> None:
    """The kernel gives it to any thread, also to one that waits for a job."""
    connection = TrioSqlite(lambda: sqlite3.connect(tmp_path / "x.db"))
    async with connection:
        thread = await connection.run(threading.get_ident)
        with trio.open_signal_receiver(signal.SIGUSR1) as signals, trio.fail_after(30):
            for _ in range(20):
                signal.pthread_kill(thread, signal.SIGUSR1)
                await anext(signals)
                assert await connection.run(threading.get_ident, may_leave=True) == thread


async def test_a_connection_leaves_no_descriptor(tmp_path: Path) -> None:
    connection = TrioSqlite(lambda: sqlite3.connect(tmp_path / "x.db"))
    bell = connection._tx._bell
    async with connection:
        assert os.readlink(f"/proc/self/fd/{bell}") == "anon_inode:[eventfd]"
    await trio.to_thread.run_sync(connection._thread.join, 5)
    del connection
    gc.collect()
    with suppress(FileNotFoundError):  # somebody else's by now, at most
        assert os.readlink(f"/proc/self/fd/{bell}") != "anon_inode:[eventfd]"


async def test_a_connection_that_cannot_open_ends_its_thread(tmp_path: Path) -> None:
    connection = TrioSqlite(lambda: sqlite3.connect(tmp_path / "no" / "such" / "place"))
    with pytest.raises(sqlite3.OperationalError):
        await connection
    await trio.to_thread.run_sync(connection._thread.join, 5)
    assert not connection._thread.is_alive()
