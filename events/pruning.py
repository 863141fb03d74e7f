"""Pruning: a log's beginning goes, and its base moves to a snapshot.

Everything here runs in the thread of a connection that writes.
"""

from __future__ import annotations

import sqlite3

from events.envelope import LogError
from events.failpoints import reach
from events.limits import VACUUM_FREE_PAGES, VACUUM_PAGES
from events.reader import Base, ChainBroken, hash_of, read_base


def prune(connection: sqlite3.Connection, upto: int, hash: bytes) -> Base:
    """Delete the events up to number `upto`, whose hash is `hash`, in one transaction; the log's new base.

    The caller has checked the chain to there, and that a snapshot of it is in what remains. Raises
    ChainBroken where the log has another event there, LogError where it is all there is, or sqlite3.Error;
    then nothing has changed.
    """
    connection.execute("BEGIN IMMEDIATE")
    try:
        base = read_base(connection)
        if upto >= base.seq:
            if hash_of(connection, base, upto) != hash:
                raise ChainBroken(upto, "it is not the event that was to be pruned")
            if connection.execute("SELECT max(seq) FROM events").fetchone()[0] == upto:
                raise LogError(f"event {upto} is the last one: a snapshot of it cannot follow")
            connection.execute("UPDATE log_base SET seq = ?, hash = ?", (upto + 1, hash))
            connection.execute("DELETE FROM events WHERE seq <= ?", (upto,))
        reach("prune.before")
        connection.execute("COMMIT")
        reach("prune.after")
        return read_base(connection)
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def shrink(connection: sqlite3.Connection, keep: int = VACUUM_FREE_PAGES) -> bool:
    """Give a few free pages back to the file system, and say whether there are more than `keep` left, which
    are for what comes next. Raises sqlite3.Error."""
    pages = min(_free(connection) - keep, VACUUM_PAGES)
    if pages > 0:
        connection.executescript(f"PRAGMA incremental_vacuum({pages})")  # execute() would free one page
    return _free(connection) > keep


def _free(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA freelist_count").fetchone()[0])


__all__ = ["prune", "shrink"]
