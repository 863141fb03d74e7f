"""Reading a request: httptools (llhttp) parses, this counts, refuses and keeps what a relay needs.

llhttp in its strict mode refuses by itself: two Content-Lengths or one that is no plain number,
Content-Length with Transfer-Encoding, bare CR and bare LF, folded headers, space before a colon, invalid
names, control characters, malformed chunks, data after `Connection: close`. What it lets through and we do
not: HTTP/0.9 and 2.0, codings before `chunked`, any number and size of headers, more than one Host, targets
that are no path, trailers and chunk extensions without end. Names such as `Content_Length`, which some
servers take for the real one, are dropped.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import httptools

from daemon.http.body import Body
from daemon.http.limits import Limits
from daemon.http.refusals import Refusal
from events.limits import HTTP_BODY_BYTES, PRIORITY_MAX

HOP_BY_HOP = frozenset(
    (b"connection", b"keep-alive", b"proxy-authorization", b"proxy-connection", b"te", b"trailer", b"upgrade")
)
"""Headers between a client and us alone. They are dropped, and so is whatever Connection names."""

REPLACED = frozenset((b"host", b"content-length", b"transfer-encoding", b"expect"))
"""Headers that the relay writes anew, or answers itself."""

UPGRADABLE = b"/upstream/"
"""The beginning of the paths where a client may change to a WebSocket: elsewhere its offer is ignored. Bodies
are not looked at there, so that they may be in any coding."""

LOOKALIKES = frozenset((b"content_length", b"transfer_encoding"))
"""WSGI and CGI give both spellings one name. They are dropped, as nginx does."""

CREDENTIALS = {b"authorization": b"Authorization: %b\r\n", b"x-api-key": b"X-Api-Key: %b\r\n"}
"""Where a key may be. They are the runner's where no key is configured."""

BROWSERS = {
    b"origin": "origin",
    b"sec-fetch-site": "fetch_site",
    b"access-control-request-method": "asks_method",
    b"access-control-request-headers": "asks_headers",
}
"""What a browser says of the page that asks (see Page). It is judged here, and not passed on."""

PRIORITY = b"x-priority"
"""A whole number, added to the model's priority. It is passed on, too: the runner may be a scheduler."""

CODING = b"content-encoding"

COMPRESSED = frozenset((b"gzip", b"x-gzip", b"deflate", b"br", b"zstd", b"compress"))
"""Codings of a body that nobody here reads, and hardly a model server. (Some clients write `utf-8` there.)"""

FRAGMENT = ord("#")
"""As a number: to look for `bytes` in `bytes`, Python first raises and drops an error about numbers."""

PRIORITY_VALUE = re.compile(rb"[+-]?[0-9]{1,9}")

NOTED = HOP_BY_HOP | REPLACED | LOOKALIKES | {*BROWSERS, *CREDENTIALS, PRIORITY, CODING}

PERSISTENCE = frozenset((b"close", b"keep-alive", b"upgrade", b"te"))
"""What Connection mostly says; the headers of these names are dropped anyway."""


class Page:
    """What a browser says of the page that asks."""

    __slots__ = ("asks_headers", "asks_method", "fetch_site", "origin")

    def __init__(self) -> None:
        self.origin = b""
        self.fetch_site = b""
        """Where the page is from: `cross-site` and the like."""
        self.asks_method = b""
        """What a preflight asks for."""
        self.asks_headers = b""


