"""Two connections joined: after a WebSocket's handshake, bytes pass both ways until either side closes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import trio

from daemon.http.wire import FAILURES, Wire


async def tunnel(client: Wire, upstream: Wire, to_client: Callable[[int], None]) -> None:
    """Until one of the two ends; `to_client` is told of the bytes that went to the client."""
    async with trio.open_nursery() as nursery:

        async def one_way(source: Wire, sink: Wire, passed: Callable[[int], None]) -> None:
            with suppress(*FAILURES):
                while data := await source.recv():
                    await sink.send(data)
                    passed(len(data))
            nursery.cancel_scope.cancel()

        nursery.start_soon(one_way, client, upstream, lambda size: None)
        nursery.start_soon(one_way, upstream, client, to_client)
