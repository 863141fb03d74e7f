"""How long a request may wait for a runner of its own at most, and whether one has waited for longer.

    bound = rounds × (turn + drain + end + load) + the wait for others' memory
    rounds = its own + the one that was under way + those ahead of it now + the loads decided since it waits

It waits since it was queued, or since the last runner that served its queue ceased to, or since the
configuration changed, and with it the bound.

A load is taken at its deadline, a turn as the scheduler itself would give it now, a drain as the longest that
was learned or that goes on: drains end, but nobody knows when. So this is no estimate. A wait beyond it means
that something was waited for that is no turn, no drain and no load.

Outside of it are those who wait behind others of their model, on a runner that is ready; and `collate`, under
which a busy runner keeps its place for as long as it has work.
"""

from __future__ import annotations

import msgspec

from events.catalogue import NEVER
from events.limits import KILL_NS, LOAD_GUESS_NS, LOAD_NS, MEASURE_NS, MEMORY_WAIT_NS, RECLAIM_NS, STOP_NS
from statemachines.parts import Demand
from statemachines.policy import rank
from statemachines.runner import RunnerState
from statemachines.state import State, satisfies

END_NS = STOP_NS + KILL_NS + RECLAIM_NS + MEASURE_NS
"""From the last request of a runner to the load that its room is for."""


class Overdue(msgspec.Struct, frozen=True):
    """A request that has waited for longer than it may."""

    request: str
    model: str
    waited_ns: int
    bound_ns: int


def overdue(state: State, t: int) -> Overdue | None:
    """Of the requests that have waited for longer than they may, the one furthest beyond its bound."""
    if state.config.policy == "collate":
        return None
    waits = list(_ahead(state))
    round_ns = longest_round_ns(state, t) if waits else 0
    worst: Overdue | None = None
    for demand, ahead in waits:
        request = state.requests[demand.waiting.first()]
        loads = state.counts.get("loads", 0) - max(request.loads, demand.bound_loads)
        bound_ns = (2 + ahead + loads) * round_ns + MEMORY_WAIT_NS
        waited_ns = t - max(request.queued_t, demand.bound_t)
        found = Overdue(request.id, request.model, waited_ns, bound_ns)
        beyond_ns = found.waited_ns - bound_ns
        if beyond_ns > 0 and (worst is None or beyond_ns > worst.waited_ns - worst.bound_ns):
            worst = found
    return worst


def _ahead(state: State) -> list[tuple[Demand, int]]:
    """The demands with a request that waits for a runner of its own, each with how many come before it."""
    hungry = [demand for demand in state.demands.values() if demand.waiting and not _served(state, demand)]
    starving = sorted((d for d in state.demands.values() if not d.servers), key=lambda d: rank(state, d))
    places = {demand.key: place for place, demand in enumerate(starving)}
    return [(demand, places.get(demand.key, 0)) for demand in hungry]


def _served(state: State, demand: Demand) -> bool:
    """Whether a runner that is ready works through its queue."""
    mine = state.models.get(demand.model, {}).values() if demand.servers else ()
    return any(runner.state is RunnerState.ready and satisfies(runner, demand) for runner in mine)


def longest_round_ns(state: State, t: int) -> int:
    """The most that making room once, and the load that it is for, may take among those concerned now."""
    models = [*state.models, *state.wanted]
    views = [view for name in models if (view := state.model(name)) is not None]
    limit_ns = max((view.load_ns for view in views), default=LOAD_NS)
    load_ns = max((state.load_cost_ns.get(name, LOAD_GUESS_NS) for name in models), default=LOAD_GUESS_NS)
    drains = [t - runner.drain_t for runner in state.runners.values() if runner.drain_t != NEVER]
    drain_ns = max([0, *drains, *state.drain_cost_ns.values()])
    return _turn_ns(state, 2 * load_ns, drain_ns) + drain_ns + END_NS + limit_ns


def _turn_ns(state: State, reload_ns: int, drain_ns: int) -> int:
    """How long a busy runner may keep its place: see `policy.quantum_ns`."""
    if state.config.policy == "fifo":
        return 0
    quantum_ns = state.config.swap_patience * (reload_ns + min(drain_ns, reload_ns))
    return min(quantum_ns, state.config.max_wait_ns) if state.config.max_wait_ns else quantum_ns
