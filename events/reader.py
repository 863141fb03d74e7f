"""Reading a log file: records, events, one subject's events, cursors, and the verification of the chain.

Synchronous and read-only, for tools and for recovery. It works beside a daemon that writes the same log, and
on a copy. Rows come in pages and no transaction outlives its page, so that a reader never stops the log
from being checkpointed.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from struct import error as StructError
from typing import Any

import msgspec

from events import schema
from events.catalogue import Event, StateCarried
from events.envelope import EventUnreadable, LogError, Record, chain_hash, decode, first_hash
from events.limits import FOLLOW_S, LOCK_S, READ_PAGE_ROWS
from events.segment import Damaged, is_segment, unpack
from events.upcast import type_of

MAX_SEQ = 2**62
"""More than any log will hold."""

COLUMNS = "seq, at, t, type, version, cause, subject, payload, hash"

_REQUEST = "json_extract(payload, '$.request')"
_RUNNER = "coalesce(json_extract(payload, '$.runner'), json_extract(payload, '$.process.runner'))"
_NAMES_NO_RUNNER = "type <> 'request.arrived' AND type <> 'request.completed'"
_NAMES_NO_REQUEST = f"{_NAMES_NO_RUNNER} AND type <> 'request.dispatched' AND type <> 'upstream.ended'"
"""Types of event that an index of migration 0001 leaves out, so that SQLite sees that it may use it: they
name no runner at all, or no request but their subject."""

_OF_SUBJECT = "seq IN ({})".format(  # each is what one of the indexes covers, and a page of it is enough
    " UNION ALL ".join(
        "SELECT seq FROM (SELECT seq FROM events"
        f" WHERE seq > :after AND {condition} ORDER BY seq LIMIT {READ_PAGE_ROWS})"
        for condition in (
            "subject = :subject",
            f"{_NAMES_NO_REQUEST} AND {_REQUEST} = :subject AND {_REQUEST} <> subject",
            f"{_NAMES_NO_RUNNER} AND {_RUNNER} = :subject AND {_RUNNER} <> subject",
        )
    )
)


class ChainBroken(LogError):
    """The log has been altered or damaged at `seq`: everything before it is as it was written."""

    def __init__(self, seq: int, what: str) -> None:
        super().__init__(f"the chain breaks at event {seq}: {what}")
        self.seq = seq
        self.what = what


class CursorLost(LogError):
    """The cursor names an event that this log does not hold: it is another log's, or its tail was lost.

    Begin again from a fresh look at the state.
    """


class CursorPruned(LogError):
    """The events after this cursor have been pruned. Begin again from the log's base."""


class Base(msgspec.Struct, frozen=True):
    """Where a log begins: its first event's number, and the hash to which that event is chained."""

    log_id: str
    created_at: int
    seq: int
    hash: bytes


class Head(msgspec.Struct, frozen=True):
    """The last event of a log; of an empty one, what its first event will be chained to."""

    seq: int
    hash: bytes

    @property
    def cursor(self) -> str:
        """The head as a cursor."""
        return cursor(self.seq, self.hash)


def cursor(seq: int, hash: bytes) -> str:
    """The text that names an event of one particular log: `seq-hash8`."""
    return f"{seq}-{hash.hex()[:8]}"


def read_base(connection: sqlite3.Connection) -> Base:
    """The base of a log. Raises LogError where it has none."""
    row = connection.execute("SELECT log_id, created_at, seq, hash FROM log_base").fetchone()
    if row is None:
        raise LogError("the log has no base: it is damaged")
    return Base(*row)


def used_bytes(connection: sqlite3.Connection) -> int:
    """The size of a log, without the pages that are free in its file."""
    pages, free, size = (
        connection.execute(f"PRAGMA {name}").fetchone()[0]
        for name in ("page_count", "freelist_count", "page_size")
    )
    return int((pages - free) * size)


