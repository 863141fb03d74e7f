"""GET /api/events: the log, event by event, and beside it what llama-swap's own clients look for there.

Both go over one stream. The log's events have names of their own, so a page that listens for messages gets
none of them; llama-swap's messages are all named "message", as an event without a name is. Who asks with
`?after` gets the log alone.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from typing import Any

import msgspec
import trio

from daemon.http.answers import UNBUFFERED, Stream
from daemon.http.calls import Call, Local
from daemon.http.llamaswap import STATES
from daemon.http.refusals import Refused
from daemon.limits import EVENTS_BEAT_S, LOG_FOLLOW_S
from daemon.logs import PROXY, UPSTREAM
from daemon.ports import Control, ModelRow
from events.envelope import Record
from events.limits import MS, S
from events.reader import CursorPruned
from statemachines.parts import Request
from statemachines.request import RequestState
from statemachines.state import State

STOPPED = "stopped"
"""llama-swap's word for a model without a runner."""

FOREMOST = ("ready", "starting", "stopping")
"""Of several runners of a model, the one in the first of these states says how it is."""


async def events(call: Call) -> Stream:
    """GET /api/events: every event of the log from now on, or after `?after=SEQ` (or Last-Event-ID), as
    server-sent events without a gap; the id of each is its number. A browser that connects again asks for the
    URL that it asked for first, and adds the header: so that goes first."""
    desk = call.local.desk
    asked = call.header("last-event-id") or call.query.get("after", "")
    head = desk.state.seq
    if asked and not (asked.isascii() and asked.isdigit() and len(asked) < 20):
        raise Refused(400, "invalid_cursor", f"An event's number was expected, not {asked[:40]!r}.")
    after = int(asked) if asked else head
    if after > head:
        raise Refused(410, "cursor_lost", f"The log ends at event {head}: it is not the one of that number.")
    records = desk.watch(after, follow=False)
    try:
        first = await anext(records, None)
    except CursorPruned as pruned:
        raise Refused(410, "cursor_pruned", f"{pruned}.") from None
    headers = {"Cache-Control": "no-store", UNBUFFERED: "no"}
    messages = None if "after" in call.query else Messages(call.local)
    return Stream(_events(desk, first, records, after, messages), "text/event-stream", headers)


async def _events(
    desk: Control, first: Record | None, records: AsyncIterator[Record], after: int, messages: Messages | None
) -> AsyncIterator[bytes]:
    yield b": the log, event by event\n\n" + (_event(first) if first is not None else b"")
    after = first.seq if first is not None else after
    pause_s = EVENTS_BEAT_S if messages is None else LOG_FOLLOW_S
    said = trio.current_time()
    while True:
        async for record in records:
            yield _event(record)
            after, said = record.seq, trio.current_time()
        if messages is not None and (news := messages.news()):
            yield news
            said = trio.current_time()
        with trio.move_on_after(pause_s) as pause:
            await desk.durable(after + 1)
            records = desk.watch(after, follow=False)
        if pause.cancelled_caught and trio.current_time() - said >= EVENTS_BEAT_S:
            yield b": nothing new\n\n"
            said = trio.current_time()


def _event(record: Record) -> bytes:
    data = msgspec.json.encode(
        {
            "seq": record.seq,
            "at_ns": record.at,
            "type": record.type,
            "cause": record.cause,
            "subject": record.subject,
            "payload": msgspec.Raw(record.payload.encode()),
        }
    )
    return b"id: %d\nevent: %b\ndata: %b\n\n" % (record.seq, record.type.encode(), data)


