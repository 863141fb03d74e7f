"""Supervising runners' processes: what carries out the effects, and reports what the processes do.

Each runner has one task here that takes its orders in sequence (ensure, release, stop), and one for each of
its processes that watches it. Methods return at once; what comes of them arrives as facts. A runner with
shards starts all of its gates or none; its first process starts when the shards that are asked are up.
"""

from __future__ import annotations

import errno
import logging
import os
import signal
import socket
import subprocess
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, suppress
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import trio

from daemon.config.commands import Command, ShardCommand
from daemon.config.config import SpecChanged
from daemon.journal import about
from daemon.limits import LOG_ENDED
from daemon.ports import Address, Launch, Output
from daemon.processes import gate, identity, oom, output, probe, progress
from daemon.processes.charge import Charge, Part, kept_files
from events.catalogue import (
    Fact,
    LeaseRefused,
    LoadProgressed,
    ProbeAnswered,
    Process,
    ProcessExited,
    ProcessSpawned,
    SpawnFailed,
)
from events.failpoints import reach
from events.limits import (
    KILL_NS,
    KILLED_STATUSES,
    LOAD_LOOKS,
    OUTPUT_LOOK_S,
    OUTPUT_MAX_BYTES,
    PROBE_LONGEST_S,
    PROBE_S,
    READY_PAUSE_S,
    READY_POLL_S,
    SCARCE_PAUSE_S,
    SHARD,
    SOCKET_PATH_BYTES,
    STOP_COMMAND_S,
    S,
)
from events.words import refused

log = logging.getLogger("runnerd")

CommandOf = Callable[[str, Launch, str], Command]
"""Fills in a model's command for a launch, given the path of its socket; raises what says why it cannot."""

T = TypeVar("T")

STRANGER = "another program listens there; if that is the model's (a container), it takes `trustProbe: true`"
"""What is said of an answer that no process of the runner's has given."""

