"""Segments and pruned logs: what is read from them, and how their damage is found."""

from __future__ import annotations

import gzip
import json
import shutil
import sqlite3
from pathlib import Path

import pytest

from events import segment
from events.envelope import LogError
from events.pruning import prune, shrink
from events.reader import ChainBroken, CursorPruned, Reader
from events.segment import Damaged, Header
from tests.integration.logs import make

FIRST, LAST = 11, 30


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "log.db"
    make(path, 20)
    return path


@pytest.fixture
def packed(log: Path, tmp_path: Path) -> Path:
    """A segment of it."""
    path = tmp_path / segment.name_of(FIRST, LAST)
    with Reader(log) as reader:
        header = Header(1, reader.log_id, reader.base.created_at, FIRST, reader.hash_of(FIRST - 1).hex())
        segment.write(path, header, reader.records(FIRST - 1, LAST))
    return path


def test_a_segment_reads_like_the_log_that_it_was_of(log: Path, packed: Path) -> None:
    with Reader(log) as whole, Reader(packed) as part:
        assert part.log_id == whole.log_id
        assert (part.base.seq, part.head().seq) == (FIRST, LAST)
        assert part.verify_chain() == LAST - FIRST + 1
        assert list(part.records()) == list(whole.records(FIRST - 1, LAST))
        assert list(part.of("q11")) == list(whole.of("q11"))
        with pytest.raises(CursorPruned):
            part.records(3)
    assert oct(packed.stat().st_mode & 0o777) == "0o600"
    assert not list(packed.parent.glob("*.new"))


def lines_of(path: Path) -> list[bytes]:
    return gzip.decompress(path.read_bytes()).splitlines(keepends=True)


def put(path: Path, lines: list[bytes]) -> None:
    path.write_bytes(gzip.compress(b"".join(lines)))


def broken_at(path: Path) -> int:
    with Reader(path) as reader, pytest.raises((ChainBroken, Damaged)) as caught:
        reader.verify_chain()
    assert isinstance(caught.value, ChainBroken | Damaged)
    return caught.value.seq


@pytest.mark.parametrize("column", range(9))
def test_a_changed_column_is_found(packed: Path, column: int) -> None:
    lines = lines_of(packed)
    row = json.loads(lines[5])
    old = row[column]
    row[column] = old + 1 if isinstance(old, int) else old[:-1] + ("1" if old[-1:] != "1" else "2")
    lines[5] = json.dumps(row).encode() + b"\n"
    put(packed, lines)
    assert broken_at(packed) == FIRST + 4


def test_missing_repeated_and_swapped_events_are_found(packed: Path) -> None:
    lines = lines_of(packed)
    for changed, seq in (
        ([*lines[:5], *lines[6:]], FIRST + 4),
        ([*lines[:5], lines[4], *lines[5:]], FIRST + 4),
        ([*lines[:5], lines[6], lines[5], *lines[7:]], FIRST + 4),
        (lines[:-1], LAST + 1),
        (lines[:-2], LAST),
        ([*lines[:-2], lines[-1]], LAST),
        ([*lines, lines[-1]], LAST + 1),
        ([*lines[:7], b"\xff\n", *lines[7:]], FIRST + 6),
    ):
        put(packed, changed)
        assert broken_at(packed) == seq


def test_every_flipped_bit_of_the_file_is_found(packed: Path) -> None:
    """A bit of each byte. Some are no part of what was written: when and where that was, and what fills the
    last byte of the compressed data."""
    data = packed.read_bytes()
    whole, said_nothing = gzip.decompress(data), 0
    for i in range(len(data)):
        changed = data[:i] + bytes([data[i] ^ 1 << i % 8]) + data[i + 1 :]
        packed.write_bytes(changed)
        try:
            with Reader(packed) as reader:
                reader.verify_chain()
        except (LogError, sqlite3.DatabaseError):
            continue
        assert gzip.decompress(changed) == whole, f"byte {i} was changed, and nothing was said"
        said_nothing += 1
    assert said_nothing <= 8


