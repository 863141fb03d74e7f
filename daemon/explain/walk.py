"""One pass over a log: the events in order, each with the state as it was when it came."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from daemon.past import EventUnfoldable, nearest
from events.catalogue import Payload
from events.envelope import decode
from events.reader import CursorPruned, Reader
from statemachines.fold import apply
from statemachines.replay import UNFOLDABLE
from statemachines.state import State

MAX_SEQ = 2**63 - 1
"""What no event's number exceeds."""


class Happening(NamedTuple):
    """An event with the time of day at which it was written. at: UTC ns; t: scheduler time, ns; cause: as the
    event's."""

    seq: int
    at: int
    t: int
    cause: int
    subject: str
    body: Any


Look = Callable[[Happening, State], object]
"""Called with an event and the state before it."""


class Watch:
    """What a pass is made for: it is shown the events of some types before they are folded."""

    looks: Mapping[type[Payload], Look] = {}
    begin: int = 0
    """It needs to see nothing up to this event: the pass may go on from a snapshot before it."""
    first: int | None = None
    """From this event on `every` is shown all of them, whatever their type."""
    upto: int | None = None
    """The last event that it wants; None: the log's last."""
    stop_at: int | None = None
    """After this event `stopped` is called."""
    done = False
    """It has seen enough: the pass ends."""

    def begun(self, state: State) -> None:
        """The state that the pass begins with."""

    def every(self, h: Happening, state: State) -> None:
        """Any event from `first` on, and the state before it."""

    def stopped(self, state: State) -> None:
        """The state after the event `stop_at`."""


def walk(reader: Reader, watch: Watch) -> State:
    """Fold the log from where the watch begins, or from the snapshot before it, and show it what it wants to
    see; the state at the end of the pass. Raises LogError (EventUnreadable, EventUnfoldable) for a damaged
    log, and where what is wanted has been pruned."""
    begin = watch.begin if watch.upto is None else min(watch.begin, watch.upto)
    state, head = nearest(reader, max(begin, reader.base.seq - 1))
    watch.begun(state)
    looks, stop_at = watch.looks, watch.stop_at
    first = watch.first if watch.first is not None else MAX_SEQ
    if stop_at == head.seq:
        watch.stopped(state)
    for record in reader.records(head.seq, watch.upto):
        event = decode(record)
        body = event.body
        try:
            look = looks.get(type(body))
            if look is not None or event.seq >= first:
                h = Happening(event.seq, record.at, event.t, event.cause, event.subject, body)
                if look is not None:
                    look(h, state)
                if event.seq >= first:
                    watch.every(h, state)
            apply(state, event)
        except UNFOLDABLE as error:
            raise EventUnfoldable(event.seq, error) from error
        if event.seq == stop_at:
            watch.stopped(state)
        if watch.done:
            break
    return state


def step_end(reader: Reader, seq: int) -> int:
    """The last event of the step that an event belongs to: what follows until the next fact."""
    for record in reader.records(seq):
        if not record.cause:
            return seq
        seq = record.seq
    return seq


def happening(reader: Reader, seq: int) -> Happening | None:
    """One event by its number; None where it has been pruned, or the log has not come to it."""
    if seq < 1:
        return None
    try:
        record = next(reader.records(seq - 1, seq), None)
    except CursorPruned:
        return None
    if record is None or record.seq != seq:
        return None
    return Happening(seq, record.at, record.t, record.cause, record.subject, decode(record).body)
