"""Why a request is not served, before it is put into the words of the caller's API."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from daemon.nearest import nearest
from daemon.ports import Catalog, Ended

REQUEST = "X-Runnerd-Request"
"""The request's id in the log, in every answer to one that the scheduler knows of."""

POSITION = "X-Runnerd-Queue-Position"
"""What the place of a request would have been for which the queue has no room."""

FINAL = ("never_fits", "pinned", "preloaded", "operator", "unloaded", "load_failed")
"""Reasons that an attempt a moment later would meet again: OpenAI's clients, which try 5xx twice more by
themselves, heed the header."""


SHOWN_NAME_CHARS = 128
"""How much of an unknown model's name an error repeats."""


class Refusal(msgspec.Struct, frozen=True):
    """An HTTP status, a stable word for programs, a sentence for people, and headers of its own."""

    status: int
    code: str
    message: str
    headers: Mapping[str, str] = {}


class Refused(Exception):
    """A request cannot be served; `refusal` says why."""

    def __init__(
        self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(code)
        self.refusal = Refusal(status, code, message, headers or {})

    @classmethod
    def of(cls, refusal: Refusal) -> Refused:
        """The exception for a refusal that is there already."""
        return cls(refusal.status, refusal.code, refusal.message, refusal.headers)


def ended(end: Ended, request: str) -> Refusal:
    """What a client is told of a request that the scheduler ended."""
    headers = {REQUEST: request}
    if end.retry_after_s > 0:
        headers["Retry-After"] = str(end.retry_after_s)
    if end.position:
        headers[POSITION] = str(end.position)
    if end.reason in FINAL:
        headers["X-Should-Retry"] = "false"
    return Refusal(end.status, end.reason, end.message, headers)


def unknown_model(name: str, catalog: Catalog) -> Refused:
    """404 for a model that is not configured, with the nearest that are."""
    name = name[:SHOWN_NAME_CHARS]
    # An alias may be a row of its own, and in that of its model.
    known = dict.fromkeys(known for row in catalog.models() for known in (row.id, *row.aliases))
    near = nearest(name, known, 3, 0.5)
    hint = f" Did you mean {' or '.join(near)}?" if near else " GET /v1/models lists those that are."
    return Refused(404, "model_not_found", f"The model '{name}' is not configured.{hint}")
