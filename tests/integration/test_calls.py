"""Handlers: what they make of a call, what a translation makes of a runner's answer, errors in dialects."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from daemon.http import dialects, routes
from daemon.http.answers import Answer, Stream, json
from daemon.http.calls import Ask, Call
from daemon.http.refusals import Refused
from daemon.http.routes import Route
from tests.integration.front_door_world import FAILED, Client, chat, read_request, request, world

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
WHOLE = HEAD + b"Content-Length: 6\r\n\r\nabcdef"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"


class Capitals:
    """A translation that can be told from the original."""

    def __init__(self, *, whole: bool = False) -> None:
        self.whole = whole
        self.kept = b""
        self.attempts = 0

    def began(self) -> None:
        self.attempts += 1

    def head(self, status: int, content_type: bytes) -> tuple[int, bytes]:
        self.kept = b""
        assert content_type == b"text/event-stream"
        return status, b"text/capitals"

    def feed(self, piece: bytes) -> bytes:
        if b"?" in piece:
            raise ValueError("a question")
        if not self.whole:
            return piece.upper()
        self.kept += piece.upper()
        return b""

    def end(self) -> bytes:
        return self.kept + b"."

    def broken(self, message: str) -> bytes:
        return b"BROKEN: " + message.encode()


@pytest.fixture
def translation(monkeypatch: pytest.MonkeyPatch) -> Capitals:
    """The translation of requests to /capitals."""
    made = Capitals()

    async def handle(call: Call) -> Ask:
        return Ask("tiny", "chat", target=b"/runner/path", body=b'{"b": 1}', translation=made)

    monkeypatch.setitem(routes.ROUTES, b"/capitals", Route(routes.POST, handle, dialect=dialects.ollama))
    return made


def capitals(*headers: str) -> bytes:
    """A request for them."""
    return request("POST", "/capitals", b"{}", *headers)


async def asked(here_client: Client, sent: bytes) -> tuple[int, dict[str, str], bytes]:
    await here_client.send(sent)
    answer = await here_client.answer()
    return answer.status, answer.headers, answer.body


async def test_a_translation_asks_and_answers(tmp_path: Path, translation: Capitals) -> None:
    got: list[tuple[bytes, bytes]] = []

    async def serve(peer: Client) -> None:
        got.append(await read_request(peer))
        await peer.send(CHUNKED + b"3\r\nabc\r\n")
        got.append((b"", b""))
        await peer.send(b"3\r\ndef\r\n0\r\n\r\n")
        await peer.to_the_end()

    async with world(tmp_path) as here:
        here.desk.dispatch_to(await here.runner("r1", serve))
        headers = ("Content-Type: application/x-www-form-urlencoded", "Accept-Encoding: gzip", "X-A: 1")
        status, head, body = await asked(await here.client(), capitals(*headers))
        assert (status, body) == (200, b"ABCDEF.")
        assert head["content-type"] == "text/capitals"
        assert head["x-runnerd-request"] == "q1"
        sent, sent_body = got[0]
        assert sent.startswith(b"POST /runner/path HTTP/1.1\r\n")
        assert b"\r\nContent-Type: application/json\r\n" in sent and b"gzip" not in sent
        assert b"\r\nX-A: 1\r\n" in sent
        assert sent_body == b'{"b": 1}'
        await here.desk.until(lambda: here.desk.facts)
        assert here.desk.facts[0].complete


async def test_what_ends_before_anything_was_sent_has_a_length(tmp_path: Path, translation: Capitals) -> None:
    translation.whole = True

    async def serve(peer: Client) -> None:
        while True:
            await read_request(peer)
            await peer.send(WHOLE)

    async with world(tmp_path) as here:
        here.desk.dispatch_to(await here.runner("r1", serve))
        client = await here.client()
        for _ in range(2):
            _, head, body = await asked(client, capitals())
            assert (head["content-length"], body) == ("7", b"ABCDEF.")
        old = await here.client()
        await old.send(capitals().replace(b"HTTP/1.1", b"HTTP/1.0"))
        assert (await old.answer()).body == b"ABCDEF."


async def test_an_old_client_gets_no_chunks(tmp_path: Path, translation: Capitals) -> None:
    async def serve(peer: Client) -> None:
        await read_request(peer)
        await peer.send(WHOLE)

    async with world(tmp_path) as here:
        here.desk.dispatch_to(await here.runner("r1", serve))
        client = await here.client()
        await client.send(capitals().replace(b"HTTP/1.1", b"HTTP/1.0"))
        head = await client.head()
        assert "transfer-encoding" not in head.headers and head.headers["connection"] == "close"
        assert await client.to_the_end() == b"ABCDEF."


@pytest.mark.parametrize("rest", [b"", b"3\r\na?b\r\n"])
async def test_an_answer_that_breaks_off_ends_with_last_words(
    tmp_path: Path, translation: Capitals, rest: bytes
) -> None:
    async def serve(peer: Client) -> None:
        await read_request(peer)
        await peer.send(CHUNKED + b"3\r\nabc\r\n")
        await go.wait()
        await peer.send(rest)

    async with world(tmp_path) as here:
        go = trio.Event()
        here.desk.dispatch_to(await here.runner("r1", serve))
        client = await here.client()
        await client.send(capitals())
        await client.until(b"ABC")
        go.set()
        said = await client.until(b"0\r\n\r\n")
        assert b"BROKEN: the model server failed: " in said
        assert (b"its answer is not as expected: a question" if rest else b"it closed") in said
        await here.desk.until(lambda: here.desk.facts)
        # What it says may be strange, and it is well all the same: no cause to ask for its health.
        assert here.desk.facts[0].complete is bool(rest)


async def test_a_failure_before_anything_was_sent_is_tried_again(
    tmp_path: Path, translation: Capitals
) -> None:
    translation.whole = True

    async def cut(peer: Client) -> None:
        await read_request(peer)
        await peer.send(CHUNKED + b"3\r\nabc\r\n")

    async def serve(peer: Client) -> None:
        await read_request(peer)
        await peer.send(WHOLE)

    async with world(tmp_path) as here:
        here.desk.dispatch_to(await here.runner("r1", cut), await here.runner("r2", serve))
        status, _, body = await asked(await here.client(), capitals())
        assert (status, body, translation.attempts) == (200, b"ABCDEF.", 2)


async def test_errors_are_in_the_dialect_of_the_endpoint(tmp_path: Path, translation: Capitals) -> None:
    async with world(tmp_path) as here:
        here.desk.on_arrive = lambda ticket: ticket.give(FAILED)
        client = await here.client()
        assert (await client.ask("POST", "/capitals", b"{}")).json() == {"error": "The runner failed."}
        assert (await client.ask("GET", "/capitals")).json()["error"].startswith("GET is not allowed")
        assert isinstance((await client.ask("GET", "/api/none")).json()["error"], str)
        anthropic = (await client.ask("GET", "/v1/messages/none")).json()
        assert anthropic["type"] == "error" and anthropic["error"]["type"] == "not_found_error"
        assert (await client.ask("GET", "/v1/none")).json()["error"]["code"] == "no_such_endpoint"
        await client.send(chat())
        assert (await client.answer()).json()["error"]["code"] == "upstream_failed"


async def test_a_stream_ends_with_its_client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = trio.Event()

    async def pieces() -> AsyncIterator[bytes]:
        try:
            yield b"one"
            yield b""
            await trio.sleep_forever()
        finally:
            ended.set()

    async def handle(call: Call) -> Stream:
        return Stream(pieces())

    monkeypatch.setitem(routes.BELOW, b"/stream/", Route(routes.GET, handle))
    async with world(tmp_path) as here:
        client = await here.client()
        await client.send(request("GET", "/stream/x"))
        assert (await client.head()).headers["transfer-encoding"] == "chunked"
        await client.until(b"one")
        await client.stream.aclose()
        await ended.wait()


async def test_a_handler_sees_the_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def handle(call: Call) -> Answer:
        if call.method == "PATCH":
            raise Refused(418, "teapot", "No.")
        return json([call.method, call.path, call.query, call.header("x-a"), bytes(call.body).decode()])

    monkeypatch.setitem(routes.ROUTES, b"/any", Route((), handle))
    async with world(tmp_path) as here:
        client = await here.client()
        answer = await client.ask("PUT", "/any?a=1&b=x%20y&a=2&c", b"body", "X-A:  yes ")
        assert answer.json() == ["PUT", "/any", {"a": "2", "b": "x y", "c": ""}, "yes", "body"]
        assert (await client.ask("PATCH", "/any")).status == 418
