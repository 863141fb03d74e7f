"""Random worlds: configurations, clients, operators and misfortunes drawn from a seed, run on the simulator.

`run_world(seed)` plays one to its end and raises what it finds wrong: an invariant, a request without an
end, something left behind, a log that does not replay.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Literal

import msgspec

from events import catalogue as c
from events.catalogue import NEVER, Event, Fact
from events.limits import AGE_STEP_NS, GIB, MS, S
from statemachines.parts import Runner
from statemachines.replay import fold, verify
from statemachines.runner import RunnerState
from statemachines.simulator import Exchange, Life, Nature, World
from statemachines.state import canonical

MINUTE = 60 * S
TRAFFIC_NS = 15 * MINUTE
"""How long clients and operators are at work."""
PATIENCE_NS = 6 * 60 * MINUTE
"""Within this every request must have ended: many quanta, loads, hung runners (5 min) and cool-downs."""
LASTING = {"cool", "quarantine"}
"""Deadlines that may be left when all is over."""
LEFT_EMPTY = (
    "runners", "models", "requests", "demands", "wanted", "starving", "dismissing", "operations", "claims",
)  # fmt: skip
CALM_FAILURES = {
    "revoked",
    "pinned",
    "never_fits",
    "no_memory",
    "no_port",
    "unloaded",
    "unknown_model",
    "unknown_option",
    "stopping",
}
"""Why a request may fail where no process misbehaves."""
ENDS = (
    c.RequestCompleted, c.RequestFailed, c.RequestCancelled, c.RequestTimedOut, c.RequestRejected,
    c.RequestInterrupted,
)  # fmt: skip


class Wrong(AssertionError):
    """A world that ended badly."""


def insist(holds: object, what: str) -> None:
    if not holds:
        raise Wrong(what)


class Chaos(Nature):
    """Draws every behaviour; `percent` is how much goes wrong (0: nothing)."""

    def __init__(self, chance: random.Random, percent: int) -> None:
        self.chance = chance
        self.percent = percent
        self.crash_permille = 0
        self.over = False
        """Nothing else goes wrong: the end of the world."""
        self.trace: Callable[[Event], None] | None = None
        self.unended: dict[str, None] = {}
        self.ended: Counter[str] = Counter()

    def bad(self, weight: int = 1) -> bool:
        """Whether something goes wrong, at a fraction of `percent`."""
        return not self.over and self.chance.randrange(100 * weight) < self.percent

    def ns(self, first: int, last: int) -> int:
        return self.chance.randrange(first, last)

    def life(self, world: World, runner: Runner) -> Life:
        ns, bad = self.ns, self.bad
        used = {device: size * ns(60, 101) // 100 for device, size in runner.reserved_bytes.items()}
        if not used or bad():
            used = {device: ns(0, size) // 2 for device, size in world.devices.items()}
        life = Life(ready_ns=ns(50 * MS, 25 * S), stop_ns=ns(MS, 3 * S), kill_ns=ns(MS, S), used_bytes=used)
        life.spawn_ns, life.return_ns = ns(MS, 200 * MS), ns(0, 3 * S)
        if bad():
            life.spawn = self.chance.choice(["failed", "taken", "taken"])
        if bad():
            life.exit_ns = ns(0, 20 * S)
            life.words = self.chance.choice(["out of luck", "cudaMalloc failed: out of memory"])
        elif bad():
            life.exit_ns = ns(0, 10 * MINUTE)
        if bad():
            life.ready_ns = NEVER
        if bad():
            life.stop_ns = self.chance.choice([NEVER, ns(5 * S, 30 * S)])
        if bad():
            life.kill_ns = self.chance.choice([NEVER, ns(1 * S, 60 * S)])
        if bad():
            life.probe_ns = self.chance.choice([NEVER, ns(1 * S, 15 * S)])
        if bad():
            life.sick_ns = ns(0, 5 * MINUTE)
        if bad():
            life.return_ns = ns(0, MINUTE)
        life.survives = not bad()
        if runner.shard_ports:
            life.shard_survives = not bad()
            if bad():
                life.shard_ns = ns(0, 5 * MINUTE)
        if runner.stall_ns:
            life.progress_ns = life.ready_ns
            if bad():
                life.progress_ns = ns(0, 30 * S)
        return life

    def exchange(self, world: World, request: str, runner: Runner) -> Exchange:
        ns, bad = self.ns, self.bad
        exchange = Exchange(ns(MS, 20 * S), not bad(), self.chance.choice([0, 10, 1000]), ns(MS, 300 * MS))
        if bad(2):
            exchange.ns = NEVER
            if self.chance.randrange(2) and runner.id in world.alive:
                sim = world.alive[runner.id]
                sim.life.sick_ns = world.t - sim.opened_t
            else:
                world.after(ns(S, 10 * MINUTE), partial(world.submit, c.ClientGone(request)), lasting=True)
        if bad(2):
            exchange.close_ns = self.chance.choice([NEVER, ns(S, 20 * S)])
            if exchange.close_ns == NEVER and not exchange.complete:
                exchange.ns = NEVER
                world.after(ns(S, MINUTE), partial(world.submit, c.ClientGone(request)), lasting=True)
        if request in world.leases:
            exchange.complete, exchange.ns = True, ns(S, 10 * MINUTE)
            exchange.heeds_ns = NEVER if bad() else ns(0, 20 * S)
            exchange.back_ns = NEVER if bad() else ns(0, MINUTE)
        return exchange

    def measure_ns(self, world: World) -> int:
        if self.bad():
            return self.chance.choice([NEVER, self.ns(S, 5 * S)])
        return self.ns(MS, 50 * MS)

    def seen(self, world: World, event: Event) -> None:
        if self.trace is not None:
            self.trace(event)
        body, ns = event.body, self.ns
        if isinstance(body, c.RequestArrived):
            self.unended[event.subject] = None
            if self.chance.randrange(8) == 0 or self.bad():
                gone = partial(world.submit, c.ClientGone(event.subject))
                world.after(ns(0, 2 * MINUTE), gone, lasting=True)
        elif isinstance(body, ENDS):
            insist(body.request in self.unended, f"{body.request} has two ends")
            del self.unended[body.request]
            reason = getattr(body, "reason", "")
            self.ended[f"{type(body).__struct_config__.tag} {reason}".strip()] += 1
        if isinstance(body, Fact) and not isinstance(body, FIRST_HAND) and self.bad(3):
            world.after(ns(0, 30 * S), partial(world.submit, body), lasting=True)  # a fact that comes twice
        if not self.over and self.crash_permille and self.chance.randrange(1000) < self.crash_permille:
            world.crash = True


FIRST_HAND = (
    c.RequestArrived, c.DaemonStarted, c.DaemonStopped, c.ConfigChanged, c.StopRequested, c.DeadlinePassed,
    c.LoadRequested, c.UnloadRequested, c.CancelRequested, c.PinRequested, c.ProfileRequested, c.LeaseResumed,
    c.StateCarried,
)  # fmt: skip
"""Facts that are not repeated by mistake."""


class RandomWorld:
    """One world of a seed."""

    def __init__(self, seed: int, trace: Callable[[Event], None] | None = None) -> None:
        self.chance = chance = random.Random(seed)
        self.nature = Chaos(chance, chance.choice([0, 0, 5, 15, 30, 50]))
        self.nature.trace = trace
        if self.nature.percent:
            self.nature.crash_permille = chance.choice([0, 0, 2, 10])
        self.wide = chance.randrange(5) == 0
        """Several GPUs, each with more models than fit on it: claims stand side by side."""
        self.devices = {"host": chance.randrange(8, 12 if self.wide else 64) * GIB}
        for i in range(chance.choice([2, 2, 3, 4]) if self.wide else chance.choice([0, 1, 1, 2])):
            self.devices[f"gpu{i}"] = chance.randrange(8, 12 if self.wide else 48) * GIB
        self.world = World(self.nature, self.devices)
        self.names = [
            f"m{i}" for i in range(chance.randrange(6, 13) if self.wide else chance.randrange(1, 7))
        ]
        self.view = self.config()

    def config(self) -> c.ConfigView:
        pick, n = self.chance.choice, self.chance.randrange
        first = 5800
        models = {name: self.model() for name in self.names if n(12) or name == "m0"}
        return c.ConfigView(
            models=models,
            devices={
                name: c.DeviceView(pick([None, n(8 if self.wide else 4, 64) * GIB]), name != "host")
                for name in self.devices
            },
            max_queue=pick([2, 8, 512, 512]),
            max_loaded=pick([0, 0, 4, len(self.devices)] if self.wide else [0, 0, 1, 2, 8]),
            port_first=first,
            port_last=first + pick([1, 4, 999]),
            headroom_bytes=pick([0, GIB // 2]),
            policy=pick(["balanced", "balanced", "fifo", "collate"]),
            swap_patience=pick([4, 4, 1, 0]),
            age_step_ns=AGE_STEP_NS,
            groups=self.groups(list(models)) if n(8 if self.wide else 4) == 0 else {},
            matrix=self.matrix(list(models)) if n(16 if self.wide else 6) == 0 else None,
        )

    def groups(self, models: list[str]) -> dict[str, c.GroupView]:
        pick, n = self.chance.choice, self.chance.randrange
        members: dict[str, list[str]] = {}
        for model in models:
            members.setdefault(pick(["", "g1", "g2", "g3"]), []).append(model)
        members.pop("", None)
        return {
            name: c.GroupView(tuple(mine), n(2) == 0, n(2) == 0, n(3) == 0) for name, mine in members.items()
        }

    def matrix(self, models: list[str]) -> c.MatrixView:
        pick, n = self.chance.choice, self.chance.randrange
        sets: dict[str, tuple[str, ...]] = {}
        for i in range(n(1, 4)):
            tokens = [f"={pick(models)}"]
            for _ in range(n(5)):
                tokens += [f"+s{n(i)}" if i and n(4) == 0 else f"={pick(models)}", pick("&&|")]
            sets[f"s{i}"] = tuple(tokens)
        return c.MatrixView(sets, {model: n(1, 9) for model in models if n(2)})

    def memory(self) -> dict[str, int]:
        """What a model is configured to need."""
        pick, n = self.chance.choice, self.chance.randrange
        if not self.wide:
            device, large = pick(["", "", *self.devices]), n(4) == 0
            return {device: n(1, 40 if large else 16) * GIB} if n(4) else {}
        gpus = list(self.devices)[1:]
        need = {pick(gpus): n(4, 8) * GIB for _ in range(pick([1, 1, 1, 2]))}
        if n(8) == 0:
            need = {"": n(4, 8) * GIB}
        return need | ({"host": n(1, 6) * GIB} if n(2) == 0 else {})

    def model(self) -> c.ModelView:
        pick, n = self.chance.choice, self.chance.randrange
        return c.ModelView(
            digest=f"d{n(10**6)}",
            slots=pick([1, 1, 2, 4]),
            memory_bytes=self.memory(),
            keep_alive_ns=pick([NEVER, 0, 10 * S, MINUTE]),
            options=pick([{}, {"num_ctx": 4096}, {"num_ctx": 4096, "lora": ""}]),
            lease=pick(["port", "port", "socket", "none"]),
            fixed_port=pick([0, 0, 0, 0, 0, 9000]),
            load_ns=n(30, 60) * S,
            unload_ns=n(1, 40) * S,
            concurrency_limit=pick([0, 0, 0, 2]),
            queue_ns=pick([0, 0, 20 * S, 5 * MINUTE]),
            request_ns=pick([0, 0, 60 * S, 10 * MINUTE]),
            max_lease_ns=pick([0, 0, 20 * S, 5 * MINUTE]),
            priority=pick([0, 0, 1]),
            at_least=pick(["", "num_ctx"]),
            instances_min=pick([1, 1, 2]),
            instances_max=pick([1, 1, 1, 2, 3]),
            shards=pick([0, 0, 0, 0, 1, 3]),
            stall_ns=pick([0, 0, 0, 4 * S]),
            estimate=self.estimate() if n(2) else None,
        )

    def estimate(self) -> c.Estimate:
        """What a model's file may say."""
        pick, n = self.chance.choice, self.chance.randrange
        return c.Estimate(
            weights_bytes=n(1, 20) * GIB,
            buffers_bytes=n(GIB),
            context_bytes=n(1_000_000),
            context=pick(["", "num_ctx"]),
            context_tokens=pick([0, 4096]),
            trained_context=pick([0, 8192]),
            layers=32,
            gpu_layers=pick([c.AUTO, 0, 10, 32]),
        )

    # --- what happens in it ------------------------------------------------------------------------------

    def arrival(self) -> c.RequestArrived:
        pick, n = self.chance.choice, self.chance.randrange
        name = pick(self.names) if n(50) else "unknown"
        view = self.view.models.get(name)
        options: dict[str, c.Option] = {}
        if view is not None and "num_ctx" in view.options and n(3) == 0:
            options = {"num_ctx": pick([2048, 4096, 8192])}
        if n(80) == 0:
            options = {"no_such": True}
        kind, token = ("lease", "digest") if n(8) == 0 else ("chat", "")
        return c.RequestArrived(
            name,
            kind,
            options,
            pick([0, 0, 0, 1, -1]),
            pick([None, None, None, 0, 5 * S]),
            token_digest=token,
            keep_alive_else_ns=pick([None, None, 5 * S]),
        )

    def operator(self) -> Fact:
        pick, n = self.chance.choice, self.chance.randrange
        kind, name = n(8), pick([*self.names, ""])
        if kind > 5:
            return c.PinRequested(name or "unknown", n(3) > 0)
        if kind < 2:
            return c.LoadRequested(name or "unknown", pick([{}, {}, {"num_ctx": 2048}]))
        if kind < 3 and self.nature.unended:
            return c.CancelRequested(pick(list(self.nature.unended)))
        if kind < 4:
            return c.CancelRequested(f"q{n(1000)}")
        runners = list(self.world.state.runners)
        if runners and n(2):
            runner, gently = pick(runners), n(3) == 0
            return c.UnloadRequested(runner=runner, cancel=n(3) == 0, now=n(2) == 0, gently=gently)
        return c.UnloadRequested(name, cancel=n(3) == 0, now=n(3) == 0)

    def reconfigure(self) -> None:
        old = self.view
        self.view = self.config()
        if self.chance.randrange(2):  # most of it as before
            kept = {k: v for k, v in old.models.items() if self.chance.randrange(4)}
            self.view = msgspec.structs.replace(self.view, models={**self.view.models, **kept})
        self.world.submit(c.ConfigChanged(self.view))

    def stop(self) -> None:
        """An orderly stop and, a little later, the next start."""
        how: Literal["drain", "now", "leave"] = self.chance.choice(["drain", "now", "leave"])
        self.world.submit(c.StopRequested(how))
        down_ns = self.chance.randrange(0, 20 * S)
        self.world.at(self.world.t + self.chance.randrange(0, MINUTE), partial(self.world.restart, down_ns))

    def foreign(self) -> None:
        """Other programs take memory, or give it back."""
        device = self.chance.choice(list(self.devices))
        self.world.foreign[device] = self.devices[device] * self.chance.choice([0, 0, 10, 50, 95]) // 100
        self.world.submit(self.world.measurement())

    def prepare(self) -> None:
        world, n, pick = self.world, self.chance.randrange, self.chance.choice
        world.start()
        world.submit(c.ConfigChanged(self.view))
        for _ in range(pick([20, 60] if self.wide else [3, 20, 60])):
            at = n(TRAFFIC_NS)
            for _ in range(pick([1, 1, 1, 2, 5, 20])):
                world.at(at, lambda: world.submit(self.arrival()))
                at += n(pick([1, S, MINUTE]) + 1)
        for _ in range(pick([0, 0, 2, 10])):
            world.at(n(TRAFFIC_NS), lambda: world.submit(self.operator()))
        for what, often in ((self.reconfigure, [0, 0, 0, 1, 3]), (self.foreign, [0, 0, 0, 1, 6])):
            for _ in range(pick(often)):
                world.at(n(TRAFFIC_NS), what)
        if self.nature.percent:
            for _ in range(pick([0, 0, 0, 1, 2])):
                world.at(n(TRAFFIC_NS), self.stop)

    # --- its end -----------------------------------------------------------------------------------------

    def play(self) -> None:
        """From the first start to the last check."""
        self.prepare()
        world = self.world
        world.run(TRAFFIC_NS + MINUTE)
        self.nature.over = True
        for _ in range(PATIENCE_NS // (10 * MINUTE)):
            if not self.nature.unended and not world.state.requests and not world.state.operations:
                break
            world.run(world.t + 10 * MINUTE)
        insist(not self.nature.unended, f"no end: {list(self.nature.unended)}")
        insist(not world.state.requests, f"slots not back: {list(world.state.requests)}")
        self.stop_all()
        self.check_log()
        if not self.nature.percent:
            self.check_calm()

    def stop_all(self) -> None:
        world = self.world
        world.submit(c.StopRequested("now"))
        world.run(world.t + 10 * MINUTE)
        for id in list(world.alive):
            insist(world.state.runners[id].stuck, f"{id} lives, and is not stuck")
            world._exits(id)
        world.run(world.t + 10 * MINUTE)
        state = world.state
        for what in (
            "runners",
            "models",
            "requests",
            "demands",
            "starving",
            "dismissing",
            "operations",
            "claims",
        ):
            insist(not getattr(state, what), f"left: {what} {getattr(state, what)}")
        insist(state.queued == 0, f"left: {state.queued} queued")
        left = [key for _, key in state.deadlines if key[0] not in LASTING]
        insist(not left, f"left: deadlines {left}")

    def check_log(self) -> None:
        world = self.world
        known = canonical(world.state)
        insist(canonical(fold(world.log)) == known, "the log folds to another state")
        insist(canonical(verify(world.log)[1]) == known, "the log verifies to another state")

    def check_calm(self) -> None:
        """Where nothing misbehaves, nothing fails but what must."""
        seen = Counter(type(event.body) for event in self.world.log)
        cut = seen[c.UnloadRequested] + seen[c.ConfigChanged] > 1
        for end in self.nature.ended:
            kind, _, reason = end.partition(" ")
            known = reason in CALM_FAILURES or (reason == "cut_off" and cut)
            insist(kind != "request.failed" or known, f"calm world: {end}")
        insist(not seen[c.RunnerFailed], "calm world: a runner failed")
        wishes = seen[c.RequestArrived] + seen[c.RequestRequeued] + seen[c.LoadRequested]
        stops = (event.body for event in self.world.log if isinstance(event.body, c.RunnerStop))
        wishes += sum(body.reason in ("operator", "configuration") for body in stops)  # for who still waits
        loads = (event.body for event in self.world.log if isinstance(event.body, c.RunnerLoad))
        wishes += sum(body.reason in ("queue", "instances") for body in loads)
        wishes += seen[c.LeaseRevoked]  # a runner that goes with a lease is loaded again for who waits
        insist(seen[c.RunnerLoad] <= wishes, f"calm world: {seen[c.RunnerLoad]} loads for {wishes} wishes")


def run_world(seed: int, trace: Callable[[Event], None] | None = None) -> RandomWorld:
    """Play the world of a seed. Raises whatever is wrong with it."""
    world = RandomWorld(seed, trace)
    world.play()
    return world


def loaded(world: World) -> list[str]:
    """The models that are ready."""
    return [r.model for r in world.state.runners.values() if r.state is RunnerState.ready]