def read_head(connection: sqlite3.Connection, base: Base) -> Head:
    """The last event of a log."""
    row = connection.execute("SELECT seq, hash FROM events ORDER BY seq DESC LIMIT 1").fetchone()
    return Head(*row) if row is not None else Head(base.seq - 1, base.hash)


class Snapshot(msgspec.Struct, frozen=True):
    """Where a whole snapshot is: the state after event `upto`, whose last part is event `seq`."""

    upto: int
    hash: bytes
    """Of the event `upto`."""
    seq: int


_PIECE_BELOW = (  # events_subject finds it
    "SELECT seq FROM events WHERE subject = ? AND type = ? AND seq < ? ORDER BY seq DESC LIMIT 1"
)
_PIECE = f"SELECT {COLUMNS} FROM events WHERE seq = ?"


def hash_of(connection: sqlite3.Connection, base: Base, seq: int) -> bytes:
    """The stored hash of an event, or of the one before the base. Raises ChainBroken where it is missing."""
    if seq == base.seq - 1:
        return base.hash
    row = connection.execute("SELECT hash FROM events WHERE seq = ?", (seq,)).fetchone()
    if row is None:
        raise ChainBroken(seq, "missing")
    return bytes(row[0])


class Reader:
    """A log file, open for reading. Raises NotALog, SchemaTooNew, OSError or sqlite3.Error on opening."""

    def __init__(self, path: str | os.PathLike[str], page_rows: int | None = None) -> None:
        self.path = Path(path)
        self._page_rows = page_rows or READ_PAGE_ROWS
        self.segment = False
        """Whether the file is a segment, not a log."""
        self.damage: Damaged | None = None
        """Where a segment breaks off. What comes before that is read as if there were no more."""
        self.begin: tuple[StateCarried, ...] = ()
        """The parts of the snapshot that a segment begins with."""
        try:
            self._connection = open_read_only(self.path)
        except (
            schema.NotALog
        ):  # only now: to open and close a log that is open here drops SQLite's locks on it
            if not is_segment(self.path):
                raise
            self.segment = True
            self._connection, self.begin, self.damage = unpack(self.path)
        try:
            self.schema = schema.check(self._connection)
            if self.schema == 0:
                raise schema.NotALog(f"{self.path} holds no event log yet")
            self.base = read_base(self._connection)
        except BaseException:
            self._connection.close()
            raise

    @property
    def log_id(self) -> str:
        """The log's identity."""
        return self.base.log_id

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def used_bytes(self) -> int:
        """The size of the log, without the pages that are free in its file."""
        return used_bytes(self._connection)

    def head(self) -> Head:
        """The last event, now."""
        return read_head(self._connection, self.base)

    def _end(self) -> int:
        """The number of the last event; of a file that was cut, where that cannot be found, one that none
        exceeds."""
        try:
            return self.head().seq
        except sqlite3.DatabaseError as error:
            if not is_damage(error):
                raise
            return MAX_SEQ

    def records(self, after: int = 0, upto: int | None = None) -> Iterator[Record]:
        """The events after number `after`, up to number `upto` (None: to the head as it is now).

        With `after` 0 they begin at the base. Raises CursorPruned where some of them have been pruned, and
        EventUnreadable where SQLite cannot make sense of one.
        """
        if 0 < after < self.base.seq - 1:
            raise CursorPruned(f"the log begins at event {self.base.seq}")
        last = self._end() if upto is None else upto
        return self._records(max(after, self.base.seq - 1), last)

    def _records(self, after: int, last: int) -> Iterator[Record]:
        for record in self._pages(after, "seq <= :last", {"last": last}):
            if record.seq != after + 1 and self._is_pruned(after):
                raise CursorPruned(f"the log has been pruned meanwhile: it begins at event {self.base.seq}")
            yield record
            after = record.seq
        if self.damage is not None and after < last:
            raise self.damage

    def _is_pruned(self, after: int) -> bool:
        """Whether what followed event `after` is gone, now."""
        self.base = read_base(self._connection)
        return after < self.base.seq - 1

    def events(self, after: int = 0, upto: int | None = None) -> Iterator[Event]:
        """As `records`, decoded."""
        return map(decode, self.records(after, upto))

    def of(self, subject: str) -> Iterator[Record]:
        """What the log says about a request, a runner, an operation or a model, in order."""
        return self._pages(0, _OF_SUBJECT, {"subject": subject})

    def last_at(self, at_ns: int) -> int:
        """The number of the last event up to a time of day (UTC, ns); 0 where there is none."""
        row = self._connection.execute("SELECT max(seq) FROM events WHERE at <= ?", (at_ns,)).fetchone()
        return int(row[0] or 0)

    def first_at(self, at_ns: int) -> int:
        """The number of the first event from a time of day (UTC, ns) on; one more than the last, where none
        is as late."""
        row = self._connection.execute("SELECT min(seq) FROM events WHERE at >= ?", (at_ns,)).fetchone()
        return self.head().seq + 1 if row[0] is None else int(row[0])

    def following(self, after: int = 0) -> Iterator[Record]:
        """As `records`, and then whatever is appended, as it is: without end."""
        while True:
            for record in self.records(after):
                after = record.seq
                yield record
            time.sleep(FOLLOW_S)

    def snapshots(self, upto: int | None = None) -> Iterator[Snapshot]:
        """The whole snapshots of states at or before event `upto` (None: all), the newest first. One whose
        last part cannot be read is none: who reads on to there finds the damage."""
        for record, piece in self._pieces_below(self._end() + 1):
            if piece.part == piece.parts and (upto is None or piece.upto <= upto):
                yield Snapshot(piece.upto, bytes.fromhex(piece.hash), record.seq)

    def pieces(self, snapshot: Snapshot) -> list[StateCarried]:
        """The parts of a snapshot. Raises EventUnreadable where they are not all there."""
        pieces: list[StateCarried] = []
        for _, piece in self._pieces_below(snapshot.seq + 1):
            if piece.part != (pieces[-1].part - 1 if pieces else piece.parts) or piece.upto != snapshot.upto:
                break
            pieces.append(piece)
            if piece.part == 1:
                return pieces[::-1]
        raise EventUnreadable(snapshot.seq, "the snapshot that ends here lacks a part")

    def _pieces_below(self, seq: int) -> Iterator[tuple[Record, StateCarried]]:
        """The parts of snapshots before an event that can be read, the last one first, each in a transaction
        of its own."""
        about = (StateCarried.about, type_of(StateCarried))
        while (found := self._piece_below((*about, seq))) is not None:
            seq = found
            try:
                record = Record(*self._connection.execute(_PIECE, (seq,)).fetchone() or ())
                body = decode(record).body
            except (EventUnreadable, TypeError):  # TypeError: an index knows of more than is there
                continue
            except sqlite3.DatabaseError as error:
                if not is_damage(error):
                    raise
                continue
            assert isinstance(body, StateCarried)
            yield record, body

    def _piece_below(self, place: tuple[str, str, int]) -> int | None:
        """The number of the last part of a snapshot before a place; None where there is none, or, in a file
        that was cut, none can be found."""
        try:
            row = self._connection.execute(_PIECE_BELOW, place).fetchone()
        except sqlite3.DatabaseError as error:
            if not is_damage(error):
                raise
            return None
        return row and int(row[0])

    def hash_of(self, seq: int) -> bytes:
        """The stored hash of an event, or of the one before the base. ChainBroken: it is missing."""
        try:
            return hash_of(self._connection, self.base, seq)
        except ChainBroken:  # or has the log been pruned to there meanwhile?
            self.base = read_base(self._connection)
            return hash_of(self._connection, self.base, seq)

    def verified(self, head: Head, upto: int | None = None) -> Iterator[Record]:
        """The events after `head`, up to number `upto`, for as long as each is what was written. Raises
        ChainBroken (also where `head` is not of this log) or EventUnreadable."""
        seq, previous = head.seq, head.hash
        if self.hash_of(seq) != previous:
            raise ChainBroken(seq, "a snapshot says that it had another hash")
        for record in self.records(seq, upto):
            seq += 1
            if record.seq != seq:
                raise ChainBroken(seq, f"missing: the next event is {record.seq}")
            previous = _check(record, previous)
            yield record

    def check_base(self) -> None:
        """Raises ChainBroken where a whole log does not begin as its id says."""
        base = self.base
        if base.seq == 1 and base.hash != first_hash(base.log_id):
            raise ChainBroken(1, "the log's base is not that of its id")

    def seq_at(self, text: str) -> int:
        """The number of the event that a cursor names. Raises CursorLost or CursorPruned."""
        number, _, hash8 = text.partition("-")
        if not (number.isascii() and number.isdigit() and len(number) < 19 and len(hash8) == 8):
            raise CursorLost(f"{text!r} is no cursor")
        seq = int(number)
        if seq < self.base.seq - 1:
            raise CursorPruned(f"the log begins at event {self.base.seq}")
        row = self._connection.execute("SELECT hash FROM events WHERE seq = ?", (seq,)).fetchone()
        hash = self.base.hash if seq == self.base.seq - 1 else row and row[0]
        if hash is None or cursor(seq, hash) != text:
            raise CursorLost(f"this log has no event {text}")
        return seq

    def verify_chain(self) -> int:
        """Check every event against the chain; how many there are. Raises ChainBroken for the first bad."""
        while True:
            try:
                return self._verify_chain()
            except ChainBroken:
                if not self._is_pruned(self.base.seq - 1):
                    raise

    def _verify_chain(self) -> int:
        base = self.base
        try:
            lowest = self._connection.execute("SELECT min(seq) FROM events").fetchone()[0]
        except sqlite3.DatabaseError as error:
            if not is_damage(error):
                raise
            lowest = None  # whoever reads the first one says so
        if lowest is not None and lowest < base.seq:
            raise ChainBroken(lowest, f"it lies before the log's base, {base.seq}")
        self.check_base()
        count = verify(self._connection, base.seq - 1, base.hash, self._end())
        if self.damage is not None:
            raise self.damage
        return count

    def _pages(self, after: int, where: str, values: dict[str, int | str]) -> Iterator[Record]:
        sql = f"SELECT {COLUMNS} FROM events WHERE seq > :after AND {where} ORDER BY seq LIMIT :rows"
        values = {"rows": self._page_rows, **values}
        while True:
            page: list[tuple[Any, ...]] = []
            try:  # a checkpoint may have to wait for this, so nothing else is done meanwhile
                page.extend(self._connection.execute(sql, {"after": after, **values}))
            except sqlite3.DatabaseError as error:
                if not is_damage(error):
                    raise
                last = page[-1][0] if page else after
                one = f"SELECT {COLUMNS} FROM events WHERE seq = :one AND {where}"
                page += _one_more(self._connection, one, {"one": last + 1, **values})
                for row in page:
                    yield Record(*row)
                raise EventUnreadable((page[-1][0] if page else after) + 1, str(error)) from error
            for row in page:
                yield Record(*row)
            if len(page) < self._page_rows:
                return
            after = page[-1][0]


