"""Playing a workload through the real core in virtual time, and what its clients saw.

Loads and exchanges take what the workload says; stopping and spawning take no time, and measuring memory a
nanosecond, so that a wait is a load, a drain, a turn or a queue and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from benchmarks.workloads import Workload
from events import catalogue as c
from events.catalogue import Event
from events.limits import GIB, MS, S
from statemachines.parts import Runner
from statemachines.policy import quantum_ns
from statemachines.runner import RunnerState
from statemachines.simulator import Exchange, Life, Nature, World

POLICIES = ("balanced", "fifo", "collate")
END_NS = 1_000 * 3600 * S
"""By then everything has ended, whatever the policy."""
SLACK_NS = MS
"""More than all the measuring in one wait."""


@dataclass
class Hunger:
    """A model that somebody waits for while no runner of it is ready."""

    since_t: int
    allowed_ns: int = 0
    """How long that may last: the turns, drains and loads of those ahead of it, and its own."""
    claims: int = 0
    """Claims in all, its own among them."""
    decided: bool = False
    """Its load has been: nobody comes before it any more."""


@dataclass
class Result:
    """What happened. Times in ns."""

    waits: dict[int, list[int]] = field(default_factory=dict)
    """From arrival to dispatch, by model."""
    swaps: int = 0
    """Runners that were drained to make room."""
    hungers: int = 0
    beyond: int = 0
    """How many of those lasted longer than the bound allows."""
    worst: tuple[int, int, int] = (0, 1, 0)
    """Of the one that used most of its bound: how long it lasted, its bound, the claims until then."""

    def all_waits(self) -> list[int]:
        """Every wait, shortest first."""
        return sorted(wait for waits in self.waits.values() for wait in waits)

    @property
    def mean_ns(self) -> float:
        """The mean over all requests."""
        waits = self.all_waits()
        return sum(waits) / max(1, len(waits))

    @property
    def worst_p99_ns(self) -> int:
        """The p99 of the model that fares worst."""
        return max((p99(sorted(waits)) for waits in self.waits.values()), default=0)

    def add(self, other: Result) -> None:
        """Pool the figures of another seed."""
        for model, waits in other.waits.items():
            self.waits.setdefault(model, []).extend(waits)
        self.swaps += other.swaps
        self.hungers += other.hungers
        self.beyond += other.beyond
        self.worst = max(self.worst, other.worst, key=lambda worst: worst[0] / worst[1])


def p99(ordered: list[int]) -> int:
    """The 99th percentile, by nearest rank."""
    return ordered[-(-99 * len(ordered) // 100) - 1]


class Player(Nature):
    """Lets each call happen when it should, and keeps the figures."""

    def __init__(self, workload: Workload) -> None:
        self.workload = workload
        self.result = Result()
        self.following: dict[int, list[int]] = {}
        """Calls that follow the end of another."""
        for i, call in enumerate(workload.calls):
            if call.after >= 0:
                self.following.setdefault(call.after, []).append(i)
        self.arriving = 0
        self.calls: dict[str, tuple[int, int]] = {}
        """Of each request: which call it is, and when it arrived."""
        self.hungry: dict[str, Hunger] = {}
        self.claim_t: dict[str, int] = {}
        """Since when each claim stands."""
        self.turn_ns = 0
        """The longest turn that the next claim may have waited for."""

    # --- what the world asks -----------------------------------------------------------------------------

    def life(self, world: World, runner: Runner) -> Life:
        ready_ns = self.workload.load_ns[int(runner.model)]
        return Life(spawn_ns=0, ready_ns=ready_ns, stop_ns=0, used_bytes=dict(runner.reserved_bytes))

    def exchange(self, world: World, request: str, runner: Runner) -> Exchange:
        return Exchange(self.workload.calls[self.calls[request][0]].service_ns)

    def measure_ns(self, world: World) -> int:
        return 1  # later than the exit before it, or it would not count

    def call(self, world: World, index: int) -> None:
        """One request arrives."""
        self.arriving = index
        world.submit(c.RequestArrived(str(self.workload.calls[index].model), "chat"))

    # --- what it sees ------------------------------------------------------------------------------------

    def seen(self, world: World, event: Event) -> None:
        note = NOTES.get(type(event.body))
        if note is not None:
            note(self, world, event, event.body)

    def _arrived(self, world: World, event: Event, f: c.RequestArrived) -> None:
        self.calls[event.subject] = (self.arriving, event.t)

    def _queued(self, world: World, event: Event, d: c.RequestQueued) -> None:
        self._look(world, str(self.workload.calls[self.calls[d.request][0]].model))

    def _dispatched(self, world: World, event: Event, d: c.RequestDispatched) -> None:
        index, arrived_t = self.calls[d.request]
        self.result.waits.setdefault(self.workload.calls[index].model, []).append(event.t - arrived_t)

    def _completed(self, world: World, event: Event, d: c.RequestCompleted) -> None:
        index, _ = self.calls.pop(d.request)
        for i in self.following.get(index, ()):
            world.at(event.t + self.workload.calls[i].at_ns, partial(self.call, world, i))

    def _drained(self, world: World, event: Event, d: c.RunnerDrain) -> None:
        self.result.swaps += 1
        self._look(world, world.state.runners[d.runner].model)

    def _look(self, world: World, model: str) -> None:
        """Note that a model has become hungry."""
        state = world.state
        runners = state.models.get(model, {}).values()
        if model in self.hungry or model not in state.demands:
            return
        if any(runner.state is RunnerState.ready for runner in runners):
            return
        hunger = self.hungry[model] = Hunger(state.t)
        for runner in state.loading.values():
            hunger.allowed_ns += self.workload.load_ns[int(runner.model)]
            hunger.decided |= runner.model == model

    def _turn(self, world: World, event: Event, d: c.TurnWaits) -> None:
        if d.reason == "quantum":
            self._note_turn(world, d.demand, d.runner)

    def _note_turn(self, world: World, demand: str, runner: str) -> None:
        state = world.state
        self.turn_ns = max(self.turn_ns, quantum_ns(state, state.runners[runner], state.demands[demand]))

    def _claimed(self, world: World, event: Event, d: c.ClaimMade) -> None:
        self.claim_t[d.demand] = event.t
        for victim in d.victims:
            self._note_turn(world, d.demand, victim)
        for hunger in self._undecided():
            hunger.allowed_ns += self.turn_ns
            hunger.claims += 1
        self.turn_ns = 0

    def _claim_ended(self, world: World, event: Event, d: c.ClaimEnded) -> None:
        since_t = self.claim_t.pop(d.demand)
        for hunger in self._undecided():
            hunger.allowed_ns += event.t - since_t

    def _load(self, world: World, event: Event, d: c.RunnerLoad) -> None:
        for hunger in self._undecided():
            hunger.allowed_ns += self.workload.load_ns[int(d.model)]
        if d.model in self.hungry:
            self.hungry[d.model].decided = True

    def _ready(self, world: World, event: Event, f: c.ProbeAnswered) -> None:
        runner = world.state.runners[f.runner]
        if runner.ready_t != event.t or runner.model not in self.hungry:
            return  # the answer of a busy runner
        hunger = self.hungry.pop(runner.model)
        result, lasted_ns = self.result, event.t - hunger.since_t
        result.hungers += 1
        result.beyond += lasted_ns > hunger.allowed_ns + SLACK_NS
        worst = (lasted_ns, hunger.allowed_ns, hunger.claims)
        result.worst = max(result.worst, worst, key=lambda worst: worst[0] / worst[1])

    def _undecided(self) -> list[Hunger]:
        return [hunger for hunger in self.hungry.values() if not hunger.decided]


NOTES: dict[type, Callable[[Player, World, Event, Any], None]] = {
    c.RequestArrived: Player._arrived,
    c.RequestQueued: Player._queued,
    c.RequestDispatched: Player._dispatched,
    c.RequestCompleted: Player._completed,
    c.RunnerDrain: Player._drained,
    c.TurnWaits: Player._turn,
    c.ClaimMade: Player._claimed,
    c.ClaimEnded: Player._claim_ended,
    c.RunnerLoad: Player._load,
    c.ProbeAnswered: Player._ready,
}


def play(workload: Workload, policy: str, memory: int) -> Result:
    """Play a workload to its end with memory for so many models at once."""
    player = Player(workload)
    world = World(player, {"gpu0": memory * GIB}, check=False)
    models = {
        str(i): c.ModelView(
            f"d{i}",
            slots=workload.slots,
            memory_bytes={"gpu0": GIB},
            lease="none",
            load_ns=10 * load_ns + S,
        )
        for i, load_ns in enumerate(workload.load_ns)
    }
    world.start()
    world.submit(
        c.ConfigChanged(
            c.ConfigView(
                models,
                {"gpu0": c.DeviceView(gpu=True)},
                max_queue=len(workload.calls),
                max_loaded=memory,
                policy=policy,
            )
        )
    )
    for i, call in enumerate(workload.calls):
        if call.after < 0:
            world.at(call.at_ns, partial(player.call, world, i))
    world.run(END_NS)
    served = sum(len(waits) for waits in player.result.waits.values())
    if served != len(workload.calls) or player.calls:
        raise RuntimeError(f"{workload.name}: {len(workload.calls) - served} requests were never served")
    return player.result
