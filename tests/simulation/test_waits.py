"""The parts of each request's time, in random worlds: they add up, and are what each instant says."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from daemon.history.parts import DOWN, PARTS, RETRY, SERVED, part_of
from daemon.history.waits import Wait, Waits
from events import catalogue as c
from events.catalogue import Event
from statemachines.fold import apply
from statemachines.replay import steps
from statemachines.request import RequestState
from statemachines.state import State
from tests.simulation.worlds import ENDS, run_world

SEEDS = 30


def folded(log: list[Event]) -> Iterator[tuple[State, list[Event]]]:
    """Every step, with the state after it."""
    state = State()
    for step in steps(log):
        for event in step:
            apply(state, event)
        yield state, step


def split(log: list[Event]) -> dict[str, Wait]:
    """What `Waits` makes of a log."""
    waits, found = Waits(), dict[str, Wait]()
    for state, step in folded(log):
        for event in step:
            ended = waits.note(state, event, event.t)
            if ended is not None:
                found[ended.request] = ended
    assert not waits.open
    return found


def looked_at(log: list[Event]) -> dict[str, list[int]]:
    """The same by brute force: what each request waits for is looked at after every step."""
    parts: dict[str, list[int]] = {}
    last_t, now, leases = 0, dict[str, int](), set[str]()
    for state, step in folded(log):
        if isinstance(step[0].body, c.DaemonStarted):
            now = {id: part if id in leases and part == SERVED else DOWN for id, part in now.items()}
        for id, part in now.items():
            parts.setdefault(id, [0] * len(PARTS))[part] += state.t - last_t
        for event in step:
            if isinstance(event.body, c.RequestRequeued):
                served = parts[event.body.request]
                served[RETRY] += served[SERVED]
                served[SERVED] = 0
            elif isinstance(event.body, c.RequestArrived):
                parts[event.subject] = [0] * len(PARTS)
                leases |= {event.subject} if event.body.kind == c.LEASE else set()
        now = {
            id: SERVED if request.state is RequestState.dispatched
            else part_of(state, state.demands[request.demand])
            for id, request in state.requests.items()
            if request.state in (RequestState.queued, RequestState.dispatched)
        }  # fmt: skip
        last_t = state.t
    return parts


@pytest.mark.parametrize("first", range(0, SEEDS, 10))
def test_parts_add_up_and_are_what_a_look_at_each_instant_says(first: int) -> None:
    for seed in range(first, first + 10):
        log = run_world(seed).world.log
        waits = split(log)
        arrived = {event.subject: event.t for event in log if type(event.body) is c.RequestArrived}
        ended = {event.body.request: event for event in log if isinstance(event.body, ENDS)}
        assert waits.keys() == arrived.keys() == ended.keys()
        for id, wait in waits.items():
            assert wait.total_ns == ended[id].t - arrived[id] == wait.ended_t - wait.arrived_t, f"{seed} {id}"
            assert all(ns >= 0 for ns in wait.parts)
        assert {id: wait.parts for id, wait in waits.items()} == looked_at(log), f"seed {seed}"


def test_the_worlds_have_every_part() -> None:
    spent = [0] * len(PARTS)
    for seed in (*range(24), 37):  # in the last one the daemon dies for a while
        for wait in split(run_world(seed).world.log).values():
            spent = [a + b for a, b in zip(spent, wait.parts, strict=True)]
    assert all(spent), dict(zip(PARTS, spent, strict=True))
