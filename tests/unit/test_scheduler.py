"""What the core promises in detail: choices, limits and waits that no story in tests/scenarios pins."""

from __future__ import annotations

from typing import Any, TypeVar

import pytest

from events import catalogue as c
from events.catalogue import Decision, Fact, Option, Process, Reading
from events.limits import (
    COOL_FIRST_NS,
    CRASH_WINDOW_NS,
    GIB,
    KILL_NS,
    PROBE_NS,
    REPROBE_NS,
    STEP_DECISIONS,
    STOP_NS,
    UPSTREAM_CLOSE_NS,
    S,
)
from statemachines.invariants import check_all
from statemachines.policy import rank
from statemachines.replay import verify
from statemachines.runner import RunnerState
from statemachines.scheduler import RULES, Scheduler
from statemachines.state import State
from tests.simulation.causes import check_causes

D = TypeVar("D", bound=Decision)


def model(size: int = 1, **fields: Any) -> c.ModelView:
    """A model of so many GiB of host memory."""
    return c.ModelView(digest="d", memory_bytes={"host": size * GIB}, **fields)


class Core:
    """A scheduler on a machine with 10 GiB, and what the world tells it."""

    def __init__(self, models: dict[str, c.ModelView], **config: Any) -> None:
        self.scheduler = Scheduler()
        self.log: list[c.Event] = []
        self.t = 0
        self.free = {"host": (10 * GIB, 10 * GIB)}
        """Total and free, by device."""
        self.take(c.DaemonStarted(RULES, "balanced", "boot", "test"))
        self.take(c.ConfigChanged(c.ConfigView(models=models, max_loaded=8, **config)))
        self.measure()

    @property
    def state(self) -> State:
        return self.scheduler.state

    def take(self, fact: Fact, after_ns: int = 0) -> list[c.Event]:
        """A fact, some time later; every event since."""
        self.t += after_ns
        return self.note(self.scheduler.step(fact, self.t))

    def passes(self, ns: int) -> list[c.Event]:
        """Time passes."""
        self.t += ns
        return self.note(self.scheduler.advance(self.t))

    def note(self, events: list[c.Event]) -> list[c.Event]:
        self.log += events
        check_all(self.state)
        check_causes(self.state)
        return events

    def measure(self, **runners: dict[str, int]) -> list[c.Event]:
        devices = {name: Reading(total, free) for name, (total, free) in self.free.items()}
        return self.take(c.MemoryMeasured(devices, runners))

    def arrive(self, name: str, priority: int = 0, **options: Option) -> str:
        """A request; its id."""
        return self.take(c.RequestArrived(name, "chat", options, priority))[0].subject

    def spawn(self, runner: str) -> None:
        self.take(c.ProcessSpawned(Process(runner, 0, "boot", 1, 1)))

    def load(self, name: str, **options: Option) -> str:
        """A runner that an operator loads, until it is ready; its id."""
        self.measure()
        runner = only(self.take(c.LoadRequested(name, options)), c.RunnerLoad)
        self.spawn(runner)
        self.take(c.ProbeAnswered(runner, True), S)
        return runner

    def ended(self, request: str, complete: bool = True, sent_bytes: int = 9) -> list[c.Event]:
        """The exchange of a request ends."""
        runner = self.state.requests[request].runner
        return self.take(c.UpstreamEnded(request, runner, complete, sent_bytes, 200))

    def leaves(self, runner: str) -> None:
        """A runner that stops is gone, and so is what it used."""
        self.take(c.ProcessExited(runner, 0, 0))


def of(events: list[c.Event], kind: type[D]) -> list[D]:
    """The decisions of one kind."""
    return [event.body for event in events if isinstance(event.body, kind)]


def only(events: list[c.Event], kind: type[Decision]) -> str:
    """The subject of the only decision of a kind."""
    (found,) = [event for event in events if isinstance(event.body, kind)]
    return found.subject


# --- dispatch --------------------------------------------------------------------------------------------


def test_an_open_request_goes_to_the_least_busy_runner() -> None:
    core = Core({"a": model(slots=4, options={"num_ctx": 4096})})
    first, second = core.load("a"), core.load("a", num_ctx=8192)
    core.arrive("a", num_ctx=4096)
    assert of(core.take(c.RequestArrived("a", "chat")), c.RequestDispatched)[0].runner == second
    core.arrive("a", num_ctx=8192)
    assert of(core.take(c.RequestArrived("a", "chat")), c.RequestDispatched)[0].runner == first