class Messages:
    """What llama-swap tells its clients: models and their states, requests, the profile, logs. All of it
    first, then what has changed, once every LOG_FOLLOW_S at most: these are states to be shown, no record."""

    def __init__(self, local: Local) -> None:
        self._local = local
        self._logs = {source: local.logs.follower(source) for source in (PROXY, UPSTREAM)}
        self._due = -1.0
        self._seq = -1
        """Of the last event when the state was looked at."""
        self._told: dict[str, bytes] = {}
        self._requests: dict[str, Request] | None = None
        """Those that were told of."""

    def news(self) -> bytes:
        """The messages that are due now."""
        now = trio.current_time()
        if now < self._due:
            return b""
        first, self._due = self._due < 0, now + LOG_FOLLOW_S
        told = [_message("logData", said) for said in self._said(first=first)]
        state = self._local.desk.state
        if state.seq != self._seq:
            self._seq = state.seq
            told += self._changed("modelStatus", _models(self._local))
            told += self._changed("profileChanged", {"active": self._local.catalog.profile or None})
            told += [_message("inflight", change) for change in self._inflight()]
        return b"".join(told)

    def _said(self, *, first: bool) -> Iterator[dict[str, str]]:
        for source, follower in self._logs.items():
            said = self._local.logs.history(source) if first else follower.news()
            if said or first:
                yield {"source": source, "data": said.decode("utf-8", "replace")}

    def _changed(self, kind: str, value: Any) -> list[bytes]:
        message = _message(kind, value)
        if self._told.get(kind) == message:
            return []
        self._told[kind] = message
        return [message]

    def _inflight(self) -> Iterator[dict[str, Any]]:
        desk = self._local.desk
        here = {
            id: request
            for id, request in desk.state.requests.items()
            if request.state in (RequestState.queued, RequestState.dispatched)
        }
        before, self._requests = self._requests, here
        if before is None:
            rows = [_request(request, desk.now()) for request in here.values()]
            yield {"operation": "snapshot", "requests": rows}
            return
        for id in (id for id in before if id not in here):
            yield {"operation": "remove", "id": id}
        for id, request in here.items():
            if id not in before:
                yield {"operation": "upsert", "request": _request(request, desk.now())}


def _message(kind: str, value: Any) -> bytes:
    """As llama-swap writes it: JSON that holds JSON as text."""
    text = msgspec.json.encode({"type": kind, "data": msgspec.json.encode(value).decode()})
    return b"event:message\ndata:%b\n\n" % text


def _models(local: Local) -> list[dict[str, Any]]:
    """Every model, also those that are not listed, and behind them those of peers; no aliases."""
    catalog, states = local.catalog, _states(local.desk.state)
    listed = catalog.models()
    shown = {row.id for row in listed}
    hidden = [row for name in catalog.names() if name not in shown and (row := catalog.row(name))]
    mine = [row for row in (*listed, *hidden) if not (row.alias_of or row.kind)]
    rows = [_model(row, states.get(row.id, STOPPED), unlisted=row.id not in shown) for row in mine]
    return rows + [_model(row, "", unlisted=False) for row in listed if row.peer]


def _states(state: State) -> dict[str, str]:
    """llama-swap's word for the state of each model that has a runner."""
    found: dict[str, str] = {}
    for runner in state.runners.values():
        word = STATES.get(runner.state)
        if word is not None:
            found[runner.model] = min(found.get(runner.model, word), word, key=FOREMOST.index)
    return found


def _model(row: ModelRow, state: str, *, unlisted: bool) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "id": row.id,
        "name": row.name,
        "description": row.description,
        "state": state,
        "unlisted": unlisted,
        "peerID": row.peer,
    }
    if row.aliases:
        shown["aliases"] = list(row.aliases)
    return shown | {name: row.more[name] for name in ("capabilities", "context_length") if name in row.more}


def _request(request: Request, now: int) -> dict[str, Any]:
    """A request as llama-swap shows it. Headers and counts are not kept; of the path, what kind it is."""
    age_ns = now - request.arrived_t
    return {
        "id": request.id,
        "timestamp": datetime.fromtimestamp(time.time() - age_ns / S, UTC).isoformat(),
        "model": request.model,
        "req_path": request.kind,
        "method": "",
        "req_headers": {},
        "remote_ip": request.caller,
        "resp_headers": {},
        "resp_bytes": 0,
        "elapsed_ms": max(0, age_ns // MS),
    }
