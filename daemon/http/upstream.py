"""Connections to runners: kept alive, one pool for each runner, and the parser of their answers."""

from __future__ import annotations

import select
import socket
from collections.abc import Container
from urllib.parse import urlsplit

import httptools
import trio

from daemon.http.head import connection_names, without
from daemon.http.reaper import Watch
from daemon.http.wire import Clock, Wire, notice_vanished
from daemon.ports import Address
from events.limits import HTTP_REPLY_HEAD_BYTES, UPSTREAM_IDLE_CONNECTIONS

DROPPED = frozenset(
    (
        b"connection", b"keep-alive", b"proxy-connection", b"upgrade", b"access-control-allow-origin",
        b"access-control-allow-credentials", b"access-control-allow-headers", b"access-control-allow-methods",
        b"access-control-expose-headers", b"access-control-max-age",
    )
)  # fmt: skip
"""Headers about the connection to the runner, and its word on who may ask: both are ours to say."""

FRAMING = frozenset((b"content-length", b"transfer-encoding"))
"""They say where the answer ends."""

NOTED = DROPPED | FRAMING

BODILESS = (204, 304)
"""Answers that have no body, whatever their headers say."""


class Reply:
    """One runner's answers, one after the other: where they begin and end. `httptools` calls `on_…`.

    The bytes go to the client as they came; only the head is written anew, from `lines`.
    """

    __slots__ = (
        "_barren", "_fault", "_named", "_parser", "bodiless", "chunked", "done", "excess", "headed",
        "interim", "keep_alive", "left", "lines", "pieces", "plain", "sized", "status", "switched",
        "upgrading",
    )  # fmt: skip

    def __init__(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self.reset()

    def reset(self) -> None:
        """Forget the answer that was relayed."""
        self.status = 0
        self.lines: list[bytes] = []
        self.sized = self.chunked = self.headed = self.done = self.excess = self.keep_alive = False
        self.left = -1
        """Bytes of the body that are still to come; -1: its framing or the connection says where it ends."""
        self.interim = 0
        """1xx heads before the real one."""
        self.plain = False
        """Collect the body without its framing in `pieces`: an HTTP/1.0 client knows no chunks."""
        self.pieces: list[bytes] = []
        self.bodiless = False
        """Whatever its head says, no body comes: it answers HEAD."""
        self.upgrading = self.switched = False
        """A WebSocket was asked for; the runner has agreed, and what follows is no HTTP."""
        self._named: list[bytes] = []
        self._fault = ""
        self._barren = 0
        """Bytes since the last one of a body: heads, trailers."""

    def feed(self, data: bytes) -> None:
        """Take what the runner sent. Raises ValueError where it is no answer that can be passed on."""
        self._barren += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            if self.switched:
                return
            raise ValueError("it switches protocols, unasked") from None
        except httptools.HttpParserError as error:
            if not self.done:
                raise ValueError(str(error)) from None
            self.excess = True
        if self._fault:
            raise ValueError(self._fault)
        if self._barren > HTTP_REPLY_HEAD_BYTES:
            raise ValueError(f"its head or its trailers exceed {HTTP_REPLY_HEAD_BYTES} bytes")

    def cut(self, data: bytes) -> bytes:
        """What of the bytes that came last belongs to the answer. Nothing behind it may reach the client,
        which would take that for its next answer. Raises ValueError where there is no telling."""
        if self.left < 0:
            if self.excess and not self.switched:
                raise ValueError("something follows it")
            return data
        mine = data[: self.left] if len(data) > self.left else data
        self.left -= len(mine)
        return mine

    def close(self) -> None:
        """Break the reference cycle with the parser."""
        del self._parser

    @property
    def ends_with_connection(self) -> bool:
        """The end of the stream is the end of the answer."""
        return self.headed and not (self.sized or self.chunked or self.done)

    def on_message_begin(self) -> None:
        if self.done:
            self.excess = True

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.headed:
            return
        lower = name.lower()
        if lower not in NOTED:
            self.lines.append(b"%b: %b\r\n" % (name, value))
        elif lower in FRAMING:
            self._frame(lower, value)
        elif lower == b"connection":
            self._named += connection_names(value)

    def _frame(self, name: bytes, value: bytes) -> None:
        """The parser makes sure that there is one length, or a coding, and not both."""
        if name == b"content-length":
            self.sized = True
            self.left = int(value)
        elif self.chunked or value.lower() != b"chunked":
            self._fault = "its only transfer coding may be chunked, once"
        else:
            self.chunked = True

    def on_headers_complete(self) -> None:
        if self.headed:
            return
        self.status = self._parser.get_status_code()
        if self.status == 101 and self.upgrading:
            self.headed = self.switched = True
            return
        if self.status < 200:
            self.interim += 1
            self._forget_head()
            if self.status < 100:
                self._fault = "its status is no number from 100 to 999"
            return
        self.headed = True
        if self.chunked and self._parser.get_http_version() != "1.1":
            self._fault = "HTTP/1.0 has no chunks"
        if self._named:
            self.lines = without(self.lines, self._named)
        if self.status in BODILESS:
            self.left = 0
        elif self.sized:
            self.lines.append(b"Content-Length: %d\r\n" % self.left)
        elif self.chunked:
            self.lines.append(b"Transfer-Encoding: chunked\r\n")
        if self.bodiless:
            self.left = 0
            self.done = True  # and the connection is not used again: the parser waits for a body

    def _forget_head(self) -> None:
        """That was an interim answer's."""
        self.lines.clear()
        self._named.clear()
        self.sized = self.chunked = False
        self.left = -1

    def on_body(self, piece: bytes) -> None:
        self._barren = 0
        if self.plain and not self.done:
            self.pieces.append(piece)

    def on_message_complete(self) -> None:
        if self.headed and not self.done:
            self.done = True
            self.keep_alive = self._parser.should_keep_alive()


class Upstream(Wire):
    """A connection to a runner."""

    __slots__ = ("_poll", "idle_since", "reply", "reused")

    wrapped = False
    """Whether what comes has to be unwrapped: then it is not for `recv_now`."""

    def __init__(self, sock: socket.socket, clock: Clock) -> None:
        super().__init__(sock, clock)
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
        "_tls",
        "host_line",
        "moved",
        "prefix",
        "watch",
    )

    def __init__(self, address: Address, clock: Clock, idle_s: float, watch: Watch) -> None:
        self.watch = watch
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
            return Upstream(socket.socket(socket.AF_UNIX), self._clock), self._path
        found = await trio.socket.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
        family, kind, protocol, _, address = min(found, key=lambda entry: entry[0] != socket.AF_INET)
        sock = socket.socket(family, kind, protocol)
        notice_vanished(sock)  # a peer's machine, or its network
        if self._tls:
            from daemon.http.tls import TlsUpstream  # ssl takes some MiB, and few have peers

            return TlsUpstream(sock, self._clock, self._host), address
        return Upstream(sock, self._clock), address

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

    def __init__(self, clock: Clock, idle_s: float, watch: Watch) -> None:
        self._clock = clock
        self._idle_s = idle_s
        self._watch = watch
        self._pools: dict[str, Pool] = {}
        self._peers: dict[tuple[str, str], Pool] = {}

    def of(self, address: Address) -> Pool:
        """The runner's pool. Runners are incarnations: their address never changes."""
        pool = self._pools.get(address.runner)
        if pool is None:
            pool = self._pools[address.runner] = Pool(address, self._clock, self._idle_s, self._watch)
        return pool

    def of_peer(self, id: str, url: str) -> Pool:
        """A peer's pool. What a reload has changed is another."""
        pool = self._peers.get((id, url))
        if pool is None:
            pool = self._peers[id, url] = Pool(Address(id, url), self._clock, self._idle_s, self._watch)
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
