"""Folding what happens to runners: load, processes, probes, drain, stop, end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from events import catalogue as c
from events.catalogue import NEVER, Event
from events.limits import (
    FOOTPRINTS,
    KILL_NS,
    LEASE_TRIES,
    MEMORY_WORDS,
    PROBE_NS,
    RECLAIM_NS,
    REPROBE_NS,
    STOP_NS,
    UPSTREAM_CLOSE_NS,
)
from statemachines.estimate import HOST
from statemachines.invariants import Breach, check_ended, check_lease, check_load, check_stop
from statemachines.moves import Handlers, idle, loaded, loads_on, runner_to, serve, watched
from statemachines.parts import Cooling, Runner
from statemachines.room import next_ports
from statemachines.runner import RunnerState
from statemachines.state import State, satisfies, spec_key, waiting_for

OF_PROCESS = ("load", "stall", "keep_alive", "linger", "drain", "stop", "kill", "probe", "reprobe", "watch")
"""The deadlines of a runner that mean nothing once its process is gone."""
OF_MEMORY = ("memory", "poll")
"""Those that outlast it: the wait for its memory to come back."""


def _load(state: State, event: Event, d: c.RunnerLoad) -> None:
    check_load(state, d)
    runner = Runner(
        event.subject, d.model, d.digest, d.options, d.reserved_bytes, d.slots, d.keep_alive_ns, d.load_ns,
        d.port, d.socket, d.alone, event.t, d.shard_ports, d.stall_ns, larger=d.larger,
        less=d.less, wanted=d.reason in ("operator", "instances"),
    )  # fmt: skip
    if not state.runners:
        gpus = {name: reading for name, reading in state.readings.items() if name != HOST}
        runner.free_bytes = {name: reading.free_bytes for name, reading in gpus.items() if reading.reliable}
    elif len(state.runners) == 1:
        _joined(next(iter(state.runners.values())))
    state.runners[runner.id] = runner
    state.models.setdefault(d.model, {})[runner.id] = runner
    loads_on(state, runner)
    if d.alone:
        state.alone[runner.id] = None
    for port in runner.ports:
        state.leased[port] = runner.id
        state.next_port = port + 1
    state.deadlines.arm(("load", runner.id), event.t + d.load_ns)
    progressed(state, runner)
    state.counts["loads"] = state.counts.get("loads", 0) + 1
    for demand in waiting_for(state, runner.model):
        if (demand.turn_due != NEVER or demand.short_t != NEVER) and satisfies(runner, demand):
            demand.turn_due = demand.short_t = NEVER
            state.deadlines.disarm(("turn", demand.key))
    serve(state, runner, +1)


def _joined(runner: Runner) -> None:
    """Another is loaded beside the only runner: what GPUs lack from now on may be either's. What was seen of
    half a load is not all that it takes, so that what is reserved for it counts as seen, too."""
    if runner.state is RunnerState.loading:
        for device in runner.free_bytes:
            if device in runner.peak_bytes:
                runner.peak_bytes[device] = runner.hold_bytes(device)
    runner.free_bytes = {}


def _leased(state: State, event: Event, d: c.RunnerLeased) -> None:
    runner = state.runners[d.runner]
    check_lease(state, (d.port, *d.shard_ports), runner)
    _give_ports_back(state, runner)
    runner.port, runner.shard_ports = d.port, d.shard_ports
    for port in runner.ports:
        state.leased[port] = runner.id
    runner.lease_tries += 1
    state.next_port = max(runner.ports) + 1


def _give_ports_back(state: State, runner: Runner) -> None:
    for port in runner.ports:
        del state.leased[port]


def _spawned(state: State, event: Event, f: c.ProcessSpawned) -> None:
    runner = state.runners.get(f.process.runner)
    shard = f.process.shard
    if runner is None or runner.exited or shard in runner.ended or shard > len(runner.shard_ports):
        return
    runner.processes[shard] = f.process
    progressed(state, runner)
    if state.refused_ports:
        for port in runner.ports:
            state.refused_ports.pop(port, None)


def _exited(state: State, event: Event, f: c.ProcessExited) -> None:
    runner = state.runners.get(f.runner)
    if runner is None or runner.exited:
        return
    known = runner.processes.pop(f.shard, None) is not None
    if f.shard == 0:
        runner.status = f.status
    if known and runner.state is RunnerState.loading:
        runner.short = f.oom_kill or ran_short(f.output)
    if not runner.processes:
        _gone(state, runner, "exited", f.output)
    elif known:
        runner.ended[f.shard] = None
        _says(runner, f.output)


def _spawn_failed(state: State, event: Event, f: c.SpawnFailed) -> None:
    runner = state.runners.get(f.runner)
    if runner is not None and not runner.exited and not runner.processes:
        _gone(state, runner, "spawn_failed", f.error)


def _lease_refused(state: State, event: Event, f: c.LeaseRefused) -> None:
    runner = state.runners.get(f.runner)
    if runner is None or runner.exited or runner.processes or f.port not in runner.ports:
        return
    state.refused_ports[f.port] = None
    view = state.model(runner.model)
    # With no other port to try it is gone: it has no process whose exit would say so.
    last = view is None or view.fixed_port == f.port or not next_ports(state, 1)
    if last or runner.lease_tries >= LEASE_TRIES or runner.state is not RunnerState.loading:
        _gone(state, runner, "port_taken", f"port {f.port} is in use by another program")


def ran_short(output: str) -> bool:
    """Whether a server's last lines say that it ran out of memory."""
    text = output.lower()
    return any(words in text for words in MEMORY_WORDS)


