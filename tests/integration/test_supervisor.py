"""Supervision of real processes: started behind a gate, found ready, stopped, killed, seen to die."""

from __future__ import annotations

import logging
import os
import resource
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from daemon.config.commands import Command
from daemon.config.config import SpecChanged
from daemon.ports import Launch
from daemon.processes import identity, output
from daemon.processes import supervisor as supervision
from events.catalogue import LeaseRefused, ProbeAnswered, Process, ProcessExited, ProcessSpawned, SpawnFailed
from tests.integration.yard import (
    BOOT,
    PATIENCE_S,
    SERVER,
    Yard,
    free_port,
    gone,
    in_group,
    is_alive,
    marker_of,
    port_launch,
    socket_launch,
)

# --- starting --------------------------------------------------------------------------------------------


async def test_a_command_runs_when_its_process_is_in_the_log(yard: Yard, tmp_path: Path) -> None:
    proof = tmp_path / "it-ran"
    yard.make = yard.running("touch", str(proof))
    async with yard.supervise() as supervisor:
        supervisor.ensure(socket_launch())
        supervisor.ensure(socket_launch())  # the same effect again changes nothing
        process = (await yard.fact(ProcessSpawned)).process
        stat = identity.stat_of(process.pid)
        assert stat is not None
        assert process == Process("r7", 0, BOOT, process.pid, stat.start_time)
        assert marker_of(process.pid) == f"{yard.log_id}/r7/0"
        assert stat.group == process.pid
        await wait_all_tasks_blocked()
        assert not proof.exists()
        supervisor.release(process)
        assert await yard.fact(ProcessExited) == ProcessExited("r7", 0, 0)
        assert proof.exists()
    assert len(yard.facts) == 2


@pytest.mark.parametrize("how", ["stop", "kill"])
async def test_a_gate_that_is_still_shut_can_be_ended(yard: Yard, tmp_path: Path, how: str) -> None:
    yard.make = yard.running("touch", str(tmp_path / "it-ran"))
    async with yard.supervise() as supervisor:
        supervisor.ensure(socket_launch())
        process = (await yard.fact(ProcessSpawned)).process
        getattr(supervisor, how)("r7")
        supervisor.release(process)  # its effect may come after that of the stop
        exited = await yard.fact(ProcessExited)
        assert exited.status == (1 if how == "stop" else -signal.SIGKILL)
    assert not (tmp_path / "it-ran").exists()


async def test_orders_are_carried_out_one_after_the_other(yard: Yard) -> None:
    async with yard.supervise() as supervisor:
        supervisor.ensure(socket_launch())
        supervisor.stop("r7")
        await yard.fact(ProcessSpawned)
        await yard.fact(ProcessExited)


async def test_a_port_that_somebody_has_is_refused_and_the_next_one_tried(yard: Yard) -> None:
    async with yard.supervise() as supervisor:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            supervisor.ensure(port_launch(port))
            assert await yard.fact(LeaseRefused) == LeaseRefused("r7", port)
        port = free_port()
        await yard.ready(supervisor, port_launch(port))
        assert supervisor.address("r7").url == f"http://127.0.0.1:{port}"
        supervisor.stop("r7")
        await yard.fact(ProcessExited)


async def test_a_variable_comes_whatever_its_name_is(yard: Yard) -> None:
    env = {"a.b-c": "1 2", "-i": "3", "plain": "4"}
    yard.make = yard.running("grep", "-azE", "^(a.b-c|-i|plain)=", "/proc/self/environ", env=env)
    async with yard.supervise() as supervisor:
        supervisor.ensure(socket_launch())
        supervisor.release((await yard.fact(ProcessSpawned)).process)
        said = (await yard.fact(ProcessExited)).output
    assert all(f"{name}={value}" in said for name, value in env.items())


async def test_a_command_that_ends_at_once_leaves_its_last_words(yard: Yard) -> None:
    yard.make = yard.running("sh", "-c", "echo loading; echo cannot open model.gguf >&2; exit 3")
    async with yard.supervise() as supervisor:
        supervisor.ensure(socket_launch())
        supervisor.release((await yard.fact(ProcessSpawned)).process)
        exited = await yard.fact(ProcessExited)
        assert exited == ProcessExited("r7", 0, 3, "loading\ncannot open model.gguf")
        assert supervisor.tail("r7", 1) == ["cannot open model.gguf"]
        supervisor.forget("r7")
        assert supervisor.tail("r7", 1) == []
        assert yard.files() == ["ended-r7.log"], "what it printed is kept"


