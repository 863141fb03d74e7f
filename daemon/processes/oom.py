"""How many processes the kernel has killed for want of memory.

`/proc/vmstat` counts them for the whole machine: those of a container that a runner's command starts, too,
which are in no cgroup of ours. A kill elsewhere, while a runner is killed by hand, is taken for its own; that
costs one more try of its load.
"""

from __future__ import annotations

from pathlib import Path


def kills(vmstat: Path = Path("/proc/vmstat")) -> int | None:
    """The count so far. None: the kernel does not tell (before Linux 4.13), or it cannot be read now."""
    try:
        lines = vmstat.read_text("ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), None)


def more(before: int | None) -> bool:
    """Whether there have been more since; what is not known is no evidence."""
    now = kills()
    return before is not None and now is not None and now > before
