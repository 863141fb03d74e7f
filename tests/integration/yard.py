"""Supervisors for tests, with real processes, one after the other on one state directory."""

from __future__ import annotations

import os
import random
import select
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TypeVar

import msgspec
import trio

from daemon.config.commands import Command
from daemon.ports import Launch
from daemon.processes import identity
from daemon.processes import supervisor as supervision
from daemon.processes.supervisor import Supervisor
from events.catalogue import (
    Fact,
    ProbeAnswered,
    Process,
    ProcessSpawned,
)
from tests.ports import RANGE, some_ports

PATIENCE_S = 30
BOOT = "b0000000-0000-4000-8000-000000000000"

F = TypeVar("F", bound=Fact)

SERVER = """
import os, signal, socket, sys
place, *how = sys.argv[1:]
if "refuse" in how:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if "zombie" in how:
    zombie = os.fork()
    if not zombie:
        os._exit(0)
    os.waitid(os.P_PID, zombie, os.WEXITED | os.WNOWAIT)
if "child" in how and not os.fork():
    while True:
        signal.pause()
if "foreman" in how:
    if not os.fork():
        while True:
            signal.pause()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, lambda *_: os._exit(0))
if "stray" in how:
    stray = os.fork()
    if not stray:
        os.setsid()
        while True:
            signal.pause()
    while os.getsid(stray) != stray:
        pass
if place.isdigit():
    server = socket.create_server(("127.0.0.1", int(place)))
else:
    server = socket.socket(socket.AF_UNIX)
    server.bind(place)
    server.listen()
print("serving", flush=True)
while True:
    client, _ = server.accept()
    client.recv(4096)
    client.sendall(b"HTTP/1.1 200 OK\\r\\n\\r\\n")
    client.close()
"""


def free_port() -> int:
    """A port outside the range that the machine gives to outgoing connections."""
    while True:
        port = some_ports() + random.randrange(RANGE)
        if supervision._port_is_free(port):
            return port


def is_alive(pid: int) -> bool:
    stat = identity.stat_of(pid)
    return stat is not None and stat.alive


def in_group(pid: int) -> list[int]:
    return [stat.pid for stat in identity.processes() if stat.group == pid]


def marker_of(pid: int) -> str:
    """The marker of a process that has one: in the middle of its exec it shows none."""
    give_up = time.monotonic() + PATIENCE_S
    while not (marker := identity.marker_of(pid)):
        assert time.monotonic() < give_up
    return marker


def gone(pid: int) -> None:
    """Wait for the end of a process that is not our child."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    ready, _, _ = select.select([descriptor], [], [], PATIENCE_S)
    os.close(descriptor)
    assert ready, f"process {pid} does not end"


@contextmanager
def stranger(marker: str = "") -> Iterator[subprocess.Popen[bytes]]:
    """A process that no supervisor started."""
    env = {**os.environ, identity.MARKER: marker}
    command = ["sleep", "1000"]
    with subprocess.Popen(command, env=env, start_new_session=True) as process:
        try:
            assert not marker or marker_of(process.pid) == marker
            yield process
        finally:
            process.kill()


class Yard:
    """Supervisors on one state directory, one after the other, and the facts that they report."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log_id = uuid.uuid4().hex
        self.facts: list[Fact] = []
        self.make: Callable[[Launch, str], Command] = self.serving()
        """Fills in the next command; tests replace it."""
        self._taken = 0
        self._came = trio.Event()
        self._made: list[Supervisor] = []

    # --- commands ----------------------------------------------------------------------------------------

    def serving(self, *how: str, **more: object) -> Callable[[Launch, str], Command]:
        """A server that is ready as soon as it listens, on its leased port or socket."""

        def make(launch: Launch, path: str) -> Command:
            place, url = path, f"unix:{path}"
            if launch.port:
                place, url = str(launch.port), f"http://127.0.0.1:{launch.port}"
            argv = (sys.executable, "-ISc", SERVER, place, *how)
            return msgspec.structs.replace(Command(argv, {}, url, check_path="/health"), **more)

        return make

    def running(self, *argv: str, url: str = "", **more: object) -> Callable[[Launch, str], Command]:
        """Any command; what answers at `url` is the test's own."""

        def make(launch: Launch, path: str) -> Command:
            command = Command(argv, {}, url or f"unix:{path}", check_path="/health")
            return msgspec.structs.replace(command, **more)

        return make

    # --- supervisors -------------------------------------------------------------------------------------

    @asynccontextmanager
    async def supervise(self) -> AsyncIterator[Supervisor]:
        """A daemon's part: leaving is its death, which the runners outlive."""
        supervisor = Supervisor(
            self._submit, lambda _, launch, path: self.make(launch, path), self.folder, self.log_id, BOOT
        )
        self._made.append(supervisor)  # whose children are ours for longer than they are its own
        async with supervisor:
            yield supervisor

    def _submit(self, fact: Fact) -> None:
        self.facts.append(fact)
        self._came.set()

    async def fact(self, kind: type[F]) -> F:
        """The next fact, which must be of this kind."""
        with trio.fail_after(PATIENCE_S):
            while len(self.facts) == self._taken:
                self._came = trio.Event()
                await self._came.wait()
        fact = self.facts[self._taken]
        self._taken += 1
        assert isinstance(fact, kind), fact
        return fact

    async def until(self, kind: type[F]) -> F:
        """The next fact of this kind; those before it are passed over."""
        while not isinstance(fact := await self.fact(Fact), kind):
            pass
        return fact

    async def ready(self, supervisor: Supervisor, launch: Launch | None = None) -> Process:
        """Load a runner."""
        supervisor.ensure(launch or socket_launch())
        process = (await self.fact(ProcessSpawned)).process
        supervisor.release(process)
        assert await self.fact(ProbeAnswered) == ProbeAnswered(process.runner, True)
        return process

    def files(self) -> list[str]:
        """What is kept for runners."""
        return sorted(path.name for path in self.folder.rglob("*") if not path.is_dir())

    def end(self) -> None:
        for stat, _ in identity.marked(self.log_id):
            identity.kill(stat)
        for supervisor in self._made:
            for charge in supervisor._charges.values():
                for part in charge.parts.values():
                    if part.child is not None:
                        part.child.kill()
                        part.child.wait(PATIENCE_S)
                        assert part.child.stdin is not None
                        part.child.stdin.close()


def socket_launch(runner: str = "r7") -> Launch:
    return Launch(runner, "m", "d", {}, 0, True)


def port_launch(port: int) -> Launch:
    return Launch("r7", "m", "d", {}, port, False)
