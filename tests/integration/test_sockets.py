"""Waiting for what comes: step by step, to whom nobody waits for, and to every way in which that ends."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from daemon.http.sockets import Sockets, in_loop
from daemon.http.upstream import Upstream
from daemon.http.wire import Clock, Wire
from tests.integration.front_door_world import OVERDUE, Client, chat, read_request, world


@asynccontextmanager
async def looking() -> AsyncIterator[Sockets]:
    sockets = Sockets()
    with in_loop(sockets):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sockets.run)
            with trio.fail_after(10):
                yield sockets
            nursery.cancel_scope.cancel()
    assert not len(sockets)
    sockets.close()


def pair(sockets: Sockets) -> tuple[Wire, socket.socket]:
    ours, theirs = socket.socketpair()
    return Wire(ours, Clock(), sockets), theirs


async def test_each_piece_is_a_step_until_one_returns_something() -> None:
    async with looking() as sockets:
        wire, peer = pair(sockets)
        taken: list[bytes] = []
        came = trio.Event()

        def step() -> str | None:
            taken.append(wire.recv_now() or b"")
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
            assert await wire.drain(step) == "over"
        assert taken == [b"first", b"second", b"last"]
        peer.send(b"more")  # it is as it was: a task may read from it, or drain it again
        assert await wire.recv() == b"more"
        peer.close()
        assert await wire.drain(lambda: wire.recv_now() or b"end") == b"end"
        wire.close()


async def test_what_a_step_raises_is_its_tasks_alone() -> None:
    async with looking() as sockets, trio.open_nursery() as nursery:
        (wire, peer), (other, other_peer) = pair(sockets), pair(sockets)
        done: list[bytes] = []

        async def whole() -> None:
            done.append(await other.drain(other.recv_now))

        nursery.start_soon(whole)
        await trio.testing.wait_all_tasks_blocked()
        peer.send(b"x")

        def fail() -> None:
            raise ValueError("no")

        with pytest.raises(ValueError, match="no"):
            await wire.drain(fail)
        other_peer.send(b"well")
        while not done:
            await trio.testing.wait_all_tasks_blocked()
        assert done == [b"well"]
        for end in (wire, peer, other, other_peer):
            end.close()


async def test_closing_it_ends_the_wait() -> None:
    async with looking() as sockets, trio.open_nursery() as nursery:
        wire, peer = pair(sockets)

        async def close() -> None:
            await trio.testing.wait_all_tasks_blocked()
            wire.close()

        nursery.start_soon(close)
        with pytest.raises(trio.ClosedResourceError):
            await wire.drain(wire.recv_now)
        with pytest.raises(trio.ClosedResourceError):
            await wire.drain(wire.recv_now)
    peer.close()


async def test_a_step_that_closes_another_wire_ends_that_one_too() -> None:
    """Both are ready in the same round."""
    async with looking() as sockets, trio.open_nursery() as nursery:
        (wire, peer), (other, other_peer) = pair(sockets), pair(sockets)
        ended: list[str] = []

        async def either(mine: Wire, theirs: Wire) -> None:
            def step() -> str:
                theirs.close()
                return "first"

            try:
                ended.append(await mine.drain(step))
            except trio.ClosedResourceError:
                ended.append("closed")

        nursery.start_soon(either, wire, other)
        nursery.start_soon(either, other, wire)
        await trio.testing.wait_all_tasks_blocked()
        peer.send(b"x")
        other_peer.send(b"x")
        while len(ended) < 2:
            await trio.testing.wait_all_tasks_blocked()
        assert sorted(ended) == ["closed", "first"]
        for end in (wire, peer, other, other_peer):
            end.close()


async def test_a_cancelled_task_leaves_nothing_behind() -> None:
    async with looking() as sockets:
        wire, peer = pair(sockets)
        with trio.move_on_after(0.01) as scope:
            await wire.drain(wire.recv_now)
        assert scope.cancelled_caught
        peer.send(b"x")
        assert await wire.drain(wire.recv_now) == b"x"
        wire.close()
        peer.close()


async def test_what_nobody_asked_for_is_said_once_and_waits() -> None:
    async with looking() as sockets:
        wire, peer = pair(sockets)
        peer.send(b"one")
        assert await wire.recv() == b"one"
        peer.send(b"two")
        await trio.testing.wait_all_tasks_blocked()
        assert not sockets._epoll.poll(0)
        assert await wire.recv() == b"two"
        peer.send(b"three")
        assert await wire.recv() == b"three"
        wire.close()
        peer.close()


async def test_a_peer_that_goes_is_noticed_while_nobody_reads() -> None:
    """Whether or not it has left something to be read, and whether or not anything was asked for since."""
    for left, half in ((b"", False), (b"left", False), (b"", True), (b"left", True)):
        async with looking() as sockets:
            wire, peer = pair(sockets)
            gone = trio.Event()
            wire.on_hang_up = gone.set
            peer.send(b"one")
            assert await wire.recv() == b"one"
            if left:
                peer.send(left)
                await trio.testing.wait_all_tasks_blocked()
            assert not gone.is_set()
            if half:
                peer.shutdown(socket.SHUT_WR)
            else:
                peer.close()
            await gone.wait()
            await trio.testing.wait_all_tasks_blocked()
            assert not sockets._epoll.poll(0)
            assert await wire.recv() == left
            assert not left or await wire.recv() == b""
            wire.close()
            peer.close()


async def test_what_was_asked_for_since_it_was_seen_is_not_lost() -> None:
    """`look` finds nobody who waits for it; before `run` has its turn somebody does."""
    sockets = Sockets()
    wire, peer = pair(sockets)
    sockets.ask(wire)
    gone: list[str] = []
    wire.on_hang_up = lambda: gone.append("gone")
    peer.send(b"last words")
    peer.close()
    sockets.look()
    async with trio.open_nursery() as nursery:

        async def recv() -> None:
            assert await wire.recv() == b"last words"
            nursery.cancel_scope.cancel()

        nursery.start_soon(recv)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(sockets.run)
        await trio.testing.wait_all_tasks_blocked()
        with in_loop(sockets), trio.fail_after(10):
            await trio.sleep_forever()
    assert not gone
    wire.close()
    sockets.close()


async def test_a_socket_s_number_is_not_the_next_one_s() -> None:
    """It is closed between `look` and `run`, and another gets its number."""
    sockets = Sockets()
    wire, peer = pair(sockets)
    sockets.ask(wire)
    peer.close()
    sockets.look()
    wire.close()
    ours, theirs = socket.socketpair()
    assert ours.fileno() == wire.fd or theirs.fileno() == wire.fd
    if ours.fileno() != wire.fd:
        ours, theirs = theirs, ours
    other = Wire(ours, Clock(), sockets)
    gone: list[str] = []
    other.on_hang_up = lambda: gone.append("gone")
    sockets.ask(other)
    theirs.send(b"x")
    with trio.move_on_after(0.01):
        await sockets.run()
    assert not gone and not sockets._left
    for end in (other, theirs):
        end.close()
    sockets.close()


async def test_a_mistake_in_a_look_ends_the_daemon() -> None:
    class Mistaken:
        def __init__(self, fd: int) -> None:
            self.fd = fd

        def came(self) -> bool:
            raise LookupError("a mistake")

        def hung_up(self) -> None: ...

    ours, theirs = socket.socketpair()
    sockets = Sockets()
    sockets.ask(Mistaken(ours.fileno()))
    theirs.send(b"x")
    sockets.look()
    with pytest.raises(LookupError, match="a mistake"):
        await sockets.run()
    sockets.close()
    ours.close()
    theirs.close()


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

        drain = Upstream.drain

        async def drained(wire: Upstream, step: Callable[[], Any]) -> Any:
            unsent.append(await drain(wire, step))
            return unsent[-1]

        monkeypatch.setattr(Upstream, "drain", drained)
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

        drain = Upstream.drain

        async def drained(wire: Upstream, step: Callable[[], Any]) -> Any:
            result = await drain(wire, step)
            if isinstance(result, bytes):
                return result  # the beginning of the answer
            ticket = here.desk.tickets[0]
            ticket.give(OVERDUE)
            assert ticket.on_end is not None
            ticket.on_end(OVERDUE)
            return result

        monkeypatch.setattr(Upstream, "drain", drained)
        client = await here.client()
        await client.send(chat())
        await here.desk.until(lambda: here.desk.facts)
        [fact] = here.desk.facts
        assert not fact.complete
        with pytest.raises(trio.BrokenResourceError):
            while await client.more():
                pass
