"""Why the daemon says that it is not ready."""

from __future__ import annotations

from daemon.readiness import Signs, reasons
from events import catalogue as c
from events.limits import DEADLINE_LATE_NS, S
from statemachines.agenda import Agenda
from statemachines.state import State
from tests.unit.test_scheduler import Core, model


def words(state: State, t: int, signs: Signs | None = None) -> list[str]:
    return [reason.reason for reason in reasons(state, t, signs or Signs())]


def test_all_is_well() -> None:
    core = Core({"a": model()})
    core.load("a")
    core.arrive("a")
    assert words(core.state, core.t) == []


def test_a_step_has_failed_and_the_state_is_void() -> None:
    [found] = reasons(State(), 5, Signs(failed="Breach: no", failed_ns=3, log_blocked_ns=1))
    assert (found.reason, found.message, found.age_ns) == ("scheduler_failed", "a step failed: Breach: no", 3)


def test_a_deadline_is_overdue() -> None:
    core = Core({"a": model()})
    runner = core.load("a")
    core.arrive("a")
    due = core.state.deadlines["watch", runner]
    assert words(core.state, due + DEADLINE_LATE_NS) == []
    [found] = reasons(core.state, due + DEADLINE_LATE_NS + 1, Signs())
    assert found.reason == "scheduler_late"
    assert found.age_ns == DEADLINE_LATE_NS + 1
    assert found.message == f"the scheduler does nothing: its deadline watch of {runner} is overdue"


def test_the_log_is_blocked_and_the_daemon_stops() -> None:
    core = Core({"a": model()})
    core.take(c.StopRequested("drain"))
    found = reasons(core.state, core.t, Signs(log_error="disk full", log_blocked_ns=7, stopping_ns=9))
    assert [(each.reason, each.age_ns) for each in found] == [("log_blocked", 7), ("stopping", 9)]
    assert [each.message for each in found] == [
        "the event log cannot be written: disk full",
        "the daemon is stopping (drain)",
    ]


def test_a_wait_is_too_long() -> None:
    core = Core({"a": model(6), "b": model(6)})
    runner = core.load("a")
    core.arrive("a")
    request = core.arrive("b")
    state = core.state
    state.deadlines = Agenda()  # nothing will ever happen, and nobody is late
    [found] = reasons(state, core.t + 10_000 * S, Signs())
    assert (found.reason, found.request, found.model) == ("wait_too_long", request, "b")
    assert found.age_ns == 10_000 * S
    assert found.message.startswith(f"{request} has waited for a runner of b for 10000 s, where ")
    assert runner in state.runners