async def test_a_command_that_does_not_exist_says_so(yard: Yard) -> None:
    yard.make = yard.running("/no/such/llama-server")
    async with yard.supervise() as supervisor:
        supervisor.ensure(socket_launch())
        supervisor.release((await yard.fact(ProcessSpawned)).process)
        exited = await yard.fact(ProcessExited)
        assert exited.status == 127
        assert "/no/such/llama-server" in exited.output


async def test_a_runner_that_cannot_be_started_is_reported(yard: Yard) -> None:
    def changed(launch: Launch, path: str) -> Command:
        raise ValueError("the configuration of m has changed")

    yard.make = changed
    async with yard.supervise() as supervisor:
        supervisor.ensure(socket_launch())
        assert await yard.fact(SpawnFailed) == SpawnFailed("r7", "the configuration of m has changed")
        yard.make = yard.running("true\0")
        supervisor.ensure(socket_launch("r8"))
        assert (await yard.fact(SpawnFailed)).runner == "r8"
        with pytest.raises(KeyError):
            supervisor.address("r7")
        for runner in ("r7", "r8"):
            for order in (supervisor.stop, supervisor.kill, supervisor.forget):
                order(runner)
        await wait_all_tasks_blocked()
    assert len(yard.facts) == 2


async def test_a_directory_that_is_too_deep_for_a_socket_is_reported(yard: Yard) -> None:
    yard.folder /= "deep" * 30
    yard.folder.mkdir()
    async with yard.supervise() as supervisor:
        supervisor.ensure(socket_launch())
        assert "move the log" in (await yard.fact(SpawnFailed)).error


async def test_a_runner_can_be_forgotten_before_anything_was_done(yard: Yard) -> None:
    async with yard.supervise() as supervisor:
        supervisor.ensure(socket_launch())
        supervisor.forget("r7")
        await wait_all_tasks_blocked()
        assert yard.facts == []
        for order in (supervisor.stop, supervisor.kill, supervisor.forget):
            order("r99")  # one that nobody knows
        supervisor.release(Process("r99", 0, BOOT, os.getpid(), 0))
        supervisor.probe("r99", "again")


# --- readiness -------------------------------------------------------------------------------------------


class Health:
    """A health endpoint that the test answers itself, on a socket that counts as the runner's."""

    def __init__(self, path: Path) -> None:
        self.url = f"unix:{path}"
        self.status = 503
        self.told: list[Any] = []
        """What happened, in its order: each status that was answered, and each fact."""
        self.asked = trio.Event()

    @asynccontextmanager
    async def served(self) -> AsyncIterator[None]:
        sock = trio.socket.socket(trio.socket.AF_UNIX)
        await sock.bind(self.url.removeprefix("unix:"))
        sock.listen()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, self._answer, [trio.SocketListener(sock)])
            yield
            nursery.cancel_scope.cancel()

    async def _answer(self, stream: trio.SocketStream) -> None:
        await stream.receive_some()
        self.told.append(self.status)
        self.asked.set()
        if self.status:
            await stream.send_all(f"HTTP/1.1 {self.status} x\r\n\r\n".encode())
        else:
            await trio.sleep_forever()

    async def ask(self, times: int) -> None:
        """Wait until it has been asked that often again."""
        for _ in range(times):
            self.asked = trio.Event()
            with trio.fail_after(PATIENCE_S):
                await self.asked.wait()


async def test_the_first_healthy_answer_is_told_at_once_and_is_the_last_question(
    yard: Yard, tmp_path: Path
) -> None:
    health = Health(tmp_path / "health.sock")
    yard.make = yard.running("sleep", "1000", url=health.url)
    yard.facts = health.told
    async with health.served(), yard.supervise() as supervisor:
        supervisor.ensure(socket_launch())
        await wait_all_tasks_blocked()
        assert isinstance(health.told[0], ProcessSpawned)
        supervisor.release(health.told[0].process)
        await health.ask(5)
        health.status = 200
        await health.ask(1)
        while not isinstance(health.told[-1], ProbeAnswered):
            await wait_all_tasks_blocked()
        statuses = health.told[1:]
        assert statuses[-2:] == [200, ProbeAnswered("r7", True)]
        assert set(statuses[:-2]) == {503}
        supervisor.stop("r7")
        with trio.fail_after(PATIENCE_S):
            while not isinstance(health.told[-1], ProcessExited):
                await trio.lowlevel.checkpoint()
    assert health.told.count(200) == 1


