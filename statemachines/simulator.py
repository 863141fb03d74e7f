"""A simulated machine around the core: its decisions have consequences, in virtual time.

`World` carries out what the scheduler decides as a driver would, on processes, exchanges and memory that are
only pretended. How each of them behaves (loads, crashes, hangs, lies, refuses to stop) is asked of a
`Nature`, once per incarnation and per exchange; this one's is obedient, tests bring others. There is no
chance here but what a nature brings: the same nature, the same log.

After every step the whole state is checked (`check_all`), and `World.restart` is what a death of the daemon
does: the state is folded from the log, must be what it was, and is what a snapshot keeps of it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from heapq import heappop, heappush
from typing import Any

import msgspec

from events import catalogue as c
from events.catalogue import LEASE, NEVER, Event, Fact, Process, Reading
from events.limits import LOAD_LOOKS, MS, S
from statemachines.carried import carry, restore
from statemachines.invariants import check_all, require
from statemachines.parts import Runner
from statemachines.replay import fold
from statemachines.request import RequestState
from statemachines.runner import RunnerState, why_cut
from statemachines.scheduler import RULES, Scheduler
from statemachines.state import canonical

STILL_STEPS = 100_000
"""Steps without time passing: more is a loop, not a burst."""


class Life(msgspec.Struct):
    """How one incarnation behaves. A time that is NEVER: it does not."""

    spawn: str = "ok"
    """"ok", "failed" or "taken": another program has its port."""
    spawn_ns: int = 2 * MS
    ready_ns: int = 5 * S
    """From the opened gate to the first healthy answer."""
    progress_ns: int = NEVER
    """From the opened gate: until then its load is seen to get on, if anybody looks."""
    exit_ns: int = NEVER
    """From the opened gate to an exit of its own."""
    words: str = "out of luck"
    """What it says if it exits before it is ready."""
    stop_ns: int = 100 * MS
    """From the stop signal to its exit."""
    kill_ns: int = 5 * MS
    """From SIGKILL to its exit: a process in a broken driver takes long, or never dies."""
    probe_ns: int = MS
    sick_ns: int = NEVER
    """From the opened gate: from then on its probes say "unhealthy"."""
    used_bytes: dict[str, int] = {}
    seen: bool = True
    """Its processes are known to be what uses them: not so of a container's."""
    return_ns: int = 0
    """From its exit to its memory being seen free."""
    survives: bool = True
    """A death of the daemon."""
    shard_ns: int = NEVER
    """From the opened gates to the exit of one of its shards; the others go when they are told to."""
    shard_survives: bool = True
    """A death of the daemon, as the rest of it does."""


class Exchange(msgspec.Struct):
    """How one upstream exchange goes."""

    ns: int = S
    """From its dispatch to its end. NEVER: not before its request, or its runner, ends."""
    complete: bool = True
    bytes_to_client: int = 100
    close_ns: int = MS
    """From the end of its request or runner to its own. NEVER: the relay never says it."""
    heeds_ns: int = 100 * MS
    """Of a lease, whose `ns` is how long it is wanted: from its revocation to its being let go. NEVER: it is
    not."""
    back_ns: int = S
    """From a start of the daemon to its holder's return. NEVER: he does not come back."""
    error: str = ""
    """What the relay says of one that ends by itself, and incomplete."""


class Nature:
    """Obedient: everything works, at once or after a plausible time."""

    def life(self, world: World, runner: Runner) -> Life:
        """How an incarnation will behave."""
        return Life(used_bytes=dict(runner.reserved_bytes))

    def exchange(self, world: World, request: str, runner: Runner) -> Exchange:
        """How an exchange will go."""
        return Exchange()

    def measure_ns(self, world: World) -> int:
        """How long a measurement takes; NEVER: it is lost."""
        return MS

    def seen(self, world: World, event: Event) -> None:
        """Every event, after its step: the place for clients that leave, and for a crash."""


class Sim(msgspec.Struct):
    """A pretended runner's processes."""

    processes: dict[int, Process]
    life: Life
    opened_t: int = NEVER
    stopped: bool = False
    broken: bool = False
    """One of them has ended."""


