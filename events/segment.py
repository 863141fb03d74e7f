"""Segments: what is pruned from a log, as files that can be read and checked alone.

gzip of JSON lines: a `Header`, then each event as the list of its columns (the hash in hexadecimal), then an
`End`. The chain goes on from one segment to the next. A segment begins behind the event that a snapshot is
of, and has that in its header: in the log it may come only much later.
"""

from __future__ import annotations

import gzip
import os
import sqlite3
import zlib
from collections.abc import Iterable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import msgspec

from events.catalogue import StateCarried
from events.envelope import LogError, Record
from events.limits import READ_PAGE_ROWS
from events.schema import make

FORMAT = 1
LEVEL = 3
"""Of compression: half the time of gzip's own, for a twentieth more bytes. The hashes are most of them."""
READ_BYTES = 256 * 1024
MAGIC = b"\x1f\x8b"
SUFFIX = ".jsonl.gz"


class Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The first line: the base of the log that the segment was the beginning of."""

    runnerd_segment: int
    """FORMAT."""
    log_id: str
    created_at: int
    seq: int
    hash: str
    begin: tuple[StateCarried, ...] = ()
    """The parts of the snapshot of the events before; none: there are none."""


class End(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The last line: the last event."""

    seq: int
    hash: str


class Damaged(LogError):
    """A segment ends before its end, or is not what was written, after event `seq` - 1."""

    def __init__(self, seq: int, what: str) -> None:
        super().__init__(f"the segment breaks at event {seq}: {what}")
        self.seq = seq


def name_of(first: int, last: int) -> str:
    """What a segment's file is called: they sort by age."""
    return f"{first:012}-{last:012}{SUFFIX}"


def is_segment(path: Path) -> bool:
    """Whether a file is one, or claims to be. Raises OSError."""
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def write(path: Path, header: Header, records: Iterable[Record]) -> bytes:
    """Write a segment, durably and whole or not at all; the digest of what it says. Raises OSError."""
    fresh = path.with_name(path.name + ".new")
    try:
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            said = _write(file, header, records)
            file.flush()
            os.fsync(descriptor)
        os.replace(fresh, path)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
    return said


def _write(file: BinaryIO, header: Header, records: Iterable[Record]) -> bytes:
    encode, said = msgspec.json.encode, sha256()
    seq, hash = header.seq - 1, header.hash
    with gzip.GzipFile("", "wb", LEVEL, file, mtime=0) as zipped:
        lines = [encode(header) + b"\n"]
        for r in records:
            seq, hash = r.seq, r.hash.hex()
            lines.append(
                encode((seq, r.at, r.t, r.type, r.version, r.cause, r.subject, r.payload, hash)) + b"\n"
            )
            if len(lines) >= READ_PAGE_ROWS:  # a line alone costs more to hand over than to compress
                data = b"".join(lines)
                said.update(data)
                zipped.write(data)
                lines.clear()
        data = b"".join([*lines, encode(End(seq, hash)), b"\n"])
        said.update(data)
        zipped.write(data)
    return said.digest()


_Columns = tuple[int, int, int, str, int, int, str, str, str]


def digest(path: Path) -> bytes:
    """SHA-256 of what a segment says. Raises LogError, OSError."""
    said = sha256()
    try:
        with gzip.open(path, "rb") as plain:
            while data := plain.read(READ_BYTES):
                said.update(data)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise LogError(f"{path} cannot be read back: {error}") from error
    return said.digest()


class Unpacked(NamedTuple):
    """A segment as a log in memory, up to where it is damaged."""

    connection: sqlite3.Connection
    begin: tuple[StateCarried, ...]
    damage: Damaged | None


def unpack(path: Path) -> Unpacked:
    """Read a segment. Raises LogError where nothing of it can be read."""
    with gzip.open(path, "rb") as lines:
        header = _header(lines)
        connection = sqlite3.connect(":memory:", isolation_level=None)
        try:
            make(connection, header.log_id, header.created_at, header.seq, bytes.fromhex(header.hash))
        except (sqlite3.Error, OverflowError) as error:
            raise LogError(f"no segment of an event log: {error}") from error
        connection.execute("BEGIN")
        rows = _Rows(lines, header)
        try:
            connection.executemany("INSERT INTO events VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)
        except (sqlite3.Error, OverflowError) as error:  # no event can be so
            rows.damage = Damaged(rows.seq, str(error))
        connection.execute("COMMIT")
        return Unpacked(connection, header.begin, rows.damage)


def _header(lines: Iterator[bytes]) -> Header:
    """The first line. Raises LogError."""
    try:
        header = msgspec.json.decode(next(lines, b""), type=Header)
        bytes.fromhex(header.hash)
    except (EOFError, OSError, zlib.error, ValueError) as error:
        raise LogError(f"no segment of an event log: {error}") from error
    if header.runnerd_segment != FORMAT:
        raise LogError(
            f"the segment has format {header.runnerd_segment}, and this program knows {FORMAT}:"
            " use a newer runnerd"
        )
    return header


class _Rows:
    """The rows of a segment, up to its end or its damage."""

    def __init__(self, lines: Iterable[bytes], header: Header) -> None:
        self._lines = lines
        self.seq, self._hash = header.seq - 1, header.hash
        self.damage: Damaged | None = None

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        whole = False
        try:
            for line in self._lines:
                if whole:
                    raise ValueError("it goes on after its end")
                if line.startswith(b"{"):
                    end = msgspec.json.decode(line, type=End)
                    whole = (end.seq, end.hash) == (self.seq, self._hash)
                    if not whole:
                        raise ValueError(f"it says that it ends with event {end.seq}")
                    continue
                columns = msgspec.json.decode(line, type=_Columns)
                hash = bytes.fromhex(columns[-1])
                if columns[0] != self.seq + 1:
                    raise ValueError(f"event {columns[0]} is in its place")
                self.seq, self._hash = columns[0], columns[-1]
                yield (*columns[:-1], hash)
            if not whole:
                raise ValueError("it ends before its end")
        except EOFError:
            self.damage = Damaged(self.seq + 1, "the file is cut short")
        except (OSError, zlib.error, ValueError) as error:  # msgspec's are ValueErrors
            self.damage = Damaged(self.seq + 1, str(error))


__all__ = ["FORMAT", "Damaged", "End", "Header", "digest", "is_segment", "name_of", "unpack", "write"]
