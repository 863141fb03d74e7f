"""One client's connection. To follow a request, read `_serve` from top to bottom."""

from __future__ import annotations

import logging
import math
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

import msgspec
import trio

from daemon.http import arrivals, refusals, routes
from daemon.http.answers import EVENT_STREAM, UNBUFFERED, Answer, Stream
from daemon.http.arrivals import ToPeer
from daemon.http.body import Body, Held
from daemon.http.calls import Ask, Call, Local
from daemon.http.dialects import Dialect, openai
from daemon.http.framed import Framed
from daemon.http.guard import Guard
from daemon.http.head import CREDENTIALS, RequestReader, without
from daemon.http.limits import Limits
from daemon.http.loading import Words
from daemon.http.refusals import Refusal, Refused
from daemon.http.relay import AS_COMES, Exchange
from daemon.http.routes import Route
from daemon.http.sockets import Sockets
from daemon.http.upstream import Pools
from daemon.http.wire import FAILURES, Clock, Wire
from daemon.limits import LOOK_S
from daemon.ports import Address, Catalog, Desk, Dispatched, Ended, LogBlocked, Ticket
from events.catalogue import FIRST_BYTE_LATE, RequestArrived
from events.limits import HTTP_LINGER_BYTES

T = TypeVar("T")

log = logging.getLogger("runnerd")

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

UNIX = "unix"
"""The caller on a Unix socket."""


class Shared(msgspec.Struct, frozen=True):
    """What all connections share."""

    desk: Desk
    catalog: Catalog
    guard: Guard
    local: Local
    limits: Limits
    clock: Clock
    pools: Pools
    held: Held
    sockets: Sockets


