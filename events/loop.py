"""A part in trio's loop without a task. A task would take a turn of its own, with a look at every socket
before it, and be put into trio's epoll anew each time that it waits.
"""

from __future__ import annotations

import select
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import trio
from trio._core import _run


def _nothing() -> None:
    """Where there is nothing to do."""


class _Part(trio.abc.Instrument):
    def __init__(self, before: Callable[[], None], after: Callable[[], None]) -> None:
        self._before = before
        self._after = after

    def before_io_wait(self, timeout: float) -> None:
        self._before()

    def after_io_wait(self, timeout: float) -> None:
        self._after()


@contextmanager
def part_in_loop(
    fd: int, *, after: Callable[[], None], before: Callable[[], None] = _nothing
) -> Iterator[None]:
    """As long as this lasts, trio's loop waits no longer than until `fd` can be read. It calls `before` when
    it is about to wait, and `after` afterwards: whom that wakes has his turn in the same round. `after` must
    see to what makes `fd` readable. Neither may raise: trio would call neither again."""
    part = _Part(before, after)
    with _waking(fd):
        trio.lowlevel.add_instrument(part)
        try:
            yield
        finally:
            trio.lowlevel.remove_instrument(part)


@contextmanager
def _waking(fd: int) -> Iterator[None]:
    """Have the loop wake when `fd` can be read. trio offers that to tasks alone, so this reaches for its
    epoll: that saves an eighth of a request's instructions. Where another trio has none, a task it is."""
    epoll: Any = getattr(getattr(_run.GLOBAL_RUN_CONTEXT.runner, "io_manager", None), "_epoll", None)
    if isinstance(epoll, select.epoll):
        epoll.register(fd, select.EPOLLIN)
        try:
            yield
        finally:
            epoll.unregister(fd)
        return

    async def wake() -> None:
        with suppress(trio.ClosedResourceError):
            while True:
                await trio.lowlevel.wait_readable(fd)

    trio.lowlevel.spawn_system_task(wake)
    try:
        yield
    finally:
        trio.lowlevel.notify_closing(fd)
