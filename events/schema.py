"""The schema of a log file: makes it, brings an older one up to date, and refuses what it does not know.

Migrations are numbered SQL files in the package `migrations`, forward only. Each runs in one transaction
together with the `user_version` that says that it has run, so that a crash leaves it done or not begun.
"""

from __future__ import annotations

import re
import sqlite3
import time
import uuid
from collections.abc import Iterator
from functools import cache
from importlib import resources

from events.envelope import LogError, first_hash
from events.failpoints import reach
from events.limits import LOG_PAGE_BYTES

APPLICATION_ID = 0x52_4E_44_4C
"""`RNDL` in the file's header: what `file` and a careful reader look for."""


class NotALog(LogError):
    """The file is not an event log of runnerd. Nothing was changed in it."""


class SchemaTooNew(LogError):
    """A newer version of runnerd wrote the log: use that version, or a log of its own for this one."""

    def __init__(self, found: int, known: int) -> None:
        super().__init__(
            f"the log has schema {found}, and this program knows up to {known}: use a newer runnerd"
        )
        self.found = found
        self.known = known


@cache
def migrations() -> dict[int, str]:
    """The SQL of every migration by its number, 1, 2, 3 … Raises LogError if one is missing."""
    found = {}
    for file in resources.files("migrations").iterdir():
        name = re.fullmatch(r"(\d{4})_\w+\.sql", file.name)
        if name:
            found[int(name[1])] = file.read_text("utf-8")
    if sorted(found) != list(range(1, len(found) + 1)) or not found:
        raise LogError(f"the program's migrations are incomplete: {sorted(found)}")
    return dict(sorted(found.items()))


def check(connection: sqlite3.Connection) -> int:
    """The schema version of a log, 0 for an empty file. Raises NotALog or SchemaTooNew."""
    try:
        version = int(connection.execute("PRAGMA user_version").fetchone()[0])
        application = int(connection.execute("PRAGMA application_id").fetchone()[0])
        empty = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0
    except sqlite3.DatabaseError as error:
        if error.sqlite_errorcode != sqlite3.SQLITE_NOTADB:
            raise
        raise NotALog("not a SQLite database") from error
    if application != APPLICATION_ID and not (empty and version == 0 and application == 0):
        raise NotALog("a SQLite database, but not an event log of runnerd")
    if version > max(migrations()):
        raise SchemaTooNew(version, max(migrations()))
    return version


def migrate(connection: sqlite3.Connection, base: tuple[str, int, int, bytes] | None = None) -> None:
    """Make the schema of an empty file, or bring an older log up to this program's schema.

    `base`: the columns of `log_base` in a new file that is to go on with a given log; a new log otherwise.
    `connection` is in autocommit mode and the only one that writes. Raises NotALog or SchemaTooNew.
    """
    version = check(connection)
    if version == 0:
        connection.execute(f"PRAGMA page_size={LOG_PAGE_BYTES}")
        connection.execute("PRAGMA auto_vacuum=INCREMENTAL")
    if connection.execute("PRAGMA journal_mode=WAL").fetchone()[0] != "wal":
        raise LogError("the log's file system does not support SQLite's write-ahead log")
    for number, sql in migrations().items():
        if number > version:
            _apply(connection, number, sql, base)


def make(connection: sqlite3.Connection, log_id: str, created_at: int, seq: int, hash: bytes) -> None:
    """The schema of an empty database, which is to hold a given log from a given base on."""
    for number, sql in migrations().items():
        _apply(connection, number, sql, (log_id, created_at, seq, hash))


def _apply(
    connection: sqlite3.Connection, number: int, sql: str, base: tuple[str, int, int, bytes] | None = None
) -> None:
    connection.execute("BEGIN IMMEDIATE")
    try:
        for statement in _statements(sql):
            connection.execute(statement)
        if number == 1:
            connection.execute("INSERT INTO log_base VALUES (1, ?, ?, ?, ?)", base or _new_base())
        connection.execute(f"PRAGMA application_id={APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version={number}")
        reach("migration.before")
        connection.execute("COMMIT")
        reach("migration.after")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _new_base() -> tuple[str, int, int, bytes]:
    log_id = uuid.uuid4().hex
    return log_id, time.time_ns(), 1, first_hash(log_id)


def _statements(sql: str) -> Iterator[str]:
    """The statements of a script; a trigger's body, with semicolons of its own, stays in one piece."""
    statement = ""
    for line in sql.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
    if statement.strip():
        raise LogError(f"a migration ends within a statement: {statement.strip()[:60]!r}")
