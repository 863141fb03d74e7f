"""The answer to a request that asks for nothing: its model is loaded, which is what it was for."""

from __future__ import annotations

from daemon.http.answers import JSON
from daemon.ollama import said


class Loaded:
    """See `daemon.http.calls.Translation`, and `Ask.only_load`."""

    def __init__(self, form: str, model: str) -> None:
        self._form = form
        self._model = model

    def began(self) -> None:
        """It is loaded."""

    def head(self, status: int, content_type: bytes) -> tuple[int, bytes]:
        """There is no other head than ours."""
        return status, JSON

    def feed(self, piece: bytes) -> bytes:
        """There is no body."""
        return b""

    def end(self) -> bytes:
        """The answer."""
        return said.nothing(self._form, self._model, "load")

    def broken(self, message: str) -> bytes:
        """Nothing can break."""
        return said.error(message)
