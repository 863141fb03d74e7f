"""The lock beside the log: one daemon owns it, and anybody may ask, without taking it, whether one does.

An open-file-description lock on the first byte of `<log>.lock`: it goes with its owner however that ends,
it is not dropped when some other part of the program opens and closes the file, and two owners within one
process exclude each other too. The file names its holder for people; only the lock itself counts.
"""

from __future__ import annotations

import fcntl
import os
import platform
import struct
from pathlib import Path

from events.envelope import LogError

_FLOCK = struct.Struct("hhqqi4x")  # Linux, 64 bits: type, whence, start, length, pid


class LogInUse(LogError):
    """Another process has the log open for writing. Stop it, or give this one a log of its own."""

    def __init__(self, log: Path, holder: str) -> None:
        super().__init__(f"{log} is in use by {holder or 'another process'}")
        self.holder = holder
        """What the lock file says: `pid 4711 on node7`."""


def lock_path(log: str | os.PathLike[str]) -> Path:
    """The lock file of a log."""
    return Path(f"{os.fspath(log)}.lock")


def is_held(path: str | os.PathLike[str]) -> bool:
    """Whether somebody holds the lock file `path`. Takes nothing, so it can disturb nobody's start."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 1, 0)
        answer = fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, asked)
        return bool(_FLOCK.unpack(answer)[0] != fcntl.F_UNLCK)
    finally:
        os.close(descriptor)


def hold_lock(log: Path, kept: int | None = None) -> int:
    """Take the lock of a log: the descriptor that holds it until it is closed. `kept`: one that may hold it
    already; where that is another log's it is closed. Raises LogInUse, OSError."""
    path = lock_path(log)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    if kept is not None:
        if os.path.sameopenfile(kept, descriptor):
            descriptor, kept = kept, descriptor
        os.close(kept)
    try:
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 1, 0))
    except (BlockingIOError, PermissionError):  # EAGAIN or EACCES: taken
        holder, _, _ = os.pread(descriptor, 200, 0).decode(errors="replace").strip().partition("\n")
        os.close(descriptor)
        raise LogInUse(log, holder) from None
    text = f"pid {os.getpid()} on {platform.node()}\n".encode()
    os.pwrite(descriptor, text, 0)
    os.ftruncate(descriptor, len(text))
    return descriptor


def sign_lock(descriptor: int, log_id: str) -> None:
    """Say of which log the lock is: another may lie there by the time that a guardian looks."""
    os.pwrite(descriptor, f"{log_id}\n".encode(), os.fstat(descriptor).st_size)
