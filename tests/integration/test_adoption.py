"""Starting again: which recorded processes are adopted, and which others are ended or left alone."""

from __future__ import annotations

import os
import signal
import sys

import msgspec
from trio.testing import wait_all_tasks_blocked

from daemon.config.commands import Command
from daemon.ports import Launch
from daemon.processes import identity
from events.catalogue import ProbeAnswered, Process, ProcessExited, ProcessSpawned
from tests.integration.yard import (
    BOOT,
    PATIENCE_S,
    SERVER,
    Yard,
    gone,
    in_group,
    is_alive,
    socket_launch,
    stranger,
)


async def test_a_survivor_is_adopted(yard: Yard) -> None:
    yard.make = yard.serving("child")
    async with yard.supervise() as first:
        process = await yard.ready(first)
    async with yard.supervise() as second:
        assert await second.identify([(process, socket_launch())]) == [process]
        assert await yard.fact(ProbeAnswered) == ProbeAnswered("r7", True)
        assert second.address("r7").url == first.address("r7").url
        second.release(process)
        assert second.tail("r7", 5) == ["serving"]
        second.probe("r7", "suspect")
        assert (await yard.fact(ProbeAnswered)).healthy
        second.stop("r7")
        # Its status is nobody's to know, and whether it has been ready neither: no output in the log.
        assert await yard.fact(ProcessExited) == ProcessExited("r7", 0, None, "")
        assert in_group(process.pid) == []
        second.forget("r7")
        assert yard.files() == ["ended-r7.log"]


async def test_a_survivor_whose_specification_changed_is_adopted_to_be_stopped(yard: Yard) -> None:
    async with yard.supervise() as first:
        process = await yard.ready(first)

    def changed(launch: Launch, path: str) -> Command:
        raise ValueError("changed")

    yard.make = changed
    async with yard.supervise() as second:
        assert await second.identify([(process, socket_launch())]) == [process]
        second.probe("r7", "suspect")  # nobody knows how: its deadline answers
        second.stop("r7")
        assert await yard.fact(ProcessExited) == ProcessExited("r7", 0, None)


async def test_a_survivor_that_lost_its_marker_is_known_by_its_identity(yard: Yard) -> None:
    """As one does that writes a title for `ps` over its environment."""
    place = str(yard.folder / "s")
    argv = ("env", "-i", sys.executable, "-ISc", SERVER, place)
    yard.make = yard.running(*argv, url=f"unix:{place}")
    async with yard.supervise() as first:
        process = await yard.ready(first)
        assert identity.marker_of(process.pid) == ""
    async with yard.supervise() as second:
        assert await second.identify([(process, socket_launch())]) == [process]
        await yard.fact(ProbeAnswered)
        second.kill("r7")
        await yard.fact(ProcessExited)
        assert not is_alive(process.pid)


async def test_a_gate_that_nobody_has_opened_is_no_survivor(yard: Yard) -> None:
    """It is about to read end of file, and to exit: adopted, it would count as a failed load."""
    async with yard.supervise() as first:
        first.ensure(socket_launch())
        process = (await yard.fact(ProcessSpawned)).process
        os.kill(process.pid, signal.SIGSTOP)  # it reads the end of file when it goes on: never
    assert is_alive(process.pid)
    async with yard.supervise() as second:
        assert await second.identify([(process, socket_launch())]) == []
        assert not is_alive(process.pid)
    assert yard.facts == [ProcessSpawned(process)]


async def test_one_that_died_meanwhile_is_no_survivor(yard: Yard) -> None:
    async with yard.supervise() as first:
        process = await yard.ready(first)
    os.kill(process.pid, signal.SIGKILL)
    gone(process.pid)
    async with yard.supervise() as second:
        assert await second.identify([(process, socket_launch())]) == []
        second.forget("r7")
        assert yard.files() == []


async def test_a_stranger_with_a_recorded_number_is_left_alone(yard: Yard) -> None:
    with stranger() as unmarked, stranger(marker=f"{yard.log_id}0/r8/0") as foreign:
        recorded = []
        for process, runner in ((unmarked, "r7"), (foreign, "r8")):
            stat = identity.stat_of(process.pid)
            assert stat is not None
            entry = Process(runner, 0, BOOT, process.pid, stat.start_time)
            recorded.append((entry, socket_launch(runner)))
        reused = msgspec.structs.replace(recorded[0][0], start_time=recorded[0][0].start_time - 1)
        rebooted = msgspec.structs.replace(recorded[0][0], boot_id="another boot")
        async with yard.supervise() as supervisor:
            for record in (reused, rebooted):
                assert await supervisor.identify([(record, socket_launch())]) == []
            assert await supervisor.identify([recorded[1]]) == []
            for order in (supervisor.stop, supervisor.kill, supervisor.forget):
                order("r7")
                order("r8")
            await wait_all_tasks_blocked()
        assert is_alive(unmarked.pid)
        assert is_alive(foreign.pid)
    assert yard.facts == []


async def test_marked_processes_that_the_log_does_not_know_are_ended(yard: Yard) -> None:
    yard.make = yard.serving("stray")
    async with yard.supervise() as first:
        process = await yard.ready(first)
    known = {stat.pid for stat, _ in identity.marked(yard.log_id)}
    assert len(known) == 2
    with stranger(f"{yard.log_id}/r99/0") as unknown, stranger("another/r7/0") as foreign:
        async with yard.supervise() as second:
            assert await second.identify([(process, socket_launch())]) == [process]
            assert unknown.wait(PATIENCE_S) == -signal.SIGKILL
            assert is_alive(foreign.pid)
            assert {stat.pid for stat, _ in identity.marked(yard.log_id)} == known
            await yard.fact(ProbeAnswered)
            second.kill("r7")
            await yard.fact(ProcessExited)


async def test_what_a_dead_runner_left_is_ended_at_the_start(yard: Yard) -> None:
    yard.make = yard.serving("child", "stray")
    async with yard.supervise() as first:
        process = await yard.ready(first)
    os.kill(process.pid, signal.SIGKILL)
    gone(process.pid)
    assert len(identity.marked(yard.log_id)) == 2
    async with yard.supervise() as second:
        assert await second.identify([(process, socket_launch())]) == []
        assert identity.marked(yard.log_id) == []


async def test_two_logs_in_one_directory_keep_their_runners_apart(yard: Yard) -> None:
    other = Yard(yard.folder)
    try:
        async with yard.supervise() as one, other.supervise() as two:
            await yard.ready(one)
            await other.ready(two)
            two.kill("r7")
            await other.fact(ProcessExited)
            two.forget("r7")
            one.probe("r7", "suspect")
            assert (await yard.fact(ProbeAnswered)).healthy
            assert one.tail("r7", 1) == ["serving"]
            one.kill("r7")
            await yard.fact(ProcessExited)
    finally:
        other.end()
