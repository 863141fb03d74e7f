"""Sending a body of which nobody knows the length beforehand: in chunks, or until the connection ends."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from daemon.http.answers import LAST_CHUNK, chunk, head_bytes


class Framed:
    """One answer. Its head goes with the first bytes; what ends before any were sent has a Content-Length."""

    __slots__ = (
        "_begun", "_content_type", "_cors", "_lines", "_status", "_version", "keep_alive", "send",
    )  # fmt: skip

    def __init__(
        self,
        send: Callable[[bytes], Awaitable[None]],
        version: str,
        *,
        keep_alive: bool,
        status: int,
        content_type: str,
        lines: list[str],
        cors: bytes = b"",
    ) -> None:
        self.send = send
        self._version = version
        self._status = status
        self._content_type = content_type
        self._lines = lines
        self._cors = cors
        self._begun = False
        self.keep_alive = keep_alive
        """The connection can be used again, once it has ended."""

    async def piece(self, data: bytes) -> None:
        """Send `data` now. Nothing is sent for nothing."""
        framed = self.framed(data)
        if framed:
            await self.send(framed)

    def framed(self, data: bytes) -> bytes:
        """What is to be sent for `data`, now. Nothing for nothing."""
        if not data:
            return b""
        chunked = self._version != "1.0"
        framed = chunk(data) if chunked else data
        if not self._begun:
            framed = self._begin(chunked) + framed
            self._begun = True
        return framed

    async def begin(self) -> None:
        """Send the head now, with no more than that."""
        await self.send(self._begin(self._version != "1.0"))
        self._begun = True

    async def end(self, data: bytes = b"") -> None:
        """Send the rest."""
        if not self._begun:
            await self.send(self._head(f"Content-Length: {len(data)}") + data)
        elif self._version != "1.0":
            await self.send(chunk(data) + LAST_CHUNK if data else LAST_CHUNK)
        elif data:
            await self.send(data)

    def _begin(self, chunked: bool) -> bytes:
        if chunked:
            return self._head("Transfer-Encoding: chunked")
        self.keep_alive = False
        return self._head()

    def _head(self, *framing: str) -> bytes:
        lines = [*framing, *self._lines]
        return head_bytes(
            self._status, self._content_type, lines,
            keep_alive=self.keep_alive, version=self._version, cors=self._cors,
        )  # fmt: skip
