"""Supervising runners' processes: what carries out the effects, and reports what the processes do.

Each runner has one task here that takes its orders in sequence (ensure, release, stop, kill), and one that
watches its process. Methods return at once; what comes of them arrives as facts.
"""

from __future__ import annotations

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
from events.limits import OUTPUT_LOOK_S, PROBE_LONGEST_S, PROBE_S, READY_POLL_S, SHARD, STOP_COMMAND_S

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
        self.ready = False
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
            for path in (charge.log, charge.socket):
                path.unlink(missing_ok=True)

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
        if launch.port and not _port_is_free(launch.port):
            self._submit(LeaseRefused(launch.runner, launch.port))
            return
        try:
            command = charge.command = self._command_of(launch.model, launch, str(charge.socket))
            marker = self._marker(launch.runner)
            child = gate.start(command.argv, gate.environment(command.env, marker), charge.log)
        except Exception as error:  # a spec that changed, no memory, no process: all of them end the load
            self._submit(SpawnFailed(launch.runner, f"{error}"))
            return
        charge.child = child
        charge.pidfd = os.pidfd_open(child.pid)
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
        with trio.move_on_after(STOP_COMMAND_S):
            try:
                done = await trio.run_process(
                    argv, env=env, check=False, capture_stdout=True, capture_stderr=True
                )
                if done.returncode == 0:
                    return
                log.warning(
                    "%s: cmdStop exited with %d: %s", charge.runner, done.returncode, done.stderr[-200:]
                )
            except OSError as error:
                log.warning("%s: cmdStop: %s", charge.runner, error)
        self._signal(charge, signal.SIGTERM)

    def _signal(self, charge: Charge, number: signal.Signals) -> None:
        """To the runner's whole group, once it is sure that the process is still the one that was started."""
        process = charge.process
        if process is None or not _is(process):
            return
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)

    def _kill(self, charge: Charge) -> None:
        self._signal(charge, signal.SIGKILL)
        if charge.process is not None:
            for stat in identity.members(charge.process.pid, self._marker(charge.runner)):
                with suppress(ProcessLookupError, PermissionError):
                    os.kill(stat.pid, signal.SIGKILL)

    async def _watch(self, charge: Charge) -> None:
        """Wait for the process's end, and for that of all it left behind; then say so."""
        process = charge.process
        assert process is not None
        await trio.lowlevel.wait_readable(charge.pidfd)
        os.close(charge.pidfd)
        status = charge.child.wait() if charge.child is not None else None
        while left := identity.members(process.pid, self._marker(charge.runner)):
            await _end_all([stat.pid for stat in left])
        if charge.child is not None and charge.child.stdin is not None:
            charge.child.stdin.close()
        charge.exited.set()
        words = "" if charge.ready else output.last_words(charge.log)
        self._submit(ProcessExited(charge.runner, process.shard, status, words))

    # --- health ------------------------------------------------------------------------------------------

    async def _find_ready(self, charge: Charge) -> None:
        """Ask every READY_POLL_S, never twice at once, and never more often than a twentieth of the time:
        a refused connection costs 50 µs, a "still loading" about 300."""
        command = charge.command
        assert command is not None
        while not charge.exited.is_set():
            began = trio.current_time()
            ok, _ = await probe.healthy(command.url, command.check_path, PROBE_LONGEST_S)
            if charge.exited.is_set():
                return
            if ok and self._is_its_own(charge, command):
                charge.ready = True
                self._submit(ProbeAnswered(charge.runner, True))
                charge.nursery.start_soon(self._bound_output, charge)
                return
            spent = trio.current_time() - began
            await trio.sleep(max(READY_POLL_S, 20 * spent if spent > READY_POLL_S else 0))

    def _is_its_own(self, charge: Charge, command: Command) -> bool:
        if command.trust_probe or charge.process is None:
            return True
        pids = [stat.pid for stat in identity.members(charge.process.pid, self._marker(charge.runner))]
        own = probe.listens(command.url, pids)
        if not own:
            log.warning("%s: %s answers, but another program listens there", charge.runner, command.url)
        return own

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
        survivors = [
            (p, launch) for p, launch in recorded if p.boot_id == self._boot_id and self._is_marked(p)
        ]
        groups = {process.pid for process, _ in survivors}
        kept = {process.runner for process, _ in survivors}
        stray = [
            stat.pid
            for stat, marker in identity.marked(self._log_id)
            if stat.group not in groups and marker.split("/")[1] not in kept
        ]
        if stray:
            log.warning("ended %d processes of this log that it does not know", len(stray))
            await _end_all(stray)
        for process, launch in survivors:
            self._adopt(process, launch)
        return [process for process, _ in survivors]

    def _is_marked(self, process: Process) -> bool:
        return (
            _is(process)
            and identity.marker_of(process.pid) == f"{self._log_id}/{process.runner}/{process.shard}"
        )

    def _adopt(self, process: Process, launch: Launch) -> None:
        charge = self._charges[process.runner] = Charge(launch, self._state_dir)
        charge.process = process
        with suppress(
            Exception
        ):  # its specification changed: it drains, and only its requests need a command
            charge.command = self._command_of(launch.model, launch, str(charge.socket))
        charge.pidfd = os.pidfd_open(process.pid)
        self._nursery.start_soon(self._look_after, charge)
        self._nursery.start_soon(self._watch, charge)
        if charge.command is not None:
            charge.orders.send_nowait(lambda: charge.nursery.start_soon(self._find_ready, charge))


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
            except OSError:
                return False
    return True


async def _end_all(pids: Sequence[int]) -> None:
    """SIGKILL processes and wait until they are gone."""
    for pid in pids:
        with suppress(ProcessLookupError, PermissionError):
            pidfd = os.pidfd_open(pid)
            try:
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                await trio.lowlevel.wait_readable(pidfd)
            finally:
                os.close(pidfd)
