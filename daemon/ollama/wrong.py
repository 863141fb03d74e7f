"""What is wrong with a request of Ollama's API, and how it is said."""

from __future__ import annotations

import msgspec

from daemon.http.refusals import Refused

INVALID_JSON = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""Deep nesting and bad UTF-8 raise errors that are not msgspec's."""


def wrong(message: str) -> Refused:
    """The request is not as it should be."""
    return Refused(400, "invalid_request", message)


def no_model(name: str) -> Refused:
    """Nothing is configured by this name: Ollama's words, which its clients look for."""
    return Refused(404, "model_not_found", f"model '{name[:128]}' not found")


def elsewhere(name: str) -> Refused:
    """Requests for models of other servers are relayed as they come, and not translated."""
    text = f"model '{name[:128]}' is another server's: ask for it with OpenAI's endpoints, below /v1"
    return Refused(501, "not_supported", text)
