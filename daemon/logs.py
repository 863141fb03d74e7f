"""What the daemon and its runners have said lately, for those who ask over HTTP: the past, and what comes.

The daemon's own messages are kept in memory; what runners print is in their files. Somebody who follows is
served by looking at these now and then: a file tells nobody that it has grown.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from functools import partial
from pathlib import Path

import trio

from daemon.limits import LOG_FOLLOW_S, LOG_HISTORY_LINES, LOG_LINE_BYTES, LOG_RING_BYTES
from daemon.ports import Output
from daemon.processes.output import last_lines

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
    """See the module. `outputs` tells the files that there are, those of runners that have ended first."""

    def __init__(self, ring: Ring, outputs: Callable[[], Sequence[Output]]) -> None:
        self._ring = ring
        self._outputs = outputs

    def history(self, source: str) -> bytes:
        """The recent past of a source: PROXY, UPSTREAM, a model's id (that of its last runner, if none is
        there), or "" for everything."""
        told = [self._ring.since(0)] if source in ("", PROXY) else []
        found = self._of(source)
        if source not in ("", UPSTREAM):
            found = [output for output in found if not output.ended] or found
        for output in found:
            for line in last_lines(output.path, LOG_HISTORY_LINES):
                told.append(_mark(output, source) + line.encode() + b"\n")
        return b"".join(told)

    async def follow(self, source: str, *, history: bool = True) -> AsyncGenerator[bytes, None]:
        """The past, if it is wanted, and then whatever comes, in whole lines, without end."""
        follower = self.follower(source)
        if history:
            yield self.history(source)
        while True:
            await trio.sleep(LOG_FOLLOW_S)
            if news := follower.news():
                yield news

    def follower(self, source: str) -> Follower:
        """Somebody who follows a source from now on, and asks for the news now and then."""
        return Follower(self._ring, partial(self._of, source), source)

    def _of(self, source: str) -> list[Output]:
        """The files that a source means."""
        return [output for output in self._outputs() if source in ("", UPSTREAM, output.model)]


class Follower:
    """How far somebody has followed a source."""

    def __init__(self, ring: Ring, outputs: Callable[[], Sequence[Output]], source: str) -> None:
        self._ring = ring
        self._outputs = outputs
        self._source = source
        self._seen = ring.end
        self._tails = {output.name: Tail(_size(output.path)) for output in outputs()}

    def news(self) -> bytes:
        """What has come since, in whole lines."""
        told = []
        if self._source in ("", PROXY):
            told.append(self._ring.since(self._seen))
            self._seen = self._ring.end
        current = self._outputs()
        self._tails = {output.name: self._tails.get(output.name) or Tail(0) for output in current}
        for output in current:
            mark = _mark(output, self._source)
            told += [mark + line for line in self._tails[output.name].lines(output.path)]
        return b"".join(told)


class Tail:
    """How far somebody has read one file."""

    def __init__(self, at: int) -> None:
        self._at = at
        self._rest = b""

    def lines(self, path: Path) -> list[bytes]:
        """The lines that have been completed since, or have become too long to wait for their end."""
        data, self._at = _read(path, self._at)
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > LOG_LINE_BYTES:  # a progress bar may be one endless line
            lines.append(self._rest)
            self._rest = b""
        return [line + b"\n" for line in lines]


def _mark(output: Output, source: str) -> bytes:
    """Whose line it is, among all that is said. UPSTREAM is as it was printed: programs take it to pieces."""
    return b"" if source else f"{output.model} {output.name}: ".encode()


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
