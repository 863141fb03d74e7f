"""Smuggling: a runner sees one request for one, and a client one answer, whatever the other side sends."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
import trio.testing

from tests.integration.front_door_world import Client, chat, echo, once, read_request, request, world

POST = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
SSE = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"

# --- requests -----------------------------------------------------------------------------------------------


async def test_trailers_and_extensions_end(tmp_path: Path) -> None:
    """Neither is kept, but what has no end would cost memory, or go on for ever."""
    chunked = request("POST", "/v1/completions", None, "Transfer-Encoding: chunked")
    async with world(tmp_path) as here:
        for endless in (b"3\r\nabc\r\n0\r\nX: " + b"a" * 200_000, b"3;" + b"a" * 200_000):
            client = await here.client()
            await client.send(chunked)
            await client.send(endless)
            answer = await client.answer()
            assert (answer.status, answer.json()["error"]["code"]) == (431, "trailers_too_large")


async def test_what_reaches_a_runner_is_one_request(tmp_path: Path) -> None:
    """Shapes that pass: each arrives in our own framing, without what others might read differently."""
    inner = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}"
    body = b'{"model": "tiny", "x": "%b"}' % inner.replace(b"\r\n", b"\\r\\n")
    sized = b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
    chunks = b'Transfer-Encoding: chunked\r\n\r\n0%x;a=b;c="d"\r\n%b\r\n0\r\nHost: evil\r\n\r\n' % (
        len(body),
        body,
    )
    shapes = [
        POST + sized,
        POST + chunks,
        POST + b"Connection: close, content-length, host\r\n" + sized,
        POST + b"Connection: transfer-encoding\r\n" + chunks,
        POST + b"Transfer_Encoding: chunked\r\ncontent_length: 3\r\n" + sized,
        POST + b"Content-Length: 000%d\r\n\r\n%b" % (len(body), body),
        POST + b"Connection: upgrade\r\nUpgrade: x\r\n" + sized,
        POST + b"Connection: upgrade\r\nUpgrade: x\r\n" + chunks,
        POST + sized + inner,
        POST + chunks + inner,
        POST + b"Connection: upgrade\r\nUpgrade: x\r\n" + sized + inner,
        POST + b"Connection: close\r\n" + sized + inner,
        b"\n\r\n" + POST + sized,
        POST.replace(b"1.1", b"1.0") + sized + inner,
        POST.replace(b"HTTP/1.1", b"RTSP/1.0") + sized,
    ]
    got: list[tuple[bytes, bytes]] = []

    async def serve(peer: Client) -> None:
        while True:
            got.append(await read_request(peer))
            await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    async with world(tmp_path) as here:
        here.desk.dispatch_to(await here.runner("r1", serve))
        for number, shape in enumerate(shapes, start=1):
            client = await here.client()
            await client.send(shape)
            assert (await client.answer()).body == b"ok", shape
            await client.stream.aclose()
            assert len(got) == number == len(here.desk.tickets), shape
            head, sent = got[-1]
            lines = head.lower().split(b"\r\n")
            assert sent == body
            assert [line for line in lines if b"content" in line] == [b"content-length: %d" % len(body)]
            assert b"encoding" not in head.lower() and b"evil" not in head and b"upgrade" not in head.lower()


async def test_a_tunnel_is_asked_for_in_due_form(tmp_path: Path) -> None:
    """A proxy before us that does not know of it would take what follows for answers."""
    async with world(tmp_path) as here:
        here.desk.dispatch_to(await here.runner("r1", echo()))
        client = await here.client()
        for lines in (("Upgrade: websocket",), ("Upgrade: websocket", "Connection: keep-alive")):
            answer = await client.ask("GET", "/upstream/tiny/ws", None, *lines)
            assert answer.status == 200 and b"pgrade" not in answer.body
        old = request("GET", "/upstream/tiny/ws", None, "Upgrade: websocket", "Connection: Upgrade")
        await client.send(old.replace(b"GET", b"POST"))
        answer = await client.answer()
        assert answer.status == 200 and b"pgrade" not in answer.body


async def test_many_names_in_connection(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        here.desk.dispatch_to(await here.runner("r1", echo()))
        lines = [f"X-{number}: a" for number in range(100)]
        names = ", ".join(f"x-{number}" for number in range(5000))
        answer = await (await here.client()).chat(*lines, f"Connection: {names}", "Y: 1")
        assert answer.status == 200 and b"X-" not in answer.body and b"\r\nY: 1\r\n" in answer.body


# --- answers ------------------------------------------------------------------------------------------------

BAD_ANSWERS = [
    b"",
    b"HTTP/1.1 200 OK\r\nContent-",
    b"nonsense\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
    b"HTTP/1.1 200 OK\r\nX: " + b"a" * 70_000,
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    SSE.replace(b"chunked", b"xchunked") + b"2\r\nok\r\n0\r\n\r\n",
    SSE.replace(b"chunked", b"gzip, chunked") + b"2\r\nok\r\n0\r\n\r\n",
    SSE.replace(b"chunked", b"chunked, gzip") + b"2\r\nok\r\n0\r\n\r\n",
    SSE.replace(b"chunked", b"chunked\r\nTransfer-Encoding: chunked") + b"2\r\nok\r\n0\r\n\r\n",
    SSE.replace(b"HTTP/1.1", b"HTTP/1.0") + b"2\r\nok\r\n0\r\n\r\n",
    SSE + b"2\r\nok\r\n0\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil",
    b"HTTP/1.1 000 OK\r\nContent-Length: 2\r\n\r\nok",
    b"HTTP/1.1 100 Continue\r\n\r\n" * 4000,
    b"HTTP/1.1 200 OK\nContent-Length: 2\r\n\r\nok",
    b"HTTP/1.1 200 OK\r\nX: a\r\n b\r\nContent-Length: 2\r\n\r\nok",
    b"HTTP/1.1 200 OK\r\nX: a\rContent-Length: 2\r\n\r\nok",
]


@pytest.mark.parametrize("bad", BAD_ANSWERS, ids=range(len(BAD_ANSWERS)))
async def test_no_answer_is_an_error_in_full(tmp_path: Path, bad: bytes) -> None:
    async with world(tmp_path) as here:
        here.desk.dispatch_to(await here.runner("r1", once(bad)))
        client = await here.client()
        answer = await client.chat()
        assert answer.status == 502 and answer.json()["error"]["code"] == "upstream_failed"
        [fact] = here.desk.facts
        assert not fact.complete and fact.bytes_to_client == 0 and fact.error
        assert (await client.ask("GET", "/health")).status == 200, "the client's connection lives on"


ODD_ANSWERS = [
    b"\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
    b"\n" + OK,
    OK.replace(b"HTTP/1.1", b"HTTP/1.0"),
    OK.replace(b"HTTP/1.1", b"HTTP/2.0"),
    OK.replace(b"HTTP/1.1", b"RTSP/1.0"),
    OK.replace(b"200 OK", b"200 O\x01\0K"),
    OK.replace(b"200 OK", b"200"),
    OK.replace(b"\r\n", b"\r\nConnection: close, content-length\r\n", 1),
    OK.replace(b"Content-Length", b"Connection: content-length\r\nCONTENT-LENGTH"),
    OK + OK.replace(b"ok", b"xx"),
    OK + b"\r\n",
    OK + b"\0nonsense",
    b"HTTP/1.1 103 Early Hints\r\nConnection: content-length\r\nX: 1\r\n\r\n\r\n" + OK,
    b"HTTP/1.1 100 Continue\r\nTransfer-Encoding: chunked\r\n\r\n" + OK,
]


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("odd", ODD_ANSWERS, ids=range(len(ODD_ANSWERS)))
async def test_odd_answers_are_one_plain_answer(tmp_path: Path, odd: bytes, split: bool) -> None:
    """A client gets exactly one, and never a byte of what stands before or behind it."""

    async def serve(peer: Client) -> None:
        while True:
            await read_request(peer)
            for at in range(0, len(odd), 1 if split else len(odd)):
                await peer.send(odd[at : at + (1 if split else len(odd))])
                await trio.testing.wait_all_tasks_blocked()

    async with world(tmp_path) as here:
        here.desk.dispatch_to(await here.runner("r1", serve))
        client = await here.client()
        await client.send(chat())
        head = await client.until(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n"), head
        assert b"X: 1" not in head and await client.exactly(2) == b"ok"
        await here.desk.until(lambda: here.desk.facts)
        assert here.desk.facts[0].complete
        await client.send(request("GET", "/health"))
        rest = await client.more()
        assert not client.rest and (rest == b"" or rest.startswith(b"HTTP/1.1 200 OK\r\nDate: "))


@pytest.mark.parametrize("status", ["204 No Content", "304 Not Modified"])
async def test_an_answer_without_a_body_has_none(tmp_path: Path, status: str) -> None:
    bare = b"HTTP/1.1 %b\r\nContent-Length: 2\r\n\r\nok" % status.encode()
    async with world(tmp_path) as here:
        here.desk.dispatch_to(await here.runner("r1", once(bare)))
        client = await here.client()
        await client.send(chat())
        assert (await client.head()).headers == {"connection": "close", "x-runnerd-request": "q1"}
        assert await client.closed()


async def test_trailers_of_a_runner_end(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        endless = SSE + b"3\r\none\r\n" + b"0\r\nX: " + b"a" * 200_000
        here.desk.dispatch_to(await here.runner("r1", once(endless)))
        client = await here.client()
        await client.send(chat(stream=True))
        await client.until(b"3\r\none\r\n")
        await here.desk.until(lambda: here.desk.facts)
        assert "trailers exceed" in here.desk.facts[0].error
