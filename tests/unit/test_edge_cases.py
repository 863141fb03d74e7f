"""Every fact in every state that is reached: twice, late, of somebody unknown, out of turn.

The states are collected from simulated worlds, not made up: of each runner's and each request's shape that a
random world reaches, the first example. Each gets every fact that the world could send about its subjects,
true or not. The step must raise nothing, leave a state in which every invariant holds, and be derived again
from the log to the same bytes.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from typing import NamedTuple

import msgspec
import pytest

from events import catalogue as c
from events.catalogue import NEVER, Event, Fact, Process, Reading
from events.limits import GIB, S
from statemachines.invariants import check_all
from statemachines.parts import Request, Runner
from statemachines.replay import fold, steps, verify
from statemachines.request import RequestState
from statemachines.runner import RunnerState
from statemachines.scheduler import RULES, Scheduler
from statemachines.state import State, canonical
from tests.simulation.causes import check_causes
from tests.simulation.worlds import TRAFFIC_NS, RandomWorld

SEEDS = range(40)
"""Worlds that are searched; together they reach every state that lasts."""
LASTING = {
    RunnerState.loading,
    RunnerState.ready,
    RunnerState.draining,
    RunnerState.stopping,
    RunnerState.reclaiming,
}
"""Runner states in which a fact can meet a runner."""
PARTS = 8
"""Tests that the cases are spread over."""
HOUR_NS = 3600 * S


def runner_shape(state: State, runner: Runner) -> tuple[object, ...]:
    """What may decide how a fact about a runner is taken."""
    due = [kind for _, (kind, id) in state.deadlines if id == runner.id]
    return (
        runner.state, runner.suspect, runner.stuck, bool(runner.processes), bool(runner.held), runner.exited,
        runner.ready_t != NEVER, "probe" in due, "reprobe" in due, bool(runner.shard_ports),
        bool(runner.ended), "stall" in due,
        any(state.requests[id].state is not RequestState.dispatched for id in runner.held),
        bool(state.stopping),
    )  # fmt: skip


def request_shape(state: State, request: Request) -> tuple[object, ...]:
    """What may decide how a fact about a request is taken."""
    runner = state.runners.get(request.runner)
    due = [kind for _, (kind, id) in state.deadlines if id == request.id]
    return (
        request.state, request.slot, request.attempt, runner and runner.state, runner and runner.suspect,
        "close" in due, request.demand in state.demands and state.demands[request.demand].servers > 0,
    )  # fmt: skip


class Met(NamedTuple):
    """A state, and who in it is to get the facts."""

    frozen: bytes
    runner: str
    request: str

    def state(self) -> State:
        """A copy of its own."""
        state: State = pickle.loads(self.frozen)
        return state


def named(step: list[Event]) -> Iterator[str]:
    """Whom a step is about."""
    for event in step:
        yield event.subject
        yield getattr(event.body, "runner", "")


def shapes(state: State, step: list[Event]) -> Iterator[tuple[tuple[object, ...], str, str]]:
    """The shapes of those whom a step is about, with the runner and request that go with each."""
    for id in dict.fromkeys(named(step)):
        runner, request = state.runners.get(id), state.requests.get(id)
        if runner is not None:
            yield ("runner", *runner_shape(state, runner)), id, next(iter(runner.held), "q1")
        if request is not None:
            yield ("request", *request_shape(state, request)), request.runner or "r1", id


@pytest.fixture(scope="module")
def found() -> dict[tuple[object, ...], Met]:
    """One example of each shape that the worlds reach."""
    examples: dict[tuple[object, ...], Met] = {}
    for seed in SEEDS:
        world = RandomWorld(seed)
        world.world.check = False
        world.prepare()
        world.world.run(TRAFFIC_NS)
        state = State()
        for step in steps(world.world.log):
            fold(step, state)
            for shape, runner, request in shapes(state, step):
                if shape not in examples:
                    examples[shape] = Met(pickle.dumps(state), runner, request)
    return examples


def facts(state: State, met: Met) -> Iterator[Fact]:
    """What the world could say now, true or not, about the subject, about others and about nobody."""
    runner = state.runners.get(met.runner)
    others = [id for id in state.runners if id != met.runner][:1]
    for id in (met.runner, *others, "r999999"):
        yield from about_runner(state, id)
        for request in (met.request, "q999999"):
            for complete, sent_bytes, sent in (
                (True, 9, True),
                (False, 0, True),
                (False, 9, True),
                (False, 0, False),
            ):
                yield c.UpstreamEnded(request, id, complete, sent_bytes, 200, sent)
    for request in (met.request, "q999999"):
        yield c.ClientGone(request)
        yield c.CancelRequested(request)
    model = runner.model if runner else next(iter(state.config.models))
    for name in (model, "m999", ""):
        yield c.RequestArrived(name, "chat")
        yield c.RequestArrived(name, "chat", {"no_such": 1}, 5, 0)
        yield c.LoadRequested(name)
        yield c.LoadRequested(name, {"no_such": 1})
        yield c.BreachRecorded("request.arrived", name, "an earlier start")
        for cancel, now in ((False, False), (True, False), (True, True)):
            yield c.UnloadRequested(name, cancel=cancel, now=now)
    yield from about_all(state)


def about_runner(state: State, id: str) -> Iterator[Fact]:
    """Facts about one runner."""
    runner = state.runners.get(id)
    port = runner.port if runner else 5800
    for shard in (0, 1, 7):
        yield c.ProcessSpawned(Process(id, shard, "boot", 4711, 1))
        yield c.ProcessExited(id, shard, None, "last words")
    yield c.SpawnFailed(id, "no such file")
    yield c.LeaseRefused(id, port)
    yield c.LeaseRefused(id, port + 1)
    yield c.LeaseRefused(id, runner.shard_ports[-1] if runner and runner.shard_ports else port)
    yield c.LoadProgressed(id, "output")
    for healthy, moved in ((True, False), (False, False), (False, True)):
        yield c.ProbeAnswered(id, healthy, moved)
    for cancel, now in ((False, False), (True, True)):
        yield c.UnloadRequested(runner=id, cancel=cancel, now=now)
    yield c.MemoryMeasured(dict(state.readings), {id: {"gpu0": 99 * GIB, "host": GIB}})


def about_all(state: State) -> Iterator[Fact]:
    """Facts about devices, the configuration, the daemon and its log."""
    yield c.MemoryMeasured({})
    yield c.MemoryMeasured({"host": Reading(0, 0), "gpu0": Reading(GIB, 2 * GIB, reliable=False)})
    yield c.MemoryMeasured(
        {name: Reading(r.total_bytes, r.total_bytes) for name, r in state.readings.items()}
    )
    yield c.ConfigChanged(c.ConfigView())
    yield c.ConfigChanged(state.config)
    yield c.ConfigChanged(
        msgspec.structs.replace(state.config, max_queue=0, max_loaded=1, policy="fifo", port_last=0)
    )
    for how in ("drain", "now", "leave"):
        yield c.StopRequested(how)
    processes = [p for runner in state.runners.values() for p in runner.processes.values()]
    for survivors in ((), tuple(processes), tuple(processes[1:]), (Process("r999999", 0, "boot", 4711, 1),)):
        yield c.DaemonStarted(RULES, "balanced", "boot2", "9", survivors=survivors)
    yield c.DaemonStopped()
    yield c.LogResumed(3, S, "disk full")
    yield c.LogTailLost(9, 8)


def suffers(met: Met, fact: Fact) -> None:
    """The fact, the same again, the same once more when all that it armed has passed."""
    scheduler, log = Scheduler(met.state()), []
    for later_ns in (0, 0, HOUR_NS):
        t = scheduler.state.t + later_ns
        while events := scheduler.advance_one(t):
            log += events
        log += scheduler.step(fact, t)
        check_all(scheduler.state)
        check_causes(scheduler.state)
    known = canonical(scheduler.state)
    assert canonical(fold(log, met.state())) == known, "the log folds to another state"
    assert canonical(verify(log, met.state())[1]) == known, "the log verifies to another state"


def test_the_worlds_reach_every_state_that_lasts(found: dict[tuple[object, ...], Met]) -> None:
    assert {shape[1] for shape in found if shape[0] == "runner"} == LASTING
    ended = {RequestState.cancelled, RequestState.timed_out}
    assert {shape[1] for shape in found if shape[0] == "request"} >= ended | {
        RequestState.queued,
        RequestState.dispatched,
    }


@pytest.mark.parametrize("part", range(PARTS))
def test_every_fact_in_every_state_is_taken(found: dict[tuple[object, ...], Met], part: int) -> None:
    """No exception, every invariant, the same bytes from a replay."""
    for shape, met in list(found.items())[part::PARTS]:
        for fact in facts(met.state(), met):
            try:
                suffers(met, fact)
            except Exception as error:
                error.add_note(f"{fact} for {met.runner}, {met.request} in {shape}")
                raise
