"""Supervising runners' processes: what carries out the effects, and reports what the processes do.

Each runner has one task here that takes its orders in sequence (ensure, release, stop, kill), and one that
watches its process. Methods return at once; what comes of them arrives as facts.
"""

from __future__ import annotations

import errno
import logging
import os
import signal
import socket
import subprocess
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from types import TracebackType

import trio

from daemon.config.commands import Command
from daemon.ports import Address, Launch
from daemon.processes import gate, identity, output, probe
from events.catalogue import (
    Fact,
    LeaseRefused,
    ProbeAnswered,
    Process,
    ProcessExited,
    ProcessSpawned,
    SpawnFailed,
)
from events.limits import (
    KILL_NS,
    OUTPUT_LOOK_S,
    PROBE_LONGEST_S,
    PROBE_S,
    READY_POLL_S,
    SHARD,
    STOP_COMMAND_S,
    S,
)

log = logging.getLogger("runnerd")

CommandOf = Callable[[str, Launch, str], Command]
"""Fills in a model's command for a launch, given the path of its socket; raises what says why it cannot."""


class Charge:
    """One runner that is looked after."""

    def __init__(self, launch: Launch, state_dir: Path) -> None:
        self.launch = launch
        self.runner = launch.runner
        self.log = state_dir / "runners" / f"{launch.runner}.log"
        self.socket = state_dir / "runners" / f"{launch.runner}.sock"
        self.command: Command | None = None
        self.process: Process | None = None
        self.child: subprocess.Popen[bytes] | None = None
        """The process, where it is our child; an adopted one is not."""
        self.pidfd = -1
        self.silent = False
        """Whether its output must stay out of the log: it has been ready, or may have been."""
        self.warned = False
        self.exited = trio.Event()
        self.nursery: trio.Nursery
        """Its tasks, from the first order to `forget`."""
        self.orders, self.inbox = trio.open_memory_channel[Callable[[], object]](64)


