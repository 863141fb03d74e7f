"""Folding: the only code that changes the state. The same function live, in recovery, replay and simulation.

`apply(state, event)` takes one event and does what that event says, no more: it never concludes anything.
A fact that no longer applies (the runner is gone, the request has ended) changes nothing. A decision that
does not apply is a defect of this program and raises: `Breach` or `IllegalTransition`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from events import catalogue as c
from events.catalogue import NEVER, Event
from events.limits import (
    KILL_NS,
    LEASE_TRIES,
    MEASURE_NS,
    PROBE_NS,
    QUARANTINE_NS,
    RECLAIM_NS,
    REPROBE_NS,
    STOP_NS,
    UPSTREAM_CLOSE_NS,
    WATCH_NS,
)
from statemachines import request as requests
from statemachines import runner as runners
from statemachines.invariants import check_dispatch, check_ended, check_load, check_stop, require
from statemachines.machine import IllegalTransition
from statemachines.request import RequestState
from statemachines.runner import RunnerState
from statemachines.state import (
    Claim,
    Cooling,
    Demand,
    Operation,
    Request,
    Runner,
    State,
    demand_key,
    satisfies,
    spec_key,
)


def apply(state: State, event: Event) -> None:
    """Fold one event. Raises Breach or IllegalTransition for a decision that may not be."""
    state.seq = event.seq
    state.t = event.t
    HANDLERS[type(event.body)](state, event, event.body)


# --- moving the machines ---------------------------------------------------------------------------------


def _request_to(request: Request, trigger: str) -> None:
    dest = requests.TABLE.get((request.state, trigger))
    if dest is None:
        raise IllegalTransition(f"request {request.id}: {trigger} in {request.state}")
    request.state = dest


def _runner_to(runner: Runner, trigger: str) -> None:
    dest = runners.TABLE.get((runner.state, trigger))
    if dest is None:
        raise IllegalTransition(f"runner {runner.id}: {trigger} in {runner.state}")
    runner.state = dest


def _enqueue(state: State, request: Request, excluded: str = "") -> None:
    """Put a request into its demand's queue, in its place by arrival."""
    key = demand_key(request.model, request.options, request.priority, excluded)
    demand = _demand(state, key, request.model, request.options, request.priority, excluded)
    request.demand = key
    demand.waiting[request.id] = None
    state.queued += 1


def _demand(
    state: State, key: str, model: str, options: dict[str, c.Option], priority: int, excluded: str = ""
) -> Demand:
    demand = state.demands.get(key)
    if demand is None:
        demand = state.demands[key] = Demand(key, model, options, priority, excluded)
        for runner in state.models.get(model, {}).values():
            demand.servers += runner.live and satisfies(runner, demand)
        if not demand.servers:
            state.starving[key] = None
    return demand


def _unqueue(state: State, request: Request) -> None:
    demand = state.demands[request.demand]
    del demand.waiting[request.id]
    state.queued -= 1
    _drop_if_empty(state, demand)


def _drop_if_empty(state: State, demand: Demand) -> None:
    if not demand.waiting and not demand.operations:
        del state.demands[demand.key]
        state.starving.pop(demand.key, None)
        state.deadlines.disarm("turn", demand.key)
        if demand.model in state.dismissing and all(d.model != demand.model for d in state.demands.values()):
            del state.dismissing[demand.model]


def _serve(state: State, runner: Runner, gain: int) -> None:
    """A runner begins (+1) or ceases (-1) to be one that serves, or will serve, its demands."""
    for key, demand in state.demands.items():
        if satisfies(runner, demand):
            demand.servers += gain
            if demand.servers:
                state.starving.pop(key, None)
            else:
                state.starving[key] = None


def _release(state: State, request: Request) -> None:
    """The slot comes back."""
    runner = state.runners[request.runner]
    del runner.held[request.id]
    request.slot = False
    state.deadlines.disarm("close", request.id)
    if request.state in requests.TERMINAL:
        del state.requests[request.id]
    if not runner.held:
        _idle(state, runner)