def _gone(state: State, runner: Runner, reason: str, output: str) -> None:
    """No process of the runner is left."""
    was_live = runner.live
    loaded(state, runner)
    runner_to(state, runner, "exited")
    runner.exited = True
    runner.exit_t = state.gone_t = state.t
    state.measured_t = NEVER
    runner.suspect = False
    if not runner.verdict:
        runner.verdict, runner.reason = "failed", reason
    _says(runner, output)
    for device in runner.reserved_bytes | runner.peak_bytes:
        if device != "host" and device in state.readings:
            runner.exit_free_bytes[device] = state.readings[device].free_bytes
    if was_live:
        serve(state, runner, -1)
    for kind in OF_PROCESS:
        state.deadlines.disarm((kind, runner.id))
    state.deadlines.arm(("memory", runner.id), state.t + RECLAIM_NS)
    for id in runner.held:
        state.deadlines.arm(("close", id), state.t + UPSTREAM_CLOSE_NS)


def _says(runner: Runner, output: str) -> None:
    """The last lines of a runner that never became ready: of the process that ended first."""
    if runner.ready_t == NEVER:
        runner.output = runner.output or output


def _progressed(state: State, event: Event, f: c.LoadProgressed) -> None:
    runner = state.runners.get(f.runner)
    if runner is not None:
        progressed(state, runner)


def progressed(state: State, runner: Runner) -> None:
    """A load has got on: it may now stand still for as long as it may at most."""
    if runner.state is RunnerState.loading and runner.stall_ns:
        state.deadlines.arm(("stall", runner.id), state.t + runner.stall_ns)


def _probe_answered(state: State, event: Event, f: c.ProbeAnswered) -> None:
    runner = state.runners.get(f.runner)
    if runner is None or runner.exited:
        return
    t, due = event.t, state.deadlines
    if runner.state is RunnerState.loading:
        if f.healthy and runner.whole:
            runner_to(state, runner, "healthy")
            loaded(state, runner)
            runner.ready_t = t
            state.load_cost_ns[runner.model] = t - runner.load_t
            state.crowded.pop(runner.model, None)
            due.disarm(("load", runner.id))
            due.disarm(("stall", runner.id))
            idle(state, runner)
        return
    if runner.state is RunnerState.stopping:
        return  # the answer to a question that no longer matters
    due.disarm(("probe", runner.id))
    due.disarm(("reprobe", runner.id))
    if runner.suspect:
        runner.suspect = not f.healthy
        if not f.healthy:
            due.arm(("reprobe", runner.id), t + REPROBE_NS)
            due.arm(("probe", runner.id), max(t, runner.probe_due))
    if runner.held or not runner.suspect:
        watched(state, runner, f.healthy or f.moved)


def _probe(state: State, event: Event, d: c.RunnerProbe) -> None:
    runner = state.runners[d.runner]
    state.deadlines.disarm(("reprobe", runner.id))
    if d.reason != "again":
        runner.probe_due = event.t + PROBE_NS
    state.deadlines.arm(("probe", runner.id), runner.probe_due)


