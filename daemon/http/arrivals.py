"""What a relayed request asks for: who serves it, with which launch options, and how it is relayed."""

from __future__ import annotations

import os
from functools import partial
from urllib.parse import quote, unquote_plus

import msgspec
import trio

from daemon.config.filters import apply
from daemon.endings import is_local
from daemon.http import asked, forms
from daemon.http.calls import Ask, Call
from daemon.http.loading import AsItComes
from daemon.http.refusals import Refused, unknown_model
from daemon.http.relay import AS_COMES
from daemon.http.routes import Route
from daemon.limits import FILE_LOOK_S
from daemon.ports import PeerModel
from events.catalogue import Option, RequestArrived

LATE: dict[str, None] = {}
"""Files at which a look has not come back: another would hang, too, with one more of the few threads."""


class ToPeer(msgspec.Struct, frozen=True):
    """A request for a model of another server: not for the scheduler, and not for the log."""

    peer: PeerModel
    ask: Ask


async def read(call: Call, route: Route, priority: int) -> tuple[RequestArrived, Ask] | ToPeer:
    """The fact, and how the request is relayed. Raises Refused."""
    if route.names == "query" and call.method == "POST":
        route = msgspec.structs.replace(route, names="body")
    is_json = route.names == "body"
    if is_json:
        look, body = asked.model_and_keep_alive, call.body
        name, keep_alive_ns = look(body) if isinstance(body, bytes) else await call.look(look)
        ask = AS_COMES
    else:
        (name, ask), keep_alive_ns = await _named_elsewhere(call, route), None
    catalog = call.local.catalog
    target, served = name, catalog.direct(name)
    if served is None:
        target = catalog.target(name)
        served = catalog.served(target)
        if target != name and served is not None:
            ask = await _renamed(call, route, ask, target)
        if (served is None or served.filters is not None) and is_json and await filtered(call, target):
            _, keep_alive_ns = await call.look(look)
    if route.strip:
        ask = Ask("", "", target=call.url[len(route.strip) :])
    if served is None:
        peer = catalog.peer(target)
        if peer is None:
            raise unknown_model(name, catalog)
        if route.names == "query" and name != peer.model:
            ask = await _renamed(call, route, ask, peer.model)
        return ToPeer(peer, ask)
    if route.looks:
        ask = msgspec.structs.replace(ask, beside=call.answering(served.model))
    if served.tells_loading and ask is AS_COMES and route.kind == "chat" and await call.look(asked.streams):
        ask = Ask("", "", translation=AsItComes(), tells=True)
    options: dict[str, Option] = {}
    if served.options and is_json:
        options = await call.look(asked.launch_options, served.options)
        if options:
            options = catalog.bounded(served.model, options)
    return RequestArrived(
        model=served.model,
        kind=route.kind,
        options=options,
        priority=priority,
        keep_alive_ns=keep_alive_ns,
        caller=call.caller,
    ), ask


async def check_file(path: str, arrival: RequestArrived) -> None:
    """Refuse a request for a model whose file is still not there: its load would make room first, of all that
    there is where nothing is known of its memory, and fail then. A caller on this machine is told which file.
    Raises Refused."""
    if path in LATE:
        return
    there = True  # a file system that hangs says nothing else
    with trio.move_on_after(FILE_LOOK_S) as scope:
        there = await trio.to_thread.run_sync(_is_there, path, abandon_on_cancel=True)
    if scope.cancelled_caught:
        LATE[path] = None
    if not there:
        file = path if is_local(arrival.caller) else "its file"
        text = f"model '{arrival.model}' failed to load: {file} is not there"
        raise Refused(502, "load_failed", text, {"X-Should-Retry": "false"})


def _is_there(path: str) -> bool:
    """Runs in a thread."""
    there = os.path.exists(path)
    LATE.pop(path, None)
    return there


async def _renamed(call: Call, route: Route, ask: Ask, name: str) -> Ask:
    """Name another model where the request does."""
    if route.names == "query":
        return msgspec.structs.replace(ask, target=query_renamed(call.url, name))
    if ask.renamed is not None:
        await call.rename(ask.renamed, name)
    return ask


def query_renamed(url: bytes, name: str) -> bytes:
    """The path and the query with another `model` in it; the other parameters as they were."""
    path, _, query = url.partition(b"?")
    value = quote(name, safe="").encode()
    parts = [(part, unquote_plus(part.partition(b"=")[0].decode("latin-1"))) for part in query.split(b"&")]
    return path + b"?" + b"&".join(b"model=" + value if key == "model" else part for part, key in parts)


async def filtered(call: Call, target: str) -> bool:
    """Put the body through the filters of the model's, by the name that is asked for. Whether it has any."""
    filters = call.local.catalog.filters(target)
    if filters is None:
        return False
    await call.change_body(partial(apply, filters))
    return True


async def _named_elsewhere(call: Call, route: Route) -> tuple[str, Ask]:
    """The model of a request that is no JSON, and how it is relayed. Raises Refused."""
    if route.names == "query":
        name = call.query.get("model", "")
        if not name:
            raise Refused(400, "missing_model", "The model is named by a parameter: ?model=NAME.")
        return name, Ask("", "", renamed=None)
    kind = call.header("content-type")
    return await call.look(forms.model, kind), Ask("", "", renamed=partial(forms.renamed_in, kind))
