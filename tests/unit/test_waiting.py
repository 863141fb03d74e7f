"""What a queued request is said to wait for."""

from __future__ import annotations

from events import catalogue as c
from events.limits import GIB, S
from statemachines.parts import Cooling
from statemachines.waiting import cause
from tests.unit.test_scheduler import Core, model


def waits(core: Core, request: str) -> str:
    return cause(core.state, core.state.demands[core.state.requests[request].demand])


def test_a_runner_that_loads_or_is_busy_or_suspect() -> None:
    core = Core({"a": model()})
    first = core.arrive("a")
    (runner,) = core.state.runners
    assert waits(core, first) == f"{runner} loads"
    core.spawn(runner)
    core.take(c.ProbeAnswered(runner, True), S)
    second = core.arrive("a")
    assert waits(core, second) == f"{runner} is busy"
    core.ended(first, complete=False)
    assert waits(core, second) == f"{runner} is asked for its health"


def test_several_instances() -> None:
    core = Core({"a": model(instances_max=2)})
    core.arrive("a")
    (first,) = core.state.runners
    core.spawn(first)
    core.take(c.ProbeAnswered(first, True), S)
    core.arrive("a")
    core.measure()
    third = core.arrive("a")
    second = list(core.state.runners)[-1]
    assert second != first
    assert waits(core, third) == f"{first} is busy, {second} loads"


def test_room_that_is_being_made() -> None:
    core = Core({"a": model(6), "b": model(6), "d": model(6)}, policy="collate")
    victim = core.load("a")
    request, behind = core.arrive("b"), core.arrive("d")
    core.measure()
    assert waits(core, request) == f"{victim} makes room"
    assert waits(core, behind) == "b, which is next"


def test_a_turn_and_who_is_before_it() -> None:
    core = Core({"a": model(6), "b": model(6), "d": model(6)})
    core.load("a")
    core.arrive("a")
    request, behind = core.arrive("b"), core.arrive("d")
    core.measure()
    assert waits(core, request) == "its turn"
    assert waits(core, behind) == "b, which is next"


def test_what_loads_is_no_victim() -> None:
    core = Core({"a": model(6), "b": model(6), "d": model(6)})
    core.arrive("a")
    (loading,) = core.state.runners
    request, behind = core.arrive("b"), core.arrive("d")
    assert waits(core, request) == f"{loading} loads"
    assert waits(core, behind) == "b, which is next"


def test_what_leaves_and_a_measurement() -> None:
    core = Core({"a": model(6)})
    runner = core.load("a")
    core.take(c.UnloadRequested("a"))
    request = core.arrive("a")
    assert waits(core, request) == f"{runner} is leaving"
    core.passes(2 * S)
    core.leaves(runner)
    assert core.state.measuring
    assert waits(core, request) == "a measurement"


def test_other_programs_and_a_failed_load() -> None:
    core = Core({"a": model(6)})
    core.free["host"] = (10 * GIB, GIB)
    core.measure()
    request = core.arrive("a")
    assert waits(core, request) == "memory that other programs hold"
    core.state.cooling["a"] = Cooling("r1", 1, core.t + 5 * S, "no such file")
    assert waits(core, request) == "the end of the pause after a failed load"
