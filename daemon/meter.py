"""Measuring memory: the host by /proc and the cgroup, GPUs by NVML, each runner by its processes.

Runs in a worker thread: NVML can take its time. A machine without a driver has no GPUs.
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

log = logging.getLogger("runnerd")

HOST = "host"
NO_LIMIT_BYTES = 1 << 62
"""cgroup v1 says "no limit" with a number just below 2^63."""


class MachineMeter:
    """See `daemon.ports.Meter`."""

    def __init__(self, proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> None:
        self._proc = proc
        self._cgroups = cgroups
        self._nvml: bool | None = None

    async def measure(self, processes: Mapping[str, Sequence[int]]) -> MemoryMeasured:
        """Read every device, and what each runner's processes (by their groups) use of it."""
        return await trio.to_thread.run_sync(self.measure_now, processes)

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
        if self._has_nvml():
            devices.update(self._gpus(owner, used))
        return MemoryMeasured(devices, used)

    def _has_nvml(self) -> bool:
        if self._nvml is None:
            try:
                pynvml.nvmlInit()
                self._nvml = True
            except pynvml.NVMLError:
                self._nvml = False
        return self._nvml

    def _gpus(self, owner: Mapping[int, str], used: dict[str, dict[str, int]]) -> dict[str, Reading]:
        """Each GPU's memory. One that fails (it fell off the bus) has none free, and cannot be trusted."""
        found = {}
        try:
            count = pynvml.nvmlDeviceGetCount()
        except pynvml.NVMLError as error:
            log.warning("NVML: %s", error)
            return {}
        for index in range(count):
            name = f"gpu{index}"
            try:
                handle = pynvml.nvmlDeviceGetHandleByIndex(index)
                memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
                found[name] = Reading(int(memory.total), int(memory.free))
                for process in pynvml.nvmlDeviceGetComputeRunningProcesses(handle):
                    runner = owner.get(process.pid)
                    if runner is not None and process.usedGpuMemory is not None:
                        mine = used.setdefault(runner, {})
                        mine[name] = mine.get(name, 0) + int(process.usedGpuMemory)
            except pynvml.NVMLError as error:
                log.warning("NVML: %s: %s", name, error)
                found[name] = Reading(0, 0, reliable=False)
        return found


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
    with suppress(OSError):
        for line in (proc / "self" / "cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers and "memory" not in controllers.split(","):
                continue
            v2 = not controllers
            root = cgroups if v2 else cgroups / "memory"
            names = (
                ("memory.max", "memory.current") if v2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
            )
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
        text = (folder / limit_name).read_text().strip()
        if text == "max" or int(text) >= NO_LIMIT_BYTES:
            return None
        in_use = int((folder / usage_name).read_text())
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        cache = int(stat.get("total_inactive_file", stat.get("inactive_file", 0)))
        return int(text), max(0, in_use - cache)
    except (OSError, ValueError):
        return None


__all__ = ["HOST", "MachineMeter", "host_reading"]
