"""Which path is what: the endpoints that are relayed to a runner, and those that are answered here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, Protocol

import msgspec

from daemon.http.answers import Answer, error, json
from daemon.ports import Desk
from events.catalogue import NEVER, Option
from events.limits import S
from statemachines.runner import RunnerState
from statemachines.state import Runner

RELAYED = {
    b"/v1/chat/completions": "chat",
    b"/v1/completions": "completion",
    b"/v1/embeddings": "embedding",
}
"""Path to the kind of request that the log records."""

SHOWN_NAME_CHARS = 128
"""How much of an unknown model's name an error repeats."""


class ModelRow(msgspec.Struct, frozen=True):
    """A model (or, where it is configured so, an alias) as /v1/models shows it."""

    id: str
    aliases: Sequence[str] = ()
    name: str = ""
    description: str = ""


class Catalog(Protocol):
    """What the front door needs of the configuration. It may change between two calls."""

    def resolve(self, name: str) -> str | None:
        """The model's id for an id or alias."""
        ...

    def models(self) -> Sequence[ModelRow]:
        """The rows of /v1/models, in order; without unlisted models."""
        ...

    def launch_options(self, model: str) -> Mapping[str, Option]:
        """The launch options that a request may fix, with their defaults, which give their types."""
        ...

    def bounded(self, model: str, options: Mapping[str, Option]) -> dict[str, Option]:
        """The launch options that a request fixes, within what the model's file says of it."""
        ...


class Local(msgspec.Struct, frozen=True):
    """What the endpoints that are answered here may look at."""

    desk: Desk
    catalog: Catalog
    started_s: int
    """When the front door was made, in Unix time: models have no date of their own."""


def models(local: Local) -> Answer:
    """GET /v1/models, in OpenAI's shape."""
    return json({"object": "list", "data": [_row(row, local.started_s) for row in local.catalog.models()]})


def _row(row: ModelRow, created: int) -> dict[str, Any]:
    shown: dict[str, Any] = {"id": row.id, "object": "model", "created": created, "owned_by": "runnerd"}
    if row.aliases:
        shown["aliases"] = list(row.aliases)
    if row.name:
        shown["name"] = row.name
    if row.description:
        shown["description"] = row.description
    return shown


def health(local: Local) -> Answer:
    """GET /health: this process answers. It says nothing of any model."""
    return Answer(200, b"OK", "text/plain")


STATES = {
    RunnerState.loading: "starting",
    RunnerState.ready: "ready",
    RunnerState.draining: "stopping",
    RunnerState.stopping: "stopping",
    RunnerState.reclaiming: "stopping",
}
"""llama-swap's words, which its clients look for."""


def running(local: Local) -> Answer:
    """GET /running, in llama-swap's shape, without commands: they may hold keys."""
    rows = {row.id: row for row in local.catalog.models()}
    runners = local.desk.state.runners.values()
    return json({"running": [_running(runner, rows.get(runner.model)) for runner in runners]})


def _running(runner: Runner, row: ModelRow | None) -> dict[str, Any]:
    return {
        "model": runner.model,
        "state": STATES.get(runner.state, "unknown"),
        "proxy": f"http://127.0.0.1:{runner.port}" if runner.port else "",
        "ttl": 0 if runner.keep_alive_ns == NEVER else max(1, runner.keep_alive_ns // S),
        "name": row.name if row else "",
        "description": row.description if row else "",
        "runner": runner.id,
    }


LOCAL: dict[bytes, Callable[[Local], Answer]] = {
    b"/v1/models": models,
    b"/health": health,
    b"/running": running,
}


def find(method: bytes, url: bytes) -> str | Callable[[Local], Answer] | Answer:
    """What a request line asks for: the kind of a relayed request, a local endpoint, or an error's answer."""
    path = url if b"?" not in url else url[: url.index(b"?")]
    kind = RELAYED.get(path)
    if kind is not None:
        return kind if method == b"POST" else _wrong_method(method, "POST")
    local = LOCAL.get(path)
    if local is not None:
        return local if method in (b"GET", b"HEAD") else _wrong_method(method, "GET, HEAD")
    known = ", ".join(sorted(path.decode() for path in (*RELAYED, *LOCAL)))
    return error(404, "no_such_endpoint", f"There is no such endpoint. There are: {known}.")


def _wrong_method(method: bytes, allowed: str) -> Answer:
    message = f"{method.decode('latin-1')} is not allowed here, but {allowed}."
    return error(405, "method_not_allowed", message, {"Allow": allowed})


def unknown_model(name: str, catalog: Catalog) -> Answer:
    """404 for a model that is not configured, with the nearest that are."""
    name = name[:SHOWN_NAME_CHARS]
    known = [known for row in catalog.models() for known in (row.id, *row.aliases)]
    near = get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f" Did you mean {' or '.join(near)}?" if near else " GET /v1/models lists those that are."
    return error(404, "model_not_found", f"The model '{name}' is not configured.{hint}")