async def test_of_one_that_is_stopped_before_it_is_ready_its_health_check_is_told(yard: Yard) -> None:
    """Nobody listens where it was to listen: mostly its command lacks ${PORT}."""
    port = free_port()
    argv = ("sh", "-c", "echo listening elsewhere; exec sleep 1000")
    yard.make = yard.running(*argv, url=f"http://127.0.0.1:{port}", check_path="/h")
    async with yard.supervise() as supervisor:
        supervisor.ensure(port_launch(port))
        supervisor.release((await yard.fact(ProcessSpawned)).process)
        part = supervisor._charges["r7"].parts[0]
        with trio.fail_after(PATIENCE_S):
            while not (part.answer and supervisor.tail("r7", 1)):
                await trio.lowlevel.checkpoint()
        supervisor.stop("r7")
        exited = await yard.fact(ProcessExited)
    assert exited.output == f"listening elsewhere\nhttp://127.0.0.1:{port}/h: connection refused"


async def test_a_child_of_the_command_may_be_the_one_that_listens(yard: Yard) -> None:
    port = free_port()
    argv = ("sh", "-c", '"$@" & wait', "sh", sys.executable, "-ISc", SERVER, str(port))
    yard.make = yard.running(*argv, url=f"http://127.0.0.1:{port}")
    async with yard.supervise() as supervisor:
        await yard.ready(supervisor, port_launch(port))
        supervisor.stop("r7")
        await yard.fact(ProcessExited)


async def test_another_programs_answer_makes_nobody_ready(
    yard: Yard, caplog: pytest.LogCaptureFixture
) -> None:
    port = free_port()
    asked = 0
    often = trio.Event()

    async def answer(stream: trio.SocketStream) -> None:
        nonlocal asked
        asked += 1
        if asked >= 3 and supervisor.tail("r7", 1):
            often.set()
        await stream.receive_some()
        await stream.send_all(b"HTTP/1.1 200 OK\r\n\r\n")

    yard.make = yard.running("sh", "-c", "echo loading; exec sleep 1000", url=f"http://127.0.0.1:{port}")
    async with yard.supervise() as supervisor, trio.open_nursery() as nursery:
        supervisor.ensure(port_launch(port))
        process = (await yard.fact(ProcessSpawned)).process
        (listener,) = await trio.open_tcp_listeners(port, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, answer, [listener])
        supervisor.release(process)
        with trio.fail_after(PATIENCE_S):
            await often.wait()
        supervisor.stop("r7")
        exited = await yard.fact(ProcessExited)
        nursery.cancel_scope.cancel()
    found = f"http://127.0.0.1:{port} answers, but another program listens there; if that is the model's"
    (record,) = caplog.records
    assert record.message.startswith(f"r7: {found}") and record.message.endswith("`trustProbe: true`")
    assert exited.output == "loading\n" + record.message.removeprefix("r7: ")  # for the failed load's client


async def test_a_container_is_trusted_where_the_configuration_says_so(yard: Yard) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        yard.make = yard.running(
            "sleep", "1000", url=f"http://127.0.0.1:{port}", trust_probe=True, check_path=""
        )
        async with yard.supervise() as supervisor:
            await yard.ready(supervisor)
            supervisor.stop("r7")
            await yard.fact(ProcessExited)


@pytest.mark.parametrize(
    ("status", "says"), [(200, ""), (503, "HTTP/1.1 503 x"), (0, "no answer within 0.05 s")]
)
async def test_a_probe_has_one_answer(
    yard: Yard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int, says: str
) -> None:
    if not status:
        monkeypatch.setattr(supervision, "PROBE_S", 0.05)
    health = Health(tmp_path / "health.sock")
    yard.make = yard.running("sleep", "1000", url=health.url)
    async with health.served(), yard.supervise() as supervisor:
        health.status = 200
        await yard.ready(supervisor)
        health.status = status
        supervisor.probe("r7", "suspect")
        assert await yard.fact(ProbeAnswered) == ProbeAnswered("r7", status == 200, detail=says)
        supervisor.kill("r7")
        await yard.fact(ProcessExited)
        supervisor.probe("r7", "suspect")
        await wait_all_tasks_blocked()
    assert len(yard.facts) == 4