def test_a_fact_with_an_earlier_time_comes_after_what_is_due() -> None:
    """A fact's clock may lag behind the last one: what was due by that comes first, as in a replay."""
    core = Core({"a": model(slots=8)})
    first = core.take(c.RequestArrived("a", "chat"))
    for _ in range(7):
        core.arrive("a")
    runner = only(first, c.RunnerLoad)
    core.spawn(runner)
    assert of(core.take(c.ProbeAnswered(runner, True), S), c.StepContinues)
    events = core.note(core.scheduler.step(c.RequestArrived("a", "chat"), core.t - S))
    assert isinstance(events[0].body, c.DeadlinePassed)
    verify(core.log)


def test_a_gentle_unload_cuts_nothing() -> None:
    core = Core({"a": model(unload_ns=S)})
    runner = core.load("a")
    request, behind = core.arrive("a"), core.arrive("a")
    [drain] = of(core.take(c.UnloadRequested(runner=runner, gently=True)), c.RunnerDrain)
    assert drain.deadline_ns == 0
    core.passes(30 * S)
    assert core.state.runners[runner].held
    events = core.ended(request)
    assert only(events, c.RunnerStop) == runner
    core.leaves(runner)
    core.measure()
    assert core.state.requests[behind].state.value == "queued", "it waits for the next runner"
    core.take(c.UnloadRequested(runner=list(core.state.runners)[-1], gently=True))
    verify(core.log)


# --- who is next -----------------------------------------------------------------------------------------


def test_of_two_that_starve_the_higher_priority_loads_first() -> None:
    core = Core({"a": model(), "b": model(), "c": model(size=9)})
    core.load("c")
    assert of(core.take(c.RequestArrived("a", "chat"), 2 * S), c.MemoryMeasure)
    core.arrive("b", priority=1)
    assert of(core.measure(), c.RunnerLoad)[0].model == "b"


def test_an_operators_load_does_not_lose_its_place_to_a_request_that_joins_it() -> None:
    core = Core({"a": model(), "b": model()})
    core.take(c.LoadRequested("a"), 2 * S)
    core.arrive("b")
    core.arrive("a")
    assert of(core.measure(), c.RunnerLoad)[0].model == "a"


def test_an_operators_load_ages_like_a_request() -> None:
    """Under a load where everybody waits for minutes it would never be first otherwise."""
    core = Core({"a": model(size=9), "b": model(size=9), "c": model(size=9)}, policy="collate")
    core.load("c")
    core.arrive("c")
    core.measure()
    core.take(c.LoadRequested("a"))
    core.arrive("b")
    core.passes(90 * S)
    core.measure()
    demands = core.state.demands
    assert rank(core.state, demands["a"]) < rank(core.state, demands["b"]) < (0, 0)


def test_when_the_first_of_a_demand_leaves_the_next_in_rank_is_looked_at() -> None:
    """Its demand had the rank of its oldest; with it gone, another demand may be first, and may fit."""
    core = Core({"a": model(size=9, slots=2), "b": model(size=9), "c": model(size=1)})
    core.load("a")
    core.arrive("a")
    core.measure()
    first = core.take(c.RequestArrived("b", "chat"))
    assert of(first, c.TurnWaits)
    core.arrive("c")
    core.arrive("b")
    assert of(core.take(c.ClientGone(first[0].subject)), c.RunnerLoad)[0].model == "c"


def test_a_claim_that_was_not_enough_lets_whoever_is_first_now_be_looked_at() -> None:
    """The one that had the claim may have been overtaken meanwhile, and may wait for long."""
    core = Core({"busy": model(size=3), "idle": model(size=3), "b": model(size=8), "c": model()})
    busy, idle = core.load("busy"), core.load("idle")
    core.passes(10 * S)
    core.arrive("busy")
    core.take(c.UnloadRequested(runner=busy))
    core.measure()
    claimed = core.take(c.RequestArrived("b", "chat"))
    assert of(claimed, c.ClaimMade)[0].victims == (idle,)
    core.arrive("c", priority=1)
    core.free["host"] = (10 * GIB, 2 * GIB)  # other programs take what comes back
    core.leaves(idle)
    core.measure()
    core.passes(0)
    assert core.state.runners[busy].state is RunnerState.draining
    assert [runner.model for runner in core.state.loading.values()] == ["c"]


