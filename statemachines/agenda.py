"""An agenda: keys with a number each (a time, an age), of which the smallest comes first.

A heap beside a dict. Moving a key later, or dropping it, is one write to the dict; the heap learns of it when
the entry surfaces. So that stale entries cannot pile up behind one that never surfaces, a heap that is
mostly stale is replaced by a new one, a few entries with each arming: no step pays for it alone.
"""

from __future__ import annotations

from heapq import heappop, heappush
from typing import Any, Generic, TypeVar

K = TypeVar("K")

END = 1 << 63
"""Behind every number: no time is so late, nor any age."""
SLACK = 64
"""Stale entries that are not worth clearing away."""
MOVED = 4
"""Entries of the old heap that are moved, or forgotten, with each arming: more than come in meanwhile."""


class Agenda(Generic[K]):
    """Keys in the order of their numbers, ties by key."""

    __slots__ = ("_heap", "_old", "_queued", "due", "soonest")

    def __init__(self) -> None:
        self.due: dict[K, int] = {}
        """Each key's number."""
        self.soonest = END
        """A number that no key's is smaller than: cheaper to look at than `first`, which corrects it, and
        enough where mostly nothing is due."""
        self._heap: list[tuple[int, Any]] = []
        self._old: list[tuple[int, Any]] = []
        self._queued: dict[K, int] = {}
        """Under which number a key's valid entry stands in a heap: its own, or a smaller one."""

    def arm(self, key: K, at: int) -> None:
        """Set or move a key."""
        self.due[key] = at
        queued = self._queued.get(key)
        if queued is None or queued > at:
            self._queued[key] = at
            self.soonest = min(self.soonest, at)
            heap = self._heap
            heappush(heap, (at, key))
            if self._old or len(heap) > 2 * len(self.due) + SLACK:
                self._renew()

    def disarm(self, key: K) -> None:
        """Drop a key, if it is there."""
        self.due.pop(key, None)

    def first(self) -> tuple[int, K] | None:
        """The key with the smallest number."""
        old = self._top(self._old) if self._old else None
        first = self._top(self._heap)
        if old is not None and (first is None or old < first):
            first = old
        self.soonest = END if first is None else first[0]
        return first

    def _top(self, heap: list[tuple[int, Any]]) -> tuple[int, K] | None:
        while heap:
            entry = heap[0]
            if self.due.get(entry[1]) == entry[0]:
                return entry
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
        if self._queued.get(key) == at:
            due = self.due.get(key)
            if due is None:
                del self._queued[key]
            else:
                self._queued[key] = due
                heappush(self._heap, (due, key))
