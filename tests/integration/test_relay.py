"""The relay: what goes to the runner, what comes back, and what the desk is told when either side fails."""

from __future__ import annotations

import random
import socket
from contextlib import suppress
from pathlib import Path

import msgspec
import pytest
import trio
import trio.testing

from daemon.ports import Address, Dispatched
from events.catalogue import FIRST_BYTE_LATE, UpstreamEnded
from tests.integration.front_door_world import (
    OVERDUE,
    Client,
    World,
    chat,
    echo,
    once,
    read_request,
    request,
    world,
)

SSE = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


class Gated:
    """A runner that sends its pieces one by one, each when the test lets it, and sees its peer go away."""

    def __init__(self, *pieces: bytes) -> None:
        self.pieces = pieces
        self.go = [trio.Event() for _ in pieces]
        self.asked = trio.Event()
        self.left = trio.Event()

    async def __call__(self, peer: Client) -> None:
        await read_request(peer)
        self.asked.set()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.send, peer)
            with suppress(trio.BrokenResourceError):
                await peer.to_the_end()
            self.left.set()
            nursery.cancel_scope.cancel()

    async def send(self, peer: Client) -> None:
        for go, piece in zip(self.go, self.pieces, strict=True):
            await go.wait()
            await peer.send(piece)


async def asks(here: World, runner: Gated, *, begun: bool) -> Client:
    """A client whose request a runner has got, and has begun to answer."""
    client = await here.client()
    await client.send(chat(stream=True))
    await runner.asked.wait()
    if begun:
        runner.go[0].set()
        await client.until(chunk(b"one"))
    return client


OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


