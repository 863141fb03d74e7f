"""The control socket against clients that send what they like and leave when they like: nothing may be left
of any batch. Behind it are the real scheduler, driver and log; only runners are pretended."""

from __future__ import annotations

import gc
import json
import logging
import os
import random
import socket
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
import trio.testing

from daemon.beside import running
from daemon.catalog import Catalog
from daemon.clock import Clock
from daemon.config.file import load
from daemon.control import inbox
from daemon.control.explaining import Explainer
from daemon.control.server import ControlServer, listen
from daemon.driver import Driver
from daemon.leaving import Leaver
from daemon.logs import Logs, Ring
from daemon.ports import Address, Launch, Output
from daemon.reload import Reloader
from events import catalogue as c
from events.limits import GIB
from events.store import open_store
from statemachines.scheduler import RULES, Scheduler
from tests.fuzz import control_inputs as inputs
from tests.fuzz.mutations import mutated
from tests.unit.test_interface import ERRORS

BATCH = 2000
"""Messages between two looks at what is left."""

CLIENTS = 60
"""At once."""

PATIENCE_S = 0.02
"""How long an unruly client waits before it does something else."""

BATCH_S = 60
"""A batch that takes longer hangs."""

SPARE = 3
"""Descriptors and tasks that may be there now and were not then: connections that are being closed."""

CONFIG = """
memoryHeadroom: 0
unloadTimeout: 30ms
maxLease: 100ms
profiles: {calm: {pins: {any: a}}}
models:
  a: {cmd: 's ${PORT} ${num_ctx}', memory: 1GiB, slots: 2, aliases: [alias], options: {num_ctx: 4096}}
  b: {cmd: 's ${PORT}', memory: 1GiB, slots: 4}
  c: {cmd: 's ${PORT}', memory: 1GiB, ttl: 1ms}
"""
CONTROL = "io.runnerd.Control."
SERVICE = "org.varlink.service."


class Wrong(Exception):
    """Something that must not be."""