class World:
    """The daemon, its runners, its clients, in virtual time (ns)."""

    def __init__(self, nature: Nature, devices: dict[str, int], *, check: bool = True) -> None:
        self.nature = nature
        self.check = check
        """Whether the whole state is checked after every step, which takes time."""
        self.devices = devices
        """Bytes that each device has."""
        self.foreign: dict[str, int] = {}
        """Bytes that other programs use."""
        self.scheduler = Scheduler()
        self.log: list[Event] = []
        self.t = 0
        self.crash = False
        """Set by a nature: the daemon dies before the effects of the step that it sees."""
        self.alive: dict[str, Sim] = {}
        self.lives: dict[str, Life] = {}
        self.exchanges: dict[str, tuple[str, Exchange]] = {}
        """Running exchanges: request to its runner."""
        self.leases: dict[str, None] = {}
        """Every request that was for a lease."""
        self.away: dict[str, tuple[str, Exchange]] = {}
        """Leases whose holders have lost the daemon, and know of no end."""
        self.cut: dict[str, None] = {}
        """Runners a slot of which may be in use by a holder who was told that it is not his any more."""
        self.lingering: dict[str, tuple[dict[str, int], int]] = {}
        """Memory of the dead that is not seen free yet."""
        self._agenda: list[tuple[int, int, int, Callable[[], object]]] = []
        self._order = 0
        self._epoch = 0
        """Starts of the daemon: what an earlier one was waiting for is lost with it."""
        self._pid = 1000
        self._still = 0

    @property
    def state(self) -> Any:
        """The folded state."""
        return self.scheduler.state

    # --- time --------------------------------------------------------------------------------------------

    def at(self, t: int, action: Callable[[], object], *, lasting: bool = True) -> None:
        """Do something at a time; unless `lasting`, only if the daemon lives until then."""
        self._order += 1
        heappush(self._agenda, (max(t, self.t), self._order, 0 if lasting else self._epoch, action))

    def after(self, ns: int, action: Callable[[], object], *, lasting: bool = False) -> None:
        """Do something that only this start of the daemon waits for; NEVER: do not."""
        if ns >= 0:
            self.at(self.t + ns, action, lasting=lasting)

    def fact(self, t: int, fact: Fact) -> None:
        """Submit a fact at a time, whichever start of the daemon is running then."""
        self.at(t, partial(self.submit, fact))

    def run(self, until: int) -> None:
        """Let time pass: the world's events and the scheduler's deadlines, in their order."""
        while True:
            due = self.scheduler.next_due()
            next_t = self._agenda[0][0] if self._agenda else None
            if due is not None and due <= until and (next_t is None or due <= next_t):
                self.t = max(self.t, due)
                self._done(self.scheduler.advance_one(self.t))
            elif next_t is not None and next_t <= until:
                at, _, epoch, action = heappop(self._agenda)
                self._still = 0 if at > self.t else self._still
                self.t = max(self.t, at)
                if not epoch or epoch == self._epoch:
                    action()
            else:
                self.t = max(self.t, until)
                return

    def quiet(self) -> bool:
        """Whether nothing is on the agenda and no deadline is armed."""
        return not self._agenda and self.scheduler.next_due() is None

    # --- the daemon --------------------------------------------------------------------------------------

    def start(self, survivors: tuple[Process, ...] = ()) -> None:
        """The first fact of a start, and the measurement that follows it."""
        self._epoch += 1
        policy = self.state.policy or "balanced"
        self.submit(c.DaemonStarted(RULES, policy, "boot", "sim", survivors=survivors))
        self.submit(self.measurement())
        for runner in list(self.state.runners.values()):
            if runner.state is RunnerState.stopping and runner.processes:
                self._stop(runner.id)

    def restart(self, down_ns: int = 0) -> None:
        """The daemon dies and starts again. Raises Breach if its log does not fold to what it knew."""
        known = canonical(self.state)
        self.scheduler = Scheduler(fold(self.log))
        require(canonical(self.state) == known, "the log folds to another state")
        self.carry()
        self.away |= {id: each for id, each in self.exchanges.items() if self._is_lease(id)}
        self.exchanges.clear()
        for id, sim in list(self.alive.items()):
            if sim.opened_t == NEVER or not sim.life.survives:
                self._dies(id)
            elif not sim.life.shard_survives and len(sim.processes) > 1:
                sim.broken = sim.processes.pop(1, None) is not None
        self.t += down_ns
        kept = [id for id, (runner, _) in self.away.items() if self._survives(runner)]
        found = [sim.processes.values() for id, sim in self.alive.items() if id in self.state.runners]
        self.start(tuple(process for processes in found for process in processes))
        require(all(self._is_lease(id) for id in kept), f"of {kept} not all are kept")
        for id, (_, exchange) in list(self.away.items()):
            self.after(exchange.back_ns, partial(self._resume, id))

    def carry(self) -> None:
        """Go on from a snapshot. Raises Breach if it is not the whole state; if it is, but for the order of
        something, the log does not replay."""
        known, text = canonical(self.state), carry(self.state)
        self.scheduler.state = restore(text)
        require(canonical(self.state) == known, "the snapshot holds another state")
        require(carry(self.state) == text, "the snapshot of a snapshot is another")

    def submit(self, fact: Fact) -> list[Event]:
        """A fact, now: its step, and everything that follows from it at once. Deadlines that are due come
        first, each checked by itself."""
        if type(fact) is not c.DaemonStarted:
            while events := self.scheduler.advance_one(self.t):
                self._done(events)
        events = self.scheduler.step(fact, self.t)
        self._done(events)
        return events

    def _done(self, events: list[Event]) -> None:
        self._still += 1
        require(self._still < STILL_STEPS, "steps without end, and no time passes")
        self.log += events
        for event in events:
            self.nature.seen(self, event)
            self._check_leases(event)
        if self.check:
            check_all(self.state)
        if self.crash:
            self.crash = False
            self.at(self.t, self.restart)
            self._epoch += 1
            return
        for event in events:
            effect = EFFECTS.get(type(event.body))
            if effect is not None:
                effect(self, event, event.body)

    # --- processes ---------------------------------------------------------------------------------------

    def _load(self, event: Event, d: c.RunnerLoad | c.RunnerLeased) -> None:
        runner = self.state.runners.get(event.subject)
        if runner is None:
            return
        life = self.lives[runner.id] = self.nature.life(self, runner)
        self.after(life.spawn_ns, partial(self._spawn, runner.id, runner.ports))

    def _spawn(self, id: str, ports: tuple[int, ...]) -> None:
        life = self.lives[id]
        runner = self.state.runners.get(id)
        if runner is None or runner.exited or id in self.alive:
            return
        if life.spawn == "taken" and ports:
            self.submit(c.LeaseRefused(id, ports[-1]))
        elif life.spawn == "failed" or runner.state is not RunnerState.loading:
            self.submit(c.SpawnFailed(id, "no such file"))
        else:
            sim = self.alive[id] = Sim({}, life)
            epoch = self._epoch
            for shard in (*range(1, len(runner.shard_ports) + 1), 0):  # the first is the last to start
                if self._epoch == epoch and id in self.alive:  # or the daemon died between two of them
                    self._pid += 1
                    process = sim.processes[shard] = Process(id, shard, "boot", self._pid, self.t)
                    self.submit(c.ProcessSpawned(process))

    def _open(self, event: Event, f: c.ProcessSpawned) -> None:
        sim = self.alive.get(f.runner)
        if sim is None or sim.opened_t != NEVER or f.process.shard:
            return
        sim.opened_t = self.t
        self.after(sim.life.ready_ns, partial(self._ready, f.runner), lasting=True)
        self.after(sim.life.exit_ns, partial(self._exits, f.runner), lasting=True)
        if len(sim.processes) > 1:
            self.after(sim.life.shard_ns, partial(self._exit, f.runner, 1), lasting=True)
        if sim.life.progress_ns != NEVER:
            self._progress(f.runner)

    def _progress(self, id: str) -> None:
        """What a driver reports of a load that gets on, as often as it looks."""
        sim, runner = self.alive.get(id), self.state.runners.get(id)
        if sim is None or runner is None or runner.state is not RunnerState.loading or not runner.stall_ns:
            return
        if self.t > sim.opened_t:
            self.submit(c.LoadProgressed(id, "read"))
        if self.t - sim.opened_t < sim.life.progress_ns:
            self.after(runner.stall_ns // LOAD_LOOKS, partial(self._progress, id), lasting=True)

    def _ready(self, id: str) -> None:
        sim = self.alive.get(id)
        if sim is not None and not sim.stopped and not sim.broken:
            self.submit(c.ProbeAnswered(id, True))

    def _exits(self, id: str) -> None:
        """All of a runner's processes end."""
        for shard in list(self.alive[id].processes) if id in self.alive else ():
            self._exit(id, shard)

    def _exit(self, id: str, shard: int) -> None:
        """One of them does; with the first its exchanges, with the last its memory."""
        sim = self.alive.get(id)
        if sim is None or shard not in sim.processes:
            return
        runner = self.state.runners.get(id)
        told = sim.life.words if runner is not None and runner.ready_t == NEVER else ""
        del sim.processes[shard]
        sim.broken = True
        if not sim.processes:
            self._dies(id)
        self.submit(c.ProcessExited(id, shard, 1, told))
        if not shard:
            self._cut(id)

    def _dies(self, id: str) -> None:
        life = self.alive.pop(id).life
        if life.return_ns:
            self.lingering[id] = (life.used_bytes, self.t + life.return_ns)

    def _cut(self, id: str, error: str = "") -> None:
        """The exchanges with a runner end: it has died, or (with an `error`) is told to stop, of which who
        holds a lease knows nothing."""
        for request, (runner, exchange) in list(self.exchanges.items()):
            if runner == id and not (error and self._is_lease(request)):
                self.after(exchange.close_ns, partial(self._ended, request, id, False, 0, error))

    def _stop_decided(self, event: Event, d: c.RunnerStop) -> None:
        if d.runner in self.alive:
            self._cut(d.runner, why_cut(d))
        self._stop(d.runner)

    def _stop(self, id: str) -> None:
        sim = self.alive.get(id)
        if sim is not None:
            sim.stopped = True
            self.after(sim.life.stop_ns, partial(self._exits, id), lasting=True)

    def _kill(self, event: Event, d: c.RunnerKill) -> None:
        sim = self.alive.get(d.runner)
        if sim is not None:
            self.after(sim.life.kill_ns, partial(self._exits, d.runner), lasting=True)

    def _probe(self, event: Event, d: c.RunnerProbe) -> None:
        sim = self.alive.get(d.runner)
        if sim is not None:
            self.after(sim.life.probe_ns, partial(self._answer, d.runner))

    def _answer(self, id: str) -> None:
        sim = self.alive.get(id)
        if sim is not None:
            sick = sim.life.sick_ns
            self.submit(c.ProbeAnswered(id, sick < 0 or self.t < sim.opened_t + sick))

    # --- exchanges ---------------------------------------------------------------------------------------

    def _dispatched(self, event: Event, d: c.RequestDispatched) -> None:
        request = self.state.requests.get(d.request)
        if request is None or request.state is not RequestState.dispatched:
            if request is not None and request.slot and request.runner == d.runner:
                self.submit(c.UpstreamEnded(d.request, d.runner, False, sent=False))
            return
        runner = self.state.runners[d.runner]
        exchange = self.nature.exchange(self, d.request, runner)
        self.exchanges[d.request] = (d.runner, exchange)
        if d.runner not in self.alive:  # the dispatch met a dead runner: its connection is refused
            self.after(exchange.close_ns, partial(self._ended, d.request, d.runner, False, 0))
            return
        bytes_to_client = exchange.bytes_to_client if exchange.complete else min(exchange.bytes_to_client, 50)
        ended = partial(self._ended, d.request, d.runner, exchange.complete, bytes_to_client, exchange.error)
        self.after(exchange.ns, ended)

    def _is_lease(self, id: str) -> bool:
        request = self.state.requests.get(id)
        held = request is not None and request.state is RequestState.dispatched
        return held and id in self.leases

    def _survives(self, id: str) -> bool:
        """Whether a runner that is ready has all of its processes."""
        runner, sim = self.state.runners.get(id), self.alive.get(id)
        ready = runner is not None and runner.state is RunnerState.ready and not runner.ended
        return ready and sim is not None and all(shard in sim.processes for shard in runner.processes)

    def _check_leases(self, event: Event) -> None:
        """What a holder believes to have is nobody else's."""
        body: Any = event.body
        if isinstance(body, c.RequestArrived) and body.kind == LEASE:
            self.leases[event.subject] = None
        elif isinstance(body, c.RequestDispatched):
            require(body.runner not in self.cut, f"{body.request} dispatched where a lease was cut")
        elif isinstance(body, CLOSING) and body.request in self.leases:
            mine = self.away.pop(body.request, None) or self.exchanges.get(body.request)
            if mine is not None and getattr(body, "reason", "client_gone") != "client_gone":
                self.cut[mine[0]] = None

    def _heed(self, event: Event, d: c.LeaseRevoked) -> None:
        """A lease is revoked: its holder lets go, or not."""
        running = self.exchanges.get(d.request)
        if running is not None:
            self.after(running[1].heeds_ns, partial(self._ended, d.request, d.runner, True, 0))

    def _resume(self, id: str) -> None:
        """The holder of a lease comes back after a start."""
        mine = self.away.pop(id, None)
        if mine is None:
            return
        require(self._is_lease(id), f"{id} was not kept for its holder")
        self.submit(c.LeaseResumed(id, "its holder"))
        if self._is_lease(id):
            self.exchanges[id] = mine
            self.after(mine[1].ns, partial(self._ended, id, mine[0], True, 0))

    def _ended(
        self, request: str, runner: str, complete: bool, bytes_to_client: int, error: str = ""
    ) -> None:
        running = self.exchanges.get(request)
        if running is not None and running[0] == runner:
            del self.exchanges[request]
            self.submit(c.UpstreamEnded(request, runner, complete, bytes_to_client, 200, error=error))

    def _close(self, event: Event, d: Any) -> None:
        """A request ended: its exchange is closed."""
        running, request = self.exchanges.get(d.request), self.state.requests.get(d.request)
        if running is not None:
            self.after(running[1].close_ns, partial(self._ended, d.request, running[0], False, 0))
        elif d.request in self.leases and request is not None and request.slot:  # nobody holds it
            self.submit(c.UpstreamEnded(d.request, request.runner, False, sent=False))

    # --- memory ------------------------------------------------------------------------------------------

    def measurement(self) -> c.MemoryMeasured:
        """What the devices report now."""
        used = dict(self.foreign)
        for id, (sizes, until) in list(self.lingering.items()):
            if until <= self.t:
                del self.lingering[id]
                continue
            for device, size in sizes.items():
                used[device] = used.get(device, 0) + size
        runners = {}
        for id, sim in self.alive.items():
            if sim.opened_t != NEVER:
                if sim.life.seen:
                    runners[id] = sim.life.used_bytes
                for device, size in sim.life.used_bytes.items():
                    used[device] = used.get(device, 0) + size
        devices = {
            name: Reading(total, max(0, total - used.get(name, 0))) for name, total in self.devices.items()
        }
        return c.MemoryMeasured(devices, runners)

    def _measure(self, event: Event, d: c.MemoryMeasure) -> None:
        self.after(self.nature.measure_ns(self), lambda: self.submit(self.measurement()))


CLOSING = (c.RequestFailed, c.RequestCancelled, c.RequestTimedOut, c.RequestInterrupted)
"""Ends of a request that end its exchange, too."""

EFFECTS: dict[type, Callable[[World, Event, Any], None]] = {
    c.RunnerLoad: World._load,
    c.RunnerLeased: World._load,
    c.ProcessSpawned: World._open,
    c.RunnerStop: World._stop_decided,
    c.RunnerKill: World._kill,
    c.RunnerProbe: World._probe,
    c.MemoryMeasure: World._measure,
    c.RequestDispatched: World._dispatched,
    c.LeaseRevoked: World._heed,
    **dict.fromkeys(CLOSING, World._close),
}
"""What carries out a decision; also the gate that opens once its process is in the log."""