def _drain(state: State, event: Event, d: c.RunnerDrain) -> None:
    runner = state.runners[d.runner]
    runner_to(state, runner, "drain")
    runner.reason, runner.drain_t, runner.drain_due = d.reason, event.t, d.deadline_ns
    state.deadlines.disarm(("keep_alive", runner.id))
    state.deadlines.disarm(("linger", runner.id))
    if d.deadline_ns:
        state.deadlines.arm(("drain", runner.id), d.deadline_ns)
    serve(state, runner, -1)


def _stop(state: State, event: Event, d: c.RunnerStop) -> None:
    runner = state.runners[d.runner]
    check_stop(runner, d.verdict, event.t)
    was_live = runner.live
    loaded(state, runner)
    runner_to(state, runner, "stop")
    runner.verdict, runner.reason = d.verdict, d.reason
    runner.suspect = False
    if runner.drain_t != NEVER:
        state.drain_cost_ns[runner.model] = event.t - runner.drain_t
    for kind in ("load", "stall", "keep_alive", "linger", "drain", "probe", "reprobe", "watch"):
        state.deadlines.disarm((kind, runner.id))
    state.deadlines.arm(("stop", runner.id), event.t + STOP_NS)
    if was_live:
        serve(state, runner, -1)


def _kill(state: State, event: Event, d: c.RunnerKill) -> None:
    runner_to(state, state.runners[d.runner], "kill")
    state.deadlines.arm(("kill", d.runner), event.t + KILL_NS)


def _stuck(state: State, event: Event, d: c.RunnerStuck) -> None:
    runner = state.runners[d.runner]
    runner_to(state, runner, "stuck")
    runner.stuck = True
    for id in runner.held:  # no exit will end their exchanges
        state.deadlines.arm(("close", id), event.t + UPSTREAM_CLOSE_NS)


def _ended_runner(trigger: str) -> Callable[[State, Event, Any], None]:
    def ended(state: State, event: Event, d: Any) -> None:
        runner = state.runners[d.runner]
        check_ended(runner)
        runner_to(state, runner, trigger)
        if d.footprint_bytes:
            _learn(state, spec_key(runner.digest, runner.options), d.footprint_bytes)
        _remove(state, runner)

    return ended


def _learn(state: State, spec: str, footprint_bytes: dict[str, int]) -> None:
    """Keep a footprint, and forget the oldest if there are too many."""
    state.footprints.pop(spec, None)
    state.footprints[spec] = footprint_bytes
    if len(state.footprints) > FOOTPRINTS:
        del state.footprints[next(iter(state.footprints))]


def _lost(state: State, event: Event, d: c.RunnerLost) -> None:
    runner = state.runners[d.runner]
    was_live = runner.live
    if runner.held:
        raise Breach(f"{runner.id} lost with slots in use")
    runner_to(state, runner, "lost")
    if was_live:
        serve(state, runner, -1)
    for kind in OF_PROCESS:  # nobody has seen its exit
        state.deadlines.disarm((kind, runner.id))
    _remove(state, runner)


def _remove(state: State, runner: Runner) -> None:
    del state.runners[runner.id], state.leaving[runner.id]
    loaded(state, runner)
    _give_ports_back(state, runner)
    state.alone.pop(runner.id, None)
    for device in runner.reserved_bytes | runner.peak_bytes:
        state.held[device] -= runner.hold_bytes(device)
    mine = state.models[runner.model]
    del mine[runner.id]
    if not mine:
        del state.models[runner.model]
    for kind in OF_MEMORY:
        state.deadlines.disarm((kind, runner.id))
    for operation in state.operations.values():
        operation.runners.pop(runner.id, None)
    name = runner.state.value + "_runners"
    state.counts[name] = state.counts.get(name, 0) + 1


def _cooling(state: State, event: Event, d: c.ModelCooling) -> None:
    state.crowded.pop(d.model, None)
    state.cooling[d.model] = Cooling(d.runner, d.failures, d.until_ns, d.message)
    state.deadlines.arm(("cool", d.model), d.until_ns)


def _crowded(state: State, event: Event, d: c.ModelCrowded) -> None:
    if d.model in state.crowded:
        raise Breach(f"{d.model} ran out of memory alone, and is tried again")
    state.crowded[d.model] = None


HANDLERS: Handlers = {
    c.ModelCrowded: _crowded,
    c.RunnerLoad: _load,
    c.RunnerLeased: _leased,
    c.ProcessSpawned: _spawned,
    c.ProcessExited: _exited,
    c.SpawnFailed: _spawn_failed,
    c.LeaseRefused: _lease_refused,
    c.LoadProgressed: _progressed,
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
}
