"""Opening a log for writing: its schema, its tail, and what the witness beside it says.

Everything here runs in the thread of a connection.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Literal

import msgspec

from events import schema
from events.backup import back_up
from events.limits import LOG_PAGE_BYTES, TAIL_ROWS, WAL_SOFT_PAGES
from events.reader import Base, Head, hash_of, read_base, read_head, verify
from events.witness import TailLost, boot_id, read_witness

Durability = Literal["process", "machine"]
"""What an acknowledged event survives: a crash of the daemon, or of the machine too (an fsync a group)."""


class Found(msgspec.Struct, frozen=True):
    """What a log held when it was opened."""

    base: Base
    head: Head
    tail_lost: tuple[int, int] | None


def configure(connection: sqlite3.Connection, durability: Durability) -> None:
    """For a connection that writes. Raises NotALog or SchemaTooNew before anything is touched."""
    schema.check(connection)
    for pragma in (
        f"synchronous={'FULL' if durability == 'machine' else 'NORMAL'}",
        "wal_autocheckpoint=0",
        f"journal_size_limit={2 * WAL_SOFT_PAGES * LOG_PAGE_BYTES}",
        "recursive_triggers=on",
    ):
        connection.execute(f"PRAGMA {pragma}")


def inspect(log: Path, connection: sqlite3.Connection, durability: Durability) -> Found:
    """Migrate the log (an older one after a backup), and check its tail against the chain and the witness.

    Raises NotALog, SchemaTooNew, BackupFailed, ChainBroken, TailLost or sqlite3.Error.
    """
    configure(connection, durability)
    if 0 < (version := schema.check(connection)) < max(schema.migrations()):
        back_up(log, connection, version)
    schema.migrate(connection)
    base = read_base(connection)
    head = read_head(connection, base)
    start = max(head.seq - TAIL_ROWS, base.seq - 1)
    verify(connection, start, hash_of(connection, base, start), head.seq)
    connection.execute("PRAGMA busy_timeout=0")  # from here on the committer waits, and says so
    return Found(base, head, _check_witness(log, connection, base, head, durability))


def _check_witness(
    log: Path, connection: sqlite3.Connection, base: Base, head: Head, durability: Durability
) -> tuple[int, int] | None:
    """(expected, found) where the tail was lost as the durability allows. Raises TailLost elsewhere."""
    witness = read_witness(log)
    if witness is None or witness.seq < base.seq - 1:
        return None
    if witness.seq > head.seq:
        if durability == "process" and witness.boot_id != boot_id():
            return witness.seq, head.seq
        raise TailLost(witness.seq, head.seq, "the log has lost its tail")
    if hash_of(connection, base, witness.seq).hex() != witness.hash:
        raise TailLost(witness.seq, head.seq, "the log is not the one that was written")
    return None
