"""Passes streams on. What has come from a runner is read and sent to its client at once: to wake the client's
task for each piece, and have it wait for the next one, costs more than the piece itself.
"""

from __future__ import annotations

import select
from collections.abc import Callable
from typing import Any, TypeVar

import outcome
import trio
from trio.lowlevel import Abort, Task, reschedule, wait_readable, wait_task_rescheduled

from daemon.http.wire import Wire

T = TypeVar("T")


class Pump:
    """One epoll with every runner's connection on which a stream comes, and one task that looks at it."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._flows: dict[int, tuple[Task, Callable[[], object]]] = {}

    async def drain(self, wire: Wire, step: Callable[[], T | None]) -> T:
        """Call `step` whenever there is something to read, until it returns something: that. `step` never
        waits; it takes one read's worth, or does nothing if there is nothing after all.

        Raises what `step` does, and ClosedResourceError where the wire is closed."""
        if wire.closed:
            raise trio.ClosedResourceError
        fd = wire.sock.fileno()
        self._flows[fd] = trio.lowlevel.current_task(), step
        self._epoll.register(fd, select.EPOLLIN)
        wire.on_close = lambda: self._end(fd, outcome.Error(trio.ClosedResourceError()))

        def abort(_: object) -> Abort:
            self._forget(fd)
            return Abort.SUCCEEDED

        try:
            result: T = await wait_task_rescheduled(abort)
            return result
        finally:
            wire.on_close = None

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await wait_readable(self._epoll.fileno())
            for fd, _ in self._epoll.poll(0):
                flow = self._flows.get(fd)
                if flow is None:
                    continue  # another's step has ended it
                try:
                    result = flow[1]()
                except Exception as error:
                    self._end(fd, outcome.Error(error))
                else:
                    if result is not None:
                        self._end(fd, outcome.Value(result))

    def close(self) -> None:
        """After `run` has been cancelled, and nobody drains any more."""
        self._epoll.close()

    def _end(self, fd: int, how: outcome.Outcome[Any]) -> None:
        task = self._forget(fd)
        if task is not None:
            reschedule(task, how)

    def _forget(self, fd: int) -> Task | None:
        flow = self._flows.pop(fd, None)
        if flow is None:
            return None
        self._epoll.unregister(fd)
        return flow[0]
