"""llama-swap's endpoints: what runs, unloading, a model's own paths, logs, cancelling."""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote

import msgspec

from daemon.http.answers import UNBUFFERED, Answer, Stream, json
from daemon.http.calls import Ask, Call
from daemon.http.refusals import Refused, unknown_model
from daemon.limits import UPSTREAM_NAME_PARTS
from daemon.logs import PROXY, UPSTREAM
from daemon.ports import LogBlocked, ModelRow
from events.catalogue import NEVER, CancelRequested, Fact, ProfileRequested, UnloadRequested
from events.limits import S
from statemachines.parts import Runner
from statemachines.request import RequestState
from statemachines.runner import RunnerState

STATES = {
    RunnerState.loading: "starting",
    RunnerState.ready: "ready",
    RunnerState.draining: "stopping",
    RunnerState.stopping: "stopping",
    RunnerState.reclaiming: "stopping",
}
"""llama-swap's words, which its clients look for."""

LOOKS = ("/health", "/slots", "/metrics", "/props", "/models", "/v1/models")
"""What model servers say of themselves, busy or not: monitors read it every few seconds."""

DONE = Answer(200, b"OK", "text/plain")
DONE_JSON = json({"msg": "ok"})
"""What llama-swap says, at which path: clients decode the one, and compare the other."""


class _Profile(msgspec.Struct):
    name: str | msgspec.UnsetType | None = msgspec.UNSET


_PROFILE = msgspec.json.Decoder(_Profile)


async def running(call: Call) -> Answer:
    """GET /running, in llama-swap's shape. Commands may hold keys: they are left empty, not out, as typed
    clients refuse an answer without them."""
    rows = {row.id: row for row in call.local.catalog.models()}
    runners = call.local.desk.state.runners.values()
    return json({"running": [_running(runner, rows.get(runner.model)) for runner in runners]})


