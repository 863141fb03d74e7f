"""Writing groups of rows: what runs in the thread of the store's connection.

A failure that passes (another program's lock, a full disk) is waited out, with the same rows; nothing else
is written meanwhile. Whether a failed commit took place is never guessed: the log's head tells.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable
from itertools import chain

import sqlalchemy as sa
from sqlalchemy.dialects import sqlite

from events.envelope import LogError, Row
from events.failpoints import reach
from events.limits import INSERT_ROWS, RETRY_CAP_S, RETRY_FIRST_S
from events.reader import Head

_META = sa.MetaData()

EVENTS = sa.Table(
    "events",
    _META,
    sa.Column("seq", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("at", sa.Integer),
    sa.Column("t", sa.Integer),
    sa.Column("type", sa.Text),
    sa.Column("version", sa.Integer),
    sa.Column("cause", sa.Integer),
    sa.Column("subject", sa.Text),
    sa.Column("payload", sa.Text),
    sa.Column("hash", sa.LargeBinary),
)
"""The table of migration 0001, for SQLAlchemy."""

_TEMPORARY = frozenset(
    {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_FULL, sqlite3.SQLITE_PROTOCOL}
)
"""Others have locks, for longer than SQLite waits in the last case; or there is no room."""

_TEMPORARY_IO = frozenset(
    {
        sqlite3.SQLITE_IOERR_WRITE,
        sqlite3.SQLITE_IOERR_SHMSIZE,
        sqlite3.SQLITE_IOERR_SHMMAP,
        sqlite3.SQLITE_IOERR_TRUNCATE,
    }
)
"""A write that the file system refuses: no room, a quota, read-only for now. A failed fsync is not here: what
it lost cannot be known."""


class StoreBroken(LogError):
    """The log cannot be written any more. Stop the daemon; a new start recovers from what is durable."""


def is_temporary(error: sqlite3.Error) -> bool:
    """Whether the same transaction may succeed later."""
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
    return code & 0xFF in _TEMPORARY or code in _TEMPORARY_IO


class Committer:
    """Puts groups of rows into the log, in order. Lives in the writer's thread; only `give_up` is shared."""

    def __init__(self, connection: sqlite3.Connection, head: Head) -> None:
        self._connection = connection
        self._head = head
        self.give_up = threading.Event()
        """Set when a failed commit is not to be tried again, because the store is closing."""
        text = str(sa.insert(EVENTS).compile(dialect=sqlite.dialect(paramstyle="qmark")))
        begin, values, row = text.rpartition("VALUES ")
        self._inserts = [f"{begin}{values}{', '.join([row] * size)}" for size in range(INSERT_ROWS + 1)]

    def commit(self, rows: list[Row], on_error: Callable[[sqlite3.Error], None]) -> None:
        """Make `rows` durable, in one transaction. `on_error` is told of each failure that passes.

        Raises StoreBroken or sqlite3.Error: then the log is broken.
        """
        head = Head(rows[-1][0], rows[-1][8])
        wait_s = RETRY_FIRST_S
        error: sqlite3.Error | None = None
        reach("commit.before")
        while True:
            try:
                if error is None or not self._has_reached(head):
                    self._insert(rows)
                self._head = head
                reach("commit.after")
                return
            except sqlite3.Error as failure:
                if not is_temporary(failure):
                    raise
                error = failure
            on_error(error)
            if self.give_up.wait(wait_s):
                raise StoreBroken(f"closed while it could not be written: {error}") from error
            wait_s = min(2 * wait_s, RETRY_CAP_S)

    def _has_reached(self, head: Head) -> bool:
        """After a failure: whether the log has come to `head` all the same."""
        if self._connection.in_transaction:
            self._connection.execute("ROLLBACK")
        row = self._connection.execute("SELECT seq, hash FROM events ORDER BY seq DESC LIMIT 1").fetchone()
        if row is None or Head(*row) == self._head:
            return False
        if Head(*row) == head:
            return True
        raise StoreBroken(f"somebody else has written to the log: it ends at event {row[0]}")

    def _insert(self, rows: list[Row]) -> None:
        """One statement where it can be: each one costs two hand-overs of the interpreter's lock."""
        execute = self._connection.executemany  # it spares a third, for the last row's id
        if len(rows) <= INSERT_ROWS:
            execute(self._inserts[len(rows)], [_parameters(rows)])
            return
        self._connection.execute("BEGIN IMMEDIATE")
        for start in range(0, len(rows), INSERT_ROWS):
            part = rows[start : start + INSERT_ROWS]
            execute(self._inserts[len(part)], [_parameters(part)])
        self._connection.execute("COMMIT")


def _parameters(rows: list[Row]) -> list[object]:
    """The values of one statement. `sqlite3` looks for an adapter for each `bytes`, which costs as much as a
    fourteenth of the row; for a `bytearray` it does not."""
    values: list[object] = list(chain.from_iterable(rows))
    width = len(rows[0])
    values[width - 1 :: width] = [bytearray(row[-1]) for row in rows]
    return values
