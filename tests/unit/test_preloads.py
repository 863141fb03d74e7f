"""Preloads in the core: loads like an operator's, none of which makes room for another."""

from __future__ import annotations

from events import catalogue as c
from events.limits import GIB, MEMORY_WAIT_NS, S
from statemachines.replay import verify
from statemachines.scheduler import RULES
from tests.unit.test_scheduler import Core, model, of


def preload(core: Core, *names: str) -> list[c.Event]:
    return [e for name in names for e in core.take(c.LoadRequested(name, by="preload", preload=True))]


def up(core: Core, runner: str) -> list[c.Event]:
    core.spawn(runner)
    return core.take(c.ProbeAnswered(runner, True), S)


def loads(events: list[c.Event]) -> list[str]:
    return [load.model for load in of(events, c.RunnerLoad)]


def refused(events: list[c.Event]) -> list[tuple[str, str]]:
    return [(end.reason, end.detail) for end in of(events, c.OperationEnded) if not end.ok]


def test_what_fits_is_loaded_at_the_same_time_in_order() -> None:
    core = Core({"a": model(4), "b": model(4, priority=5)})
    assert loads(preload(core, "a", "b")) == ["a", "b"]


def test_none_makes_room_for_another() -> None:
    core = Core({"a": model(6), "b": model(6)})
    events = preload(core, "a", "b")
    assert loads(events) == ["a"]
    (runner,) = core.state.runners
    assert refused(events) == [("preloaded", f"{runner} (a, preloaded)")]
    assert of(up(core, runner), c.OperationEnded)[0].ok
    events = preload(core, "b")
    assert refused(events + core.passes(2 * S) + core.measure()) == [
        ("preloaded", f"{runner} (a, preloaded)")
    ]
    assert core.state.runners[runner].live
    verify(core.log)


def test_a_request_or_an_operator_may_evict_what_was_preloaded() -> None:
    for fact in (c.RequestArrived("b", "chat"), c.LoadRequested("b", by="uid 0")):
        core = Core({"a": model(6), "b": model(6)}, policy="collate")
        preload(core, "a")
        (runner,) = core.state.runners
        up(core, runner)
        core.measure()
        assert [each.runner for each in of(core.take(fact), c.RunnerStop)] == [runner]


def test_other_survivors_make_room() -> None:
    core = Core({"a": model(6), "b": model(6)}, policy="collate")
    survivor = core.load("a")
    process = core.state.runners[survivor].processes[0]
    core.take(c.DaemonStarted(RULES, "balanced", "boot", "test", survivors=(process,)))
    core.measure()
    core.take(c.ProbeAnswered(survivor, True))
    assert [each.runner for each in of(preload(core, "b"), c.RunnerStop)] == [survivor]


def test_what_other_programs_hold_is_waited_for() -> None:
    core = Core({"a": model(4), "b": model(4)})
    core.free["host"] = (10 * GIB, 7 * GIB)
    core.measure()
    events = preload(core, "a", "b")
    assert (loads(events), refused(events)) == (["a"], [])
    (runner,) = core.state.runners
    up(core, runner)
    core.free["host"] = (10 * GIB, 3 * GIB)
    for _ in range(MEMORY_WAIT_NS // S + 3):
        events += core.passes(S) + core.measure()
    assert [reason for reason, _ in refused(events)] == ["no_memory"]
    assert core.state.runners[runner].live


def test_the_next_start_forgets_them() -> None:
    core = Core({"a": model(6), "b": model(6)})
    preload(core, "a")
    assert core.state.preloads == {"a": None}
    core.take(c.DaemonStarted(RULES, "balanced", "boot", "test"))
    assert core.state.preloads == {}
