"""A short-lived process of our own beside the daemon, and what it prints: bounded in time and size."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from typing import NamedTuple

import trio

from events.limits import PROCESS_END_S


class Printed(NamedTuple):
    """What a process printed; `late`: up to when it had to be ended."""

    output: bytes
    late: bool


async def printed(argv: Sequence[str], *, patience_s: float, limit_bytes: int) -> Printed:
    """Run it, and collect its standard output until that ends, becomes longer than `limit_bytes`, or takes
    longer than `patience_s`. Then it is gone, in any case. Raises OSError where it cannot be started."""
    process = await trio.lowlevel.open_process(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={"LC_ALL": "C.UTF-8"},
    )
    assert process.stdout is not None
    output = bytearray()
    try:
        with trio.move_on_after(patience_s) as late:
            async for chunk in process.stdout:
                output += chunk
                if len(output) > limit_bytes:
                    break
    finally:
        process.kill()
        with trio.move_on_after(PROCESS_END_S, shield=True):
            await process.wait()
        await process.stdout.aclose()
    return Printed(bytes(output), late.cancelled_caught)