def test_a_segment_that_is_cut_off_is_found_wherever_that_is(packed: Path) -> None:
    data = packed.read_bytes()
    for length in range(2, len(data), 7):
        packed.write_bytes(data[:length])
        with pytest.raises(LogError), Reader(packed) as reader:
            reader.verify_chain()


def test_what_is_read_back_is_what_was_written(log: Path, packed: Path) -> None:
    with Reader(log) as reader:
        header = Header(1, reader.log_id, 1, 1, reader.base.hash.hex())
        written = segment.write(packed, header, reader.records())
    assert segment.digest(packed) == written
    data = packed.read_bytes()
    packed.write_bytes(data[:200] + bytes([data[200] ^ 1]) + data[201:])
    with pytest.raises((LogError, OSError)):
        segment.digest(packed)


def test_a_newer_format_says_so(packed: Path) -> None:
    lines = lines_of(packed)
    put(packed, [lines[0].replace(b'"runnerd_segment":1', b'"runnerd_segment":2'), *lines[1:]])
    with pytest.raises(LogError, match="format 2, and this program knows 1: use a newer runnerd"):
        Reader(packed)


def pruned(log: Path, upto: int) -> Path:
    connection = sqlite3.connect(log, isolation_level=None)
    with Reader(log) as reader:
        prune(connection, upto, reader.hash_of(upto))
    connection.close()
    return log


def test_a_pruned_log_keeps_its_chain_and_says_where_it_begins(log: Path) -> None:
    with Reader(log) as before:
        expected = list(before.records(10))
        (seventh,) = before.records(6, 7)
    with Reader(pruned(log, 10)) as reader:
        assert (reader.base.seq, reader.verify_chain()) == (11, 30)
        assert list(reader.records()) == expected
        with pytest.raises(CursorPruned):
            reader.seq_at(f"7-{seventh.hash.hex()[:8]}")


def test_what_is_not_as_it_was_to_be_is_not_pruned(log: Path) -> None:
    connection = sqlite3.connect(log, isolation_level=None)
    with pytest.raises(ChainBroken):
        prune(connection, 10, b"\0" * 32)
    with Reader(log) as reader:
        last = reader.head()
        with pytest.raises(LogError, match="is the last one"):
            prune(connection, last.seq, last.hash)
        with pytest.raises(ChainBroken):
            prune(connection, last.seq + 1, last.hash)
        assert (reader.base.seq, reader.verify_chain()) == (1, 40)
    assert not connection.in_transaction
    pruned(log, 10)
    assert prune(connection, 5, b"\0" * 32).seq == 11, "it is gone already"


def test_a_reader_that_is_overtaken_by_pruning_says_so(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from events import reader as reading

    monkeypatch.setattr(reading, "READ_PAGE_ROWS", 7)
    with Reader(log) as reader:
        records = reader.records()
        assert next(records).seq == 1
        pruned(log, 20)
        with pytest.raises(CursorPruned, match="pruned meanwhile: it begins at event 21"):
            list(records)
        assert reader.verify_chain() == 20


def test_the_chain_is_checked_from_the_new_base_where_it_moves_meanwhile(log: Path) -> None:
    with Reader(log) as reader:
        pruned(log, 20)
        assert reader.base.seq == 1
        assert reader.verify_chain() == 20


def test_free_pages_are_given_back_bit_by_bit(tmp_path: Path) -> None:
    log = tmp_path / "large.db"
    make(log, 3000)
    pruned(log, 5900)
    connection = sqlite3.connect(log, isolation_level=None)
    free = connection.execute("PRAGMA freelist_count").fetchone()[0]
    times = 0
    while shrink(connection, 100):
        left = connection.execute("PRAGMA freelist_count").fetchone()[0]
        assert 0 < free - left <= 64
        free, times = left, times + 1
    assert times > 3
    assert connection.execute("PRAGMA freelist_count").fetchone()[0] <= 100
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    assert log.stat().st_size < 400_000
    connection.close()
    shutil.rmtree(tmp_path)
