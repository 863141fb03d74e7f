"""An agenda: keys with a number each (a time, an age), of which the smallest comes first.

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
"""Behind every number: no time is so late, nor any age."""
GONE: Final = -1
"""Before every number: that of a key which was dropped, and of which the heap has not learned yet."""
SLACK: Final = 64
"""Stale entries that are not worth clearing away."""
MOVED: Final = 4
"""Entries of the old heap that are moved, or forgotten, with each arming: more than come in meanwhile."""


class Agenda(Generic[K]):
    """Keys in the order of their numbers, ties by key."""

    __slots__ = ("_count", "_heap", "_old", "_parts", "soonest")

    def __init__(self) -> None:
        self.soonest = END
        """A number that no key's is smaller than: cheaper to look at than `first`, which corrects it, and
        enough where mostly nothing is due."""
        self._count = 0
        """Of keys that are there."""
        self._parts: list[dict[K, list[int]]] = [{} for _ in range(MASK + 1)]
        """In parts as a table's: each key's number, and that under which its valid entry stands in a heap,
        which is the same, or a smaller one."""
        self._heap: list[tuple[int, Any]] = []
        self._old: list[tuple[int, Any]] = []

    def __len__(self) -> int:
        return self._count

    def __contains__(self, key: K) -> bool:
        pair = self._parts[hash(key) & MASK].get(key)
        return pair is not None and pair[0] != GONE

    def __getitem__(self, key: K) -> int:
        at = self.get(key)
        if at is None:
            raise KeyError(key)
        return at

    def __iter__(self) -> Iterator[tuple[int, K]]:
        """The numbers and their keys, the smallest first."""
        entries = [(pair[0], key) for part in self._parts for key, pair in part.items() if pair[0] != GONE]
        return iter(sorted(entries))

    def get(self, key: K) -> int | None:
        """A key's number, if it is there."""
        pair = self._parts[hash(key) & MASK].get(key)
        return None if pair is None or pair[0] == GONE else pair[0]

    def arm(self, key: K, at: int) -> None:
        """Set or move a key. `at` is not negative."""
        part = self._parts[hash(key) & MASK]
        pair = part.get(key)
        if pair is None:
            part[key] = [at, at]
            self._count += 1
        else:
            self._count += pair[0] == GONE
            pair[0] = at
            if pair[1] <= at:
                return
            pair[1] = at
        self.soonest = min(self.soonest, at)
        heappush(self._heap, (at, key))
        if self._old or len(self._heap) > 2 * self._count + SLACK:
            self._renew()

    def disarm(self, key: K) -> None:
        """Drop a key, if it is there."""
        pair = self._parts[hash(key) & MASK].get(key)
        if pair is not None and pair[0] != GONE:
            pair[0] = GONE
            self._count -= 1

    def first(self) -> tuple[int, K] | None:
        """The key with the smallest number."""
        return self.due(END)

    def due(self, t: int) -> tuple[int, K] | None:
        """The same, if its number is `t` or less. Nothing behind that is looked at: what has become stale
        there costs nothing before its time, and then a little with each of those who ask."""
        old = self._top(self._old, t) if self._old else None  # what is stale there may enter the new one
        first = self._top(self._heap, t)
        if old is not None and (first is None or old < first):
            first = old
        self.soonest = min(heap[0][0] if heap else END for heap in (self._heap, self._old))
        return first

    def _top(self, heap: list[tuple[int, Any]], t: int) -> tuple[int, K] | None:
        while heap and heap[0][0] <= t:
            at, key = heap[0]
            pair = self._parts[hash(key) & MASK].get(key)
            if pair is not None and pair[0] == at:
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
        """An entry has left its heap: enter its key again if it is still there."""
        at, key = entry
        part = self._parts[hash(key) & MASK]
        pair = part.get(key)
        if pair is not None and pair[1] == at:
            if pair[0] == GONE:
                del part[key]
            else:
                pair[1] = pair[0]
                heappush(self._heap, (pair[0], key))
