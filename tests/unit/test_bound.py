"""How long a request may wait for a runner of its own, and who has waited for longer."""

from __future__ import annotations

import pytest

from events import catalogue as c
from events.limits import GIB, LOAD_GUESS_NS, LOAD_NS, MEMORY_WAIT_NS, SWAP_PATIENCE, S
from statemachines.bound import END_NS, Overdue, longest_round_ns, overdue
from statemachines.request import RequestState
from statemachines.state import State
from tests.unit.test_scheduler import Core, model

TURN_NS = SWAP_PATIENCE * 2 * LOAD_GUESS_NS
ROUND_NS = TURN_NS + END_NS + LOAD_NS
"""Of models whose loads and drains are not known yet."""


def behind_a_busy_runner(**config: object) -> tuple[Core, str]:
    """`a` is served, and holds the room that `b` waits for."""
    core = Core({"a": model(6), "b": model(6)}, **config)
    core.load("a")
    core.state.load_cost_ns.clear()
    core.arrive("a")
    return core, core.arrive("b")


def test_nobody_waits() -> None:
    assert overdue(State(), 10**18) is None


def test_who_waits_behind_others_of_his_model_has_no_bound() -> None:
    core = Core({"a": model()})
    core.load("a")
    core.arrive("a")
    core.arrive("a")
    assert core.state.queued == 1
    assert overdue(core.state, core.t + 10**18) is None


def test_a_wait_for_a_turn_has_its_own_round_and_the_one_under_way() -> None:
    core, request = behind_a_busy_runner()
    bound_ns = 2 * ROUND_NS + MEMORY_WAIT_NS
    assert longest_round_ns(core.state, core.t) == ROUND_NS
    assert overdue(core.state, core.t + bound_ns) is None
    found = overdue(core.state, core.t + bound_ns + 1)
    assert found == Overdue(request, "b", bound_ns + 1, bound_ns)


def test_each_load_since_it_came_is_another_round() -> None:
    core, request = behind_a_busy_runner()
    core.state.counts["loads"] += 1
    bound_ns = 3 * ROUND_NS + MEMORY_WAIT_NS
    assert overdue(core.state, core.t + bound_ns) is None
    found = overdue(core.state, core.t + bound_ns + S)
    assert found == Overdue(request, "b", bound_ns + S, bound_ns)


def test_who_is_behind_has_longer() -> None:
    core = Core({"a": model(6), "b": model(6), "d": model(6)})
    core.load("a")
    core.state.load_cost_ns.clear()
    core.arrive("a")
    core.arrive("b", priority=1)
    core.arrive("d")
    late = core.t + 2 * ROUND_NS + MEMORY_WAIT_NS + 1
    found = overdue(core.state, late)
    assert found is not None and found.model == "b"
    del core.state.demands["b?!1!"]
    found = overdue(core.state, late)
    assert found is not None and found.model == "d"


def test_a_drain_that_goes_on_counts_for_as_long_as_it_does() -> None:
    core, _ = behind_a_busy_runner()
    runner = next(iter(core.state.runners.values()))
    core.passes(TURN_NS + 2 * S)
    core.measure()
    assert runner.drain_t >= 0
    long_ns = 10**15
    assert longest_round_ns(core.state, core.t + long_ns) > long_ns
    assert overdue(core.state, core.t + long_ns) is None


def test_a_runner_that_goes_begins_the_wait_anew() -> None:
    core = Core({"a": model(6), "b": model(6)})
    runner = core.load("a")
    core.arrive("a")
    waits = core.arrive("a")
    core.state.requests[waits].queued_t -= 10_000 * S
    core.take(c.UnloadRequested("a"))
    assert core.state.requests[waits].state is RequestState.queued
    assert core.state.runners[runner].held
    assert overdue(core.state, core.t + S) is None


@pytest.mark.parametrize(
    ("config", "turn_ns"),
    [({"policy": "fifo"}, 0), ({"max_wait_ns": 5 * S}, 5 * S), ({"swap_patience": 1}, 2 * LOAD_GUESS_NS)],
)
def test_a_turn_is_as_the_policy_gives_it(config: dict[str, object], turn_ns: int) -> None:
    core, _ = behind_a_busy_runner(**config)
    assert longest_round_ns(core.state, core.t) == turn_ns + END_NS + LOAD_NS


def test_collate_promises_nothing() -> None:
    core, _ = behind_a_busy_runner(policy="collate")
    assert overdue(core.state, core.t + 10**18) is None


def test_an_operators_load_alone_is_no_request() -> None:
    core = Core({"a": model(6), "b": model(6)})
    core.load("a")
    core.arrive("a")
    core.measure()
    core.free["host"] = (10 * GIB, 4 * GIB)
    core.take(c.LoadRequested("b"))
    assert core.state.demands
    assert overdue(core.state, core.t + 10**18) is None
