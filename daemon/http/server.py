"""The front door: listeners, connections, and what they share."""

from __future__ import annotations

import errno
import logging
import socket
import time
from collections.abc import Sequence

import trio

from daemon.http.body import Held
from daemon.http.calls import Local
from daemon.http.connection import Connection, Shared
from daemon.http.dialects import openai
from daemon.http.guard import Guard
from daemon.http.limits import Limits
from daemon.http.reaper import reap
from daemon.http.refusals import Refusal
from daemon.http.sockets import Sockets, in_loop
from daemon.http.upstream import Pools
from daemon.http.wire import Clock, notice_vanished
from daemon.logs import Logs
from daemon.ports import Catalog, Control
from events.limits import HTTP_ACCEPT_PAUSE_S, HTTP_ACCEPTS

log = logging.getLogger(__name__)

SCARCE = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))
"""The machine has no room for another socket. Waiting helps; ending the daemon does not."""

TOO_MANY = openai(
    Refusal(503, "too_many_connections", "The server has too many connections.", {"Retry-After": "1"})
)


class FrontDoor:
    """Serves HTTP. Make it inside trio."""

    def __init__(self, desk: Control, catalog: Catalog, logs: Logs, *, limits: Limits | None = None) -> None:
        limits = limits or Limits()
        clock, sockets = Clock(), Sockets()
        self._connections: set[Connection] = set()
        self._accepting = trio.CancelScope()
        """What lets others in."""
        self.mistakes = 0
        """Connections that a mistake in runnerd has ended."""
        self._shared = Shared(
            desk=desk,
            catalog=catalog,
            guard=Guard(catalog.access),
            local=Local(desk=desk, catalog=catalog, logs=logs, started_s=int(time.time())),
            limits=limits,
            clock=clock,
            pools=Pools(clock, limits.upstream_idle_s, sockets),
            held=Held(limits.bodies_held_bytes),
            sockets=sockets,
        )

    async def serve(self, listeners: Sequence[socket.socket]) -> None:
        """Serve on listening sockets until cancelled; then every connection is closed, and the listeners are
        the caller's again. Each dispatch that was under way is reported as ended."""
        shared = self._shared
        try:
            with in_loop(shared.sockets):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(shared.sockets.run)
                    nursery.start_soon(
                        reap, shared.clock, shared.limits.tick_s, self._connections, self._tidy
                    )
                    await self._let_in(listeners, nursery)
        finally:
            shared.pools.close()
            shared.sockets.close()

    async def _let_in(self, listeners: Sequence[socket.socket], nursery: trio.Nursery) -> None:
        with self._accepting:
            async with trio.open_nursery() as accepting:
                for listener in listeners:
                    listener.setblocking(False)
                    notice_vanished(listener)
                    accepting.start_soon(self._accept, listener, nursery)

    def pause(self) -> None:
        """Let nobody else in; who is served is, and then has to connect again. They wait in the listening
        sockets' queues."""
        self._accepting.cancel()
        for connection in list(self._connections):
            connection.leave()

    @property
    def expecting(self) -> bool:
        """Somebody who was let in may be about to ask for something."""
        return any(connection.expecting for connection in self._connections)

    def moved(self, runner: str) -> int:
        """Bytes that the runner has sent in answers so far: whether it moves, for its health probe."""
        return self._shared.pools.moved(runner)

    def leave(self, runner: str) -> None:
        """Close idle connections to a runner that is to be stopped: llama-server waits 100 ms for them."""
        self._shared.pools.leave(runner)

    @property
    def connections(self) -> int:
        """Clients connected now."""
        return len(self._connections)

    def _tidy(self) -> None:
        self._shared.pools.tidy(self._shared.desk.state.runners)

    async def _accept(self, listener: socket.socket, nursery: trio.Nursery) -> None:
        while True:
            await trio.lowlevel.wait_readable(listener)
            for _ in range(HTTP_ACCEPTS):
                try:
                    sock, _ = listener.accept()
                except BlockingIOError:
                    break
                except OSError as error:
                    if error.errno in SCARCE:
                        log.warning("cannot accept a connection: %s", error)
                        await trio.sleep(HTTP_ACCEPT_PAUSE_S)
                    break
                self._admit(sock, nursery)

    def _admit(self, sock: socket.socket, nursery: trio.Nursery) -> None:
        try:
            if len(self._connections) >= self._shared.limits.connections:
                sock.setblocking(False)
                sock.send(TOO_MANY.encode(keep_alive=False, version="1.1"))
                sock.close()
                return
            connection = Connection(sock, self._shared)
        except OSError:  # it was reset before it was accepted
            sock.close()
            return
        self._connections.add(connection)
        if self._accepting.cancel_called:  # it was let in at the moment of the pause
            connection.leave()
        nursery.start_soon(connection.run, self._connections.discard, self._failed)

    def _failed(self) -> None:
        self.mistakes += 1
