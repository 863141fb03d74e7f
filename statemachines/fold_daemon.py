"""Folding what happens around them: memory, claims, operators, configuration, starts, deadlines."""

from __future__ import annotations

from typing import Any

from events import catalogue as c
from events.catalogue import LEASE, NEVER, Event
from events.limits import (
    MEASURE_NS,
    MEMORY_FRESH_NS,
    PROBE_NS,
    QUARANTINE_NS,
    RECLAIM_NS,
    SAMPLE_STEP_BYTES,
    SETTLE_NS,
    STOP_NS,
)
from statemachines.estimate import HOST
from statemachines.groups import members_of
from statemachines.invariants import check_claim
from statemachines.moves import (
    Handlers,
    awaited,
    bind,
    demand_of,
    drop_if_empty,
    hasten,
    keep_alive,
    keep_lease,
    look_at_lease,
    release,
    relocate,
    rerank,
    serve,
    watched,
)
from statemachines.parts import Claim, Operation, Request, Runner
from statemachines.request import RequestState
from statemachines.runner import RunnerState
from statemachines.state import State, demand_key, dismissal_key, dismissed, less_than_default, unload_due


def _measured(state: State, event: Event, f: c.MemoryMeasured) -> None:
    state.readings = dict(f.devices)
    # What was read before the last exit says nothing of what that gave back.
    read_t = state.measure_t if state.measuring else event.t - MEMORY_FRESH_NS
    state.measured_t = event.t if state.gone_t == NEVER or read_t >= state.gone_t else NEVER
    state.measuring = False
    state.deadlines.disarm(("measure", ""))
    used_by = f.runners.get
    for runner in state.runners.values():
        used = used_by(runner.id, NOTHING)
        if runner.free_bytes and all(device == HOST for device in used):
            used = _taken(state, runner) | used
        if used != runner.used_bytes:
            _uses(state, runner, used)


def _taken(state: State, runner: Runner) -> dict[str, int]:
    """What GPUs have less free than when the only runner was loaded. It is the runner's if no process of its
    is known to use any: a container's are not its own, and some drivers do not tell. What is taken long after
    it is ready is other programs'."""
    taken: dict[str, int] = {}
    if runner.ready_t != NEVER and state.t - runner.ready_t > SETTLE_NS:
        return taken
    for device, before in runner.free_bytes.items():
        reading = state.readings.get(device)
        if reading is not None and reading.reliable and before - reading.free_bytes >= SAMPLE_STEP_BYTES:
            taken[device] = before - reading.free_bytes
    return taken


def _uses(state: State, runner: Runner, used: dict[str, int]) -> None:
    """A runner uses other memory than before, perhaps more than it was thought to hold."""
    was, runner.used_bytes = runner.used_bytes, used
    reserved, peak, coming = runner.reserved_bytes, runner.peak_bytes, state.coming
    loads = runner.id in state.loading
    for device, size in used.items():
        before = hold = max(reserved.get(device, 0), peak.get(device, 0))
        if size > peak.get(device, 0):
            peak[device] = size
            if size > hold:
                hold = size
                state.held[device] = state.held.get(device, 0) + hold - before
        if loads:  # it has less yet to take, or more
            more = max(0, hold - size) - max(0, before - was.get(device, 0))
            coming[device] = coming.get(device, 0) + more
    for device in was if loads else ():
        if device not in used:
            coming[device] += min(was[device], runner.hold_bytes(device))


NOTHING: dict[str, int] = {}


def _measure(state: State, event: Event, d: c.MemoryMeasure) -> None:
    state.measuring, state.measure_t = True, event.t
    state.deadlines.arm(("measure", ""), event.t + MEASURE_NS)


def _claim_made(state: State, event: Event, d: c.ClaimMade) -> None:
    check_claim(state, d)
    state.claims[d.demand] = Claim(d.demand, dict(d.need_bytes), d.devices, d.victims, d.whole)
    demand = state.demands[d.demand]
    demand.short_t = demand.turn_due = NEVER  # its turn has come
    state.deadlines.disarm(("turn", demand.key))


def _claim_ended(state: State, event: Event, d: c.ClaimEnded) -> None:
    del state.claims[d.demand]


def _turn_waits(state: State, event: Event, d: c.TurnWaits) -> None:
    demand = state.demands[d.demand]
    demand.turn_due, demand.turn_of = d.until_ns, d.runner or demand.turn_of
    if d.reason != "memory":
        demand.short_t = NEVER
    elif demand.short_t == NEVER:
        demand.short_t = event.t
    state.deadlines.arm(("turn", d.demand), d.until_ns)


def _reclaim_waits(state: State, event: Event, d: c.ReclaimWaits) -> None:
    state.deadlines.arm(("poll", d.runner), d.until_ns)