class Supervisor:
    """See the module and `daemon.ports.Machinery`. An async context manager: its tasks live within it; the
    runners outlive it."""

    def __init__(
        self,
        submit: Callable[[Fact], object],
        command_of: CommandOf,
        state_dir: Path,
        log_id: str,
        boot_id: str,
    ) -> None:
        self._submit = submit
        self._command_of = command_of
        self._state_dir = state_dir
        self._log_id = log_id
        self._boot_id = boot_id
        self._charges: dict[str, Charge] = {}
        self._stack = AsyncExitStack()
        self._nursery: trio.Nursery

    async def __aenter__(self) -> Supervisor:
        (self._state_dir / "runners").mkdir(mode=0o700, parents=True, exist_ok=True)
        self._nursery = await self._stack.enter_async_context(trio.open_nursery())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        self._nursery.cancel_scope.cancel()
        return await self._stack.__aexit__(kind, error, trace)

    # --- orders ------------------------------------------------------------------------------------------

    def ensure(self, launch: Launch) -> None:
        """Fork the runner's gate and report it; with a new port after a refused one, try that."""
        charge = self._charges.get(launch.runner)
        if charge is None:
            charge = self._charges[launch.runner] = Charge(launch, self._state_dir)
            self._nursery.start_soon(self._look_after, charge)
        charge.launch = launch
        charge.orders.send_nowait(lambda: self._start(charge))

    def release(self, process: Process) -> None:
        """The process is in the log: let it run, and look for its readiness."""
        charge = self._charges.get(process.runner)
        if charge is not None:
            charge.orders.send_nowait(lambda: self._open(charge))

    def stop(self, runner: str) -> None:
        """Its stop command, or SIGTERM."""
        charge = self._charges.get(runner)
        if charge is not None:
            charge.orders.send_nowait(lambda: self._stop(charge))

    def kill(self, runner: str) -> None:
        """SIGKILL, at once: it does not queue behind a stop command that hangs."""
        charge = self._charges.get(runner)
        if charge is not None:
            self._kill(charge)

    def probe(self, runner: str, reason: str) -> None:
        """One health probe, answered by one fact."""
        charge = self._charges.get(runner)
        if charge is not None:
            self._nursery.start_soon(self._probe_once, charge)

    def address(self, runner: str) -> Address:
        """Where the runner answers. Raises KeyError for one that is not looked after."""
        command = self._charges[runner].command
        if command is None:
            raise KeyError(runner)
        return command.address(runner)

    def forget(self, runner: str) -> None:
        """The runner is terminal: nothing of it is kept."""
        charge = self._charges.pop(runner, None)
        if charge is not None:
            charge.nursery.cancel_scope.cancel()
        for end in ("log", "sock"):  # also of one that did not outlive an earlier daemon
            (self._state_dir / "runners" / f"{runner}.{end}").unlink(missing_ok=True)

    def tail(self, runner: str, lines: int) -> list[str]:
        """The last lines of the runner's output."""
        charge = self._charges.get(runner)
        return output.last_lines(charge.log, lines) if charge is not None else []

    # --- a runner's task ---------------------------------------------------------------------------------

    async def _look_after(self, charge: Charge) -> None:
        async with trio.open_nursery() as charge.nursery:
            async for order in charge.inbox:
                order()

    def _start(self, charge: Charge) -> None:
        launch = charge.launch
        if charge.process is not None:
            return
        if launch.port and not _port_is_free(launch.port):
            self._submit(LeaseRefused(launch.runner, launch.port))
            return
        try:
            command = charge.command = self._command_of(launch.model, launch, str(charge.socket))
            marker = self._marker(launch.runner)
            child = gate.start(command.argv, gate.environment(command.env, marker), charge.log)
            charge.pidfd = os.pidfd_open(child.pid)  # where this fails, the gate ends with its `child`
        except Exception as error:  # a spec that changed, no memory, no process: all of them end the load
            self._submit(SpawnFailed(launch.runner, f"{error}"))
            return
        charge.child = child
        stat = identity.stat_of(child.pid)
        start_time = stat.start_time if stat is not None else 0
        charge.process = Process(launch.runner, SHARD, self._boot_id, child.pid, start_time)
        self._nursery.start_soon(self._watch, charge)
        self._submit(ProcessSpawned(charge.process))

    def _marker(self, runner: str) -> str:
        return f"{self._log_id}/{runner}/{SHARD}"

    def _open(self, charge: Charge) -> None:
        if charge.child is not None and gate.shut(charge.child):
            gate.open_gate(charge.child)
            charge.nursery.start_soon(self._find_ready, charge)
            charge.nursery.start_soon(self._bound_output, charge)

    # --- ending ------------------------------------------------------------------------------------------

    def _stop(self, charge: Charge) -> None:
        if charge.exited.is_set() or charge.process is None:
            return
        if charge.child is not None and gate.shut(charge.child) and charge.child.stdin is not None:
            charge.child.stdin.close()
            return
        argv = charge.command.stop_argv(charge.process.pid) if charge.command is not None else None
        if argv is None:
            self._signal(charge, signal.SIGTERM)
        else:
            self._nursery.start_soon(self._run_stop_command, charge, argv)

    async def _run_stop_command(self, charge: Charge, argv: Sequence[str]) -> None:
        """The configured stop command; where it fails, a signal, as if it were not there."""
        env = gate.environment(charge.command.env if charge.command else {}, "")
        with trio.move_on_after(STOP_COMMAND_S) as late:
            try:
                done = await trio.run_process(
                    argv, env=env, check=False, capture_stdout=True, capture_stderr=True
                )
                if done.returncode == 0:
                    return
                words = done.stderr[-200:].decode("utf-8", "replace").strip()
                log.warning("%s: cmdStop exited with %d: %s", charge.runner, done.returncode, words)
            except OSError as error:
                log.warning("%s: cmdStop: %s", charge.runner, error)
        if late.cancelled_caught:
            log.warning("%s: cmdStop did not end within %g s", charge.runner, STOP_COMMAND_S)
        self._signal(charge, signal.SIGTERM)

    def _signal(self, charge: Charge, number: signal.Signals) -> None:
        """To the runner's whole group, once it is sure that the process is still the one that was started."""
        process = charge.process
        if process is None or not _is(process):
            return
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)

    def _kill(self, charge: Charge) -> None:
        for stat in self._members(charge):
            identity.kill(stat)

    def _members(self, charge: Charge) -> list[identity.Stat]:
        """Every process of the runner that is left."""
        process = charge.process
        if process is None or charge.exited.is_set():
            return []
        return identity.members(process.pid, process.start_time, self._marker(charge.runner))

    async def _watch(self, charge: Charge) -> None:
        """Wait for the process's end, and for that of all it left behind; then say so.

        A child is reaped last: until then nobody can get its number, which is that of the group."""
        process, child = charge.process, charge.child
        assert process is not None
        try:
            await trio.lowlevel.wait_readable(charge.pidfd)
        finally:
            os.close(charge.pidfd)
        while left := self._members(charge):
            await _end_all(left)
        status = child.wait() if child is not None else None
        if child is not None and child.stdin is not None:
            child.stdin.close()
        charge.exited.set()
        words = "" if charge.silent else output.last_words(charge.log)
        self._submit(ProcessExited(charge.runner, process.shard, status, words))

    # --- health ------------------------------------------------------------------------------------------

    async def _find_ready(self, charge: Charge) -> None:
        """Ask every READY_POLL_S, and never twice at once: a refused connection costs 50 µs, an answer 300. A
        runner that takes long to answer is left alone for twenty times as long."""
        command = charge.command
        assert command is not None
        while not charge.exited.is_set():
            began = trio.current_time()
            ok, _ = await probe.healthy(command.url, command.check_path, PROBE_LONGEST_S)
            if charge.exited.is_set():
                return
            if ok and self._is_its_own(charge, command):
                charge.silent = True
                self._submit(ProbeAnswered(charge.runner, True))
                return
            spent = trio.current_time() - began
            await trio.sleep(max(READY_POLL_S, 20 * spent if spent > READY_POLL_S else 0))

    def _is_its_own(self, charge: Charge, command: Command) -> bool:
        if command.trust_probe or probe.listens(command.url, [stat.pid for stat in self._members(charge)]):
            return True
        if not charge.warned:
            charge.warned = True
            log.warning("%s: %s answers, but another program listens there", charge.runner, command.url)
        return False

    async def _probe_once(self, charge: Charge) -> None:
        command = charge.command
        if command is not None and not charge.exited.is_set():
            ok, detail = await probe.healthy(command.url, command.check_path, PROBE_S)
            if not charge.exited.is_set():
                self._submit(ProbeAnswered(charge.runner, ok, detail="" if ok else detail))

    async def _bound_output(self, charge: Charge) -> None:
        while not charge.exited.is_set():
            output.bound(charge.log)
            with trio.move_on_after(OUTPUT_LOOK_S):
                await charge.exited.wait()

    # --- after a restart ---------------------------------------------------------------------------------

    async def identify(self, recorded: Sequence[tuple[Process, Launch]]) -> Sequence[Process]:
        """The recorded processes that are alive, from here on looked after; what carries this log's marker
        and is not one of them is ended."""
        kept = {p.runner for p, _ in recorded if self._is_marked(p)}
        stray = [
            stat
            for stat, marker in identity.marked(self._log_id)
            if marker.removeprefix(f"{self._log_id}/").partition("/")[0] not in kept
        ]
        if stray:
            log.warning("ending %d processes of this log that it does not know", len(stray))
            with trio.move_on_after(KILL_NS / S) as late:
                await _end_all(stray)
            if late.cancelled_caught:
                log.error("some of them cannot be ended")
        # Nothing below waits: whatever happens to a survivor comes after the fact that it is one.
        return [process for process, launch in recorded if self._adopt(process, launch)]

    def _is_marked(self, process: Process) -> bool:
        return (
            process.boot_id == self._boot_id
            and _is(process)
            and identity.marker_of(process.pid) == self._marker(process.runner)
        )

    def _adopt(self, process: Process, launch: Launch) -> bool:
        """Look after a recorded process from here on; False where it is gone."""
        pidfd = identity.open_pidfd(process.pid, process.start_time)
        if pidfd is None or not self._is_marked(process):
            if pidfd is not None:
                os.close(pidfd)
            return False
        charge = self._charges[process.runner] = Charge(launch, self._state_dir)
        charge.process, charge.pidfd, charge.silent = process, pidfd, True
        with suppress(Exception):  # its specification changed: it drains, and nobody needs its address
            charge.command = self._command_of(launch.model, launch, str(charge.socket))
        self._nursery.start_soon(self._look_after, charge)
        self._nursery.start_soon(self._watch, charge)
        if charge.command is not None:
            charge.orders.send_nowait(lambda: charge.nursery.start_soon(self._find_ready, charge))
        charge.orders.send_nowait(lambda: charge.nursery.start_soon(self._bound_output, charge))
        return True


def _is(process: Process) -> bool:
    """Whether the process with this pid is the one that was recorded."""
    stat = identity.stat_of(process.pid)
    return stat is not None and stat.alive and stat.start_time == process.start_time


def _port_is_free(port: int) -> bool:
    """Whether a runner could listen there: nobody does, on any address."""
    for family, host in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
        with suppress(OSError), socket.socket(family, socket.SOCK_STREAM) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                sock.bind((host, port))
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    return False
    return True


async def _end_all(found: Sequence[identity.Stat]) -> None:
    """SIGKILL processes, all of them first, and wait until they are gone, also those that we may not kill."""
    for stat in found:
        identity.kill(stat)
    for stat in found:
        pidfd = identity.open_pidfd(stat.pid, stat.start_time)
        if pidfd is not None:
            try:
                await trio.lowlevel.wait_readable(pidfd)
            finally:
                os.close(pidfd)
