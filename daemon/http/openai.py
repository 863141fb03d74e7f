"""The endpoints of OpenAI's and llama-swap's APIs that are answered here: what there is, and what runs."""

from __future__ import annotations

from typing import Any

from daemon.http.answers import Answer, json
from daemon.http.calls import Call
from daemon.ports import ModelRow
from events.catalogue import NEVER
from events.limits import S
from statemachines.runner import RunnerState
from statemachines.state import Runner


async def models(call: Call) -> Answer:
    """GET /v1/models, in OpenAI's shape."""
    local = call.local
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


async def health(call: Call) -> Answer:
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


async def running(call: Call) -> Answer:
    """GET /running, in llama-swap's shape, without commands: they may hold keys."""
    rows = {row.id: row for row in call.local.catalog.models()}
    runners = call.local.desk.state.runners.values()
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