def test_what_waits_for_a_quantum_waits_once() -> None:
    core = Core({"a": model(size=9), "b": model(size=9)})
    core.load("a")
    core.arrive("a")
    core.measure()
    assert of(core.take(c.RequestArrived("b", "chat")), c.TurnWaits)
    assert not of(core.measure(), c.TurnWaits)


# --- runners ---------------------------------------------------------------------------------------------


def test_an_operators_load_that_outlived_a_restart_is_not_stopped_when_a_client_leaves() -> None:
    core = Core({"a": model()})
    runner = only(core.take(c.LoadRequested("a")), c.RunnerLoad)
    core.spawn(runner)
    survivors = tuple(core.state.runners[runner].processes.values())
    core.take(c.DaemonStarted(RULES, "balanced", "boot", "test", survivors=survivors))
    core.take(c.ClientGone(core.arrive("a")))
    assert core.state.runners[runner].state is RunnerState.loading


def test_a_load_that_outlives_a_restart_has_its_whole_time_again() -> None:
    core = Core({"a": model(load_ns=60 * S)})
    runner = only(core.take(c.LoadRequested("a")), c.RunnerLoad)
    core.spawn(runner)
    survivors = tuple(core.state.runners[runner].processes.values())
    core.take(c.DaemonStarted(RULES, "balanced", "boot", "test", survivors=survivors), 59 * S)
    assert core.state.deadlines["load", runner] == core.t + 60 * S


@pytest.mark.parametrize(("after_ns", "cools"), [(CRASH_WINDOW_NS - 1, True), (CRASH_WINDOW_NS, False)])
def test_an_exit_soon_after_ready_is_a_failed_load_although_it_served(after_ns: int, cools: bool) -> None:
    core = Core({"a": model()})
    runner = core.load("a")
    core.ended(core.arrive("a"))
    core.take(c.ProcessExited(runner, 0, 1), after_ns)
    assert ("a" in core.state.cooling) is cools


def test_nothing_cools_down_while_the_daemon_stops() -> None:
    core = Core({"a": model()})
    runner = core.load("a")
    core.arrive("a")
    core.take(c.StopRequested("drain"))
    core.take(c.ProcessExited(runner, 0, 1))
    core.passes(UPSTREAM_CLOSE_NS)
    assert not core.state.runners
    assert not core.state.cooling


def suspect(core: Core) -> str:
    """A runner under suspicion: one of its exchanges broke off."""
    runner = core.load("a")
    assert of(core.ended(core.arrive("a"), complete=False), c.RunnerProbe)
    return runner


def test_a_suspect_has_one_probe_deadline_however_often_it_says_no() -> None:
    core = Core({"a": model()})
    runner = suspect(core)
    stopped: list[c.RunnerStop] = []
    begun = core.t
    while not stopped and core.t < begun + 2 * PROBE_NS:
        core.take(c.ProbeAnswered(runner, False))
        stopped = of(core.passes(REPROBE_NS), c.RunnerStop)
    assert core.t - begun == PROBE_NS
    assert stopped == [c.RunnerStop(runner, "failed", "hung")]


def test_an_idle_suspect_that_is_waited_for_does_not_expire_before_its_probe_answers() -> None:
    """It would be loaded again for those who wait: seconds, where the probe takes milliseconds."""
    core = Core({"a": model(keep_alive_ns=0)})
    core.measure()
    begun = core.take(c.RequestArrived("a", "chat"))
    runner, request = only(begun, c.RunnerLoad), begun[0].subject
    core.spawn(runner)
    waits = core.arrive("a")
    core.take(c.ProbeAnswered(runner, True), S)
    core.ended(request, complete=False)
    assert not of(core.passes(0), c.RunnerDrain)
    assert of(core.take(c.ProbeAnswered(runner, True)), c.RequestDispatched)[0].request == waits
    core.ended(waits)
    assert of(core.passes(0), c.RunnerDrain)


def test_a_suspect_that_nobody_waits_for_any_more_expires() -> None:
    core = Core({"a": model(keep_alive_ns=0)})
    core.measure()
    begun = core.take(c.RequestArrived("a", "chat"))
    runner, request = only(begun, c.RunnerLoad), begun[0].subject
    core.spawn(runner)
    waits = core.arrive("a")
    core.take(c.ProbeAnswered(runner, True), S)
    core.ended(request, complete=False)
    core.passes(0)
    core.take(c.ClientGone(waits))
    core.take(c.ProbeAnswered(runner, True))
    assert of(core.passes(PROBE_NS), c.RunnerDrain)


