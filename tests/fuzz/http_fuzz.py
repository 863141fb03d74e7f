"""The front door against clients and runners that send what they like: nothing may be left of any batch."""

from __future__ import annotations

import gc
import os
import random
import tempfile
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httptools
import trio
import trio.testing

from daemon.figures import Figures
from daemon.ports import Access, Address, Dispatched, Ended, LogBlocked, Ticket
from daemon.tally import Tally
from events.catalogue import RequestArrived, UpstreamEnded
from events.envelope import Record
from events.histogram import Histogram
from events.store import StoreStats
from tests.fuzz import http_inputs as inputs
from tests.fuzz.mutations import mutated
from tests.integration.front_door_world import (
    CANCELLED,
    FAILED,
    OVERDUE,
    Client,
    FakeDesk,
    FakeTicket,
    World,
    world,
)

BATCH = 2000
"""Requests between two looks at what is left."""

CLIENTS = 100
"""At once."""

PATIENCE_S = 0.03
"""How long a client waits for an answer before it does something else."""

BATCH_S = 60
"""A batch that takes longer hangs."""

LIMITS: dict[str, Any] = {
    "head_s": 0.1,
    "body_s": 0.1,
    "body_total_s": 0.3,
    "idle_s": 0.2,
    "stall_s": 0.2,
    "linger_s": 0.05,
    "tick_s": 0.02,
    "body_memory_bytes": 1000,
    "bodies_held_bytes": 1 << 20,
}

ACCESSES = [
    Access(body_bytes=100_000),
    Access(body_bytes=1000),
    Access(api_keys=("key", "other"), body_bytes=100_000),
    Access(origins=("https://page.example",), body_bytes=100_000),
    Access(origins=("*",), hosts=("evil.example",), api_keys=("key",), body_bytes=100_000),
]


SPARE = 3
"""Descriptors that may be open now and were not then: connections that are being closed."""


class Wrong(Exception):
    """Something that must not be."""


class FuzzTicket(FakeTicket):
    """Counts what it is owed."""

    def __init__(self, request: str, arrival: RequestArrived) -> None:
        super().__init__(request, arrival)
        self.dispatched = 0
        self.ends = 0
        self.over = False


class FuzzDesk(FakeDesk):
    """Decides by chance, and keeps account of every dispatch and of its one end."""

    def __init__(self, rng: random.Random) -> None:
        super().__init__()
        self.rng = rng
        self.runners: list[Address] = []
        self.open: dict[str, FuzzTicket] = {}
        self.number = 0
        self.dispatches = 0

    def arrive(self, arrival: RequestArrived) -> FuzzTicket:
        if self.rng.random() < 0.01:
            raise LogBlocked("The event log cannot be written.")
        self.number += 1
        ticket = FuzzTicket(f"q{self.number}", arrival)
        self.open[ticket.request] = ticket
        draw = self.rng.random()
        if draw < 0.9:
            self._dispatch(ticket)
        elif draw < 0.95:
            self._end(ticket, Ended("request.rejected", "queue_full", "The queue is full.", 503, 1))
        return ticket

    def _dispatch(self, ticket: FuzzTicket) -> None:
        ticket.dispatched += 1
        self.dispatches += 1
        ticket.give(Dispatched(self.rng.choice(self.runners), ticket.dispatched, first_byte_s=0.1))

    def _end(self, ticket: FuzzTicket, end: Ended) -> None:
        if not ticket.over:
            ticket.over = True
            ticket.give(end)
            self._settle(ticket)

    def disturb(self) -> None:
        """What the scheduler may do at any moment: end a request, or give one its turn."""
        if self.open:
            ticket = self.rng.choice(list(self.open.values()))
            if not ticket.dispatched and not ticket.over and self.rng.random() < 0.7:
                self._dispatch(ticket)
            elif self.rng.random() < 0.1:
                running = ticket.dispatched > ticket.ends
                self._end(ticket, OVERDUE)
                if running and ticket.on_end is not None:
                    ticket.on_end(OVERDUE)

    def gone(self, ticket: Ticket) -> None:
        assert isinstance(ticket, FuzzTicket)
        self._end(ticket, CANCELLED)
        self._settle(ticket)

    def ended(self, fact: UpstreamEnded) -> None:
        ticket = self.open.get(fact.request)
        if ticket is None or ticket.ends >= ticket.dispatched:
            raise Wrong(f"{fact.request} has ended more often than it was dispatched")
        ticket.ends += 1
        if fact.complete:
            ticket.over = True
        elif not ticket.over and not fact.bytes_to_client and ticket.dispatched < 2:
            return self._dispatch(ticket)
        else:
            self._end(ticket, FAILED)
        self._settle(ticket)
        return None

    async def watch(self, after_seq: int, *, follow: bool) -> AsyncIterator[Record]:
        """The log of nothing."""
        nothing: tuple[Record, ...] = ()
        for record in nothing:
            yield record

    async def durable(self, seq: int) -> None:
        await trio.sleep_forever()

    def figures(self) -> Figures:
        log = StoreStats(*[0] * len(StoreStats.__struct_fields__))
        tally, appended = Tally(self.state), Histogram((1,))
        return Figures(0, tally, self.state, log, appended, refused=0, unready=(), connections={})

    def _settle(self, ticket: FuzzTicket) -> None:
        if ticket.over and ticket.ends == ticket.dispatched:
            self.open.pop(ticket.request, None)


