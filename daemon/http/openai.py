"""The endpoints of OpenAI's API that are answered here: what models there are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from urllib.parse import unquote

from daemon.http.answers import Answer, json
from daemon.http.calls import Call
from daemon.http.refusals import unknown_model
from daemon.ports import ModelRow
from statemachines.runner import RunnerState
from statemachines.state import State


async def models(call: Call) -> Answer:
    """GET /v1/models, in OpenAI's shape, with llama-swap's additions."""
    return json({"object": "list", "data": [_row(row, call) for row in call.local.catalog.models()]})


async def model(call: Call) -> Answer:
    """GET /v1/models/MODEL, by id or alias, also of one that is not listed, or a peer's."""
    name = unquote(call.path.removeprefix("/v1/models/"))
    row = call.local.catalog.row(name)
    if row is None:
        raise unknown_model(name, call.local.catalog)
    return json(_row(row, call))


def _row(row: ModelRow, call: Call) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "id": row.id,
        "object": "model",
        "created": call.local.started_s,
        "owned_by": "llama-swap",  # by which clients tell whether /running, /unload and /upstream are there
    }
    if row.aliases:
        shown["aliases"] = list(row.aliases)
    if row.name:
        shown["name"] = row.name
    if row.description:
        shown["description"] = row.description
    shown |= row.more
    if not row.peer:  # how it is there, only the peer knows
        shown["status"] = {"value": _status(call.local.desk.state, row.behind or (row.alias_of or row.id,))}
    shown["meta"] = {"llamaswap": _meta(row)}
    if "context_length" in row.more:
        shown["meta"]["n_ctx"] = row.more["context_length"]
    return shown


def _meta(row: ModelRow) -> dict[str, Any]:
    """The model's own metadata, and what kind of row this is."""
    meta = dict(row.metadata)
    if row.alias_of:
        return meta | {"type": "alias", "modelID": row.alias_of}
    if row.kind:
        return meta | dict(row.kind)
    meta["type"] = "model"
    if row.aliases:
        meta["aliases"] = list(row.aliases)
    return meta


def _status(state: State, models: Sequence[str]) -> str:
    """Of the one that is loaded most: llama-swap's and llama-server's words."""
    states = {runner.state for model in models for runner in state.models.get(model, {}).values()}
    if states & {RunnerState.ready, RunnerState.draining}:
        return "loaded"
    return "loading" if RunnerState.loading in states else "unloaded"


async def health(call: Call) -> Answer:
    """GET /health: this process answers. It says nothing of any model."""
    return Answer(200, b"OK", "text/plain")
