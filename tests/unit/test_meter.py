"""Memory: the host's, from files as Linux has them; GPUs', through the real nvidia-ml-py on a fake driver."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest
import trio

from daemon.meter import MachineMeter, host_reading
from events.catalogue import MemoryMeasured, Reading

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
V1_NO_LIMIT = 9223372036854771712
PATIENCE_S = 60


# --- the host --------------------------------------------------------------------------------------------


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    """A /proc of a machine with 64 GiB, of which 40 are available, and no cgroups."""
    folder = tmp_path / "proc"
    (folder / "self").mkdir(parents=True)
    total, available = 64 * GIB // KIB, 40 * GIB // KIB
    text = f"MemTotal: {total} kB\nMemFree: 1024 kB\nMemAvailable:   {available} kB\nHugePages_Total: 0\n"
    (folder / "meminfo").write_text(text)
    return folder


@pytest.fixture
def cgroups(tmp_path: Path) -> Path:
    """An empty /sys/fs/cgroup."""
    folder = tmp_path / "cgroup"
    folder.mkdir()
    return folder


def v2(folder: Path, limit: str, used: int, inactive_file: int = 0) -> None:
    """A cgroup of version 2."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 0\ninactive_file {inactive_file}\n")


def v1(folder: Path, limit: int, used: int, inactive_file: int = 0) -> None:
    """A cgroup of version 1, whose statistics of its own say less than those with its children."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.limit_in_bytes").write_text(f"{limit}\n")
    (folder / "memory.usage_in_bytes").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"inactive_file 0\ntotal_inactive_file {inactive_file}\n")


def test_without_cgroups_the_machine_is_the_host(proc: Path, cgroups: Path) -> None:
    assert host_reading(proc, cgroups) == Reading(64 * GIB, 40 * GIB)


def test_a_limit_above_our_own_cgroup_binds_too(proc: Path, cgroups: Path) -> None:
    (proc / "self/cgroup").write_text("0::/box/runnerd.service\n")
    v2(cgroups / "box/runnerd.service", "max", 3 * GIB)
    v2(cgroups / "box", str(16 * GIB), 6 * GIB)
    v2(cgroups, str(32 * GIB), 8 * GIB)
    assert host_reading(proc, cgroups) == Reading(16 * GIB, 10 * GIB)


def test_what_is_tightest_is_sought_for_total_and_free_apart(proc: Path, cgroups: Path) -> None:
    (proc / "self/cgroup").write_text("0::/full/small\n")
    v2(cgroups / "full/small", str(8 * GIB), 0)
    v2(cgroups / "full", str(48 * GIB), 47 * GIB)
    assert host_reading(proc, cgroups) == Reading(8 * GIB, 1 * GIB)


def test_file_cache_that_can_be_dropped_is_free(proc: Path, cgroups: Path) -> None:
    (proc / "self/cgroup").write_text("0::/box\n")
    v2(cgroups / "box", str(16 * GIB), 15 * GIB, inactive_file=9 * GIB)
    assert host_reading(proc, cgroups) == Reading(16 * GIB, 10 * GIB)


def test_a_cgroup_over_its_limit_has_nothing_free(proc: Path, cgroups: Path) -> None:
    (proc / "self/cgroup").write_text("0::/box\n")
    v2(cgroups / "box", str(1 * GIB), 2 * GIB)
    assert host_reading(proc, cgroups) == Reading(1 * GIB, 0)


def test_the_machine_may_have_less_free_than_the_cgroup(proc: Path, cgroups: Path) -> None:
    (proc / "self/cgroup").write_text("0::/box\n")
    v2(cgroups / "box", str(60 * GIB), 1 * GIB)
    assert host_reading(proc, cgroups) == Reading(60 * GIB, 40 * GIB)


def test_version_1_nested_with_its_way_of_saying_no_limit(proc: Path, cgroups: Path) -> None:
    (proc / "self/cgroup").write_text("5:cpu,cpuacct:/else\n4:memory:/docker/abc\n0::/docker/abc\n")
    v1(cgroups / "memory/docker/abc", V1_NO_LIMIT, 2 * GIB)
    v1(cgroups / "memory/docker", 12 * GIB, 6 * GIB, inactive_file=2 * GIB)
    v1(cgroups / "memory", V1_NO_LIMIT, 30 * GIB)
    assert host_reading(proc, cgroups) == Reading(12 * GIB, 8 * GIB)


def test_a_path_that_is_not_mounted_here_leaves_the_root_which_is(proc: Path, cgroups: Path) -> None:
    (proc / "self/cgroup").write_text("4:memory:/docker/abc\n")
    v1(cgroups / "memory", 4 * GIB, 1 * GIB)
    assert host_reading(proc, cgroups) == Reading(4 * GIB, 3 * GIB)


def test_a_cgroup_without_a_memory_controller_is_passed_over(proc: Path, cgroups: Path) -> None:
    (proc / "self/cgroup").write_text("1:name=systemd:/x\n0::/box/leaf\n")
    (cgroups / "box/leaf").mkdir(parents=True)
    v2(cgroups / "box", str(16 * GIB), 6 * GIB)
    assert host_reading(proc, cgroups) == Reading(16 * GIB, 10 * GIB)


def test_a_path_outside_what_is_mounted_here_is_not_followed_for_ever(proc: Path, cgroups: Path) -> None:
    (proc / "self/cgroup").write_text("0::/../../other\n")
    v2(cgroups, str(16 * GIB), 6 * GIB)
    assert host_reading(proc, cgroups) == Reading(16 * GIB, 10 * GIB)


@pytest.mark.parametrize("name", ["memory.max", "memory.current", "memory.stat"])
def test_nonsense_in_a_cgroup_is_no_limit(proc: Path, cgroups: Path, name: str) -> None:
    (proc / "self/cgroup").write_text("0::/\n")
    v2(cgroups, str(16 * GIB), 6 * GIB)
    (cgroups / name).write_text("nonsense\n")
    assert host_reading(proc, cgroups) == Reading(64 * GIB, 40 * GIB)


async def test_without_descriptors_a_measurement_waits_and_misses_no_limit(
    proc: Path, cgroups: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (proc / "self/cgroup").write_text("0::/\n")
    v2(cgroups, str(16 * GIB), 6 * GIB)
    warned = trio.Event()
    monkeypatch.setattr(MachineMeter, "_warn", lambda self, trouble: trouble and warned.set())
    measured: list[MemoryMeasured] = []

    async def measure() -> None:
        measured.append(await MachineMeter(proc, cgroups).measure({}))

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    async with trio.open_nursery() as nursery:
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        try:
            nursery.start_soon(measure)
            with trio.fail_after(PATIENCE_S):
                await warned.wait()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert measured == []
    assert [reading.devices["host"] for reading in measured] == [Reading(16 * GIB, 10 * GIB)]


def test_this_machine_can_be_read() -> None:
    reading = host_reading(Path("/proc"), Path("/sys/fs/cgroup"))
    assert 0 < reading.free_bytes <= reading.total_bytes


@contextmanager
def running(*command: str) -> Iterator[subprocess.Popen[str]]:
    """A process in a session of its own, once it has printed a line."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline()
            yield process
        finally:
            os.killpg(process.pid, 9)