class Runners:
    """Runners by chance. Each insists that what it is sent is one request, in plain framing."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.keys = False
        """Keys are configured, so none may be passed on."""
        self.wrong: list[str] = []

    async def serve(self, peer: Client) -> None:
        rng = self.rng
        alone = True
        while True:
            await self._read(peer, alone)
            draw = rng.random()
            if draw < 0.04:
                return  # closes without an answer
            if draw < 0.05:
                await peer.to_the_end()
                return
            data = inputs.answer(rng)
            if draw < 0.15:
                data = mutated(rng, data, inputs.TOKENS)
            elif draw < 0.18:
                data = data[: rng.randrange(len(data))]
            alone = alone and Answers().is_one(data)
            for piece in inputs.split(rng, data):
                await peer.send(piece)
            if draw < 0.3:
                return

    async def _read(self, peer: Client, alone: bool) -> None:
        """`alone`: nothing can be behind the request, as each before it had one answer. After two, the next
        request may have been answered before it was read."""
        head = await peer.until(b"\r\n\r\n")
        lines = head[:-4].split(b"\r\n")
        names = [line.partition(b":")[0].lower() for line in lines[1:]]
        lengths = [line for line in lines if line.lower().startswith(b"content-length:")]
        if not lines[0].endswith(b" HTTP/1.1") or lines[0].count(b" ") != 2 or names.count(b"host") != 1:
            self.wrong.append(f"a runner was sent {head!r}")
        private = {b"transfer-encoding", b"origin", *((b"x-api-key", b"authorization") if self.keys else ())}
        if private & set(names) or len(lengths) > 1:
            self.wrong.append(f"a runner was sent {head!r}")
        await peer.exactly(int(lengths[0].partition(b":")[2]) if lengths else 0)
        if peer.rest and alone and b"upgrade" not in names:
            self.wrong.append(f"behind {head!r} a runner was sent {peer.rest!r}")


class Answers:
    """What one client was sent: whole answers, the last of which may be cut."""

    def __init__(self) -> None:
        self.count = 0
        self._parser = httptools.HttpResponseParser(self)

    def on_headers_complete(self) -> None:
        self.count += self._parser.get_status_code() >= 200

    def is_one(self, data: bytes) -> bool:
        """Whether it is not more than one answer, as far as a parser can tell."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            return False
        return self.count <= 1

    def check(self, sent: bytes, got: bytes) -> None:
        """Raises Wrong where it is no HTTP, or more answers than requests can have been."""
        if b"HEAD" in sent or b"websocket" in sent.lower() or not got:
            return
        try:
            self._parser.feed_data(got)
        except httptools.HttpParserError as error:
            raise Wrong(f"{error}: {sent!r} was answered by {got!r}") from None
        if self.count > sent.count(b"HTTP/1.") + sent.count(b"RTSP/") + sent.count(b"HTTP/0") + 1:
            raise Wrong(f"{sent!r} was answered {self.count} times: {got!r}")