class Errors(logging.Handler):
    """Exceptions that the daemon met and went on from: of its own making, for no client is worth one."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info is not None:
            self.said.append(self.format(record))


class Machine:
    """Runners that do at once what they are told to."""

    def __init__(self) -> None:
        self.report: Callable[[c.Fact], None] = lambda fact: None
        self._soon = trio.lowlevel.current_trio_token().run_sync_soon
        self._pid = 1000

    def ensure(self, launch: Launch) -> None:
        self._pid += 1
        process = c.Process(launch.runner, 0, "boot", self._pid, 1)
        self._soon(self.report, c.ProcessSpawned(process))

    def release(self, process: c.Process) -> None:
        self._soon(self.report, c.ProbeAnswered(process.runner, True))

    def stop(self, runner: str) -> None:
        self._soon(self.report, c.ProcessExited(runner, 0, 0))

    def kill(self, runner: str) -> None:
        self.stop(runner)

    def probe(self, runner: str, reason: str) -> None:
        self._soon(self.report, c.ProbeAnswered(runner, True))

    def address(self, runner: str) -> Address:
        return Address(runner, f"http://127.0.0.1/{runner}")

    def forget(self, runner: str) -> None:
        """There is nothing to forget."""

    async def identify(self, recorded: Sequence[tuple[c.Process, Launch]]) -> Sequence[c.Process]:
        return ()

    def tail(self, runner: str, lines: int) -> list[str]:
        return []

    def outputs(self) -> Sequence[Output]:
        return ()


class Meter:
    """There is plenty of memory."""

    async def measure(self, processes: Mapping[str, Sequence[int]]) -> c.MemoryMeasured:
        await trio.lowlevel.checkpoint()
        return c.MemoryMeasured({"host": c.Reading(64 * GIB, 60 * GIB)})


class World(msgspec.Struct):
    """A daemon but for its processes and its front door."""

    path: Path
    driver: Driver
    control: ControlServer


@asynccontextmanager
async def world(directory: Path) -> AsyncIterator[World]:
    (directory / "config.yaml").write_text(CONFIG)
    config = load(directory / "config.yaml")
    async with open_store(directory / "events.db") as store, trio.open_nursery() as nursery:
        driver = Driver(store, Scheduler(), Clock(0, None), directory / "events.db")
        machine = Machine()
        driver.machinery, driver.meter, machine.report = machine, Meter(), driver.report
        driver.submit(c.DaemonStarted(RULES, "balanced", "boot", "0"))
        driver.submit(c.ConfigChanged(config.view(b"key"), "start"))
        catalog = Catalog(config)
        reloader = Reloader(driver, catalog, b"key")
        control = ControlServer(
            driver, catalog, reloader, Logs(Ring(), lambda: []), Leaver(driver, directory / "config.yaml")
        )
        control._service.explainer = Quick()
        path = directory / "control.sock"
        with listen(path) as sock:
            async with running(driver.run):
                nursery.start_soon(reloader.run)
                nursery.start_soon(control.serve, sock)
                yield World(path, driver, control)
                nursery.cancel_scope.cancel()


class Quick(Explainer):
    """Explains nothing, at once: what is asked is taken from who asks, a process for each would take long."""

    async def _run(self, arguments: Sequence[str]) -> bytes:
        await trio.lowlevel.checkpoint()
        os.fsencode("".join(arguments))
        return b'{"told": {}}'


class Replies:
    """What one client has been told: whole messages, the last of which may be cut."""

    def __init__(self) -> None:
        self.last = 0
        """Replies after which none follows to the same call."""
        self.closing = 0
        """Those that announce the end of the connection."""
        self.tokens: list[str] = []
        self._rest = b""

    def feed(self, data: bytes) -> None:
        """Raises Wrong where they are no replies."""
        *whole, self._rest = (self._rest + data).split(b"\0")
        for message in whole:
            self._take(json.loads(message))

    def _take(self, reply: Any) -> None:
        if (
            "parameters" not in reply
            or not set(reply) <= {"parameters", "continues", "error"}
            or len(reply) > 2
        ):
            raise Wrong(f"no reply: {reply}")
        name = reply.get("error", "")
        declared = name.removeprefix(CONTROL) in ERRORS or name.startswith(SERVICE) or not name
        if not declared:
            raise Wrong(f"an error that is not declared: {reply}")
        if name in (f"{CONTROL}LimitExceeded", f"{CONTROL}TooSlow"):
            self.closing += 1
        elif not reply.get("continues"):
            self.last += 1
        lease = reply["parameters"].get("lease") if isinstance(reply["parameters"], dict) else None
        if lease:
            self.tokens.append(lease["token"])


async def orderly(rng: random.Random, here: World, count: int) -> None:
    """A client that waits for what it is owed: each of its calls is answered, once, in their order."""
    calls = [call for call in (inputs.call(rng) for _ in range(count)) if not call.endless and call.answered]
    replies = Replies()
    async with await trio.open_unix_socket(here.path) as stream:
        for piece in inputs.split(rng, b"".join(call.data for call in calls) or b"\0"):
            await stream.send_all(piece)
        while replies.last < len(calls):
            data = await stream.receive_some(65536)
            if not data:
                sent = [call.data for call in calls]
                raise Wrong(f"closed after {replies.last} of {len(calls)} replies to {sent}")
            replies.feed(bytes(data))
        with trio.move_on_after(PATIENCE_S):
            replies.feed(bytes(await stream.receive_some(65536)))
    if replies.last > len(calls):
        raise Wrong(f"{replies.last} replies to {[call.data for call in calls]}")


async def unruly(rng: random.Random, here: World, count: int) -> None:
    """A client that sends anything, and leaves at any moment."""
    data = b"".join(inputs.call(rng).data for _ in range(count))
    if rng.random() < 0.7:
        data = mutated(rng, data, inputs.TOKENS)
    if rng.random() < 0.2:
        data = data[: rng.randrange(len(data) + 1)]
    replies = Replies()
    stream = await trio.open_unix_socket(here.path)
    try:
        for piece in inputs.split(rng, data) if data else ():
            await stream.send_all(piece)
            with trio.move_on_after(rng.choice([0, 0, PATIENCE_S, 5 * PATIENCE_S])):
                while part := await stream.receive_some(65536):
                    replies.feed(bytes(part))
        if rng.random() < 0.3:
            await stream.send_eof()
            with trio.move_on_after(PATIENCE_S):
                while part := await stream.receive_some(65536):
                    replies.feed(bytes(part))
    except trio.BrokenResourceError:
        pass
    finally:
        with trio.CancelScope(shield=True):
            await stream.aclose()
    if replies.last > data.count(b"\0") or replies.closing > 1:
        raise Wrong(f"{replies.last} replies to {data!r}")


async def holder(rng: random.Random, here: World) -> None:
    """A client that wants a lease, holds it for a moment, may show its token elsewhere, and leaves."""
    message = {
        "method": f"{CONTROL}Acquire",
        "parameters": {"model": rng.choice(["a", "b", "c"])},
        "more": True,
    }
    async with await trio.open_unix_socket(here.path) as stream:
        await stream.send_all(json.dumps(message).encode() + b"\0")
        replies = Replies()
        with trio.move_on_after(rng.choice([0, 2 * PATIENCE_S, 10 * PATIENCE_S])):
            while not replies.tokens and (part := await stream.receive_some(65536)):
                replies.feed(bytes(part))
        if replies.tokens and rng.random() < 0.3:
            message["parameters"] = {"token": replies.tokens[0]}
            async with await trio.open_unix_socket(here.path) as other:
                await other.send_all(json.dumps(message).encode() + b"\0")
                if rng.random() < 0.5:
                    await stream.aclose()
                with trio.move_on_after(PATIENCE_S):
                    await other.receive_some(65536)
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            if rng.random() < 0.5:
                await stream.send_all(inputs.call(rng).data)


async def batch(seed: str, here: World, count: int) -> None:
    """So many messages, all from one seed; then everything must have come to its end."""
    left = count

    async def client(own: random.Random) -> None:
        nonlocal left
        while left > 0:
            draw, several = own.random(), own.randint(1, 12)
            left -= several if draw < 0.7 else 1
            if draw < 0.35:
                await orderly(own, here, several)
            elif draw < 0.7:
                await unruly(own, here, several)
            else:
                await holder(own, here)

    with trio.fail_after(BATCH_S):
        async with trio.open_nursery() as nursery:
            for number in range(CLIENTS):
                nursery.start_soon(client, random.Random(f"{seed}/{number}"))
        await settled(here)


async def settled(here: World) -> None:
    """Wait until nothing is left of the clients; raises Wrong with what is."""
    state = here.driver.state
    for _ in range(1000):
        if not (here.control.connections or state.requests or state.operations):
            return
        if not here.control.connections and here.driver._leases:
            break  # nobody is there who could hold one
        await trio.testing.wait_all_tasks_blocked(0.005)
    left = [(r.id, r.state.value, r.slot) for r in state.requests.values()]
    raise Wrong(f"left: {here.control.connections} connections, {left}, {list(state.operations)}")


def resources() -> tuple[int, int]:
    """Descriptors and tasks."""
    gc.collect()
    return len(os.listdir("/proc/self/fd")), trio.lowlevel.current_statistics().tasks_living


def serves(path: Path) -> None:
    """A new client is answered; in a thread, as any client would be."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(BATCH_S)
        sock.connect(str(path))
        sock.sendall(b'{"method":"io.runnerd.Control.Status"}\0')
        data = b""
        while not data.endswith(b"\0"):
            data += sock.recv(65536)
    if json.loads(data[:-1])["parameters"]["pid"] != os.getpid():
        raise Wrong(f"the status is {data!r}")