ENDED = "ended-"
"""How the names of files begin whose runner has ended."""


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
        self._folder = state_dir / "runners" / log_id[:8]
        """Of this log alone: another in the same directory has runners of the same names."""
        self._log_id = log_id
        self._boot_id = boot_id
        self._charges: dict[str, Charge] = {}
        self._ended: dict[str, tuple[str, Path]] = {}
        """By model, the runner that has ended last, and what it printed; the latest is the last."""
        self._stack = AsyncExitStack()
        self._nursery: trio.Nursery

    async def __aenter__(self) -> Supervisor:
        self._folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder.mkdir(mode=0o700, exist_ok=True)
        for path in self._folder.glob(f"{ENDED}*"):
            path.unlink(missing_ok=True)
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
            charge = self._charges[launch.runner] = Charge(launch, self._folder)
            self._nursery.start_soon(self._look_after, charge)
        charge.launch = launch
        charge.orders.send_nowait(lambda: self._start(charge))

    def release(self, process: Process) -> None:
        """The process is in the log: let it run, and look for its readiness."""
        charge = self._charges.get(process.runner)
        if charge is not None:
            charge.orders.send_nowait(lambda: self._release(charge, process.shard))

    def stop(self, runner: str) -> None:
        """Its stop command, or SIGTERM; then SIGTERM for its shards."""
        charge = self._charges.get(runner)
        if charge is not None:
            charge.orders.send_nowait(lambda: self._stop(charge))

    def kill(self, runner: str) -> None:
        """SIGKILL, at once: it does not queue behind a stop command that hangs. Who was not told to stop (the
        log is blocked) has its stop command all the same: a container outlives what started it."""
        charge = self._charges.get(runner)
        if charge is not None:
            try:
                if charge.parts and not charge.stopped and charge.command and charge.command.stop_template:
                    self._stop(charge)
                self._kill(charge)
            except OSError:
                self._nursery.start_soon(_patiently, _here, partial(self._kill, charge))

    def probe(self, runner: str, reason: str) -> None:
        """One health probe, answered by one fact."""
        charge = self._charges.get(runner)
        if charge is not None:
            self._nursery.start_soon(self._probe_once, charge)

    def address(self, runner: str) -> Address:
        """Where the runner answers. Raises KeyError for one that is not looked after."""
        charge = self._charges[runner]
        if charge.command is None:
            raise KeyError(runner)
        with suppress(SpecChanged):  # a reload may have changed what its model is called upstream
            charge.command = self._command_of(charge.launch.model, charge.launch, str(charge.socket))
        return charge.command.address(runner)

    def forget(self, runner: str) -> None:
        """The runner is terminal: nothing of it is kept."""
        charge = self._charges.pop(runner, None)
        if charge is not None:
            charge.scope.cancel()
            self._keep_output(charge)
        for path in kept_files(self._folder, runner):  # also of one that did not outlive an earlier daemon
            path.unlink(missing_ok=True)

    def _keep_output(self, charge: Charge) -> None:
        """Keep what it has printed until another runner of its model ends, or enough others have."""
        model, kept = charge.launch.model, self._folder / f"{ENDED}{charge.runner}.log"
        with suppress(OSError):
            charge.log().rename(kept)
            _, before = self._ended.pop(model, ("", None))
            self._ended[model] = (charge.runner, kept)
            oldest = next(iter(self._ended)) if len(self._ended) > LOG_ENDED else None
            for path in (before, self._ended.pop(oldest)[1] if oldest is not None else None):
                if path is not None:
                    path.unlink(missing_ok=True)

    def tail(self, runner: str, lines: int) -> list[str]:
        """The last lines of the runner's output; those of its shards before them, each so many."""
        charge = self._charges.get(runner)
        if charge is None:
            return []
        shards = range(1, len(charge.launch.shard_ports) + 1)
        told = [f"shard {i}: {line}" for i in shards for line in output.last_lines(charge.log(i), lines)]
        return told + output.last_lines(charge.log(), lines)

    def outputs(self) -> Sequence[Output]:
        """What runners print: those that have ended first, and the shards of each before its first."""
        found = [Output(model, runner, path, ended=True) for model, (runner, path) in self._ended.items()]
        for charge in self._charges.values():
            shards = [*range(1, len(charge.launch.shard_ports) + 1), SHARD]
            found += [Output(charge.launch.model, charge.log(i).stem, charge.log(i)) for i in shards]
        return found

    # --- a runner's task ---------------------------------------------------------------------------------

    async def _look_after(self, charge: Charge) -> None:
        with charge.scope:
            async with trio.open_nursery() as charge.nursery:
                async for order in charge.inbox:
                    await _patiently(_here, order)

    def _start(self, charge: Charge) -> None:
        launch = charge.launch
        if charge.parts:
            return
        taken = next((p for p in (launch.port, *launch.shard_ports) if p and not _port_is_free(p)), 0)
        if taken:
            self._submit(LeaseRefused(launch.runner, taken))
            return
        try:
            if launch.socket and len(os.fsencode(charge.socket)) > SOCKET_PATH_BYTES:
                raise ValueError(f"{charge.socket} is longer than a socket's path can be: move the log")
            command = charge.command = self._command_of(launch.model, launch, str(charge.socket))
            for shard, further in enumerate(command.shards, 1):
                charge.parts[shard] = self._gate(charge, shard, further)
            charge.parts[SHARD] = self._gate(charge, SHARD, command)
        except Exception as error:  # a spec that changed, no memory, no process: all of them end the load
            for part in charge.parts.values():
                _drop(part)
            charge.parts.clear()
            self._submit(SpawnFailed(launch.runner, refused(error)))
            return
        for part in list(charge.parts.values()):
            self._nursery.start_soon(self._watch, charge, part)
        for part in list(charge.parts.values()):
            self._submit(ProcessSpawned(part.process))

    def _gate(self, charge: Charge, shard: int, command: Command | ShardCommand) -> Part:
        """Start one gate. Raises whatever comes up; then the gate, if there is one, ends with its `child`."""
        log = charge.log(shard)
        env = gate.environment(command.env, self._marker(charge.runner, shard))
        reach("spawn.before")
        child = gate.start(gate.with_odd_names(command.argv, command.env), env, log)
        reach("spawn.forked")
        stat = identity.stat_of(child.pid)
        assert stat is not None, "a child that was not waited for is there"
        process = Process(charge.runner, shard, self._boot_id, child.pid, stat.start_time)
        return Part(process, os.pidfd_open(child.pid), log, child)

    def _marker(self, runner: str, shard: int) -> str:
        return f"{self._log_id}/{runner}/{shard}"

    def _release(self, charge: Charge, shard: int) -> None:
        part = charge.parts.get(shard)
        if part is None or part.child is None or part.released:
            return
        part.released = True
        reach("spawn.recorded")
        charge.nursery.start_soon(self._bound_output, part)
        if shard != SHARD:
            gate.open_gate(part.child)
            return
        charge.nursery.start_soon(self._bring_up, charge, part.child)
        if charge.launch.stall_ns:
            charge.nursery.start_soon(self._report_progress, charge)

    async def _bring_up(self, charge: Charge, first: subprocess.Popen[bytes]) -> None:
        """Start the runner's first process once its shards are up, and find out when it is ready."""
        await self._shards_are_up(charge)
        if not charge.broken.is_set():
            gate.open_gate(first)
            reach("spawn.after")
            await self._find_ready(charge)

    # --- ending ------------------------------------------------------------------------------------------

    def _stop(self, charge: Charge) -> None:
        """First the process that serves; the shards, which it may need until then, when it has gone."""
        charge.stopped = True
        first = charge.parts.get(SHARD)
        if first is not None and not first.exited.is_set():
            argv = charge.command.stop_argv(first.process.pid) if charge.command is not None else None
            if argv is None or _is_shut(first):
                self._terminate(first)
            else:
                self._nursery.start_soon(self._run_stop_command, charge, first, argv)
        if charge.launch.shard_ports:
            charge.nursery.start_soon(self._stop_shards, charge, first)

    async def _stop_shards(self, charge: Charge, first: Part | None) -> None:
        if first is not None:
            await first.exited.wait()
        for part in charge.left():
            await _patiently(_here, partial(self._terminate, part))

    def _terminate(self, part: Part) -> None:
        """SIGTERM; a gate that is still shut ends without."""
        if part.child is not None and _is_shut(part):
            gate.shut_for_good(part.child)
        else:
            self._signal(part, signal.SIGTERM)

    async def _run_stop_command(self, charge: Charge, part: Part, argv: Sequence[str]) -> None:
        """The configured stop command; where it fails, a signal, as if it were not there."""
        env = gate.environment(charge.command.env if charge.command else {}, "")
        with trio.move_on_after(STOP_COMMAND_S) as late:
            try:
                with part.log.open("ab") as file:  # among what the runner says of it, and bounded like that
                    done = await trio.run_process(
                        argv, env=env, check=False, stdout=file, stderr=file, start_new_session=True,
                        deliver_cancel=_kill_session,
                    )  # fmt: skip
                if done.returncode == 0:
                    return
                words = " ".join(output.last_lines(part.log, 1))
                self._warn(charge, "cmdStop exited with %d: %s", done.returncode, words)
            except OSError as error:
                self._warn(charge, "cmdStop: %s", error)
        if late.cancelled_caught:
            self._warn(charge, "cmdStop did not end within %g s", STOP_COMMAND_S)
        await _patiently(_here, partial(self._signal, part, signal.SIGTERM))

    def _warn(self, charge: Charge, words: str, *arguments: object) -> None:
        extra = about(model=charge.launch.model, runner=charge.runner)
        log.warning(f"%s: {words}", charge.runner, *arguments, extra=extra)

    def _signal(self, part: Part, number: signal.Signals) -> None:
        """To the process's whole group, once it is sure that it is still the one that was started."""
        reach("signal.before")
        if _is(part.process):
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(part.process.pid, number)
        reach("signal.after")

    def _kill(self, charge: Charge) -> None:
        reach("signal.before")
        for part in charge.left():
            for stat in identity.members(*self._who(part)):
                identity.kill(stat)
        reach("signal.after")

    def _who(self, part: Part) -> tuple[int, int, str]:
        process = part.process
        return process.pid, process.start_time, self._marker(process.runner, process.shard)

    async def _left(self, part: Part) -> list[identity.Stat]:
        """Every process of a part that is left. In a thread: it reads about every process there is."""
        if part.exited.is_set():
            return []
        return await _patiently(trio.to_thread.run_sync, identity.left, *self._who(part))

    async def _watch(self, charge: Charge, part: Part) -> None:
        """Wait for the process's end, and for that of all it left behind; then say so.

        A child is reaped last: until then nobody can get its number, which is that of the group. One that was
        adopted is a child, too, if the daemon has started again in place; its status is null all the same."""
        child, status = part.child, None
        try:
            await trio.lowlevel.wait_readable(part.pidfd)
            while left := await self._left(part):
                await _end_all(left)
            if child is None:
                identity.reap(part.pidfd)
            else:
                status = child.wait()
        finally:
            os.close(part.pidfd)
        if child is not None:
            gate.shut_for_good(child)
        part.exited.set()
        charge.broken.set()
        words = _words(charge, part)
        killed = status in KILLED_STATUSES and oom.more(part.oom_kills)
        self._submit(ProcessExited(charge.runner, part.shard, status, words, killed))

    # --- health ------------------------------------------------------------------------------------------

    async def _find_ready(self, charge: Charge) -> None:
        """Wait until the first process is healthy, then say so."""
        command = charge.command
        assert command is not None
        if await self._is_up(charge, SHARD, command.url, command.check_path):
            charge.silent = charge.ready = True
            self._submit(ProbeAnswered(charge.runner, True))

    async def _shards_are_up(self, charge: Charge) -> None:
        """Wait for all shards that are asked; for nothing, once one has exited."""
        assert charge.command is not None
        async with trio.open_nursery() as nursery:
            for shard, command in enumerate(charge.command.shards, 1):
                if command.url:
                    nursery.start_soon(self._is_up, charge, shard, command.url, command.check_path)

    async def _is_up(self, charge: Charge, shard: int, url: str, path: str) -> bool:
        """Ask every READY_POLL_S, and never twice at once: a refused connection costs 50 µs, an answer 300.
        One that takes longer to answer is left alone for ten times as long, READY_PAUSE_S at most. False: the
        runner has lost a process."""
        part = charge.parts.get(shard)
        while not charge.broken.is_set():
            began = trio.current_time()
            ok, answer = await probe.healthy(url, path, PROBE_LONGEST_S)
            if part is not None and not charge.stopped:  # what it says then is not why it is stopped
                part.answer = f"{url}{path}: {answer}"
            ok = ok and await self._is_its_own(charge, part, url)
            if ok and not charge.broken.is_set():
                return True
            spent = trio.current_time() - began
            await trio.sleep(READY_POLL_S if spent <= READY_POLL_S else min(10 * spent, READY_PAUSE_S))
        return False

    async def _is_its_own(self, charge: Charge, part: Part | None, url: str) -> bool:
        assert charge.command is not None
        if charge.command.trust_probe:
            return True
        if part is None:
            return False
        if probe.listens(url, [part.process.pid]):  # mostly: saves the look at all others
            return True
        if probe.listens(url, [stat.pid for stat in await self._left(part)]):
            return True
        if not part.stranger and not charge.broken.is_set():
            part.stranger = f"{url} answers, but {STRANGER}"
            self._warn(charge, "%s", part.stranger)
        return False

    async def _report_progress(self, charge: Charge) -> None:
        """Say when the load has got on, until it is over."""
        before: progress.Look | None = None
        while not charge.ready and not charge.broken.is_set():
            parts = list(charge.left())
            found = [stat for part in parts for stat in await self._left(part)]
            now = progress.look(parts, found, trio.current_time())
            sign = progress.sign(before, now) if before is not None else None
            before = now
            if sign is not None and not charge.ready and not charge.broken.is_set():
                self._submit(LoadProgressed(charge.runner, sign))
            with trio.move_on_after(charge.launch.stall_ns / S / LOAD_LOOKS):
                await charge.broken.wait()

    async def _probe_once(self, charge: Charge) -> None:
        command = charge.command
        if command is not None and not charge.broken.is_set():
            ok, detail = await probe.healthy(command.url, command.check_path, PROBE_S)
            if not charge.broken.is_set():
                self._submit(ProbeAnswered(charge.runner, ok, detail="" if ok else detail))

    async def _bound_output(self, part: Part) -> None:
        while not part.exited.is_set():
            output.bound(part.log)
            with trio.move_on_after(OUTPUT_LOOK_S):
                await part.exited.wait()

    # --- after a restart ---------------------------------------------------------------------------------

    async def identify(self, recorded: Sequence[tuple[Process, Launch]]) -> Sequence[Process]:
        """The recorded processes that are alive, from here on looked after; what carries this log's marker
        and is not one of them is ended."""
        kept = {self._marker(p.runner, p.shard) for p, _ in recorded if self._is_ours(p)}
        stray = [stat for stat, marker in identity.marked(self._log_id) if marker not in kept]
        if stray:
            log.warning("ending %d processes of this log that it does not know", len(stray))
            with trio.move_on_after(KILL_NS / S) as late:
                await _end_all(stray)
            if late.cancelled_caught:
                log.error("some of them cannot be ended")
        # Nothing below waits: whatever happens to a survivor comes after the fact that it is one.
        alive = [process for process, launch in recorded if self._adopt(process, launch)]
        for runner in dict.fromkeys(process.runner for process in alive):
            self._take_over(self._charges[runner])
        return alive

    def _is_ours(self, process: Process) -> bool:
        """Whether a recorded process lives. Its identity says so; a marker, where one can be read, must not
        say that it is somebody else's. A gate is none: who might have opened it is gone."""
        own = self._marker(process.runner, process.shard)
        same = process.boot_id == self._boot_id and _is(process)
        return same and identity.marker_of(process.pid) in (own, "") and not gate.is_gate(process.pid)

    def _adopt(self, process: Process, launch: Launch) -> bool:
        """Look after a recorded process from here on; False where it is gone."""
        pidfd = identity.open_pidfd(process.pid, process.start_time)
        if pidfd is None or not self._is_ours(process):
            if pidfd is not None:
                os.close(pidfd)
            return False
        charge = self._charges.get(process.runner)
        if charge is None:
            charge = self._charges[process.runner] = Charge(launch, self._folder)
            charge.silent = True
            with suppress(Exception):  # its specification changed: it drains, and nobody needs its address
                charge.command = self._command_of(launch.model, launch, str(charge.socket))
            self._nursery.start_soon(self._look_after, charge)
        part = charge.parts[process.shard] = Part(process, pidfd, charge.log(process.shard), None)
        self._nursery.start_soon(self._watch, charge, part)
        charge.orders.send_nowait(lambda: charge.nursery.start_soon(self._bound_output, part))
        return True

    def _take_over(self, charge: Charge) -> None:
        """Go on looking for the readiness of an adopted runner that loads, if it is whole."""
        charge.ready = charge.launch.ready
        whole = len(charge.parts) > len(charge.launch.shard_ports)
        if whole and not charge.ready and charge.command is not None:
            charge.orders.send_nowait(lambda: charge.nursery.start_soon(self._find_again, charge))

    async def _find_again(self, charge: Charge) -> None:
        if charge.launch.stall_ns:
            charge.nursery.start_soon(self._report_progress, charge)
        await self._shards_are_up(charge)
        await self._find_ready(charge)