def _dismissed(state: State, event: Event, d: c.ModelDismissed) -> None:
    state.crowded.pop(d.model, None)  # it could not be alone: the next load is tried beside others again
    if dismissed(state, d) is not None:
        state.dismissing[dismissal_key(d.model, d.demand)] = d


def _continues(state: State, event: Event, d: c.StepContinues) -> None:
    state.deadlines.arm(("resume", ""), event.t)
    state.only_loads = d.only_loads


def _load_requested(state: State, event: Event, f: c.LoadRequested) -> None:
    operation = Operation(event.subject, "load", f.model, event.t, preload=f.preload)
    if f.preload:
        state.preloads[f.model] = None
    state.operations[operation.id] = operation
    view = state.model(f.model)
    if view is not None and not state.stopping:
        priority = view.priority + f.priority
        key = demand_key(f.model, f.options, priority)
        demand = demand_of(state, key, f.model, f.options, priority)
        demand.operations[operation.id] = None
        rerank(state, demand)
        operation.demand = demand.key


def _cancel_requested(state: State, event: Event, f: c.CancelRequested) -> None:
    state.operations[event.subject] = Operation(event.subject, "cancel", "", event.t)


def _unload_requested(state: State, event: Event, f: c.UnloadRequested) -> None:
    operation = Operation(event.subject, "unload", f.model, event.t)
    for runner in state.runners.values():
        if f.runner == runner.id or (not f.runner and f.model in ("", runner.model)):
            operation.runners[runner.id] = None
            runner.cancelled = runner.cancelled or f.cancel
            if not f.gently:
                hasten(state, runner, state.t if f.now else unload_due(state, runner))
    state.operations[operation.id] = operation


def _profile_requested(state: State, event: Event, f: c.ProfileRequested) -> None:
    state.operations[event.subject] = Operation(event.subject, "profile", "", event.t)
    state.profile = f.name


def _pin_requested(state: State, event: Event, f: c.PinRequested) -> None:
    state.operations[event.subject] = Operation(event.subject, "pin", f.model, event.t)
    if state.model(f.model) is None:
        return
    if f.pinned:
        state.pinned[f.model] = None
    else:
        state.pinned.pop(f.model, None)
    for runner in state.models.get(f.model, {}).values():
        keep_alive(state, runner)


def _operation_ended(state: State, event: Event, d: c.OperationEnded) -> None:
    operation = state.operations.pop(d.operation)
    demand = state.demands.get(operation.demand)
    if demand is not None:
        demand.operations.pop(operation.id, None)
        if demand.waiting:
            rerank(state, demand)
        else:
            drop_if_empty(state, demand)


def _daemon_started(state: State, event: Event, f: c.DaemonStarted) -> None:
    """A new start: exchanges and operators died with the old; waits for the world are re-armed in full."""
    state.boot_id, state.node, state.rules, state.policy = f.boot_id, f.node, f.rules, f.policy
    state.stopping, state.preloads = "", {}
    state.readings, state.measured_t, state.gone_t, state.measuring = {}, NEVER, NEVER, False
    state.deadlines.disarm(("measure", ""))
    state.claims = {}
    for operation in list(state.operations.values()):
        _operation_ended(state, event, c.OperationEnded(operation.id, False))
    alive = {(process.runner, process.shard): None for process in f.survivors}
    for request in list(state.requests.values()):
        if request.slot and _is_kept(state, request, alive):
            keep_lease(state, request)
        elif request.slot:
            release(state, request)
    for runner in state.runners.values():
        _missing(runner, alive)
        _rearm(state, runner)


def _is_kept(state: State, request: Request, alive: dict[tuple[str, int], None]) -> bool:
    """Whether a lease outlives the daemon: its runner does, and is not on its way out."""
    if request.kind != LEASE or request.state is not RequestState.dispatched:
        return False
    runner = state.runners[request.runner]
    survives = all((runner.id, shard) in alive for shard in runner.processes) and not runner.ended
    return runner.state is RunnerState.ready and bool(runner.processes) and survives


def _missing(runner: Runner, alive: dict[tuple[str, int], None]) -> None:
    """Processes that did not survive, of a runner of which others did."""
    gone = [shard for shard in runner.processes if (runner.id, shard) not in alive]
    if len(gone) < len(runner.processes):
        for shard in gone:
            del runner.processes[shard]
            runner.ended[shard] = None


def _rearm(state: State, runner: Runner) -> None:
    t, arm = state.t, state.deadlines.arm
    if runner.state is RunnerState.loading:
        arm(("load", runner.id), t + runner.load_ns)
        if runner.stall_ns:
            arm(("stall", runner.id), t + runner.stall_ns)
    elif runner.state is RunnerState.ready or runner.state is RunnerState.draining:
        runner.suspect = True
    elif runner.state is RunnerState.stopping:
        arm(("stop", runner.id), t + STOP_NS)
        state.deadlines.disarm(("kill", runner.id))
    else:
        arm(("memory", runner.id), t + RECLAIM_NS)