def _idle(state: State, runner: Runner) -> None:
    runner.idle_t = state.t
    runner.silent_t = NEVER
    state.deadlines.disarm("watch", runner.id)
    if runner.state is RunnerState.ready and runner.keep_alive_ns >= 0:
        state.deadlines.arm("keep_alive", runner.id, state.t + runner.keep_alive_ns)


def _end_request(state: State, request: Request, trigger: str) -> None:
    if request.state is RequestState.queued:
        _unqueue(state, request)
    _request_to(request, trigger)
    state.deadlines.disarm("queue", request.id)
    state.deadlines.disarm("request", request.id)
    if request.slot:
        state.deadlines.arm("close", request.id, state.t + UPSTREAM_CLOSE_NS)
    else:
        del state.requests[request.id]
    name = request.state.value
    state.counts[name] = state.counts.get(name, 0) + 1


# --- requests --------------------------------------------------------------------------------------------


def _arrived(state: State, event: Event, f: c.RequestArrived) -> None:
    state.requests[event.subject] = Request(
        event.subject, event.seq, f.model, "", f.kind, f.options, event.t, f.priority, f.keep_alive_ns, f.caller
    )  # fmt: skip


def _queued(state: State, event: Event, d: c.RequestQueued) -> None:
    request = state.requests[d.request]
    _request_to(request, "queue")
    _enqueue(state, request)
    view = state.model(request.model)
    if view and view.queue_ns:
        state.deadlines.arm("queue", request.id, request.arrived_t + view.queue_ns)
    if view and view.request_ns:
        state.deadlines.arm("request", request.id, request.arrived_t + view.request_ns)


def _dispatched(state: State, event: Event, d: c.RequestDispatched) -> None:
    request = state.requests[d.request]
    runner = state.runners[d.runner]
    check_dispatch(request, runner)
    if request.state is RequestState.queued:
        _unqueue(state, request)
        state.deadlines.disarm("queue", request.id)
    elif view := state.model(request.model):
        if view.request_ns:
            state.deadlines.arm("request", request.id, request.arrived_t + view.request_ns)
    _request_to(request, "dispatch")
    request.runner = runner.id
    request.slot = True
    request.attempt = d.attempt
    if request.keep_alive_ns is not None:
        runner.keep_alive_ns = request.keep_alive_ns
    if not runner.held:
        runner.idle_t = NEVER
        state.deadlines.disarm("keep_alive", runner.id)
        state.deadlines.arm("watch", runner.id, event.t + WATCH_NS)
    runner.held[request.id] = event.t


def _requeued(state: State, event: Event, d: c.RequestRequeued) -> None:
    request = state.requests[d.request]
    require(not request.slot and request.attempt == 1, f"{request.id} requeued out of turn")
    _request_to(request, "requeue")
    _enqueue(state, request, d.runner)
    demand = state.demands[request.demand]
    for id in list(demand.waiting):  # its old place: few wait with the same runner excluded
        if state.requests[id].seq > request.seq:
            demand.waiting.move_to_end(id)


def _completed(state: State, event: Event, d: c.RequestCompleted) -> None:
    request = state.requests[d.request]
    require(not request.slot, f"{request.id} completed while its exchange runs")
    _end_request(state, request, "complete")
    if state.cooling:
        state.cooling.pop(request.model, None)
        state.deadlines.disarm("cool", request.model)
    runner = state.runners.get(request.runner)
    if runner is not None:
        runner.served += 1


def _ender(trigger: str) -> Callable[[State, Event, Any], None]:
    def ended(state: State, event: Event, d: Any) -> None:
        _end_request(state, state.requests[d.request], trigger)

    return ended


def _upstream_ended(state: State, event: Event, f: c.UpstreamEnded) -> None:
    request = state.requests.get(f.request)
    if request is None or not request.slot or request.runner != f.runner:
        return
    runner = state.runners[f.runner]
    if not f.complete and f.sent and request.state is RequestState.dispatched:
        runner.suspect = True
    _release(state, request)


