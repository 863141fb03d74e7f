"""`sendLoadingState`: who waits for a stream is told so in it, and gets the rest in the same answer."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
import pytest
import trio

from daemon.http import loading
from daemon.ports import Address, Dispatched
from tests.integration.front_door_world import FAILED, Client, World, chat, read_request, world

SSE = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
FAILURE = b'{"error":\n {"code": 5}}'
NO = b"HTTP/1.1 500 No\r\nContent-Type: application/json\r\nContent-Length: 23\r\n\r\n"
REST = b'12\r\ndata: {"a": "b"}\n\n\r\ne\r\ndata: [DONE]\n\n\r\n0\r\n\r\n'


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Words come at once."""
    monkeypatch.setattr(loading, "LOADING_FIRST_S", 0)
    monkeypatch.setattr(loading, "LOADING_BEAT_S", 0.01)


def answers(answer: bytes) -> Callable[[Client], Awaitable[None]]:
    """A runner that gives one answer."""

    async def serve(peer: Client) -> None:
        head, _ = await read_request(peer)
        assert b"gzip" not in head
        await peer.send(answer)
        await peer.to_the_end()

    return serve


async def waiting(here: World) -> Client:
    """A client that has been told something, and waits."""
    client = await here.client()
    await client.send(chat("Accept-Encoding: gzip", model="mini", stream=True))
    head = await client.head()
    assert (head.status, head.headers["content-type"]) == (200, "text/event-stream")
    assert head.headers["x-runnerd-request"] == "q1" and head.headers["x-accel-buffering"] == "no"
    first = await client.until(b"\n\n")
    chunk = msgspec.json.decode(first.partition(b"data: ")[2])
    assert chunk["object"] == "chat.completion.chunk" and chunk["model"] == "small"
    assert chunk["choices"][0]["delta"]["reasoning_content"].strip()
    assert (
        "role" not in chunk["choices"][0]["delta"]
    )  # OpenAI's stream helper would make it assistantassistant
    return client


async def test_words_and_then_the_stream(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        runner = await here.runner("r1", answers(SSE + REST))
        client = await waiting(here)
        await client.until(b"reasoning_content")
        here.desk.tickets[0].give(Dispatched(runner, 1))
        said = await client.until(b"data: [DONE]\n\n\r\n0\r\n\r\n")
        assert b"small is ready." in said and b'data: {"a": "b"}\n\n' in said
        await here.desk.until(lambda: here.desk.facts)
        assert here.desk.facts[0].complete
        assert (await client.ask("GET", "/health")).status == 200  # the connection is still good


@pytest.mark.parametrize(
    "answer",
    [
        NO + FAILURE,
        SSE + b"3\r\nabc\r\nxyz",
    ],
)
async def test_a_runners_failure_is_an_event(tmp_path: Path, answer: bytes) -> None:
    async with world(tmp_path) as here:
        runner = await here.runner("r1", answers(answer))
        client = await waiting(here)
        here.desk.tickets[0].give(Dispatched(runner, 1))
        said = await client.until(b"0\r\n\r\n")
        assert b'data: {"error":' in said


async def test_a_request_that_ends_is_an_event(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        client = await waiting(here)
        here.desk.tickets[0].give(FAILED)
        said = await client.until(b"0\r\n\r\n")
        assert b'data: {"error":{"message":"The runner failed."' in said


async def test_a_runner_that_fails_unseen_is_tried_again(tmp_path: Path) -> None:
    async def cut(peer: Client) -> None:
        await read_request(peer)

    async with world(tmp_path) as here:
        first, second = await here.runner("r1", cut), await here.runner("r2", answers(SSE + REST))
        here.desk.retry = [Dispatched(second, 2)]
        client = await waiting(here)
        here.desk.tickets[0].give(Dispatched(first, 1))
        assert b"[DONE]" in await client.until(b"0\r\n\r\n")


async def test_a_client_that_leaves_is_missed(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        client = await waiting(here)
        await client.stream.aclose()
        await here.desk.until(lambda: here.desk.gones)


async def test_nobody_is_told_anything_who_need_not_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "LOADING_FIRST_S", 5)
    async with world(tmp_path) as here:
        runner = await here.runner("r1", answers(SSE + REST))
        here.desk.dispatch_to(Address(runner.runner, runner.url))
        client = await here.client()
        await client.send(chat(model="mini", stream=True))
        assert (await client.answer()).body == b'data: {"a": "b"}\n\ndata: [DONE]\n\n'


@pytest.mark.parametrize("members", [{"model": "mini"}, {"model": "tiny", "stream": True}])
async def test_nobody_is_told_anything_elsewhere(tmp_path: Path, members: dict[str, object]) -> None:
    async with world(tmp_path) as here:
        client = await here.client()
        await client.send(chat(**members))
        with trio.move_on_after(0.1) as silence:
            await client.more()
        assert silence.cancelled_caught
        here.desk.tickets[0].give(FAILED)
        assert (await client.answer()).status == 502
