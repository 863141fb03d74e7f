"""GET /api/events: the log without a gap, and llama-swap's messages beside it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import trio

from daemon.ports import ModelRow, Output
from events.envelope import Record
from events.reader import CursorPruned
from statemachines.parts import Request
from statemachines.request import RequestState
from statemachines.runner import RunnerState
from tests.integration.front_door_world import Client, FakeCatalog, World, echo, request, world


class Log:
    """A desk's log, as `watch` and `durable` show it."""

    def __init__(self, here: World, count: int) -> None:
        self.count = count
        self.grown = trio.Event()
        here.desk.watch, here.desk.durable = self.watch, self.durable  # type: ignore[method-assign]
        here.desk.state.seq = count

    async def watch(self, after_seq: int, *, follow: bool) -> AsyncIterator[Record]:
        if after_seq < 2:
            raise CursorPruned("the log begins at event 3")
        for seq in range(after_seq + 1, self.count + 1):
            yield Record(seq, 5, 6, "request.arrived", 1, 0, f"q{seq}", '{"model":"tiny"}', b"")

    async def durable(self, seq: int) -> None:
        while self.count < seq:
            await self.grown.wait()

    def grow(self) -> None:
        self.count += 1
        self.grown.set()
        self.grown = trio.Event()


async def test_events_come_without_a_gap(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        log = Log(here, 5)
        for sent in (
            request("GET", "/api/events?after=3"),
            request("GET", "/api/events", None, "Last-Event-ID: 3"),
            request("GET", "/api/events?after=2", None, "Last-Event-ID: 3"),  # a browser, once more
        ):
            client = await here.client()
            await client.send(sent)
            assert (await client.head()).headers["content-type"] == "text/event-stream"
            begun = await client.until(b"id: 4\nevent: request.arrived\ndata: {")
            assert begun.count(b"event: ") == 1, "it is the first"
            await client.until(b'"payload":{"model":"tiny"}}\n\n')
            await client.until(b"id: 5\n")
            log.grow()
            await client.until(b"id: 6\n")
            log.count = 5


async def test_cursors_that_cannot_be_kept(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        Log(here, 5)
        client = await here.client()
        for cursor, status, code in (
            ("1", 410, "cursor_pruned"),
            ("6", 410, "cursor_lost"),
            ("-1", 400, "invalid_cursor"),
            ("x", 400, "invalid_cursor"),
            ("9" * 30, 400, "invalid_cursor"),
        ):
            answer = await client.ask("GET", f"/api/events?after={cursor}")
            assert (answer.status, answer.json()["error"]["code"]) == (status, code)


# --- llama-swap's messages ----------------------------------------------------------------------------------


async def message(client: Client, kind: str) -> Any:
    """What the next message of a kind holds."""
    while True:
        await client.until(b"event:message\ndata:")
        told = msgspec.json.decode(await client.until(b"\n\n"))
        if told["type"] == kind:
            return msgspec.json.decode(told["data"])


def asking(here: World, id: str, state: RequestState) -> None:
    """A request, which arrived two seconds ago."""
    here.desk.state.t = 7_000_000_000
    here.desk.state.requests[id] = Request(
        id, 7, "tiny", "", "chat", {}, 5_000_000_000, 0, None, "10.0.0.7", state
    )


async def test_llama_swap_s_messages_come_beside_the_log(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        log, output = Log(here, 5), tmp_path / "r1.log"
        output.write_text("loading tensors\n")
        here.outputs = [Output("tiny", "r1", output)]
        await here.runner("r1", echo())
        asking(here, "q7", RequestState.queued)
        asking(here, "q6", RequestState.completed)
        client = await here.client()
        await client.send(request("GET", "/api/events"))
        assert await message(client, "logData") == {"source": "proxy", "data": ""}
        assert await message(client, "logData") == {
            "source": "upstream",
            "data": "loading tensors\n",
        }
        tiny = {"id": "tiny", "name": "", "description": "", "unlisted": False, "peerID": ""}
        small = {
            "id": "small", "name": "Small", "description": "The small one.", "state": "stopped",
            "unlisted": False, "peerID": "", "aliases": ["mini"],
        }  # fmt: skip
        assert await message(client, "modelStatus") == [tiny | {"state": "starting"}, small]
        assert await message(client, "profileChanged") == {"active": None}
        snapshot = await message(client, "inflight")
        [asked] = snapshot.pop("requests")
        assert snapshot == {"operation": "snapshot"}
        assert asked.pop("timestamp").endswith("+00:00")
        assert asked == {
            "id": "q7", "model": "tiny", "req_path": "chat", "method": "", "req_headers": {},
            "remote_ip": "10.0.0.7", "resp_headers": {}, "resp_bytes": 0, "elapsed_ms": 2000,
        }  # fmt: skip

        with output.open("a") as file:
            file.write("ready\n")
        assert await message(client, "logData") == {"source": "upstream", "data": "ready\n"}

        here.desk.state.runners["r1"].state = RunnerState.ready
        asking(here, "q7", RequestState.completed)
        asking(here, "q8", RequestState.dispatched)
        here.catalog.profile = "day"
        here.desk.state.seq += 1
        log.grow()
        await client.until(b"id: 6\nevent: request.arrived\n")
        assert await message(client, "modelStatus") == [tiny | {"state": "ready"}, small]
        assert await message(client, "profileChanged") == {"active": "day"}
        assert await message(client, "inflight") == {"operation": "remove", "id": "q7"}
        found = await message(client, "inflight")
        assert (found["operation"], found["request"]["id"]) == ("upsert", "q8")


async def test_who_asks_for_the_log_from_somewhere_gets_it_alone(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        log = Log(here, 5)
        for cursor in ("3", ""):
            client = await here.client()
            await client.send(request("GET", f"/api/events?after={cursor}"))
            await client.until(b"the log, event by event\n\n")
            log.grow()
            told = await client.until(b"id: 6\n")
            assert b"event:message" not in told and (b"id: 4\n" in told) is (cursor == "3")
            log.count = 5


class Several(FakeCatalog):
    """One model is not listed; a selector, and a peer's model, are."""

    def models(self) -> list[ModelRow]:
        return [
            ModelRow(
                "tiny", more={"capabilities": {"vision": True}, "context_length": 4096, "architecture": {}}
            ),
            ModelRow("best", kind={"type": "selector"}),
            ModelRow("hub/far", peer="hub", kind={"type": "peer", "peerID": "hub"}),
        ]


async def test_models_that_are_not_listed_and_those_of_peers(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        here.catalog.__class__ = Several
        Log(here, 5)
        for name, state in (
            ("r1", RunnerState.draining),
            ("r2", RunnerState.ready),
            ("r3", RunnerState.loading),
        ):
            await here.runner(name, echo())
            here.desk.state.runners[name].state = state
        client = await here.client()
        await client.send(request("GET", "/api/events"))
        rows = await message(client, "modelStatus")
        assert [(row["id"], row["state"], row["unlisted"], row["peerID"]) for row in rows] == [
            ("tiny", "ready", False, ""),
            ("small", "stopped", True, ""),
            ("hub/far", "", False, "hub"),
        ]
        assert rows[0]["capabilities"] == {"vision": True} and rows[0]["context_length"] == 4096
        assert "x" not in rows[0]
