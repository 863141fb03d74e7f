"""What the supervisor knows of one runner: its processes (`Part`), its orders, its tasks."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path

import trio

from daemon.config.commands import Command
from daemon.ports import Launch
from daemon.processes import oom
from events.catalogue import Process
from events.limits import SHARD


class Part:
    """One process of a runner's, from its gate on."""

    def __init__(
        self, process: Process, pidfd: int, log: Path, child: subprocess.Popen[bytes] | None
    ) -> None:
        self.process = process
        self.pidfd = pidfd
        self.log = log
        """Where what it prints goes."""
        self.child = child
        """The process, where it is our child; an adopted one is not."""
        self.released = False
        """Whether it may run: its gate is open, or will be."""
        self.oom_kills = oom.kills()
        """How many the kernel had killed for want of memory when it began."""
        self.answer = ""
        """What its health check said last, and where that was asked."""
        self.stranger = ""
        """Who answered in its place, and what to do about that."""
        self.exited = trio.Event()
        """No process of this part is left."""

    @property
    def shard(self) -> int:
        """Which of the runner's processes it is."""
        return self.process.shard


class Charge:
    """One runner that is looked after."""

    def __init__(self, launch: Launch, folder: Path) -> None:
        self.launch = launch
        self.runner = launch.runner
        self.folder = folder
        self.socket = folder / f"{launch.runner}.sock"
        self.command: Command | None = None
        self.parts: dict[int, Part] = {}
        """By shard; those that have exited, too."""
        self.silent = False
        """Whether its output must stay out of the log: it has been ready, or may have been."""
        self.ready = False
        """Whether it has been ready since we look after it."""
        self.stopped = False
        """Whether it has been told to stop."""
        self.broken = trio.Event()
        """One of its processes has exited: it is, or is about to be, of no use."""
        self.scope = trio.CancelScope()
        self.nursery: trio.Nursery
        """Its tasks, from the first order to `forget`, which cancels their scope."""
        self.orders, self.inbox = trio.open_memory_channel[Callable[[], object]](64)

    def log(self, shard: int = SHARD) -> Path:
        """The file for what one of its processes prints."""
        return self.folder / (f"{self.runner}.{shard}.log" if shard else f"{self.runner}.log")

    def left(self) -> Iterable[Part]:
        """The parts that have not exited."""
        return [part for part in self.parts.values() if not part.exited.is_set()]


def kept_files(folder: Path, runner: str) -> Iterable[Path]:
    """What is kept for a runner: what its processes print, its socket."""
    return [path for end in ("log", "*.log", "sock") for path in folder.glob(f"{runner}.{end}")]