def _ignored(state: State, event: Event, body: Any) -> None:
    """A fact whose meaning is all in the decisions that follow from it."""


# --- runners ---------------------------------------------------------------------------------------------


def _load(state: State, event: Event, d: c.RunnerLoad) -> None:
    check_load(state, d)
    runner = Runner(
        event.subject, d.model, d.digest, d.options, d.reserved_bytes, d.slots, d.keep_alive_ns, d.load_ns,
        d.port, d.socket, d.alone, event.t, wanted=d.reason == "operator",
    )  # fmt: skip
    state.runners[runner.id] = runner
    state.models.setdefault(d.model, {})[runner.id] = runner
    state.next_port = d.port + 1 if d.port else state.next_port
    state.deadlines.arm("load", runner.id, event.t + d.load_ns)
    state.counts["loads"] = state.counts.get("loads", 0) + 1
    for demand in state.demands.values():
        if (demand.turn_due != NEVER or demand.short_t != NEVER) and satisfies(runner, demand):
            demand.turn_due = demand.short_t = NEVER
            state.deadlines.disarm("turn", demand.key)
    _serve(state, runner, +1)


def _leased(state: State, event: Event, d: c.RunnerLeased) -> None:
    runner = state.runners[d.runner]
    require(all(r.port != d.port for r in state.runners.values()), f"port {d.port} is leased twice")
    runner.port = d.port
    runner.lease_tries += 1
    state.next_port = d.port + 1


def _spawned(state: State, event: Event, f: c.ProcessSpawned) -> None:
    runner = state.runners.get(f.process.runner)
    if runner is not None and not runner.exited:
        runner.processes[f.process.shard] = f.process


def _exited(state: State, event: Event, f: c.ProcessExited) -> None:
    runner = state.runners.get(f.runner)
    if runner is not None and not runner.exited:
        runner.processes.pop(f.shard, None)
        if not runner.processes:
            _gone(state, runner, "exited", f.output)


def _spawn_failed(state: State, event: Event, f: c.SpawnFailed) -> None:
    runner = state.runners.get(f.runner)
    if runner is not None and not runner.exited and not runner.processes:
        _gone(state, runner, "spawn_failed", f.error)


def _lease_refused(state: State, event: Event, f: c.LeaseRefused) -> None:
    runner = state.runners.get(f.runner)
    if runner is None or runner.exited or runner.processes or runner.port != f.port:
        return
    state.refused_ports[f.port] = None
    view = state.model(runner.model)
    fixed = view is not None and view.fixed_port == f.port
    if fixed or runner.lease_tries >= LEASE_TRIES or runner.state is not RunnerState.loading:
        _gone(state, runner, "port_taken", f"port {f.port} is in use by another program")


def _gone(state: State, runner: Runner, reason: str, output: str) -> None:
    """No process of the runner is left."""
    was_live = runner.live
    _runner_to(runner, "exited")
    runner.exited = True
    runner.exit_t = state.t
    runner.suspect = False
    if not runner.verdict:
        runner.verdict, runner.reason = "failed", reason
    if runner.ready_t == NEVER:
        runner.output = output
    for device in runner.reserved_bytes:
        if device != "host" and device in state.readings:
            runner.exit_free_bytes[device] = state.readings[device].free_bytes
    if was_live:
        _serve(state, runner, -1)
    for kind in ("load", "keep_alive", "drain", "stop", "kill", "probe", "reprobe", "watch"):
        state.deadlines.disarm(kind, runner.id)
    state.deadlines.arm("memory", runner.id, state.t + RECLAIM_NS)
    for id in runner.held:
        state.deadlines.arm("close", id, state.t + UPSTREAM_CLOSE_NS)


