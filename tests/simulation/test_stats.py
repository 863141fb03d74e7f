"""The figures of a log, in random worlds: what /metrics counts is the same, and what goes in comes out."""

from __future__ import annotations

import pytest

from daemon.history.figures import BUSY, LOADING, OUTCOMES, Figures
from daemon.history.stats import Stats
from daemon.tally import EVICTIONS, LOAD_OUTCOMES, Tally
from daemon.tally import OUTCOMES as COUNTED_OUTCOMES
from events import catalogue as c
from events.catalogue import Event
from statemachines.fold import apply
from statemachines.replay import steps
from statemachines.state import State
from tests.simulation.worlds import run_world


def both(log: list[Event], after: int = 0) -> tuple[Stats, Tally]:
    """What `Stats` and /metrics make of a log, from the first step after that event on."""
    state = State()
    taken = iter(steps(log))
    ahead = next(taken, None)
    while ahead is not None and ahead[0].seq <= after:
        for event in ahead:
            apply(state, event)
        ahead = next(taken, None)
    stats, tally = Stats(state), Tally(state)
    while ahead is not None:
        for event in ahead:
            apply(state, event)
        tally.note(ahead)
        for event in ahead:
            stats.note(state, event, event.t)
        ahead = next(taken, None)
    stats.finish()
    return stats, tally


def check_same(stats: Stats, tally: Tally) -> None:
    """What both count."""
    for name, counted in tally.models.items():
        mine = stats.by.get(name, Figures())
        assert mine.arrived == counted.arrived, name
        assert mine.outcomes == dict(zip(COUNTED_OUTCOMES, counted.requests, strict=True)), name
        assert mine.dispatched == sum(counted.queue_ns.counts)
        assert mine.queue_ns == counted.queue_ns.sum_ns
        assert {how: mine.loads[how] for how in LOAD_OUTCOMES} == dict(
            zip(LOAD_OUTCOMES, counted.loads, strict=True)
        )
        assert sum(mine.load_ns) == counted.load_ns.sum_ns
    evictions = dict.fromkeys(EVICTIONS, 0) | stats.total.evictions
    assert evictions == dict.fromkeys(EVICTIONS, 0) | tally.evictions
    reasons: dict[str, int] = {}
    for why, number in stats.total.reasons.items():
        reason = why.partition(" ")[2]
        reasons[reason] = reasons.get(reason, 0) + number
    assert reasons == {why: number for why, number in tally.errors.items() if number}


@pytest.mark.parametrize("first", range(0, 30, 10))
def test_what_metrics_count_is_counted_alike(first: int) -> None:
    for seed in range(first, first + 10):
        log = run_world(seed).world.log
        check_same(*both(log))
        check_same(*both(log, after=len(log) // 2))


def test_what_goes_in_comes_out() -> None:
    for seed in range(10):
        log = run_world(seed).world.log
        stats, _ = both(log)
        total = stats.total
        assert total.arrived == sum(total.outcomes[name] for name in OUTCOMES)
        assert len(total.waits_ns) == total.arrived - total.outcomes["rejected"]
        assert total.hits <= total.dispatched
        assert total.loads["decided"] == sum(total.loads[how] for how in LOAD_OUTCOMES)
        assert total.arrived == sum(figures.arrived for figures in stats.by.values())
        for i in range(len(total.phases_ns)):
            assert total.phases_ns[i] == sum(figures.phases_ns[i] for figures in stats.by.values())
        check_lives(log, total)


def check_lives(log: list[Event], total: Figures) -> None:
    """The lives of all runners, from load to end, are what their phases add up to."""
    born, life_ns, slot_ns, held = dict[str, int](), 0, 0, dict[str, int]()
    state = State()
    for step in steps(log):
        for event in step:
            apply(state, event)
        busy = {id for id, runner in state.runners.items() if runner.held}
        for event in step:
            if isinstance(event.body, c.RunnerLoad):
                born[event.subject] = event.t
            elif isinstance(event.body, c.RunnerUnloaded | c.RunnerFailed | c.RunnerLost):
                life_ns += event.t - born.pop(event.body.runner)
        for id in busy - held.keys():
            held[id] = state.t
        for id in list(held):
            if id not in busy:
                slot_ns += state.t - held.pop(id)
    assert not born and not held
    assert total.life_ns == life_ns
    assert total.phases_ns[BUSY] == slot_ns
    assert total.phases_ns[LOADING] >= sum(total.load_ns)
