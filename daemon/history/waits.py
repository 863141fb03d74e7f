"""Each request's time, from its arrival to its end, split into the parts that `parts` names. The parts of a
request add up to its time exactly: they are whole nanoseconds between events, none counted twice.

All who are queued in one demand wait for the same. So there is a clock for each demand, which counts its
parts, and a request notes what the clock shows when it comes and when it goes.
"""

from __future__ import annotations

from typing import Any

import msgspec

from daemon.history.parts import DOWN, PARTS, PAUSE, RETRY, SERVED, part_of
from daemon.tally import REQUEST_ENDS
from events import catalogue as c
from events.catalogue import LEASE, NEVER, Event
from statemachines.runner import RunnerState
from statemachines.state import State


class Wait(msgspec.Struct):
    """A request's time. Durations and times in ns; `at_ns` is UTC, the rest scheduler time."""

    request: str
    model: str
    caller: str
    kind: str
    at_ns: int
    arrived_t: int
    parts: list[int]
    outcome: str = ""
    """"" while it has not ended."""
    reason: str = ""
    runner: str = ""
    """Whose slot it had last."""
    ended_t: int = NEVER
    waited_ns: int = NEVER
    """Until it had its first slot, or ended without one; without the time in which the daemon died."""

    @property
    def total_ns(self) -> int:
        """From its arrival to its end; of one that has not ended, to what was looked at last."""
        return sum(self.parts)


class Clock:
    """What those in one demand have been waiting for."""

    __slots__ = ("members", "part", "since_t", "spent")

    def __init__(self, part: int, t: int) -> None:
        self.part = part
        self.since_t = t
        self.spent = [0] * len(PARTS)
        self.members = 0

    def read(self, t: int) -> list[int]:
        """What it shows at a time."""
        self.spent[self.part] += t - self.since_t
        self.since_t = t
        return self.spent


class Open:
    """A request that has not ended."""

    __slots__ = ("demand", "entered", "slot_t", "wait")

    def __init__(self, wait: Wait) -> None:
        self.wait = wait
        self.demand = ""
        self.entered: list[int] = []
        """What the clock of its demand showed when it came there."""
        self.slot_t = NEVER


class Waits:
    """Notes every event of every step, with the state after the step."""

    def __init__(self) -> None:
        self.open: dict[str, Open] = {}
        self._clocks: dict[str, Clock] = {}
        self._changed = False
        """Whether those who are queued may wait for something else after this step."""
        self._pauses = False
        """Whether somebody waits for the end of a pause, which an answer to others may be."""
        self._last_t = 0
        """Of the event before."""

    def note(self, state: State, event: Event, at_ns: int) -> Wait | None:
        """Take an event; the request that ends with it. Requests that had arrived before are not known."""
        body: Any = event.body
        kind = type(body)
        ended: Wait | None = None
        if kind is c.DaemonStarted:
            self._started(event.t)
        elif kind is c.RequestArrived:
            wait = Wait(event.subject, body.model, body.caller, body.kind, at_ns, event.t, [0] * len(PARTS))
            self.open[event.subject] = Open(wait)
        elif kind is c.RequestDispatched:
            self._dispatched(event.t, body)
        elif kind is c.RequestQueued:
            self._queued(state, event.t, body.request)
        elif kind is c.RequestRequeued:
            self._requeued(state, event.t, body.request)
        elif kind in REQUEST_ENDS:
            ended = self._ended(event.t, body)
        self._last_t = event.t
        if kind is c.UpstreamEnded:
            # Of a runner that leaves, the last request may have ended.
            runner = state.runners.get(body.runner)
            leaves = runner is None or runner.state is not RunnerState.ready
            self._changed |= leaves or not body.complete or self._pauses
        elif kind not in OF_ONE_MODEL:
            self._changed = True
        if self._changed and event.seq == state.seq:  # the last of its step
            self._look(state)
        return ended

    def until(self, state: State) -> list[Wait]:
        """Those that have not ended, with their time so far."""
        found = []
        for open in self.open.values():
            wait = msgspec.structs.replace(open.wait, parts=list(open.wait.parts))
            if open.demand:
                clock = self._clocks[open.demand]
                _add(wait.parts, open.entered, clock.read(state.t))
            elif open.slot_t != NEVER:
                wait.parts[SERVED] += state.t - open.slot_t
            found.append(wait)
        return found

    def _look(self, state: State) -> None:
        """See what each demand waits for now."""
        t, demands = state.t, state.demands
        self._changed = self._pauses = False
        for key, clock in self._clocks.items():
            demand = demands.get(key)
            if demand is not None and (part := part_of(state, demand)) != clock.part:
                clock.read(t)
                clock.part = part
            self._pauses |= clock.part == PAUSE

    def _started(self, t: int) -> None:
        """The daemon before was seen last at the event before: since then nobody was queued, or is known to
        have been served. Who holds a lease has talked to the runner itself."""
        for clock in self._clocks.values():
            clock.read(self._last_t)
            clock.part = DOWN
            clock.read(t)
        for open in self.open.values():
            if open.slot_t != NEVER and open.wait.kind != LEASE:
                open.wait.parts[SERVED] += self._last_t - open.slot_t
                open.wait.parts[DOWN] += t - self._last_t
                open.slot_t = t

    def _queued(self, state: State, t: int, id: str) -> None:
        """It comes into its demand, unless it has left that in the same step."""
        request, open = state.requests.get(id), self.open.get(id)
        if request is None or open is None or (demand := state.demands.get(request.demand)) is None:
            return
        clock = self._clocks.get(demand.key)
        if clock is None:
            clock = self._clocks[demand.key] = Clock(part_of(state, demand), t)
            self._pauses |= clock.part == PAUSE
        clock.members += 1
        open.demand, open.entered = demand.key, list(clock.read(t))

    def _leave(self, t: int, open: Open) -> None:
        if not open.demand:
            return
        clock = self._clocks[open.demand]
        _add(open.wait.parts, open.entered, clock.read(t))
        clock.members -= 1
        if not clock.members:
            del self._clocks[open.demand]
        open.demand = ""

    def _dispatched(self, t: int, d: c.RequestDispatched) -> None:
        open = self.open.get(d.request)
        if open is not None:
            self._leave(t, open)
            open.slot_t, open.wait.runner = t, d.runner
            if open.wait.waited_ns == NEVER:
                open.wait.waited_ns = t - open.wait.arrived_t

    def _requeued(self, state: State, t: int, id: str) -> None:
        open = self.open.get(id)
        if open is not None:
            open.wait.parts[RETRY] += t - open.slot_t
            open.slot_t = NEVER
            self._queued(state, t, id)

    def _ended(self, t: int, d: Any) -> Wait | None:
        open = self.open.pop(d.request, None)
        if open is None:
            return None
        self._leave(t, open)
        wait = open.wait
        if open.slot_t != NEVER:
            wait.parts[SERVED] += t - open.slot_t
        if wait.waited_ns == NEVER:
            wait.waited_ns = t - wait.arrived_t - wait.parts[DOWN]
        wait.ended_t, wait.outcome, wait.reason = t, REQUEST_ENDS[type(d)], getattr(d, "reason", "")
        return wait


def _add(parts: list[int], entered: list[int], left: list[int]) -> None:
    for i, (before, after) in enumerate(zip(entered, left, strict=True)):
        parts[i] += after - before


OF_ONE_MODEL = {c.RequestArrived, c.RequestQueued, c.RequestDispatched, c.RequestCompleted, c.RequestRejected}
"""Events that change what nobody waits for but their own demand, whose clock has been looked at: the many."""
