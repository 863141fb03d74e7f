"""Daemons that start at once: forked from a process that has everything imported.

Each is the real `runnerd serve` in a process of its own; a thousand starts would else be a thousand times the
imports. One that starts again in place does import them: its program is executed.
"""

from __future__ import annotations

import io
import math
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from daemon.processes import identity
from events import failpoints
from tests.crash import program

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    [
        "tests.crash.armable",
        "tests.crash.world",
        "daemon.service",
        "daemon.config.file",
        "daemon.cli.starting",
    ]
)

PATIENCE_S = 60
"""Far longer than anything here takes; reaching it is a failure."""

DEATH_S = 10
"""How long it may take until the end of a daemon is known here, on a machine that is busy."""


def serve(arguments: Sequence[str], failpoint: str, journal: Connection) -> None:
    """In the new process: be the daemon."""
    os.dup2(journal.fileno(), 2)
    journal.close()
    sys.stderr = io.TextIOWrapper(io.FileIO(2, "w", closefd=False), line_buffering=True)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    if failpoint:
        os.environ[failpoints.VARIABLE] = failpoint
    sys.argv = [str(Path(program.__file__)), "serve", *arguments]
    sys.orig_argv = [sys.executable, *sys.argv]  # what is executed where it starts again
    sys.exit(program.main(sys.argv[1:]))


class Daemon:
    """One process of a daemon, which may start again in place."""

    def __init__(self, arguments: Sequence[str], failpoint: str = "") -> None:
        reader, writer = CONTEXT.Pipe(duplex=False)
        self._process: Any = CONTEXT.Process(target=serve, args=(arguments, failpoint, writer))
        self._process.start()
        writer.close()
        self.pid = int(self._process.pid or 0)
        self.began = time.monotonic()
        self.listens_s = 0.0
        """How long it took until it let clients in; 0: it never has."""
        self.port = 0
        self.journal: list[str] = []
        self.leaves = False
        """It has been told to stop, or to start again: that clients lose their connections is no wonder."""
        self._killed = -math.inf
        self.listens, self.over = threading.Event(), threading.Event()
        """It lets clients in; it has ended."""
        self._thread = threading.Thread(target=self._read, args=(reader,))
        self._thread.start()

    def _read(self, reader: Connection) -> None:
        with open(os.dup(reader.fileno()), encoding="utf-8", errors="replace") as lines:
            reader.close()
            for line in lines:
                self.journal.append(line)
                if "listening on" in line and not self.listens.is_set():
                    self.port = int(line.split("http://")[1].split(",")[0].rpartition(":")[2])
                    self.listens_s = time.monotonic() - self.began
                    self.listens.set()
        self._process.join(PATIENCE_S)
        self.over.set()
        self.listens.set()

    def kill(self) -> None:
        """SIGKILL."""
        found = identity.stat_of(self.pid)
        if found is not None and found.alive:  # it may have come to its failpoint just now
            self._killed = time.monotonic()
        self._process.kill()

    def terminate(self) -> None:
        """SIGTERM."""
        self.leaves = True
        self._process.terminate()

    def ends(self, within_s: float) -> bool:
        """Wait for its end."""
        return self.over.wait(within_s)

    def lived_at(self, moment: float) -> bool:
        """Whether it was still there at a moment that has passed: it was killed only later, or lives."""
        return not self.over.wait(DEATH_S) or self._killed > moment

    def code(self) -> int:
        """Wait for its end: its exit code, or less than 0, by which signal it died."""
        assert self.over.wait(PATIENCE_S), "it does not end"
        self._thread.join()
        code: int = self._process.exitcode
        return code
