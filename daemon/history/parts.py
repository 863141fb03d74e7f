"""What a request waits for at each instant: exactly one of a few parts, so that they add up to its time.

    queued   a runner of its model is ready: it waits for one of its slots
    turn     others come first: a busy runner keeps its place for its quantum, or another model is before it
    drain    a runner that must go, or goes anyway, finishes the requests that it has
    unload   it has no request any more: its process ends, its memory comes back
    memory   memory that other programs hold, or a measurement of it
    load     a runner of its model loads
    pause    a runner is asked for its health after a failed answer, or its model cools down
    retry    it was in a slot of a runner that failed it, and was queued again
    down     the daemon died at some time in it: from the last event before a start to that
    served   it is in a slot

The rules are those of `statemachines.waiting`, which puts the same into words, in the same order.
"""

from __future__ import annotations

from events.catalogue import NEVER
from statemachines.parts import Demand
from statemachines.runner import RunnerState
from statemachines.state import State, satisfies
from statemachines.waiting import failed_by

PARTS = ("queued", "turn", "drain", "unload", "memory", "load", "pause", "retry", "down", "served")
QUEUED, TURN, DRAIN, UNLOAD, MEMORY, LOAD, PAUSE, RETRY, DOWN, SERVED = range(len(PARTS))


def part_of(state: State, demand: Demand) -> int:
    """What those wait for who are queued in a demand, as the state is now."""
    return _served(state, demand) if demand.servers else _starving(state, demand)


def _served(state: State, demand: Demand) -> int:
    """A ready runner before one that loads, and that before one that is asked for its health."""
    found = PAUSE
    for runner in state.models.get(demand.model, {}).values():
        if runner.live and satisfies(runner, demand):
            if runner.state is RunnerState.ready and not runner.suspect:
                return QUEUED
            if runner.state is RunnerState.loading:
                found = LOAD
    return found


def _starving(state: State, demand: Demand) -> int:
    """Its own claim, its own wait, then what goes on for others."""
    cooling, claim = state.cooling.get(demand.model), state.claims.get(demand.key)
    if cooling is not None and cooling.until_t > state.t and not demand.operations:
        return PAUSE
    if claim is not None:
        return _leaving(state, claim.victims)
    if demand.short_t != NEVER:
        return MEMORY
    if demand.turn_due != NEVER:
        return TURN
    if failed_by(state, demand) is not None:
        return PAUSE
    if state.claims:
        return TURN
    leaving = [runner.id for runner in state.runners.values() if not runner.live and not runner.stuck]
    return TURN if state.loading and not leaving else _leaving(state, leaving)


def _leaving(state: State, runners: tuple[str, ...] | list[str]) -> int:
    """What becomes of those whose room it waits for."""
    left = [runner for id in runners if (runner := state.runners.get(id)) is not None]
    if any(runner.held for runner in left):
        return DRAIN
    if left:
        return UNLOAD
    return MEMORY if state.measuring else TURN
