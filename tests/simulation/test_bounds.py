"""In random worlds where nothing misbehaves no wait is ever beyond its bound: /ready gives no false alarm."""

from __future__ import annotations

import pytest

from events import catalogue as c
from events.catalogue import Fact
from statemachines.bound import overdue
from statemachines.scheduler import Scheduler
from tests.simulation.worlds import RandomWorld

SEEDS = 120
"""About a third of them are calm, and take 50 ms each."""


@pytest.mark.interpreted
def test_no_wait_is_too_long_in_a_calm_world(monkeypatch: pytest.MonkeyPatch) -> None:
    take, looked = Scheduler._take, 0

    def look_and_take(self: Scheduler, fact: Fact, t: int) -> None:
        nonlocal looked
        if self.state.demands and type(fact) is not c.DaemonStarted:
            looked += 1
            assert overdue(self.state, max(t, self.state.t)) is None, f"seed {seed}"
        take(self, fact, t)

    monkeypatch.setattr(Scheduler, "_take", look_and_take)
    for seed in range(SEEDS):
        world = RandomWorld(seed)
        if not world.nature.percent:
            world.play()
    assert looked > 1000
