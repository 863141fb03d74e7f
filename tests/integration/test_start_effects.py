"""What a start decides has its effects when it is durable, as everything else."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import trio
from trio.testing import wait_all_tasks_blocked

from daemon.beside import running
from daemon.driver import Driver
from daemon.ports import Launch
from daemon.recovery import begin, fold_log
from events import catalogue as c
from events.store import open_store
from statemachines.runner import RunnerState
from statemachines.scheduler import Scheduler
from tests.integration.test_driver import (
    LIMIT_S,
    VIEW,
    FakeMachinery,
    FakeMeter,
    Here,
    dispatched,
    driving,
)


class Survivors(FakeMachinery):
    """Every process lives."""

    async def identify(self, recorded: Sequence[tuple[c.Process, Launch]]) -> Sequence[c.Process]:
        return [process for process, _ in recorded]


async def started_again(log: Path, runner: str) -> list[str]:
    """What the machinery has been told by a start whose facts are not durable yet."""
    recovered = fold_log(log)
    async with open_store(log) as store:
        driver = Driver(store, Scheduler(recovered.state), recovered.clock, log)
        machine = Survivors()
        driver.machinery, driver.meter = machine, FakeMeter()
        await store.hold()
        async with running(driver.run), trio.open_nursery() as nursery:
            nursery.start_soon(begin, driver, store, VIEW, log)
            with trio.fail_after(LIMIT_S):
                await wait_all_tasks_blocked(0.01)
                assert driver.state.runners[runner].state is RunnerState.stopping
                early = list(machine.calls)
                store.release()
                await Here(driver, store, machine).done(f"stop {runner}")
        assert machine.calls.count(f"stop {runner}") == 1
    return early


async def test_who_is_to_stop_since_this_start_is_told_when_that_is_durable(tmp_path: Path) -> None:
    async with driving(tmp_path) as here:
        runner = await here.loaded("a")
        ticket = here.arrive("a")
        await dispatched(ticket, runner)
        here.driver.submit(c.UnloadRequested("a"))
        assert here.driver.state.runners[runner].state is RunnerState.draining
        await here.driver.durable(here.driver.state.seq)
    log = tmp_path / "events.db"
    assert f"stop {runner}" not in await started_again(log, runner)
    assert f"stop {runner}" in await started_again(log, runner), "the log knows it by now"
