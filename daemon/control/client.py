"""A small synchronous client of the control socket, for runnerctl. Standard library only."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

INTERFACE = "io.runnerd.Control"


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
        self._buffer = b""
        tried = []
        for path in paths:
            self._socket = socket.socket(socket.AF_UNIX)
            try:
                self._socket.connect(str(path))
                return
            except OSError as error:
                self._socket.close()
                tried.append(f"{path} ({error.strerror or error})")
        where = ", ".join(tried)
        raise Unreachable(f"no daemon answers on {where}. Is runnerd running? --socket PATH names its socket")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One call, one reply. Raises CallFailed, Unreachable."""
        return next(self.calls(method, more=False, **parameters))

    def calls(self, method: str, *, more: bool = True, **parameters: Any) -> Iterator[dict[str, Any]]:
        """One call, its replies as they come."""
        call = {"method": f"{INTERFACE}.{method}", "parameters": parameters, "more": more}
        self._socket.sendall(json.dumps(call).encode() + b"\0")
        while True:
            reply = json.loads(self._message())
            if "error" in reply:
                raise CallFailed(reply["error"], reply.get("parameters") or {})
            yield reply.get("parameters") or {}
            if not reply.get("continues"):
                return

    def _message(self) -> bytes:
        while b"\0" not in self._buffer:
            data = self._socket.recv(65536)
            if not data:
                raise Unreachable("the daemon closed the connection")
            self._buffer += data
        message, _, self._buffer = self._buffer.partition(b"\0")
        return message
