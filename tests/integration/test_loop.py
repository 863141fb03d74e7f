"""The part in trio's loop that is no task: it wakes the loop, is called, and leaves nothing behind."""

from __future__ import annotations

import os
import select

import pytest
import trio
from trio._core import _run

from events.loop import part_in_loop


@pytest.mark.parametrize("epoll", [True, False], ids=["in trio's epoll", "by a task"])
async def test_the_loop_wakes_and_calls(epoll: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = _run.GLOBAL_RUN_CONTEXT.runner.io_manager._epoll
    assert isinstance(theirs, select.epoll), "trio keeps it elsewhere now: events.loop is slow"
    if not epoll:
        monkeypatch.setattr("events.loop.select.epoll", type("Nothing", (), {}))
    bell = os.eventfd(0, os.EFD_NONBLOCK)
    heard, before = list[int](), list[str]()
    rung = trio.Event()

    def after() -> None:
        if select.select([bell], [], [], 0)[0]:
            heard.append(os.eventfd_read(bell))
            rung.set()

    def ring() -> None:
        os.eventfd_write(bell, len(heard) + 1)

    with part_in_loop(bell, after=after, before=lambda: before.append("before")):
        for _ in range(3):
            rung = trio.Event()
            with trio.fail_after(10):
                await trio.to_thread.run_sync(ring)  # while the loop waits, for all it knows for ever
                await rung.wait()
        assert heard == [1, 2, 3] and before
    calls = len(before)
    ring()
    await trio.lowlevel.checkpoint()
    await trio.lowlevel.checkpoint()
    assert heard == [1, 2, 3] and len(before) == calls
    os.close(bell)
    bell = os.eventfd(1, os.EFD_NONBLOCK)  # it probably has the same number, and is nobody's
    await trio.lowlevel.checkpoint()
    assert heard == [1, 2, 3]
    os.close(bell)