def _words(charge: Charge, part: Part) -> str:
    """What is told of a process that has exited: nothing of one that has been ready."""
    if charge.ready:
        return ""
    # One that ends by itself says why; of one that we end before it is ready its health check says most.
    found = part.stranger or (part.answer if charge.stopped else "")
    room = OUTPUT_MAX_BYTES - len(found.encode()) - 1
    said = "" if charge.silent else output.last_words(part.log, room)
    return "\n".join(filter(None, (said, found)))  # the journal shows the last line


def _is_shut(part: Part) -> bool:
    """Whether its command does not run yet."""
    return part.child is not None and gate.shut(part.child)


def _drop(part: Part) -> None:
    """Let go of a gate that nobody has been told of."""
    os.close(part.pidfd)
    if part.child is not None:
        gate.shut_for_good(part.child)


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


async def _kill_session(leader: trio.Process) -> None:
    """End a command that takes too long, with all that it started."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(leader.pid, signal.SIGKILL)


async def _here(act: Callable[[], T]) -> T:
    return act()


async def _patiently(act: Callable[..., Awaitable[T]], *arguments: object) -> T:
    """Do what needs a descriptor: while the daemon has none left (all its clients may have come at once), try
    again."""
    warned = False
    while True:
        try:
            return await act(*arguments)
        except OSError as error:
            if error.errno not in identity.SCARCE:
                raise
            if not warned:
                log.warning("cannot look after a runner's process: %s", error)
            warned = True
        await trio.sleep(SCARCE_PAUSE_S)


async def _end_all(found: Sequence[identity.Stat]) -> None:
    """SIGKILL processes, all of them first, and wait until they are gone, also those that we may not kill."""
    for stat in found:
        await _patiently(_here, partial(identity.kill, stat))
    for stat in found:
        pidfd = await _patiently(_here, partial(identity.open_pidfd, stat.pid, stat.start_time))
        if pidfd is not None:
            try:
                await trio.lowlevel.wait_readable(pidfd)
            finally:
                os.close(pidfd)
