"""Exchanges that are given up since their runner has to stop."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from daemon.ports import Dispatched
from events.catalogue import CUT_OFF
from tests.integration.front_door_world import Client, FakeTicket, chat, once, read_request, request, world
from tests.integration.test_endpoints import ASKED, web_socket
from tests.integration.test_relay import OK, SSE, Gated, asks, chunk


async def test_cut_off_before_it_began(tmp_path: Path) -> None:
    """Told to go and told to stop in one go: nothing is sent to a runner that stops."""
    asked: list[bytes] = []

    async def serve(peer: Client) -> None:
        asked.append((await read_request(peer))[0])

    async with world(tmp_path) as here:
        one, two = await here.runner("r1", serve), await here.runner("r2", once(OK))

        def arrive(ticket: FakeTicket) -> None:
            here.desk.retry = [Dispatched(two, 2)]
            ticket.give(Dispatched(one, 1))
            trio.lowlevel.spawn_system_task(cut, ticket)

        async def cut(ticket: FakeTicket) -> None:
            assert ticket.on_cut is not None
            ticket.on_cut(CUT_OFF)

        here.desk.on_arrive = arrive
        client = await here.client()
        await client.send(chat())
        assert (await client.answer()).body == b"ok"
        first, second = here.desk.facts
        assert (first.runner, first.complete, first.error) == ("r1", False, CUT_OFF)
        assert (second.runner, second.complete) == ("r2", True)
        assert asked == [] or first.sent


@pytest.mark.parametrize("begun", [False, True])
async def test_cut_off_since_its_runner_has_to_stop(tmp_path: Path, begun: bool) -> None:
    """At once, also where the runner takes its time; a request that was not answered yet goes to another."""
    runner = Gated(SSE + chunk(b"one"))
    async with world(tmp_path) as here:
        here.desk.dispatch_to(await here.runner("r1", runner), await here.runner("r2", once(OK)))
        client = await asks(here, runner, begun=begun)
        [ticket] = here.desk.tickets
        assert ticket.on_cut is not None
        ticket.on_cut(CUT_OFF)
        if begun:
            assert await client.closed()
        else:
            assert (await client.answer()).body == b"ok"
        await runner.left.wait()
        first = here.desk.facts[0]
        assert (first.runner, first.complete, first.error) == ("r1", False, CUT_OFF)
        assert [fact.complete for fact in here.desk.facts[1:]] == ([] if begun else [True])
        assert not here.desk.gones


async def test_a_web_socket_that_is_cut_off_has_not_come_to_its_end(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        here.desk.dispatch_to(await here.runner("r1", web_socket))
        client = await here.client()
        await client.send(request("GET", "/upstream/tiny/ws", None, *ASKED))
        await client.head()
        await client.exactly(4)
        [ticket] = here.desk.tickets
        assert ticket.on_cut is not None
        ticket.on_cut(CUT_OFF)
        assert await client.closed()
        await here.desk.until(lambda: here.desk.facts)
        [fact] = here.desk.facts
        assert (fact.complete, fact.status, fact.error) == (False, 101, CUT_OFF)


@pytest.mark.parametrize("whole", [False, True])
async def test_an_answer_without_framing_that_breaks_off_does_not_look_whole(
    tmp_path: Path, whole: bool
) -> None:
    """nginx asks with HTTP/1.0 unless it is told otherwise: where the connection ends, so does the answer."""
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n"
    async with world(tmp_path) as here:
        here.desk.dispatch_to(await here.runner("r1", once(head + (b"0\r\n\r\n" if whole else b""))))
        client = await here.client()
        await client.send(chat().replace(b"HTTP/1.1", b"HTTP/1.0"))
        await client.until(b"\r\n\r\none")
        if whole:
            assert await client.to_the_end() == b""
        else:
            with pytest.raises(trio.BrokenResourceError):
                await client.to_the_end()
        await here.desk.until(lambda: here.desk.facts)
        assert here.desk.facts[0].complete is whole