def test_a_runner_uses_what_its_group_does() -> None:
    script = (
        f"import subprocess, sys; weights = b'1' * {64 * MIB}\n"
        f"child = subprocess.Popen([sys.executable, '-c', \"x = b'1' * {32 * MIB}; print(1); input()\"],"
        " stdin=subprocess.PIPE)\nchild.wait()"
    )
    with running(sys.executable, "-c", script) as process:
        measured = MachineMeter().measure_now({"r1": [process.pid], "r2": [2**22 + 1]})
    used = measured.runners["r1"]["host"]
    assert 96 * MIB <= used < 200 * MIB
    assert "r2" not in measured.runners


async def test_measuring_is_done_in_a_thread() -> None:
    measured = await MachineMeter().measure({})
    assert measured.devices["host"].reliable
    assert measured.runners == {}


# --- GPUs ------------------------------------------------------------------------------------------------

METER = """
import json, sys, msgspec, trio
from daemon.meter import MachineMeter
meter = MachineMeter(patience_s=float(sys.argv[1]))
for line in sys.stdin:
    print(msgspec.json.encode(trio.run(meter.measure, json.loads(line))).decode(), flush=True)
"""


class Box:
    """A machine with the fake driver: one process that measures as often as it is asked."""

    def __init__(self, state: Path, process: subprocess.Popen[str], warnings: Path) -> None:
        self._state = state
        self._process = process
        self._warnings = warnings

    def has(self, *lines: str) -> None:
        """From now on the driver reports this."""
        new = self._state.with_suffix(".new")
        new.write_text("\n".join(lines) + "\n")
        new.replace(self._state)

    def loses_its_driver(self) -> None:
        """As when its module is unloaded."""
        self._state.unlink()

    def measure(self, processes: dict[str, list[int]] | None = None) -> MemoryMeasured:
        """One measurement."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(msgspec.json.encode(processes or {}).decode() + "\n")
        self._process.stdin.flush()
        return msgspec.json.decode(self._process.stdout.readline(), type=MemoryMeasured)

    def gpus(self) -> dict[str, Reading]:
        """What it measures of GPUs."""
        return {name: reading for name, reading in self.measure().devices.items() if name != "host"}

    def warnings(self) -> list[str]:
        """What it has said to its journal."""
        return self._warnings.read_text().splitlines()


Boxes = Callable[..., Box]


@pytest.fixture
def box(tmp_path: Path, nvml_folder: Path) -> Iterator[Boxes]:
    """Makes machines with the fake driver, or without any."""
    made: list[subprocess.Popen[str]] = []

    def make(*, driver: bool = True, patience_s: float = PATIENCE_S) -> Box:
        state, warnings = tmp_path / "nvml.txt", tmp_path / "stderr.txt"
        env = {**os.environ, "FAKE_NVML": str(state)}
        env["LD_LIBRARY_PATH"] = str(nvml_folder if driver else tmp_path)
        with warnings.open("w") as stderr:
            process = subprocess.Popen(
                [sys.executable, "-c", METER, str(patience_s)],
                env=env,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
            )
        made.append(process)
        return Box(state, process, warnings)

    yield make
    for process in made:
        process.kill()
        process.communicate()


def test_a_machine_without_a_driver_has_no_gpu(box: Boxes) -> None:
    machine = box(driver=False)
    assert set(machine.measure().devices) == {"host"}
    assert set(machine.measure().devices) == {"host"}
    assert machine.warnings() == []


def test_each_gpu_is_read_anew_each_time(box: Boxes) -> None:
    machine = box()
    machine.has(f"gpu {24 * GIB} {4 * GIB}", f"gpu {80 * GIB} 0")
    assert machine.gpus() == {"gpu0": Reading(24 * GIB, 20 * GIB), "gpu1": Reading(80 * GIB, 80 * GIB)}
    machine.has(f"gpu {24 * GIB} {5 * GIB}", f"gpu {80 * GIB} 0")
    assert machine.gpus()["gpu0"] == Reading(24 * GIB, 19 * GIB)


def test_a_runner_uses_what_its_processes_do_on_each_gpu(box: Boxes) -> None:
    machine = box()
    with running("sh", "-c", "sleep 1000 & echo $!; wait") as process:
        group = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]
        pids = sorted(pid for pid in group if group_of(pid) == process.pid)
        assert len(pids) == 2
        gpu = f"gpu {24 * GIB} {9 * GIB}"
        theirs = [f"proc 0 {pids[0]} {1 * GIB}", f"proc 0 {pids[1]} {2 * GIB}", f"proc 1 {pids[1]} {4 * GIB}"]
        machine.has(gpu, gpu, *theirs, f"proc 0 {os.getpid()} {6 * GIB}")
        used = machine.measure({"r7": [process.pid]}).runners
    assert set(used) == {"r7"}
    assert used["r7"]["gpu0"] == 3 * GIB
    assert used["r7"]["gpu1"] == 4 * GIB
    assert used["r7"]["host"] > 0


def group_of(pid: int) -> int:
    """A process's group; 0 for one that is gone."""
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return 0