def _probe_answered(state: State, event: Event, f: c.ProbeAnswered) -> None:
    runner = state.runners.get(f.runner)
    if runner is None or runner.exited:
        return
    t, due = event.t, state.deadlines
    if runner.state is RunnerState.loading:
        if f.healthy:
            _runner_to(runner, "healthy")
            runner.ready_t = t
            state.load_cost_ns[runner.model] = t - runner.load_t
            due.disarm("load", runner.id)
            _idle(state, runner)
        return
    due.disarm("probe", runner.id)
    due.disarm("reprobe", runner.id)
    if runner.suspect:
        runner.suspect = not f.healthy
        if not f.healthy:
            due.arm("reprobe", runner.id, t + REPROBE_NS)
            due.arm("probe", runner.id, max(t, runner.probe_due))
    if runner.held and runner.state in (RunnerState.ready, RunnerState.draining):
        _watched(state, runner, f.healthy or f.moved)


def _watched(state: State, runner: Runner, alive: bool) -> None:
    if alive:
        runner.silent_t = NEVER
    elif runner.silent_t == NEVER:
        runner.silent_t = state.t
    state.deadlines.arm("watch", runner.id, state.t + WATCH_NS)


def _probe(state: State, event: Event, d: c.RunnerProbe) -> None:
    runner = state.runners[d.runner]
    state.deadlines.disarm("reprobe", runner.id)
    if d.reason != "again":
        runner.probe_due = event.t + PROBE_NS
    state.deadlines.arm("probe", runner.id, runner.probe_due)


def _drain(state: State, event: Event, d: c.RunnerDrain) -> None:
    runner = state.runners[d.runner]
    _runner_to(runner, "drain")
    runner.reason, runner.drain_t, runner.drain_due = d.reason, event.t, d.deadline_ns
    state.deadlines.disarm("keep_alive", runner.id)
    if d.deadline_ns:
        state.deadlines.arm("drain", runner.id, d.deadline_ns)
    _serve(state, runner, -1)


def _stop(state: State, event: Event, d: c.RunnerStop) -> None:
    runner = state.runners[d.runner]
    check_stop(runner, d.verdict, event.t)
    was_live = runner.live
    _runner_to(runner, "stop")
    runner.verdict, runner.reason = d.verdict, d.reason
    if runner.drain_t != NEVER:
        state.drain_cost_ns[runner.model] = event.t - runner.drain_t
    for kind in ("load", "keep_alive", "drain", "probe", "reprobe", "watch"):
        state.deadlines.disarm(kind, runner.id)
    state.deadlines.arm("stop", runner.id, event.t + STOP_NS)
    if was_live:
        _serve(state, runner, -1)


def _kill(state: State, event: Event, d: c.RunnerKill) -> None:
    _runner_to(state.runners[d.runner], "kill")
    state.deadlines.arm("kill", d.runner, event.t + KILL_NS)


def _stuck(state: State, event: Event, d: c.RunnerStuck) -> None:
    runner = state.runners[d.runner]
    _runner_to(runner, "stuck")
    runner.stuck = True


def _ended_runner(trigger: str) -> Callable[[State, Event, Any], None]:
    def ended(state: State, event: Event, d: Any) -> None:
        runner = state.runners[d.runner]
        check_ended(runner)
        _runner_to(runner, trigger)
        if d.footprint_bytes:
            state.footprints[spec_key(runner.digest, runner.options)] = d.footprint_bytes
        _remove(state, runner)

    return ended


def _lost(state: State, event: Event, d: c.RunnerLost) -> None:
    runner = state.runners[d.runner]
    was_live = runner.live
    require(not runner.held, f"{runner.id} lost with slots in use")
    _runner_to(runner, "lost")
    if was_live:
        _serve(state, runner, -1)
    _remove(state, runner)


def _remove(state: State, runner: Runner) -> None:
    del state.runners[runner.id]
    mine = state.models[runner.model]
    del mine[runner.id]
    if not mine:
        del state.models[runner.model]
    for kind in ("load", "keep_alive", "drain", "stop", "kill", "probe", "reprobe", "watch", "memory", "poll"):
        state.deadlines.disarm(kind, runner.id)
    for operation in state.operations.values():
        operation.runners.pop(runner.id, None)
    name = runner.state.value + "_runners"
    state.counts[name] = state.counts.get(name, 0) + 1