def _check(r: Record, previous: bytes) -> bytes:
    """Check an event against the hash before it; its hash. Raises ChainBroken."""
    try:
        texts = r.type.encode(), r.version, r.cause, r.subject.encode(), r.payload.encode()
        expected = chain_hash(previous, r.seq, r.at, r.t, *texts)
    except (StructError, TypeError, AttributeError) as error:
        raise ChainBroken(r.seq, f"a column cannot be what was written ({error})") from error
    if r.hash != expected:
        raise ChainBroken(r.seq, "its hash does not match")
    return expected


def is_damage(error: sqlite3.DatabaseError) -> bool:
    """Whether the bytes are to blame: SQLite says so, or (without a code) Python finds no UTF-8."""
    return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF == sqlite3.SQLITE_CORRUPT


def open_read_only(path: Path) -> sqlite3.Connection:
    """A read-only connection, also to a copy where nothing can be written beside it. Raises LogError."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no event log at {path}")
    uri = path.absolute().as_uri()
    try:
        return _connect(f"{uri}?mode=ro")
    except sqlite3.OperationalError as error:
        wal = Path(f"{path}-wal")
        if wal.exists() and wal.stat().st_size:
            raise LogError(
                f"{path} cannot be opened ({error}): copy it and its -wal to a writable place"
            ) from error
    return _connect(f"{uri}?mode=ro&immutable=1")


def _connect(uri: str) -> sqlite3.Connection:
    connection = sqlite3.connect(uri, uri=True, isolation_level=None, timeout=LOCK_S)
    connection.execute("PRAGMA writable_schema=on")  # or SQLite would read nothing of a file that was cut
    try:
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except sqlite3.DatabaseError as error:
        connection.close()
        if error.sqlite_errorcode == sqlite3.SQLITE_NOTADB:
            raise schema.NotALog("not a SQLite database") from error
        raise
    return connection


_VERIFY_SQL = (  # as bytes: what is hashed is what is stored, whatever it is
    "SELECT seq, at, t, CAST(type AS BLOB), version, cause, CAST(subject AS BLOB), CAST(payload AS BLOB),"
    f" hash FROM events WHERE seq > ? AND seq <= ? ORDER BY seq LIMIT {READ_PAGE_ROWS}"
)


_VERIFY_ONE_SQL = _VERIFY_SQL.replace("seq > ? AND seq <= ?", "seq = :one")


def _one_more(
    connection: sqlite3.Connection, sql: str, values: dict[str, int | str]
) -> list[tuple[Any, ...]]:
    """The row that Python had read, and dropped when it could not read the next one."""
    try:
        return connection.execute(sql, values).fetchall()
    except sqlite3.DatabaseError:
        return []


def verify(connection: sqlite3.Connection, after: int, previous: bytes, last: int) -> int:
    """Check the events after number `after`, whose hash is `previous`, up to `last`, against the chain.

    Returns how many there are. Raises ChainBroken for the first bad one.
    """
    seq = after
    while seq < last:
        page: list[tuple[Any, ...]] = []
        try:
            page.extend(connection.execute(_VERIFY_SQL, (seq, last)))
        except sqlite3.DatabaseError as error:
            if not is_damage(error):
                raise
            page += _one_more(connection, _VERIFY_ONE_SQL, {"one": seq + len(page) + 1})
            _verify_page(page, seq, previous)  # what could be read of it comes first
            raise ChainBroken(seq + len(page) + 1, f"unreadable ({error})") from error
        if not page:
            raise ChainBroken(seq + 1, "missing")
        previous = _verify_page(page, seq, previous)
        seq += len(page)
    return seq - after


def _verify_page(page: list[tuple[Any, ...]], seq: int, previous: bytes) -> bytes:
    """Check a page of rows that must follow event `seq`; the hash of its last."""
    for found, at, t, type, version, cause, subject, payload, hash in page:
        seq += 1
        if found != seq:
            raise ChainBroken(seq, f"missing: the next event is {found}")
        try:
            expected = chain_hash(previous, seq, at, t, type, version, cause, subject, payload)
        except (StructError, TypeError) as error:
            raise ChainBroken(seq, f"a column cannot be what was written ({error})") from error
        if hash != expected:
            raise ChainBroken(seq, "its hash does not match")
        previous = hash
    return previous