class Connection:
    """From accept to close. Its own task runs `run`; the other methods may be called from any task."""

    __slots__ = (
        "_access", "_begun", "_body", "_call", "_caller", "_cut", "_dialect", "_due", "_exchange", "_fresh",
        "_gone", "_handling", "_leaving", "_over", "_reading", "_request", "_shared", "_ticket", "_wire",
    )  # fmt: skip

    def __init__(self, sock: socket.socket, shared: Shared) -> None:
        self._shared = shared
        self._wire = Wire(sock, shared.clock, shared.sockets)
        self._caller = caller(sock)
        self._access = shared.catalog.access
        """Who may come in, when the last bytes of a head did."""
        self._body = Body(shared.held, shared.limits.body_memory_bytes)
        self._request = RequestReader(shared.limits, self._body)
        self._call = Call(self._request, self._body, self._caller, shared.local)
        """The request that is being served, as handlers see it."""
        self._due: float | None = None
        """When the client's next bytes are due."""
        self._reading = False
        """A part of a request has come."""
        self._begun = False
        """Some of an answer has been sent."""
        self._gone = False
        self._fresh = True
        """It has not served a request yet."""
        self._leaving = False
        self._over = False
        """The scheduler has ended the request."""
        self._cut = ""
        """Why its runner has to stop, if it has."""
        self._ticket: Ticket | None = None
        """The request that the scheduler knows of; None once it has ended or been given up."""
        self._exchange: Exchange | None = None
        self._handling: trio.CancelScope | None = None
        """What is handled here goes on no longer than its client stays."""
        self._dialect: Dialect = openai
        """How this request's errors are written."""
        self._wire.on_hang_up = self.hung_up

    # --- what other tasks call -----------------------------------------------------------------------------

    def hung_up(self) -> None:
        """The client is gone: so is its request, queued or running."""
        self._gone = True
        if self._ticket is not None:
            self._shared.desk.gone(self._ticket)
            self._ticket = None
        if self._exchange is not None:
            self._exchange.abort()
        if self._handling is not None:
            self._handling.cancel()

    def _request_ended(self, end: Ended) -> None:
        """The scheduler has ended the request while it was being relayed. `turn` will tell why."""
        self._over = True
        if self._exchange is not None:
            self._exchange.abort()

    def _cut_off(self, why: str) -> None:
        """The runner has to stop. The request may be queued again: `turn` will tell."""
        self._cut = why
        if self._exchange is not None:
            self._exchange.give_up(why)

    @property
    def expecting(self) -> bool:
        """It waits for its client's bytes."""
        return self._due is not None

    def leave(self) -> None:
        """Serve no other request: the daemon ends. Close it now if it has served its client, who asked for
        nothing else yet."""
        self._leaving = True
        if self._due is None or self._reading or self._fresh or not self._wire.waits:
            return
        try:
            self._wire.sock.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            self._wire.close()
        except OSError:  # it is gone, and its task will see that
            return

    def expire(self, now: float) -> None:
        """Close what has waited for too long: for the client's bytes, or for a peer to take ours."""
        stalled = now - self._shared.limits.stall_s
        if self._due is not None and now >= self._due:
            if self._reading:
                self._say_late()
            self._wire.close()
        elif self._wire.waiting_since is not None and self._wire.waiting_since <= stalled:
            self.hung_up()
            self._wire.close()
        elif self._exchange is not None:
            self._exchange.expire(now, stalled)

    def _say_late(self) -> None:
        late = Refusal(408, "request_timeout", "The rest of the request did not come in time.")
        with suppress(OSError):
            self._wire.sock.send(self._dialect(late).encode(keep_alive=False, version="1.1"))

    def _say_failed(self) -> None:
        """A mistake of ours is told where nothing else has been; a begun answer just ends."""
        if not (self._begun or self._wire.closed):
            wrong = Refusal(500, "internal_error", "runnerd has made a mistake; its journal says more.")
            with suppress(OSError):
                self._wire.sock.send(self._dialect(wrong).encode(keep_alive=False, version="1.1"))

    # --- the connection's own task -------------------------------------------------------------------------

    async def run(self, closed: Callable[[Connection], None], failed: Callable[[], None]) -> None:
        """Serve requests until the client or we have had enough; then call `closed`. A mistake in what serves
        them costs this connection, and no other: `failed` is called."""
        try:
            while await self._serve() and not self._leaving:
                self._fresh = self._begun = False
                self._body.close()
                self._request.reset()
        except FAILURES:
            pass
        except Exception:
            log.exception("a request failed, and its connection with it")
            failed()
            self._say_failed()
        finally:
            self.hung_up()
            self._body.close()
            self._wire.close()
            self._request.close()
            closed(self)

    async def _serve(self) -> bool:
        """One request. Returns whether the connection can serve another."""
        if not await self._receive_head():
            return False
        try:
            route = self._route()
            if not self._request.done:
                await self._receive_body()
            if route.handle is not None:
                return await self._handle(route.handle)
            read = await arrivals.read(self._call, route, self._request.priority)
            if isinstance(read, ToPeer):
                return await self._to_peer(read)
            return await self._take_turns(*read)
        except Refused as refused:
            return await self._refuse(refused.refusal)
        except LogBlocked as blocked:
            return await self._refuse(Refusal(503, "log_blocked", str(blocked), {"Retry-After": "1"}))

    async def _handle(self, handle: routes.Handler) -> bool:
        """A request that is not just relayed: it is answered here, or made into another. Raises Refused,
        LogBlocked."""
        made: Answer | Stream | Ask | None = None
        call = self._call
        with trio.CancelScope() as self._handling:
            if self._gone:
                return False
            made = await handle(call)
            if isinstance(made, Answer):
                return await self._answer(made)
            if isinstance(made, Stream):
                return await self._stream(made)
        self._handling = None
        if not isinstance(made, Ask):
            return False
        if made.body is not None:
            self._body.replace([made.body])
            await arrivals.filtered(call, made.name or made.model)
        arrival = RequestArrived(
            model=made.model,
            kind=made.kind,
            options=dict(made.options),
            priority=self._request.priority,
            keep_alive_ns=made.keep_alive_ns,
            keep_alive_else_ns=made.keep_alive_else_ns,
            caller=self._caller,
        )
        return await self._take_turns(arrival, made)

    async def _receive_head(self) -> bool:
        """Read until the head is whole or refused. False: the client closed without one."""
        request, limits, clock = self._request, self._shared.limits, self._shared.clock
        self._reading = False
        self._due = clock.now + limits.idle_s
        while True:
            data = await self._wire.recv()
            if not data:
                return False
            self._access = self._shared.catalog.access
            request.body_bytes = self._access.body_bytes
            request.feed(data)
            if request.headed or request.refusal is not None:
                self._due = None
                return True
            if not self._reading:
                self._reading = True
                self._due = clock.now + limits.head_s

    def _route(self) -> Route:
        """What the head asks for. Raises Refused."""
        request = self._request
        route = routes.find(request.url)
        self._dialect = route.dialect if route is not None else routes.dialect_of(request.url)
        guard, any_host = self._shared.guard, self._caller == UNIX
        if request.refusal is not None:
            if request.headed:
                with suppress(Refused):  # it notes which page may read the refusal
                    guard.admit(request, self._access, any_host=any_host, public=True)
            raise Refused.of(request.refusal)
        public = route is not None and route.public
        guard.admit(request, self._access, any_host=any_host, public=public)
        if request.preflight:
            return routes.PREFLIGHT
        if route is None:
            raise Refused.of(routes.no_such_endpoint(request.url))
        if request.method not in route.methods and route.methods:
            raise Refused.of(routes.wrong_method(request.method, route))
        return route

    async def _receive_body(self) -> None:
        """Read the rest of the request. Raises Refused."""
        request = self._request
        self._reading = True
        if request.expects_continue:
            await self._wire.send(CONTINUE)
        limits, clock = self._shared.limits, self._shared.clock
        whole_due = clock.now + limits.body_total_s
        while not request.done and request.refusal is None:
            self._due = min(clock.now + limits.body_s, whole_due)
            data = await self._wire.recv()
            if not data:
                raise ConnectionResetError
            request.feed(data)
        self._due = None
        self._reading = False
        if request.refusal is not None:
            raise Refused.of(request.refusal)

    async def _take_turns(self, arrival: RequestArrived, ask: Ask) -> bool:
        """From the arrival to the request's end: mostly one turn; another where a runner failed it unseen.
        A mere look has none. Raises Refused, LogBlocked."""
        if ask.beside is not None:
            return await self._look(ask, ask.beside)
        if missing := self._shared.catalog.missing(arrival.model):
            await arrivals.check_file(missing, arrival)
        if self._gone:  # noticed before there was a ticket, so nobody would tell the scheduler
            return False
        ticket = self._ticket = self._shared.desk.arrive(arrival)
        self._over = False
        self._cut = ""
        ticket.on_end = self._request_ended
        ticket.on_cut = self._cut_off
        words = self._words(ticket, arrival.model) if ask.tells else None
        while True:
            turn = await (ticket.turn() if words is None else words.turn())
            if isinstance(turn, Ended):
                self._ticket = None
                return not self._gone and await self._end(refusals.ended(turn, ticket.request), words)
            exchange = await self._relay(ticket, turn, ask, words)
            if exchange.started or self._gone:
                self._ticket = None
                return exchange.complete and exchange.keep_alive

    def _words(self, ticket: Ticket, model: str) -> Words:
        """What the client is told while it waits."""
        request = self._request
        framed = Framed(
            self._send,
            request.version,
            keep_alive=request.keep_alive and not request.excess,
            status=200,
            content_type=EVENT_STREAM.decode(),
            lines=[f"{refusals.REQUEST}: {ticket.request}", "Cache-Control: no-cache", f"{UNBUFFERED}: no"],
            cors=request.cors,
        )
        return Words(framed, ticket, model, self._shared.desk.state)

    async def _end(self, refusal: Refusal, words: Words | None) -> bool:
        """Answer with an error; behind words, as the last of them."""
        if words is None or not words.begun:
            return await self._refuse(refusal)
        await words.fail(self._dialect(refusal))
        return words.framed.keep_alive

    async def _relay(self, ticket: Ticket, turn: Dispatched, ask: Ask, words: Words | None) -> Exchange:
        """One dispatch. Whatever happens, the desk is told once how it ended: that gives the slot back."""
        address = turn.address
        pool = self._shared.pools.of(address)
        framed = None
        if words is not None:
            ask, framed = (ask, words.framed) if words.begun else (AS_COMES, None)
        due = self._shared.clock.now + turn.first_byte_s if turn.first_byte_s else math.inf
        exchange = self._exchange = Exchange(
            self._wire, self._request, pool, address.prefix, due, ticket.request, ask, framed
        )
        try:
            if self._cut:  # before it began
                exchange.error = self._cut
            elif not (self._gone or self._over):
                if address.model_name and ask.renamed is not None:
                    await self._call.rename(ask.renamed, address.model_name)
                await exchange.run()
        finally:
            if exchange.client_lost:
                self.hung_up()
            self._exchange = None
            self._cut = ""
            self._begun = self._begun or exchange.started
            self._shared.desk.ended(exchange.ended(ticket.request, turn))
        return exchange

    async def _to_peer(self, read: ToPeer) -> bool:
        """Relay to another server. Raises Refused where that fails before the client has been sent anything.
        Returns whether the connection can serve another request."""
        peer, ask = read.peer, read.ask
        request = self._request
        if peer.api_key:
            key = peer.api_key.encode()
            keys = [b"Authorization: Bearer %b\r\n" % key, b"X-Api-Key: %b\r\n" % key]
            request.lines = [*without(request.lines, CREDENTIALS), *keys]
        if ask.renamed is not None:
            await self._call.rename(ask.renamed, peer.model)
        due = self._shared.clock.now + peer.first_byte_s if peer.first_byte_s else math.inf
        pool = self._shared.pools.of_peer(peer.id, peer.url)
        exchange = Exchange(self._wire, request, pool, pool.prefix, due, "", ask)
        with self._shared.catalog.at_peer(peer):
            return await self._beside(exchange, f"The peer {peer.id}", "peer_failed", "peer_failed")

    async def _look(self, ask: Ask, address: Address) -> bool:
        """Ask a runner how it is. Raises Refused. Returns whether the connection can serve another."""
        pool = self._shared.pools.of(address)
        due = self._shared.clock.now + LOOK_S
        exchange = Exchange(self._wire, self._request, pool, address.prefix, due, "", ask)
        return await self._beside(exchange, "The runner", "upstream_failed", "first_byte_timeout")

    async def _beside(self, exchange: Exchange, who: str, failed: str, late: str) -> bool:
        """An exchange of which the scheduler knows nothing. Raises Refused, with one of two codes, where it
        fails before the client has been sent anything."""
        self._exchange = exchange
        try:
            if not self._gone:
                await exchange.run()
        finally:
            self._exchange = None
            self._begun = exchange.started
        if exchange.client_lost or self._gone:
            return False
        if not exchange.started:
            if exchange.error == FIRST_BYTE_LATE:
                raise Refused(504, late, f"{who} failed: it did not begin to answer in time.")
            raise Refused(502, failed, f"{who} failed: {exchange.error}.")
        return exchange.complete and exchange.keep_alive

    async def _stream(self, stream: Stream) -> bool:
        """Send an answer of unknown length until it ends. Returns whether the connection can serve another
        request."""
        request = self._request
        keep_alive = request.keep_alive and not request.excess
        lines = [f"{name}: {value}" for name, value in stream.headers.items()]
        framed = Framed(
            self._send, request.version, keep_alive=keep_alive, status=200,
            content_type=stream.content_type, lines=lines, cors=request.cors,
        )  # fmt: skip
        await framed.begin()
        if request.method == b"HEAD":
            return False
        async for piece in stream.pieces:
            await framed.piece(piece)
        await framed.end()
        return framed.keep_alive

    async def _refuse(self, refusal: Refusal) -> bool:
        """Answer with an error, in the caller's words."""
        return await self._answer(self._dialect(refusal))

    async def _answer(self, answer: Answer) -> bool:
        """Answer without a runner. Returns whether the connection can serve another request."""
        request = self._request
        whole = request.done and request.refusal is None
        keep_alive = whole and request.keep_alive and not request.excess
        head_only = request.method == b"HEAD"
        data = answer.encode(
            keep_alive=keep_alive, version=request.version, head_only=head_only, cors=request.cors
        )
        await self._send(data)
        if not whole:
            await self._linger()
        return keep_alive

    async def _send(self, data: bytes) -> None:
        """Send some of an answer that is made here."""
        self._begun = True
        await self._wire.send(data)

    async def _linger(self) -> None:
        """Let the client read its answer: closing on top of unread bytes would reset the connection."""
        self._wire.sock.shutdown(socket.SHUT_WR)
        self._reading = False
        self._due = self._shared.clock.now + self._shared.limits.linger_s
        dropped = 0
        while dropped < HTTP_LINGER_BYTES:
            data = await self._wire.recv()
            if not data:
                return
            dropped += len(data)


def caller(sock: socket.socket) -> str:
    """The peer as the log names it: its address without a port."""
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return UNIX
    address: str = sock.getpeername()[0]
    return address.removeprefix("::ffff:")