def _cooling(state: State, event: Event, d: c.ModelCooling) -> None:
    state.cooling[d.model] = Cooling(d.runner, d.failures, d.until_ns, d.message)
    state.deadlines.arm("cool", d.model, d.until_ns)


# --- memory, claims, operators ---------------------------------------------------------------------------


def _measured(state: State, event: Event, f: c.MemoryMeasured) -> None:
    state.readings = dict(f.devices)
    state.measured_t = event.t
    state.measuring = False
    state.deadlines.disarm("measure", "")
    for runner in state.runners.values():
        runner.used_bytes = dict(f.runners.get(runner.id, {}))
        for device, used in runner.used_bytes.items():
            runner.peak_bytes[device] = max(used, runner.peak_bytes.get(device, 0))


def _measure(state: State, event: Event, d: c.MemoryMeasure) -> None:
    state.measuring = True
    state.deadlines.arm("measure", "", event.t + MEASURE_NS)


def _claim_made(state: State, event: Event, d: c.ClaimMade) -> None:
    require(state.claim is None, "two claims at once")
    state.claim = Claim(d.demand, dict(d.need_bytes), d.victims)


def _claim_ended(state: State, event: Event, d: c.ClaimEnded) -> None:
    state.claim = None


def _turn_waits(state: State, event: Event, d: c.TurnWaits) -> None:
    demand = state.demands[d.demand]
    demand.turn_due = d.until_ns
    if d.reason == "memory" and demand.short_t == NEVER:
        demand.short_t = event.t
    state.deadlines.arm("turn", d.demand, d.until_ns)


def _reclaim_waits(state: State, event: Event, d: c.ReclaimWaits) -> None:
    state.deadlines.arm("poll", d.runner, d.until_ns)


def _dismissed(state: State, event: Event, d: c.ModelDismissed) -> None:
    if any(demand.model == d.model for demand in state.demands.values()):
        state.dismissing[d.model] = d


def _continues(state: State, event: Event, d: c.StepContinues) -> None:
    state.deadlines.arm("resume", "", event.t)


def _load_requested(state: State, event: Event, f: c.LoadRequested) -> None:
    operation = Operation(event.subject, "load", f.model)
    state.operations[operation.id] = operation
    if state.model(f.model) is not None and not state.stopping:
        demand = _demand(state, demand_key(f.model, f.options, 0), f.model, f.options, 0)
        demand.operations[operation.id] = None
        operation.demand = demand.key


def _cancel_requested(state: State, event: Event, f: c.CancelRequested) -> None:
    state.operations[event.subject] = Operation(event.subject, "cancel", "")


def _unload_requested(state: State, event: Event, f: c.UnloadRequested) -> None:
    operation = Operation(event.subject, "unload", f.model)
    for runner in state.runners.values():
        if f.runner == runner.id or (not f.runner and f.model in ("", runner.model)):
            operation.runners[runner.id] = None
            if f.now and runner.state is RunnerState.draining:
                _hasten(state, runner)
    state.operations[operation.id] = operation


def _hasten(state: State, runner: Runner) -> None:
    """A drain that may last no longer."""
    runner.drain_due = state.t
    state.deadlines.arm("drain", runner.id, state.t)


def _operation_ended(state: State, event: Event, d: c.OperationEnded) -> None:
    operation = state.operations.pop(d.operation)
    demand = state.demands.get(operation.demand)
    if demand is not None:
        demand.operations.pop(operation.id, None)
        _drop_if_empty(state, demand)


# --- the daemon ------------------------------------------------------------------------------------------


def _daemon_started(state: State, event: Event, f: c.DaemonStarted) -> None:
    """A new start: exchanges and operators died with the old one; waits for the world are re-armed in full."""
    state.boot_id, state.node, state.rules, state.policy = f.boot_id, f.node, f.rules, f.policy
    state.stopping = ""
    state.readings, state.measured_t, state.measuring = {}, NEVER, False
    state.deadlines.disarm("measure", "")
    state.claim = None
    for operation in list(state.operations.values()):
        _operation_ended(state, event, c.OperationEnded(operation.id, False))
    for request in list(state.requests.values()):
        if request.slot:
            _release(state, request)
    for runner in state.runners.values():
        _rearm(state, runner)


