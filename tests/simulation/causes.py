"""Liveness, step by step: whoever waits has a pending cause, and no decision is overdue.

`check_all` knows a coarse form of this. Here it is precise: each cause is a thing that will come to pass by
itself (a deadline that is armed, an answer that one is armed for), and the scheduler, asked again at the same
moment, has nothing to add: what it would decide now, it should have decided in the step before.
"""

from __future__ import annotations

from events import catalogue as c
from events.catalogue import NEVER, Decision
from statemachines.claims import vacant
from statemachines.decide import dispatch_waiting
from statemachines.invariants import require
from statemachines.loading import place
from statemachines.parts import Demand, Runner
from statemachines.request import RequestState
from statemachines.runner import RunnerState
from statemachines.scheduler import Scheduler
from statemachines.state import State, being_dismissed, satisfies

WAITS = (c.MemoryMeasure, c.TurnWaits, c.ClaimEnded)
"""What asking again may well conclude: a measurement has aged, a turn is counted from now."""


class Would(Exception):
    """The decision that asking again would come to."""

    def __init__(self, decision: Decision) -> None:
        super().__init__(str(decision))
        self.decision = decision


class Asked(Scheduler):
    """A scheduler that says what it would decide, and changes nothing."""

    def emit(self, decision: Decision) -> None:
        raise Would(decision)


def check_causes(state: State, *, overdue: bool = False) -> None:
    """Raise Breach unless everything that waits has a cause that will end its waiting; with `overdue`, also
    if a decision was missed. (Where waiters age, who is first may change while nothing happens: that change
    is seen at the next look, and is not overdue.)"""
    due = state.deadlines
    require(not state.dismissing or ("resume", "") in due, "a dismissal that nobody goes on with")
    require(not state.measuring or ("measure", "") in due, "a measurement without a deadline")
    for runner in state.runners.values():
        _check_runner(state, runner)
    for request in state.requests.values():
        over = request.state not in (RequestState.queued, RequestState.dispatched)
        require(not over or ("close", request.id) in due, f"{request.id}'s slot is owed without a deadline")
    _check_demands(state)
    if overdue:
        _check_again(state)


def _check_runner(state: State, runner: Runner) -> None:
    """Each state of a runner but idleness has an end."""
    due, id = state.deadlines, runner.id
    at = runner.state
    if at is RunnerState.loading:
        ends = ("load", id) in due and (not runner.stall_ns or ("stall", id) in due)
    elif at is RunnerState.ready and runner.suspect:
        ends = ("probe", id) in due
    elif at is RunnerState.ready and not runner.held:
        kept = runner.model in state.pinned or runner.model in state.scaled
        ends = kept or runner.keep_alive_ns < 0 or ("keep_alive", id) in due
    elif at in (RunnerState.ready, RunnerState.draining):
        ends = bool(runner.held) and (("watch", id) in due or ("probe", id) in due)
    elif at is RunnerState.stopping:
        ends = runner.stuck or ("stop", id) in due or ("kill", id) in due
    else:
        owed = all(("close", request) in due for request in runner.held)
        ends = owed if runner.held else ("memory", id) in due
    require(ends, f"{id} is {at} (suspect: {runner.suspect}, held: {list(runner.held)}), without an end")


def _check_demands(state: State) -> None:
    if state.stopping or (("resume", "") in state.deadlines and not state.only_loads):
        return
    for demand in state.demands.values():
        if being_dismissed(state, demand):
            continue
        if demand.servers:
            mine = [r for r in state.runners.values() if r.live and satisfies(r, demand)]
            full = all(r.state is RunnerState.loading or r.suspect or len(r.held) >= r.slots for r in mine)
            require(full, f"{demand.key} waits beside a free slot")
        elif ("resume", "") not in state.deadlines:
            require(bool(_starves_for(state, demand)), f"{demand.key} starves, and nothing will end that")


def _starves_for(state: State, demand: Demand) -> str:
    """The cause that will make the scheduler look at a starving demand; "": there is none."""
    due = state.deadlines
    if state.measuring:
        return "measurement"
    if demand.turn_due != NEVER and ("turn", demand.key) in due:
        return "turn"
    if demand.model in state.cooling and ("cool", demand.model) in due:
        return "cooling"
    for claim in state.claims.values():
        if claim.demand in state.demands and not vacant(state, claim):
            return f"the claim for {claim.demand}"
    for runner in state.runners.values():
        if runner.suspect or runner.state is RunnerState.loading or not (runner.live or runner.stuck):
            return f"{runner.id} is {runner.state}"
        if ("linger", runner.id) in due:
            return f"{runner.id} lingers"
    for other in state.demands.values():  # it is behind one that waits for a turn
        if other is not demand and not other.servers and ("turn", other.key) in due:
            return f"behind {other.key}"
    return ""


def _check_again(state: State) -> None:
    """Asked again at the same moment, with memory measured just now, the scheduler has nothing to add."""
    if state.stopping or ("resume", "") in state.deadlines:
        return
    again, measured_t = Asked(state), state.measured_t
    again.left = 1
    if not state.measuring and measured_t != NEVER:
        state.measured_t = state.t
    try:
        place(again)
        for runner in state.runners.values():
            if runner.state is RunnerState.ready and not runner.suspect:
                dispatch_waiting(again, runner)
    except Would as would:
        known = isinstance(would.decision, WAITS) or _ends_first(state)
        require(known, f"overdue: {would.decision}")
    finally:
        state.measured_t = measured_t


def _ends_first(state: State) -> bool:
    """Whether a runner is on its way out: how it ends says what those get who wait for its room."""
    return any(not runner.live and not runner.stuck for runner in state.runners.values())