def test_slots_of_a_process_that_cannot_die_come_back() -> None:
    core = Core({"a": model(unload_ns=S)})
    core.load("a")
    core.arrive("a")
    core.take(c.UnloadRequested("a", now=True))
    core.passes(0)
    assert of(core.passes(STOP_NS + KILL_NS), c.RunnerStuck)
    assert of(core.passes(UPSTREAM_CLOSE_NS), c.RequestFailed)
    assert not core.state.requests


def test_an_exchange_that_was_never_begun_says_nothing_about_its_runner() -> None:
    core = Core({"a": model()})
    runner = core.load("a")
    core.take(c.UpstreamEnded(core.arrive("a"), runner, False, sent=False))
    assert not core.state.runners[runner].suspect


def test_a_request_that_queues_again_has_its_old_deadline() -> None:
    core = Core({"a": model(queue_ns=30 * S)})
    runner = core.load("a")
    core.ended(core.arrive("a"))
    core.passes(CRASH_WINDOW_NS)
    request = core.arrive("a")
    core.take(c.ProcessExited(runner, 0, 1), 10 * S)
    core.take(c.UpstreamEnded(request, runner, False))
    assert core.state.deadlines["queue", request] == core.state.requests[request].arrived_t + 30 * S


# --- what ends without those who wanted it ---------------------------------------------------------------


@pytest.mark.parametrize("oom_kill", [False, True])
def test_a_load_that_was_killed_ran_short_only_if_the_kernel_killed_for_that(oom_kill: bool) -> None:
    """A person's SIGKILL says nothing of memory: the model cools down, and is not loaded alone."""
    core = Core({"a": model(), "b": model()})
    core.load("a")
    core.arrive("a")
    runner = only(core.take(c.RequestArrived("b", "chat")), c.RunnerLoad)
    core.spawn(runner)
    events = core.take(c.ProcessExited(runner, 0, -9, "loading", oom_kill), S) + core.measure()
    assert bool(of(events, c.ModelCrowded)) is oom_kill
    assert bool(of(events, c.ModelCooling)) is not oom_kill


@pytest.mark.parametrize(
    ("status", "output", "says"),
    [
        (-9, "load: 30 %", "load: 30 %\nit was killed by signal 9"),
        (-11, "", "it was killed by signal 11"),
        (1, "no such file", "no such file"),
        (1, "", "it exited with status 1"),
    ],
)
def test_of_a_killed_load_the_signal_is_told_too(status: int, output: str, says: str) -> None:
    """Its last words know nothing of that; the journal shows the last line."""
    core = Core({"a": model(6)})
    core.arrive("a")
    (runner,) = core.state.runners
    core.spawn(runner)
    events = core.take(c.ProcessExited(runner, 0, status, output))
    assert [each.message for each in of(events, c.ModelCooling)] == [says]


def runs_short(core: Core, name: str) -> list[c.Event]:
    """A request whose load runs out of memory: every event since it exited."""
    core.measure()
    runner = only(core.take(c.RequestArrived(name, "chat")), c.RunnerLoad)
    core.spawn(runner)
    return core.take(c.ProcessExited(runner, 0, 1, "out of memory"), S) + core.measure()


def test_a_load_that_ran_short_beside_a_pinned_runner_is_not_to_be_alone() -> None:
    """It never could be: its model would be refused for ever, for one moment without memory."""
    core = Core({"a": model(), "b": model()})
    core.load("a")
    core.take(c.PinRequested("a", True))
    events = runs_short(core, "b")
    assert of(events, c.ModelCooling)
    assert [failed.reason for failed in of(events, c.RequestFailed)] == ["load_failed"]
    core.passes(COOL_FIRST_NS)
    core.measure()
    assert of(core.take(c.RequestArrived("b", "chat")), c.RunnerLoad)


def test_a_model_that_was_to_be_alone_and_cannot_be_is_tried_beside_others_again() -> None:
    core = Core({"a": model(), "b": model()})
    runner = core.load("a")
    busy = core.arrive("a")
    assert of(runs_short(core, "b"), c.ModelCrowded)
    refused = core.take(c.PinRequested("a", True)) + core.measure()
    assert [failed.reason for failed in of(refused, c.RequestFailed)] == ["pinned"]
    core.arrive("b")
    assert of(core.measure(), c.RunnerLoad)
    assert busy in core.state.runners[runner].held