def test_a_gpu_that_fell_off_the_bus_has_nothing_free_and_the_others_serve_on(box: Boxes) -> None:
    machine = box()
    two = [f"gpu {24 * GIB} 0", f"gpu {80 * GIB} 0"]
    machine.has(*two)
    assert machine.gpus()["gpu0"].reliable
    machine.has(*two, "lost 0 15")
    expected = {"gpu0": Reading(24 * GIB, 0, reliable=False), "gpu1": Reading(80 * GIB, 80 * GIB)}
    assert machine.gpus() == machine.gpus() == expected
    machine.has(*two)
    assert machine.gpus()["gpu0"] == Reading(24 * GIB, 24 * GIB)
    machine.has(*two, "lost 0 15")
    assert machine.gpus() == expected
    assert len(machine.warnings()) == 2  # once each time, not at every measurement


def test_a_gpu_that_is_counted_no_more_has_nothing_free(box: Boxes) -> None:
    machine = box()
    machine.has(f"gpu {24 * GIB} 0", f"gpu {80 * GIB} 0")
    assert len(machine.gpus()) == 2
    machine.has(f"gpu {24 * GIB} 0")
    assert machine.gpus()["gpu1"] == Reading(80 * GIB, 0, reliable=False)


def test_a_process_whose_memory_the_driver_does_not_know_is_not_counted(box: Boxes) -> None:
    machine = box()
    with running("sh", "-c", "echo; exec sleep 1000") as process:
        not_available = (1 << 64) - 1
        machine.has(f"gpu {24 * GIB} {4 * GIB}", f"proc 0 {process.pid} {not_available}")
        measured = machine.measure({"r7": [process.pid]})
    assert measured.devices["gpu0"] == Reading(24 * GIB, 20 * GIB)
    assert set(measured.runners["r7"]) == {"host"}


