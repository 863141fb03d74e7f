"""A mistake in what serves a request costs one connection: it is told, counted, and gives everything back."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from daemon.http.relay import Exchange
from events.envelope import LogError
from tests.integration.front_door_world import Client, chat, echo, once, world

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
HALF = b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf"


class Mistake(Exception):
    """Nobody has thought of it."""


def blunder(*_: object, **__: object) -> Any:
    raise Mistake("unthought of")


async def test_where_it_is_answered_here(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world(tmp_path) as here:
        here.desk.dispatch_to(await here.runner("r1", echo()))
        client, other = await here.client(), await here.client()
        assert (await other.chat()).status == 200
        monkeypatch.setattr(here.catalog, "models", blunder)
        with caplog.at_level(logging.ERROR):
            answer = await client.ask("GET", "/v1/models")
        assert (answer.status, answer.json()["error"]["code"]) == (500, "internal_error")
        assert answer.headers["connection"] == "close"
        assert await client.closed()
        assert "Mistake: unthought of" in caplog.text
        assert here.door.mistakes == 1
        assert (await other.chat()).status == 200
        assert (await (await here.client()).chat()).status == 200


async def test_in_ollama_s_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with world(tmp_path) as here:
        monkeypatch.setattr(here.catalog, "models", blunder)
        answer = await (await here.client()).ask("GET", "/api/tags")
        assert (answer.status, answer.json()) == (500, {"error": answer.json()["error"]})


@pytest.mark.parametrize(
    "error", [Mistake("x"), LogError("the event log is closed"), OSError(9, "not a client's")]
)
async def test_where_it_is_scheduled(tmp_path: Path, error: Exception) -> None:
    def arrive(_: object) -> None:
        raise error

    async with world(tmp_path) as here:
        here.desk.on_arrive = arrive
        client = await here.client()
        await client.send(chat())
        if isinstance(error, OSError):  # as if the client had gone: nothing is told, and nothing counted
            assert await client.closed()
        else:
            assert (await client.answer()).status == 500
        assert here.door.mistakes == (not isinstance(error, OSError))
        assert here.door.connections == 0


@pytest.mark.interpreted
async def test_before_an_answer_has_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with world(tmp_path) as here:
        here.desk.dispatch_to(await here.runner("r1", once(OK, OK)))
        client = await here.client()
        with monkeypatch.context() as patch:
            patch.setattr(Exchange, "_answer_head", blunder)
            assert (await client.chat()).status == 500
        assert await client.closed()
        [fact] = here.desk.facts
        assert (fact.request, fact.complete, fact.sent, fact.bytes_to_client) == ("q1", False, True, 0)
        assert fact.error == "runnerd has made a mistake: Mistake"
        assert here.desk.told == ["gone", "ended"]
        assert (await (await here.client()).chat()).status == 200


@pytest.mark.interpreted
async def test_in_the_middle_of_an_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What has begun just ends: no second answer is put into it."""
    async with world(tmp_path) as here:
        here.desk.dispatch_to(await here.runner("r1", once(HALF)))
        monkeypatch.setattr(Exchange, "_relay_rest", blunder)
        client = await here.client()
        await client.send(chat())
        assert (await client.head()).status == 200
        assert await rest(client) == b"half"
        [fact] = here.desk.facts
        assert not fact.complete and fact.bytes_to_client
        assert here.door.mistakes == 1


async def test_in_what_ends_an_exchange(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client has its whole answer by then."""
    async with world(tmp_path) as here:
        here.desk.dispatch_to(await here.runner("r1", once(OK)))
        monkeypatch.setattr(here.desk, "ended", blunder)
        client = await here.client()
        assert (await client.chat()).body == b"ok"
        assert await rest(client) == b""
        assert here.door.mistakes == 1


async def rest(client: Client) -> bytes:
    """What comes until the connection ends, properly or not."""
    try:
        return await client.to_the_end()
    except OSError:
        return client.rest