@pytest.mark.parametrize("view", [None, model(2)])
def test_what_ran_short_is_forgotten_with_its_configuration(view: c.ModelView | None) -> None:
    core = Core({"a": model(), "b": model()})
    core.load("a")
    core.arrive("a")
    assert of(runs_short(core, "b"), c.ModelCrowded)
    models = {"a": model()} | ({"b": view} if view else {})
    core.take(c.ConfigChanged(c.ConfigView(models=models, max_loaded=8)))
    assert not core.state.crowded


def test_a_claim_ends_with_those_who_wanted_it_though_nobody_else_starves() -> None:
    """While one stands, no model gets another instance."""
    core = Core({"a": model(3, slots=2, instances_max=2), "b": model(8)})
    runner = core.load("a")
    core.arrive("a")
    core.arrive("b")
    core.passes(60 * S)
    core.measure()
    assert core.state.claims
    assert core.state.runners[runner].state is RunnerState.draining
    events = core.take(c.UnloadRequested("b", cancel=True))
    assert of(events, c.ClaimEnded) == [c.ClaimEnded("b", "nobody_waits")]
    assert not core.state.claims


def two_instances() -> tuple[Core, str, str, str]:
    """A model that has two at least, one of them busy, the other idle for longer than its keep-alive; the
    request, its runner, the idle one."""
    core = Core({"a": model(instances_min=2, instances_max=2, keep_alive_ns=60 * S)})
    request = core.arrive("a")
    busy = only(core.log, c.RunnerLoad)
    core.spawn(busy)
    events = core.take(c.ProbeAnswered(busy, True), S) + core.measure()
    idle = only(events, c.RunnerLoad)
    core.spawn(idle)
    core.take(c.ProbeAnswered(idle, True), S)
    assert not of(core.passes(120 * S), c.RunnerDrain)
    return core, request, busy, idle


def test_an_instance_that_stayed_beside_another_expires_when_that_is_gone() -> None:
    core, _, busy, idle = two_instances()
    core.take(c.ProcessExited(busy, 0, 1))
    assert of(core.passes(0), c.RunnerDrain) == [c.RunnerDrain(idle, "keep_alive")]


def test_an_instance_that_is_above_a_new_least_expires() -> None:
    core, _, _, idle = two_instances()
    fewer = model(instances_max=2, keep_alive_ns=60 * S)
    core.take(c.ConfigChanged(c.ConfigView(models={"a": fewer}, max_loaded=8)))
    assert of(core.passes(0), c.RunnerDrain) == [c.RunnerDrain(idle, "keep_alive")]


def test_the_least_number_of_instances_is_there_again_after_a_pause() -> None:
    """Nothing else need happen: no request, and no memory that moves."""
    core = Core({"a": model(instances_min=2, instances_max=2)})
    core.arrive("a")
    first = only(core.log, c.RunnerLoad)
    core.spawn(first)
    events = core.take(c.ProbeAnswered(first, True), S) + core.measure()
    second = only(events, c.RunnerLoad)
    core.spawn(second)
    core.take(c.ProcessExited(second, 0, 1), S)
    core.measure()
    events = core.passes(COOL_FIRST_NS)
    assert of(events, c.MemoryMeasure)
    assert [load.reason for load in of(core.measure(), c.RunnerLoad)] == ["instances"]


# --- many ------------------------------------------------------------------------------------------------


def test_ten_thousand_waiters_are_dismissed_a_few_each_step() -> None:
    core = Core({"a": model(), "b": model()}, max_queue=20_000)
    scheduler = core.scheduler
    core.take(c.RequestArrived("a", "chat"))
    (runner,) = core.state.runners
    for _ in range(9_999):
        scheduler.step(c.RequestArrived("a", "chat"), core.t)
    core.take(c.ProcessExited(runner, 0, 1, "out of memory"))
    assert core.state.queued > 9_990
    longest = 0
    while core.state.dismissing:
        events = scheduler.advance_one(core.t)
        longest = max(longest, len(events))
        if core.state.queued % 50 == 0:
            check_all(core.state)
            check_causes(core.state)
    assert longest <= STEP_DECISIONS + 2
    assert core.state.counts["failed"] == 10_000
    assert not core.state.requests
