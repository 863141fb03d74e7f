"""Durations counted in buckets: plain integers, cheap enough for every event."""

from __future__ import annotations

from bisect import bisect_left

from events.limits import MS, S

APPEND_BUCKETS_NS = tuple(
    us * 1000
    for us in (250, 500, 1000, 2500, 5000, 10_000, 25_000, 50_000, 100_000, 250_000, 1_000_000, 10_000_000)
)
"""Of the time until a step is durable: 1 to 4 ms mostly; LOG_BLOCKED_MS is a bound; beyond is a full disk."""

QUEUE_BUCKETS_NS = tuple(
    ms * MS for ms in (1, 10, 100, 500, 1000, 2500, 5000, 10_000, 30_000, 60_000, 120_000, 300_000, 600_000)
)
"""Of the time in the queue: at once, behind another request, behind a load, behind turns of others."""

FIRST_BYTE_BUCKETS_NS = tuple(
    ms * MS for ms in (10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10_000, 30_000, 60_000, 300_000)
)
"""Of the time to the first byte: a short prompt on a GPU takes tens of ms, a long one on a CPU minutes."""

LOAD_BUCKETS_NS = tuple(s * S for s in (1, 2, 5, 10, 20, 30, 60, 120, 300, 600))
"""Of the time that a load takes: 6 to 25 s mostly, some minutes from a slow disk."""


class Histogram:
    """How many durations fell into each bucket, and their sum; ns."""

    __slots__ = ("bounds_ns", "counts", "sum_ns")

    def __init__(self, bounds_ns: tuple[int, ...]) -> None:
        self.bounds_ns = bounds_ns
        """The upper bounds of the buckets, each of which belongs to its bucket, ascending."""
        self.counts = [0] * (len(bounds_ns) + 1)
        """By bucket; the last is of those beyond every bound."""
        self.sum_ns = 0

    def add(self, ns: int) -> None:
        """Count one."""
        self.counts[bisect_left(self.bounds_ns, ns)] += 1
        self.sum_ns += ns
