"""Reading the next model's files ahead while its victims drain, so that its load finds them in memory.

An effect without consequence for any decision: it may be late, cut short, or not happen. The kernel is asked
in pieces, since it ignores the wish for a large file as a whole; a runner that reads with direct I/O gains
nothing.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import trio

from daemon import llama
from daemon.config.config import Model
from daemon.gguf import GgufError, parts
from events.limits import PREFETCH_KEEP_PERCENT, PREFETCH_PIECE_BYTES

log = logging.getLogger("runnerd")


def files_of(models: Mapping[str, Model], model: str) -> list[Path]:
    """What a model's server will read, as far as its command says (llama-server's does)."""
    spec = models.get(model)
    server = llama.server_of(spec) if spec is not None else None
    files: list[Path] = []
    for path in server.files if server is not None else ():
        with suppress(GgufError):
            files += parts(Path(path))
    return files


class Prefetcher:
    """Reads ahead for one model at a time: the one that was asked for last."""

    def __init__(self, files_of: Callable[[str], Sequence[Path]]) -> None:
        self._files_of = files_of
        self._asked = trio.Event()
        self._model = ""
        self._stop = threading.Event()

    def begin(self, model: str) -> None:
        """Read a model's files ahead, and no longer those of another one."""
        self._model = model
        self._stop.set()
        self._asked.set()

    async def run(self) -> None:
        """Until cancelled."""
        try:
            while True:
                await self._asked.wait()
                self._asked, self._stop = trio.Event(), threading.Event()
                files = self._files_of(self._model)
                await trio.to_thread.run_sync(read_ahead, files, self._stop, abandon_on_cancel=True)
        finally:
            self._stop.set()


def read_ahead(files: Sequence[Path], stop: threading.Event) -> int:
    """Ask the kernel to read files into its cache; how many bytes it was asked for. No more than leaves it
    PREFETCH_KEEP_PERCENT of what is available: the pages of the models that run are in that cache, too."""
    asked = 0
    for path in files:
        try:
            with open(path, "rb", opener=_not_blocking) as file:
                size = os.fstat(file.fileno()).st_size
                if size > available_bytes() * (100 - PREFETCH_KEEP_PERCENT) // 100:
                    return asked
                for offset in range(0, size, PREFETCH_PIECE_BYTES):
                    if stop.is_set():
                        return asked
                    os.posix_fadvise(file.fileno(), offset, PREFETCH_PIECE_BYTES, os.POSIX_FADV_WILLNEED)
                    asked += min(PREFETCH_PIECE_BYTES, size - offset)
        except OSError as error:
            log.info("%s is not read ahead: %s", path, error.strerror)
    return asked


def _not_blocking(path: str, flags: int) -> int:
    """What has the name of a file may be a pipe that nobody writes to: its thread would wait for ever."""
    return os.open(path, flags | os.O_NONBLOCK)


def available_bytes() -> int:
    """MemAvailable of /proc/meminfo; 0 where it does not say."""
    with open("/proc/meminfo", encoding="ascii") as file:
        for line in file:
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return 0
