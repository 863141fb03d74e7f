"""The reader: pages, subjects, cursors, and every kind of harm that the chain must show."""

from __future__ import annotations

import shutil
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from events import reader as reading
from events.catalogue import (
    Event,
    LeaseResumed,
    MemoryMeasured,
    Process,
    ProcessSpawned,
    RunnerLoad,
    UpstreamEnded,
)  # fmt: skip
from events.envelope import EventUnreadable, LogError
from events.reader import ChainBroken, CursorLost, CursorPruned, Reader, cursor
from events.store import open_store
from tests.integration.logs import append, make, step, vandal

LAST = 40


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A log of forty events, read in pages of seven."""
    monkeypatch.setattr(reading, "READ_PAGE_ROWS", 7)
    monkeypatch.setattr(reading, "_VERIFY_SQL", reading._VERIFY_SQL.replace("LIMIT 1000", "LIMIT 7"))
    path = tmp_path / "log.db"
    make(path, LAST // 2)
    return path


async def test_ranges_and_pages(log: Path) -> None:
    with Reader(log) as reader:
        assert [record.seq for record in reader.records()] == list(range(1, LAST + 1))
        assert [record.seq for record in reader.records(33)] == list(range(34, LAST + 1))
        assert [record.seq for record in reader.records(5, upto=21)] == list(range(6, 22))
        assert [record.seq for record in reader.records(LAST)] == []
        assert [event.seq for event in reader.events(38)] == [39, 40]
        assert reader.head().seq == LAST
        assert reader.verify_chain() == LAST


async def test_it_reads_beside_a_writer_and_holds_no_transaction_between_pages(log: Path) -> None:
    async with open_store(log) as store:
        with Reader(log) as reader:
            pages = reader.records(upto=LAST + 2)
            assert next(pages).seq == 1
            await store.wait(append(store, 1))
            other = sqlite3.connect(log, isolation_level=None)
            assert other.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0] == 0, "a reader held it up"
            other.close()
            assert [record.seq for record in pages] == list(range(2, LAST + 3))
            assert reader.head().seq == LAST + 2
            assert reader.verify_chain() == LAST + 2


async def test_a_copy_without_its_companions(log: Path, tmp_path: Path) -> None:
    copy = tmp_path / "a ? copy #1.db"
    shutil.copy(log, copy)
    with Reader(copy) as reader:
        assert reader.verify_chain() == LAST


def test_a_copy_beside_which_nothing_can_be_made(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    connect = reading._connect

    def read_only(uri: str) -> sqlite3.Connection:
        if "immutable" not in uri:
            raise sqlite3.OperationalError("unable to open database file")
        return connect(uri)

    Path(f"{log}-wal").unlink(missing_ok=True)
    monkeypatch.setattr(reading, "_connect", read_only)
    with Reader(log) as reader:
        assert reader.verify_chain() == LAST
    Path(f"{log}-wal").write_bytes(b"frames")
    with pytest.raises(LogError, match="copy it"):
        Reader(log)


async def test_what_the_log_says_about_a_subject(tmp_path: Path) -> None:
    process = Process(runner="r5", shard=0, boot_id="b", pid=1, start_time=2)
    load = RunnerLoad(
        model="m",
        digest="d",
        options={},
        reserved_bytes={},
        slots=1,
        keep_alive_ns=1,
        load_ns=1,
        reason="asked",
    )
    ended = UpstreamEnded(request="q1", runner="r5", complete=True)
    bodies = [
        *step(1),
        *step(3),
        Event(5, 5, 3, "r5", load),
        Event(6, 6, 0, "r5", ProcessSpawned(process)),
        Event(7, 7, 0, "q1", ended),
        Event(8, 8, 0, "", MemoryMeasured(devices={}, runners={"r5": {}})),
        Event(9, 9, 0, "other", LeaseResumed(request="q1", by="uid 0")),
        Event(10, 10, 0, "other", ProcessSpawned(process)),
    ]
    path = tmp_path / "log.db"
    async with open_store(path) as store:
        store.append(bodies, time.time_ns())
    with Reader(path) as reader:
        assert [record.seq for record in reader.of("q1")] == [1, 2, 7, 9]
        assert [record.seq for record in reader.of("q3")] == [3, 4]
        assert [record.seq for record in reader.of("r5")] == [5, 6, 7, 10]
        assert [record.seq for record in reader.of("r1")] == [2, 4]
        assert [record.seq for record in reader.of("")] == [8]
        assert [record.seq for record in reader.of("q99")] == []


# --- cursors ---------------------------------------------------------------------------------------------


async def test_a_cursor_names_one_event_of_one_log(log: Path) -> None:
    with Reader(log) as reader:
        records = list(reader.records())
        for record in records:
            assert reader.seq_at(cursor(record.seq, record.hash)) == record.seq
        assert reader.seq_at(reader.head().cursor) == LAST
        assert reader.seq_at(cursor(0, reader.base.hash)) == 0
        for text in (
            cursor(5, records[5].hash),
            cursor(LAST + 1, records[5].hash),
            cursor(0, records[0].hash),
            "",
            "5",
            "5-",
            "-5-00000000",
            "5-0000000g",
            "²-00000000",
            "9" * 30 + "-00000000",
        ):
            with pytest.raises(CursorLost):
                reader.seq_at(text)


async def test_what_was_pruned_is_said_to_be(log: Path) -> None:
    with Reader(log) as reader:
        hashes = [record.hash for record in reader.records()]
    connection = sqlite3.connect(log, isolation_level=None)
    connection.execute("UPDATE log_base SET seq = 21, hash = (SELECT hash FROM events WHERE seq = 20)")
    connection.execute("DELETE FROM events WHERE seq < 21")
    connection.close()
    with Reader(log) as reader:
        assert reader.base.seq == 21
        assert [record.seq for record in reader.records()] == list(range(21, LAST + 1))
        assert reader.verify_chain() == 20
        assert next(reader.records(20)).seq == 21
        with pytest.raises(CursorPruned):
            reader.records(19)
        with pytest.raises(CursorPruned):
            reader.seq_at(cursor(19, hashes[18]))
        assert reader.seq_at(cursor(20, hashes[19])) == 20
    async with open_store(log) as store:
        with pytest.raises(CursorPruned):
            await store.records(19)
        assert (await store.records(20))[0].seq == 21
        await store.wait(append(store, 1))


# --- harm ------------------------------------------------------------------------------------------------


COLUMNS = "at, t, type, version, cause, subject, payload, hash"


def swap(connection: sqlite3.Connection) -> None:
    connection.execute("UPDATE events SET seq = 1000 WHERE seq = 12")
    connection.execute("UPDATE events SET seq = 12 WHERE seq = 13")
    connection.execute("UPDATE events SET seq = 13 WHERE seq = 1000")


def sql(statement: str) -> Callable[[sqlite3.Connection], None]:
    def harm(connection: sqlite3.Connection) -> None:
        assert connection.execute(statement).rowcount > 0

    return harm


@pytest.mark.parametrize(
    ("harm", "seq", "what"),
    [
        (sql("UPDATE events SET payload = replace(payload, 'chat', 'chau') WHERE seq = 23"), 23, "hash"),
        (sql("UPDATE events SET payload = payload || ' ' WHERE seq = 23"), 23, "hash"),
        (sql("UPDATE events SET at = at + 1 WHERE seq = 1"), 1, "hash"),
        (sql("UPDATE events SET t = 0 WHERE seq = 40"), 40, "hash"),
        (sql("UPDATE events SET type = 'client.gone' WHERE seq = 2"), 2, "hash"),
        (sql("UPDATE events SET version = 2 WHERE seq = 7"), 7, "hash"),
        (sql("UPDATE events SET version = -1 WHERE seq = 7"), 7, "cannot be what was written"),
        (sql("UPDATE events SET cause = 1 WHERE seq = 8"), 8, "hash"),
        (sql("UPDATE events SET subject = 'q2' WHERE seq = 15"), 15, "hash"),
        (sql("UPDATE events SET hash = zeroblob(32) WHERE seq = 15"), 15, "hash"),
        (sql("UPDATE events SET subject = CAST(x'ff' AS TEXT) WHERE seq = 16"), 16, "hash"),
        (sql("DELETE FROM events WHERE seq = 14"), 14, "missing: the next event is 15"),
        (sql("DELETE FROM events WHERE seq < 3"), 1, "missing: the next event is 3"),
        (sql("DELETE FROM events WHERE seq BETWEEN 8 AND 14"), 8, "missing"),
        (swap, 12, "hash"),
        (sql(f"INSERT INTO events SELECT 41, {COLUMNS} FROM events WHERE seq = 40"), 41, "hash"),
        (
            sql(f"INSERT INTO events SELECT 0, {COLUMNS} FROM events WHERE seq = 1"),
            0,
            "before the log's base",
        ),
        (sql("UPDATE log_base SET hash = zeroblob(32)"), 1, "not that of its id"),
        (sql("UPDATE log_base SET log_id = 'another'"), 1, "not that of its id"),
        (sql("UPDATE log_base SET seq = 2"), 1, "before the log's base"),
    ],
)
def test_every_harm_is_found_where_it_was_done(
    log: Path, harm: Callable[[sqlite3.Connection], None], seq: int, what: str
) -> None:
    connection = vandal(log)
    harm(connection)
    connection.close()
    with Reader(log) as reader, pytest.raises(ChainBroken) as caught:
        reader.verify_chain()
    assert caught.value.seq == seq
    assert what in caught.value.what


def test_a_flipped_bit_in_the_file_is_found(log: Path) -> None:
    content = bytearray(log.read_bytes())
    place = content.index(b'"q21","runner"')
    content[place + 2] ^= 1
    log.write_bytes(content)
    check = sqlite3.connect(log)
    assert check.execute("SELECT count(*) FROM events").fetchone()[0] == LAST
    check.close()
    with Reader(log) as reader, pytest.raises(ChainBroken) as caught:
        reader.verify_chain()
    assert caught.value.seq == 22


def test_a_torn_page_is_found(log: Path) -> None:
    content = bytearray(log.read_bytes())
    page = content.index(b'"q21","runner"') // 2048 * 2048
    content[page : page + 2048] = bytes(2048)
    log.write_bytes(content)
    with Reader(log) as reader:
        with pytest.raises(ChainBroken, match="unreadable") as caught:
            reader.verify_chain()
        assert caught.value.seq <= 22
        seen = []
        with pytest.raises(EventUnreadable):
            for record in reader.records(upto=LAST):
                seen.append(record.seq)
        assert seen == list(range(1, len(seen) + 1))


def test_text_that_is_none_names_its_event(log: Path) -> None:
    connection = vandal(log)
    connection.execute("UPDATE events SET payload = CAST(x'7b2261223a22ff227d' AS TEXT) WHERE seq = 25")
    connection.close()
    seen = []
    with Reader(log) as reader, pytest.raises(EventUnreadable) as caught:
        for record in reader.records():
            seen.append(record.seq)
    assert caught.value.seq == 25
    assert seen == list(range(1, 25))
