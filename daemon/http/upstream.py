"""Connections to runners: kept alive, one pool for each runner."""

from __future__ import annotations

import select
import socket
from collections.abc import Container
from urllib.parse import urlsplit

import trio

from daemon.http.reply import Reply
from daemon.http.sockets import Sockets
from daemon.http.wire import Clock, Wire, notice_vanished
from daemon.ports import Address
from events.limits import UPSTREAM_IDLE_CONNECTIONS


class Upstream(Wire):
    """A connection to a runner."""

    __slots__ = ("_poll", "idle_since", "reply", "reused")

    wrapped = False
    """Whether what comes has to be unwrapped: then it is not for `recv_now`."""

    def __init__(self, sock: socket.socket, clock: Clock, sockets: Sockets) -> None:
        super().__init__(sock, clock, sockets)
        self.reply = Reply()
        poll = select.poll()
        poll.register(sock, select.POLLIN)
        self._poll = poll.poll
        self.reused = False
        """It has carried an exchange before, so that it may have been closed at the other end since."""
        self.idle_since = 0.0

    def is_silent(self) -> bool:
        """Nothing has come that was not read, nor its end. (A peek that finds nothing raises, for three times
        the time.)"""
        return not self._poll(0)

    def close(self) -> None:
        """Close it, and wake the task that waits on it."""
        if not self.closed:
            super().close()
            self.reply.close()


class Pool:
    """The connections to one runner that are idle, and how to open another."""

    __slots__ = (
        "_clock",
        "_closed",
        "_host",
        "_idle",
        "_idle_s",
        "_path",
        "_port",
        "_sockets",
        "_tls",
        "host_line",
        "moved",
        "prefix",
    )

    def __init__(self, address: Address, clock: Clock, idle_s: float, sockets: Sockets) -> None:
        self._sockets = sockets
        url = urlsplit(address.url)
        self._path = url.path if url.scheme == "unix" else ""
        self._host = url.hostname or "localhost"
        self._tls = url.scheme == "https"
        self._port = url.port or (443 if self._tls else 80)
        self.prefix = "" if self._path else url.path.rstrip("/")
        """What a peer's address puts before a request's path."""
        self.host_line = b"Host: %b\r\n" % (url.netloc or "localhost").encode("latin-1", "replace")
        self.moved = 0
        """Bytes that the runner has sent in answers."""
        self._clock = clock
        self._idle_s = idle_s
        self._idle: list[Upstream] = []
        self._closed = False

    def take(self) -> Upstream | None:
        """The connection that was used last, if it is young enough, and silent: what has come on it since is
        its end, or an answer that nobody asked for."""
        idle = self._idle
        while idle:
            upstream = idle.pop()
            if self._clock.now - upstream.idle_since <= self._idle_s and upstream.is_silent():
                return upstream
            upstream.close()
        return None

    def give(self, upstream: Upstream) -> None:
        """Keep a connection whose exchange has ended well."""
        if self._closed or len(self._idle) >= UPSTREAM_IDLE_CONNECTIONS:
            upstream.close()
            return
        upstream.reply.reset()
        upstream.reused = True
        upstream.idle_since = self._clock.now
        self._idle.append(upstream)

    async def open(self) -> tuple[Upstream, object]:
        """A new connection, not yet connected, and the address to connect it to. Raises OSError."""
        if self._path:
            return Upstream(socket.socket(socket.AF_UNIX), self._clock, self._sockets), self._path
        found = await trio.socket.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
        family, kind, protocol, _, address = min(found, key=lambda entry: entry[0] != socket.AF_INET)
        sock = socket.socket(family, kind, protocol)
        notice_vanished(sock)  # a peer's machine, or its network
        if self._tls:
            from daemon.http.tls import TlsUpstream  # ssl takes some MiB, and few have peers

            return TlsUpstream(sock, self._clock, self._sockets, self._host), address
        return Upstream(sock, self._clock, self._sockets), address

    def tidy(self) -> None:
        """Close the connections that have been idle for too long."""
        oldest = self._clock.now - self._idle_s
        for upstream in self._idle:
            if upstream.idle_since < oldest:
                upstream.close()
        self._idle = [upstream for upstream in self._idle if not upstream.closed]

    def close(self) -> None:
        """Close every idle connection, and whatever is given back later."""
        self._closed = True
        for upstream in self._idle:
            upstream.close()
        self._idle.clear()


class Pools:
    """One pool for each runner that has been sent something."""

    def __init__(self, clock: Clock, idle_s: float, sockets: Sockets) -> None:
        self._clock = clock
        self._idle_s = idle_s
        self._sockets = sockets
        self._pools: dict[str, Pool] = {}
        self._peers: dict[tuple[str, str], Pool] = {}

    def of(self, address: Address) -> Pool:
        """The runner's pool. Runners are incarnations: their address never changes."""
        pool = self._pools.get(address.runner)
        if pool is None:
            pool = self._pools[address.runner] = Pool(address, self._clock, self._idle_s, self._sockets)
        return pool

    def of_peer(self, id: str, url: str) -> Pool:
        """A peer's pool. What a reload has changed is another."""
        pool = self._peers.get((id, url))
        if pool is None:
            pool = self._peers[id, url] = Pool(Address(id, url), self._clock, self._idle_s, self._sockets)
        return pool

    def moved(self, runner: str) -> int:
        """Bytes that the runner has sent in answers so far."""
        pool = self._pools.get(runner)
        return pool.moved if pool is not None else 0

    def leave(self, runner: str) -> None:
        """The runner is about to be stopped: an idle connection would only make it wait for its client."""
        pool = self._pools.get(runner)
        if pool is not None:
            pool.close()

    def tidy(self, alive: Container[str]) -> None:
        """Drop the pools of runners that are not in `alive`, and stale connections of the others."""
        for runner in [runner for runner in self._pools if runner not in alive]:
            self._pools.pop(runner).close()
        for pool in (*self._pools.values(), *self._peers.values()):
            pool.tidy()

    def close(self) -> None:
        """Close every idle connection."""
        for pool in (*self._pools.values(), *self._peers.values()):
            pool.close()
        self._pools.clear()
        self._peers.clear()
