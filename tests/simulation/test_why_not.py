"""What `why-not` says is what the scheduler does: asked at random moments of random worlds."""

from __future__ import annotations

import copy
import random
from collections import Counter

import pytest

from daemon.explain.obstacle import TRIAL_STEPS, WhyNot, why_not
from events import catalogue as c
from events.catalogue import Event
from statemachines.request import RequestState
from statemachines.scheduler import Scheduler
from statemachines.simulator import World
from tests.simulation.worlds import RandomWorld

ONE_IN = 25
"""Events after which it is asked once."""


class Asker:
    """Asks at random moments, and then lets a request arrive in a copy of the core, with the devices as they
    are: whether that loads a runner."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.world: World
        self.names: list[str] = []
        self.seen: Counter[str] = Counter()

    def __call__(self, event: Event) -> None:
        if event.seq != self.world.state.seq or self.chance.randrange(ONE_IN):
            return
        model = self.chance.choice([*self.names, "unknown"])
        known = self.world.state
        said = why_not(known, model)
        measured = self.world.measurement()
        used = {runner.id: runner.used_bytes for runner in known.runners.values() if runner.used_bytes}
        if (measured.devices, measured.runners) != (known.readings, used):
            self.seen["the devices have changed since"] += 1
            return
        self.seen[f"{said.verdict} {said.reason}".strip()] += 1
        self.check(said, self.outcome(model, measured))

    def outcome(self, model: str, measured: c.MemoryMeasured) -> str:
        """What becomes of a request at once: it is served, loads, joins a runner, is refused, or waits."""
        scheduler = Scheduler(copy.deepcopy(self.world.state))
        t, before = scheduler.state.t, set(scheduler.state.runners)
        request = next(
            e.subject for e in scheduler.step(c.RequestArrived(model, "chat"), t)
            if isinstance(e.body, c.RequestArrived)
        )  # fmt: skip
        for _ in range(TRIAL_STEPS):
            if scheduler.state.measuring:
                scheduler.step(measured, t)
            elif not scheduler.advance_one(t):
                break
        found = scheduler.state.requests.get(request)
        if found is None:
            return "refused"
        if found.state is RequestState.dispatched:
            return "served"
        if not scheduler.state.demands[found.demand].servers:
            return "waits"
        mine = [r for r in scheduler.state.models[model].values() if r.live]
        return "loads" if any(r.id not in before for r in mine) else "joins"

    def too_early(self, said: WhyNot) -> bool:
        """Whether, if nothing else happens, it is loaded before the time that was named."""
        scheduler = Scheduler(copy.deepcopy(self.world.state))
        t, before = scheduler.state.t, set(scheduler.state.runners)
        scheduler.step(c.RequestArrived(said.model, "chat"), t)
        scheduler.advance(t + (said.earliest_ns or 1) - 1)
        return any(id not in before for id in scheduler.state.models.get(said.model, {}))

    def check(self, said: WhyNot, outcome: str) -> None:
        expected = {"loaded": ["served"], "coming": ["joins"], "at_once": ["loads"]}
        where = f"event {said.seq}: {said}"
        assert outcome in expected.get(said.verdict, ["refused", "waits"]), f"{outcome}, {where}"
        assert said.earliest_ns is None or not self.too_early(said), where
        assert said.sentence and (said.when or said.verdict in ("loaded", "at_once")), where


def ask(seed: int) -> Counter[str]:
    """One world: what was said, and how often."""
    asker = Asker(seed)
    world = RandomWorld(seed, asker)
    asker.world, asker.names = world.world, world.names
    world.play()
    return asker.seen


@pytest.mark.parametrize("first", range(0, 30, 10))
def test_why_not_says_what_the_scheduler_would_do(first: int) -> None:
    seen: Counter[str] = Counter()
    for seed in range(first, first + 10):
        seen += ask(seed)
    assert seen["at_once"] and seen["obstacle claimed"] and seen["loaded"], seen
    changed = seen.pop("the devices have changed since")
    assert changed < seen.total(), (changed, seen)
