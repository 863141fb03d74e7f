"""Passes streams on. What has come from a runner is read and sent to its client at once: to wake the client's
task for each piece, and have it wait for the next one, costs more than the piece itself.
"""

from __future__ import annotations

import select
from collections.abc import Callable
from typing import Any, TypeVar

import outcome
import trio
from trio.lowlevel import Abort, current_task, reschedule, wait_task_rescheduled

from daemon.http.reaper import Watch
from daemon.http.wire import Wire

T = TypeVar("T")


async def drain(watch: Watch, wire: Wire, step: Callable[[], T | None]) -> T:
    """Have `step` called whenever there is something to read, until it returns something: that. `step` never
    waits; it takes one read's worth, or does nothing if there is nothing after all.

    Raises what `step` does, and ClosedResourceError where the wire is closed."""
    if wire.closed:
        raise trio.ClosedResourceError
    task = current_task()

    def end(how: outcome.Outcome[Any]) -> None:
        if watch.forget(wire.sock):
            reschedule(task, how)

    def ready() -> None:
        try:
            result = step()
        except Exception as error:
            end(outcome.Error(error))
        else:
            if result is not None:
                end(outcome.Value(result))

    def abort(_: object) -> Abort:
        watch.forget(wire.sock)
        return Abort.SUCCEEDED

    watch.watch(wire.sock, select.EPOLLIN, ready)
    wire.on_close = lambda: end(outcome.Error(trio.ClosedResourceError()))
    try:
        result: T = await wait_task_rescheduled(abort)
        return result
    finally:
        wire.on_close = None
