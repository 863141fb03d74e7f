"""Ollama's endpoints. To follow one request, read `chat` and `_ask`."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar

import msgspec

from daemon.http.answers import JSON, Answer, json
from daemon.http.asked import keep_alive_ns, launch_options
from daemon.http.calls import Ask, Call, Translation
from daemon.http.refusals import Refused
from daemon.limits import OLLAMA_KEEP_ALIVE_NS
from daemon.ollama import models, names, options, requests, said
from daemon.ollama.asked import Chat, Common, Embed, Embeddings, Generate, Pull, Show, read
from daemon.ollama.loaded import Loaded
from daemon.ollama.replies import NDJSON, TextReply
from daemon.ollama.requests import Work
from daemon.ollama.vectors import VectorReply
from daemon.ollama.wrong import elsewhere, no_model, wrong
from daemon.ports import LogBlocked
from daemon.version import VERSION
from events.catalogue import Option, UnloadRequested
from statemachines.runner import RunnerState

OLLAMA = "0.32.15"
"""The version of Ollama whose API this is: clients ask for it to know what they may use."""

INSTEAD = {
    "pull": "Models are not pulled here: put the file on the machine and the model into the configuration",
    "push": "Models are not pushed from here: they are files, copy them",
    "create": "Models are not created here: put the model into the configuration",
    "copy": "Models are not copied here: give the model an alias in the configuration",
    "delete": "Models are not deleted here: take the model out of the configuration",
    "blobs": "Nothing can be uploaded here: put the file on the machine and the model into the configuration",
}
"""What to do instead of what a server does whose models come from a library."""

PULLED = (b'{"status":"pulling manifest"}', b'{"status":"success"}')
"""What Ollama says of a pull with nothing to fetch."""

R = TypeVar("R", bound=Common)


async def root(call: Call) -> Answer:
    """GET /. Clients look for these words."""
    return Answer(200, b"Ollama is running", "text/plain; charset=utf-8")


async def version(call: Call) -> Answer:
    """GET /api/version."""
    return json({"version": OLLAMA, "runnerd": VERSION})


async def tags(call: Call) -> Answer:
    """GET /api/tags."""
    local = call.local
    return json({"models": models.tags(local.desk.state, local.catalog, local.started_s)})


async def ps(call: Call) -> Answer:
    """GET /api/ps."""
    desk = call.local.desk
    return json({"models": models.ps(desk.state, call.local.catalog, desk.now(), time.time_ns())})


async def show(call: Call) -> Answer:
    """POST /api/show."""
    asked = await call.look(partial(read, shape=Show))
    local = call.local
    id, _ = _resolve(call, asked.model or asked.name or "")
    return json(models.show(local.desk.state, local.catalog, id, local.started_s))


async def chat(call: Call) -> Answer | Ask:
    """POST /api/chat."""
    return await _work(call, Chat, requests.chat)


async def generate(call: Call) -> Answer | Ask:
    """POST /api/generate."""
    return await _work(call, Generate, requests.generate)


async def embed(call: Call) -> Answer | Ask:
    """POST /api/embed."""
    return await _work(call, Embed, requests.embed)


async def embeddings(call: Call) -> Answer | Ask:
    """POST /api/embeddings."""
    return await _work(call, Embeddings, requests.embeddings)


async def pull(call: Call) -> Answer:
    """POST /api/pull. Many programs pull what they want before they use it: what there is, is there."""
    asked = await call.look(partial(read, shape=Pull))
    try:
        _resolve(call, asked.model or asked.name or "")
    except Refused as refused:
        if refused.refusal.status == 404:
            return await instead(call)
        raise
    if asked.stream is False:
        return Answer(200, PULLED[-1], JSON.decode())
    return Answer(200, b"\n".join(PULLED) + b"\n", NDJSON.decode())


async def instead(call: Call) -> Answer:
    """What a library of models would have."""
    what = call.path.removeprefix("/api/").partition("/")[0]
    raise Refused(501, "not_supported", f"{INSTEAD[what]}. GET /api/tags lists the models that there are.")


# --- requests for a model's work ---------------------------------------------------------------------------


async def _work(call: Call, shape: type[R], translate: Callable[[R], Work]) -> Answer | Ask:
    """Read, resolve, and ask; without anything to do, load or unload."""
    request, work = await call.look(partial(_understood, shape=shape, translate=translate))
    id, name = _resolve(call, requests.named(request))
    keep = None if request.keep_alive is None else keep_alive_ns(request.keep_alive)
    if not work.target and work.reply in TEXT and keep == 0:
        return await _unload(call, id, request, work)
    return await _ask(call, id, name, request, work, keep)


def _understood(body: Any, *, shape: type[R], translate: Callable[[R], Work]) -> tuple[R, Work]:
    request = read(body, shape)
    return request, translate(request)


def _resolve(call: Call, name: str) -> tuple[str, str]:
    """The model's id, and the configuration's name for it that was meant. Raises Refused."""
    catalog = call.local.catalog
    if not name:
        raise wrong("model is required")
    for spelled in names.spellings(name, catalog.names):
        found = names.configured(spelled, lambda each: catalog.resolve(catalog.target(each)) is not None)
        target = catalog.target(found)
        id = catalog.resolve(target) if found else None
        if id is not None:
            return id, target
        if names.configured(spelled, lambda each: catalog.peer(catalog.target(each)) is not None):
            raise elsewhere(name)
    raise no_model(name)


async def _ask(call: Call, id: str, name: str, request: Common, work: Work, keep: int | None) -> Ask:
    """The request to a runner. Raises Refused."""
    catalog = call.local.catalog
    declared, given = catalog.launch_options(id), request.options or {}
    fixed: Mapping[str, Option] = launch_options(
        msgspec.json.encode({"options": options.launch(given, declared)}), declared
    )
    body = {"model": id, **work.body}
    if work.reply in TEXT:
        body |= options.sampling(given, declared)
    return Ask(
        model=id,
        kind=work.kind,
        name=name,
        options=catalog.bounded(id, fixed),
        keep_alive_ns=keep,
        keep_alive_else_ns=None if catalog.card(id).keep_alive_given else OLLAMA_KEEP_ALIVE_NS,
        target=work.target,
        body=await call.look(lambda _: msgspec.json.encode(body)),
        translation=_translation(requests.named(request), work),
        only_load=not work.target,
    )


TEXT = ("chat", "generate")


def _translation(model: str, work: Work) -> Translation:
    """What becomes of the answer; `model` is named in it as the client did."""
    if not work.target:
        return Loaded(work.reply, model)
    if work.reply in TEXT:
        return TextReply(work.reply, model, streamed=work.streamed, top_logprobs=work.top_logprobs)
    return VectorReply(model, many=work.reply == "embed", dimensions=work.dimensions)


async def _unload(call: Call, id: str, request: Common, work: Work) -> Answer:
    """Let the model's runners go once they have done what they are doing. Raises LogBlocked."""
    desk = call.local.desk
    if desk.log_blocked:
        raise LogBlocked(f"the event log cannot be written: {desk.log_blocked}")
    ready = [r.id for r in desk.state.models.get(id, {}).values() if r.state is RunnerState.ready]
    for runner in ready:
        events = desk.submit(UnloadRequested(runner=runner, by=f"http {call.caller}", gently=True))
        await desk.durable(events[-1].seq)
    return Answer(200, said.nothing(work.reply, requests.named(request), "unload"), "application/json")
