"""A copy of a log, checked, before its schema is changed. In the thread of the connection that writes."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

from events.envelope import LogError
from events.reader import read_base, read_head, verify


class BackupFailed(LogError):
    """The copy could not be made, and the log was left as it is. Make room."""


def backup_path(log: Path, version: int) -> Path:
    """Where the copy of a log goes, as it was in a version of the schema."""
    return Path(f"{log}.backup-{version}")


def back_up(log: Path, connection: sqlite3.Connection, version: int) -> Path:
    """Copy a log, and check the copy's chain; where it is. Raises BackupFailed, or ChainBroken where the log
    itself is damaged."""
    path = backup_path(log, version)
    fresh = path.with_name(f"{path.name}.new")
    try:
        os.close(os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600))
        copy = sqlite3.connect(fresh, isolation_level=None)
        try:
            connection.backup(copy)
            base = read_base(copy)
            verify(copy, base.seq - 1, base.hash, read_head(copy, base).seq)
        finally:
            copy.close()
        _sync(fresh)
        os.replace(fresh, path)
        _sync(path.parent)
    except (OSError, sqlite3.Error) as error:
        needed_mib = -(-log.stat().st_size // (1 << 20))
        raise BackupFailed(
            f"the log is to be brought up to date, and its backup {path} cannot be written: {error}"
            f" (it takes {needed_mib} MiB)"
        ) from error
    finally:
        for suffix in ("", "-wal", "-shm", "-journal"):
            Path(f"{fresh}{suffix}").unlink(missing_ok=True)
    return path


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


__all__ = ["BackupFailed", "back_up", "backup_path"]
