"""The front door without a runner: its own endpoints, its errors, its limits, and hostile input."""

from __future__ import annotations

import random
import socket
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from daemon.ports import Ended
from statemachines.runner import RunnerState
from tests.integration.front_door_world import Client, FakeTicket, World, chat, echo, request, world


async def refused(here: World, data: bytes) -> tuple[int, str]:
    """What bytes on a fresh connection are answered with; then it is closed, and the next one is served."""
    client = await here.client()
    await client.send(data)
    answer = await client.answer()
    assert answer.headers["connection"] == "close"
    assert await client.closed()
    assert (await (await here.client()).ask("GET", "/health")).status == 200
    error = answer.json()["error"]
    assert error["param"] is None and error["message"]
    return answer.status, error["code"]


# --- endpoints ----------------------------------------------------------------------------------------------


async def test_local_endpoints(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        await here.runner("r1", echo())
        here.desk.state.runners["r1"].state = RunnerState.ready
        client = await here.client()
        assert (await client.ask("GET", "/health?x")).body == b"OK"
        rows = (await client.ask("GET", "/v1/models")).json()
        created = rows["data"][0]["created"]
        assert rows == {
            "object": "list",
            "data": [
                {
                    "id": "tiny", "object": "model", "created": created, "owned_by": "llama-swap",
                    "status": {"value": "unloaded"}, "meta": {"llamaswap": {"type": "model"}},
                },
                {
                    "id": "small", "object": "model", "created": created, "owned_by": "llama-swap",
                    "aliases": ["mini"], "name": "Small", "description": "The small one.",
                    "status": {"value": "unloaded"},
                    "meta": {"llamaswap": {"type": "model", "aliases": ["mini"]}},
                },
            ],
        }  # fmt: skip
        assert (await client.ask("GET", "/running")).json() == {
            "running": [
                {
                    "model": "tiny", "state": "ready", "cmd": "", "proxy": "http://127.0.0.1:5800", "ttl": 0,
                    "name": "", "description": "", "runner": "r1",
                }
            ]
        }  # fmt: skip
        head = await client.ask("HEAD", "/v1/models")
        assert head.status == 200 and int(head.headers["content-length"]) > 100
        assert (await client.ask("GET", "/health", b"ignored")).status == 200


async def test_no_such_thing(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        client = await here.client()
        answer = await client.ask("GET", "/v1/nothing")
        assert answer.status == 404 and answer.json()["error"]["code"] == "no_such_endpoint"
        for method, path, allow in (
            ("GET", "/v1/chat/completions", "POST"),
            ("POST", "/v1/models", "GET, HEAD"),
            ("OPTIONS", "/health", "GET, HEAD"),
            ("BREW", "/health", None),
        ):
            if allow:
                answer = await client.ask(method, path)
                assert answer.status == 405 and answer.headers["allow"] == allow
            else:
                assert await refused(here, request(method, path)) == (400, "malformed_request")


BODIES = [
    (b"", "invalid_json"),
    (b"{", "invalid_json"),
    (b'{"model":"tiny"} x', "invalid_json"),
    (b'{"model":"\xff"}', "invalid_json"),
    (b'{"a":' + b"[" * 100_000, "invalid_json"),
    (b"[]", "invalid_body"),
    (b'{"model":7}', "invalid_body"),
    (b"{}", "missing_model"),
    (b'{"model":""}', "missing_model"),
    (b'{"model":null}', "missing_model"),
    (b'{"x":"' + b"a" * 300_000 + b'"}', "missing_model"),
]


async def test_bad_bodies(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        client = await here.client()
        for body, code in BODIES:
            answer = await client.ask("POST", "/v1/chat/completions", body)
            error = answer.json()["error"]
            assert (answer.status, error["code"], error["type"]) == (400, code, "invalid_request_error")
        assert not here.desk.tickets


async def test_unknown_model(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        client = await here.client()
        answer = await client.chat(model="tinny")
        error = answer.json()["error"]
        assert (answer.status, error["code"]) == (404, "model_not_found")
        assert error["message"] == "The model 'tinny' is not configured. Did you mean tiny?"
        answer = await client.chat(model="x" * 10_000)
        assert answer.status == 404 and len(answer.body) < 500


async def test_the_scheduler_refuses(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        client = await here.client()

        def full(ticket: FakeTicket) -> None:
            ticket.give(Ended("request.rejected", "queue_full", "The queue is full.", 503, 7))

        here.desk.on_arrive = full
        answer = await client.chat()
        assert answer.status == 503 and answer.headers["retry-after"] == "7"
        assert answer.json()["error"] == {
            "message": "The queue is full.", "type": "server_error", "code": "queue_full", "param": None,
        }  # fmt: skip
        here.desk.blocked = True
        answer = await client.chat()
        assert answer.status == 503 and answer.headers["retry-after"] == "1"
        assert answer.json()["error"]["code"] == "log_blocked"
        assert not here.desk.gones and not here.desk.facts


# --- hostile input ------------------------------------------------------------------------------------------

POST = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"

MALFORMED = {
    "length and coding": POST + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "coding and length": POST + b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n",
    "two lengths": POST + b"Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc",
    "list of lengths": POST + b"Content-Length: 3, 3\r\n\r\nabc",
    "signed length": POST + b"Content-Length: +3\r\n\r\nabc",
    "negative length": POST + b"Content-Length: -3\r\n\r\nabc",
    "empty length": POST + b"Content-Length:\r\n\r\nabc",
    "underscored length": POST + b"Content-Length: 1_0\r\n\r\nabc",
    "huge length": POST + b"Content-Length: 99999999999999999999999\r\n\r\n",
    "folded header": POST + b"X: a\r\n b\r\n\r\n",
    "fold at once": b"GET /health HTTP/1.1\r\n X: a\r\n\r\n",
    "bare LF": b"GET /health HTTP/1.1\nHost: localhost\n\n",
    "bare LF in a header": b"GET /health HTTP/1.1\r\nHost: localhost\n\r\n",
    "bare LF at the end": b"GET /health HTTP/1.1\r\nHost: localhost\r\n\n",
    "bare CR": POST + b"X: a\rContent-Length: 3\r\n\r\n",
    "space before colon": POST + b"Content-Length : 3\r\n\r\nabc",
    "invalid name": POST + b"X(y): a\r\n\r\n",
    "empty name": POST + b": a\r\n\r\n",
    "no colon": POST + b"X\r\n\r\n",
    "NUL": POST + b"X: a\0b\r\n\r\n",
    "control character": POST + b"X: a\x01b\r\n\r\n",
    "bad chunk size": POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\nabc\r\n0\r\n\r\n",
    "chunk size with prefix": POST + b"Transfer-Encoding: chunked\r\n\r\n0x3\r\nabc\r\n0\r\n\r\n",
    "chunk size with space": POST + b"Transfer-Encoding: chunked\r\n\r\n3 \r\nabc\r\n0\r\n\r\n",
    "chunk too long": POST + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabcd\r\n0\r\n\r\n",
    "chunk with bare LF": POST + b"Transfer-Encoding: chunked\r\n\r\n3\nabc\n0\n\n",
    "huge chunk": POST + b"Transfer-Encoding: chunked\r\n\r\nfffffffffffffffffff\r\nabc",
    "chunked twice": POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "coding after chunked": POST + b"Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
    "two hosts": POST + b"Host: localhost\r\n\r\n",
    "no host": b"GET /health HTTP/1.1\r\n\r\n",
    "chunks in 1.0": POST.replace(b"1.1", b"1.0") + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "tabs": b"GET\t/health\tHTTP/1.1\r\n\r\n",
    "space in URL": b"GET /a b HTTP/1.1\r\n\r\n",
    "control in URL": b"GET /\x01 HTTP/1.1\r\n\r\n",
    "eight bits in URL": b"GET /\xff HTTP/1.1\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100),
    "HTTP/1.2": b"GET /health HTTP/1.2\r\nHost: localhost\r\n\r\n",
    "hex length": POST + b"Content-Length: 0x3\r\n\r\nabc",
    "two lengths that differ": POST + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
    "space in a length": POST + b"Content-Length: 3 3\r\n\r\nabc",
    "no coding": POST + b"Transfer-Encoding:\r\n\r\n0\r\n\r\n",
    "another coding in a line of its own": POST
    + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: gzip\r\n\r\n0\r\n\r\n",
    "coding behind a control": POST + b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
    "space before a coding's colon": POST + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    "negative chunk": POST + b"Transfer-Encoding: chunked\r\n\r\n-3\r\nabc\r\n0\r\n\r\n",
    "signed chunk": POST + b"Transfer-Encoding: chunked\r\n\r\n+3\r\nabc\r\n0\r\n\r\n",
    "chunk without a size": POST + b"Transfer-Encoding: chunked\r\n\r\n\r\nabc\r\n0\r\n\r\n",
    "chunk without an end": POST + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc0\r\n\r\n",
    "bare LF in an extension": POST + b"Transfer-Encoding: chunked\r\n\r\n3;a\nabc\r\n0\r\n\r\n",
    "bare CR in an extension": POST + b"Transfer-Encoding: chunked\r\n\r\n3;a\rb\r\nabc\r\n0\r\n\r\n",
    "CRLF in a quoted extension": POST + b'Transfer-Encoding: chunked\r\n\r\n3;a="\r\n"\r\nabc\r\n0\r\n\r\n',
    "length in a trailer": POST
    + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nContent-Length: 9\r\n\r\n",
    "folded trailer": POST + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX: a\r\n b\r\n\r\n",
    "two codings and an upgrade": POST
    + b"Connection: upgrade\r\nUpgrade: x\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n",
    "absolute URL": POST.replace(b" /", b" http://localhost/", 1) + b"Content-Length: 0\r\n\r\n",
    "authority": POST.replace(b"/v1/chat/completions", b"localhost:80") + b"Content-Length: 0\r\n\r\n",
    "fragment": POST.replace(b"completions", b"completions#x") + b"Content-Length: 0\r\n\r\n",
    "no slash": POST.replace(b"/v1", b"v1") + b"Content-Length: 0\r\n\r\n",
    "lower case": b"get /health HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "version in capitals only": b"GET /health http/1.1\r\nHost: localhost\r\n\r\n",
    "space behind the version": b"GET /health HTTP/1.1 \r\nHost: localhost\r\n\r\n",
    "eight bits in a name": POST + b"X\xe9: a\r\n\r\n",
    "PRI": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
}


@pytest.mark.parametrize("data", MALFORMED.values(), ids=MALFORMED.keys())
async def test_malformed_requests_are_refused(tmp_path: Path, data: bytes) -> None:
    async with world(tmp_path) as here:
        assert await refused(here, data) == (400, "malformed_request")
        assert not here.desk.tickets


@pytest.mark.parametrize(
    "coding",
    [
        "gzip",
        "gzip, chunked",
        "xchunked",
        "identity",
        "chunked;q=1",
        '"chunked"',
        ",chunked",
        "gzip\r\nTransfer-Encoding: chunked",
    ],
)
async def test_unknown_transfer_codings(tmp_path: Path, coding: str) -> None:
    async with world(tmp_path) as here:
        data = POST + b"Transfer-Encoding: %b\r\n\r\n0\r\n\r\n" % coding.encode()
        assert await refused(here, data) == (501, "unsupported_transfer_encoding")


@pytest.mark.parametrize("line", [b"GET /health\r\n\r\n", b"GET /health HTTP/2.0\r\nHost: localhost\r\n\r\n"])
async def test_other_versions(tmp_path: Path, line: bytes) -> None:
    async with world(tmp_path) as here:
        assert await refused(here, line) == (505, "unsupported_http_version")


async def test_sizes(tmp_path: Path) -> None:
    async with world(tmp_path, body_bytes=1000) as here:
        start = b"GET /health HTTP/1.1\r\nHost: localhost\r\n"
        assert await refused(here, start + b"X: a\r\n" * 129 + b"\r\n") == (431, "head_too_large")
        assert await refused(here, start + b"X: %b\r\n\r\n" % (b"a" * 70_000)) == (431, "head_too_large")
        assert await refused(here, b"\r\n" * 40_000) == (431, "head_too_large")
        assert await refused(here, request("GET", "/" + "a" * 9000)) == (414, "url_too_long")
        assert await refused(here, chat(x="a" * 1000)) == (413, "body_too_large")
        chunked = request("POST", "/v1/completions", None, "Transfer-Encoding: chunked")
        assert await refused(here, chunked + b"1ff\r\n%b\r\n" % (b"a" * 0x1FF) * 2) == (413, "body_too_large")


async def test_a_refusal_reaches_a_client_that_still_sends(tmp_path: Path) -> None:
    async with world(tmp_path, body_bytes=1000) as here:
        client = await here.client()
        await client.send(request("POST", "/v1/completions", None, "Content-Length: 900000"))
        await client.send(b"a" * 900_000)
        assert (await client.answer()).status == 413


async def test_bodies_held(tmp_path: Path) -> None:
    async with world(tmp_path, bodies_held_bytes=1500) as here:
        first, second = await here.client(), await here.client()
        await first.send(chat(x="a" * 1000))
        await here.desk.until(lambda: here.desk.tickets)
        await second.send(chat(x="a" * 1000))
        answer = await second.answer()
        assert answer.status == 503 and answer.headers["retry-after"] == "1"
        assert answer.json()["error"]["code"] == "bodies_held"
        await first.stream.aclose()
        await here.desk.until(lambda: here.desk.gones)
        third = await here.client()
        await third.send(chat(x="a" * 1000))
        await here.desk.until(lambda: len(here.desk.tickets) == 2)


async def test_fuzz(tmp_path: Path) -> None:
    """Mutated requests, in random pieces: each connection ends or goes on, and the door stays open."""
    rng = random.Random(20)
    seeds = [chat(), chat("Connection: close"), *MALFORMED.values(), request("GET", "/v1/models")]
    async with world(tmp_path, head_s=0.05, body_s=0.05, idle_s=0.05, linger_s=0.05, tick_s=0.01) as here:
        here.desk.dispatch_to(await here.runner("r1", echo()))

        async def attack(data: bytes) -> None:
            client = await here.client()
            try:
                while data:
                    size = rng.randint(1, len(data))
                    await client.send(data[:size])
                    data = data[size:]
                await client.to_the_end()
            except trio.BrokenResourceError:
                pass
            await client.stream.aclose()

        async with trio.open_nursery() as nursery:
            for _ in range(400):
                data = bytearray(rng.choice(seeds)[:2000])
                for _ in range(rng.randint(1, 6)):
                    at = rng.randrange(len(data))
                    what = rng.random()
                    if what < 0.4:
                        data[at] = rng.randrange(256)
                    elif what < 0.7:
                        data[at:at] = rng.choice((b"\r\n", b" ", b"\0", b":", b"0", b"chunked", b","))
                    else:
                        del data[at : at + rng.randint(1, 8)]
                    data = data or bytearray(b"x")
                nursery.start_soon(attack, bytes(data))
        assert (await (await here.client()).ask("GET", "/health")).status == 200
        assert len([fact for fact in here.desk.facts if fact.sent]) <= len(here.desk.tickets)


# --- hosts --------------------------------------------------------------------------------------------------


async def test_hosts(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        client = await here.client()
        for host in (
            "localhost",
            "LOCALHOST:8080",
            "127.0.0.1:1",
            "[::1]",
            "[::1]:80",
            "box.example.",
            "localhost",
            "192.168.1.7:8080",
            "[fd00::2]:80",
            socket.gethostname(),
            "host.docker.internal:8080",
        ):
            assert (await client.ask("GET", "/health", None, f"Host: {host}")).status == 200, host
        for host in (
            "evil.example",
            "localhost.evil.example",
            "127.0.0.1.evil",
            "localhost:80:evil",
            "[::2",
            "[::1]evil",
            "::1]:80",
            "127.0.0.1, evil",
            "a@b",
        ):
            answer = await client.ask("GET", "/health", None, f"Host: {host}")
            assert answer.status == 403 and answer.json()["error"]["code"] == "host_not_allowed", host
        await client.send(b"GET /health HTTP/1.0\r\n\r\n")
        assert (await client.answer()).status == 200


async def test_a_unix_socket_takes_any_host(tmp_path: Path) -> None:
    async with world(tmp_path, unix=True) as here:
        here.desk.dispatch_to(await here.runner("r1", echo()))
        client = Client(await trio.open_unix_socket(tmp_path / "front.sock"))
        assert (await client.chat("Host: whatever")).status == 200
        assert here.desk.tickets[0].arrival.caller == "unix"
        await client.stream.aclose()


# --- connections --------------------------------------------------------------------------------------------


async def test_100_continue(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        here.desk.dispatch_to(await here.runner("r1", echo()))
        client = await here.client()
        head, _, body = chat("Expect: 100-continue").partition(b"\r\n\r\n")
        await client.send(head + b"\r\n\r\n")
        assert await client.until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        await client.send(body)
        answer = await client.answer()
        assert answer.status == 200 and b"Expect" not in answer.body
        await client.send(request("POST", "/v1/nothing", None, "Expect: 100-continue", "Content-Length: 5"))
        assert (await client.answer()).status == 404


async def test_pipelined_in_one_piece(tmp_path: Path) -> None:
    """The first is answered, and told that the connection closes: the client sends the second again."""
    async with world(tmp_path) as here:
        here.desk.dispatch_to(await here.runner("r1", echo()))
        client = await here.client()
        await client.send(chat(n=1) + chat(n=2))
        answer = await client.answer()
        assert b'"n":1' in answer.body and b'"n":2' not in answer.body
        assert answer.headers["connection"] == "close"
        assert await client.closed()
        assert len(here.desk.tickets) == 1


async def test_pipelined_while_the_first_runs(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        client = await here.client()
        await client.send(chat(n=1))
        await here.desk.until(lambda: here.desk.tickets)
        await client.send(request("GET", "/health"))
        here.desk.tickets[0].give(Ended("request.rejected", "queue_full", "Full.", 503))
        assert (await client.answer()).status == 503
        assert (await client.answer()).body == b"OK"


async def test_an_offered_upgrade_is_ignored(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        here.desk.dispatch_to(await here.runner("r1", echo()))
        client = await here.client()
        offer = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABk")
        for _ in range(2):
            answer = await client.chat(*offer)
            assert answer.status == 200
            assert answer.body.endswith(b'{"model":"tiny"}') and b"h2c" not in answer.body
        assert (await client.ask("GET", "/health", None, *offer)).body == b"OK"
        await client.send(b"CONNECT localhost:1 HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert (await client.answer()).status == 400
        assert await client.closed()


async def test_http_1_0(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        here.desk.dispatch_to(await here.runner("r1", echo()))
        client = await here.client()
        old = chat("Connection: keep-alive").replace(b"HTTP/1.1", b"HTTP/1.0")
        await client.send(old)
        assert (await client.answer()).headers["connection"] == "keep-alive"
        await client.send(old.replace(b"keep-alive", b"close"))
        assert (await client.answer()).headers["connection"] == "close"
        assert await client.closed()


async def test_late_clients(tmp_path: Path) -> None:
    async with world(tmp_path, head_s=0.05, body_s=0.05, idle_s=0.05, tick_s=0.01) as here:
        assert await (await here.client()).closed(), "idle: nothing to say"
        for part in (b"GET /hea", chat()[:-3]):
            client = await here.client()
            await client.send(part)
            answer = await client.answer()
            assert answer.status == 408 and answer.json()["error"]["code"] == "request_timeout"
            assert await client.closed()
        assert not here.desk.tickets


async def test_slow_clients(tmp_path: Path) -> None:
    """A byte now and then is not enough: head, body and chunks each have a time by which they are whole."""
    chunked = request("POST", "/v1/completions", None, "Transfer-Encoding: chunked")
    limits = dict[str, Any](head_s=0.1, body_s=0.1, body_total_s=0.2, idle_s=5.0, tick_s=0.01)
    async with world(tmp_path, **limits) as here:
        for start, drip in (
            (b"GET /health HTTP/1.1\r\n", b"X-A: b\r\n"),
            (request("POST", "/v1/completions", None, "Content-Length: 1000"), b"a"),
            (chunked, b"1\r\na\r\n"),
            (chunked + b"1;", b"a"),
            (chunked + b"0\r\n", b"X: a\r\n"),
        ):
            client = await here.client()
            began = trio.current_time()
            await client.send(start)
            with suppress(trio.BrokenResourceError):
                while trio.current_time() < began + 5:
                    await trio.testing.wait_all_tasks_blocked(0.005)
                    await client.send(drip)
            assert trio.current_time() < began + 5, start
        assert not here.desk.tickets and here.door.connections <= 1


async def test_a_client_that_leaves_in_its_request(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        for part in (b"", b"GET /hea", chat()[:-3]):
            client = await here.client()
            await client.send(part)
            client.stream.socket.shutdown(socket.SHUT_WR)
            assert await client.closed()
        assert not here.desk.tickets and not here.desk.gones


async def test_too_many_connections(tmp_path: Path) -> None:
    async with world(tmp_path, connections=2) as here:
        first, second = await here.client(), await here.client()
        assert (
            (await first.ask("GET", "/health")).status == (await second.ask("GET", "/health")).status == 200
        )
        third = await here.client()
        assert (await third.answer()).status == 503
        await first.stream.aclose()
        while here.door.connections == 2:
            await trio.lowlevel.checkpoint()
        assert (await (await here.client()).ask("GET", "/health")).status == 200


async def test_who_says_nothing_is_asked_for_a_sign_of_life(tmp_path: Path) -> None:
    """One whose machine is gone never closes its connection: only the kernel can find out."""
    async with world(tmp_path) as here:
        here.desk.dispatch_to(await here.runner("r1", echo()))
        await (await here.client()).chat()
        [connection] = here.door._connections
        [upstream] = here.door._shared.pools._pools["r1"]._idle
        for sock in (connection._wire.sock, upstream.sock):
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            probes = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT)
            apart_s = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL)
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) + probes * apart_s == 150


# --- leaving ------------------------------------------------------------------------------------------------


async def test_who_comes_in_at_the_moment_of_a_pause_is_served_once(tmp_path: Path) -> None:
    """The task that accepts may have been woken already: it is cancelled only where it waits next."""
    async with world(tmp_path) as here, trio.open_nursery() as nursery:
        here.door.pause()
        ours, theirs = socket.socketpair()
        here.door._admit(theirs, nursery)
        client = Client(trio.SocketStream(trio.socket.from_stdlib_socket(ours)))
        assert (await client.ask("GET", "/health")).status == 200
        assert await client.closed()
        assert not here.door.expecting
