"""Playing a recording again through the real scheduler, under another configuration or the same.

The machine is the simulator's. What it was seen to do it does again (`recording`); what is decided is decided
anew. Requests and runners have other ids than they had, since these are numbers of events: they are known by
their place among the arrivals, and among the loads of their model.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from heapq import heappush
from typing import Any, Protocol

import msgspec

from daemon.history.observed import Restart
from daemon.history.recording import Memory, Recording
from events import catalogue as c
from events.catalogue import NEVER, ConfigView, Event, Fact, Reading
from events.limits import MS, PROBE_NS, S
from statemachines.parts import Runner
from statemachines.request import RequestState
from statemachines.runner import RunnerState
from statemachines.scheduler import RULES, Scheduler
from statemachines.simulator import Exchange, Life, Nature, Sim, World
from statemachines.state import State

LAST = 1 << 62
"""Comes after everything else that is planned for a moment."""
KEPT_EVENTS = 10_000
"""Of the events that are made: nobody reads them again."""
TAIL_NS = 30 * 24 * 3600 * S
"""How long the last requests may take to end after the recording has: no policy lets them take so long."""
SLICES = 50
"""How often it is said how far it has come."""

NOTHING: Mapping[str, int] = {}

Change = Callable[[ConfigView], ConfigView]
"""What a configuration becomes."""


class Observer(Protocol):
    """Who looks at what happens."""

    def note(self, state: State, event: Event, at_ns: int) -> object:
        """An event, with the state after its step."""
        ...


class Again(Nature):
    """Behaves as was recorded."""

    def __init__(self, recording: Recording, observers: Sequence[Observer], offset_ns: int) -> None:
        self.recording = recording
        self.observers = observers
        self.offset_ns = offset_ns
        """From scheduler time to UTC."""
        self.arriving = ""
        self.recorded: dict[str, str] = {request: request for request in recording.start.requests}
        """The recorded id of each request."""
        self.now: dict[str, str] = dict(self.recorded)
        """And the other way round."""
        self.lives: dict[str, Life] = {}
        self.loads: dict[str, int] = {}
        """How many runners of each model have been loaded."""
        self.runner_of: dict[tuple[str, int], str] = {}
        """Each of them."""
        self.place_of: dict[str, tuple[str, int]] = {}
        self.probes: dict[str, int] = {}
        self.measured = 0
        self.open = len(recording.start.requests)
        """Requests that have not ended."""

    def life(self, world: World, runner: Runner) -> Life:
        life = self.lives.get(runner.id)
        if life is None:
            life = self.lives[runner.id] = placed(self.recording.life(*self.place_of[runner.id]), runner)
        return life

    def exchange(self, world: World, request: str, runner: Runner) -> Exchange:
        known = self.recording.exchanges[self.recorded[request]]
        attempt: int = world.state.requests[request].attempt
        if attempt <= len(known):
            return known[attempt - 1]
        return Exchange(known[-1].ns)

    def measure_ns(self, world: World) -> int:
        known = self.recording.measure_ns
        if self.measured < len(known):
            self.measured += 1
            return known[self.measured - 1]
        self.measured += 1
        came = [ns for ns in known[:SAMPLE] if ns != NEVER]
        return came[self.measured % len(came)] if came else MS

    def seen(self, world: World, event: Event) -> None:
        body: Any = event.body
        kind = type(body)
        if kind is c.RequestArrived:
            self.recorded[event.subject], self.now[self.arriving] = self.arriving, event.subject
            self.open += 1
        elif kind in ENDED:
            self.open -= 1
        elif kind is c.RunnerLoad:
            n = self.loads.get(body.model, 0)
            self.loads[body.model] = n + 1
            self.runner_of[body.model, n], self.place_of[event.subject] = event.subject, (body.model, n)
        elif kind is c.RunnerProbe:
            self._probed(world, body.runner)
        for observer in self.observers:
            observer.note(world.state, event, event.t + self.offset_ns)
        if len(world.log) > KEPT_EVENTS:
            world.log.clear()

    def _probed(self, world: World, id: str) -> None:
        """It answers as its like did."""
        sim, like = world.alive.get(id), self.like(id)
        if sim is None or like is None:
            return
        nth = self.probes[id] = self.probes.get(id, -1) + 1
        probes = self.recording.behaviours[like].probes
        asked_t, answered_t, healthy = probes[nth] if nth < len(probes) else (0, MS, True)
        sim.life.probe_ns = answered_t - asked_t if answered_t != NEVER else NEVER
        sim.life.sick_ns = NEVER if healthy else 0

    def like(self, id: str) -> str | None:
        """The recorded runner that one stands for."""
        place = self.place_of.get(id)
        if place is None:
            return id if id in self.recording.behaviours else None
        ids = self.recording.loaded.get(place[0], [])
        return ids[place[1]] if place[1] < len(ids) else None


SAMPLE = 1000
"""Measurements whose times come again when more are needed."""

ENDED = {
    c.RequestCompleted, c.RequestFailed, c.RequestCancelled, c.RequestTimedOut, c.RequestRejected,
    c.RequestInterrupted,
}  # fmt: skip


def placed(life: Life, runner: Runner) -> Life:
    """A life of its own, with the memory where it is loaded now."""
    used = life.used_bytes
    if runner.reserved_bytes and used.keys() != runner.reserved_bytes.keys():
        used = dict(runner.reserved_bytes)
    return msgspec.structs.replace(life, used_bytes=used)


class Rerun(World):
    """A recording, played again."""

    def __init__(
        self,
        recording: Recording,
        change: Change,
        observers: Sequence[Observer],
        *,
        sizes_bytes: Mapping[str, int] = NOTHING,
        offset_ns: int = 0,
    ) -> None:
        """`change`: what every configuration becomes; `sizes_bytes`: devices that are to be of at least this
        size, there or not; `offset_ns`: from scheduler time to UTC."""
        self.again = Again(recording, observers, offset_ns)
        super().__init__(self.again, {}, check=False)
        self.recording = recording
        self.change = change
        self.sizes_bytes = sizes_bytes
        self.scheduler = Scheduler(copy.deepcopy(recording.start))
        self.t = recording.start.t
        self.unmatched = 0
        """Facts about runners that there are not."""
        self._reading = 0
        self._boot = recording.start.boot_id
        self._epoch = 1
        self._take_over()
        self._planned = 0
        self._plan()

    def play(self, tell: Callable[[int], None] = lambda percent: None) -> None:
        """To the end of the recording, and on until every request has ended. `tell`: how far it is, %."""
        self._reconfigure()
        first, last = self.recording.first_t, self.recording.last_t
        for i in range(SLICES):
            tell(i * 100 // SLICES)
            self.run(first + (last - first) * i // SLICES)
        self.run(last)
        pause = S
        while self.again.open and not self.quiet() and self.t < last + TAIL_NS:
            self.run(self.t + pause)
            pause = min(2 * pause, 60 * S) if self.t > last + 3600 * S else S

    # --- what is there at first --------------------------------------------------------------------------

    def _take_over(self) -> None:
        """The runners, exchanges and questions that were there when the recording begins."""
        recording, state = self.recording, self.state
        self.leases |= {r.id: None for r in state.requests.values() if r.kind == c.LEASE}
        for runner in state.runners.values():
            self._take_over_runner(runner)
            for request in runner.held:
                self._take_over_exchange(request, runner)
        if state.measuring:
            known = recording.measure_ns[0] if recording.measure_ns else MS
            self.again.measured = 1
            if known != NEVER:
                self.at(state.measure_t + known, lambda: self.submit(self.measurement()))

    def _take_over_runner(self, runner: Runner) -> None:
        seen = self.recording.behaviours[runner.id]
        life = self.again.lives[runner.id] = self.lives[runner.id] = self.recording.remaining(runner)
        if runner.exited:
            self.lingering[runner.id] = (
                dict(seen.used_bytes),
                seen.back_t if seen.back_t != NEVER else self.t,
            )
            return
        if not runner.processes:
            self.after(life.spawn_ns, partial(self._spawn, runner.id, runner.ports))
            return
        sim = self.alive[runner.id] = Sim(dict(runner.processes), life, self.t)
        if runner.state is RunnerState.stopping:
            self._stop(runner.id)
        elif runner.state is RunnerState.loading:
            self.after(life.ready_ns, partial(self._ready, runner.id), lasting=True)
            if runner.stall_ns:
                self._progress(runner.id)
        self.after(life.exit_ns, partial(self._exits, runner.id), lasting=True)
        if ("probe", runner.id) in self.state.deadlines and life.probe_ns != NEVER:
            asked_t = runner.probe_due - PROBE_NS
            self.after(max(0, asked_t + life.probe_ns - self.t), partial(self._answer, runner.id))
        sim.stopped = runner.state is RunnerState.stopping

    def _take_over_exchange(self, request: str, runner: Runner) -> None:
        exchange = self.recording.exchanges[request][0]
        self.exchanges[request] = (runner.id, exchange)
        asked = self.state.requests[request]
        left_ns = runner.held[request] + exchange.ns - self.t
        if asked.state is not RequestState.dispatched:  # it has ended: only its slot is still to come back
            end_t = self.recording.attempts[request][0].end_t
            left_ns = end_t - self.t if end_t != NEVER else NEVER
        ended = partial(
            self._ended, request, runner.id, exchange.complete, exchange.bytes_to_client, exchange.error
        )
        self.after(left_ns if left_ns == NEVER else max(0, left_ns), ended)

    def _reconfigure(self) -> None:
        """The configuration that there is at first, changed; what is loaded has the slots of the new one, as
        if it had been loaded under it."""
        state = self.state
        old, new = state.config, self.change(state.config)
        if old == new or not state.seq:
            return
        for runner in state.runners.values():
            before, after = old.models.get(runner.model), new.models.get(runner.model)
            if before is not None and after is not None:
                runner.slots = after.slots if runner.slots == before.slots else runner.slots
        self.submit(c.ConfigChanged(new, "what-if"))

    # --- what happens ------------------------------------------------------------------------------------

    def _plan(self) -> None:
        """What comes in up to the next start of the daemon, which goes on from there."""
        inputs, restarts = self.recording.inputs, self.recording.restarts
        while self._planned < len(inputs):
            each, restart = inputs[self._planned], restarts.get(self._planned)
            self._planned += 1
            fact = each.fact
            if restart is not None:
                # After whatever else happened at the moment at which the daemon was seen last.
                action: Callable[[], object] = partial(self._restart, each.t, fact, restart)
                heappush(self._agenda, (max(self.t, restart.down_t), LAST, 0, action))
                return
            if isinstance(fact, c.RequestArrived):
                self.at(each.t, partial(self._arrive, each.id, fact))
            elif isinstance(fact, c.MemoryMeasured):
                self.at(each.t, lambda: self.submit(self.measurement()))
            else:
                self.at(each.t, partial(self._submit, fact))

    def _arrive(self, id: str, fact: c.RequestArrived) -> None:
        self.again.arriving = id
        self.submit(fact)

    def _submit(self, fact: Fact) -> None:
        """A fact about who there is now."""
        if isinstance(fact, c.ClientGone | c.CancelRequested):
            fact = msgspec.structs.replace(fact, request=self.again.now.get(fact.request, fact.request))
        elif isinstance(fact, c.ConfigChanged):
            fact = msgspec.structs.replace(fact, view=self.change(fact.view))
        elif isinstance(fact, c.UnloadRequested) and fact.runner:
            place = self.recording.nth.get(fact.runner)
            runner = self.again.runner_of.get(place, "") if place is not None else fact.runner
            if runner not in self.state.runners:
                self.unmatched += 1
                return
            fact = msgspec.structs.replace(fact, runner=runner)
        self.submit(fact)

    def _restart(self, t: int, fact: Any, restart: Restart) -> None:
        """The daemon was gone, and is there again. What had outlived it outlives it now."""
        self.t = max(self.t, t)
        self.away |= {id: each for id, each in self.exchanges.items() if self._is_lease(id)}
        self.exchanges.clear()
        default = fact.boot_id == self._boot and (bool(fact.survivors) or not restart.lost)
        self._boot = fact.boot_id
        outlived = {process.runner for process in fact.survivors}
        for id, sim in list(self.alive.items()):
            like = self.again.like(id)
            stays = True if like in outlived else False if like in restart.lost else default
            if not stays or sim.opened_t == NEVER:
                self._dies(id)
        self._epoch += 1
        found = [sim.processes.values() for id, sim in self.alive.items() if id in self.state.runners]
        survivors = tuple(process for processes in found for process in processes)
        self.submit(c.DaemonStarted(RULES, fact.policy, fact.boot_id, fact.version, fact.node, survivors))
        for runner in list(self.state.runners.values()):
            if runner.state is RunnerState.stopping and runner.processes:
                self._stop(runner.id)
        for id, (_, exchange) in list(self.away.items()):
            self.after(exchange.back_ns, partial(self._resume, id))
        self._plan()

    def _resume(self, id: str) -> None:
        """The holder of a lease is back, and has it for as long as he had it."""
        mine = self.away.pop(id, None)
        if mine is None or not self._is_lease(id):
            return
        self.submit(c.LeaseResumed(id, "its holder"))
        if self._is_lease(id):
            self.exchanges[id] = mine
            left_ns = self.state.runners[mine[0]].held[id] + mine[1].ns - self.t
            self.after(max(0, left_ns), partial(self._ended, id, mine[0], True, 0))

    def measurement(self) -> c.MemoryMeasured:
        """What the devices report now: what others used then, what ours use now."""
        memory = self._memory()
        larger = {name: max(size, memory.total_bytes.get(name, 0)) for name, size in self.sizes_bytes.items()}
        self.devices, self.foreign = {**memory.total_bytes, **larger}, memory.foreign_bytes
        measured = super().measurement()
        devices = {
            name: Reading(reading.total_bytes, reading.free_bytes, memory.reliable.get(name, True))
            for name, reading in measured.devices.items()
        }
        return c.MemoryMeasured(devices, measured.runners)

    def _memory(self) -> Memory:
        readings = self.recording.readings
        while self._reading + 1 < len(readings) and readings[self._reading + 1].t <= self.t:
            self._reading += 1
        return readings[self._reading] if readings else Memory(0, {}, {}, {})
