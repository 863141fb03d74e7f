"""A connection to a peer over TLS: the same as any other to whoever uses it."""

from __future__ import annotations

import socket
import ssl
from functools import cache

import trio

from daemon.http.sockets import Sockets
from daemon.http.upstream import Upstream
from daemon.http.wire import Clock
from events.limits import HTTP_READ_BYTES


@cache
def trusted() -> ssl.SSLContext:
    """Whom we believe to be who they say: the system's certificate authorities, or SSL_CERT_FILE's."""
    return ssl.create_default_context()


class TlsUpstream(Upstream):
    """Connects, and agrees with the other end on what is secret, before anything is sent."""

    __slots__ = ("_name", "_stream")

    wrapped = True

    _stream: trio.SSLStream[trio.SocketStream]

    def __init__(self, sock: socket.socket, clock: Clock, sockets: Sockets, name: str) -> None:
        """`name`: whose certificate it must be."""
        super().__init__(sock, clock, sockets)
        self._name = name

    async def connect(self, address: object) -> None:
        """Connect, and shake hands. Raises one of FAILURES."""
        await super().connect(address)
        self.waiting_since = self._clock.now
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(self.sock))
        self._stream = trio.SSLStream(stream, trusted(), server_hostname=self._name, https_compatible=True)
        try:
            await self._stream.do_handshake()
        except trio.BrokenResourceError as error:
            reason = getattr(error.__cause__, "verify_message", "") or str(error.__cause__ or "it hung up")
            raise OSError(0, f"no secure connection: {reason}") from None
        self.waiting_since = None

    def is_silent(self) -> bool:
        """What comes may be a session's ticket: it says nothing."""
        return True

    async def recv(self) -> bytes:
        """As Wire has it."""
        try:
            return bytes(await self._stream.receive_some(HTTP_READ_BYTES))
        except trio.BrokenResourceError:
            raise ConnectionResetError("it was cut") from None

    async def send(self, data: bytes | memoryview) -> None:
        """As Wire has it."""
        self.waiting_since = self._clock.now
        try:
            await self._stream.send_all(data)
        except trio.BrokenResourceError:
            raise ConnectionResetError("it was cut") from None
        self.waiting_since = None
