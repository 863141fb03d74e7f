"""What the operating system and SQLite refuse, in words for people."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path


def refused(error: Exception) -> str:
    """`/var/lib/runnerd: No space left on device`: without the number. Others in their own words."""
    if not isinstance(error, OSError):
        return str(error)
    words = error.strerror or str(error)
    return f"{error.filename}: {words}" if error.filename else words


def unwritten(error: sqlite3.Error, log: Path) -> str:
    """Why a log cannot be written. Of a file system that has become read-only SQLite says no more than that a
    write has failed."""
    failed = getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_IOERR
    return "read-only file system" if failed and read_only(log.parent) else str(error)


def read_only(directory: Path) -> bool:
    """Whether a directory is, now, on a file system that nobody may write on."""
    try:
        return bool(os.statvfs(directory).f_flag & os.ST_RDONLY)
    except OSError:
        return False


__all__ = ["read_only", "refused", "unwritten"]