async def test_request_and_answer_pass_through(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        runner = await here.runner("r1", echo("201 Made", "X-Runner: Yes", "Keep-Alive: timeout=5"))
        here.desk.dispatch_to(runner)
        client = await here.client()
        answer = await client.chat(
            "Authorization: Bearer k",
            "Connection: keep-alive, X-Hop",
            "X-Hop: 1",
            "TE: trailers",
            "X-Odd: a  b",
        )
        assert answer.status == 201
        assert answer.headers["x-runner"] == "Yes"
        assert "keep-alive" not in answer.headers and "connection" not in answer.headers
        head, _, body = answer.body.partition(b"\r\n\r\n")
        assert head.decode().split("\r\n") == [
            "POST /v1/chat/completions HTTP/1.1",
            "Host: " + runner.url.removeprefix("http://"),
            "Content-Type: application/json",
            "Authorization: Bearer k",
            "X-Odd: a  b",
            f"Content-Length: {len(body)}",
        ]
        assert body == b'{"model":"tiny"}'
        [fact] = here.desk.facts
        assert (fact.request, fact.runner, fact.complete, fact.status, fact.sent) == (
            "q1",
            "r1",
            True,
            201,
            True,
        )
        assert fact.bytes_to_client > len(answer.body) and fact.first_byte_ns > 0 and fact.error == ""
        assert here.desk.tickets[0].arrival.caller == "127.0.0.1"
        assert here.desk.tickets[0].arrival.kind == "chat"
        assert here.door.moved("r1") >= len(answer.body)


async def test_connections_to_runners_are_reused(tmp_path: Path) -> None:
    connections = []

    async def serve(peer: Client) -> None:
        connections.append(peer)
        await echo()(peer)

    async with world(tmp_path) as here:
        here.desk.dispatch_to(await here.runner("r1", serve))
        client = await here.client()
        for _ in range(3):
            assert (await client.chat()).status == 200
        assert len(connections) == 1


@pytest.mark.parametrize(
    ("kind", "own", "told"),
    [("text/event-stream; a=b", "", "no"), ("text/event-stream", "yes", "yes"), ("text/plain", "", None)],
)
async def test_a_stream_of_events_is_not_for_nginx_to_collect(
    tmp_path: Path, kind: str, own: str, told: str | None
) -> None:
    head = f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\n" + (f"X-Accel-Buffering: {own}\r\n" if own else "")
    async with world(tmp_path) as here:
        answer = f"{head}Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n".encode()
        here.desk.dispatch_to(await here.runner("r1", once(answer)))
        assert (await (await here.client()).chat()).headers.get("x-accel-buffering") == told


async def test_unix_socket_prefix_and_model_name(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        where = await here.runner("r1", echo(), unix=True)
        here.desk.dispatch_to(Address("r1", where.url, prefix="/base", model_name='the "real" one'))
        client = await here.client()
        body = b'{ "messages": [1,  2.50, "\\u00e9"], "model" : "mini", "top_p": 1e-2 }'
        answer = await client.ask("POST", "/v1/completions?x=1", body)
        head, _, sent = answer.body.partition(b"\r\n\r\n")
        assert head.startswith(b"POST /base/v1/completions?x=1 HTTP/1.1\r\nHost: localhost\r\n")
        assert sent == b'{"messages":[1,  2.50, "\\u00e9"],"model":"the \\"real\\" one","top_p":1e-2}'
        assert here.desk.tickets[0].arrival.model == "small"
        assert here.desk.tickets[0].arrival.kind == "completion"


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_large_body_arrives_whole(tmp_path: Path, chunked: bool) -> None:
    text = "é" * 400_000
    body = msgspec.json.encode({"model": "tiny", "input": text})
    async with world(tmp_path) as here:
        here.desk.dispatch_to(await here.runner("r1", echo()))
        client = await here.client()
        for _ in range(2):
            if chunked:
                await client.send(request("POST", "/v1/embeddings", None, "Transfer-Encoding: chunked"))
                for at in range(0, len(body), 100_000):
                    await client.send(chunk(body[at : at + 100_000]))
                await client.send(b"0\r\nTrailer: x\r\n\r\n")
                answer = await client.answer()
            else:
                answer = await client.ask("POST", "/v1/embeddings", body)
            head, _, sent = answer.body.partition(b"\r\n\r\n")
            assert sent == body
            assert b"Content-Length: %d" % len(body) in head and b"Transfer" not in head


async def test_launch_options_enter_the_arrival(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        here.desk.dispatch_to(await here.runner("r1", echo()))
        client = await here.client()
        await client.chat(num_ctx=1024, top_k=3, options={"num_ctx": 4096, "adapter": "a.gguf", "seed": 1})
        await client.chat(num_ctx=None, options="no object")
        answer = await client.chat(num_ctx=[1])
        assert answer.status == 400 and answer.json()["error"]["code"] == "invalid_option"
        answer = await client.chat(num_ctx=1 << 63)
        assert answer.status == 400
        assert [ticket.arrival.options for ticket in here.desk.tickets] == [
            {"num_ctx": 4096, "adapter": "a.gguf"},
            {},
        ]


async def test_a_stream_is_never_held_back(tmp_path: Path) -> None:
    runner = Gated(SSE, chunk(b"one"), chunk(b"two"), b"0\r\n\r\n")
    async with world(tmp_path) as here:
        here.desk.dispatch_to(await here.runner("r1", runner))
        client = await here.client()
        await client.send(chat(stream=True))
        runner.go[0].set()
        assert (await client.head()).headers["content-type"] == "text/event-stream"
        for number, piece in enumerate((chunk(b"one"), chunk(b"two"), b"0\r\n\r\n"), start=1):
            runner.go[number].set()
            assert await client.until(piece) == piece
        await here.desk.until(lambda: here.desk.facts)
        assert here.desk.facts[0].complete


async def test_an_answer_that_ends_with_its_connection(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        here.desk.dispatch_to(await here.runner("r1", once(b"HTTP/1.1 200 OK\r\n\r\nall of it")))
        client = await here.client()
        answer = await client.chat()
        assert answer.headers["connection"] == "close"
        assert answer.body == b"all of it"
        assert here.desk.facts[0].complete


async def test_a_runner_that_closes_costs_its_client_nothing(tmp_path: Path) -> None:
    closing = OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    async with world(tmp_path) as here:
        here.desk.dispatch_to(await here.runner("r1", once(closing)))
        client = await here.client()
        for _ in range(2):
            answer = await client.chat()
            assert answer.body == b"ok" and "connection" not in answer.headers
        assert all(fact.complete for fact in here.desk.facts)


async def test_what_a_runner_wants_closed_is_not_used_again(tmp_path: Path) -> None:
    connections = []

    async def serve(peer: Client) -> None:
        connections.append(peer)
        await echo("200 OK", "Connection: close")(peer)  # and stays open all the same

    async with world(tmp_path) as here:
        here.desk.dispatch_to(await here.runner("r1", serve))
        client = await here.client()
        for _ in range(2):
            assert (await client.chat()).status == 200
        assert len(connections) == 2


async def test_a_body_is_held_until_the_answer_begins(tmp_path: Path) -> None:
    runner = Gated(SSE + chunk(b"one"))
    async with world(tmp_path, bodies_held_bytes=1500) as here:
        here.desk.dispatch_to(await here.runner("r1", runner))
        first, second = await here.client(), await here.client()
        await first.send(chat(x="a" * 1000))
        await runner.asked.wait()
        assert (await second.chat(x="a" * 1000)).status == 503
        runner.go[0].set()
        await first.until(chunk(b"one"))
        third = await here.client()
        await third.send(chat(x="a" * 1000))
        await here.desk.until(lambda: len(here.desk.tickets) == 2)


async def test_interim_answers_are_dropped(tmp_path: Path) -> None:
    interim = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"
    async with world(tmp_path) as here:
        here.desk.dispatch_to(await here.runner("r1", once(interim + OK, OK)))
        client = await here.client()
        answer = await client.chat()
        assert (answer.status, answer.body) == (200, b"ok")
        assert answer.headers == {"content-length": "2", "x-runnerd-request": "q1"}
        assert (await client.chat()).body == b"ok"


async def test_http_1_0_gets_no_chunks(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        here.desk.dispatch_to(
            await here.runner("r1", once(SSE + chunk(b"one") + chunk(b"two") + b"0\r\n\r\n"))
        )
        client = await here.client()
        await client.send(chat().replace(b"HTTP/1.1", b"HTTP/1.0"))
        answer = await client.answer()
        assert "transfer-encoding" not in answer.headers and answer.body == b"onetwo"


@pytest.mark.parametrize("how", ["closed", "reset"])
async def test_a_dead_idle_connection_is_no_failure(tmp_path: Path, how: str) -> None:
    connections = []

    async def serve(peer: Client) -> None:
        connections.append(peer)
        await once(OK)(peer)
        if len(connections) == 1:
            await read_request(peer)  # the next request comes, and the connection is closed on it
            if how == "reset":
                peer.stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

    async with world(tmp_path) as here:
        here.desk.dispatch_to(await here.runner("r1", serve))
        client = await here.client()
        assert (await client.chat()).body == b"ok"
        assert (await client.chat()).body == b"ok"
        assert [fact.complete for fact in here.desk.facts] == [True, True]
        assert len(connections) == 2


async def test_an_answer_that_nobody_asked_for_is_nobodys(tmp_path: Path) -> None:
    connections = []
    sent = trio.Event()

    async def serve(peer: Client) -> None:
        connections.append(peer)
        await once(OK)(peer)
        if len(connections) == 1:
            await answered.wait()
            await peer.send(OK.replace(b"ok", b"no"))
            sent.set()
        await peer.to_the_end()

    async with world(tmp_path) as here:
        answered = trio.Event()
        here.desk.dispatch_to(await here.runner("r1", serve))
        client = await here.client()
        assert (await client.chat()).body == b"ok"
        await here.desk.until(lambda: here.desk.facts)
        answered.set()
        await sent.wait()
        assert (await client.chat()).body == b"ok"
        assert len(connections) == 2


async def test_refused_then_served_elsewhere(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    async with world(tmp_path) as here:
        here.desk.dispatch_to(Address("r1", f"http://127.0.0.1:{port}"), await here.runner("r2", echo()))
        answer = await (await here.client()).chat(note="kept")
        assert answer.status == 200 and b'"note":"kept"' in answer.body
        assert [(fact.runner, fact.complete) for fact in here.desk.facts] == [("r1", False), ("r2", True)]
        assert here.desk.facts[0].error == "it cannot be connected to: connection refused"
        assert not here.desk.gones


@pytest.mark.parametrize("tail", [b"", b"zz\r\nnot a chunk"])
async def test_a_cut_answer_is_seen_to_be_cut(tmp_path: Path, tail: bytes) -> None:
    async with world(tmp_path) as here:
        runner = Gated(SSE + chunk(b"one"), tail)

        async def serve(peer: Client) -> None:
            await read_request(peer)
            await runner.send(peer)

        here.desk.dispatch_to(await here.runner("r1", serve))
        client = await here.client()
        await client.send(chat(stream=True))
        runner.go[0].set()
        await client.until(chunk(b"one"))
        runner.go[1].set()
        assert await client.closed()
        [fact] = here.desk.facts
        assert not fact.complete and fact.bytes_to_client > 0 and fact.status == 200
        assert not here.desk.gones


async def test_bytes_behind_an_answer_end_both_connections(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        here.desk.dispatch_to(await here.runner("r1", once(OK + b"HTTP/1.1 200 OK\r\n", OK)))
        client = await here.client()
        answer = await client.chat()
        assert answer.body == b"ok" and answer.headers["connection"] == "close"
        await client.closed()


# --- clients that go away -----------------------------------------------------------------------------------


async def leave(client: Client, how: str) -> None:
    if how == "half":
        client.stream.socket.shutdown(socket.SHUT_WR)
    elif how == "reset":
        client.stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        await client.stream.aclose()
    else:
        await client.stream.aclose()


@pytest.mark.parametrize("how", ["close", "half", "reset"])
async def test_gone_while_queued(tmp_path: Path, how: str) -> None:
    async with world(tmp_path) as here:
        client = await here.client()
        await client.send(chat())
        await here.desk.until(lambda: here.desk.tickets)
        await leave(client, how)
        await here.desk.until(lambda: here.desk.gones)
        assert here.desk.gones == here.desk.tickets and not here.desk.facts


@pytest.mark.parametrize("how", ["close", "half", "reset"])
@pytest.mark.parametrize("begun", [False, True])
async def test_gone_while_relayed(tmp_path: Path, how: str, begun: bool) -> None:
    runner = Gated(SSE + chunk(b"one"), chunk(b"two"))
    async with world(tmp_path) as here:
        here.desk.dispatch_to(await here.runner("r1", runner))
        client = await asks(here, runner, begun=begun)
        await leave(client, how)
        await here.desk.until(lambda: here.desk.facts)
        await runner.left.wait()
        assert here.desk.gones == here.desk.tickets
        [fact] = here.desk.facts
        assert not fact.complete and fact.sent and (fact.bytes_to_client > 0) == begun


async def test_gone_before_its_dispatch_takes_effect(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        runner = await here.runner("r1", echo())
        here.desk.gone = here.desk.gones.append  # type: ignore[method-assign,assignment]  # the dispatch was first
        client = await here.client()
        await client.send(chat())
        await here.desk.until(lambda: here.desk.tickets)
        await client.stream.aclose()
        while not here.desk.gones:
            await trio.lowlevel.checkpoint()
        here.desk.tickets[0].give(Dispatched(runner, 1))
        await here.desk.until(lambda: here.desk.facts)
        assert here.desk.facts == [UpstreamEnded("q1", "r1", complete=False, sent=False)]


async def flood(peer: Client) -> None:
    """A runner whose answer has no end."""
    await read_request(peer)
    await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n")
    while True:
        await peer.send(b"a" * 65536)


async def test_a_client_that_does_not_read_is_closed(tmp_path: Path) -> None:
    async with world(tmp_path, stall_s=0.1, tick_s=0.02) as here:
        here.desk.dispatch_to(await here.runner("r1", flood))
        client = await here.client()
        await client.send(chat())
        await here.desk.until(lambda: here.desk.facts)
        assert len(here.desk.gones) == 1 and not here.desk.facts[0].complete


# --- requests that end while they are relayed ---------------------------------------------------------------


@pytest.mark.parametrize("begun", [False, True])
async def test_timed_out_while_relayed(tmp_path: Path, begun: bool) -> None:
    runner = Gated(SSE + chunk(b"one"))
    async with world(tmp_path) as here:
        here.desk.dispatch_to(await here.runner("r1", runner))
        client = await asks(here, runner, begun=begun)
        here.desk.retry = [OVERDUE]
        [ticket] = here.desk.tickets
        assert ticket.on_end is not None
        ticket.on_end(OVERDUE)
        if begun:
            assert await client.closed()
        else:
            answer = await client.answer()
            assert answer.status == 504 and answer.json()["error"]["code"] == "request_timeout"
            assert answer.headers["x-runnerd-request"] == "q1"
        await runner.left.wait()
        assert [fact.complete for fact in here.desk.facts] == [False]
        assert not here.desk.gones


@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize("reused", [False, True])
async def test_no_first_byte_in_time(tmp_path: Path, begun: bool, reused: bool) -> None:
    """That the connection to the runner is a reused one is no excuse, and no reason to try again."""
    runner = Gated(SSE + chunk(b"one"), chunk(b"two") + chunk(b""))

    async def serve(peer: Client) -> None:
        if reused:
            await once(OK)(peer)
        await runner(peer)

    async with world(tmp_path, tick_s=1000.0) as here:
        address = await here.runner("r1", serve)
        here.desk.on_arrive = lambda ticket: ticket.give(Dispatched(address, 1, first_byte_s=60.0))
        here.desk.retry = [OVERDUE]
        client = await here.client()
        if reused:
            await client.send(chat())
            assert (await client.answer()).status == 200
        await client.send(chat(stream=True))
        await runner.asked.wait()
        if begun:
            runner.go[0].set()
            await client.until(chunk(b"one"))
        for connection in list(here.door._connections):
            connection.expire(trio.current_time() + 59)
            connection.expire(trio.current_time() + 61)
        if begun:
            runner.go[1].set()
            await client.until(chunk(b"two") + chunk(b""))
        else:
            assert (await client.answer()).status == 504
            await runner.left.wait()
        await here.desk.until(lambda: len(here.desk.facts) == 1 + reused)
        assert here.desk.facts[-1].complete == begun
        assert here.desk.facts[-1].error == ("" if begun else FIRST_BYTE_LATE)


async def test_timed_out_while_the_client_does_not_read(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        here.desk.dispatch_to(await here.runner("r1", flood))
        client = await here.client()
        await client.send(chat())
        await client.head()
        while True:  # until nothing moves any more, so that the relay waits for its client
            moved = here.door.moved("r1")
            await trio.testing.wait_all_tasks_blocked(0.02)
            if here.door.moved("r1") == moved:
                break
        here.desk.retry = [OVERDUE]
        ticket = here.desk.tickets[0]
        assert ticket.on_end is not None
        ticket.on_end(OVERDUE)
        await here.desk.until(lambda: here.desk.facts)
        assert not here.desk.facts[0].complete


@pytest.mark.parametrize("state", ["queued", "waiting", "streaming"])
async def test_the_front_door_stops_under_it(tmp_path: Path, state: str) -> None:
    runner = Gated(SSE + chunk(b"one"))
    async with world(tmp_path) as here:
        where = await here.runner("r1", runner)
        client = await here.client()
        if state != "queued":
            here.desk.dispatch_to(where)
        await client.send(chat(stream=True))
        await here.desk.until(lambda: here.desk.tickets)
        if state != "queued":
            await runner.asked.wait()
        if state == "streaming":
            runner.go[0].set()
            await client.until(chunk(b"one"))
        await here.stop()
        assert await client.closed()
        assert len(here.desk.gones) == 1
        assert here.desk.told == (["gone"] if state == "queued" else ["gone", "ended"])
        assert here.door.connections == 0


async def test_every_dispatch_ends_once(tmp_path: Path) -> None:
    """Sixty clients that leave when they like, runners that fail as they like."""
    rng = random.Random(7)
    dispatched = []

    async def moody(peer: Client) -> None:
        while True:
            await read_request(peer)
            mood = rng.random()
            if mood < 0.3:
                await peer.send(OK)
            elif mood < 0.5:
                await peer.send(SSE + chunk(b"one"))
                await peer.send(b"0\r\n\r\n")
            elif mood < 0.7:
                return await peer.send(SSE + chunk(b"one"))
            elif mood < 0.9:
                return
            else:
                await peer.to_the_end()

    async with world(tmp_path) as here:
        where = await here.runner("r1", moody)
        turn = Dispatched(where, 1)

        def arrive(ticket: object) -> None:
            dispatched.append(here.desk.tickets[-1].request)
            here.desk.tickets[-1].give(turn)

        here.desk.on_arrive = arrive

        async def use(seed: int) -> None:
            own = random.Random(seed)
            client = await here.client()
            try:
                for _ in range(own.randint(1, 4)):
                    await client.send(chat())
                    with trio.fail_after(own.random() * 0.05):
                        await client.answer()
            except (AssertionError, trio.BrokenResourceError, trio.TooSlowError):
                pass  # cut by the runner, or left in the middle of it
            await client.stream.aclose()

        async with trio.open_nursery() as nursery:
            for seed in range(60):
                nursery.start_soon(use, seed)
        await here.desk.until(lambda: len(here.desk.facts) >= len(dispatched))
        assert sorted(fact.request for fact in here.desk.facts) == sorted(dispatched)
        assert len({ticket.request for ticket in here.desk.gones}) == len(here.desk.gones)