async def fuzz(seed: int, count: int, first: int = 0) -> int:
    """Send `count` messages in batches, beginning with the batch `first`. Returns how many leases were let go
    of. Raises Wrong, or whatever the server raises, with a note that names the batch."""
    log, errors = logging.getLogger("runnerd"), Errors()
    log.addHandler(errors)
    try:
        with (
            tempfile.TemporaryDirectory(prefix="runnerd-fuzz-") as directory,
            pytest.MonkeyPatch.context() as patch,
        ):
            patch.setattr(inbox, "CONTROL_MESSAGE_S", 0.2)
            async with world(Path(directory)) as here:
                least = (10_000, 10_000)
                for number in range(first, first + -(-count // BATCH)):
                    try:
                        await batch(f"{seed}:{number}", here, min(BATCH, count))
                        found = resources()
                        if any(now > then + SPARE for now, then in zip(found, least, strict=True)):
                            raise Wrong(f"{found} descriptors and tasks, and were {least}")
                        least = min(least, found)
                        await trio.to_thread.run_sync(partial(serves, here.path))
                        if errors.said:
                            raise Wrong(errors.said[0])
                    except BaseException as error:
                        error.add_note(f"in batch {number} of seed {seed}")
                        raise
                return here.driver.state.counts.get("completed", 0)
    finally:
        log.removeHandler(errors)
