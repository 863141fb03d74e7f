"""What a step of the core costs, by kind: `python benchmarks/bench_step.py`.

A simulated machine with 64 runners and 10,000 queued requests makes a log, once with all memory in one device
and once with eight: the queue fills, then somebody asks for each who leaves it. Every step is taken again,
several times, and the least time of each counts: what is left is the step, without the noise of a shared
machine. The garbage collector is off meanwhile. Hot steps are measured in a loop of their own.
"""

from __future__ import annotations

import argparse
import gc
import random
from collections.abc import Callable
from time import perf_counter_ns

from events import catalogue as c
from events.catalogue import Event
from events.limits import GIB, MS, S
from statemachines.parts import Runner
from statemachines.replay import rederive, steps, verify
from statemachines.scheduler import RULES, Scheduler
from statemachines.simulator import Exchange, Life, Nature, World

RUNNERS = 64
QUEUED = 10_000
MODELS = 200
MEMORY_BYTES = 640 * GIB
WARM = 1000
"""Steps before the first that counts: the collector has left nothing of the program in the caches."""
ROUNDS = 10
"""A rare step's code and data come from memory, for which others of the machine wait too: some rounds take
half as long again as others."""
HOT_BOUND_NS = 6_000
BOUND_NS = 50_000


class Busy(Nature):
    """Everything works, at random speeds; now and then a process or an exchange fails."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.queued = 0
        self.arrive: Callable[[], None] = lambda: None

    def life(self, world: World, runner: Runner) -> Life:
        n = self.chance.randrange
        return Life(
            ready_ns=n(1, 8) * S,
            exit_ns=n(1, 60) * S if n(4) == 0 else -1,
            used_bytes=dict(runner.reserved_bytes),
            return_ns=n(500) * MS,
        )

    def exchange(self, world: World, request: str, runner: Runner) -> Exchange:
        n = self.chance.randrange
        return Exchange(n(50, 2000) * MS, complete=n(100) > 0, bytes_to_client=n(2) * 100)

    def seen(self, world: World, event: Event) -> None:
        n = self.chance.randrange
        if type(event.body) is c.RequestArrived and n(20) == 0:
            gone = c.ClientGone(event.subject)
            world.after(n(30) * S, lambda: world.submit(gone), lasting=True)
        if world.state.queued < self.queued:
            for _ in range(self.queued - world.state.queued):
                world.after(n(20) * MS, self.arrive)
        self.queued = world.state.queued


def make_log(seed: int, seconds: int, gpus: int) -> list[Event]:
    """The log of a machine under full load."""
    chance = random.Random(seed)
    devices = {f"gpu{i}": MEMORY_BYTES // gpus for i in range(gpus)}
    nature = Busy(chance)
    world = World(nature, {"host": 512 * GIB, **devices}, check=False)
    pick, n = chance.choice, chance.randrange
    models = {
        f"m{i}": c.ModelView(
            digest=f"d{i}",
            slots=4,
            memory_bytes={f"gpu{i % gpus}": n(6, 10) * GIB},
            keep_alive_ns=60 * S,
            options={"num_ctx": 4096},
            queue_ns=pick([0, 40 * S, 600 * S]),
            request_ns=pick([0, 600 * S]),
        )
        for i in range(MODELS)
    }
    world.start()
    world.submit(c.ConfigChanged(c.ConfigView(models, max_queue=QUEUED, max_loaded=RUNNERS)))

    def arrive() -> None:
        name = f"m{min(n(MODELS), n(MODELS))}"
        options: dict[str, c.Option] = {"num_ctx": pick([2048, 8192])} if n(20) == 0 else {}
        world.submit(c.RequestArrived(name, "chat", options, pick([0, 0, 0, 0, 0, 0, 0, 0, 0, 1])))

    nature.arrive = arrive
    for _ in range(QUEUED):
        world.at(n(20 * S), arrive)
    world.at(25 * S, lambda: world.submit(c.UnloadRequested("m3", cancel=True)))
    world.run((20 + seconds) * S)
    print(f"{gpus} GPUs: {len(world.log)} events; at the end {len(world.state.runners)} runners, "
          f"{world.state.queued} queued in {len(world.state.demands)} demands")  # fmt: skip
    return world.log


def kind(step: list[Event]) -> str:
    """A step by its fact and the kinds of its decisions."""
    tags = [str(type(event.body).__struct_config__.tag) for event in step]
    fact = step[0].body
    first = f"{tags[0]} ({fact.kind})" if isinstance(fact, c.DeadlinePassed) else tags[0]
    return " + ".join(dict.fromkeys([first, *tags[1:]]))


def measure(log: list[Event], rounds: int) -> list[tuple[str, int]]:
    """The least time of each step, in ns."""
    taken = list(steps(log))
    best = [1 << 62] * len(taken)
    for _ in range(rounds):
        gc.collect()
        gc.disable()
        warm = Scheduler()
        for step in taken[:WARM]:
            rederive(warm, step[0])
        scheduler = Scheduler()
        for i, step in enumerate(taken):
            first = step[0]
            begun = perf_counter_ns()
            rederive(scheduler, first)
            best[i] = min(best[i], perf_counter_ns() - begun)
        gc.enable()
    return [(kind(step), ns) for step, ns in zip(taken, best, strict=True)]


def table(times: list[tuple[str, int]]) -> None:
    """Print them by kind, and how many are too long."""
    kinds: dict[str, list[int]] = {}
    for name, ns in times:
        kinds.setdefault(name, []).append(ns)
    print(f"{'mean':>8} {'p99':>8} {'max µs':>8} {'n':>7}  step")
    for name, all_ns in sorted(kinds.items(), key=lambda entry: -max(entry[1])):
        all_ns.sort()
        mean, p99 = sum(all_ns) / len(all_ns), all_ns[len(all_ns) * 99 // 100]
        print(f"{mean / 1e3:8.1f} {p99 / 1e3:8.1f} {all_ns[-1] / 1e3:8.1f} {len(all_ns):7}  {name[:110]}")
    every = sorted(ns for _, ns in times)
    late, count = sum(ns > BOUND_NS for ns in every), len(every)
    usual, rare = (every[count * part // 1000] / 1e3 for part in (990, 999))
    print(f"{late} of {count} steps longer than {BOUND_NS // 1000} µs: {100 * late / count:.1f} %; "
          f"p99 {usual:.0f}, p99.9 {rare:.0f}, longest {every[-1] / 1e3:.0f} µs")  # fmt: skip


def hot(rounds: int) -> tuple[float, float]:
    """The two hot steps, µs each: a request meets a free slot; its exchange ends."""
    scheduler = Scheduler()
    view = c.ModelView("d", slots=4, memory_bytes={"host": GIB}, keep_alive_ns=300 * S, request_ns=600 * S)
    reading = c.MemoryMeasured({"host": c.Reading(64 * GIB, 64 * GIB)})
    for fact in (
        c.DaemonStarted(RULES, "balanced", "boot", "bench"),
        c.ConfigChanged(c.ConfigView({"m": view})),
        reading,
        c.LoadRequested("m"),
    ):
        scheduler.step(fact, 0)
    runner = next(iter(scheduler.state.runners))
    scheduler.step(c.ProcessSpawned(c.Process(runner, 0, "boot", 1, 1)), 0)
    scheduler.step(c.ProbeAnswered(runner, True), 0)
    arrival = c.RequestArrived("m", "chat", caller="local")
    first = second = 0
    gc.disable()
    for i in range(rounds):
        t = i * 70_000
        begun = perf_counter_ns()
        arrived = scheduler.step(arrival, t)
        first += perf_counter_ns() - begun
        ended = c.UpstreamEnded(arrived[0].subject, runner, True, 1000, 200, first_byte_ns=1)
        begun = perf_counter_ns()
        scheduler.step(ended, t + 1000)
        second += perf_counter_ns() - begun
    gc.enable()
    assert scheduler.state.counts["completed"] == rounds
    return first / rounds / 1e3, second / rounds / 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=int, default=40, help="of virtual time under full load")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="each step counts as in its shortest")
    asked = parser.parse_args()
    arrived, ended = min(hot(50_000) for _ in range(asked.rounds))
    print(f"hot: arrived + dispatched {arrived:.2f} µs, ended + completed {ended:.2f} µs (bound 6)")
    for gpus in (1, 8):
        log = make_log(asked.seed, asked.seconds, gpus)
        table(measure(log, asked.rounds))
    gc.collect()
    begun = perf_counter_ns()
    verify(log)
    rate = len(log) * 1e9 / (perf_counter_ns() - begun)
    print(f"verify: {rate:,.0f} events/s (bound 100,000)")


if __name__ == "__main__":
    main()
