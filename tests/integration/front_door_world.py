"""A scripted world around the front door: a desk, runners and raw clients, all of it on loopback."""

from __future__ import annotations

import re
import socket
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import msgspec
import trio

from daemon.config.filters import Filters
from daemon.config.selectors import Profile
from daemon.figures import Figures
from daemon.http.limits import Limits
from daemon.http.server import FrontDoor
from daemon.logs import Logs, Ring
from daemon.ports import (
    Access,
    Address,
    Card,
    Catalog,
    Dispatched,
    Ended,
    LogBlocked,
    ModelRow,
    Output,
    PeerModel,
    Served,
    Ticket,
)
from daemon.readiness import Unready
from events.catalogue import Event, Fact, Option, RequestArrived, UpstreamEnded
from events.envelope import Record
from events.limits import HTTP_BODY_BYTES
from statemachines.parts import Runner
from statemachines.state import State

LIMIT_S = 10
"""Every test ends within this, or fails."""

CANCELLED = Ended("request.cancelled", "client_gone", "The client went away.", 499)
FAILED = Ended("request.failed", "upstream_failed", "The runner failed.", 502)
OVERDUE = Ended("request.timed_out", "request_timeout", "The request took too long.", 504)


class FakeTicket:
    """A request whose turns the test decides."""

    def __init__(self, request: str, arrival: RequestArrived) -> None:
        self.request = request
        self.arrival = arrival
        self.on_end: Callable[[Ended], None] | None = None
        self.on_cut: Callable[[str], None] | None = None
        self._give, self._take = trio.open_memory_channel[Dispatched | Ended](10)

    def give(self, turn: Dispatched | Ended) -> None:
        self._give.send_nowait(turn)

    async def turn(self) -> Dispatched | Ended:
        return await self._take.receive()


