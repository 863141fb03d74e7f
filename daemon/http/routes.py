"""Which path is what: endpoints that are relayed to a runner as they come, and those handled here."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from difflib import get_close_matches

import msgspec

from daemon.http import dialects, openai
from daemon.http.answers import Answer, Stream
from daemon.http.calls import Ask, Call
from daemon.http.dialects import Dialect
from daemon.http.refusals import Refusal, Refused
from daemon.ports import Catalog

Handler = Callable[[Call], Awaitable[Answer | Stream | Ask]]

GET = (b"GET", b"HEAD")
POST = (b"POST",)

SHOWN_NAME_CHARS = 128
"""How much of an unknown model's name an error repeats."""


class Route(msgspec.Struct, frozen=True):
    """An endpoint."""

    methods: tuple[bytes, ...]
    """Those that it takes; none: any."""
    handle: Handler | None = None
    """What makes an answer, or a request to a runner, of a call. None: it is relayed as it comes, to the
    model that its JSON body names."""
    kind: str = ""
    """Of a relayed request: what the log calls it."""
    dialect: Dialect = dialects.openai
    """How errors are written."""


ROUTES: dict[bytes, Route] = {
    b"/v1/chat/completions": Route(POST, kind="chat"),
    b"/v1/completions": Route(POST, kind="completion"),
    b"/v1/embeddings": Route(POST, kind="embedding"),
    b"/v1/models": Route(GET, openai.models),
    b"/health": Route(GET, openai.health),
    b"/running": Route(GET, openai.running),
}
"""By path."""

BELOW: dict[bytes, Route] = {}
"""By the beginning of a path, with its final slash; the longest goes first."""

DIALECTS: dict[bytes, Dialect] = {b"/api/": dialects.ollama, b"/v1/messages": dialects.anthropic}
"""How errors are written, by the beginning of a path, where no route says so."""


def find(url: bytes) -> Route | None:
    """The endpoint that a request line asks for."""
    path = url if b"?" not in url else url[: url.index(b"?")]
    route = ROUTES.get(path)
    if route is None:
        below = [start for start in BELOW if path.startswith(start)]
        if below:
            route = BELOW[max(below, key=len)]
    return route


def dialect_of(url: bytes) -> Dialect:
    """How the errors of a path are written that is no endpoint."""
    for start, dialect in DIALECTS.items():
        if url.startswith(start):
            return dialect
    return dialects.openai


def no_such_endpoint() -> Refusal:
    """404, with those that there are."""
    known = ", ".join(sorted({path.decode() for path in ROUTES} | {f"{path.decode()}…" for path in BELOW}))
    return Refusal(404, "no_such_endpoint", f"There is no such endpoint. There are: {known}.")


def wrong_method(method: bytes, route: Route) -> Refusal:
    """405, with those that are allowed."""
    allowed = ", ".join(method.decode() for method in route.methods)
    message = f"{method.decode('latin-1')} is not allowed here, but {allowed}."
    return Refusal(405, "method_not_allowed", message, {"Allow": allowed})


def unknown_model(name: str, catalog: Catalog) -> Refused:
    """404 for a model that is not configured, with the nearest that are."""
    name = name[:SHOWN_NAME_CHARS]
    known = [known for row in catalog.models() for known in (row.id, *row.aliases)]
    near = get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f" Did you mean {' or '.join(near)}?" if near else " GET /v1/models lists those that are."
    return Refused(404, "model_not_found", f"The model '{name}' is not configured.{hint}")
