"""The pump: steps as bytes come, and every way in which a stream ends."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from daemon.http.pump import Pump
from daemon.http.wire import Clock, Wire


@asynccontextmanager
async def pumping() -> AsyncIterator[Pump]:
    pump = Pump()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pump.run)
        with trio.fail_after(10):
            yield pump
        assert not pump._flows
        nursery.cancel_scope.cancel()
    pump.close()


def pair() -> tuple[Wire, socket.socket]:
    ours, theirs = socket.socketpair()
    return Wire(ours, Clock()), theirs


async def test_each_piece_is_a_step_until_one_returns_something() -> None:
    wire, peer = pair()
    async with pumping() as pump:
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
            assert await pump.drain(wire, step) == "over"
        assert taken == [b"first", b"second", b"last"]
        peer.send(b"more")  # it is as it was: a task may read from it, or drain it again
        assert await wire.recv() == b"more"
        peer.close()
        assert await pump.drain(wire, lambda: wire.recv_now() or b"end") == b"end"
    wire.close()


async def test_what_a_step_raises_is_its_tasks_alone() -> None:
    (wire, peer), (other, other_peer) = pair(), pair()
    async with pumping() as pump, trio.open_nursery() as nursery:
        done: list[bytes] = []

        async def whole() -> None:
            done.append(await pump.drain(other, other.recv_now))

        nursery.start_soon(whole)
        await trio.testing.wait_all_tasks_blocked()
        peer.send(b"x")

        def fail() -> None:
            raise ValueError("no")

        with pytest.raises(ValueError, match="no"):
            await pump.drain(wire, fail)
        other_peer.send(b"well")
    assert done == [b"well"]
    for end in (wire, peer, other, other_peer):
        end.close()


async def test_closing_it_ends_the_wait() -> None:
    wire, peer = pair()
    async with pumping() as pump, trio.open_nursery() as nursery:

        async def close() -> None:
            await trio.testing.wait_all_tasks_blocked()
            wire.close()

        nursery.start_soon(close)
        with pytest.raises(trio.ClosedResourceError):
            await pump.drain(wire, wire.recv_now)
        with pytest.raises(trio.ClosedResourceError):
            await pump.drain(wire, wire.recv_now)
    peer.close()


async def test_a_step_that_closes_another_wire_ends_that_one_too() -> None:
    """Both are ready in the same round."""
    (wire, peer), (other, other_peer) = pair(), pair()
    async with pumping() as pump, trio.open_nursery() as nursery:
        ended: list[str] = []

        async def drain(mine: Wire, theirs: Wire) -> None:
            def step() -> str:
                theirs.close()
                return "first"

            try:
                ended.append(await pump.drain(mine, step))
            except trio.ClosedResourceError:
                ended.append("closed")

        nursery.start_soon(drain, wire, other)
        nursery.start_soon(drain, other, wire)
        await trio.testing.wait_all_tasks_blocked()
        peer.send(b"x")
        other_peer.send(b"x")
    assert sorted(ended) == ["closed", "first"]
    for end in (wire, peer, other, other_peer):
        end.close()


async def test_a_cancelled_task_leaves_nothing_behind() -> None:
    wire, peer = pair()
    async with pumping() as pump:
        with trio.move_on_after(0.01) as scope:
            await pump.drain(wire, wire.recv_now)
        assert scope.cancelled_caught
        peer.send(b"x")
        assert await pump.drain(wire, wire.recv_now) == b"x"
    wire.close()
    peer.close()
