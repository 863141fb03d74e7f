"""Scheduler time: the only clock that decisions see, and it enters them only as the time of a fact."""

from __future__ import annotations

import time

from events.limits import MAX_DOWNTIME_NS


class Clock:
    """`t` in ns: follows the monotonic clock within one start; a start begins at the log's last `t` plus the
    wall time elapsed since it was written, clamped to 0 … MAX_DOWNTIME_NS."""

    __slots__ = ("_base",)

    def __init__(self, last_t: int = 0, last_at: int | None = None) -> None:
        away = time.time_ns() - last_at if last_at is not None else 0
        self._base = last_t + min(max(away, 0), MAX_DOWNTIME_NS) - time.monotonic_ns()

    def __call__(self) -> int:
        """Now, in scheduler time."""
        return self._base + time.monotonic_ns()
