"""What the daemon and its runners have said lately, for those who ask over HTTP: the past, and what comes.

The daemon's own messages are kept in memory; what runners print is in their files. Somebody who follows is
served by looking at these now and then: a file tells nobody that it has grown.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from pathlib import Path

import trio

from daemon.limits import LOG_FOLLOW_S, LOG_HISTORY_LINES, LOG_RING_BYTES
from daemon.processes.output import last_lines
from statemachines.state import State

PROXY = "proxy"
UPSTREAM = "upstream"
"""llama-swap's names for the daemon's own messages, and for what all runners print."""

READ_BYTES = 1 << 20
"""Of one file at one look: a runner that prints more than this in LOG_FOLLOW_S is shown later."""


class Ring(logging.Handler):
    """The last messages of the daemon, as text."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname).1s %(message)s"))
        self._lines: deque[bytes] = deque()
        self._held = 0
        self.end = 0
        """Bytes that were ever written."""

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a message, and forget the oldest. Called under the handler's lock, from any thread."""
        line = self.format(record).encode("utf-8", "replace") + b"\n"
        self._lines.append(line)
        self._held += len(line)
        self.end += len(line)
        while self._held > LOG_RING_BYTES:
            self._held -= len(self._lines.popleft())

    def since(self, seen: int) -> bytes:
        """What was written after the first `seen` bytes, as far as it is still kept."""
        self.acquire()
        try:
            return b"".join(self._lines)[max(0, self._held - (self.end - seen)) :]
        finally:
            self.release()


class Logs:
    """See the module. `files` gives the files of a runner's processes."""

    def __init__(
        self, ring: Ring, state: Callable[[], State], files: Callable[[str], Sequence[Path]]
    ) -> None:
        self._ring = ring
        self._state = state
        self._files = files

    def history(self, source: str) -> bytes:
        """The recent past of a source: PROXY, UPSTREAM, a model's id, or "" for everything."""
        told = [self._ring.since(0)] if source in ("", PROXY) else []
        for _, path in self._paths(source):
            told += [line.encode() + b"\n" for line in last_lines(path, LOG_HISTORY_LINES)]
        return b"".join(told)

    async def follow(self, source: str, *, history: bool = True) -> AsyncGenerator[bytes, None]:
        """The past, if it is wanted, and then whatever comes, without end."""
        seen = self._ring.end
        at = {path: _size(path) for _, path in self._paths(source)}
        if history:
            yield self.history(source)
        while True:
            await trio.sleep(LOG_FOLLOW_S)
            told = []
            if source in ("", PROXY):
                told.append(self._ring.since(seen))
                seen = self._ring.end
            current = [path for _, path in self._paths(source)]
            at = {path: at.get(path, 0) for path in current}
            for path in current:
                data, at[path] = _read(path, at[path])
                told.append(data)
            if any(told):
                yield b"".join(told)

    def _paths(self, source: str) -> Iterator[tuple[str, Path]]:
        """The files of the runners that a source means, and whose they are."""
        if source == PROXY:
            return
        for runner in self._state().runners.values():
            if source in ("", UPSTREAM, runner.model):
                for path in self._files(runner.id):
                    yield runner.id, path


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _read(path: Path, at: int) -> tuple[bytes, int]:
    """What a file has beyond `at`, and where that ends. A file that was cut starts again."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            file.seek(at if at <= size else 0)
            data = file.read(READ_BYTES)
            return data, file.tell()
    except OSError:
        return b"", 0
