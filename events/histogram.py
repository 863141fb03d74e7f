"""Durations counted in buckets: plain integers, cheap enough for every event."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable

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
    """How many durations fell into each bucket, and their sum; ns.

    `add` is a list's `append`: it is on the path of every request. They are counted many at once, which costs
    less than to look for the bucket of each: when somebody reads them, and when whoever adds says `settle`.
    """

    __slots__ = ("_counts", "_fresh", "_sum_ns", "add", "bounds_ns")

    def __init__(self, bounds_ns: tuple[int, ...]) -> None:
        self.bounds_ns = bounds_ns
        """The upper bounds of the buckets, each of which belongs to its bucket, ascending."""
        self._counts = [0] * (len(bounds_ns) + 1)
        self._sum_ns = 0
        self._fresh: list[int] = []
        """Those that are not counted yet."""
        self.add: Callable[[int], None] = self._fresh.append
        """Take one more."""

    @property
    def counts(self) -> list[int]:
        """By bucket; the last is of those beyond every bound."""
        self.settle()
        return self._counts

    @property
    def sum_ns(self) -> int:
        """Of all of them."""
        self.settle()
        return self._sum_ns

    def settle(self, least: int = 1) -> None:
        """Count what has been added, if it is so much, so that it is not kept any longer."""
        fresh, counts = self._fresh, self._counts
        if len(fresh) < least:
            return
        fresh.sort()
        begin = 0
        for bucket, bound_ns in enumerate(self.bounds_ns):
            end = bisect_right(fresh, bound_ns, begin)
            counts[bucket] += end - begin
            begin = end
        counts[-1] += len(fresh) - begin
        self._sum_ns += sum(fresh)
        fresh.clear()
