"""Who a process is: never its pid alone, but (boot, pid, start time); and whose, by the marker it carries.

A runner's processes are found by their group (the gate starts a session of its own) and by the environment
variable RUNNERD_RUNNER, which children inherit: `<log id>/<runner>/<shard>`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

MARKER = "RUNNERD_RUNNER"


class Stat(NamedTuple):
    """What /proc/PID/stat says. `start_time` in clock ticks since boot, `rss_bytes` resident memory."""

    pid: int
    state: str
    parent: int
    group: int
    start_time: int
    rss_bytes: int

    @property
    def alive(self) -> bool:
        """A zombie is gone: it holds nothing but its number."""
        return self.state not in ("Z", "X")


PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def stat_of(pid: int) -> Stat | None:
    """A process's status, or None where there is no such process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace")
    except OSError:
        return None
    fields = text[text.rindex(")") + 2 :].split()  # the name before it may hold anything
    return Stat(pid, fields[0], int(fields[1]), int(fields[2]), int(fields[19]), int(fields[21]) * PAGE_BYTES)


def processes() -> Iterator[Stat]:
    """Every process of the machine that is not a zombie."""
    for name in os.listdir("/proc"):
        if name.isdigit():
            stat = stat_of(int(name))
            if stat is not None and stat.alive:
                yield stat


def marker_of(pid: int) -> str:
    """The marker that a process carries, or "" (also where it may not be read)."""
    try:
        environment = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return ""
    prefix = f"{MARKER}=".encode()
    for entry in environment.split(b"\0"):
        if entry.startswith(prefix):
            return entry[len(prefix) :].decode("utf-8", "replace")
    return ""


def members(group: int, marker: str) -> list[Stat]:
    """The processes in a group, or with a marker (`<log id>/<runner>/<shard>`)."""
    return [stat for stat in processes() if stat.group == group or marker_of(stat.pid) == marker]


def marked(log_id: str) -> list[tuple[Stat, str]]:
    """Every process that belongs to a log, with its marker."""
    found = []
    for stat in processes():
        marker = marker_of(stat.pid)
        if marker.startswith(log_id + "/"):
            found.append((stat, marker))
    return found
