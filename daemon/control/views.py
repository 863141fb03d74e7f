"""The folded state as the control socket shows it. Pure: the state and the time in, plain data out."""

from __future__ import annotations

from typing import Any

from daemon.catalog import Catalog
from events.catalogue import NEVER
from events.limits import SHARD
from statemachines.leases import held
from statemachines.ledger import budget_bytes, free_bytes, held_bytes, needs
from statemachines.parts import Runner
from statemachines.request import RequestState
from statemachines.state import State
from statemachines.waiting import cause, holder

View = dict[str, Any]


def devices(state: State) -> list[View]:
    """Each device: what there is, what may be used, what is free for a load, what is held. An over-committed
    device (its budget was lowered, a runner grew) has 0 free."""
    names = dict.fromkeys([*state.readings, *state.config.devices])
    rows = []
    for name in names:
        reading = state.readings.get(name)
        free = free_bytes(state, name)
        rows.append(
            {
                "name": name,
                "total_bytes": reading.total_bytes if reading else None,
                "budget_bytes": budget_bytes(state, name),
                "free_bytes": None if free is None else max(0, free),
                "reported_free_bytes": reading.free_bytes if reading else None,
                "held_bytes": held_bytes(state, name),
            }
        )
    return rows


def models(state: State, catalog: Catalog, t: int) -> list[View]:
    """Each configured model, and whether it is loaded."""
    rows = []
    for id, model in catalog.config.models.items():
        view = state.model(id)
        mine = state.models.get(id, {})
        need, source = needs(state, view, view.options) if view else (None, "unknown")
        cooling = state.cooling.get(id)
        cold = cooling is not None and cooling.until_t > t
        state_word = next((r.state.value for r in mine.values()), "cooling" if cold else "unloaded")
        rows.append(
            {
                "id": id,
                "aliases": list(model.aliases),
                "name": model.name,
                "description": model.description,
                "state": state_word,
                "runners": list(mine),
                "slots": view.slots if view else 0,
                "memory_bytes": view.memory_bytes if view else {},
                "keep_alive_ns": _limit(view.keep_alive_ns) if view else None,
                "cooling_ns": cooling.until_t - t if cooling is not None and cold else None,
                "pinned": id in state.pinned,
                "need_bytes": need or {},
                "need_source": source,
            }
        )
    return rows


def _limit(ns: int) -> int | None:
    return None if ns == NEVER else ns


def runners(state: State, t: int) -> list[View]:
    """Each runner that has not ended."""
    return [runner_view(state, runner, t) for runner in state.runners.values()]


def runner_view(state: State, runner: Runner, t: int) -> View:
    """One runner."""
    expires = state.deadlines.get(("keep_alive", runner.id))
    process = runner.processes.get(SHARD)
    return {
        "id": runner.id,
        "model": runner.model,
        "state": runner.state.value,
        "reason": runner.reason,
        "options": {name: str(value) for name, value in runner.options.items()},
        "slots": runner.slots,
        "slots_used": len(runner.held),
        "leases": len(held(state, runner)),
        "memory_bytes": runner.reserved_bytes,
        "used_bytes": runner.used_bytes,
        "held_bytes": runner.holds,
        "age_ns": t - runner.load_t,
        "ready_ns": t - runner.ready_t if runner.ready_t != NEVER else None,
        "idle_ns": t - runner.idle_t if runner.idle_t != NEVER else None,
        "expires_ns": expires - t if expires is not None else None,
        "load_estimate_ns": state.load_cost_ns.get(runner.model),
        "served": runner.served,
        "suspect": runner.suspect,
        "stuck": runner.stuck,
        "pid": process.pid if process is not None else None,
        "port": runner.port or None,
    }


def waits_for(state: State, id: str) -> str:
    """What a request waits for, in words for people; "" where it does not."""
    request = state.requests.get(id)
    demand = state.demands.get(request.demand) if request is not None else None
    return cause(state, demand) if demand is not None and id in demand.waiting else ""


def requests(state: State, t: int) -> list[View]:
    """Each request that has not ended, oldest first."""
    places: dict[str, int] = {}
    reasons: dict[str, str] = {}
    for demand in state.demands.values():
        places.update({id: place for place, id in enumerate(demand.waiting, 1)})
        reasons.update(dict.fromkeys(demand.waiting, cause(state, demand)))
    return [
        {
            "id": request.id,
            "model": request.model,
            "kind": request.kind,
            "state": request.state.value,
            "age_ns": t - request.arrived_t,
            "position": places.get(request.id),
            "runner": request.runner if request.state is RequestState.dispatched else None,
            "attempt": request.attempt,
            "caller": request.caller,
            "reason": reasons.get(request.id) or holder(state, request),
            "options": {name: str(value) for name, value in request.options.items()},
        }
        for request in state.requests.values()
        if request.state in (RequestState.queued, RequestState.dispatched)
    ]
