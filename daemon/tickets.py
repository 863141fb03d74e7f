"""Tickets: what the driver tells those whose requests it has taken, one thing after the other."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import outcome
import trio

from daemon.ports import Dispatched, Ended, Revoked


class Ticket:
    """One request's way through the scheduler, as its connection sees it."""

    __slots__ = ("_next", "_task", "caller", "model", "on_cut", "on_end", "request")

    def __init__(self, request: str, model: str, caller: str) -> None:
        self.request = request
        self.model = model
        self.caller = caller
        self.on_end: Callable[[Ended], None] | None = None
        self.on_cut: Callable[[str], None] | None = None
        self._next: Dispatched | Ended | None = None
        self._task: trio.lowlevel.Task | None = None

    async def turn(self) -> Dispatched | Ended:
        """Wait for the next dispatch, or the end."""
        if self._next is None:
            self._task = trio.lowlevel.current_task()
            await trio.lowlevel.wait_task_rescheduled(self._abort)
        turn, self._next = self._next, None
        assert turn is not None
        return turn

    def _abort(self, _: object) -> trio.lowlevel.Abort:
        self._task = None
        return trio.lowlevel.Abort.SUCCEEDED

    def tell(self, turn: Dispatched | Ended) -> Dispatched | None:
        """Hand over a turn; a waiting task wakes once. Returns a dispatch that its task has not seen yet."""
        unseen, self._next = self._next, turn
        task, self._task = self._task, None
        if task is not None:
            trio.lowlevel.reschedule(task, outcome.Value(None))
        elif unseen is None and isinstance(turn, Ended) and self.on_end is not None:
            self.on_end(turn)
        return unseen if isinstance(unseen, Dispatched) else None


class LeaseTicket:
    """A lease's way through the scheduler, as its holder sees it. Nothing that is told is lost, however late
    it is asked for."""

    __slots__ = ("_told", "_wake", "caller", "model", "request")

    def __init__(self, request: str, model: str, caller: str) -> None:
        self.request = request
        self.model = model
        self.caller = caller
        self._told: deque[Dispatched | Revoked | Ended] = deque()
        self._wake = trio.Event()

    async def turn(self) -> Dispatched | Revoked | Ended:
        """Wait for what comes next."""
        while not self._told:
            self._wake = trio.Event()
            await self._wake.wait()
        return self._told.popleft()

    def tell(self, turn: Dispatched | Revoked | Ended) -> None:
        """Hand over what comes next."""
        self._told.append(turn)
        self._wake.set()
