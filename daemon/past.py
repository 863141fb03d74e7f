"""The state at a moment of a log: from the last snapshot before it, and the events since."""

from __future__ import annotations

from events.catalogue import Event
from events.envelope import LogError
from events.reader import Head, Reader
from statemachines.carried import Unreadable, restore, text_of
from statemachines.fold import apply
from statemachines.replay import UNFOLDABLE
from statemachines.state import State


class EventUnfoldable(LogError):
    """No runnerd has written this event after those before it, though its hash may be right."""

    def __init__(self, seq: int, error: Exception) -> None:
        super().__init__(f"event {seq} cannot follow: {error}")
        self.seq = seq


def nearest(reader: Reader, upto: int | None = None) -> tuple[State, Head]:
    """The state of the last snapshot at or before event `upto` (None: of all), and that event; where there
    is none, the empty state before the first event.

    Raises LogError where the log begins with a snapshot that this program cannot read, or after `upto`.
    """
    why = ""
    for snapshot in reader.snapshots(upto):
        try:
            pieces = reader.pieces(snapshot)
            return restore(text_of(pieces), pieces[0].layout), Head(snapshot.upto, snapshot.hash)
        except Unreadable as error:  # an older one may do
            why = f": the snapshot in event {snapshot.seq} cannot be read ({error})"
    base = reader.base
    if base.seq == 1:
        return State(), Head(0, base.hash)
    try:
        return _beginning(reader), Head(base.seq - 1, base.hash)
    except Unreadable as error:
        why = why or f": {error}"
        raise LogError(f"the log begins at event {base.seq}, with no state to go on from{why}") from None


def _beginning(reader: Reader) -> State:
    """The state that a segment has in its header. Raises Unreadable."""
    if not reader.begin or reader.begin[0].upto != reader.base.seq - 1:
        raise Unreadable("it is no segment" if not reader.begin else "its first snapshot is of another event")
    return restore(text_of(reader.begin), reader.begin[0].layout)


def state_at(reader: Reader, upto: int) -> State:
    """The state after event `upto`. Raises LogError."""
    state, head = nearest(reader, upto)
    for event in reader.events(head.seq, upto):
        fold_one(state, event)
    return state


def fold_one(state: State, event: Event) -> None:
    """Fold an event of a log. Raises EventUnfoldable."""
    try:
        apply(state, event)
    except UNFOLDABLE as error:
        raise EventUnfoldable(event.seq, error) from error


__all__ = ["EventUnfoldable", "fold_one", "nearest", "state_at"]
