"""Errors in the words of the API that a client speaks: each dialect makes an answer of a refusal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from daemon.http.answers import Answer
from daemon.http.refusals import Refusal

Dialect = Callable[[Refusal], Answer]


def openai(refusal: Refusal) -> Answer:
    """`{"error": {"message", "type", "code", "param"}}`."""
    return _answer(
        refusal,
        {
            "error": {
                "message": refusal.message,
                "type": _openai_type(refusal.status),
                "code": refusal.code,
                "param": None,
            }
        },
    )


def _openai_type(status: int) -> str:
    """OpenAI's word for whose fault an error is."""
    if status == 429:
        return "rate_limit_error"
    return "invalid_request_error" if status < 500 else "server_error"


ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
"""Anthropic's words, by status; its clients choose their exception by them."""


def anthropic(refusal: Refusal) -> Answer:
    """`{"type": "error", "error": {"type", "message"}}`."""
    kind = "invalid_request_error" if refusal.status < 500 else "api_error"
    kind = ANTHROPIC_TYPES.get(refusal.status, kind)
    return _answer(refusal, {"type": "error", "error": {"type": kind, "message": refusal.message}})


def ollama(refusal: Refusal) -> Answer:
    """`{"error": message}`."""
    return _answer(refusal, {"error": refusal.message})


def _answer(refusal: Refusal, body: dict[str, Any]) -> Answer:
    return Answer(refusal.status, msgspec.json.encode(body), headers=refusal.headers)
