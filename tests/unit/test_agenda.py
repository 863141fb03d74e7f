"""The agenda: which key is first, and a bound for that, however keys are moved and dropped."""

from __future__ import annotations

import random

import pytest

from statemachines.agenda import END, Agenda


@pytest.mark.parametrize("seed", range(20))
def test_the_first_key_and_its_bound(seed: int) -> None:
    """Against a dict that is searched. Few keys, so that most entries become stale."""
    pick = random.Random(seed).randrange
    agenda, plain = Agenda[int](), dict[int, int]()
    for _ in range(2000):
        key, at = pick(12), pick(1000)
        if pick(3):
            agenda.arm(key, at)
            plain[key] = at
        else:
            agenda.disarm(key)
            plain.pop(key, None)
        first = min(((at, key) for key, at in plain.items()), default=None)
        if first is not None:
            assert agenda.soonest <= first[0]
        assert (agenda.get(key), key in agenda, len(agenda)) == (plain.get(key), key in plain, len(plain))
        if pick(5) == 0:
            t = pick(1000)
            assert agenda.due(t) == (first if first is not None and first[0] <= t else None)
        if pick(5) == 0:
            assert agenda.first() == first
            assert agenda.soonest == (END if first is None else first[0])
        if pick(20) == 0:
            assert list(agenda) == sorted((at, key) for key, at in plain.items())
