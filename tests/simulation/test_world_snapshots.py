"""Snapshots in random worlds: whoever goes on from one comes to what he would have come to."""

from __future__ import annotations

import random

import pytest

from statemachines.carried import carry, restore
from statemachines.state import canonical
from tests.simulation.worlds import TRAFFIC_NS, RandomWorld

SEEDS = 80
BLOCK = 10
MOMENTS = 200
"""In each world, at which the state is replaced by what a snapshot keeps of it."""


@pytest.mark.parametrize("first", range(1000, 1000 + SEEDS, BLOCK))
def test_a_world_goes_on_from_snapshots_as_it_would_have_done(first: int) -> None:
    """That the log replays, from its beginning and without snapshots, is checked at the end of each world."""
    for seed in range(first, first + BLOCK):
        chance, random_world = random.Random(seed), RandomWorld(seed)
        for _ in range(MOMENTS):
            random_world.world.at(chance.randrange(TRAFFIC_NS), random_world.world.carry)
        try:
            random_world.play()
        except Exception as error:
            error.add_note(f"seed {seed}, with snapshots")
            raise


def test_the_same_deadlines_come_in_the_same_order() -> None:
    """Also those of one time, and those that were moved or dropped before."""
    seen = 0
    for seed in range(60):
        random_world = RandomWorld(seed)
        random_world.prepare()
        random_world.world.run(random.Random(seed).randrange(TRAFFIC_NS))
        state = random_world.world.state
        other = restore(carry(state))
        assert canonical(other) == canonical(state)
        while (due := state.deadlines.first()) is not None:
            assert other.deadlines.first() == due
            for each in (state, other):
                each.deadlines.disarm(due[1])
            seen += 1
        assert other.deadlines.first() is None
    assert seen > 100
