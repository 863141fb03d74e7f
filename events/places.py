"""Whether the files of an open log are still where a start would look for them.

SQLite goes on writing into a file that has been removed, or that another has been put in place of; nobody
finds that again. So it is looked at once a second.
"""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path

from events.envelope import LogError
from events.lock import hold_lock, lock_path, sign_lock
from events.words import refused

SUFFIXES = ("", "-wal", "-shm")
"""The database, its write-ahead log, and the index of that, by which readers and writers meet."""


class LogMoved(LogError):
    """A file of the log has been removed or replaced while it was open. What can be read of it has been saved
    beside it, where that was possible: put that in its place, and start again."""


def _identity(path: str | Path) -> tuple[int, int] | None:
    """What a path leads to; None: to nothing. Raises OSError where that cannot be told."""
    try:
        found = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_dev, found.st_ino


class Places:
    """The files of a log as they were when it was opened. Its methods may take as long as the disk does."""

    def __init__(self, log: Path, log_id: str, lock: int) -> None:
        self._log = log
        self._log_id = log_id
        self._lock = lock
        sign_lock(lock, log_id)
        self._found = {suffix: _identity(f"{log}{suffix}") for suffix in SUFFIXES}

    def look(self) -> str:
        """What has become of the log; "": it is where it was. A lock file that is gone is made anew: raises
        LogInUse where another daemon has been quicker."""
        try:
            for suffix, before in self._found.items():
                now = _identity(f"{self._log}{suffix}")
                if before is not None and now != before:
                    return f"{self._log}{suffix} has been {'replaced' if now else 'removed'}"
            mine = os.fstat(self._lock)
            if _identity(lock_path(self._log)) != (mine.st_dev, mine.st_ino):
                self._lock_again()
        except OSError:  # a disk that does not answer: writing will tell
            return ""
        return ""

    def _lock_again(self) -> None:
        fresh = hold_lock(self._log)
        sign_lock(fresh, self._log_id)
        os.dup2(fresh, self._lock, inheritable=False)
        os.close(fresh)

    def save(self, connection: sqlite3.Connection, seq: int) -> str:
        """Copy what a connection still reads to a file beside the log's place, and say where that is, or why
        there is none."""
        copy = f"{self._log}.saved-{seq}"
        try:
            os.close(os.open(copy, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
            with closing(sqlite3.connect(copy)) as target:
                connection.backup(target)
        except (OSError, sqlite3.Error) as error:
            return f"it could not be saved: {refused(error)}"
        where = f"put that in the place of {self._log}, remove {self._log}-wal and -shm"
        return f"all of it, up to event {seq}, is in {copy}: {where}, and start again"
