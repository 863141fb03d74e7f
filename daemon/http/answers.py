"""Answers that are ours: a status, headers, and a body that is whole or comes piece by piece."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from email.utils import formatdate
from http import HTTPStatus
from typing import Any

import msgspec

PHRASES = {status.value: status.phrase for status in HTTPStatus} | {499: "Client Closed Request"}

EVENT_STREAM = b"text/event-stream"

UNBUFFERED = "X-Accel-Buffering"
"""Where it says "no", an nginx in front passes a stream on as it comes; otherwise it collects it first."""

JSON = b"application/json; charset=utf-8"
"""The content type of what a translation says whole, as Ollama has it."""


class Answer(msgspec.Struct, frozen=True):
    """A whole answer; `headers` are extra ones."""

    status: int
    body: bytes
    content_type: str = "application/json"
    headers: Mapping[str, str] = {}

    def encode(self, *, keep_alive: bool, version: str, head_only: bool = False, cors: bytes = b"") -> bytes:
        """The bytes to send. `cors`: what a browser is to be told, as header lines."""
        length = [] if self.status == 204 else [f"Content-Length: {len(self.body)}"]
        lines = [*length, *_lines(self.headers)]
        head = head_bytes(
            self.status, self.content_type, lines, keep_alive=keep_alive, version=version, cors=cors
        )
        return head if head_only else head + self.body


class Stream(msgspec.Struct, frozen=True):
    """An answer that ends when it ends, or when the client goes away: its pieces as they come."""

    pieces: AsyncIterator[bytes]
    content_type: str = "text/plain; charset=utf-8"
    headers: Mapping[str, str] = {}


def head_bytes(
    status: int, content_type: str, lines: list[str], *, keep_alive: bool, version: str, cors: bytes = b""
) -> bytes:
    """The head of an answer. HTTP/1.0 clients need to be told that a connection stays open."""
    parts = [
        f"HTTP/1.1 {status} {PHRASES.get(status, 'Unknown')}",
        f"Date: {formatdate(usegmt=True)}",
        f"Content-Type: {content_type}",
        *lines,
    ]
    if not keep_alive:
        parts.append("Connection: close")
    elif version == "1.0":
        parts.append("Connection: keep-alive")
    return ("\r\n".join(parts) + "\r\n").encode("latin-1", "replace") + cors + b"\r\n"


def chunk(piece: bytes) -> bytes:
    """A piece of a body in the framing of `Transfer-Encoding: chunked`."""
    return b"%x\r\n%b\r\n" % (len(piece), piece)


LAST_CHUNK = b"0\r\n\r\n"


def json(value: Any, status: int = 200) -> Answer:
    """A JSON body."""
    return Answer(status, msgspec.json.encode(value))


def _lines(headers: Mapping[str, str]) -> list[str]:
    return [f"{name}: {value}" for name, value in headers.items()]
