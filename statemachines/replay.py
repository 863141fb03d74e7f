"""Replay: folding a log again, and re-deriving every decision in it.

`fold` is what recovery does: facts *and* decisions are applied, nothing is decided. `verify` is the audit:
it feeds each recorded fact to a fresh `Scheduler` and compares what follows with what was recorded.
Decisions of a start with other rules than this program's cannot be re-derived; they are folded, which checks
that every transition is legal, and counted.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

import msgspec

from events.catalogue import DaemonStarted, DeadlinePassed, Event, Fact, StateCarried
from statemachines.carried import LAYOUT, Unreadable, carry, restore, text_of
from statemachines.fold import apply
from statemachines.invariants import Breach
from statemachines.machine import IllegalTransition
from statemachines.scheduler import RULES, Scheduler
from statemachines.state import State

UNFOLDABLE = (Breach, IllegalTransition, LookupError, ArithmeticError, AssertionError)
"""What folding a log raises that no runnerd has written, though its chain may be in order."""


class Divergence(Exception):
    """This program would have decided otherwise, or the log was altered. `seq` is the first event that
    differs; `expected` what follows from the facts (None: nothing), `found` what the log holds."""

    def __init__(self, seq: int, expected: Event | None, found: Event | None) -> None:
        what = f"{_shown(found)} is recorded, {_shown(expected)} follows from the facts"
        super().__init__(f"event {seq}: {what}")
        self.seq = seq
        self.expected = expected
        self.found = found


class SnapshotDiffers(Divergence):
    """A snapshot is not what the events before it add up to. `seq` is its last part."""

    def __init__(self, seq: int, upto: int) -> None:
        Exception.__init__(
            self, f"event {seq}: its snapshot is not the state that the events up to {upto} add up to"
        )
        self.seq = seq
        self.expected = self.found = None


class Report(msgspec.Struct):
    """What `verify` has done."""

    steps: int = 0
    decisions: int = 0
    """Decisions that were reproduced."""
    not_rederived: dict[int, int] = {}
    """Steps that were only folded, by the rules that they were made under."""
    snapshots: int = 0
    """Snapshots that are what the events add up to."""
    snapshots_not_compared: int = 0
    """Those of other rules, or in a form that this program does not write."""


def _shown(event: Event | None) -> str:
    if event is None:
        return "nothing"
    return f"{event.subject} {msgspec.json.encode(event.body).decode()}".strip()[:300]


def fold(events: Iterable[Event], state: State | None = None) -> State:
    """Apply events. Raises Breach, IllegalTransition or KeyError for a log not written by it."""
    state = state or State()
    for event in events:
        apply(state, event)
    return state


def steps(events: Iterable[Event]) -> Iterator[list[Event]]:
    """The events by step: a fact and the decisions that follow from it."""
    step: list[Event] = []
    for event in events:
        if step and isinstance(event.body, Fact):
            yield step
            step = []
        step.append(event)
    if step:
        yield step


def verify(
    events: Iterable[Event], state: State | None = None, snapshots: Collection[int] = ()
) -> tuple[Report, State]:
    """Re-derive every step from `state` on. `snapshots`: the events after which the state was carried, which
    is compared. Raises Divergence at the first event that differs."""
    scheduler = Scheduler(state)
    report = Report()
    rules = scheduler.state.rules or RULES
    carried = Snapshots(snapshots, scheduler.state.seq, report)
    for step in steps(events):
        carried.note(scheduler.state)
        first = step[0]
        if type(first.body) is DaemonStarted:
            rules = first.body.rules
        report.steps += 1
        if rules == RULES:
            _compare(rederive(scheduler, first), step)
            report.decisions += len(step) - 1
        else:
            report.not_rederived[rules] = report.not_rederived.get(rules, 0) + 1
            fold(step, scheduler.state)
        if type(first.body) is StateCarried:
            carried.compare(first.seq, first.body, rules)
    return report, scheduler.state


class Snapshots:
    """Compares the snapshots of a log with the states that they are of."""

    def __init__(self, uptos: Collection[int], first_seq: int, report: Report) -> None:
        self._first_seq = first_seq
        self._uptos = dict.fromkeys(uptos)
        self._report = report
        self._texts: dict[int, str] = {}
        self._pieces: list[StateCarried] = []

    def note(self, state: State) -> None:
        """Keep a state if a snapshot of it is to come."""
        if state.seq in self._uptos:
            self._texts[state.seq] = carry(state)

    def compare(self, seq: int, piece: StateCarried, rules: int) -> None:
        """Take a part; with the last one, compare. Raises SnapshotDiffers."""
        if piece.part == 1:
            self._pieces.clear()
        self._pieces.append(piece)
        if piece.part < piece.parts or piece.upto < self._first_seq:  # of what has been pruned
            return
        expected = self._texts.pop(piece.upto, None)
        if rules != RULES or piece.layout != LAYOUT or expected is None:
            self._report.snapshots_not_compared += 1
            return
        try:  # a field that came later has its default in what was carried before
            same = carry(restore(text_of(self._pieces))) == expected
        except Unreadable:
            same = False
        if not same:
            raise SnapshotDiffers(seq, piece.upto)
        self._report.snapshots += 1


def rederive(scheduler: Scheduler, first: Event) -> list[Event]:
    """What follows from a recorded fact: from a deadline that passed, the deadline that is due."""
    if not isinstance(first.body, Fact):
        raise Divergence(first.seq, None, first)
    if type(first.body) is DeadlinePassed:
        return scheduler.advance_one(first.t)
    return scheduler.step(first.body, first.t)


def _compare(expected: list[Event], found: list[Event]) -> None:
    if expected == found:
        return
    for ours, theirs in zip(expected, found, strict=False):
        if ours != theirs:
            raise Divergence(theirs.seq, ours, theirs)
    if len(expected) > len(found):
        raise Divergence(found[-1].seq + 1, expected[len(found)], None)
    raise Divergence(found[len(expected)].seq, None, found[len(expected)])