# --- ending ----------------------------------------------------------------------------------------------


async def test_stopping_ends_the_whole_group_and_says_so_when_all_are_gone(yard: Yard) -> None:
    yard.make = yard.serving("child", "zombie")
    async with yard.supervise() as supervisor:
        process = await yard.ready(supervisor)
        assert len(in_group(process.pid)) == 2  # and a zombie, which does not count
        supervisor.stop("r7")
        supervisor.stop("r7")
        assert await yard.fact(ProcessExited) == ProcessExited("r7", 0, -signal.SIGTERM)
        assert in_group(process.pid) == []


async def test_every_process_of_the_group_gets_the_signal(yard: Yard) -> None:
    yard.make = yard.serving("foreman")  # goes only when its child has gone
    async with yard.supervise() as supervisor:
        await yard.ready(supervisor)
        supervisor.stop("r7")
        assert (await yard.fact(ProcessExited)).status == 0


async def test_what_refuses_to_stop_is_killed_with_its_children_wherever_they_are(yard: Yard) -> None:
    yard.make = yard.serving("refuse", "child", "stray")
    async with yard.supervise() as supervisor:
        process = await yard.ready(supervisor)
        (stray,) = [s.pid for s, _ in identity.marked(yard.log_id) if s.group != process.pid]
        supervisor.stop("r7")
        supervisor.probe("r7", "suspect")
        assert (await yard.fact(ProbeAnswered)).healthy  # it has had its signal, and serves on
        supervisor.kill("r7")
        assert await yard.fact(ProcessExited) == ProcessExited("r7", 0, -signal.SIGKILL)
        assert in_group(process.pid) == []
        assert not is_alive(stray)


async def test_what_a_runner_that_crashed_left_behind_is_ended(yard: Yard) -> None:
    yard.make = yard.serving("child", "stray")
    async with yard.supervise() as supervisor:
        process = await yard.ready(supervisor)
        os.kill(process.pid, signal.SIGKILL)
        # One that was ready may have printed what its users wrote: its output stays out of the log.
        assert await yard.fact(ProcessExited) == ProcessExited("r7", 0, -signal.SIGKILL, "")
        assert identity.marked(yard.log_id) == []
        assert in_group(process.pid) == []
        assert supervisor.tail("r7", 5) == ["serving"]


async def test_a_stop_command_ends_the_runner(yard: Yard, tmp_path: Path) -> None:
    told = tmp_path / "told"
    script = f"env > {told}; kill -INT ${{PID}}"
    yard.make = yard.serving(stop_template=("sh", "-c", script), env={"OWN": "1"})
    async with yard.supervise() as supervisor:
        await yard.ready(supervisor)
        supervisor.stop("r7")
        assert (await yard.fact(ProcessExited)).status == -signal.SIGINT
    # It knows what the runner knows, but is none of it: nothing that ends the runner may end it.
    assert {"OWN=1", f"{identity.MARKER}="} <= set(told.read_text().splitlines())


@pytest.mark.parametrize(
    ("argv", "warning"),
    [
        (("/no/such/docker", "stop"), "No such file or directory"),
        (("sh", "-c", "echo no such container; exit 4"), "exited with 4: no such container"),
        (("sh", "-c", "echo $$ > pids; sleep 1000 & echo $! >> pids; wait"), "did not end within 0.2 s"),
    ],
)
async def test_a_stop_command_that_fails_is_replaced_by_a_signal(
    yard: Yard,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    argv: tuple[str, ...],
    warning: str,
) -> None:
    monkeypatch.setattr(supervision, "STOP_COMMAND_S", 0.2)
    monkeypatch.chdir(tmp_path)
    yard.make = yard.serving(stop_template=argv)
    async with yard.supervise() as supervisor:
        await yard.ready(supervisor)
        supervisor.stop("r7")
        assert (await yard.fact(ProcessExited)).status == -signal.SIGTERM
    assert warning in caplog.text
    pids = tmp_path / "pids"
    for pid in pids.read_text().split() if pids.exists() else ():
        gone(int(pid))


