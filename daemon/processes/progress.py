"""Whether a load gets on: its processes print, read, work, or their health checks answer otherwise.

None of these alone will do. A loader that maps its file reads nothing by itself, one that copies to a GPU
prints nothing, and one that waits for a lock still answers health checks, which is why a little work and a
few bytes do not count.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal, NamedTuple

from daemon.processes import identity
from daemon.processes.charge import Part
from events.limits import LOAD_READ_BYTES_S, LOAD_WORK_PERCENT

Sign = Literal["output", "read", "work", "answer"]
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class Look(NamedTuple):
    """What can be seen of a runner's processes. `t_s` is when, on trio's clock."""

    t_s: float
    printed: tuple[int, ...]
    answers: tuple[str, ...]
    read_bytes: dict[int, int]
    work_ticks: dict[int, int]


def look(parts: Sequence[Part], found: Sequence[identity.Stat], t_s: float) -> Look:
    """Look at a runner's processes, which were found just now."""
    return Look(
        t_s,
        tuple(_size(part.log) for part in parts),
        tuple(part.answer for part in parts),
        {stat.pid: _read_bytes(stat.pid) for stat in found},
        {stat.pid: _work_ticks(stat.pid) for stat in found},
    )


def sign(before: Look, now: Look) -> Sign | None:
    """What says that the load got on between two looks; None: nothing does."""
    if now.printed != before.printed:
        return "output"
    if now.answers != before.answers:
        return "answer"
    seconds = now.t_s - before.t_s
    if _grown(before.read_bytes, now.read_bytes) > LOAD_READ_BYTES_S * seconds:
        return "read"
    worked_s = _grown(before.work_ticks, now.work_ticks) / TICKS_PER_S
    return "work" if worked_s * 100 > LOAD_WORK_PERCENT * seconds else None


def _grown(before: dict[int, int], now: dict[int, int]) -> int:
    return sum(max(0, count - before.get(pid, 0)) for pid, count in now.items())


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _read_bytes(pid: int) -> int:
    """Bytes that a process has read, by calls or, where it maps its files, from the disk; 0 where that may
    not be known."""
    counts = {}
    with suppress(OSError, ValueError):
        for line in Path(f"/proc/{pid}/io").read_text().splitlines():
            name, _, count = line.partition(": ")
            counts[name] = int(count)
    return max(counts.get("rchar", 0), counts.get("read_bytes", 0))


def _work_ticks(pid: int) -> int:
    """The processor time of a process and of the children that it has seen end."""
    with suppress(OSError, ValueError):
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        return sum(int(field) for field in fields[11:15])
    return 0
