"""The task that ends waits that last too long, so that no connection needs a cancel scope of its own."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Protocol

import trio

from daemon.http.wire import Clock


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
