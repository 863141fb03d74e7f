"""What is counted of the events that have become durable."""

from __future__ import annotations

from typing import Any

import pytest

from daemon.tally import EVICTIONS, OUTCOMES, Tally
from events import catalogue as c
from events.histogram import Histogram
from events.limits import METRIC_REASONS, S
from statemachines.state import State
from tests.unit.test_scheduler import Core, model


class Counted(Core):
    """A core whose events are all durable at once."""

    def __init__(self, *arguments: Any, **config: Any) -> None:
        self.tally: Tally | None = None
        super().__init__(*arguments, **config)
        self.tally = Tally(self.state)

    def note(self, events: list[c.Event]) -> list[c.Event]:
        if self.tally is not None:
            self.tally.note(events)
        return super().note(events)


def ended(tally: Tally, name: str) -> dict[str, int]:
    return {outcome: n for outcome, n in zip(OUTCOMES, tally.models[name].requests, strict=True) if n}


def test_a_histogram() -> None:
    made = Histogram((10, 20))
    for ns in (0, 10, 11, 20, 21, 1000):
        made.add(ns)
    assert (made.counts, made.sum_ns) == ([2, 2, 2], 1062)


def test_requests_by_how_they_ended_and_how_long_they_waited() -> None:
    core = Counted({"a": model(), "b": model(queue_ns=5 * S)})
    tally = core.tally
    assert tally is not None
    core.load("a")
    first, second = core.arrive("a"), core.arrive("a")
    third = core.arrive("a")
    core.arrive("b")
    core.passes(6 * S)
    assert ended(tally, "b") == {"timed_out": 1}
    runner = core.state.requests[first].runner
    core.take(c.UpstreamEnded(first, runner, True, 9, 200, first_byte_ns=3 * S))
    core.take(c.ClientGone(third))
    core.ended(second)
    core.arrive("nobody")
    counted = tally.models["a"]
    assert (counted.arrived, ended(tally, "a")) == (3, {"completed": 2, "cancelled": 1})
    assert sum(counted.queue_ns.counts) == 2
    assert counted.queue_ns.sum_ns == 6 * S
    assert (sum(counted.first_byte_ns.counts), counted.first_byte_ns.sum_ns) == (1, 3 * S)
    assert ended(tally, "nobody") == {"rejected": 1}
    assert {why: n for why, n in tally.errors.items() if n} == {
        "queue_timeout": 1, "client_gone": 1, "unknown_model": 1,
    }  # fmt: skip


def test_a_second_attempt_waits_once() -> None:
    core = Counted({"a": model(instances_max=2)})
    assert core.tally is not None
    core.load("a")
    request = core.arrive("a")
    core.ended(request, complete=False, sent_bytes=0)
    assert core.state.requests[request].attempt == 1
    assert sum(core.tally.models["a"].queue_ns.counts) == 1
    assert not core.tally.models["a"].requests[0]


def test_loads_and_ends_of_runners() -> None:
    core = Counted({"a": model(6), "b": model(6)})
    tally = core.tally
    assert tally is not None
    runner = core.load("a")
    assert (tally.models["a"].loads, tally.models["a"].load_ns.sum_ns) == ([1, 0, 0, 0], S)
    core.take(c.ProbeAnswered(runner, True), S)
    assert tally.models["a"].loads == [1, 0, 0, 0], "it was ready before"
    core.arrive("b")
    core.measure()
    assert tally.evictions == dict.fromkeys(EVICTIONS, 0) | {"evicted": 1}
    core.leaves(runner)
    core.measure()
    assert tally.models["a"].runners == [1, 0, 0]
    (other,) = core.state.runners
    core.spawn(other)
    core.take(c.ProcessExited(other, 0, 1))
    assert (tally.models["b"].loads, tally.models["b"].runners) == ([0, 0, 1, 0], [0, 1, 0])
    assert tally.events == len(core.log) - 3, "all but those before it was made"


def test_what_a_start_found_is_counted_when_it_ends() -> None:
    core = Core({"a": model(6), "b": model(6)})
    runner = core.load("a")
    core.arrive("a")
    core.arrive("b")
    tally = Tally(core.state)
    tally.note(core.take(c.DaemonStarted(1, "balanced", "another boot", "test")))
    assert ended(tally, "a") == {"interrupted": 1}
    assert ended(tally, "b") == {"interrupted": 1}
    assert (tally.models["a"].loads, tally.models["a"].runners) == ([0, 0, 0, 0], [0, 0, 1])
    assert runner not in core.state.runners


def test_the_stop() -> None:
    core = Counted({"a": model()})
    assert core.tally is not None and core.tally.stopping_t == c.NEVER
    core.t = 7 * S
    core.take(c.StopRequested("drain"))
    core.take(c.StopRequested("now"), S)
    assert core.tally.stopping_t == 7 * S


def test_names_have_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("daemon.tally.METRIC_MODELS", 2)
    tally = Tally(State())
    for seq, name in enumerate("abcd"):
        tally.note([c.Event(seq, 0, 0, f"q{seq}", c.RequestArrived(name, "chat"))])
    assert {name: counted.arrived for name, counted in tally.models.items()} == {"a": 1, "b": 1, "": 2}
    for i in range(2 * METRIC_REASONS):
        tally.note([c.Event(i, 0, 0, "r1", c.RunnerDrain("r1", f"reason {i}"))])
    assert len(tally.evictions) == METRIC_REASONS + 1
    assert sum(tally.evictions.values()) == 2 * METRIC_REASONS