async def session(rng: random.Random, here: World, requests: int) -> int:
    """One connection: so many requests, one after the other or at once, the last of them perhaps broken. How
    many were sent before either side closed."""
    stream = await trio.open_tcp_stream(*here.listeners[0].getsockname()[:2])
    whole = [inputs.request(rng, key=bool(here.catalog.access.api_keys)) for _ in range(requests)]
    if rng.random() < 0.5:
        whole[-1] = mutated(rng, whole[-1], inputs.TOKENS)
    if rng.random() < 0.15:
        whole = [b"".join(whole)]
    sent = got = b""
    count = 0
    try:
        for data in whole:
            count += requests // len(whole)
            leaves = rng.random() < 0.04
            for piece in inputs.split(rng, data[: rng.randrange(len(data) + 1)] if leaves else data):
                sent += piece
                await stream.send_all(piece)
            if leaves:
                break
            with trio.move_on_after(PATIENCE_S):
                before = len(got)
                while not _answered(got[before:]):
                    more = await stream.receive_some(65536)
                    if not more:
                        return count
                    got += more
    except trio.BrokenResourceError:
        pass
    finally:
        Answers().check(sent, got)
        if rng.random() < 0.2:
            stream.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        with trio.CancelScope(shield=True):
            await stream.aclose()
    return count


def _answered(got: bytes) -> bool:
    """Whether an answer is there, as far as a client that does not want to wait can tell."""
    end = got.find(b"\r\n\r\n")
    if end < 0 or got.startswith(b"HTTP/1.1 1"):
        return False
    at = got.find(b"\r\nContent-Length: ", 0, end)  # and no `XContent-Length` of a runner's
    if at < 0:
        return got.endswith(b"0\r\n\r\n")
    return len(got) >= end + 4 + int(got[at + 18 : got.index(b"\r", at + 2)])


async def batch(seed: str, here: World, desk: FuzzDesk, runners: Runners, count: int) -> None:
    """So many requests, all from one seed; then everything must have come to its end."""
    rng = random.Random(seed)
    desk.rng, runners.rng = random.Random(seed + "d"), random.Random(seed + "r")
    here.catalog.access = rng.choice(ACCESSES)
    runners.keys = bool(here.catalog.access.api_keys)
    left = count

    async def client(own: random.Random) -> None:
        nonlocal left
        while left > 0:
            sent = await session(own, here, own.randint(1, 8))
            left -= sent
            desk.disturb()

    with trio.fail_after(BATCH_S):
        async with trio.open_nursery() as nursery:
            for number in range(CLIENTS):
                nursery.start_soon(client, random.Random(f"{seed}/{number}"))
        await settled(here, desk)
    if runners.wrong:
        raise Wrong(runners.wrong[0])


async def settled(here: World, desk: FuzzDesk) -> None:
    """Wait until nothing is left of the clients; raises Wrong with what is."""
    held = here.door._shared.held
    for _ in range(500):
        if not (here.door.connections or desk.open or held.bytes):
            return
        await trio.testing.wait_all_tasks_blocked(0.005)
    owed = {id: (ticket.dispatched, ticket.ends, ticket.over) for id, ticket in desk.open.items()}
    raise Wrong(f"left: {here.door.connections} connections, {held.bytes} bytes of bodies, requests {owed}")


async def descriptors(here: World, least: int) -> int:
    """How many there are, once those of idle connections to runners have gone."""
    here.door._shared.pools.tidy(())
    gc.collect()  # a traceback may have kept a body's file
    for _ in range(100):
        count = len(os.listdir("/proc/self/fd"))
        if count <= least:
            break
        await trio.testing.wait_all_tasks_blocked(0.005)
    return count


def open_files() -> list[str]:
    """What they are."""
    shown = []
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            shown.append(os.readlink(f"/proc/self/fd/{name}"))
    return sorted(shown)


async def fuzz(seed: int, count: int, first: int = 0) -> int:
    """Send `count` requests in batches, beginning with the batch `first`. Returns how many were dispatched.
    Raises Wrong, or whatever the front door raises, with a note that names the batch."""
    desk = FuzzDesk(random.Random(seed))
    runners = Runners(random.Random(seed))
    with tempfile.TemporaryDirectory(prefix="runnerd-fuzz-") as directory:
        async with world(Path(directory), desk=desk, limit_s=float("inf"), **LIMITS) as here:
            desk.runners = [await here.runner(f"r{n}", runners.serve, unix=n == 3) for n in range(1, 4)]
            least = 10_000
            for number in range(first, first + -(-count // BATCH)):
                try:
                    await batch(f"{seed}:{number}", here, desk, runners, min(BATCH, count))
                    found = await descriptors(here, least)
                    if found > least + SPARE:
                        raise Wrong(f"{found} descriptors are open, and were {least}: {open_files()}")
                    least = min(least, found)
                except BaseException as error:
                    error.add_note(f"in batch {number} of seed {seed}")
                    raise
                health = await (await here.client()).ask("GET", "/health")
                if health.status != 200:
                    raise Wrong(f"/health says {health.status}")
                await here.clients.pop().stream.aclose()
    return desk.dispatches
