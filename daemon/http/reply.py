"""The parser of runners' answers: where they begin and end, and what of them goes on."""

from __future__ import annotations

import httptools

from daemon.http.head import connection_names, without
from events.limits import HTTP_REPLY_HEAD_BYTES

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

    __deletable__ = ("_parser",)  # for mypyc
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
