"""One exchange with a runner: the request goes there, its answer comes back chunk by chunk, unchanged.

The runner's bytes are parsed only to know where its answer ends. Its head is written anew without the headers
that describe its connection; the body is never looked at, never held back. Where the client speaks another
API, a translation takes the body piece by piece, and what it makes of each goes on at once.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from functools import partial
from time import monotonic_ns

from daemon.http.answers import EVENT_STREAM, JSON, PHRASES, UNBUFFERED
from daemon.http.calls import Ask, Translation
from daemon.http.framed import Framed
from daemon.http.head import RequestReader, without
from daemon.http.refusals import REQUEST
from daemon.http.reply import Reply
from daemon.http.tunnel import tunnel
from daemon.http.upstream import Pool, Upstream
from daemon.http.wire import FAILURES, Wire
from daemon.ports import Dispatched
from events.catalogue import FIRST_BYTE_LATE, UpstreamEnded
from events.failpoints import reach

END_OF_HEAD = b"\r\n\r\n"

BLANK = re.compile(rb"[\r\n]*")
"""What may stand before an answer, and is not passed on."""

STATUS_LINES = {status: f"HTTP/1.1 {status} {phrase}\r\n".encode() for status, phrase in PHRASES.items()}
"""Written anew: a runner's may have another protocol's name or version, or control characters in it."""

NOTHING = memoryview(b"")

Making = Callable[[Reply, bytes], bytes]
"""What goes to the client for bytes that the parser has just been fed."""

AS_COMES = Ask("", "")
"""The client's request and the runner's answer pass unchanged."""

UPGRADE = b"Connection: Upgrade\r\nUpgrade: websocket\r\n"

AT_ONCE = f"{UNBUFFERED}: no\r\n".encode()
TOLD = f"{UNBUFFERED}:".lower().encode()

BODILESS = (b"GET", b"HEAD", b"OPTIONS")
"""Methods whose requests mostly have no body, so that an empty one is not announced."""

DESCRIBING = [b"content-type", b"content-encoding", b"accept", b"accept-encoding"]
"""Headers that describe the client's own body, and the answer that it wants: not those of a translation."""


class UpstreamFailed(Exception):
    """The runner did not give a whole answer."""


class ClientLost(Exception):
    """The client cannot be written to any more."""


