"""What folding an event does to the machines, queues, slots and deadlines: the moves that the folds share."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from events import catalogue as c
from events.catalogue import LEASE, NEVER, Event
from events.limits import LEASE_GRACE_NS, UPSTREAM_CLOSE_NS, WATCH_NS
from statemachines import request as requests
from statemachines import runner as runners
from statemachines.machine import IllegalTransition
from statemachines.parts import Demand, Request, Runner
from statemachines.policy import lease_turn_ns, linger_ns
from statemachines.request import RequestState
from statemachines.runner import RunnerState
from statemachines.state import (
    State,
    demand_key,
    dismissal_key,
    dismissed,
    head_seq,
    satisfies,
    waiting_for,
    where_of,
)
from statemachines.tables import Ages

Handler = Callable[[State, Event, Any], None]
Handlers = dict[type, Handler]


def request_to(request: Request, trigger: str) -> None:
    dest = requests.TABLE.get((request.state, trigger))
    if dest is None:
        raise IllegalTransition(f"request {request.id}: {trigger} in {request.state}")
    request.state = dest


def runner_to(state: State, runner: Runner, trigger: str) -> None:
    dest = runners.TABLE.get((runner.state, trigger))
    if dest is None:
        raise IllegalTransition(f"runner {runner.id}: {trigger} in {runner.state}")
    runner.state = dest
    if not runner.live:
        state.resting.pop(runner.id, None)
        state.leaving[runner.id] = runner


def enqueue(state: State, request: Request, excluded: str = "") -> None:
    """Put a request into its demand's queue, in its place by arrival."""
    key = demand_key(request.model, request.options, request.priority, excluded)
    demand = demand_of(state, key, request.model, request.options, request.priority, excluded)
    request.demand = key
    request.queued_t, request.loads = state.t, state.counts.get("loads", 0)
    demand.waiting.add(request.id)
    state.queued += 1
    rerank(state, demand)


def demand_of(
    state: State, key: str, model: str, options: dict[str, c.Option], priority: int, excluded: str = ""
) -> Demand:
    demand = state.demands.get(key)
    if demand is None:
        demand = state.demands[key] = Demand(key, model, options, priority, excluded)
        demand.where = where_of(state.model(model))
        state.wanted.setdefault(model, OrderedDict())[key] = demand
        for runner in state.models.get(model, {}).values():
            demand.servers += runner.live and satisfies(runner, demand)
    return demand


def rerank(state: State, demand: Demand) -> None:
    """Keep the place of a demand among the starving, if it is one."""
    if demand.servers:
        return
    place = (demand.priority, demand.where)
    ages = state.starving.get(place)
    if ages is None:
        ages = state.starving[place] = Ages()
    ages.put(demand.key, head_seq(demand))


def relocate(state: State) -> None:
    """Enter the starving by the devices that their models are configured for now."""
    for demand in state.demands.values():
        where = where_of(state.model(demand.model))
        if where != demand.where:
            feed(state, demand)
            demand.where = where
            rerank(state, demand)


def feed(state: State, demand: Demand) -> None:
    """A demand starves no more."""
    place = (demand.priority, demand.where)
    ages = state.starving.get(place)
    if ages is not None:
        ages.drop(demand.key)
        if not ages:
            del state.starving[place]


def unqueue(state: State, request: Request) -> None:
    demand = state.demands[request.demand]
    demand.waiting.remove(request.id)
    state.queued -= 1
    if demand.waiting:
        rerank(state, demand)
    else:
        drop_if_empty(state, demand)


def drop_if_empty(state: State, demand: Demand) -> None:
    if demand.operations:
        rerank(state, demand)
    elif not demand.waiting:
        del state.demands[demand.key]
        mine = state.wanted[demand.model]
        del mine[demand.key]
        if not mine:
            del state.wanted[demand.model]
        feed(state, demand)
        state.deadlines.disarm(("turn", demand.key))
        for key in [demand.model, dismissal_key(demand.model, demand.key)] if state.dismissing else []:
            dismissal = state.dismissing.get(key)
            if dismissal is not None and dismissed(state, dismissal) is None:
                del state.dismissing[key]


def serve(state: State, runner: Runner, gain: int) -> None:
    """A runner begins (+1) or ceases (-1) to be one that serves, or will serve, its demands."""
    for demand in waiting_for(state, runner.model):
        if satisfies(runner, demand):
            demand.servers += gain
            if gain < 0 and runner.ready_t != NEVER:
                bind(state, demand)
            if demand.servers:
                feed(state, demand)
            else:
                rerank(state, demand)
    if gain < 0 and runner.model in state.scaled:
        for other in state.models[runner.model].values():
            keep_alive(
                state, other
            )  # one that stayed beside it, though its own had run out, need not any more


