"""What a stretch of a log says of the world, apart from what was decided in it: who asked for what and when,
how each process, exchange and measurement went, what other programs held. `rerun` plays it again.

A *seen* time is as it was recorded. Where a stretch does not say it (a request that was never served, a load
that was given up) something is put in its place, by rules that `Recording` keeps, and counted.
"""

from __future__ import annotations

from typing import Any

import msgspec

from events import catalogue as c
from events.catalogue import LEASE, NEVER, Event, Fact, Option, Reading
from events.limits import S
from statemachines.parts import Runner
from statemachines.runner import RunnerState
from statemachines.state import State

CRASH_NS = S
"""An exchange that ends incomplete so shortly before its runner's exit was ended by that: a broken connection
is noticed before the death of a process is."""


class Behaviour(msgspec.Struct):
    """How one incarnation was seen to behave. Times are scheduler time, ns; NEVER: it was not seen to."""

    id: str
    model: str
    load_t: int
    options: dict[str, Option] = {}
    spawn_t: int = NEVER
    ready_t: int = NEVER
    progress_t: int = NEVER
    stop_t: int = NEVER
    stop_reason: str = ""
    kill_t: int = NEVER
    exit_t: int = NEVER
    shard_t: int = NEVER
    """When the first of its shards ended by itself."""
    back_t: int = NEVER
    """When its memory was seen to be free again, or given up."""
    words: str = ""
    spawn_failed: bool = False
    lost: bool = False
    """It did not outlive the daemon."""
    used_bytes: dict[str, int] = {}
    """The most that was measured on each device."""
    reserved_bytes: dict[str, int] = {}
    probes: list[tuple[int, int, bool]] = []
    """When its health was asked for, when it answered (NEVER: not), and whether it was well."""
    looks: int = 0
    """Measurements since its exit."""

    @property
    def crashed(self) -> bool:
        """It ended though nobody had told it to."""
        return self.exit_t != NEVER and self.stop_t == NEVER and not self.spawn_failed and not self.lost


class Attempt(msgspec.Struct):
    """One exchange of a request, as it was seen."""

    runner: str
    sent_t: int
    end_t: int = NEVER
    complete: bool = False
    bytes_to_client: int = 0
    error: str = ""
    cut_t: int = NEVER
    """When its request or its runner ended, or its lease was revoked, and it with that; NEVER: it came to its
    end by itself."""
    revoked_t: int = NEVER
    """Of a lease: when its holder was told to let go."""
    back_ns: int = S
    """Of a lease: how long after a start of the daemon its holder came back; NEVER: he did not."""


class Arrival(msgspec.Struct):
    """A request of the stretch."""

    id: str
    t: int
    model: str


class Input(msgspec.Struct):
    """A fact of the world that no decision led to, as it is to be submitted again."""

    t: int
    fact: Fact
    id: str = ""
    """The request that arrives with it."""


class Restart(msgspec.Struct):
    """A start of the daemon after the first of a log."""

    down_t: int
    """When the daemon before was seen last."""
    lost: dict[str, None]
    """Runners that did not outlive it."""


class Measure(msgspec.Struct):
    """A measurement."""

    t: int
    devices: dict[str, Reading]
    used_bytes: dict[str, int]
    """What runners used of each device in all."""