class Exchange:
    """What one dispatch sends and receives. `run` it once, then read its outcome."""

    __slots__ = (
        "_aborted", "_ask", "_began_ns", "_client", "_first_byte_due", "_framed", "_given_up", "_id", "_pool",
        "_prefix", "_request", "_unframed", "_upstream", "bytes_to_client", "client_lost", "complete",
        "error", "first_byte_ns", "keep_alive", "sent", "started", "status",
    )  # fmt: skip

    def __init__(
        self,
        client: Wire,
        request: RequestReader,
        pool: Pool,
        prefix: str,
        first_byte_due: float = math.inf,
        id: str = "",
        ask: Ask = AS_COMES,
        framed: Framed | None = None,
    ) -> None:
        self._client = client
        self._ask = ask
        self._framed = framed
        """An answer that has begun already."""
        self._id = id
        self._first_byte_due = first_byte_due
        """When the first byte of an answer must have come, by the front door's clock."""
        self._given_up = ""
        """Why the runner's answer is not waited for any more."""
        self._request = request
        self._pool = pool
        self._prefix = prefix
        self._upstream: Upstream | None = None
        self._aborted = False
        self._unframed = False
        """Only the end of the client's connection says where the answer ends."""
        self._began_ns = 0
        self.sent = False
        """Something was done for the dispatch: it is not that the request had ended before."""
        self.started = False
        """The client may have got bytes of the answer: nothing else can be answered any more."""
        self.complete = False
        """The whole answer went to the client."""
        self.client_lost = False
        """The client is to be counted as gone: it cannot be written to, or its task was cancelled."""
        self.keep_alive = request.keep_alive and not request.excess
        """The client's connection can be used again."""
        self.status = 0
        self.bytes_to_client = 0
        self.first_byte_ns = 0
        self.error = ""

    async def run(self) -> None:
        """Send the request and relay its answer. What goes wrong is told by the outcome."""
        self.sent = self.client_lost = True
        self._began_ns = monotonic_ns()
        translation = self._ask.translation
        try:
            reply: Reply | None = None
            if translation is None:
                reply = await self._relay_head(await self._put())
                if reply.switched:
                    await self._tunnel()
                    if self._given_up:
                        raise UpstreamFailed(self._given_up)
                elif not reply.done:
                    await self._relay_rest(reply, self._as_came)
            elif self._ask.only_load:
                await self._say_loaded(translation)
            else:
                reply = await self._translate(translation)
            if reply is not None and reply.excess:
                self.keep_alive = False
            reach("answer.after")
            if self._unframed:
                if self._client.closed:  # it was reset: what came last may not have reached it
                    raise ClientLost
                self._client.reset_at_close(False)
            self.complete = True
            self.client_lost = False
        except UpstreamFailed as failure:
            self.client_lost = False
            self.error = self._given_up or str(failure)
        except ClientLost:
            self.error = "the client went away"
        except Exception as mistake:
            self.error = f"runnerd has made a mistake: {type(mistake).__name__}"
            raise
        finally:
            self._leave_upstream()

    def abort(self) -> None:
        """End it from another task: the request has ended, or its client went away."""
        self._aborted = True
        if self._upstream is not None:
            self._upstream.close()
        if self.started:
            self._client.close()

    def give_up(self, why: str) -> None:
        """Wait for no more of the runner's answer; the client is told, if it has been told anything yet."""
        self._given_up = why
        if self._upstream is not None:
            self._upstream.close()

    def expire(self, now: float, stalled: float) -> None:
        """Give up on a runner that has taken nothing since the time `stalled`, or has not begun to answer."""
        upstream = self._upstream
        if upstream is not None and now >= self._first_byte_due and not self.first_byte_ns:
            self.give_up(FIRST_BYTE_LATE)
        elif (
            upstream is not None and upstream.waiting_since is not None and upstream.waiting_since <= stalled
        ):
            upstream.close()

    def ended(self, request: str, turn: Dispatched) -> UpstreamEnded:
        """The fact that the exchange ends with."""
        return UpstreamEnded(
            request=request,
            runner=turn.address.runner,
            complete=self.complete,
            bytes_to_client=self.bytes_to_client,
            status=self.status,
            sent=self.sent,
            first_byte_ns=self.first_byte_ns,
            error=self.error,
        )

    async def _put(self) -> bytes:
        """Send the request and wait for the first bytes of an answer. A reused connection may have been
        closed by the runner just now, which is no failure: then once more, on a fresh one."""
        payload = self._request.body.view()
        upstream = self._pool.take() or await self._connect()
        while True:
            self._upstream = upstream
            self._expect(upstream.reply)
            unsent: OSError | None = None
            try:
                try:
                    if isinstance(payload, bytes):
                        await upstream.send(self._head(len(payload)) + payload)
                    else:
                        await upstream.send(self._head(len(payload)))
                        await upstream.send(memoryview(payload))
                    reach("dispatch.sent")
                except OSError as error:
                    # It may have answered without the rest of the body, and closed: too large, no such key.
                    unsent = error
                data = await upstream.recv()
                if unsent is not None and not data:
                    raise unsent
            except FAILURES as failure:
                if not upstream.reused or self._aborted or self._given_up:
                    raise UpstreamFailed(f"the connection failed: {describe(failure)}") from None
                data = b""
            if data:
                self.first_byte_ns = monotonic_ns() - self._began_ns
                reach("answer.before")
                return data
            if not upstream.reused:
                raise UpstreamFailed("it closed the connection without an answer")
            upstream.close()
            upstream = await self._connect()

    def _expect(self, reply: Reply) -> None:
        """Tell the parser of the answer what it is to be an answer to."""
        reply.plain = self._request.version == "1.0"
        if self._ask is not AS_COMES:
            reply.plain = reply.plain or self._ask.translation is not None
            reply.bodiless = self._request.method == b"HEAD"
            reply.upgrading = self._ask.upgrade

    async def _connect(self) -> Upstream:
        if self._aborted or self._given_up:
            raise UpstreamFailed("aborted")
        try:
            upstream, address = await self._pool.open()
            self._upstream = upstream
            if self._aborted or self._given_up:
                raise UpstreamFailed("aborted")
            await upstream.connect(address)
        except FAILURES as failure:
            raise UpstreamFailed(f"it cannot be connected to: {describe(failure)}") from None
        return upstream

    def _head(self, size: int) -> bytes:
        request, ask = self._request, self._ask
        target, method, lines = request.url, request.method, request.lines
        if ask is not AS_COMES:
            target = ask.target or target
            if ask.body is not None:
                method, lines = b"POST", [*without(lines, DESCRIBING), b"Content-Type: application/json\r\n"]
            elif ask.translation is not None:
                lines = without(lines, [b"accept-encoding"])
            if ask.upgrade:
                lines = [*lines, UPGRADE]
        if self._prefix:
            target = self._prefix.encode() + target
        framing = b"Content-Length: %d\r\n" % size if size or method not in BODILESS else b""
        return b"%b %b HTTP/1.1\r\n%b%b%b\r\n" % (
            method, target, self._pool.host_line, b"".join(lines), framing,
        )  # fmt: skip

    async def _rest_of_head(self, reply: Reply, taken: bytes) -> bytes:
        """Take the rest of an answer's head: all the bytes that have come, which begin with it."""
        while not reply.headed:
            data = await self._recv()
            if not data:
                raise UpstreamFailed("it closed the connection in the head of its answer")
            self._feed(reply, data)
            taken += data
        return taken

    async def _relay_head(self, taken: bytes) -> Reply:
        """Take the answer's head and send it on, with what came behind it, in one piece."""
        assert self._upstream is not None
        reply = self._upstream.reply
        self._feed(reply, taken)
        if not reply.headed:
            taken = await self._rest_of_head(reply, taken)
        self.status = reply.status
        head = self._answer_head(reply)
        if reply.plain:
            came = b"".join(reply.pieces)
            reply.pieces.clear()
        else:
            came = taken[end_of_head(taken, reply.interim) :]
            if len(came) != reply.left:  # it is not just the whole of the body
                came = self._cut(reply, came)
        await self._send(head + came)
        return reply

    def _answer_head(self, reply: Reply) -> bytes:
        """The head for the client, which also settles whether its connection persists."""
        if reply.plain and reply.chunked:
            self.keep_alive = False
            reply.lines = [line for line in reply.lines if not line.lower().startswith(b"transfer-encoding:")]
        else:
            reply.plain = False
        ends = reply.ends_with_connection
        if ends or reply.excess:
            self.keep_alive = False
        if reply.plain or (ends and not reply.switched):
            self._unframed = True
            self._client.reset_at_close(True)  # until the answer is complete
        if reply.switched:
            reply.lines.append(UPGRADE)
        elif not self.keep_alive:
            reply.lines.append(b"Connection: close\r\n")
        elif self._request.version == "1.0":
            reply.lines.append(b"Connection: keep-alive\r\n")
        status_line = STATUS_LINES.get(reply.status) or b"HTTP/1.1 %d Unknown\r\n" % reply.status
        if not reply.sized and is_held_back(reply):
            reply.lines.append(AT_ONCE)
        if self._id:  # a peer's answer is not in the log
            reply.lines.append(b"X-Runnerd-Request: %b\r\n" % self._id.encode())
        return b"%b%b%b\r\n" % (status_line, b"".join(reply.lines), self._request.cors)

    async def _relay_rest(self, reply: Reply, made_of: Making) -> None:
        """Give the client what is `made_of` the runner's bytes as they come, to the end of its answer."""
        upstream = self._upstream
        assert upstream is not None
        while not reply.done:
            if upstream.wrapped:
                unsent = self._pass_on(reply, made_of, await self._recv())
            else:
                try:
                    step = partial(self._pass_next, upstream, reply, made_of)
                    unsent = await upstream.drain(step)
                except FAILURES as failure:
                    raise UpstreamFailed(f"the connection failed: {describe(failure)}") from None
            if unsent:
                await self._send(unsent)
            elif unsent is not None and not reply.done:
                return  # it ends with the connection

    def _pass_next(self, upstream: Upstream, reply: Reply, made_of: Making) -> memoryview | None:
        """Pass on what has come, if anything has; as `_pass_on`."""
        data = upstream.recv_now()
        return None if data is None else self._pass_on(reply, made_of, data)

    def _pass_on(self, reply: Reply, made_of: Making, data: bytes) -> memoryview | None:
        """Give the client what is made of these bytes; None: there is more to come. Returns what it does not
        take at once, and what the answer ends with: its task sends that, so that who has got all of it and
        goes is not taken for one who left before."""
        if not data:
            if reply.ends_with_connection:
                return NOTHING
            raise UpstreamFailed("it closed the connection before the end of its answer")
        self._feed(reply, data)
        data = made_of(reply, data)
        if reply.done:
            return memoryview(data)
        if data:
            if not self.started:
                self._start()
            try:
                sent = self._client.send_now(data)
            except FAILURES:
                raise ClientLost from None
            self.bytes_to_client += sent
            if sent != len(data):
                return memoryview(data)[sent:]
        return None

    def _as_came(self, reply: Reply, data: bytes) -> bytes:
        """What goes to the client unchanged: the body alone, where it cannot take it in chunks."""
        if reply.plain:
            data = b"".join(reply.pieces)
            reply.pieces.clear()
        elif reply.left >= 0 or reply.excess:
            data = self._cut(reply, data)
        return data

    async def _tunnel(self) -> None:
        assert self._upstream is not None

        def passed(size: int) -> None:
            self.bytes_to_client += size
            self._pool.moved += size

        await tunnel(self._client, self._upstream, passed)

    # --- translated ----------------------------------------------------------------------------------------

    async def _translate(self, translation: Translation) -> Reply:
        """Relay the answer as what a translation makes of it."""
        translation.began()
        taken = await self._put()
        assert self._upstream is not None
        reply = self._upstream.reply
        self._feed(reply, taken)
        await self._rest_of_head(reply, taken)
        self.status = reply.status
        head = translation.head(reply.status, content_type_of(reply))
        framed = self._framed or self._framing(*head)
        framed.send = self._send
        try:
            await self._translate_body(reply, translation, framed)
        except UpstreamFailed as failure:
            if self.started and not self._aborted:
                await framed.end(translation.broken(f"the model server failed: {failure}"))
            raise
        except ValueError as strange:
            # Another runner would say the same, and this one is well: only the client hears of it.
            self.error = f"its answer is not as expected: {strange}"
            if not (self.started or self._framed):
                framed = self._framing(502, JSON)
            await framed.end(translation.broken(f"the model server failed: {self.error}"))
        self.keep_alive = framed.keep_alive
        return reply

    async def _say_loaded(self, translation: Translation) -> None:
        """Answer without the runner, which has been loaded for it."""
        translation.began()
        self.status = 200
        framed = self._framing(*translation.head(200, b""))
        await framed.end(translation.end())
        self.keep_alive = framed.keep_alive

    def _framing(self, status: int, content_type: bytes) -> Framed:
        """A translated answer, of this status and content type."""
        return Framed(
            self._send,
            self._request.version,
            keep_alive=self.keep_alive,
            status=status,
            content_type=content_type.decode("latin-1"),
            lines=[f"{REQUEST}: {self._id}"],
            cors=self._request.cors,
        )

    async def _translate_body(self, reply: Reply, translation: Translation, framed: Framed) -> None:
        def translated(reply: Reply, _: bytes) -> bytes:
            piece = b"".join(reply.pieces)
            reply.pieces.clear()
            return framed.framed(translation.feed(piece)) if piece else b""

        begun = translated(reply, b"")
        if begun:
            await self._send(begun)
        await self._relay_rest(reply, translated)
        await framed.end(translation.end())

    def _feed(self, reply: Reply, data: bytes) -> None:
        self._pool.moved += len(data)
        try:
            reply.feed(data)
        except ValueError as error:
            raise UpstreamFailed(f"its answer is not valid HTTP: {error}") from None

    def _cut(self, reply: Reply, data: bytes) -> bytes:
        try:
            return reply.cut(data)
        except ValueError as error:
            raise UpstreamFailed(f"its answer is not valid HTTP: {error}") from None

    async def _recv(self) -> bytes:
        assert self._upstream is not None
        try:
            return await self._upstream.recv()
        except FAILURES as failure:
            raise UpstreamFailed(f"the connection failed: {describe(failure)}") from None

    async def _send(self, data: bytes | memoryview) -> None:
        if not self.started:
            self._start()
        client = self._client
        try:
            sent = client.send_now(data)
            if sent != len(data):
                await client.send_rest(memoryview(data)[sent:])
        except FAILURES:
            raise ClientLost from None
        self.bytes_to_client += len(data)

    def _start(self) -> None:
        """From here on there is no other attempt."""
        self.started = True
        self._request.body.close()

    def _leave_upstream(self) -> None:
        upstream = self._upstream
        if upstream is None:
            return
        if self.complete and not upstream.closed and upstream.reply.keep_alive and not upstream.reply.excess:
            self._pool.give(upstream)
        else:
            upstream.close()


def end_of_head(taken: bytes, interim: int) -> int:
    """Where the head of an answer ends, behind `interim` others. The parser has read them: they are there."""
    if not interim and taken.startswith(b"HTTP/"):
        return taken.index(END_OF_HEAD) + 4
    end = 0
    for _ in range(interim + 1):
        if taken[end] in b"\r\n" and (blank := BLANK.match(taken, end)):
            end = blank.end()
        end = taken.index(END_OF_HEAD, end) + 4
    return end


def describe(failure: BaseException) -> str:
    """A failure of a wire in a few words, the same on every machine."""
    return (getattr(failure, "strerror", None) or "it was closed").lower()


def content_type_of(reply: Reply) -> bytes:
    """What a runner says that its answer is."""
    for line in reply.lines:
        if line[:13].lower() == b"content-type:":
            return line[13:].strip()
    return b""


def is_held_back(reply: Reply) -> bool:
    """A stream of events whose runner says nothing of how an nginx in front is to treat it."""
    told = any(line.lower().startswith(TOLD) for line in reply.lines)
    return not told and content_type_of(reply).lower().startswith(EVENT_STREAM)