async def test_a_kill_does_not_wait_for_a_stop_command(yard: Yard) -> None:
    yard.make = yard.serving(stop_template=("sleep", "1000"))
    async with yard.supervise() as supervisor:
        await yard.ready(supervisor)
        supervisor.stop("r7")
        await wait_all_tasks_blocked()
        supervisor.kill("r7")
        assert (await yard.fact(ProcessExited)).status == -signal.SIGKILL


async def test_who_is_killed_untold_has_its_stop_command_all_the_same(yard: Yard, tmp_path: Path) -> None:
    """While a log is blocked nobody is told to stop: a container would outlive what started it."""
    told = tmp_path / "told"
    yard.make = yard.serving(stop_template=("sh", "-c", f"echo ${{PID}} > {told}.new; mv {told}.new {told}"))
    async with yard.supervise() as supervisor:
        process = await yard.ready(supervisor)
        supervisor.kill("r7")
        assert (await yard.fact(ProcessExited)).status == -signal.SIGKILL
        supervisor.stop("r7")  # the log has gone on
        with trio.fail_after(PATIENCE_S):
            while not told.exists():
                await trio.lowlevel.checkpoint()
    assert told.read_text() == f"{process.pid}\n"


async def test_a_number_that_went_to_another_process_is_never_signalled(yard: Yard) -> None:
    async with yard.supervise() as supervisor:
        process = await yard.ready(supervisor)
        part = supervisor._charges["r7"].parts[0]
        part.process = msgspec.structs.replace(process, start_time=process.start_time + 1)
        supervisor.stop("r7")
        supervisor.probe("r7", "again")
        assert (await yard.fact(ProbeAnswered)).healthy
        part.process = process
        supervisor.stop("r7")
        await yard.fact(ProcessExited)


async def test_without_descriptors_nothing_is_taken_for_gone_and_orders_are_carried_out_later(
    yard: Yard, monkeypatch: pytest.MonkeyPatch
) -> None:
    warned = trio.Event()
    monkeypatch.setattr(logging.getLogger("runnerd"), "warning", lambda *_: warned.set())
    async with yard.supervise() as supervisor:
        await yard.ready(supervisor)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        try:
            for order in (supervisor.stop, supervisor.kill):
                warned = trio.Event()
                order("r7")
                with trio.fail_after(PATIENCE_S):
                    await warned.wait()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert (await yard.fact(ProcessExited)).status in (-signal.SIGTERM, -signal.SIGKILL)


# --- output ----------------------------------------------------------------------------------------------


async def test_output_is_cut_at_its_limit_while_the_runner_prints_on(
    yard: Yard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervision, "OUTPUT_LOOK_S", 0.01)
    monkeypatch.setattr(output, "RUNNER_LOG_MAX_BYTES", 256 * 1024)
    cut = trio.Event()
    bound = output.bound

    def look(path: Path) -> None:
        before = path.stat().st_size
        bound(path)
        if path.stat().st_size < before:
            cut.set()

    monkeypatch.setattr(output, "bound", look)
    yard.make = yard.running("yes", "a line of output")
    async with yard.supervise() as supervisor:
        supervisor.ensure(socket_launch())
        supervisor.release((await yard.fact(ProcessSpawned)).process)
        with trio.fail_after(PATIENCE_S):
            await cut.wait()
        supervisor.stop("r7")
        exited = await yard.fact(ProcessExited)
    lines = exited.output.splitlines()
    assert lines.count("a line of output") > len(lines) / 2  # one may be broken, where it was cut
    (log,) = yard.folder.rglob("r7.log")
    assert b"\0" not in log.read_bytes()  # no hole: it is appended to


async def test_a_new_name_upstream_holds_for_a_runner_that_stays(yard: Yard) -> None:
    """After a reload, which asks for addresses again; not after one that changed what starts the runner."""

    def changed(launch: Launch, path: str) -> Command:
        raise SpecChanged("its command is another one")

    async with yard.supervise() as supervisor:
        await yard.ready(supervisor)
        assert supervisor.address("r7").model_name == ""
        yard.make = yard.serving(model_name="crimson")
        assert supervisor.address("r7").model_name == "crimson"
        yard.make = changed
        assert supervisor.address("r7").model_name == "crimson"
