"""Tasks that run beside a block, and end with it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import trio


@asynccontextmanager
async def running(*tasks: Callable[[], Awaitable[object]]) -> AsyncIterator[None]:
    """Run them; one that raises cancels the block, and is raised by it."""
    async with trio.open_nursery() as nursery:
        for task in tasks:
            nursery.start_soon(task)
        yield
        nursery.cancel_scope.cancel()
