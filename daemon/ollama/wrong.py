"""A request of Ollama's API that cannot be served as it is."""

from __future__ import annotations

import msgspec

INVALID_JSON = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""Deep nesting and bad UTF-8 raise errors that are not msgspec's."""


class Wrong(Exception):
    """The client is answered with this status, and the sentence as its "error"."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
