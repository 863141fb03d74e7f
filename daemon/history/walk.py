"""A log walked step by step, with the state as it is after each; and the window of it that is asked for.

A step (a fact and what was decided on it) is indivisible: it lies in a window if its fact does.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from daemon.past import fold_one
from events.catalogue import Event, Fact
from events.envelope import Record, decode
from statemachines.state import State


class Window(NamedTuple):
    """The steps whose facts have these numbers, both included."""

    first: int
    last: int


class Step(NamedTuple):
    """A fact and its decisions. `at_ns`: UTC, when it was written."""

    events: list[Event]
    at_ns: int


class Walk:
    """Steps out of records, folded one by one. `state` is as it is after the step that was given last."""

    def __init__(self, state: State, records: Iterable[Record], window: Window) -> None:
        """`state`: at some moment before the window; `records`: those after it."""
        self.state = state
        self._window = window
        self._steps = _steps(records)
        self._ahead: Step | None = None

    def begin(self) -> None:
        """Fold what is before the window. Raises EventUnfoldable."""
        for step in self._steps:
            if step.events[0].seq >= self._window.first:
                self._ahead = step
                return
            self._fold(step)

    def __iter__(self) -> Iterator[Step]:
        """The steps in the window, each folded before it is given. Raises EventUnfoldable."""
        if self._ahead is None:
            self.begin()
        while (step := self._ahead) is not None and step.events[0].seq <= self._window.last:
            self._fold(step)
            yield step
            self._ahead = next(self._steps, None)

    def _fold(self, step: Step) -> None:
        for event in step.events:
            fold_one(self.state, event)


def _steps(records: Iterable[Record]) -> Iterator[Step]:
    events: list[Event] = []
    at_ns = 0
    for record in records:
        event = decode(record)
        if isinstance(event.body, Fact):
            if events:
                yield Step(events, at_ns)
            events, at_ns = [], record.at
        events.append(event)
    if events:
        yield Step(events, at_ns)
