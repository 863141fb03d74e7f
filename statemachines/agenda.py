"""An agenda: keys with a number each, their time, of which the smallest comes first.

A heap beside a table. Moving a key later, or dropping it, is one write to the table; the heap learns of it
when the entry surfaces. So that stale entries cannot pile up behind one that never surfaces, a heap that is
mostly stale is replaced by a new one, a few entries with each arming: no step pays for it alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from heapq import heappop, heappush
from typing import Any, Final, Generic, TypeVar

from statemachines.tables import MASK

K = TypeVar("K")

END: Final = 1 << 63
"""Behind every number: no time is so late."""
SLACK: Final = 64
"""Stale entries that are not worth clearing away."""
MOVED: Final = 2
"""Entries of the old heap that are moved, or forgotten, with each arming: more than come in meanwhile."""


class Agenda(Generic[K]):
    """Keys in the order of their numbers, ties by key."""

    __slots__ = ("_count", "_due", "_heap", "_old", "_queued", "soonest")

    def __init__(self) -> None:
        self.soonest = END
        """A number that no key's is smaller than: cheaper to look at than `due`, which corrects it, and
        enough where mostly nothing is due."""
        self._count = 0
        """Of keys."""
        self._due: list[dict[K, int]] = [{} for _ in range(MASK + 1)]
        """Each key's number; in buckets, as a table's."""
        self._queued: list[dict[K, int]] = [{} for _ in range(MASK + 1)]
        """Under which number a key's valid entry stands in a heap: its own, or a smaller one."""
        self._heap: list[tuple[int, Any]] = []
        self._old: list[tuple[int, Any]] = []

    def __len__(self) -> int:
        return self._count

    def __contains__(self, key: K) -> bool:
        return key in self._due[hash(key) & MASK]

    def __getitem__(self, key: K) -> int:
        return self._due[hash(key) & MASK][key]

    def __iter__(self) -> Iterator[tuple[int, K]]:
        """The numbers and their keys, the smallest first."""
        return iter(sorted((at, key) for bucket in self._due for key, at in bucket.items()))

    def get(self, key: K) -> int | None:
        """A key's number, if it is there."""
        return self._due[hash(key) & MASK].get(key)

    def arm(self, key: K, at: int) -> None:
        """Set or move a key."""
        bucket = hash(key) & MASK
        due = self._due[bucket]
        if key not in due:
            self._count += 1
        due[key] = at
        queued = self._queued[bucket].get(key)
        if queued is not None and queued <= at:
            return
        self._queued[bucket][key] = at
        self.soonest = min(self.soonest, at)
        heap = self._heap
        heappush(heap, (at, key))
        if self._old or len(heap) > 2 * self._count + SLACK:
            self._renew()

    def disarm(self, key: K) -> None:
        """Drop a key, if it is there."""
        if self._due[hash(key) & MASK].pop(key, None) is not None:
            self._count -= 1

    def first(self) -> tuple[int, K] | None:
        """The key with the smallest number."""
        return self.due(END)

    def due(self, t: int) -> tuple[int, K] | None:
        """The same, if its number is `t` or less. Nothing behind that is looked at: what has become stale
        there costs nothing before its time, and then a little with each of those who ask."""
        old = self._top(self._old, t)  # what is stale there may enter the new one
        first = self._top(self._heap, t)
        if old is not None and (first is None or old < first):
            first = old
        self.soonest = min(heap[0][0] if heap else END for heap in (self._heap, self._old))
        return first

    def _top(self, heap: list[tuple[int, Any]], t: int) -> tuple[int, K] | None:
        while heap and heap[0][0] <= t:
            at, key = heap[0]
            if self._due[hash(key) & MASK].get(key) == at:
                return heap[0]
            self._settle(heappop(heap))
        return None

    def _renew(self) -> None:
        if not self._old:
            self._old, self._heap = self._heap, []
        for _ in range(MOVED):
            if self._old:
                self._settle(self._old.pop())  # without its last entry a heap is a heap still

    def _settle(self, entry: tuple[int, Any]) -> None:
        """An entry has left its heap: enter its key again if it is still due."""
        at, key = entry
        bucket = hash(key) & MASK
        if self._queued[bucket].get(key) == at:
            due = self._due[bucket].get(key)
            if due is None:
                del self._queued[bucket][key]
            else:
                self._queued[bucket][key] = due
                heappush(self._heap, (due, key))
