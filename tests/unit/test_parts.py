"""What a queued request waits for, as a part of its time, and that `runnerctl queue` says the same."""

from __future__ import annotations

from daemon.history.parts import DRAIN, LOAD, MEMORY, PARTS, PAUSE, QUEUED, TURN, UNLOAD, part_of
from events import catalogue as c
from events.limits import GIB, S
from statemachines.fold import apply
from statemachines.parts import Cooling
from statemachines.replay import steps
from statemachines.state import State
from statemachines.waiting import cause
from tests.simulation.worlds import run_world
from tests.unit.test_scheduler import Core, model


def part(core: Core, request: str) -> str:
    return PARTS[part_of(core.state, core.state.demands[core.state.requests[request].demand])]


def test_a_runner_that_loads_or_is_busy_or_suspect() -> None:
    core = Core({"a": model()})
    first = core.arrive("a")
    (runner,) = core.state.runners
    assert part(core, first) == "load"
    core.spawn(runner)
    core.take(c.ProbeAnswered(runner, True), S)
    second = core.arrive("a")
    assert part(core, second) == "queued"
    core.ended(first, complete=False)
    assert part(core, second) == "pause"


def test_a_runner_that_failed_a_request_is_asked_for_its_health() -> None:
    """Who was failed waits for that, and so does a model whose room the runner has: for its turn."""
    for again, what in ((True, "pause"), (False, "turn")):
        core = Core({"a": model(6), "b": model(6)})
        failing = core.load("a")
        request = core.arrive("a")
        core.ended(request, complete=False, sent_bytes=0 if again else 9)
        waiting = request if again else core.arrive("b")
        core.measure()
        demand = core.state.demands[core.state.requests[waiting].demand]
        said = cause(core.state, demand)
        assert (part(core, waiting), said) == (what, f"{failing} is asked for its health")


def test_a_busy_runner_comes_before_one_that_loads() -> None:
    core = Core({"a": model(instances_max=2)})
    core.arrive("a")
    (first,) = core.state.runners
    core.spawn(first)
    core.take(c.ProbeAnswered(first, True), S)
    core.arrive("a")
    core.measure()
    third = core.arrive("a")
    assert len(core.state.loading) == 1
    assert part(core, third) == "queued"


def test_a_busy_runner_that_keeps_its_place() -> None:
    core = Core({"a": model(6), "b": model(6), "d": model(6)})
    core.load("a")
    core.arrive("a")
    request, behind = core.arrive("b"), core.arrive("d")
    core.measure()
    assert (part(core, request), part(core, behind)) == ("turn", "turn")


def test_room_that_is_being_made_and_who_is_behind() -> None:
    core = Core({"a": model(6), "b": model(6), "d": model(6)}, policy="fifo")
    victim = core.load("a")
    running = core.arrive("a")
    request, behind = core.arrive("b"), core.arrive("d")
    core.measure()
    assert core.state.claims
    assert (part(core, request), part(core, behind)) == ("drain", "turn")
    core.ended(running)
    assert (part(core, request), part(core, behind)) == ("unload", "turn")
    core.leaves(victim)
    assert part(core, request) == "memory"


def test_what_leaves_for_other_reasons_and_a_measurement() -> None:
    core = Core({"a": model(6)})
    runner = core.load("a")
    running = core.arrive("a")
    core.take(c.UnloadRequested("a"))
    request = core.arrive("a")
    assert part(core, request) == "drain"
    core.ended(running)
    assert part(core, request) == "unload"
    core.leaves(runner)
    assert core.state.measuring
    assert part(core, request) in ("memory", "unload")


def test_memory_that_others_hold_and_a_cool_down() -> None:
    core = Core({"a": model(6)})
    core.free["host"] = (10 * GIB, GIB)
    core.measure()
    request = core.arrive("a")
    assert part(core, request) == "memory"
    core.state.cooling["a"] = Cooling("r1", 1, core.state.t + S, "")
    assert part(core, request) == "pause"


SAID = {
    "busy": {QUEUED},
    "health": {PAUSE, LOAD, TURN, MEMORY},
    "pause": {PAUSE},
    "make": {DRAIN, UNLOAD},
    "other programs": {MEMORY},
    "its turn": {TURN, QUEUED},
    "which is next": {TURN, DRAIN, UNLOAD, MEMORY},
    "leaving": {DRAIN, UNLOAD, TURN},
    "linger": {TURN, MEMORY},
    "load": {LOAD, TURN},
    "a measurement": {MEMORY, TURN},
    "room": {TURN, MEMORY, UNLOAD},
}
"""What may be meant by the words; the first that occur count."""


def test_it_is_what_the_queue_says_in_words() -> None:
    seen: dict[str, int] = {}
    for seed in (*range(16), 93):  # in the last one somebody lingers
        state = State()
        for step in steps(run_world(seed).world.log):
            for event in step:
                apply(state, event)
            for demand in state.demands.values():
                if demand.waiting:
                    words = cause(state, demand)
                    key = next(key for key in SAID if key in words)
                    seen[key] = seen.get(key, 0) + 1
                    assert part_of(state, demand) in SAID[key], f"seed {seed}, {event.seq}: {words}"
    assert seen.keys() >= SAID.keys() - {"room"}, seen
