"""Measuring memory: the host by /proc and the cgroup, GPUs by NVML, each runner by its processes.

Runs in a worker thread: NVML can take its time, or never return. A machine without a driver has no GPUs.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import pynvml
import trio

from daemon.processes import identity
from events.catalogue import MemoryMeasured, Reading
from events.limits import METER_S, SCARCE_PAUSE_S

log = logging.getLogger("runnerd")

HOST = "host"
NO_LIMIT_BYTES = 1 << 62
"""cgroup v1 says "no limit" with a number just below 2^63."""


class MachineMeter:
    """See `daemon.ports.Meter`."""

    def __init__(
        self, proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup"), patience_s: float = METER_S
    ) -> None:
        self._proc = proc
        self._cgroups = cgroups
        self._patience_s = patience_s
        self._nvml = False
        self._total_bytes: dict[str, int] = {}
        """Of every GPU that was ever seen: one that cannot be read now is not one that was never there."""
        self._in_thread = False
        self._trouble = ""

    async def measure(self, processes: Mapping[str, Sequence[int]]) -> MemoryMeasured:
        """Read every device, and what each runner's processes (by their groups) use of it.

        A driver that does not answer in time leaves its GPUs without a reading, and one thread behind. While
        the daemon has no descriptor left, it waits for one.
        """
        while True:
            try:
                return await self._measure(processes)
            except OSError as error:
                if error.errno not in identity.SCARCE:
                    raise
                self._warn(str(error))
            await trio.sleep(SCARCE_PAUSE_S)

    async def _measure(self, processes: Mapping[str, Sequence[int]]) -> MemoryMeasured:
        if not self._in_thread:
            self._in_thread = True
            with trio.move_on_after(self._patience_s):
                return await trio.to_thread.run_sync(self._in_worker, processes, abandon_on_cancel=True)
        self._warn("NVML: the driver does not answer")
        return MemoryMeasured({HOST: host_reading(self._proc, self._cgroups), **self._unknown()})

    def _in_worker(self, processes: Mapping[str, Sequence[int]]) -> MemoryMeasured:
        try:
            return self.measure_now(processes)
        finally:
            self._in_thread = False

    def measure_now(self, processes: Mapping[str, Sequence[int]]) -> MemoryMeasured:
        """The same, in this thread."""
        groups = {pid: runner for runner, pids in processes.items() for pid in pids}
        owner: dict[int, str] = {}
        used: dict[str, dict[str, int]] = {}
        if groups:
            for stat in identity.processes():
                runner = groups.get(stat.group)
                if runner is not None:
                    owner[stat.pid] = runner
                    mine = used.setdefault(runner, {})
                    mine[HOST] = mine.get(HOST, 0) + stat.rss_bytes
        devices = {HOST: host_reading(self._proc, self._cgroups)}
        devices.update(self._gpus(owner, used) if self._has_nvml() else self._unknown())
        return MemoryMeasured(devices, used)

    def _has_nvml(self) -> bool:
        """Whether there is a driver. It may come later, and come back: its module can be loaded again."""
        if not self._nvml:
            with suppress(pynvml.NVMLError):
                pynvml.nvmlInit()
                self._nvml = True
        return self._nvml

    def _unknown(self) -> dict[str, Reading]:
        """Every known GPU as one that cannot be read: nothing of it is free."""
        return {name: Reading(size, 0, reliable=False) for name, size in self._total_bytes.items()}

    def _warn(self, trouble: str) -> None:
        """Say it once, not at every measurement."""
        if trouble and trouble != self._trouble:
            log.warning("memory: %s", trouble)
        self._trouble = trouble

    def _gpus(self, owner: Mapping[int, str], used: dict[str, dict[str, int]]) -> dict[str, Reading]:
        """Each GPU's memory. One that fails (it fell off the bus) has none free."""
        found = self._unknown()
        troubles = []
        try:
            count = int(pynvml.nvmlDeviceGetCount())
        except pynvml.NVMLError as error:
            self._warn(f"NVML: {error}")
            with suppress(pynvml.NVMLError):
                pynvml.nvmlShutdown()
            self._nvml = False
            return found
        for index in range(count):
            name = f"gpu{index}"
            try:
                handle = pynvml.nvmlDeviceGetHandleByIndex(index)
                memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
                found[name] = Reading(int(memory.total), int(memory.free))
                self._total_bytes[name] = found[name].total_bytes
                for pid, size_bytes in _users(handle):
                    runner = owner.get(pid)
                    if runner is not None:
                        mine = used.setdefault(runner, {})
                        mine[name] = mine.get(name, 0) + size_bytes
            except pynvml.NVMLError as error:
                troubles.append(f"NVML: {name}: {error}")
                found[name] = Reading(self._total_bytes.get(name, 0), 0, reliable=False)
        self._warn("; ".join(troubles))
        return found


def _users(handle: object) -> list[tuple[int, int]]:
    """(pid, bytes) of each process on a GPU; empty where the driver does not tell (in WSL, for instance)."""
    with suppress(pynvml.NVMLError):
        running = pynvml.nvmlDeviceGetComputeRunningProcesses(handle)
        return [(int(p.pid), int(p.usedGpuMemory)) for p in running if p.usedGpuMemory is not None]
    return []


def host_reading(proc: Path, cgroups: Path) -> Reading:
    """Host memory: the machine's, or the tightest limit of the cgroups that this process is in."""
    lines = (proc / "meminfo").read_text().splitlines()
    info = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.endswith("kB")}
    total, free = info["MemTotal"], info["MemAvailable"]
    for limit, in_use in _limits(proc, cgroups):
        total, free = min(total, limit), min(free, max(0, limit - in_use))
    return Reading(total, free)


def _limits(proc: Path, cgroups: Path) -> list[tuple[int, int]]:
    """(limit, in use) of every cgroup from ours up to the root that has a limit; bytes, v1 and v2.

    Inactive file cache is not counted as used: the kernel gives it back before it kills anybody.
    """
    found = []
    for line in _text(proc / "self" / "cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        v2 = not controllers
        root = cgroups if v2 else cgroups / "memory"
        names = ("memory.max", "memory.current") if v2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
        folder = root / path.lstrip("/")
        while True:
            reading = _limit_of(folder, *names)
            if reading is not None:
                found.append(reading)
            if folder == root or root not in folder.parents:
                break
            folder = folder.parent
    return found


def _limit_of(folder: Path, limit_name: str, usage_name: str) -> tuple[int, int] | None:
    try:
        text = _text(folder / limit_name).strip()
        if text == "max" or int(text) >= NO_LIMIT_BYTES:
            return None
        in_use = int(_text(folder / usage_name))
        stat = dict(line.split() for line in _text(folder / "memory.stat").splitlines())
        cache = int(stat.get("total_inactive_file", stat.get("inactive_file", 0)))
        return int(text), max(0, in_use - cache)
    except ValueError:  # also where there is no such file
        return None


def _text(path: Path) -> str:
    """A small file; "" where it cannot be read. Raises OSError (SCARCE): a limit is there all the same."""
    try:
        return path.read_text()
    except OSError as error:
        if error.errno in identity.SCARCE:
            raise
        return ""


__all__ = ["HOST", "MachineMeter", "host_reading"]
