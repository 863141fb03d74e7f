"""What a handler is given, and what it may make of it: an answer, a stream, or a request to a runner."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Protocol, TypeVar
from urllib.parse import parse_qsl

import msgspec
import trio

from daemon.http import asked
from daemon.http.asked import Buffer
from daemon.http.body import Body, Pieces
from daemon.http.head import RequestReader
from daemon.http.refusals import Refused
from daemon.logs import Logs
from daemon.ports import Address, Catalog, Control
from events.catalogue import Option
from statemachines.runner import RunnerState

T = TypeVar("T")


class Translation(Protocol):
    """An answer of a runner in the words of another API, piece by piece.

    It belongs to one request. `began` and `head` are called again where an attempt failed before anything was
    sent to the client; what went before is to be forgotten.
    """

    def began(self) -> None:
        """The request has been dispatched: its model is loaded."""
        ...

    def head(self, status: int, content_type: bytes) -> tuple[int, bytes]:
        """The runner's answer begins. Returns the status and the content type of ours."""
        ...

    def feed(self, piece: bytes) -> bytes:
        """A piece of its body, without framing. Returns what the client is sent now. Raises ValueError where
        it is not what a runner of this kind answers."""
        ...

    def end(self) -> bytes:
        """Its body is complete. Returns the rest of ours. Raises ValueError, too."""
        ...

    def broken(self, message: str) -> bytes:
        """It broke off after the client had been sent something. Returns the last words."""
        ...


class Ask(msgspec.Struct, frozen=True):
    """A request to a runner that a handler makes of a call."""

    model: str
    """A model's id."""
    kind: str
    """For the log: "chat", "embedding" and the like."""
    name: str = ""
    """What the client calls the model, for the filters of that name; "": its id."""
    options: Mapping[str, Option] = {}
    """Launch options that it fixes."""
    keep_alive_ns: int | None = None
    keep_alive_else_ns: int | None = None
    """These two: see RequestArrived."""
    target: bytes = b""
    """What is asked for at the runner; b"": what the client asks for."""
    body: bytes | None = None
    """What is sent, as JSON; None: what the client sends, as it comes."""
    translation: Translation | None = None
    """None: the answer goes to the client as it comes."""
    renamed: Callable[[Buffer, str], Pieces] | None = asked.renamed
    """How the body is given another model's name, where the configuration says `useModelName`."""
    upgrade: bool = False
    """The client asks for a WebSocket."""
    beside: Address | None = None
    """A runner that is asked at once: it takes no slot, and the log does not hear of it."""
    tells: bool = False
    """While it waits, the client is told so; `translation` is for the answer behind such words."""
    only_load: bool = False
    """Nothing is asked of the runner: that its model is loaded is all. The translation makes the answer, of
    status 200 and an empty body."""


class Local(msgspec.Struct, frozen=True):
    """What handlers may look at, beside their call."""

    desk: Control
    catalog: Catalog
    logs: Logs
    started_s: int
    """When the front door was made, in Unix time: models have no date of their own."""


class Call:
    """One request, received whole."""

    __slots__ = ("_body", "_request", "caller", "local")

    def __init__(self, request: RequestReader, body: Body, caller: str, local: Local) -> None:
        self._request = request
        self._body = body
        self.caller = caller
        """The client's address, without a port."""
        self.local = local

    @property
    def path(self) -> str:
        """As it was sent: percent signs and all."""
        return self._request.url.partition(b"?")[0].decode("latin-1")

    @property
    def method(self) -> str:
        """In capitals."""
        return self._request.method.decode("latin-1")

    @property
    def url(self) -> bytes:
        """The path and the query, as they were sent."""
        return self._request.url

    @property
    def query(self) -> dict[str, str]:
        """The parameters behind the question mark; of several with one name, the last."""
        return dict(parse_qsl(self._request.url.partition(b"?")[2].decode("latin-1"), keep_blank_values=True))

    @property
    def upgrade(self) -> bool:
        """The client asks for a WebSocket."""
        return self._request.upgrade

    def header(self, name: str) -> str:
        """A header's value, "" where there is none. Those about the connection alone are not here."""
        start = name.lower().encode() + b":"
        for line in self._request.lines:
            if line[: len(start)].lower() == start:
                return line[len(start) :].strip().decode("latin-1")
        return ""

    def answering(self, model: str) -> Address | None:
        """Where a runner of the model answers: one that is ready, else one that drains."""
        desk = self.local.desk
        runners = desk.state.models.get(model, {}).values()
        for state in (RunnerState.ready, RunnerState.draining):
            for runner in runners:
                if runner.state is state:
                    with suppress(KeyError):
                        return desk.address(runner.id)
        return None

    @property
    def body(self) -> bytes | mmap.mmap:
        """The whole body: a file's where it is large, and looking at all of it is for `look`."""
        return self._body.view()

    async def change_body(self, change: Callable[[Buffer], Pieces]) -> None:
        """From now on, what `change` makes of the body is the body. Raises Refused."""
        try:
            await self.look(lambda body: self._body.replace(change(body)))
        except asked.INVALID_JSON as invalid:
            raise asked.no_json(invalid) from None

    async def rename(self, renamed: Callable[[Buffer, str], Pieces], name: str) -> None:
        """Give the body another model's name."""
        await self.change_body(lambda body: renamed(body, name))

    async def look(self, at: Callable[..., T], *arguments: object) -> T:
        """`at(body, *arguments)`: in another thread where the body is so large that everybody would wait."""
        if self._body.in_file:
            return await trio.to_thread.run_sync(at, self._body.view(), *arguments)
        return at(self._body.view(), *arguments)

    async def decode(self, decoder: msgspec.json.Decoder[T]) -> T:
        """The body as JSON. Raises Refused."""
        try:
            return await self.look(decoder.decode)
        except msgspec.ValidationError as invalid:
            text = f"The request body is not as expected: {invalid}."
            raise Refused(400, "invalid_body", text) from None
        except asked.INVALID_JSON as invalid:
            raise asked.no_json(invalid) from None
