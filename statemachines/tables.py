"""Containers of which no single change is long, however many thousands they hold.

A dict that grows, or has seen many come and go, is now and then written anew, all of it in one of its
changes: a third of a millisecond with ten thousand entries. These are made of small pieces instead.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator
from operator import itemgetter
from typing import Any, Final, Generic, TypeVar

V = TypeVar("V")
T = TypeVar("T")

MASK: Final = 63
"""Of an id's hash: its bucket. With ten thousand entries in all each bucket is written anew in a few µs."""
RUN: Final = 512
"""Entries of a row's run, at most: what an insertion moves is 4 KiB."""


def number(id: str) -> int:
    """The number of the event that made what is called so: 12 of `q12`."""
    return int(id[1:])


class Table(Generic[V]):
    """What is known by its id; whoever goes through it sees it in the order of the ids' numbers."""

    __slots__ = ("_buckets",)

    def __init__(self) -> None:
        self._buckets: list[dict[str, V]] = [{} for _ in range(MASK + 1)]

    def __getitem__(self, id: str) -> V:
        return self._buckets[hash(id) & MASK][id]

    def __setitem__(self, id: str, value: V) -> None:
        self._buckets[hash(id) & MASK][id] = value

    def __delitem__(self, id: str) -> None:
        del self._buckets[hash(id) & MASK][id]

    def __contains__(self, id: str) -> bool:
        return id in self._buckets[hash(id) & MASK]

    def __len__(self) -> int:
        return sum(map(len, self._buckets))

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def get(self, id: str) -> V | None:
        """What is known by this id, if anything is."""
        return self._buckets[hash(id) & MASK].get(id)

    def keys(self) -> list[str]:
        """The ids."""
        return [id for id, _ in self.items()]

    def values(self) -> list[V]:
        """What they name."""
        return [value for _, value in self.items()]

    def items(self) -> list[tuple[str, V]]:
        """Both."""
        numbered = [(number(id), id, value) for bucket in self._buckets for id, value in bucket.items()]
        numbered.sort(key=_FIRST)
        return [(id, value) for _, id, value in numbered]


_FIRST = itemgetter(0)


class Row(Generic[T]):
    """Entries in their order, each once."""

    __slots__ = ("_lasts", "_runs")

    def __init__(self) -> None:
        self._runs: list[list[Any]] = []
        """Sorted, and none empty: all of one come before all of the next."""
        self._lasts: list[Any] = []
        """The last entry of each."""

    def __len__(self) -> int:
        return sum(map(len, self._runs))

    def __bool__(self) -> bool:
        return bool(self._runs)

    def __iter__(self) -> Iterator[T]:
        for run in self._runs:
            yield from run

    def __contains__(self, entry: T) -> bool:
        at = bisect_left(self._lasts, entry)
        if at == len(self._runs):
            return False
        run = self._runs[at]
        return bool(run[bisect_left(run, entry)] == entry)

    def first(self) -> T:
        """The smallest. Raises IndexError where there is none."""
        entry: T = self._runs[0][0]
        return entry

    def add(self, entry: T) -> None:
        """Put an entry, which is not there, into its place."""
        runs, lasts = self._runs, self._lasts
        at = bisect_left(lasts, entry)
        if at < len(runs):
            run = runs[at]
            insort(run, entry)
        elif not runs:
            runs.append([entry])
            lasts.append(entry)
            return
        else:
            at -= 1
            run = runs[at]
            run.append(entry)
            lasts[at] = entry
        if len(run) > RUN:
            half = run[: RUN // 2]
            del run[: RUN // 2]
            runs.insert(at, half)
            lasts.insert(at, half[-1])

    def remove(self, entry: T) -> None:
        """Take out an entry. Raises KeyError where it is not there."""
        runs, lasts = self._runs, self._lasts
        at = bisect_left(lasts, entry)
        if at == len(runs):
            raise KeyError(entry)
        run = runs[at]
        i = bisect_left(run, entry)
        if run[i] != entry:
            raise KeyError(entry)
        del run[i]
        if not run:
            del runs[at]
            del lasts[at]
        elif i == len(run):
            lasts[at] = run[-1]


class Line:
    """Ids in the order of their numbers: who asked first comes first."""

    __slots__ = ("_row",)

    def __init__(self, ids: Iterable[str] = ()) -> None:
        self._row: Row[tuple[int, str]] = Row()
        for id in ids:
            self.add(id)

    def __len__(self) -> int:
        return len(self._row)

    def __bool__(self) -> bool:
        return bool(self._row)

    def __iter__(self) -> Iterator[str]:
        for _, id in self._row:
            yield id

    def __contains__(self, id: str) -> bool:
        return (number(id), id) in self._row

    def first(self) -> str:
        """The first. Raises IndexError where there is none."""
        return self._row.first()[1]

    def age(self) -> int:
        """The first's number. Raises IndexError where there is none."""
        return self._row.first()[0]

    def add(self, id: str) -> None:
        """Put an id, which is not there, into its place."""
        self._row.add((number(id), id))

    def remove(self, id: str) -> None:
        """Take out an id. Raises KeyError where it is not there."""
        self._row.remove((number(id), id))


class Ages:
    """Keys in the order of a number each, that of an event: the oldest comes first."""

    __slots__ = ("_of", "_row")

    def __init__(self) -> None:
        self._of: dict[str, int] = {}
        self._row: Row[tuple[int, str]] = Row()

    def __len__(self) -> int:
        return len(self._of)

    def __iter__(self) -> Iterator[tuple[int, str]]:
        """The numbers and their keys."""
        return iter(self._row)

    def get(self, key: str) -> int | None:
        """A key's number, if it is there."""
        return self._of.get(key)

    def first(self) -> tuple[int, str]:
        """The oldest. Raises IndexError where there is none."""
        return self._row.first()

    def put(self, key: str, number: int) -> None:
        """Enter a key, or give it another number."""
        before = self._of.get(key)
        if before != number:
            if before is not None:
                self._row.remove((before, key))
            self._of[key] = number
            self._row.add((number, key))

    def drop(self, key: str) -> None:
        """Take a key out, if it is there."""
        before = self._of.pop(key, None)
        if before is not None:
            self._row.remove((before, key))


def as_dict(value: object) -> dict[str, Any]:
    """A table or a line as msgspec is to write it. Raises NotImplementedError for anything else."""
    if isinstance(value, Line):
        return dict.fromkeys(value)
    if isinstance(value, Table):
        return dict(value.items())
    raise NotImplementedError(f"what is a {type(value).__name__}?")