def _running(runner: Runner, row: ModelRow | None) -> dict[str, Any]:
    return {
        "model": runner.model,
        "state": STATES.get(runner.state, "unknown"),
        "cmd": "",
        "proxy": f"http://127.0.0.1:{runner.port}" if runner.port else "",
        "ttl": 0 if runner.keep_alive_ns == NEVER else max(1, runner.keep_alive_ns // S),
        "name": row.name if row else "",
        "description": row.description if row else "",
        "runner": runner.id,
    }


# --- operations ---------------------------------------------------------------------------------------------


async def unload_all(call: Call) -> Answer:
    """GET /unload and POST /api/models/unload: every runner finishes what it does, and goes."""
    await _operate(call, UnloadRequested("", "", by=_by(call)))
    return DONE if call.path == "/unload" else DONE_JSON


async def unload_model(call: Call) -> Answer:
    """POST /api/models/unload/MODEL."""
    name = unquote(call.path.partition("/unload/")[2])
    model = call.local.catalog.resolve(name)
    if model is None:
        raise unknown_model(name, call.local.catalog)
    await _operate(call, UnloadRequested(model, "", by=_by(call)))
    return DONE


async def cancel(call: Call) -> Answer:
    """POST /api/inflight/REQUEST/cancel."""
    request, _, verb = call.path.removeprefix("/api/inflight/").partition("/")
    if verb != "cancel":
        raise Refused(404, "no_such_endpoint", "There is POST /api/inflight/REQUEST/cancel.")
    found = call.local.desk.state.requests.get(request)
    if found is None or found.state not in (RequestState.queued, RequestState.dispatched):
        raise Refused(404, "request_not_found", "No such request is queued or running.")
    await _operate(call, CancelRequested(request, _by(call)))
    return DONE_JSON


async def profiles(call: Call) -> Answer:
    """GET /api/profiles."""
    catalog = call.local.catalog
    known = sorted(catalog.profiles().items())
    rows = [{"id": name, "description": each.description, "pins": each.pins} for name, each in known]
    return json({"active": catalog.profile or None, "profiles": rows})


async def use_profile(call: Call) -> Answer:
    """PUT /api/profiles/active: {"name": NAME}, or null for none."""
    asked = await call.decode(_PROFILE)
    if asked.name is msgspec.UNSET:
        text = 'The request body has no "name": that of a profile, or null for none.'
        raise Refused(400, "missing_profile", text)
    catalog, name = call.local.catalog, asked.name or ""
    if name and name not in catalog.profiles():
        known = ", ".join(catalog.profiles()) or "none"
        raise Refused(404, "profile_not_found", f"The configuration has no such profile. There are: {known}.")
    if name != catalog.profile:
        await _operate(call, ProfileRequested(name, _by(call)))
    return json({"active": catalog.profile or None})


async def _operate(call: Call, fact: Fact) -> None:
    """Have an operation done. Raises Refused, LogBlocked."""
    if call.local.desk.log_blocked:
        raise LogBlocked(f"the event log cannot be written: {call.local.desk.log_blocked}")
    ended = await call.local.desk.operation(fact)
    if ended is not None and ended.status >= 400:
        raise Refused(ended.status, ended.reason, ended.message)


def _by(call: Call) -> str:
    """Who asks, as the log names it."""
    return f"http {call.caller}"


# --- what is not here ---------------------------------------------------------------------------------------


async def performance(call: Call) -> Answer:
    """GET /api/performance: nothing is measured for it; some clients take its status for the server's."""
    return json({"enabled": False, "sys_stats": [], "gpu_stats": []})


async def no_page(call: Call) -> Answer:
    """GET /ui: where llama-swap's clients lead a person."""
    text = "There is no web interface here; runnerctl ps, queue, watch and logs -f show what happens."
    raise Refused(404, "no_such_endpoint", text)


# --- a model's own paths ------------------------------------------------------------------------------------


async def upstream(call: Call) -> Answer | Ask:
    """Anything below /upstream/MODEL/ goes to a runner of the model, without that beginning of its path."""
    path, mark, query = call.url.removeprefix(b"/upstream/").partition(b"?")
    if not path:
        raise Refused(404, "missing_model", "The path goes on with a model's name: /upstream/MODEL/.")
    parts = path.split(b"/")
    catalog = call.local.catalog
    for count in range(min(len(parts), UPSTREAM_NAME_PARTS), 0, -1):
        model = catalog.resolve(unquote(b"/".join(parts[:count])))
        if model is not None:
            break
    else:
        raise unknown_model(unquote(parts[0]), catalog)
    if count == len(parts):  # without the slash, relative links on the page would miss the model's name
        status = 301 if call.method in ("GET", "HEAD") else 308
        where = (b"/upstream/" + path + b"/" + mark + query).decode("latin-1")
        return Answer(status, b"", "text/plain", {"Location": where})
    below = b"/" + b"/".join(parts[count:])
    if catalog.loads_nothing(unquote(below)) and not _is_ready(call, model):
        text = f"The model {model} is not loaded, and this path does not load it (upstream.ignorePaths)."
        raise Refused(409, "not_loaded", text)
    target = below + mark + query
    looks = call.method in ("GET", "HEAD") and below.decode("latin-1") in LOOKS
    beside = call.answering(model) if looks else None
    return Ask(model, "upstream", target=target, renamed=None, upgrade=call.upgrade, beside=beside)


def _is_ready(call: Call, model: str) -> bool:
    runners = call.local.desk.state.models.get(model, {}).values()
    return any(runner.state is RunnerState.ready for runner in runners)


# --- logs ---------------------------------------------------------------------------------------------------


async def logs(call: Call) -> Answer:
    """GET /logs: the recent past of the daemon and its runners."""
    return Answer(200, call.local.logs.history(""), "text/plain; charset=utf-8")


async def follow_logs(call: Call) -> Stream:
    """GET /logs/stream[/proxy|/upstream|/MODEL]: the past, and then what comes. `?no-history`: only that."""
    source = unquote(call.path.removeprefix("/logs/stream").strip("/"))
    if source not in ("", PROXY, UPSTREAM):
        model = call.local.catalog.resolve(source)
        if model is None:
            raise unknown_model(source, call.local.catalog)
        source = model
    headers = {"X-Content-Type-Options": "nosniff", UNBUFFERED: "no"}
    history = "no-history" not in call.query
    return Stream(call.local.logs.follow(source, history=history), headers=headers)
