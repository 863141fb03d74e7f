"""Which path is what: endpoints that are relayed to a runner as they come, and those handled here."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from difflib import get_close_matches
from typing import Literal

import msgspec

from daemon.http import dialects, feed, health, llamaswap, openai
from daemon.http.answers import Answer, Stream
from daemon.http.calls import Ask, Call
from daemon.http.dialects import Dialect
from daemon.http.refusals import SHOWN_NAME_CHARS, Refusal
from daemon.ollama import endpoints as ollama

Handler = Callable[[Call], Awaitable[Answer | Stream | Ask]]

GET = (b"GET", b"HEAD")
POST = (b"POST",)


class Route(msgspec.Struct, frozen=True):
    """An endpoint."""

    methods: tuple[bytes, ...]
    """Those that it takes; none: any."""
    handle: Handler | None = None
    """What makes an answer, or a request to a runner, of a call. None: it is relayed as it comes."""
    kind: str = ""
    """Of a relayed request: what the log calls it."""
    names: Literal["body", "form", "query"] = "body"
    """Of a relayed request: where it names its model: JSON (also what is posted to "query"), a form's field,
    a parameter."""
    strip: bytes = b""
    """Of a relayed request: the beginning of its path that is not passed on."""
    dialect: Dialect = dialects.openai
    """How errors are written."""
    looks: bool = False
    """Of a relayed request: what a model server says of itself, busy or not (see `Ask.beside`)."""
    public: bool = False
    """It needs no API key: what watches the daemon has none."""


RELAYED = {
    "chat": ("/v1/chat/completions", "/chat/completions"),
    "completion": ("/v1/completions", "/completion", "/completions"),
    "response": ("/v1/responses",),
    "embedding": ("/v1/embeddings", "/embedding", "/embeddings"),
    "rerank": ("/v1/rerank", "/v1/reranking", "/rerank", "/reranking"),
    "infill": ("/infill",),
    "tokenize": (
        "/tokenize", "/detokenize", "/apply-template", "/v1/responses/input_tokens",
        "/v1/chat/completions/input_tokens",
    ),
    "speech": ("/v1/audio/speech",),
    "image": ("/v1/images/generations", "/sdapi/v1/txt2img", "/sdapi/v1/img2img"),
}  # fmt: skip
"""Endpoints whose JSON body names the model, by what the log calls their requests."""

VERSIONLESS = {
    "chat": ("/v/chat/completions",),
    "completion": ("/v/completions",),
    "response": ("/v/responses",),
    "embedding": ("/v/embeddings",),
    "rerank": ("/v/rerank", "/v/reranking"),
}
"""llama-swap's paths for runners whose API has no version in its path: what goes on is without the /v."""

OLLAMA: dict[str, tuple[tuple[bytes, ...], Handler]] = {
    "version": (GET, ollama.version),
    "tags": (GET, ollama.tags),
    "ps": (GET, ollama.ps),
    "show": (POST, ollama.show),
    "chat": (POST, ollama.chat),
    "generate": (POST, ollama.generate),
    "embed": (POST, ollama.embed),
    "embeddings": (POST, ollama.embeddings),
    "pull": (POST, ollama.pull),
    **dict.fromkeys(("push", "create", "copy", "delete"), ((), ollama.instead)),
}
"""Ollama's, below /api."""