def _config_changed(state: State, event: Event, f: c.ConfigChanged) -> None:
    old = state.config.models
    state.config = f.view
    state.crowded = {
        name: None for name in state.crowded if name in old and old[name] == f.view.models.get(name)
    }
    for name in list(state.cooling):
        now = f.view.models.get(name)
        if now is None or (name in old and old[name].digest != now.digest):  # not what failed
            del state.cooling[name]
            state.deadlines.disarm(("cool", name))
    state.group_of = members_of(f.view)
    state.scaled = {name: None for name, view in f.view.models.items() if view.instances_max > 1}
    state.refused_ports = {}
    relocate(state)
    given = {
        name: view.keep_alive_ns
        for name, view in f.view.models.items()
        if name in old and old[name].keep_alive_ns != view.keep_alive_ns
    }
    for runner in state.runners.values():
        if runner.model in given and not runner.kept:
            runner.keep_alive_ns = given[runner.model]
        now = f.view.models.get(runner.model)
        if now is None or now.digest != runner.digest:
            hasten(state, runner, unload_due(state, runner))
        if now and runner.less and not less_than_default(now, runner.options):
            _suits_all(state, runner)
        keep_alive(state, runner)  # one that was kept as the least of instances may be above it now
    for request in state.requests.values() if given else ():
        if request.model in given and not request.slot:
            request.keep_alive_else_ns = None  # the configuration says so now
    for demand in state.demands.values():
        bind(state, demand)


def _suits_all(state: State, runner: Runner) -> None:
    """A runner had less of an option than the default, which is as low now."""
    if runner.live:
        serve(state, runner, -1)
    runner.less = ""
    if runner.live:
        serve(state, runner, +1)


def _stop_requested(state: State, event: Event, f: c.StopRequested) -> None:
    state.stopping = f.how
    for runner in state.runners.values() if f.how != "leave" else ():
        hasten(state, runner, state.t if f.how == "now" else unload_due(state, runner))


def _breach_recorded(state: State, event: Event, f: c.BreachRecorded) -> None:
    if f.fact == "request.arrived":
        state.quarantine[f.model] = event.t + QUARANTINE_NS
        state.deadlines.arm(("quarantine", f.model), event.t + QUARANTINE_NS)


def _deadline_passed(state: State, event: Event, f: c.DeadlinePassed) -> None:
    state.deadlines.disarm((f.kind, f.id))
    if f.kind == "close":
        request = state.requests[f.id]
        runner = state.runners[request.runner]
        runner.suspect = runner.state in (RunnerState.ready, RunnerState.draining)
        release(state, request)
    elif f.kind == "measure":
        state.measuring = False
        state.measured_t = event.t
    elif f.kind == "quarantine":
        del state.quarantine[f.id]
    elif f.kind == "turn":
        state.demands[f.id].turn_due = NEVER
    elif f.kind == "keep_alive" and awaited(state, state.runners[f.id]):
        state.deadlines.arm(("keep_alive", f.id), event.t + PROBE_NS)
    elif f.kind == "lease":
        look_at_lease(state, state.requests[f.id])
    elif f.kind == "probe" and not state.runners[f.id].suspect:
        watched(state, state.runners[f.id], False)


def _ignored(state: State, event: Event, body: Any) -> None:
    """A fact whose meaning is all in the decisions that follow from it."""


HANDLERS: Handlers = {
    c.ClientGone: _ignored,
    c.CancelRequested: _cancel_requested,
    c.MemoryMeasured: _measured,
    c.MemoryMeasure: _measure,
    c.ClaimMade: _claim_made,
    c.ClaimEnded: _claim_ended,
    c.TurnWaits: _turn_waits,
    c.ReclaimWaits: _reclaim_waits,
    c.ModelDismissed: _dismissed,
    c.StepContinues: _continues,
    c.LoadRequested: _load_requested,
    c.UnloadRequested: _unload_requested,
    c.PinRequested: _pin_requested,
    c.ProfileRequested: _profile_requested,
    c.OperationEnded: _operation_ended,
    c.DaemonStarted: _daemon_started,
    c.DaemonStopped: _ignored,
    c.ConfigChanged: _config_changed,
    c.StopRequested: _stop_requested,
    c.DeadlinePassed: _deadline_passed,
    c.LogResumed: _ignored,
    c.LogTailLost: _ignored,
    c.LogSalvaged: _ignored,
    c.StateCarried: _ignored,
    c.BreachRecorded: _breach_recorded,
}
