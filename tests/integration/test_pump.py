"""The pump: steps as bytes come, and every way in which a stream ends."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from daemon.http.pump import drain
from daemon.http.reaper import Watch
from daemon.http.wire import Clock, Wire
from tests.integration.front_door_world import OVERDUE, Client, chat, read_request, world


@asynccontextmanager
async def watching() -> AsyncIterator[Watch]:
    watch = Watch()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch.run)
        with trio.fail_after(10):
            yield watch
        assert not watch._calls
        nursery.cancel_scope.cancel()
    watch.close()


def pair() -> tuple[Wire, socket.socket]:
    ours, theirs = socket.socketpair()
    return Wire(ours, Clock()), theirs


async def test_each_piece_is_a_step_until_one_returns_something() -> None:
    wire, peer = pair()
    async with watching() as watch:
        taken: list[bytes] = []
        came = trio.Event()

        def step() -> str | None:
            taken.append(wire.recv_now())
            came.set()
            return "over" if taken[-1] == b"last" else None

        async def say() -> None:
            nonlocal came
            for piece in (b"first", b"second", b"last"):
                came = trio.Event()
                peer.send(piece)
                await came.wait()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(say)
            assert await drain(watch, wire, step) == "over"
        assert taken == [b"first", b"second", b"last"]
        peer.send(b"more")  # it is as it was: a task may read from it, or drain it again
        assert await wire.recv() == b"more"
        peer.close()
        assert await drain(watch, wire, lambda: wire.recv_now() or b"end") == b"end"
    wire.close()


async def test_what_a_step_raises_is_its_tasks_alone() -> None:
    (wire, peer), (other, other_peer) = pair(), pair()
    async with watching() as watch, trio.open_nursery() as nursery:
        done: list[bytes] = []

        async def whole() -> None:
            done.append(await drain(watch, other, other.recv_now))

        nursery.start_soon(whole)
        await trio.testing.wait_all_tasks_blocked()
        peer.send(b"x")

        def fail() -> None:
            raise ValueError("no")

        with pytest.raises(ValueError, match="no"):
            await drain(watch, wire, fail)
        other_peer.send(b"well")
    assert done == [b"well"]
    for end in (wire, peer, other, other_peer):
        end.close()


async def test_closing_it_ends_the_wait() -> None:
    wire, peer = pair()
    async with watching() as watch, trio.open_nursery() as nursery:

        async def close() -> None:
            await trio.testing.wait_all_tasks_blocked()
            wire.close()

        nursery.start_soon(close)
        with pytest.raises(trio.ClosedResourceError):
            await drain(watch, wire, wire.recv_now)
        with pytest.raises(trio.ClosedResourceError):
            await drain(watch, wire, wire.recv_now)
    peer.close()


async def test_a_step_that_closes_another_wire_ends_that_one_too() -> None:
    """Both are ready in the same round."""
    (wire, peer), (other, other_peer) = pair(), pair()
    async with watching() as watch, trio.open_nursery() as nursery:
        ended: list[str] = []

        async def either(mine: Wire, theirs: Wire) -> None:
            def step() -> str:
                theirs.close()
                return "first"

            try:
                ended.append(await drain(watch, mine, step))
            except trio.ClosedResourceError:
                ended.append("closed")

        nursery.start_soon(either, wire, other)
        nursery.start_soon(either, other, wire)
        await trio.testing.wait_all_tasks_blocked()
        peer.send(b"x")
        other_peer.send(b"x")
    assert sorted(ended) == ["closed", "first"]
    for end in (wire, peer, other, other_peer):
        end.close()


async def test_a_cancelled_task_leaves_nothing_behind() -> None:
    wire, peer = pair()
    async with watching() as watch:
        with trio.move_on_after(0.01) as scope:
            await drain(watch, wire, wire.recv_now)
        assert scope.cancelled_caught
        peer.send(b"x")
        assert await drain(watch, wire, wire.recv_now) == b"x"
    wire.close()
    peer.close()


@pytest.mark.interpreted
async def test_the_end_of_an_answer_is_its_tasks_to_send(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who has all of it may go at once, and was served."""

    async def serve(peer: Client) -> None:
        await read_request(peer)
        await peer.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for piece in (b"3\r\none\r\n", b"3\r\ntwo\r\n", b"5\r\nthree\r\n0\r\n\r\n"):
            await peer.send(piece)
            await trio.testing.wait_all_tasks_blocked()

    async with world(tmp_path) as here:
        here.desk.dispatch_to(await here.runner("r1", serve))
        unsent = list[Any]()

        async def drained(watch: Watch, wire: Wire, step: Callable[[], Any]) -> Any:
            unsent.append(await drain(watch, wire, step))
            return unsent[-1]

        monkeypatch.setattr("daemon.http.relay.drain", drained)
        client = await here.client()
        await client.send(chat())
        got = b""
        while not got.endswith(b"0\r\n\r\n"):
            got += await client.more()
        await client.stream.aclose()
        await here.desk.until(lambda: here.desk.facts)
        [fact] = here.desk.facts
        assert fact.complete
        assert b"".join(unsent).endswith(b"0\r\n\r\n")


@pytest.mark.interpreted
async def test_a_client_that_was_reset_has_not_got_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of an answer that ends with the connection: its request is ended in the round in which that comes."""

    async def serve(peer: Client) -> None:
        await read_request(peer)
        await peer.send(b"HTTP/1.1 200 OK\r\n\r\n")
        await peer.send(bytes(200_000))

    async with world(tmp_path) as here:
        here.desk.dispatch_to(await here.runner("r1", serve))

        async def drained(watch: Watch, wire: Wire, step: Callable[[], Any]) -> Any:
            result = await drain(watch, wire, step)
            ticket = here.desk.tickets[0]
            ticket.give(OVERDUE)
            assert ticket.on_end is not None
            ticket.on_end(OVERDUE)
            return result

        monkeypatch.setattr("daemon.http.relay.drain", drained)
        client = await here.client()
        await client.send(chat())
        await here.desk.until(lambda: here.desk.facts)
        [fact] = here.desk.facts
        assert not fact.complete
        with pytest.raises(trio.BrokenResourceError):
            while await client.more():
                pass