class Recorder:
    """Notes every event of every step of the stretch, with the state after the step."""

    def __init__(self, state: State) -> None:
        """`state`: before the first event that is noted."""
        self.inputs: list[Input] = []
        self.restarts: dict[int, Restart] = {}
        """By the place of the start among the inputs."""
        self.arrivals: list[Arrival] = []
        self.attempts: dict[str, list[Attempt]] = {}
        self.behaviours: dict[str, Behaviour] = {}
        self.loads: dict[str, list[str]] = {}
        """By model, the runners that were loaded in the stretch."""
        self.measure_ns: list[int] = []
        """How long each measurement took that was asked for; NEVER: it never came."""
        self.measures: list[Measure] = []
        self.ends: dict[str, int] = {}
        """When each request ended."""
        self.refused = 0
        """Arrivals that got no further than a blocked log."""
        self.rules: dict[int, None] = {}
        self.first_t = self.last_t = state.t
        self.pools = {r.id: pool_of(r.model, r.kind) for r in state.requests.values()}
        """Of each request: among whom it is counted where times stand in for each other."""
        self._started_t = NEVER
        self._leaving: dict[str, Behaviour] = {}
        """Those whose processes are gone, and whose memory has not been seen to be back."""
        self._asked_t = NEVER
        if state.measuring:
            self._asks(state.measure_t)
        for runner in state.runners.values():
            self._known(runner)

    def _known(self, runner: Runner) -> None:
        """A runner that was there before."""
        seen = self.behaviours[runner.id] = Behaviour(
            runner.id,
            runner.model,
            runner.load_t,
            runner.options,
            ready_t=runner.ready_t,
            exit_t=runner.exit_t,
        )
        seen.reserved_bytes, seen.used_bytes = dict(runner.reserved_bytes), dict(runner.peak_bytes)
        if runner.state in (RunnerState.stopping, RunnerState.reclaiming):
            seen.stop_t = self.first_t
        if runner.exited:
            self._leaving[runner.id] = seen
        for request, t in runner.held.items():
            self.attempts[request] = [Attempt(runner.id, t)]

    def note(self, state: State, event: Event) -> None:
        """Take an event."""
        body: Any = event.body
        kind = type(body)
        handler = HANDLERS.get(kind)
        if handler is not None:
            handler(self, state, event, body)
        elif kind in INPUTS:
            self.inputs.append(Input(event.t, body))
        self.last_t = event.t

    # --- requests ----------------------------------------------------------------------------------------

    def _arrived(self, state: State, event: Event, f: c.RequestArrived) -> None:
        self.arrivals.append(Arrival(event.subject, event.t, f.model))
        self.pools[event.subject] = pool_of(f.model, f.kind)
        self.inputs.append(Input(event.t, f, event.subject))

    def _dispatched(self, state: State, event: Event, d: c.RequestDispatched) -> None:
        self.attempts.setdefault(d.request, []).append(Attempt(d.runner, event.t))

    def _upstream_ended(self, state: State, event: Event, f: c.UpstreamEnded) -> None:
        attempts = self.attempts.get(f.request)
        if not attempts or attempts[-1].runner != f.runner or attempts[-1].end_t != NEVER:
            return
        last = attempts[-1]
        last.end_t, last.complete, last.error = event.t, f.complete, f.error
        last.bytes_to_client = f.bytes_to_client
        runner = self.behaviours.get(f.runner)
        if last.revoked_t != NEVER and f.complete:
            last.cut_t = last.revoked_t
        elif f.request in self.ends and self.ends[f.request] >= last.sent_t and not f.complete:
            last.cut_t = self.ends[f.request]
        elif not f.complete and runner is not None and (runner.exit_t != NEVER or runner.stop_t != NEVER):
            gone_t = runner.stop_t if f.error == c.CUT_OFF else runner.exit_t
            last.cut_t = max(last.sent_t, gone_t if gone_t != NEVER else event.t)

    def _revoked(self, state: State, event: Event, d: c.LeaseRevoked) -> None:
        attempts = self.attempts.get(d.request)
        if attempts and attempts[-1].revoked_t == NEVER:
            attempts[-1].revoked_t = event.t

    def _resumed_lease(self, state: State, event: Event, f: c.LeaseResumed) -> None:
        attempts = self.attempts.get(f.request)
        if attempts and attempts[-1].back_ns == NEVER and self._started_t != NEVER:
            attempts[-1].back_ns = event.t - self._started_t

    def _ended(self, state: State, event: Event, d: Any) -> None:
        self.ends[d.request] = event.t

    # --- runners -----------------------------------------------------------------------------------------

    def _load(self, state: State, event: Event, d: c.RunnerLoad) -> None:
        seen = Behaviour(event.subject, d.model, event.t, d.options, reserved_bytes=dict(d.reserved_bytes))
        self.behaviours[event.subject] = seen
        self.loads.setdefault(d.model, []).append(event.subject)

    def _spawned(self, state: State, event: Event, f: c.ProcessSpawned) -> None:
        seen = self.behaviours.get(f.runner)
        if seen is not None and f.process.shard == 0 and seen.spawn_t == NEVER:
            seen.spawn_t = event.t

    def _spawn_failed(self, state: State, event: Event, f: c.SpawnFailed) -> None:
        seen = self.behaviours.get(f.runner)
        if seen is not None and seen.spawn_t == NEVER:
            seen.spawn_t = seen.exit_t = event.t
            seen.spawn_failed, seen.words = True, f.error

    def _progressed(self, state: State, event: Event, f: c.LoadProgressed) -> None:
        seen = self.behaviours.get(f.runner)
        if seen is not None:
            seen.progress_t = event.t

    def _probe(self, state: State, event: Event, d: c.RunnerProbe) -> None:
        self.behaviours[d.runner].probes.append((event.t, NEVER, True))

    def _probed(self, state: State, event: Event, f: c.ProbeAnswered) -> None:
        seen, runner = self.behaviours.get(f.runner), state.runners.get(f.runner)
        if seen is None or runner is None:
            return
        if seen.ready_t == NEVER:
            seen.ready_t = runner.ready_t
        elif seen.probes and seen.probes[-1][1] == NEVER:
            seen.probes[-1] = (seen.probes[-1][0], event.t, f.healthy)
        else:
            seen.probes.append((event.t, event.t, f.healthy))

    def _stop(self, state: State, event: Event, d: c.RunnerStop) -> None:
        seen = self.behaviours[d.runner]
        if seen.stop_t == NEVER:
            seen.stop_t, seen.stop_reason = event.t, d.reason

    def _kill(self, state: State, event: Event, d: c.RunnerKill) -> None:
        self.behaviours[d.runner].kill_t = event.t

    def _exited(self, state: State, event: Event, f: c.ProcessExited) -> None:
        seen, runner = self.behaviours.get(f.runner), state.runners.get(f.runner)
        if seen is None or seen.exit_t != NEVER:
            return
        if f.shard and seen.stop_t == NEVER and seen.shard_t == NEVER:
            seen.shard_t = event.t
        seen.words = seen.words or f.output
        if runner is None or runner.exited:
            seen.exit_t = event.t
            self._leaving[seen.id] = seen

    def _gone(self, state: State, event: Event, d: Any) -> None:
        seen = self.behaviours[d.runner]
        self._leaving.pop(seen.id, None)
        seen.exit_t = event.t if seen.exit_t == NEVER else seen.exit_t
        seen.back_t = seen.exit_t if seen.looks <= 1 else event.t
        for device, size in getattr(d, "footprint_bytes", {}).items():
            seen.used_bytes[device] = max(size, seen.used_bytes.get(device, 0))

    def _lost(self, state: State, event: Event, d: c.RunnerLost) -> None:
        if self.restarts:
            self.restarts[next(reversed(self.restarts))].lost[d.runner] = None
        self.behaviours[d.runner].lost = True
        self._gone(state, event, d)

    # --- memory ------------------------------------------------------------------------------------------

    def _asks(self, t: int) -> None:
        self._asked_t = t
        self.measure_ns.append(NEVER)

    def _measure(self, state: State, event: Event, d: c.MemoryMeasure) -> None:
        self._asks(event.t)

    def _measured(self, state: State, event: Event, f: c.MemoryMeasured) -> None:
        if self._asked_t == NEVER:
            self.inputs.append(Input(event.t, f))
        else:
            self.measure_ns[-1] = event.t - self._asked_t
            self._asked_t = NEVER
        used: dict[str, int] = {}
        for id, measured in f.runners.items():
            seen, runner = self.behaviours.get(id), state.runners.get(id)
            # Where a driver does not say what each process uses, what it holds counts.
            held = {d: runner.hold_bytes(d) for d in runner.reserved_bytes} if runner is not None else {}
            for device, size in {**held, **measured}.items():
                used[device] = used.get(device, 0) + size
                if seen is not None:
                    seen.used_bytes[device] = max(size, seen.used_bytes.get(device, 0))
        self.measures.append(Measure(event.t, f.devices, used))
        for seen in self._leaving.values():
            seen.looks += 1

    def _deadline(self, state: State, event: Event, f: c.DeadlinePassed) -> None:
        if f.kind == "measure":
            self._asked_t = NEVER

    # --- the daemon --------------------------------------------------------------------------------------

    def _started(self, state: State, event: Event, f: c.DaemonStarted) -> None:
        self.rules[f.rules] = None
        self._asked_t, self._started_t = NEVER, event.t
        for request in state.requests.values():
            if request.slot and request.id in self.attempts:  # only leases outlive a start
                self.attempts[request.id][-1].back_ns = NEVER
        self.restarts[len(self.inputs)] = Restart(self.last_t or event.t, {})
        self.inputs.append(Input(event.t, f))

    def _resumed(self, state: State, event: Event, f: c.LogResumed) -> None:
        self.refused += f.refused


