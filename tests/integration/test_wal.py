"""The write-ahead log stays short, whoever reads it or checkpoints it beside us."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from events import checkpoint, opening
from events.limits import LOG_PAGE_BYTES
from events.reader import Reader
from events.store import open_store
from tests.integration.logs import append, stored


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Where a test's log is."""
    return tmp_path / "log.db"


def beginning(log: Path) -> bytes:
    """The header of the WAL, which has other salts whenever it is begun anew."""
    with open(f"{log}-wal", "rb") as wal:
        return wal.read(32)


async def test_the_wal_stays_short(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "WAL_SOFT_PAGES", 100)
    async with open_store(log) as opened:
        with trio.fail_after(60):
            while True:
                await opened.wait(append(opened, 1))
                stats = opened.stats
                through_bytes = stats.groups * 2 * LOG_PAGE_BYTES  # of the table and of an index, at least
                if stats.checkpoints > 5 and through_bytes > 4 * stats.wal_peak_bytes:
                    break  # it is begun anew again and again
    with Reader(log) as reader:
        assert reader.verify_chain() == stats.events


CHECKPOINTING = """
import fcntl, sys
with open(sys.argv[1], "r+b") as index:
    fcntl.lockf(index, fcntl.LOCK_EX, 1, 121)  # WAL_CKPT_LOCK
    print("held", flush=True)
    sys.stdin.read()
"""


async def test_another_checkpoint_that_is_under_way_is_waited_for(
    log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite answers as if there were no WAL then, and also while it meets the writer within the index."""
    for module in (checkpoint, opening):
        monkeypatch.setattr(module, "WAL_SOFT_PAGES", 50)
    async with open_store(log) as opened:
        await opened.wait(append(opened, 1))
        command = [sys.executable, "-c", CHECKPOINTING, f"{log}-shm"]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
            assert other.stdout is not None and other.stdin is not None
            assert other.stdout.readline() == b"held\n"
            with trio.fail_after(20):
                while opened.stats.checkpoints < 20:
                    await opened.wait(append(opened, 1))
            other.stdin.close()
            other.wait(20)
        before = beginning(log)
        with trio.fail_after(20):
            while beginning(log) == before:  # until the WAL is begun anew
                await opened.wait(append(opened, 1))
        last = opened.head.seq
    assert stored(log) == list(range(1, last + 1))


VISITING = """
import sqlite3, sys
visitor = sqlite3.connect(sys.argv[1])
print(visitor.execute("SELECT count(*) FROM events").fetchone()[0])
visitor.close()
"""


async def test_who_closes_a_log_that_is_open_here_takes_nothing_along(log: Path) -> None:
    """The last one to close a log removes its WAL. Who opens and closes the file in this process, otherwise
    than by SQLite, drops its locks, and makes the next visitor believe that he is the last."""
    async with open_store(log) as opened:
        await opened.wait(append(opened, 1))
        with Reader(log) as reader:
            assert reader.verify_chain() == 2
        visit = await trio.run_process([sys.executable, "-c", VISITING, str(log)], capture_stdout=True)
        assert visit.stdout == b"2\n"
        assert Path(f"{log}-wal").exists()
        await opened.wait(append(opened, 1, first=3))
    assert stored(log) == [1, 2, 3, 4]


async def test_a_reader_that_does_not_let_go_slows_the_writer_and_stops_nothing(
    log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (checkpoint, opening):
        monkeypatch.setattr(module, "WAL_SOFT_PAGES", 50)
    monkeypatch.setattr(checkpoint, "WAL_HARD_BYTES", 300_000)
    monkeypatch.setattr(checkpoint, "WAL_PACE_S", 0.001)
    async with open_store(log) as opened:
        await opened.wait(append(opened, 1))
        reader = sqlite3.connect(log, isolation_level=None)
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM events").fetchone()
        with trio.fail_after(20):
            while not opened.stats.paced:
                await opened.wait(append(opened, 5))
        reader.execute("ROLLBACK")
        reader.close()
        with trio.fail_after(20):
            while opened.stats.wal_bytes > 300_000:
                await opened.wait(append(opened, 5))
        last = opened.head.seq
    assert stored(log) == list(range(1, last + 1))
