"""The two tasks that look after every connection, so that none needs a nursery or a cancel scope of its own:
one notices what happens on sockets that no task waits for, as clients that hang up; the other ends waits that
last too long.
"""

from __future__ import annotations

import select
import socket
from collections.abc import Callable, Collection
from typing import Protocol

import trio

from daemon.http.wire import Clock

HANG_UP = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR | select.EPOLLET
"""A client has closed, or half-closed, its end while nobody reads from it.

Every client's socket is registered once, edge-triggered, so that requests cost nothing here. A client that
shuts down its sending side counts as gone: there is no telling the two apart before an answer is written, and
a queued request of nobody would hold its place for minutes."""


class Watch:
    """One epoll for all sockets on which something may happen that no task waits for."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._calls: dict[int, Callable[[], None]] = {}

    def watch(self, sock: socket.socket, events: int, call: Callable[[], None]) -> None:
        """Call `call`, which must not raise, at these events of epoll's, until the socket is forgotten."""
        fd = sock.fileno()
        self._calls[fd] = call
        self._epoll.register(fd, events)

    def forget(self, sock: socket.socket) -> bool:
        """Before the socket is closed. Whether it was watched."""
        fd = sock.fileno()
        if self._calls.pop(fd, None) is None:
            return False
        self._epoll.unregister(fd)
        return True

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await trio.lowlevel.wait_readable(self._epoll.fileno())
            for fd, _ in self._epoll.poll(0):
                call = self._calls.get(fd)
                if call is not None:  # else another's has had it forgotten
                    call()

    def close(self) -> None:
        """After `run` has been cancelled and every socket has been forgotten."""
        self._epoll.close()


class Mortal(Protocol):
    """What the reaper looks at."""

    def expire(self, now: float) -> None:
        """End what has been waiting for too long at the time `now` (seconds, monotonic)."""
        ...


async def reap(clock: Clock, tick_s: float, mortals: Collection[Mortal], tidy: Callable[[], None]) -> None:
    """Every `tick_s` seconds: move the coarse clock on, let each of `mortals` look at its deadlines, `tidy`.

    Ten thousand take two milliseconds, once a second; a heap would cost a little in every request instead.
    """
    while True:
        await trio.sleep(tick_s)
        clock.now = trio.current_time()
        for mortal in tuple(mortals):
            mortal.expire(clock.now)
        tidy()