def _rearm(state: State, runner: Runner) -> None:
    t, arm = state.t, state.deadlines.arm
    if runner.state is RunnerState.loading:
        arm("load", runner.id, t + runner.load_ns)
    elif runner.state is RunnerState.ready or runner.state is RunnerState.draining:
        runner.suspect = True
        if runner.drain_due:
            view = state.model(runner.model)
            runner.drain_due = t + (view.unload_ns if view else STOP_NS)
            arm("drain", runner.id, runner.drain_due)
    elif runner.state is RunnerState.stopping:
        arm("stop", runner.id, t + STOP_NS)
        state.deadlines.disarm("kill", runner.id)
    else:
        arm("memory", runner.id, t + RECLAIM_NS)


def _config_changed(state: State, event: Event, f: c.ConfigChanged) -> None:
    state.config = f.view
    state.refused_ports = {}


def _stop_requested(state: State, event: Event, f: c.StopRequested) -> None:
    state.stopping = f.how
    if f.how == "now":
        for runner in state.runners.values():
            if runner.state is RunnerState.draining:
                _hasten(state, runner)


def _breach_recorded(state: State, event: Event, f: c.BreachRecorded) -> None:
    if f.fact == "request.arrived":
        state.quarantine[f.model] = event.t + QUARANTINE_NS
        state.deadlines.arm("quarantine", f.model, event.t + QUARANTINE_NS)


def _deadline_passed(state: State, event: Event, f: c.DeadlinePassed) -> None:
    state.deadlines.disarm(f.kind, f.id)
    if f.kind == "close":
        request = state.requests[f.id]
        state.runners[request.runner].suspect = not state.runners[request.runner].exited
        _release(state, request)
    elif f.kind == "measure":
        state.measuring = False
        state.measured_t = event.t
    elif f.kind == "quarantine":
        del state.quarantine[f.id]
    elif f.kind == "turn":
        state.demands[f.id].turn_due = NEVER
    elif f.kind == "probe" and not state.runners[f.id].suspect:
        _watched(state, state.runners[f.id], False)


HANDLERS: dict[type, Callable[[State, Event, Any], None]] = {
    c.RequestArrived: _arrived,
    c.RequestDispatched: _dispatched,
    c.UpstreamEnded: _upstream_ended,
    c.RequestCompleted: _completed,
    c.RequestQueued: _queued,
    c.RequestRequeued: _requeued,
    c.RequestFailed: _ender("fail"),
    c.RequestCancelled: _ender("cancel"),
    c.RequestTimedOut: _ender("time_out"),
    c.RequestRejected: _ender("reject"),
    c.RequestInterrupted: _ender("interrupt"),
    c.ClientGone: _ignored,
    c.CancelRequested: _cancel_requested,
    c.RunnerLoad: _load,
    c.RunnerLeased: _leased,
    c.ProcessSpawned: _spawned,
    c.ProcessExited: _exited,
    c.SpawnFailed: _spawn_failed,
    c.LeaseRefused: _lease_refused,
    c.ProbeAnswered: _probe_answered,
    c.RunnerProbe: _probe,
    c.RunnerDrain: _drain,
    c.RunnerStop: _stop,
    c.RunnerKill: _kill,
    c.RunnerStuck: _stuck,
    c.RunnerUnloaded: _ended_runner("unloaded"),
    c.RunnerFailed: _ended_runner("failed"),
    c.RunnerLost: _lost,
    c.ModelCooling: _cooling,
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
    c.OperationEnded: _operation_ended,
    c.DaemonStarted: _daemon_started,
    c.DaemonStopped: _ignored,
    c.ConfigChanged: _config_changed,
    c.StopRequested: _stop_requested,
    c.DeadlinePassed: _deadline_passed,
    c.LogResumed: _ignored,
    c.LogTailLost: _ignored,
    c.BreachRecorded: _breach_recorded,
}