def bind(state: State, demand: Demand) -> None:
    """Those who wait in a demand wait for something else from now on: so does the bound of it."""
    demand.bound_t, demand.bound_loads = state.t, state.counts.get("loads", 0)


def loads_on(state: State, runner: Runner) -> None:
    """A runner loads: count what it holds, all of which it has yet to take."""
    state.loading[runner.id] = runner
    held, coming = state.held, state.coming
    for device, size in runner.reserved_bytes.items():
        held[device] = held.get(device, 0) + size
        coming[device] = coming.get(device, 0) + size


def loaded(state: State, runner: Runner) -> None:
    """A runner ceases to load, if it did."""
    if state.loading.pop(runner.id, None) is not None:
        for device in runner.reserved_bytes | runner.peak_bytes:
            state.coming[device] -= runner.coming_bytes(device)


def release(state: State, request: Request) -> None:
    """The slot comes back."""
    runner = state.runners[request.runner]
    del runner.held[request.id]
    request.slot = False
    state.deadlines.disarm(("close", request.id))
    if request.state in requests.TERMINAL:
        del state.requests[request.id]
    if not runner.held:
        idle(state, runner)


def idle(state: State, runner: Runner) -> None:
    runner.idle_t = state.t
    if runner.state is RunnerState.ready:
        state.resting[runner.id] = runner
    if runner.served:
        state.idle[runner.model] = (state.t, runner.options)
    keep_alive(state, runner)
    if state.starving and runner.state is RunnerState.ready and (pause_ns := linger_ns(state, runner)):
        state.deadlines.arm(("linger", runner.id), state.t + pause_ns)


def keep_alive(state: State, runner: Runner) -> None:
    """An idle runner expires, unless its model is pinned: count from its last use."""
    expires = runner.state is RunnerState.ready and NEVER not in (runner.idle_t, runner.keep_alive_ns)
    if expires and runner.model not in state.pinned:
        state.deadlines.arm(("keep_alive", runner.id), max(state.t, runner.idle_t + runner.keep_alive_ns))
    else:
        state.deadlines.disarm(("keep_alive", runner.id))


def end_request(state: State, request: Request, trigger: str) -> None:
    if request.state is RequestState.queued:
        unqueue(state, request)
        state.deadlines.disarm(("queue", request.id))
    request_to(request, trigger)
    state.deadlines.disarm(("request", request.id))
    if request.kind == LEASE:
        for kind in OF_LEASE:
            state.deadlines.disarm((kind, request.id))
    if request.slot:
        state.deadlines.arm(("close", request.id), state.t + UPSTREAM_CLOSE_NS)
    else:
        del state.requests[request.id]
    name = requests.NAMES[request.state]
    state.counts[name] = state.counts.get(name, 0) + 1


OF_LEASE = ("lease", "revoke", "grace")
"""The deadlines of a lease that is held."""


def look_at_lease(state: State, request: Request) -> None:
    """Arm when a lease is looked at: at the end of a turn, and of the longest that it may last."""
    runner = state.runners[request.runner]
    due = state.t + lease_turn_ns(state, runner)
    view = state.model(request.model)
    if view is not None and view.max_lease_ns:
        due = min(due, max(state.t, runner.held[request.id] + view.max_lease_ns))
    state.deadlines.arm(("lease", request.id), due)


def keep_lease(state: State, request: Request) -> None:
    """A new start keeps a lease for who held it, for a while. What it was told before counts no more."""
    runner, due = state.runners[request.runner], state.deadlines
    runner.silent_t = NEVER
    due.arm(("watch", runner.id), state.t + WATCH_NS)
    due.disarm(("revoke", request.id))
    due.arm(("grace", request.id), state.t + LEASE_GRACE_NS)
    due.arm(("lease", request.id), state.t + LEASE_GRACE_NS)
    request.revoked = ""


def awaited(state: State, runner: Runner) -> bool:
    """Whether a suspect runner is waited for: it is worth its probe's answer though it is idle."""
    return runner.suspect and any(satisfies(runner, demand) for demand in waiting_for(state, runner.model))


def hasten(state: State, runner: Runner, due_t: int) -> None:
    """A runner is to go by then: if it drains already, for another reason, it has no longer than that."""
    if runner.state is RunnerState.draining and not 0 < runner.drain_due <= due_t:
        runner.drain_due = due_t
        state.deadlines.arm(("drain", runner.id), due_t)


def watched(state: State, runner: Runner, alive: bool) -> None:
    """A runner has answered, or has not: it is watched while it is busy, and on until it has answered, though
    who asked it has not waited for that."""
    if alive:
        runner.silent_t = NEVER
    elif runner.silent_t == NEVER:
        runner.silent_t = state.t
    if runner.held or not alive:
        state.deadlines.arm(("watch", runner.id), state.t + WATCH_NS)
    else:
        state.deadlines.disarm(("watch", runner.id))
