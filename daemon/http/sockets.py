"""What happens on the sockets of clients and runners: one epoll for all of them, in which each stays.

For trio to wait on a socket is to put it into an epoll and to take it out again, and to wake a task that then
reads. Here what comes is read before any task has its turn, and only who gets something is waked.
"""

from __future__ import annotations

import select
from contextlib import AbstractContextManager
from typing import Protocol

import trio

from events.loop import part_in_loop

GONE = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR
"""The peer has closed its end, or half-closed it. A client that shuts down its sending side counts as gone:
there is no telling the two apart before an answer is written, and a queued request of nobody would hold its
place for minutes."""

ASKED = select.EPOLLIN | select.EPOLLRDHUP
"""What of a socket is looked for, as long as nothing comes that nobody asked for."""

UNASKED = GONE | select.EPOLLET
"""For as long as what has come is not asked for: that it is there is said once."""


class Owner(Protocol):
    """A socket's owner."""

    fd: int

    def came(self) -> bool:
        """Something has come, or its end. Whether anybody waited for that. Must not raise."""
        ...

    def hung_up(self) -> None:
        """The peer is gone, and nobody waits for what it sends. May be said twice."""
        ...


class Sockets:
    """See the module. `look` and `run` belong together: `in_loop` calls the one, a task runs the other."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._all: dict[int, Owner] = {}
        self._asked: set[int] = set()
        """Those whose owner has asked."""
        self._left: list[Owner] = []
        """Those whose peer is gone while nobody waited for it, for `run` to tell them."""
        self._stirred = trio.Event()
        """There is something for `run` to do."""
        self._error: BaseException | None = None

    @property
    def fd(self) -> int:
        """Readable when something has come."""
        return self._epoll.fileno()

    def __len__(self) -> int:
        return len(self._all)

    def ask(self, owner: Owner) -> None:
        """From now on it is told what comes."""
        fd = owner.fd
        if fd in self._asked:
            return
        if fd in self._all:
            self._epoll.modify(fd, ASKED)
        else:
            self._epoll.register(fd, ASKED)
            self._all[fd] = owner
        self._asked.add(fd)

    def forget(self, owner: Owner) -> None:
        """Before the socket is closed. Idempotent."""
        if self._all.pop(owner.fd, None) is not None:
            self._asked.discard(owner.fd)
            self._epoll.unregister(owner.fd)

    def look(self) -> None:
        """Tell everybody what has come."""
        try:
            for fd, events in self._epoll.poll(0):
                owner = self._all.get(fd)  # None: another's has had it forgotten
                if owner is None or owner.came():
                    continue
                if fd in self._asked:
                    self._asked.discard(fd)
                    self._epoll.modify(fd, UNASKED)
                if events & GONE:
                    self._left.append(owner)
        except BaseException as error:  # trio would only drop who calls this
            self._error = error
        if self._left or self._error is not None:
            self._stirred.set()

    async def run(self) -> None:
        """Until cancelled: tell who was left, in a task, as whatever the daemon is told has to be."""
        while True:
            await self._stirred.wait()
            self._stirred = trio.Event()
            if self._error is not None:
                raise self._error
            left, self._left = self._left, []
            for owner in left:
                if self._all.get(owner.fd) is owner and owner.fd not in self._asked:
                    owner.hung_up()  # else it is closed; or it was asked for since, and who reads will see

    def close(self) -> None:
        """After `run` has been cancelled and every socket has been forgotten."""
        self._epoll.close()


def in_loop(sockets: Sockets) -> AbstractContextManager[None]:
    """Have it look in each turn of trio's loop, as long as this lasts."""
    return part_in_loop(sockets.fd, after=sockets.look)
