"""What a log does over a million requests: `python -m benchmarks.bench_growth [--requests N] [--size MiB]`.

The core, the driver and the store at full rate, with keepers beside them, and no HTTP: four events a request.
Shown are the sizes of the log, its write-ahead log and its archive, the memory of the process, how long steps
waited to be durable, and how long a start from this log takes (opened, checked, folded). `--size 0` prunes
nothing: then the start is one from a log of 4 × N events.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import trio

from daemon.beside import running
from daemon.clock import Clock
from daemon.config.retention import Retention
from daemon.driver import Driver
from daemon.keeping import Keeping, archive_path
from daemon.recovery import fold_log
from events import catalogue as c
from events.limits import GIB, MIB
from events.store import EventStore, open_store
from statemachines.scheduler import RULES, Scheduler

AT_ONCE = 32
"""Requests that are under way together."""


class Nobody:
    """Carries out nothing."""

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments: None


class Meter:
    """A machine with plenty of memory."""

    async def measure(self, processes: Mapping[str, Sequence[int]]) -> c.MemoryMeasured:
        await trio.lowlevel.checkpoint()
        return c.MemoryMeasured({"host": c.Reading(512 * GIB, 500 * GIB)})


def resident_mib() -> float:
    """Of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / MIB


class Seen:
    """The most of everything, and the memory on the way."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self.log = self.wal = self.archive = 0
        self.memory: list[float] = []
        self.waits_ns: list[int] = []

    def look(self, store: EventStore) -> None:
        stats = store.stats
        self.log, self.wal = max(self.log, stats.log_bytes), max(self.wal, stats.wal_peak_bytes)
        archive = archive_path(self._log)
        if archive.exists():
            self.archive = max(self.archive, sum(path.stat().st_size for path in archive.glob("*.gz")))
        self.memory.append(resident_mib())


async def load(driver: Driver) -> str:
    """A ready runner with room for everybody."""
    model = c.ModelView("d", slots=AT_ONCE, memory_bytes={"host": GIB})
    driver.submit(c.DaemonStarted(RULES, "balanced", "boot", "bench"))
    driver.submit(c.ConfigChanged(c.ConfigView({f"m{i}": model for i in range(50)})))
    driver.submit(await driver.meter.measure({}))
    driver.submit(c.RequestArrived("m0", "chat"))
    runner = next(iter(driver.state.runners))
    driver.submit(c.ProcessSpawned(c.Process(runner, 0, "boot", 1, 1)))
    driver.submit(c.ProbeAnswered(runner, True))
    driver.submit(c.UpstreamEnded(next(iter(driver.state.requests)), runner, True, 1, 200))
    return runner


async def soak(log: Path, requests: int, retention: Retention, seconds: float) -> None:
    """Run, and print what was seen."""
    seen = Seen(log)
    async with open_store(log) as store:
        driver = Driver(store, Scheduler(), Clock(), log)
        driver.machinery, driver.meter = Nobody(), Meter()
        kept = Keeping(driver, store, log, 0, lambda: retention)
        began, done = time.monotonic(), 0
        async with running(driver.run, kept.run):
            runner = await load(driver)
            while done < requests and time.monotonic() < began + seconds:
                ids = [driver.arrive(c.RequestArrived("m0", "chat")).request for _ in range(AT_ONCE)]
                for id in ids:
                    driver.submit(c.UpstreamEnded(id, runner, True, 1000, 200, True, 1_000_000))
                asked = time.monotonic_ns()
                await driver.durable(driver.state.seq)
                seen.waits_ns.append(time.monotonic_ns() - asked)
                done += AT_ONCE
                if done % (AT_ONCE * 100) == 0:
                    seen.look(store)
            taken = time.monotonic() - began
        await kept.carry(whole=False)
        seen.look(store)
        base, last = store.base.seq, store.head.seq
    quarter = seen.memory[len(seen.memory) // 4]
    print(f"{done} requests, {last} events in {taken:.0f} s: {last / taken:.0f} events/s")
    print(f"the log: {seen.log / MIB:.0f} MiB at most, of {retention.size_bytes / MIB:.0f}; base {base}")
    print(f"its WAL: {seen.wal / MIB:.1f} MiB at most; its archive: {seen.archive / MIB:.0f} MiB")
    print(f"memory: {quarter:.1f} MiB after a quarter, {seen.memory[-1]:.1f} at the end")
    waits_ns = sorted(seen.waits_ns)
    at = (
        f"{waits_ns[min(len(waits_ns) - 1, len(waits_ns) * p // 1000)] / 1e6:.1f} ms (p{p / 10})"
        for p in (500, 990, 999, 1000)
    )
    print(f"{4 * AT_ONCE} events are durable after {', '.join(at)}")
    start(log)


def start(log: Path) -> None:
    """A start from this log, as a daemon makes it."""
    began = time.monotonic()
    recovered = fold_log(log)
    folded = recovered.state.seq - recovered.carried_seq
    print(f"a start: {time.monotonic() - began:.3f} s, {folded} events folded of {recovered.state.seq}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=float, default=3600.0, help="at most")
    parser.add_argument("--size", type=int, default=64, metavar="MIB")
    asked = parser.parse_args()
    retention = Retention(asked.size * MIB, 0, 256 * MIB)
    with tempfile.TemporaryDirectory() as directory:
        trio.run(soak, Path(directory) / "events.db", asked.requests, retention, asked.seconds)


if __name__ == "__main__":
    main()
