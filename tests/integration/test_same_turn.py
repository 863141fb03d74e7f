"""What is read in a turn of the loop in which something else happens to its connection before its task runs.

trio shuffles who runs first in a turn, so each is tried often enough for both.
"""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import trio
import trio.testing

from tests.integration.front_door_world import OVERDUE, Client, World, chat, echo, read_request, world

TIMES = 12
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def plain(client: Client) -> socket.socket:
    """Its socket, to send by without a turn of the loop."""
    sock: socket.socket = client.stream.socket._sock  # type: ignore[attr-defined]
    return sock


@pytest.mark.parametrize("time", range(TIMES))
async def test_a_request_that_comes_as_the_doors_close_is_served(tmp_path: Path, time: int) -> None:
    async with world(tmp_path) as here:
        here.desk.dispatch_to(await here.runner("r1", echo()))
        client = await here.client()
        assert (await client.chat()).status == 200
        await trio.testing.wait_all_tasks_blocked()
        plain(client).send(chat())
        await trio.lowlevel.checkpoint()
        here.door.pause()
        assert (await client.answer()).status == 200
        assert len(here.desk.tickets) == 2


@pytest.mark.parametrize("time", range(TIMES))
@pytest.mark.parametrize("how", ["hung up", "overdue", "cut"])
async def test_an_answer_that_comes_as_its_request_ends_is_no_mistake(
    tmp_path: Path, how: str, time: int
) -> None:
    async with world(tmp_path) as here:
        runners: list[socket.socket] = []

        async def serve(peer: Client) -> None:
            while True:
                await read_request(peer)
                runners.append(plain(peer))

        here.desk.dispatch_to(await here.runner("r1", serve))
        client = await here.client()
        await client.send(chat())
        while not runners:
            await trio.testing.wait_all_tasks_blocked()
        await trio.testing.wait_all_tasks_blocked()
        runners[0].send(ANSWER)
        if how == "hung up":
            plain(client).shutdown(socket.SHUT_WR)
        else:
            await trio.lowlevel.checkpoint()
            end(here, how)
        await here.desk.until(lambda: here.desk.facts)
        assert "mistake" not in here.desk.facts[0].error
        assert here.door.mistakes == 0


def end(here: World, how: str) -> None:
    """What the scheduler tells, unless the answer was sent already."""
    ticket = here.desk.tickets[0]
    if here.desk.facts:
        return
    if how == "overdue":
        ticket.give(OVERDUE)
        assert ticket.on_end is not None
        ticket.on_end(OVERDUE)
    else:
        assert ticket.on_cut is not None
        ticket.on_cut("preempted")
