"""Daemons that start at once: forked from a process that has everything imported.

Each is the real `runnerd serve` in a process of its own; a thousand starts would else be a thousand times the
imports.
"""

from __future__ import annotations

import io
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any

import pytest

from daemon import keeping
from daemon.cli import runnerd
from events import checkpoint, failpoints

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    ["tests.crash.world", "daemon.service", "daemon.config.file", "daemon.cli.starting"]
)

PATIENCE_S = 60
"""Far longer than anything here takes; reaching it is a failure."""

SOFT_PAGES = 40
"""As WAL_SOFT_PAGES, but so few that a short life has checkpoints."""


CARRY_EVENTS = 300
"""As that of the daemon, but so few that a short life has snapshots, and prunes what lies before them."""


def serve(arguments: Sequence[str], failpoint: str, journal: Connection) -> None:
    """In the new process: be the daemon."""
    os.dup2(journal.fileno(), 2)
    journal.close()
    sys.stderr = io.TextIOWrapper(io.FileIO(2, "w", closefd=False), line_buffering=True)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    patch = pytest.MonkeyPatch()
    patch.setattr(checkpoint, "WAL_SOFT_PAGES", SOFT_PAGES)
    keeping.Keeping.__init__.__defaults__ = (CARRY_EVENTS,)
    patch.setattr(keeping, "CARRY_PAUSE_S", 0.0)
    if failpoint:
        os.environ[failpoints.VARIABLE] = failpoint
    sys.exit(runnerd.main(["serve", *arguments]))


class Daemon:
    """One life of a daemon."""

    def __init__(self, arguments: Sequence[str], failpoint: str = "") -> None:
        reader, writer = CONTEXT.Pipe(duplex=False)
        self._process: Any = CONTEXT.Process(target=serve, args=(arguments, failpoint, writer))
        self._process.start()
        writer.close()
        self.began = time.monotonic()
        self.listens_s = 0.0
        """How long it took until it let clients in; 0: it never has."""
        self.port = 0
        self.journal: list[str] = []
        self.listens, self.over = threading.Event(), threading.Event()
        """It lets clients in; it has ended."""
        self._thread = threading.Thread(target=self._read, args=(reader,))
        self._thread.start()

    def _read(self, reader: Connection) -> None:
        with open(os.dup(reader.fileno()), encoding="utf-8", errors="replace") as lines:
            reader.close()
            for line in lines:
                self.journal.append(line)
                if "listening on" in line:
                    self.port = int(line.split("http://")[1].split(",")[0].rpartition(":")[2])
                    self.listens_s = time.monotonic() - self.began
                    self.listens.set()
        self._process.join(PATIENCE_S)
        self.over.set()
        self.listens.set()

    def kill(self) -> None:
        """SIGKILL."""
        self._process.kill()

    def terminate(self) -> None:
        """SIGTERM."""
        self._process.terminate()

    def ends(self, within_s: float) -> bool:
        """Wait for its end."""
        return self.over.wait(within_s)

    def code(self) -> int:
        """Wait for its end: its exit code, or less than 0, by which signal it died."""
        assert self.over.wait(PATIENCE_S), "it does not end"
        self._thread.join()
        code: int = self._process.exitcode
        return code
