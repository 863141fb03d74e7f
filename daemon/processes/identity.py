"""Who a process is: never its pid alone, but (boot, pid, start time); and whose, by the marker it carries.

A runner's processes are found by their group (the gate starts a session of its own) and by the environment
variable RUNNERD_RUNNER, which children inherit: `<log id>/<runner>/<shard>`.
"""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

MARKER = "RUNNERD_RUNNER"
SCARCE = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
"""Errors that say nothing about a process: to take it for gone would free what it still holds."""


class Stat(NamedTuple):
    """What /proc/PID/stat says. `start_time` in clock ticks since boot, `rss_bytes` resident memory."""

    pid: int
    state: str
    parent: int
    group: int
    threads: int
    start_time: int
    rss_bytes: int

    @property
    def alive(self) -> bool:
        """A zombie is gone: it holds nothing but its number. Unless only its first thread has ended."""
        return self.state not in ("Z", "X") or self.threads > 1


PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def _read(pid: int, name: str) -> bytes:
    """A file of a process's; empty where it is gone, or its file is not for us. Raises OSError (SCARCE)."""
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError as error:
        if error.errno in SCARCE:
            raise
        return b""


def stat_of(pid: int) -> Stat | None:
    """A process's status, or None where there is no such process. Raises OSError (SCARCE)."""
    text = _read(pid, "stat").decode("utf-8", "replace")
    if not text:
        return None
    fields = text[text.rindex(")") + 2 :].split()  # the name before it may hold anything
    parent, group, threads, start_time, rss_pages = (int(fields[i]) for i in (1, 2, 17, 19, 21))
    return Stat(pid, fields[0], parent, group, threads, start_time, rss_pages * PAGE_BYTES)


def processes() -> Iterator[Stat]:
    """Every process of the machine that is not a zombie."""
    for name in os.listdir("/proc"):
        if name.isdigit():
            stat = stat_of(int(name))
            if stat is not None and stat.alive:
                yield stat


def marker_of(pid: int) -> str:
    """The marker that a process carries, or "": it has none, may not be read, or has written its title over
    it. Raises OSError (SCARCE)."""
    prefix = f"{MARKER}=".encode()
    for entry in _read(pid, "environ").split(b"\0"):
        if entry.startswith(prefix):
            return entry[len(prefix) :].decode("utf-8", "replace")
    return ""


def members(leader: int, start_time: int, marker: str) -> list[Stat]:
    """The processes in the group of a leader, or with a marker (`<log id>/<runner>/<shard>`).

    Where the leader's number now belongs to a process that started at another time, so does the group.
    """
    now = stat_of(leader)
    group = leader if now is None or now.start_time == start_time else None
    return [stat for stat in processes() if stat.group == group or marker_of(stat.pid) == marker]


def left(leader: int, start_time: int, marker: str) -> list[Stat]:
    """As `members`, and sure where it finds none: one that forked and ended during the first look, as
    whatever becomes a daemon does, shows its child in the second."""
    return members(leader, start_time, marker) or members(leader, start_time, marker)


def open_pidfd(pid: int, start_time: int) -> int | None:
    """A descriptor of the very process that started then, or None where that is gone. Raises OSError
    (SCARCE)."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return None
    found = None
    try:
        found = stat_of(pid)
    finally:
        if found is None or found.start_time != start_time:
            os.close(descriptor)
    return descriptor if found is not None and found.start_time == start_time else None


def kill(found: Stat) -> None:
    """SIGKILL a process that was found, and never one that has got its number since. Raises OSError
    (SCARCE)."""
    descriptor = open_pidfd(found.pid, found.start_time)
    if descriptor is not None:
        with suppress(ProcessLookupError, PermissionError):
            signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        os.close(descriptor)


def marked(log_id: str) -> list[tuple[Stat, str]]:
    """Every process that belongs to a log, with its marker."""
    found = []
    for stat in processes():
        marker = marker_of(stat.pid)
        if marker.startswith(log_id + "/"):
            found.append((stat, marker))
    return found


def reap(pidfd: int) -> None:
    """Let go of a process that has ended, if it is a child of ours: or it would stay as a zombie."""
    with suppress(ChildProcessError):
        os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG)


def reap_others() -> None:
    """Reap what the program before this one in the same process has started, and has ended since. Call it
    before this one starts anything."""
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