class FakeDesk:
    """Records what it is told; `on_arrive` decides on a new request, `retry` after a failed exchange."""

    def __init__(self) -> None:
        self.state = State()
        self.tickets: list[FakeTicket] = []
        self.gones: list[Ticket] = []
        self.facts: list[UpstreamEnded] = []
        self.told: list[str] = []
        """The order of both."""
        self.blocked = False
        self.operations: list[Fact] = []
        self.operated: Ended | None = None
        """What operations end with."""
        self.on_arrive: Callable[[FakeTicket], None] = lambda ticket: None
        self.retry: list[Dispatched | Ended] = []
        self.reasons: list[Unready] = []
        self.addresses: dict[str, Address] = {}
        """Of the runners that are looked after."""
        self._changed = trio.Event()

    def arrive(self, arrival: RequestArrived) -> FakeTicket:
        if self.blocked:
            raise LogBlocked("The event log cannot be written.")
        ticket = FakeTicket(f"q{len(self.tickets) + 1}", arrival)
        self.tickets.append(ticket)
        self.on_arrive(ticket)
        self._change()
        return ticket

    def unready(self) -> list[Unready]:
        return self.reasons

    def gone(self, ticket: Ticket) -> None:
        assert isinstance(ticket, FakeTicket)
        self.gones.append(ticket)
        self.told.append("gone")
        ticket.give(CANCELLED)
        self._change()

    def ended(self, fact: UpstreamEnded) -> None:
        self.facts.append(fact)
        self.told.append("ended")
        if not fact.complete:
            [ticket] = [ticket for ticket in self.tickets if ticket.request == fact.request]
            ticket.give(self.retry.pop(0) if self.retry else FAILED)
        self._change()

    log_blocked = ""

    async def operation(self, fact: Fact) -> Ended | None:
        self.operations.append(fact)
        return self.operated

    def address(self, runner: str) -> Address:
        return self.addresses[runner]

    def now(self) -> int:
        return self.state.t

    def submit(self, fact: Fact) -> Sequence[Event]:
        self.operations.append(fact)
        return [Event(len(self.operations), 0, 0, "", fact)]

    async def durable(self, seq: int) -> None:
        await trio.lowlevel.checkpoint()

    def figures(self) -> Figures:
        raise NotImplementedError

    def watch(self, after_seq: int, *, follow: bool) -> AsyncIterator[Record]:
        raise NotImplementedError

    def _change(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait until the condition holds; it is looked at whenever the desk is told something."""
        with trio.fail_after(LIMIT_S):
            while not condition():
                await self._changed.wait()

    def dispatch_to(self, *addresses: Address) -> None:
        """From now on, requests are dispatched at once: to the first, and after failures to the next."""
        turns = [Dispatched(address, number + 1) for number, address in enumerate(addresses)]

        def arrive(ticket: FakeTicket) -> None:
            ticket.give(turns[0])
            self.retry = list(turns[1:])

        self.on_arrive = arrive


class FakeCatalog:
    """Two models, one alias, one launch option."""

    options: Mapping[str, Option] = {"num_ctx": 4096, "adapter": ""}

    def __init__(self, access: Access) -> None:
        self.access = access

    def resolve(self, name: str) -> str | None:
        return {"tiny": "tiny", "small": "small", "mini": "small"}.get(name)

    def names(self) -> Sequence[str]:
        return ["tiny", "small", "mini", *self.peers]

    def models(self) -> Sequence[ModelRow]:
        return [ModelRow("tiny"), ModelRow("small", ("mini",), "Small", "The small one.")]

    def row(self, name: str) -> ModelRow | None:
        id = self.resolve(name)
        if id is None:
            return None
        return ModelRow(name, alias_of="" if name == id else id, metadata={"layers": 2})

    def card(self, model: str) -> Card:
        return Card(keep_alive_given=model == "small")

    def launch_options(self, model: str) -> Mapping[str, Option]:
        return self.options

    profile = ""

    def missing(self, model: str) -> str:
        return ""

    def profiles(self) -> Mapping[str, Profile]:
        return {"day": Profile("by day", {"any": "tiny"}), "night": Profile("", {"any": ""})}

    peers: Mapping[str, PeerModel] = {}
    filtered: Mapping[str, Filters] = {}
    ignored = r"\.ico$"

    def target(self, name: str) -> str:
        return "mini" if name == "any" else name

    def filters(self, name: str) -> Filters | None:
        return self.filtered.get(name)

    def peer(self, name: str) -> PeerModel | None:
        return self.peers.get(name)

    at_peers: Counter[str] = Counter()

    @contextmanager
    def at_peer(self, peer: PeerModel) -> Iterator[None]:
        self.at_peers[peer.model] += 1
        try:
            yield
        finally:
            self.at_peers[peer.model] -= 1

    def loads_nothing(self, path: str) -> bool:
        return re.search(self.ignored, path) is not None

    def served(self, target: str) -> Served | None:
        id = self.resolve(target)
        return None if id is None else Served(id, self.options, self.filters(target), id == "small")

    def direct(self, name: str) -> Served | None:
        served = self.served(name)
        return None if served is None or served.filters or self.target(name) != name else served

    def bounded(self, model: str, options: Mapping[str, Option]) -> dict[str, Option]:
        return dict(options)


class Answer(msgspec.Struct):
    """What a client got."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return msgspec.json.decode(self.body)


class Client:
    """One raw connection."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self.rest = b""

    async def send(self, data: bytes) -> None:
        await self.stream.send_all(data)

    async def ask(self, method: str, path: str, body: bytes | None = None, *headers: str) -> Answer:
        await self.send(request(method, path, body, *headers))
        return await self.answer(head_only=method == "HEAD")

    async def chat(self, *headers: str, **members: Any) -> Answer:
        await self.send(chat(*headers, **members))
        return await self.answer()

    async def more(self) -> bytes:
        return await self.stream.receive_some(65536)

    async def until(self, end: bytes) -> bytes:
        while end not in self.rest:
            data = await self.more()
            assert data, f"closed before {end!r}, after {self.rest!r}"
            self.rest += data
        at = self.rest.index(end) + len(end)
        found, self.rest = self.rest[:at], self.rest[at:]
        return found

    async def exactly(self, size: int) -> bytes:
        while len(self.rest) < size:
            data = await self.more()
            assert data, "closed in a body"
            self.rest += data
        found, self.rest = self.rest[:size], self.rest[size:]
        return found

    async def head(self) -> Answer:
        lines = (await self.until(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        pairs = [line.split(": ", 1) for line in lines[1:] if line]
        return Answer(int(lines[0].split()[1]), {name.lower(): value for name, value in pairs}, b"")

    async def answer(self, *, head_only: bool = False) -> Answer:
        answer = await self.head()
        if head_only or answer.status == 204:
            pass
        elif "content-length" in answer.headers:
            answer.body = await self.exactly(int(answer.headers["content-length"]))
        elif answer.headers.get("transfer-encoding") == "chunked":
            while size := int(await self.until(b"\r\n"), 16):
                answer.body += (await self.exactly(size + 2))[:-2]
            await self.exactly(2)
        else:
            answer.body = await self.to_the_end()
        return answer

    async def to_the_end(self) -> bytes:
        while data := await self.more():
            self.rest += data
        found, self.rest = self.rest, b""
        return found

    async def closed(self) -> bool:
        """Wait for the server to close; true if it sent nothing more."""
        try:
            return await self.to_the_end() == b""
        except trio.BrokenResourceError:
            return True


def request(method: str, path: str, body: bytes | None = None, *headers: str) -> bytes:
    """A request's bytes. A Host among the headers replaces the usual one."""
    lines = [f"{method} {path} HTTP/1.1", *headers]
    if not any(line.lower().startswith("host:") for line in headers):
        lines.insert(1, "Host: localhost")
    if body is not None:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join((*lines, "", "")).encode() + (body or b"")


def chat(*headers: str, **members: Any) -> bytes:
    """A chat request's bytes."""
    body = msgspec.json.encode({"model": "tiny", **members})
    return request("POST", "/v1/chat/completions", body, "Content-Type: application/json", *headers)


class World:
    """A front door that serves, and what surrounds it."""

    def __init__(
        self,
        nursery: trio.Nursery,
        directory: Path,
        limits: Limits,
        access: Access,
        listeners: list[socket.socket],
        desk: FakeDesk | None,
        catalog: Catalog | None,
    ) -> None:
        self.nursery = nursery
        self.directory = directory
        self.desk = desk or FakeDesk()
        self.catalog = FakeCatalog(access)
        self.ring = Ring()
        self.outputs: list[Output] = []
        """The files of runners."""
        logs = Logs(self.ring, lambda: self.outputs)
        self.door = FrontDoor(self.desk, catalog or self.catalog, logs, limits=limits)
        self.listeners = listeners
        self.serving = trio.CancelScope()
        self.stopped = trio.Event()
        self.clients: list[Client] = []

    async def serve(self) -> None:
        with self.serving:
            await self.door.serve(self.listeners)
        self.stopped.set()

    async def stop(self) -> None:
        self.serving.cancel()
        await self.stopped.wait()

    async def client(self) -> Client:
        host, port = self.listeners[0].getsockname()[:2]
        client = Client(await trio.open_tcp_stream(host, port))
        self.clients.append(client)
        return client

    async def runner(
        self, name: str, serve: Callable[[Client], Awaitable[None]], *, unix: bool = False
    ) -> Address:
        """A runner: `serve` gets each of its connections. Its state is in the desk's."""
        if unix:
            path = str(self.directory / f"{name}.sock")
            sock = trio.socket.socket(socket.AF_UNIX)
            await sock.bind(path)
            sock.listen(10)
            listener, url = trio.SocketListener(sock), f"unix:{path}"
        else:
            [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
            url = f"http://127.0.0.1:{listener.socket.getsockname()[1]}"

        async def handle(stream: trio.SocketStream) -> None:
            async with stream:
                try:
                    await serve(Client(stream))
                except (trio.BrokenResourceError, AssertionError):
                    return

        self.nursery.start_soon(trio.serve_listeners, handle, [listener])
        self.desk.state.runners[name] = Runner(
            name, "tiny", "", {}, {}, slots=4, keep_alive_ns=-1, load_ns=1, port=5800, socket=unix,
            alone=False, load_t=0,
        )  # fmt: skip
        address = self.desk.addresses[name] = Address(name, url)
        return address


@asynccontextmanager
async def world(
    directory: Path,
    *,
    unix: bool = False,
    body_bytes: int = HTTP_BODY_BYTES,
    access: Access | None = None,
    desk: FakeDesk | None = None,
    catalog: Catalog | None = None,
    limit_s: float = LIMIT_S,
    **limits: Any,
) -> AsyncIterator[World]:
    """A front door on loopback (or on a Unix socket), with smaller limits and another catalog where the test
    says so."""
    access = access or Access(hosts=("box.example",), body_bytes=body_bytes)
    if unix:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(directory / "front.sock"))
        listener.listen()
    else:
        listener = socket.create_server(("127.0.0.1", 0))
    with listener, trio.fail_after(limit_s):
        async with trio.open_nursery() as nursery:
            here = World(nursery, directory, Limits(**limits), access, [listener], desk, catalog)
            nursery.start_soon(here.serve)
            yield here
            await here.stop()
            for client in here.clients:
                await client.stream.aclose()
            nursery.cancel_scope.cancel()


def echo(status: str = "200 OK", *headers: str) -> Callable[[Client], Awaitable[None]]:
    """A runner that answers each request with the request itself."""

    async def serve(peer: Client) -> None:
        while True:
            head, body = await read_request(peer)
            text = head + body
            lines = [f"HTTP/1.1 {status}", *headers, f"Content-Length: {len(text)}", "", ""]
            await peer.send("\r\n".join(lines).encode() + text)

    return serve


def once(*answers: bytes) -> Callable[[Client], Awaitable[None]]:
    """A runner whose connections each answer as often as there are answers, and then close."""

    async def serve(peer: Client) -> None:
        for answer in answers:
            await read_request(peer)
            await peer.send(answer)

    return serve


async def read_request(peer: Client) -> tuple[bytes, bytes]:
    """What a runner gets."""
    head = await peer.until(b"\r\n\r\n")
    length = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    return head, await peer.exactly(int(length[0].split(b":")[1]) if length else 0)
