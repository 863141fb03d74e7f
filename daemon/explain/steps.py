"""A log step by step, forwards and backwards: each fact with its decisions, and the state before and after.

Going on folds; going back folds again from the last copy of the state that was kept on the way.
"""

from __future__ import annotations

import copy
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator

import msgspec

from daemon.explain.memory import activity
from daemon.explain.words import size
from daemon.past import fold_one, nearest
from events.envelope import Record, decode
from events.reader import Reader
from statemachines.ledger import held_bytes
from statemachines.state import State

KEPT_EVERY = 2000
"""Events between two copies of the state at first: folding so many takes some ten milliseconds."""

KEPT = 64
"""Copies at most; then every other one is dropped, and they are twice as far apart."""

LOOK_BACK = 512
"""Events that are read at once to find where the step before begins: few steps are longer."""


class Step(msgspec.Struct, frozen=True):
    """A fact and its decisions."""

    records: tuple[Record, ...]

    @property
    def first(self) -> int:
        """The number of its fact."""
        return self.records[0].seq

    @property
    def last(self) -> int:
        """The number of its last event."""
        return self.records[-1].seq


class Steps:
    """The steps of a log from event `after` + 1 to event `upto`; with `only`, those that begin there. Raises
    LogError."""

    def __init__(self, reader: Reader, after: int, upto: int, only: list[int] | None = None) -> None:
        self._reader = reader
        self._state, _ = nearest(reader, max(after, reader.base.seq - 1))
        self._kept: dict[int, State] = {}
        self._every = KEPT_EVERY
        self.after = max(after, reader.base.seq - 1)
        self.upto = upto
        self.only = only

    # --- which step --------------------------------------------------------------------------------------

    def at(self, seq: int) -> Step | None:
        """The step that event `seq` belongs to; None where the log has none."""
        record = next(self._reader.records(seq - 1, seq), None) if seq > self._reader.base.seq - 1 else None
        if record is None:
            return None
        return self._step(record.cause or record.seq)

    def _step(self, first: int) -> Step:
        found: list[Record] = []
        for record in self._reader.records(first - 1, None):
            if found and not record.cause:
                break
            found.append(record)
        return Step(tuple(found))

    def next(self, step: Step | None) -> Step | None:
        """The step after this one, or the first; None at the end."""
        seq = step.last if step is not None else self.after
        if self.only is not None:
            i = bisect_right(self.only, seq)
            return self._step(self.only[i]) if i < len(self.only) else None
        if seq >= self.upto:
            return None
        return self.at(seq + 1)

    def previous(self, step: Step) -> Step | None:
        """The step before this one; None at the beginning."""
        if self.only is not None:
            i = bisect_left(self.only, step.first) - 1
            return self._step(self.only[i]) if i >= 0 else None
        return self.at(step.first - 1) if step.first - 1 > self.after else None

    def last(self) -> Step | None:
        """The last step."""
        if self.only is not None:
            return self._step(self.only[-1]) if self.only else None
        return self.at(self.upto) if self.upto > self.after else None

    def nearest(self, seq: int) -> Step | None:
        """The step of event `seq`, or the next one that is wanted, or else the last."""
        seq = min(max(seq, self.after + 1), self.upto)
        if self.only is None:
            return self.at(seq)
        i = bisect_left(self.only, seq)
        before = self._step(self.only[i - 1]) if i else None
        if before is not None and before.last >= seq:
            return before
        return self._step(self.only[i]) if i < len(self.only) else self.last()

    # --- the state then ----------------------------------------------------------------------------------

    def state(self, seq: int) -> State:
        """The state after event `seq`, which must not be changed."""
        if not self._state.seq <= seq <= self._state.seq + KEPT_EVERY:
            self._from(seq)
        if seq > self._state.seq:
            self._fold(self._reader.records(self._state.seq, seq))
        return self._state

    def _from(self, seq: int) -> None:
        """Go on from the last copy or snapshot before an event, or from where we are."""
        near = max((kept for kept in self._kept if kept <= seq), default=0)
        state, head = nearest(self._reader, seq)
        here = self._state.seq if self._state.seq <= seq else 0
        if max(near, here) <= head.seq:
            self._state = state
        elif near > here:
            self._state = copy.deepcopy(self._kept[near])

    def _fold(self, records: Iterable[Record]) -> None:
        state = self._state
        for record in records:
            fold_one(state, decode(record))
            if state.seq % self._every == 0 and state.seq not in self._kept:
                self._keep(state)

    def _keep(self, state: State) -> None:
        self._kept[state.seq] = copy.deepcopy(state)
        if len(self._kept) > KEPT:
            self._every *= 2
            self._kept = {seq: kept for seq, kept in self._kept.items() if seq % self._every == 0}


class Glance(msgspec.Struct, frozen=True):
    """What of a state is shown beside a step, and compared."""

    runners: dict[str, tuple[str, str, str, int]]
    """Of each runner: model, state, slots in use of all, bytes held on all devices."""
    waiting: dict[str, int]
    """How many wait, by demand."""
    running: int
    held_bytes: dict[str, int]
    claims: tuple[str, ...]
    cooling: tuple[str, ...]
    pinned: tuple[str, ...]


def glance(state: State) -> Glance:
    """The state at a glance."""
    held = {name: held_bytes(state, name) for name in dict.fromkeys([*state.readings, *state.held])}
    runners = {
        id: (r.model, activity(r), f"{len(r.held)}/{r.slots}", sum(r.hold_bytes(d) for d in held))
        for id, r in state.runners.items()
    }
    waiting = {key: len(demand.waiting) + len(demand.operations) for key, demand in state.demands.items()}
    running = sum(len(runner.held) for runner in state.runners.values())
    cooling = tuple(model for model, each in state.cooling.items() if each.until_t > state.t)
    return Glance(runners, waiting, running, held, tuple(state.claims), cooling, tuple(state.pinned))


class Change(msgspec.Struct, frozen=True):
    """One difference between two glances. what: runner, waiting (a number), memory (bytes), claim, cooling or
    pin. before, after: "" for nothing."""

    what: str
    name: str
    before: str
    after: str


def changes(before: Glance, after: Glance) -> Iterator[Change]:
    """What a step has changed."""
    for id in dict.fromkeys([*before.runners, *after.runners]):
        was, now = before.runners.get(id), after.runners.get(id)
        words = _runner(was), _runner(now)
        if was is not None and now is not None and words[0] == words[1]:
            words = f"{words[0]}, {size(was[3])}", f"{words[1]}, {size(now[3])}"
        if words[0] != words[1]:
            yield Change("runner", id, *words)
    for key in dict.fromkeys([*before.waiting, *after.waiting]):
        if before.waiting.get(key, 0) != after.waiting.get(key, 0):
            yield Change("waiting", key, str(before.waiting.get(key, 0)), str(after.waiting.get(key, 0)))
    for name in dict.fromkeys([*before.held_bytes, *after.held_bytes]):
        was_bytes, now_bytes = before.held_bytes.get(name, 0), after.held_bytes.get(name, 0)
        if was_bytes != now_bytes:
            yield Change("memory", name, str(was_bytes), str(now_bytes))
    for what, old, new in (
        ("claim", before.claims, after.claims),
        ("cooling", before.cooling, after.cooling),
        ("pin", before.pinned, after.pinned),
    ):
        for name in dict.fromkeys([*old, *new]):
            if (name in old) != (name in new):
                yield Change(what, name, "yes" if name in old else "", "yes" if name in new else "")


def _runner(row: tuple[str, str, str, int] | None) -> str:
    return f"{row[1]} {row[2]}" if row is not None else ""
