"""A small synchronous client of the control socket, for runnerctl. Standard library only."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

INTERFACE = "io.runnerd.Control"

WHY: dict[type[OSError], str] = {
    FileNotFoundError: "there is no such socket",
    ConnectionRefusedError: "nobody listens there any more",
    PermissionError: "this user may not open it (its owner and group may)",
}
ADVICE = "Start it (runnerd serve, or its service), or name its socket: --socket PATH, or $RUNNERD_SOCKET."


class Unreachable(Exception):
    """No daemon answers on any of the sockets tried."""


class CallFailed(Exception):
    """The daemon answered with an error."""

    def __init__(self, name: str, parameters: dict[str, Any]) -> None:
        super().__init__(name)
        self.name = name
        self.parameters = parameters

    @property
    def short(self) -> str:
        """The error's name without its interface."""
        return self.name.rpartition(".")[2]


class Client:
    """One connection. Raises Unreachable."""

    def __init__(self, paths: list[Path]) -> None:
        self._buffer = bytearray()
        tried = []
        for path in paths:
            self._socket = socket.socket(socket.AF_UNIX)
            try:
                self._socket.connect(str(path))
                return
            except OSError as error:
                self._socket.close()
                tried.append(f"{path}: {WHY.get(type(error)) or error.strerror or error}")
        raise Unreachable("\n  ".join(["no daemon answers", *tried]) + f"\n{ADVICE}")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One call, one reply. Raises CallFailed, Unreachable."""
        return next(self.calls(method, more=False, **parameters))

    def calls(self, method: str, *, more: bool = True, **parameters: Any) -> Iterator[dict[str, Any]]:
        """One call, its replies as they come. Raises CallFailed, Unreachable."""
        call = {"method": f"{INTERFACE}.{method}", "parameters": parameters, "more": more}
        with suppress(BrokenPipeError):  # it may have said why before it closed
            self._socket.sendall(json.dumps(call).encode() + b"\0")
        while True:
            reply = json.loads(self._message())
            if "error" in reply:
                raise CallFailed(reply["error"], reply.get("parameters") or {})
            yield reply.get("parameters") or {}
            if not reply.get("continues"):
                return

    def until_closed(self) -> None:
        """Wait until the daemon closes the connection, as it does when it ends."""
        with suppress(ConnectionResetError):
            while self._socket.recv(65536):
                pass

    def _message(self) -> bytes:
        while (end := self._buffer.find(b"\0")) < 0:
            try:
                data = self._socket.recv(65536)
            except ConnectionResetError:
                data = b""
            if not data:
                raise Unreachable("the daemon closed the connection: it stopped, or its journal says why")
            self._buffer += data
        message = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        return message
