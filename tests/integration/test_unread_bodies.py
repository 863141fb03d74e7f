"""Bodies that nobody reads: what a runner refuses by its head, and what comes in a coding not read here."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from tests.integration.front_door_world import Client, echo, read_request, world

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@pytest.mark.parametrize("reused", [False, True])
async def test_an_answer_to_a_body_that_is_not_read_is_the_answer(tmp_path: Path, reused: bool) -> None:
    """Servers refuse what is too large, or has no key of theirs, and close: their word goes to the client,
    and the runner has not failed."""
    refusal = b"HTTP/1.1 413 Too Much\r\nContent-Length: 5\r\n\r\nlarge"

    async def serve(peer: Client) -> None:
        for _ in range(reused):
            await read_request(peer)
            await peer.send(OK)
        await peer.until(b"\r\n\r\n")
        await peer.send(refusal)  # and closing with bytes unread resets the connection

    async with world(tmp_path) as here:
        here.desk.dispatch_to(await here.runner("r1", serve))
        client = await here.client()
        for _ in range(reused):
            assert (await client.chat()).status == 200
        answer = await client.chat(input="x" * 16_000_000)
        assert (answer.status, answer.body) == (413, b"large")
        assert [fact.complete for fact in here.desk.facts] == [True] * (1 + reused)


async def test_a_compressed_body_is_refused_by_its_name(tmp_path: Path) -> None:
    """It would be called bad JSON otherwise, of which no byte is wrong."""
    body = gzip.compress(b'{"model": "tiny"}')
    async with world(tmp_path) as here:
        for path in ("/v1/chat/completions", "/v1/messages", "/api/chat", "/v1/audio/transcriptions"):
            answer = await (await here.client()).ask("POST", path, body, "Content-Encoding: gzip")
            assert answer.status == 415 and b"Content-Encoding" in answer.body
        assert not here.desk.tickets


async def test_a_coding_that_is_none_and_one_that_is_the_runners(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        here.desk.dispatch_to(await here.runner("r1", echo()))
        client = await here.client()
        for none in ("identity", "UTF-8", ""):
            assert (await client.chat(f"Content-Encoding: {none}")).status == 200
        sent = gzip.compress(b"{}")
        answer = await client.ask("POST", "/upstream/tiny/any", sent, "Content-Encoding: gzip")
        assert b"\r\nContent-Encoding: gzip\r\n" in answer.body and answer.body.endswith(sent)
