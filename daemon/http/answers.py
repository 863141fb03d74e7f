"""Answers that are ours: OpenAI's error shape, and small JSON and text bodies."""

from __future__ import annotations

from collections.abc import Mapping
from email.utils import formatdate
from http import HTTPStatus
from typing import Any

import msgspec

from daemon.http.head import Refusal
from daemon.ports import Ended

PHRASES = {status.value: status.phrase for status in HTTPStatus}


REQUEST = "X-Runnerd-Request"
"""The request's id in the log, in every answer to one that the scheduler knows of."""

FINAL = ("never_fits", "pinned", "preloaded", "operator", "unloaded", "load_failed")
"""Reasons that an attempt a moment later would meet again: OpenAI's clients, which try 5xx twice more by
themselves, heed the header."""


class Answer(msgspec.Struct, frozen=True):
    """A whole answer; `headers` are extra ones."""

    status: int
    body: bytes
    content_type: str = "application/json"
    headers: Mapping[str, str] = {}

    def encode(self, *, keep_alive: bool, version: str, head_only: bool = False) -> bytes:
        """The bytes to send. HTTP/1.0 clients need to be told that a connection stays open."""
        lines = [
            f"HTTP/1.1 {self.status} {PHRASES.get(self.status, 'Unknown')}",
            f"Date: {formatdate(usegmt=True)}",
            f"Content-Type: {self.content_type}",
            f"Content-Length: {len(self.body)}",
        ]
        lines += [f"{name}: {value}" for name, value in self.headers.items()]
        if not keep_alive:
            lines.append("Connection: close")
        elif version == "1.0":
            lines.append("Connection: keep-alive")
        head = ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1", "replace")
        return head if head_only else head + self.body


class Refused(Exception):
    """A request cannot be served; `answer` says why."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.status)
        self.answer = answer


def json(value: Any) -> Answer:
    """200 with a JSON body."""
    return Answer(200, msgspec.json.encode(value))


def error(status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> Answer:
    """An error as OpenAI's clients expect it."""
    detail = {"message": message, "type": error_type(status), "code": code, "param": None}
    return Answer(status, msgspec.json.encode({"error": detail}), headers=headers or {})


def error_type(status: int) -> str:
    """OpenAI's word for whose fault an error is."""
    if status == 429:
        return "rate_limit_error"
    return "invalid_request_error" if status < 500 else "server_error"


def refused(refusal: Refusal) -> Answer:
    """The answer to a request that cannot be served."""
    headers = {"Retry-After": "1"} if refusal.status == 503 else None
    return error(refusal.status, refusal.code, refusal.message, headers)


def ended(end: Ended, request: str) -> Answer:
    """The answer to a request that the scheduler ended."""
    headers = {REQUEST: request}
    if end.retry_after_s > 0:
        headers["Retry-After"] = str(end.retry_after_s)
    if end.reason in FINAL:
        headers["X-Should-Retry"] = "false"
    return error(end.status, end.reason, end.message, headers)
