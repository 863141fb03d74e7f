"""What a client sends: whole messages, one after the other, within limits.

While a call is answered that may take long, the client is read on (`watch`): that is how its going shows,
also where it has sent the next calls already. What it sends meanwhile is kept, up to a limit.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator

import trio

from daemon.control.varlink import NotVarlink, Splitter
from daemon.limits import CONTROL_AHEAD_BYTES, CONTROL_MESSAGE_S, CONTROL_READ_BYTES


class LimitExceeded(Exception):
    """The client has sent more, or more slowly, than it may. The connection ends, with these words."""


class Inbox:
    """The reading half of a connection."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._splitter = Splitter()
        self._messages: Iterator[bytes] = iter(())
        self._ahead: deque[bytes] = deque()
        """What came while a call was answered."""
        self._ahead_bytes = 0
        self._ended = False
        self._began = math.inf
        """When the message began that has come in part."""

    async def message(self) -> bytes | None:
        """The next message; None: the client has gone, or says nothing more. Raises NotVarlink and
        LimitExceeded."""
        while True:
            for message in self._messages:
                self._began = math.inf
                return message
            data = await self._receive()
            if not data:
                return None
            self._messages = self._splitter.feed(data)

    async def _receive(self) -> bytes:
        if self._ahead_bytes > CONTROL_AHEAD_BYTES:
            raise LimitExceeded(f"more than {CONTROL_AHEAD_BYTES} bytes were sent while a call was answered")
        if self._ahead:
            data = self._ahead.popleft()
            self._ahead_bytes -= len(data)
            return data
        if self._ended:
            return b""
        if not self._splitter.within:
            return bytes(await self._stream.receive_some(CONTROL_READ_BYTES))
        self._began = min(self._began, trio.current_time())
        with trio.move_on_at(self._began + CONTROL_MESSAGE_S):
            return bytes(await self._stream.receive_some(CONTROL_READ_BYTES))
        raise LimitExceeded(f"the rest of a call did not come within {CONTROL_MESSAGE_S:.0f} s")

    async def watch(self, scope: trio.CancelScope) -> None:
        """Read on until a scope is cancelled, which is done here when the client goes or sends too much."""
        try:
            while data := await self._stream.receive_some(CONTROL_READ_BYTES):
                self._ahead.append(bytes(data))
                self._ahead_bytes += len(data)
                if self._ahead_bytes > CONTROL_AHEAD_BYTES:
                    break
            else:
                self._ended = True
        except trio.BrokenResourceError:  # it left without reading what it had been sent
            self._ended = True
        scope.cancel()


__all__ = ["Inbox", "LimitExceeded", "NotVarlink"]