ROUTES: dict[bytes, Route] = {
    **{path.encode(): Route(POST, kind=kind) for kind, paths in RELAYED.items() for path in paths},
    **{
        path.encode(): Route(POST, kind=kind, strip=b"/v")
        for kind, paths in VERSIONLESS.items()
        for path in paths
    },
    b"/v/messages": Route(POST, kind="message", strip=b"/v", dialect=dialects.anthropic),
    b"/v/messages/count_tokens": Route(POST, kind="message", strip=b"/v", dialect=dialects.anthropic),
    b"/v1/messages": Route(POST, kind="message", dialect=dialects.anthropic),
    b"/v1/messages/count_tokens": Route(POST, kind="message", dialect=dialects.anthropic),
    b"/v1/audio/transcriptions": Route(POST, kind="transcription", names="form"),
    b"/v1/audio/translations": Route(POST, kind="transcription", names="form"),
    b"/v1/images/edits": Route(POST, kind="image", names="form"),
    b"/v1/images/variations": Route(POST, kind="image", names="form"),
    b"/v1/audio/voices": Route((*GET, *POST), kind="props", names="query"),
    b"/sdapi/v1/loras": Route(GET, kind="props", names="query"),
    b"/props": Route(GET, kind="props", names="query", looks=True),
    b"/v1/models": Route(GET, openai.models),
    b"/models": Route(GET, openai.models),
    b"/health": Route(GET, openai.health, public=True),
    b"/wol-health": Route(GET, openai.health, public=True),
    b"/ready": Route(GET, health.ready, public=True),
    b"/metrics": Route(GET, health.metrics),
    b"/running": Route(GET, llamaswap.running),
    b"/unload": Route((b"GET", b"POST"), llamaswap.unload_all),
    b"/api/models/unload": Route(POST, llamaswap.unload_all),
    b"/api/profiles": Route(GET, llamaswap.profiles),
    b"/api/profiles/active": Route((b"PUT",), llamaswap.use_profile),
    b"/logs": Route(GET, llamaswap.logs),
    b"/logs/stream": Route(GET, llamaswap.follow_logs),
    b"/api/events": Route(GET, feed.events),
    b"/api/performance": Route(GET, llamaswap.performance),
    b"/ui": Route(GET, llamaswap.no_page),
    b"/": Route(GET, ollama.root, public=True),
    **{
        f"/api/{name}".encode(): Route(methods, handle, dialect=dialects.ollama)
        for name, (methods, handle) in OLLAMA.items()
    },
}
"""By path."""

BELOW: dict[bytes, Route] = {
    b"/v1/models/": Route(GET, openai.model),
    b"/upstream/": Route((), llamaswap.upstream),
    b"/api/models/unload/": Route(POST, llamaswap.unload_model),
    b"/api/inflight/": Route(POST, llamaswap.cancel),
    b"/api/blobs/": Route((), ollama.instead, dialect=dialects.ollama),
    b"/logs/stream/": Route(GET, llamaswap.follow_logs),
    b"/ui/": Route(GET, llamaswap.no_page),
}
"""By the beginning of a path, with its final slash; the longest goes first."""


async def nothing(call: Call) -> Answer:
    """The answer to a preflight: the guard has said in its head which pages may ask for what."""
    return Answer(204, b"")


PREFLIGHT = Route((), nothing)

DIALECTS: dict[bytes, Dialect] = {b"/api/": dialects.ollama, b"/v1/messages": dialects.anthropic}
"""How errors are written, by the beginning of a path, where no route says so."""


def find(url: bytes) -> Route | None:
    """The endpoint that a request line asks for."""
    route = ROUTES.get(url)
    if route is None:
        path = url.partition(b"?")[0]
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


def no_such_endpoint(url: bytes) -> Refusal:
    """404, with the nearest that there are."""
    path = url.partition(b"?")[0].decode("latin-1")[:SHOWN_NAME_CHARS]
    near = get_close_matches(path, [known.decode() for known in (*ROUTES, *BELOW)], n=3)
    hint = f" Did you mean {' or '.join(near)}?" if near else " docs/requests.md has those that there are."
    return Refusal(404, "no_such_endpoint", f"There is no endpoint {path}.{hint}")


def wrong_method(method: bytes, route: Route) -> Refusal:
    """405, with those that are allowed."""
    allowed = ", ".join(method.decode() for method in route.methods)
    message = f"{method.decode('latin-1')} is not allowed here, but {allowed}."
    return Refusal(405, "method_not_allowed", message, {"Allow": allowed})
