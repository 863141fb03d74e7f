"""Ollama's API through the front door, byte by byte: what a model server is sent, when its words go on."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
import trio
from msgspec.structs import replace

from daemon.config.filters import Filters
from daemon.ports import PeerModel
from events.catalogue import NEVER, UnloadRequested
from events.limits import HTTP_BODY_MEMORY_BYTES, S
from statemachines.parts import Runner
from statemachines.runner import RunnerState
from tests.integration.front_door_world import FAILED, Client, read_request, request, world

STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
MESSAGES = [{"role": "user", "content": "Hello"}]


def post(path: str, **members: Any) -> bytes:
    body = json.dumps({"model": "tiny", **members}).encode()
    return request("POST", path, body, "Content-Type: application/x-www-form-urlencoded")


def event(**members: Any) -> bytes:
    data = b"data: " + json.dumps(members).encode() + b"\n\n"
    return b"%x\r\n%b\r\n" % (len(data), data)


def words(text: str, finish: str | None = None) -> bytes:
    return event(choices=[{"delta": {"content": text}, "finish_reason": finish}])


def whole(status: int, **members: Any) -> bytes:
    body = json.dumps(members).encode()
    head = f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


ANSWER = whole(200, choices=[{"message": {"content": "Hi"}, "finish_reason": "stop"}])
VECTORS = whole(200, data=[{"index": 0, "embedding": [1, 2]}])


async def one_chunk(client: Client) -> bytes:
    size = int(await client.until(b"\r\n"), 16)
    return (await client.exactly(size + 2))[:-2]


async def test_what_a_model_server_is_asked(tmp_path: Path) -> None:
    got: list[tuple[bytes, Any]] = []

    async def serve(peer: Client) -> None:
        while True:
            head, body = await read_request(peer)
            got.append((head, json.loads(body)))
            await peer.send(VECTORS if b"embeddings" in head else ANSWER)

    async with world(tmp_path) as here:
        here.desk.dispatch_to(await here.runner("r1", serve))
        client = await here.client()
        options = {"num_ctx": 512, "temperature": 0.5, "num_predict": 9, "unknown": 1}
        await client.send(
            post("/api/chat", messages=MESSAGES, options=options, stream=False, keep_alive="1m")
        )
        answer = await client.answer()
        assert answer.headers["content-type"] == "application/json; charset=utf-8"
        assert "content-length" in answer.headers and answer.headers["x-runnerd-request"] == "q1"
        assert answer.json()["message"] == {"role": "assistant", "content": "Hi"}
        head, body = got[0]
        assert head.startswith(b"POST /v1/chat/completions HTTP/1.1\r\n")
        assert b"\r\nContent-Type: application/json\r\n" in head
        assert body == {
            "model": "tiny", "messages": MESSAGES, "stream": False, "temperature": 0.5, "max_tokens": 9,
        }  # fmt: skip
        arrival = here.desk.tickets[0].arrival
        assert (arrival.kind, arrival.options, arrival.keep_alive_ns) == ("chat", {"num_ctx": 512}, 60 * S)
        for path, members in (
            ("/api/generate", {"prompt": "a", "stream": False, "keep_alive": -1}),
            ("/api/embed", {"input": "a", "model": "mini:latest"}),
            ("/api/embeddings", {"prompt": "a"}),
        ):
            await client.send(post(path, **members))
            assert (await client.answer()).status == 200
        arrivals = [ticket.arrival for ticket in here.desk.tickets[1:]]
        kinds = [(each.kind, each.keep_alive_ns, each.keep_alive_else_ns) for each in arrivals]
        # Without a word of its own, five minutes, unless the configuration or another request has said so.
        assert kinds == [
            ("completion", NEVER, 300 * S), ("embedding", None, None), ("embedding", None, 300 * S),
        ]  # fmt: skip
        assert [body["model"] for _, body in got] == ["tiny", "tiny", "small", "tiny"]


async def test_names_filters_and_peers_of_the_configuration(tmp_path: Path) -> None:
    got: list[Any] = []

    async def serve(peer: Client) -> None:
        while True:
            got.append(json.loads((await read_request(peer))[1]))
            await peer.send(ANSWER)

    async with world(tmp_path) as here:
        here.desk.dispatch_to(await here.runner("r1", serve))
        here.catalog.filtered = {"mini": Filters(("temperature",), {"max_tokens": 3})}
        here.catalog.peers = {"far": PeerModel("p", "http://far.example", "far")}
        client = await here.client()
        options = {"temperature": 1, "num_predict": 9}
        for name in ("any:latest", "mini", "small"):
            await client.send(post("/api/chat", model=name, messages=MESSAGES, options=options, stream=False))
            answer = (await client.answer()).json()
            assert answer["model"] == name
        assert [body["max_tokens"] for body in got] == [3, 3, 9]
        assert [("temperature" in body, body["model"]) for body in got] == [
            (False, "small"), (False, "small"), (True, "small"),
        ]  # fmt: skip
        for name in ("far", "far:latest"):
            await client.send(post("/api/chat", model=name, messages=MESSAGES))
            answer = await client.answer()
            assert answer.status == 501 and "below /v1" in answer.json()["error"]


async def test_each_word_goes_on_at_once(tmp_path: Path) -> None:
    async def serve(peer: Client) -> None:
        await read_request(peer)
        await peer.send(STREAM + words("a"))
        await heard.wait()
        await peer.send(words("b", "stop") + b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")
        await peer.to_the_end()

    async with world(tmp_path) as here:
        heard = trio.Event()
        here.desk.dispatch_to(await here.runner("r1", serve))
        client = await here.client()
        await client.send(post("/api/chat", messages=MESSAGES))
        head = await client.head()
        assert head.headers["content-type"] == "application/x-ndjson"
        assert json.loads(await one_chunk(client))["message"]["content"] == "a"
        heard.set()
        rest = [
            json.loads(line) for line in (await client.until(b"0\r\n\r\n")).splitlines() if line[:1] == b"{"
        ]
        assert [line["done"] for line in rest] == [False, True]
        await here.desk.until(lambda: here.desk.facts)
        assert here.desk.facts[0].complete


async def test_large_bodies_are_looked_at_elsewhere(tmp_path: Path) -> None:
    picture = base64.b64encode(b"\x89PNG" + bytes(HTTP_BODY_MEMORY_BYTES)).decode()
    got: list[Any] = []

    async def serve(peer: Client) -> None:
        got.append(json.loads((await read_request(peer))[1]))
        await peer.send(ANSWER)

    async with world(tmp_path) as here:
        address = await here.runner("r1", serve)
        here.desk.dispatch_to(replace(address, model_name="other"))
        client = await here.client()
        messages = [{"role": "user", "content": "What is it?", "images": [picture]}]
        tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
        await client.send(post("/api/chat", messages=messages, stream=False, tools=tools))
        assert (await client.answer()).status == 200
        [body] = got
        assert (body["model"], body["tools"]) == ("other", tools)
        url = body["messages"][0]["content"][1]["image_url"]["url"]
        assert url == f"data:image/png;base64,{picture}"


@pytest.mark.parametrize("sent", [STREAM + words("a"), STREAM + words("a") + b"9\r\ndata: {\n\n\r\n"])
async def test_what_breaks_off_ends_with_an_error(tmp_path: Path, sent: bytes) -> None:
    async def serve(peer: Client) -> None:
        await read_request(peer)
        await peer.send(sent)

    async with world(tmp_path) as here:
        here.desk.dispatch_to(await here.runner("r1", serve))
        client = await here.client()
        await client.send(post("/api/generate", prompt="a"))
        lines = [json.loads(line) for line in (await client.answer()).body.splitlines()]
        assert lines[0]["response"] == "a" and list(lines[-1]) == ["error"]
        await here.desk.until(lambda: here.desk.facts)
        assert not here.desk.facts[0].complete


async def test_a_server_that_fails_unseen_is_tried_again(tmp_path: Path) -> None:
    async def bad(peer: Client) -> None:
        await read_request(peer)
        await peer.send(whole(200, nothing=1)[:-1])

    async def good(peer: Client) -> None:
        await read_request(peer)
        await peer.send(ANSWER)

    async with world(tmp_path) as here:
        here.desk.dispatch_to(await here.runner("r1", bad), await here.runner("r2", good))
        client = await here.client()
        await client.send(post("/api/chat", messages=MESSAGES, stream=False))
        assert (await client.answer()).json()["message"]["content"] == "Hi"
        here.desk.dispatch_to(await here.runner("r3", bad))
        await client.send(post("/api/chat", messages=MESSAGES, stream=False))
        answer = await client.answer()
        assert (answer.status, answer.json()) == (FAILED.status, {"error": FAILED.message})


@pytest.mark.parametrize("stream", [True, False])
async def test_what_a_well_server_says_strangely_is_not_tried_again(tmp_path: Path, stream: bool) -> None:
    async def serve(peer: Client) -> None:
        await read_request(peer)
        await peer.send(whole(200, nothing=1))

    async with world(tmp_path) as here:
        here.desk.dispatch_to(await here.runner("r1", serve))
        client = await here.client()
        await client.send(post("/api/chat", messages=MESSAGES, stream=stream))
        answer = await client.answer()
        assert answer.status == 502
        (said,) = answer.json().values()
        assert said.startswith("the model server failed: its answer is not as expected: ")
        await here.desk.until(lambda: here.desk.facts)
        assert here.desk.facts[0].complete and "not as expected" in here.desk.facts[0].error


async def test_a_model_servers_error(tmp_path: Path) -> None:
    async def serve(peer: Client) -> None:
        await read_request(peer)
        await peer.send(whole(400, error={"code": 400, "message": "too long", "type": "x"}))

    async with world(tmp_path) as here:
        here.desk.dispatch_to(await here.runner("r1", serve))
        client = await here.client()
        await client.send(post("/api/chat", messages=MESSAGES))
        answer = await client.answer()
        assert (answer.status, answer.json()) == (400, {"error": "too long"})
        await here.desk.until(lambda: here.desk.facts)
        assert (here.desk.facts[0].complete, here.desk.facts[0].status) == (True, 400)


async def test_to_load_a_model_asks_its_server_nothing(tmp_path: Path) -> None:
    async def serve(peer: Client) -> None:
        raise AssertionError("it was connected to")

    async with world(tmp_path) as here:
        here.desk.dispatch_to(await here.runner("r1", serve))
        client = await here.client()
        for path, members in (
            ("/api/chat", {"keep_alive": 5, "options": {"num_ctx": 99}}),
            ("/api/chat", {"messages": []}),
            ("/api/generate", {"prompt": "", "stream": False}),
        ):
            await client.send(post(path, **members))
            answer = await client.answer()
            assert (answer.status, answer.json()["done_reason"]) == (200, "load")
        await client.send(post("/api/embed", input=[]))
        assert (await client.answer()).json() == {"model": "tiny", "embeddings": []}
        await client.send(post("/api/embeddings", prompt="", keep_alive=0))
        assert (await client.answer()).json() == {"embedding": []}
        first, *_, last = [ticket.arrival for ticket in here.desk.tickets]
        assert (first.options, first.keep_alive_ns, last.keep_alive_ns) == ({"num_ctx": 99}, 5 * S, 0)
        assert all(fact.complete and fact.status == 200 and fact.sent for fact in here.desk.facts)
        assert len(here.desk.facts) == 5


def runner(id: str, state: RunnerState) -> Runner:
    made = Runner(id, "tiny", "d", {}, {}, 1, NEVER, 1, 5800, False, False, 0)
    made.state = state
    return made


async def test_an_unload_is_gentle(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        client = await here.client()
        await client.send(post("/api/generate", keep_alive=0))
        assert (await client.answer()).json()["done_reason"] == "unload"
        assert here.desk.operations == [], "nothing is loaded"
        states = (RunnerState.ready, RunnerState.loading, RunnerState.draining, RunnerState.ready)
        here.desk.state.models["tiny"] = {f"r{i}": runner(f"r{i}", each) for i, each in enumerate(states)}
        await client.send(post("/api/chat", keep_alive="0"))
        assert (await client.answer()).json()["message"] == {"role": "assistant", "content": ""}
        by = "http 127.0.0.1"
        assert here.desk.operations == [UnloadRequested(runner=id, by=by, gently=True) for id in ("r0", "r3")]
        here.desk.log_blocked = "the disk is full"
        await client.send(post("/api/chat", keep_alive=0))
        answer = await client.answer()
        assert answer.status == 503 and "the disk is full" in answer.json()["error"]
