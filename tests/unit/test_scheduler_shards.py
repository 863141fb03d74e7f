"""Runners of several processes in the core: what late, repeated and partial facts about them come to."""

from __future__ import annotations

from events import catalogue as c
from events.catalogue import Process
from events.limits import S
from statemachines.runner import RunnerState
from statemachines.scheduler import RULES
from tests.unit.test_scheduler import Core, model, of, only


def spawned(core: Core, runner: str, *shards: int) -> list[Process]:
    processes = [Process(runner, shard, "boot", 100 + shard, 1) for shard in shards]
    for process in processes:
        core.take(c.ProcessSpawned(process))
    return processes


def loading(core: Core) -> str:
    core.measure()
    return only(core.take(c.LoadRequested("a")), c.RunnerLoad)


def test_a_process_that_has_ended_does_not_come_back_by_a_late_fact() -> None:
    core = Core({"a": model(shards=2)})
    runner = loading(core)
    one, *_ = spawned(core, runner, 1, 2, 0)
    assert of(core.take(c.ProcessExited(runner, 1, 3, "no such device")), c.RunnerStop)
    core.take(c.ProcessSpawned(one))
    core.take(c.ProcessExited(runner, 1, 3))
    core.take(c.ProcessExited(runner, 2, 0))
    assert core.state.runners[runner].state is RunnerState.stopping
    assert of(core.take(c.ProcessExited(runner, 0, 0, "stopped")), c.RunnerFailed)
    assert core.state.cooling["a"].message == "no such device"


def test_a_process_that_it_cannot_have_is_none_of_its_own() -> None:
    core = Core({"a": model(shards=1)})
    runner = loading(core)
    spawned(core, runner, 1, 0, 2)
    assert sorted(core.state.runners[runner].processes) == [0, 1]


def test_a_worker_that_ran_out_of_memory_makes_the_load_one_that_did() -> None:
    """However the others end, which are stopped for it."""
    core = Core({"a": model(shards=1), "b": model()})
    core.load("b")
    runner = loading(core)
    spawned(core, runner, 1, 0)
    core.take(c.ProcessExited(runner, 1, 1, "cudaMalloc failed: out of memory"))
    assert of(core.take(c.ProcessExited(runner, 0, 0, "stopped")), c.ModelCrowded)


def test_ports_are_leased_for_all_and_two_runners_have_none_in_common() -> None:
    core = Core({"a": model(shards=1, lease="socket"), "b": model(shards=1)}, port_first=5800, port_last=5802)
    first = core.state.runners[loading(core)]
    assert (first.port, first.shard_ports) == (0, (5800,))
    core.measure()
    second = core.state.runners[only(core.take(c.LoadRequested("b")), c.RunnerLoad)]
    assert (second.port, second.shard_ports) == (5801, (5802,))
    core.take(c.LeaseRefused(second.id, 5802))  # there is no other
    assert second.id not in core.state.runners
    assert core.state.cooling["b"].message == "port 5802 is in use by another program"


def test_a_model_with_more_shards_than_ports_is_refused_at_once() -> None:
    core = Core({"a": model(shards=3)}, port_first=5800, port_last=5802)
    core.measure()
    (ended,) = of(core.take(c.LoadRequested("a")), c.OperationEnded)
    assert (ended.ok, ended.reason) == (False, "no_port")


def test_a_load_of_which_only_a_part_was_logged_ends_with_what_is_left_of_it() -> None:
    core = Core({"a": model(shards=2)})
    runner = loading(core)
    survivors = tuple(spawned(core, runner, 1))
    (stop,) = of(core.take(c.DaemonStarted(RULES, "balanced", "b", "t", survivors=survivors)), c.RunnerStop)
    assert (stop.verdict, stop.reason) == ("failed", "shard_exited")
    core.take(c.ProcessExited(runner, 1, None))
    assert runner not in core.state.runners


def test_a_stall_is_counted_from_the_last_sign_of_progress() -> None:
    core = Core({"a": model(stall_ns=10 * S)})
    runner = loading(core)
    due = core.state.deadlines
    core.t += 4 * S
    spawned(core, runner, 0)
    assert due["stall", runner] == core.t + 10 * S
    core.take(c.LoadProgressed(runner, "read"), 9 * S)
    assert due["stall", runner] == core.t + 10 * S
    (stop,) = of(core.passes(10 * S), c.RunnerStop)
    assert (stop.verdict, stop.reason) == ("failed", "load_stalled")
    core.take(c.LoadProgressed(runner, "read"))
    assert ("stall", runner) not in due
