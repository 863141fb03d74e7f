"""One client's connection. To follow a request, read `_serve` from top to bottom."""

from __future__ import annotations

import math
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

import msgspec
import trio

from daemon.http import answers, asked, routes
from daemon.http.answers import Answer, Refused
from daemon.http.body import Body, Held
from daemon.http.head import RequestReader
from daemon.http.hosts import Hosts
from daemon.http.limits import Limits
from daemon.http.reaper import HangUps
from daemon.http.relay import Exchange
from daemon.http.upstream import Pools
from daemon.http.wire import FAILURES, Clock, Wire
from daemon.ports import Desk, Dispatched, Ended, LogBlocked, Ticket
from events.catalogue import RequestArrived
from events.limits import HTTP_LINGER_BYTES

T = TypeVar("T")

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class Shared(msgspec.Struct, frozen=True):
    """What all connections share."""

    desk: Desk
    catalog: routes.Catalog
    local: routes.Local
    limits: Limits
    clock: Clock
    pools: Pools
    held: Held
    hang_ups: HangUps


class Connection:
    """From accept to close. Its own task runs `run`; the other methods may be called from any task."""

    __slots__ = (
        "_body", "_caller", "_due", "_exchange", "_gone", "_hosts", "_over", "_reading",
        "_request", "_shared", "_ticket", "_wire",
    )  # fmt: skip

    def __init__(self, sock: socket.socket, shared: Shared, hosts: Hosts) -> None:
        self._shared = shared
        self._hosts = hosts
        self._wire = Wire(sock, shared.clock)
        self._caller = caller(sock)
        self._body = Body(shared.held, shared.limits.body_memory_bytes)
        self._request = RequestReader(shared.limits, self._body)
        self._due: float | None = None
        """When the client's next bytes are due."""
        self._reading = False
        """A part of a request has come."""
        self._gone = False
        self._over = False
        """The scheduler has ended the request."""
        self._ticket: Ticket | None = None
        """The request that the scheduler knows of; None once it has ended or been given up."""
        self._exchange: Exchange | None = None
        shared.hang_ups.watch(sock, self.hung_up)

    # --- what other tasks call -----------------------------------------------------------------------------

    def hung_up(self) -> None:
        """The client is gone: so is its request, queued or running."""
        self._gone = True
        if self._ticket is not None:
            self._shared.desk.gone(self._ticket)
            self._ticket = None
        if self._exchange is not None:
            self._exchange.abort()

    def _request_ended(self, end: Ended) -> None:
        """The scheduler has ended the request while it was being relayed. `turn` will tell why."""
        self._over = True
        if self._exchange is not None:
            self._exchange.abort()

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
        answer = answers.error(408, "request_timeout", "The rest of the request did not come in time.")
        with suppress(OSError):
            self._wire.sock.send(answer.encode(keep_alive=False, version="1.1"))

    # --- the connection's own task -------------------------------------------------------------------------

    async def run(self, closed: Callable[[Connection], None]) -> None:
        """Serve requests until the client or we have had enough; then call `closed`."""
        try:
            while await self._serve():
                self._body.close()
                self._request.reset()
        except FAILURES:
            pass
        finally:
            self.hung_up()
            self._body.close()
            self._shared.hang_ups.forget(self._wire.sock)
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
            if not isinstance(route, str):
                return await self._answer(route(self._shared.local))
            arrival = await self._arrival(route)
            if self._gone:
                return False
            ticket = self._shared.desk.arrive(arrival)
        except Refused as refused:
            return await self._answer(refused.answer)
        except LogBlocked as blocked:
            return await self._answer(answers.error(503, "log_blocked", str(blocked), {"Retry-After": "1"}))
        return await self._take_turns(ticket)

    async def _receive_head(self) -> bool:
        """Read until the head is whole or refused. False: the client closed without one."""
        request, limits, clock = self._request, self._shared.limits, self._shared.clock
        self._reading = False
        self._due = clock.now + limits.idle_s
        while True:
            data = await self._wire.recv()
            if not data:
                return False
            request.feed(data)
            if request.headed or request.refusal is not None:
                self._due = None
                return True
            if not self._reading:
                self._reading = True
                self._due = clock.now + limits.head_s

    def _route(self) -> str | Callable[[routes.Local], Answer]:
        """What the head asks for. Raises Refused."""
        request = self._request
        if request.refusal is not None:
            raise Refused(answers.refused(request.refusal))
        if not self._hosts.allow(request.host):
            raise Refused(answers.error(403, "host_not_allowed", "This server does not answer to that Host."))
        route = routes.find(request.method, request.url)
        if isinstance(route, Answer):
            raise Refused(route)
        return route

    async def _receive_body(self) -> None:
        """Read the rest of the request. Raises Refused."""
        request = self._request
        self._reading = True
        if request.expects_continue:
            await self._wire.send(CONTINUE)
        while not request.done and request.refusal is None:
            self._due = self._shared.clock.now + self._shared.limits.body_s
            data = await self._wire.recv()
            if not data:
                raise ConnectionResetError
            request.feed(data)
        self._due = None
        self._reading = False
        if request.refusal is not None:
            raise Refused(answers.refused(request.refusal))

    async def _arrival(self, kind: str) -> RequestArrived:
        """What the body asks for, as the fact. Raises Refused."""
        body, catalog = self._body, self._shared.catalog
        look = asked.model_and_keep_alive
        name, keep_alive_ns = await self._look(look) if body.in_file else look(body.view())
        model = catalog.resolve(name)
        if model is None:
            raise Refused(routes.unknown_model(name, catalog))
        declared = catalog.launch_options(model)
        options = await self._look(asked.launch_options, declared) if declared and body.size else {}
        return RequestArrived(
            model=model,
            kind=kind,
            options=catalog.bounded(model, options) if options else options,
            priority=self._request.priority,
            keep_alive_ns=keep_alive_ns,
            caller=self._caller,
        )

    async def _look(self, at: Callable[..., T], *arguments: object) -> T:
        """Look at the body: in another thread where it is so large that everybody would wait."""
        view = self._body.view()
        if self._body.in_file:
            return await trio.to_thread.run_sync(at, view, *arguments)
        return at(view, *arguments)

    async def _take_turns(self, ticket: Ticket) -> bool:
        """From the arrival to the request's end: mostly one turn; another where a runner failed it unseen."""
        self._ticket = ticket
        self._over = False
        ticket.on_end = self._request_ended
        while True:
            turn = await ticket.turn()
            if isinstance(turn, Ended):
                self._ticket = None
                return not self._gone and await self._answer(answers.ended(turn, ticket.request))
            exchange = await self._relay(ticket, turn)
            if exchange.started or self._gone:
                self._ticket = None
                return exchange.complete and exchange.keep_alive

    async def _relay(self, ticket: Ticket, turn: Dispatched) -> Exchange:
        """One dispatch. Whatever happens, the desk is told once how it ended: that gives the slot back."""
        address = turn.address
        pool = self._shared.pools.of(address)
        due = self._shared.clock.now + turn.first_byte_s if turn.first_byte_s else math.inf
        exchange = self._exchange = Exchange(
            self._wire, self._request, pool, address.prefix, due, ticket.request
        )
        try:
            if not (self._gone or self._over):
                if address.model_name:
                    self._body.replace(await self._look(asked.renamed, address.model_name))
                await exchange.run()
        finally:
            if exchange.client_lost:
                self.hung_up()
            self._exchange = None
            self._shared.desk.ended(exchange.ended(ticket.request, turn))
        return exchange

    async def _answer(self, answer: Answer) -> bool:
        """Answer without a runner. Returns whether the connection can serve another request."""
        request = self._request
        whole = request.done and request.refusal is None
        keep_alive = whole and request.keep_alive and not request.excess
        head_only = request.method == b"HEAD"
        data = answer.encode(keep_alive=keep_alive, version=request.version, head_only=head_only)
        await self._wire.send(data)
        if not whole:
            await self._linger()
        return keep_alive

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
        return "unix"
    address: str = sock.getpeername()[0]
    return address.removeprefix("::ffff:")