class RequestReader:
    """One connection's requests, one after the other. `httptools` calls the `on_…` methods.

    Read `headed`, `done` and `refusal` after each `feed`; `reset` before the next request.
    """

    __deletable__ = ("_parser",)  # for mypyc
    __slots__ = (
        "_barren", "_fed", "_limits", "_named", "_offered", "_parser", "body", "body_bytes",
        "chunked", "cors", "credentials", "done", "excess", "expects_continue", "headed", "host",
        "hosts", "keep_alive", "length", "lines", "method", "page", "priority", "refusal",
        "upgrade", "url", "version",
    )  # fmt: skip

    def __init__(self, limits: Limits, body: Body) -> None:
        self._limits = limits
        self.body = body
        self.body_bytes = HTTP_BODY_BYTES
        """The largest body: whoever feeds the reader keeps it up to date."""
        self._parser = httptools.HttpRequestParser(self)
        self.reset()

    def reset(self) -> None:
        """Forget the request that was served."""
        self.method = b""
        self.url = b""
        self.version = ""
        self.lines: list[bytes] = []
        """Header lines to pass on, each with its CRLF."""
        self.host = b""
        self.hosts = 0
        self.length = 0
        self.priority = 0
        self.upgrade = False
        """The client asks for a WebSocket, in due form: the parser has stopped behind the head."""
        self._offered = False
        self.credentials: tuple[tuple[bytes, bytes], ...] = ()
        """Headers that may hold a key: their names in lower case, and their values."""
        self.page: Page | None = None
        """The page that asks, if it comes from a browser."""
        self.cors = b""
        """Header lines for the answer, each with its CRLF: what its browser is to be told."""
        self.chunked = False
        self.expects_continue = False
        self.keep_alive = False
        self.headed = False
        self.done = False
        self.excess = False
        """Bytes came behind the request before it was answered: the connection is closed after the answer."""
        self.refusal: Refusal | None = None
        self._named: list[bytes] = []
        self._fed = 0
        self._barren = 0
        """Bytes since the last one of the body: trailers, chunk extensions."""

    @property
    def preflight(self) -> bool:
        """A browser asks whether a page may ask."""
        page = self.page
        return page is not None and self.method == b"OPTIONS" and bool(page.origin and page.asks_method)

    def feed(self, data: bytes) -> None:
        """Take what the client sent."""
        if self.headed:
            self._barren += len(data)
        else:
            self._fed += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._ignore_upgrade(data[upgrade.args[0] :])
        except httptools.HttpParserCallbackError:
            raise
        except httptools.HttpParserError as error:
            if self.done:
                self.excess = True
            else:
                self._refuse(400, "malformed_request", f"The request is not valid HTTP/1.1: {error}.")
        if not self.headed and self._fed > self._limits.head_bytes:
            self._refuse_head()
        elif self._barren > self._limits.head_bytes:
            text = f"More than {self._limits.head_bytes} bytes of chunk extensions or trailers."
            self._refuse(431, "trailers_too_large", text)

    def close(self) -> None:
        """Break the reference cycle with the parser, so that memory does not wait for a collection."""
        del self._parser

    def _refuse(self, status: int, code: str, message: str) -> None:
        if self.refusal is None:
            headers = {"Retry-After": "1"} if status == 503 else {}
            self.refusal = Refusal(status, code, message, headers)

    def _ignore_upgrade(self, rest: bytes) -> None:
        """Go on with HTTP/1.1, as RFC 9110 allows: some clients (Java's) offer h2c with every request. The
        parser has stopped behind the head, so another one reads the same head without the offer."""
        if self.method == b"CONNECT" or self.refusal is not None:
            self.excess = True
            return
        if self._offered and self.method == b"GET" and self.url.startswith(UPGRADABLE):
            self.upgrade, self.done, self.keep_alive, self.excess = True, True, False, bool(rest)
            return
        self.done = self.headed = False
        framing = (
            b"Transfer-Encoding: chunked\r\n" if self.chunked else b"Content-Length: %d\r\n" % self.length
        )
        connection = b"" if self.keep_alive else b"Connection: close\r\n"
        lines, url, host, version = self.lines, self.url, self.host, self.version
        self.lines, self.url, self.host, self.hosts = [], b"", b"", 0
        self._parser = httptools.HttpRequestParser(self)
        start = b"%b %b HTTP/%b\r\nHost: %b\r\n" % (self.method, url, version.encode(), host)
        self.feed(b"".join((start, *lines, connection, framing, b"\r\n", rest)))

    # --- what the parser calls -----------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        if self.done:
            self.excess = True

    def on_url(self, piece: bytes) -> None:
        if not self.headed:
            self.url += piece

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.headed:  # a trailer, or a request behind this one
            return
        lower = name.lower()
        if lower in NOTED:
            self._note(lower, value)
        else:
            self.lines.append(b"%b: %b\r\n" % (name, value))

    def _note(self, name: bytes, value: bytes) -> None:
        if name == b"host":
            self.host = value
            self.hosts += 1
        elif name == b"content-length":
            self.length = int(value)
        elif name == b"transfer-encoding":
            self.chunked = True
            if value.lower() != b"chunked":
                self._refuse(
                    501, "unsupported_transfer_encoding", "The only transfer coding here is chunked."
                )
        elif name == b"expect":
            self.expects_continue = value.lower() == b"100-continue"
        elif name == b"upgrade":
            self._offered = value.lower() == b"websocket"
        elif name == b"connection":
            self._named += connection_names(value)
        elif name == CODING:
            self.lines.append(b"Content-Encoding: %b\r\n" % value)
            codings = {coding.strip() for coding in value.lower().split(b",")}
            if codings & COMPRESSED and not self.url.startswith(UPGRADABLE):
                text = "The body is compressed (Content-Encoding), which is not read here: send it as it is."
                self._refuse(415, "unsupported_content_encoding", text)
        elif name in CREDENTIALS:
            self.credentials += ((name, value),)
            self.lines.append(CREDENTIALS[name] % value)
        elif name in BROWSERS:
            if self.page is None:
                self.page = Page()
            setattr(self.page, BROWSERS[name], value)
        elif name == PRIORITY:
            self.lines.append(b"X-Priority: %b\r\n" % value)
            if PRIORITY_VALUE.fullmatch(value) and abs(int(value)) <= PRIORITY_MAX:
                self.priority = int(value)
            else:
                text = f"X-Priority must be a whole number from {-PRIORITY_MAX} to {PRIORITY_MAX}."
                self._refuse(400, "invalid_priority", text)

    def on_headers_complete(self) -> None:
        if self.headed:
            return
        self.headed = True
        self.method = self._parser.get_method()
        self.version = self._parser.get_http_version()
        self._check()
        if self._named:
            self.lines = without(self.lines, self._named)

    def _check(self) -> None:
        limits = self._limits
        if self.version not in ("1.1", "1.0"):
            self._refuse(505, "unsupported_http_version", "This server speaks HTTP/1.1 and HTTP/1.0.")
        elif self.hosts != 1 and (self.hosts or self.version == "1.1"):
            self._refuse(400, "malformed_request", "A request has exactly one Host header.")
        elif self.chunked and self.version == "1.0":
            self._refuse(400, "malformed_request", "HTTP/1.0 has no Transfer-Encoding.")
        elif FRAGMENT in self.url or (self.url[:1] != b"/" and self.url != b"*"):
            self._refuse(400, "malformed_request", "The target of a request is a path, such as /v1/models.")
        elif len(self.url) > limits.url_bytes:
            self._refuse(414, "url_too_long", f"The URL is longer than {limits.url_bytes} bytes.")
        elif len(self.lines) > limits.headers:
            self._refuse(431, "head_too_large", f"The request has more than {limits.headers} headers.")
        elif self._fed > limits.head_bytes and sum(map(len, self.lines)) > limits.head_bytes:
            self._refuse_head()
        elif self.length > self.body_bytes:
            self._refuse_size()
        elif self.length and not self.body.reserve(self.length):
            self._refuse_held()

    def _refuse_head(self) -> None:
        self._refuse(431, "head_too_large", f"The request's head exceeds {self._limits.head_bytes} bytes.")

    def _refuse_size(self) -> None:
        self._refuse(413, "body_too_large", f"The request body exceeds {self.body_bytes} bytes (`maxBody`).")

    def _refuse_held(self) -> None:
        self._refuse(503, "bodies_held", "The server holds as many request bodies as it may. Try again soon.")

    def on_body(self, piece: bytes) -> None:
        if self.done or self.refusal is not None:
            return
        self._barren = 0
        if self.chunked:
            size = self.body.size + len(piece)
            if size > self.body_bytes:
                return self._refuse_size()
            if not self.body.reserve(size):
                return self._refuse_held()
        try:
            self.body.add(piece)
        except OSError as error:
            self._refuse(
                503, "no_room_for_body", f"The server cannot keep the request body: {error.strerror}."
            )

    def on_message_complete(self) -> None:
        if not self.done:
            self.done = True
            self.keep_alive = self._parser.should_keep_alive()


def connection_names(value: bytes) -> list[bytes]:
    """The headers that a Connection header declares to be for one hop only."""
    tokens = [token.strip().lower() for token in value.split(b",")]
    return [token for token in tokens if token not in PERSISTENCE]


def without(lines: list[bytes], named: Iterable[bytes]) -> list[bytes]:
    """The header lines of other names; `named` in lower case, and perhaps thousands."""
    names = frozenset(named)
    return [line for line in lines if line.split(b":", 1)[0].lower() not in names]
