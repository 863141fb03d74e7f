"""Containers of which no single change is long, however many thousands they hold.

A dict that grows, or has seen many come and go, is now and then written anew, all of it in one of its
changes: a third of a millisecond with ten thousand entries. These are made of small pieces instead.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from operator import itemgetter
from typing import Any, Final, Generic, TypeVar

V = TypeVar("V")

MASK: Final = 63
"""Of an id's hash: its bucket. With ten thousand entries in all each bucket is written anew in a few µs."""
RUN: Final = 512
"""Keys of a row's run, at most: what an insertion moves is twice 4 KiB."""


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


class Row:
    """Keys in the order of their numbers, no two of which are equal."""

    __slots__ = ("_keys", "_lasts", "_numbers")

    def __init__(self) -> None:
        self._numbers: list[array[int]] = []
        """Sorted runs, none empty: all of one come before all of the next. An array is a few lines of the
        cache; to look for a number among as many objects is a wait for memory with each comparison."""
        self._keys: list[list[str]] = []
        """Their keys, run by run."""
        self._lasts: list[int] = []
        """The last number of each run."""

    def __len__(self) -> int:
        return sum(map(len, self._keys))

    def __bool__(self) -> bool:
        return bool(self._lasts)

    def __iter__(self) -> Iterator[tuple[int, str]]:
        for numbers, keys in zip(self._numbers, self._keys, strict=True):
            yield from zip(numbers, keys, strict=True)

    def __contains__(self, number: int) -> bool:
        at = bisect_left(self._lasts, number)
        if at == len(self._lasts):
            return False
        numbers = self._numbers[at]
        return numbers[bisect_left(numbers, number)] == number

    def first(self) -> tuple[int, str]:
        """The smallest number and its key. Raises IndexError where there is none."""
        return self._numbers[0][0], self._keys[0][0]

    def add(self, number: int, key: str) -> None:
        """Put a key, whose number is not there, into its place."""
        lasts = self._lasts
        if not lasts:
            self._numbers.append(array("q", (number,)))
            self._keys.append([key])
            lasts.append(number)
            return
        at = bisect_left(lasts, number)
        if at < len(lasts):
            numbers, keys = self._numbers[at], self._keys[at]
            i = bisect_left(numbers, number)
            numbers.insert(i, number)
            keys.insert(i, key)
        else:
            at -= 1
            keys = self._keys[at]
            self._numbers[at].append(number)
            keys.append(key)
            lasts[at] = number
        if len(keys) > RUN:
            self._split(at)

    def _split(self, at: int) -> None:
        numbers, keys, half = self._numbers[at], self._keys[at], RUN // 2
        self._numbers.insert(at, numbers[:half])
        self._keys.insert(at, keys[:half])
        self._lasts.insert(at, numbers[half - 1])
        del numbers[:half], keys[:half]

    def remove(self, number: int) -> None:
        """Take out a number and its key. Raises KeyError where it is not there."""
        lasts = self._lasts
        at = bisect_left(lasts, number)
        if at == len(lasts):
            raise KeyError(number)
        numbers, keys = self._numbers[at], self._keys[at]
        i = bisect_left(numbers, number)
        if numbers[i] != number:
            raise KeyError(number)
        del numbers[i], keys[i]
        if not keys:
            del self._numbers[at], self._keys[at], lasts[at]
        elif i == len(keys):
            lasts[at] = numbers[i - 1]


class Line:
    """Ids in the order of their numbers: who asked first comes first."""

    __slots__ = ("_row",)

    def __init__(self, ids: Iterable[str] = ()) -> None:
        self._row = Row()
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
        return number(id) in self._row

    def first(self) -> str:
        """The first. Raises IndexError where there is none."""
        return self._row.first()[1]

    def age(self) -> int:
        """The first's number. Raises IndexError where there is none."""
        return self._row.first()[0]

    def add(self, id: str) -> None:
        """Put an id, which is not there, into its place."""
        self._row.add(number(id), id)

    def remove(self, id: str) -> None:
        """Take out an id. Raises KeyError where it is not there."""
        self._row.remove(number(id))


class Ages:
    """Keys in the order of a number each, that of an event: the oldest comes first."""

    __slots__ = ("_of", "_row", "first")

    def __init__(self) -> None:
        self.first: tuple[int, str] = (0, "")
        """The oldest number and its key, where there are any."""
        self._of: dict[str, int] = {}
        self._row = Row()

    def __len__(self) -> int:
        return len(self._of)

    def __iter__(self) -> Iterator[tuple[int, str]]:
        """The numbers and their keys."""
        return iter(self._row)

    def get(self, key: str) -> int | None:
        """A key's number, if it is there."""
        return self._of.get(key)

    def put(self, key: str, number: int) -> None:
        """Enter a key, or give it another number."""
        before = self._of.get(key)
        if before != number:
            if before is not None:
                self._row.remove(before)
            self._of[key] = number
            self._row.add(number, key)
            self.first = self._row.first()

    def drop(self, key: str) -> None:
        """Take a key out, if it is there."""
        before = self._of.pop(key, None)
        if before is not None:
            self._row.remove(before)
            if self._row:
                self.first = self._row.first()


def as_dict(value: object) -> dict[str, Any]:
    """A table or a line as msgspec is to write it. Raises NotImplementedError for anything else."""
    if isinstance(value, Line):
        return dict.fromkeys(value)
    if isinstance(value, Table):
        return dict(value.items())
    raise NotImplementedError(f"what is a {type(value).__name__}?")