def test_processes_that_the_driver_does_not_tell_do_not_hide_the_memory(box: Boxes) -> None:
    machine = box()
    machine.has(f"gpu {24 * GIB} {4 * GIB}", "mute 0 3")
    assert machine.gpus() == {"gpu0": Reading(24 * GIB, 20 * GIB)}


@pytest.mark.parametrize("how", ["unloaded", "failing"])
def test_a_driver_that_goes_and_comes_back(box: Boxes, how: str) -> None:
    machine = box()
    gpu = f"gpu {24 * GIB} {4 * GIB}"
    machine.has(gpu)
    assert machine.gpus() == {"gpu0": Reading(24 * GIB, 20 * GIB)}
    for _ in range(2):
        if how == "failing":
            machine.has(gpu, "fail 999")
        else:
            machine.loses_its_driver()
        for _ in range(2):
            measured = machine.measure()
            assert measured.devices["gpu0"] == Reading(24 * GIB, 0, reliable=False)
            assert measured.devices["host"].reliable
        machine.has(gpu)
        assert machine.gpus() == {"gpu0": Reading(24 * GIB, 20 * GIB)}


def test_a_driver_that_comes_after_the_daemon_is_found(box: Boxes) -> None:
    machine = box()
    assert machine.gpus() == {}
    machine.has(f"gpu {24 * GIB} 0")
    assert machine.gpus() == {"gpu0": Reading(24 * GIB, 24 * GIB)}


def test_a_driver_that_hangs_does_not_hold_up_the_rest(box: Boxes) -> None:
    machine = box(patience_s=0.5)
    gpu = f"gpu {24 * GIB} 0"
    machine.has(gpu)
    assert machine.gpus()["gpu0"].reliable
    machine.has(gpu, "hang")
    for _ in range(3):
        measured = machine.measure()
        assert measured.devices["gpu0"] == Reading(24 * GIB, 0, reliable=False)
        assert measured.devices["host"].reliable
    assert [line for line in machine.warnings() if "does not answer" in line] == machine.warnings()[:1]
    machine.has(gpu)
    give_up = time.monotonic() + PATIENCE_S
    while machine.gpus() != {"gpu0": Reading(24 * GIB, 24 * GIB)}:
        assert time.monotonic() < give_up