def pool_of(model: str, kind: str) -> str:
    """Leases last otherwise than requests do."""
    return f"{model} {LEASE}" if kind == LEASE else model


INPUTS = {
    c.ClientGone, c.CancelRequested, c.LoadRequested, c.UnloadRequested, c.PinRequested, c.ConfigChanged,
    c.StopRequested, c.BreachRecorded,
}  # fmt: skip
"""Facts that are submitted again as they are."""

HANDLERS: dict[type, Any] = {
    c.RequestArrived: Recorder._arrived,
    c.RequestDispatched: Recorder._dispatched,
    c.UpstreamEnded: Recorder._upstream_ended,
    c.LeaseRevoked: Recorder._revoked,
    c.LeaseResumed: Recorder._resumed_lease,
    c.RequestCompleted: Recorder._ended,
    c.RequestFailed: Recorder._ended,
    c.RequestCancelled: Recorder._ended,
    c.RequestTimedOut: Recorder._ended,
    c.RequestRejected: Recorder._ended,
    c.RequestInterrupted: Recorder._ended,
    c.RunnerLoad: Recorder._load,
    c.ProcessSpawned: Recorder._spawned,
    c.SpawnFailed: Recorder._spawn_failed,
    c.LoadProgressed: Recorder._progressed,
    c.RunnerProbe: Recorder._probe,
    c.ProbeAnswered: Recorder._probed,
    c.RunnerStop: Recorder._stop,
    c.RunnerKill: Recorder._kill,
    c.ProcessExited: Recorder._exited,
    c.RunnerUnloaded: Recorder._gone,
    c.RunnerFailed: Recorder._gone,
    c.RunnerLost: Recorder._lost,
    c.MemoryMeasure: Recorder._measure,
    c.MemoryMeasured: Recorder._measured,
    c.DeadlinePassed: Recorder._deadline,
    c.DaemonStarted: Recorder._started,
    c.LogResumed: Recorder._resumed,
}
