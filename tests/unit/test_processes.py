"""The parts of supervision: the gate, who a process is, and what it prints."""

from __future__ import annotations

import errno
import os
import resource
import select
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import pytest

from daemon.processes import gate, identity, output
from events.limits import OUTPUT_MAX_BYTES

PATIENCE_S = 30
MARKER = "0123abcd/r7/0"


def gone(descriptor: int) -> None:
    """Wait for the end of the process that a pidfd names."""
    ready, _, _ = select.select([descriptor], [], [], PATIENCE_S)
    assert ready, "the process does not end"
    os.close(descriptor)


@contextmanager
def sleeping(*command: str, marker: str = "", session: bool = True) -> Iterator[subprocess.Popen[bytes]]:
    """A process that waits for its end, once it is what it shall be: its first line was read."""
    argv = command or (sys.executable, "-ISc", "print(flush=True); input()")
    with subprocess.Popen(
        argv,
        env={**os.environ, identity.MARKER: marker},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=session,
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline()
            yield process
        finally:
            process.kill()


# --- the gate --------------------------------------------------------------------------------------------


class Gate:
    """Starts gates, and ends what is left of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "r7.log"
        self._started: list[subprocess.Popen[bytes]] = []

    def start(self, *argv: str, **overlay: str) -> subprocess.Popen[bytes]:
        process = gate.start(argv, gate.environment(overlay, MARKER), self.log)
        self._started.append(process)
        return process

    def run(self, *argv: str, **overlay: str) -> str:
        """What a command that ends by itself prints behind the gate."""
        process = self.start(*argv, **overlay)
        gate.open_gate(process)
        process.wait(PATIENCE_S)
        return self.log.read_text()

    def end(self) -> None:
        for process in self._started:
            process.kill()
            process.wait()
            if process.stdin is not None:
                process.stdin.close()


@pytest.fixture
def gates(tmp_path: Path) -> Iterator[Gate]:
    made = Gate(tmp_path)
    yield made
    made.end()


DAEMON = """
import sys
from pathlib import Path
from daemon.processes import gate
process = gate.start(["touch", sys.argv[2]], gate.environment({}, "x/r1/0"), Path(sys.argv[1]))
print(process.pid, flush=True)
input()
"""


def test_a_gate_whose_daemon_died_never_executes_its_command(tmp_path: Path) -> None:
    proof = tmp_path / "it-ran"
    command = [sys.executable, "-c", DAEMON, str(tmp_path / "log"), str(proof)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as daemon:
        assert daemon.stdout is not None
        left = os.pidfd_open(int(daemon.stdout.readline()))
        daemon.kill()
    gone(left)
    assert not proof.exists()


def test_an_unfinished_word_does_not_open_the_gate(gates: Gate, tmp_path: Path) -> None:
    process = gates.start("touch", str(tmp_path / "it-ran"))
    assert process.stdin is not None
    process.stdin.write(b"g")  # a daemon that dies in the middle of its write
    process.stdin.close()
    assert process.wait(PATIENCE_S) != 0
    assert not (tmp_path / "it-ran").exists()


def shown_marker(pid: int) -> str:
    """A process's marker: in the middle of its exec it shows none."""
    give_up = time.monotonic() + PATIENCE_S
    while not (marker := identity.marker_of(pid)):
        assert time.monotonic() < give_up
    return marker


def test_behind_the_gate_is_the_same_process_with_its_marker(gates: Gate) -> None:
    process = gates.start("cat", "/proc/self/stat", "/proc/self/environ")
    before = identity.stat_of(process.pid)
    assert before is not None
    assert before.group == process.pid
    assert shown_marker(process.pid) == MARKER
    assert gate.shut(process)
    gate.open_gate(process)
    assert not gate.shut(process)
    assert process.wait(PATIENCE_S) == 0
    stat, _, environ = gates.log.read_text().partition("\n")
    fields = stat.split()
    assert (int(fields[0]), int(fields[4]), int(fields[5])) == (process.pid,) * 3  # group and session
    assert int(fields[21]) == before.start_time
    assert f"{identity.MARKER}={MARKER}" in environ.split("\0")


def test_a_runner_inherits_no_descriptor(gates: Gate) -> None:
    with ExitStack() as stack:
        for inheritable in (True, False):
            other = stack.enter_context(socket.socket())
            other.set_inheritable(inheritable)
        listing = gates.run("ls", "-l", "/proc/self/fd")
    shown = dict(line.split()[-3::2] for line in listing.splitlines()[1:])
    directory = shown.pop("3")  # what `ls` itself has open
    assert directory.startswith("/proc/")
    assert shown == {"0": "/dev/null", "1": str(gates.log), "2": str(gates.log)}


def test_the_environment_of_a_runner(gates: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "WATCHDOG_USEC"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "all")
    monkeypatch.setenv("KEPT", "as it is")
    printed = gates.run("env", CUDA_VISIBLE_DEVICES="1", **{identity.MARKER: "forged/r1/0"}).splitlines()
    names = {line.partition("=")[0] for line in printed}
    assert not [name for name in names if name.startswith(("NOTIFY_", "LISTEN_", "WATCHDOG_"))]
    assert {"CUDA_VISIBLE_DEVICES=1", "KEPT=as it is", f"{identity.MARKER}={MARKER}"} <= set(printed)
    assert "SPT_NOENV=1" in printed  # a process title must not be written over the marker


def test_arguments_arrive_as_they_are(gates: Gate) -> None:
    words = ["a  b", "$HOME", "'", '"', "*", "`id`", "\\n", "ü", ""]
    assert gates.run("printf", "%s\n", *words).split("\n")[:-1] == words


def test_output_is_appended_to_a_file_that_is_made_anew_and_private(gates: Gate) -> None:
    gates.log.write_text("of an earlier runner")
    process = gates.start("true")
    info = Path(f"/proc/{process.pid}/fdinfo/1").read_text()
    flags = int(dict(line.split(":\t", 1) for line in info.splitlines())["flags"], 8)
    assert flags & os.O_APPEND
    assert gates.log.read_bytes() == b""
    gates.log.unlink()
    gates.start("true")
    assert gates.log.stat().st_mode & 0o777 == 0o600


def test_a_command_that_does_not_exist_says_so_in_its_output(gates: Gate) -> None:
    process = gates.start("/no/such/llama-server")
    gate.open_gate(process)
    assert process.wait(PATIENCE_S) == 127
    assert "/no/such/llama-server" in output.last_words(gates.log)


def test_a_gate_that_is_gone_can_be_opened(gates: Gate) -> None:
    process = gates.start("true")
    process.kill()
    process.wait(PATIENCE_S)
    gate.open_gate(process)
    assert not gate.shut(process)


OPEN_FILES = """
import resource, sys
from pathlib import Path
resource.setrlimit(resource.RLIMIT_NOFILE, (200, 300))
from daemon.processes import gate
gate.raise_open_files()
process = gate.start(["cat", "/proc/self/limits"], gate.environment({}, "x/r1/0"), Path(sys.argv[1]))
gate.open_gate(process)
process.wait()
print(*resource.getrlimit(resource.RLIMIT_NOFILE))
"""


def test_only_the_daemon_gets_more_open_files(tmp_path: Path) -> None:
    """A runner that calls select() would break on a descriptor above 1023."""
    log = tmp_path / "log"
    done = subprocess.run([sys.executable, "-c", OPEN_FILES, log], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["300", "300"]
    (line,) = [line for line in log.read_text().splitlines() if line.startswith("Max open files")]
    assert line.split()[3:5] == ["200", "300"]


# --- who a process is ------------------------------------------------------------------------------------


def test_a_name_may_hold_anything(tmp_path: Path) -> None:
    odd = tmp_path / ") Z 1 2\n("
    odd.symlink_to("/bin/sleep")
    with subprocess.Popen([odd, "1000"], start_new_session=True) as process:
        try:
            stat = identity.stat_of(process.pid)
            assert stat is not None
            assert (stat.pid, stat.parent, stat.group) == (process.pid, os.getpid(), process.pid)
            assert stat.alive
        finally:
            process.kill()


def test_resident_memory_is_in_bytes() -> None:
    stat = identity.stat_of(os.getpid())
    assert stat is not None
    assert 10 << 20 < stat.rss_bytes < 10 << 30


def test_a_zombie_is_gone() -> None:
    with subprocess.Popen(["true"]) as process:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        stat = identity.stat_of(process.pid)
        assert stat is not None
        assert not stat.alive
        assert process.pid not in [found.pid for found in identity.processes()]
    assert identity.stat_of(process.pid) is None


HEADLESS = """
import ctypes, os, platform, threading
def rest():
    while open(f"/proc/self/task/{os.getpid()}/stat").read().rpartition(")")[2].split()[0] != "Z":
        pass
    os.write(1, b"up\\n")
    os.read(0, 1)
threading.Thread(target=rest).start()
ctypes.CDLL(None).syscall({"x86_64": 60, "aarch64": 93}[platform.machine()], 0)
"""


def test_a_process_whose_first_thread_ended_is_not() -> None:
    with sleeping(sys.executable, "-c", HEADLESS) as process:
        stat = identity.stat_of(process.pid)
        assert stat is not None
        assert stat.state == "Z"
        assert stat.alive


def test_a_number_with_another_start_time_is_somebody_else() -> None:
    with sleeping() as process:
        stat = identity.stat_of(process.pid)
        assert stat is not None
        assert identity.open_pidfd(process.pid, stat.start_time + 1) is None
        identity.kill(stat._replace(start_time=stat.start_time - 1))
        assert process.poll() is None
        descriptor = identity.open_pidfd(process.pid, stat.start_time)
        assert descriptor is not None
        identity.kill(stat)
        gone(descriptor)
        process.wait(PATIENCE_S)
        assert identity.open_pidfd(process.pid, stat.start_time) is None


def test_asking_for_a_process_leaves_no_descriptor_open() -> None:
    with sleeping() as process:
        before = os.listdir("/proc/self/fd")
        for start_time in (0, 1):
            assert identity.open_pidfd(process.pid, start_time) is None
        assert os.listdir("/proc/self/fd") == before


def test_the_marked_processes_of_one_log() -> None:
    with sleeping(marker="0123abcd/r7/0") as one, sleeping(marker="0123abcde/r7/0") as other:
        assert [(stat.pid, marker) for stat, marker in identity.marked("0123abcd")] == [
            (one.pid, "0123abcd/r7/0")
        ]
        assert identity.marker_of(other.pid) == "0123abcde/r7/0"
    assert identity.marker_of(one.pid) == ""


def test_members_are_those_of_the_group_and_those_with_the_marker() -> None:
    with ExitStack() as stack:
        leader = stack.enter_context(sleeping())
        marked = stack.enter_context(sleeping(marker=MARKER))
        stack.enter_context(sleeping(marker=f"{MARKER}1"))
        stat = identity.stat_of(leader.pid)
        assert stat is not None
        found = identity.members(leader.pid, stat.start_time, MARKER)
        assert {member.pid for member in found} == {leader.pid, marked.pid}
        # The number went to another process, which leads a group of its own: it is none of ours.
        found = identity.members(leader.pid, stat.start_time + 1, MARKER)
        assert {member.pid for member in found} == {marked.pid}


def test_one_that_forks_and_ends_during_a_look_is_found_by_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    child = identity.Stat(9, "S", 1, 7, 1, 0, 0)
    looks = iter([[], [child]])
    monkeypatch.setattr(identity, "members", lambda *_: next(looks))
    assert identity.left(7, 0, MARKER) == [child]


@contextmanager
def no_descriptors() -> Iterator[None]:
    """As when the daemon has as many clients as it may have open files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_without_descriptors_no_process_is_taken_for_gone() -> None:
    asked: list[Callable[[], object]] = [
        partial(identity.stat_of, os.getpid()),
        partial(identity.marker_of, os.getpid()),
        partial(identity.open_pidfd, os.getpid(), 0),
        partial(identity.members, os.getpid(), 0, MARKER),
    ]
    for ask in asked:
        with no_descriptors(), pytest.raises(OSError) as raised:
            ask()
        assert raised.value.errno == errno.EMFILE


# --- output ----------------------------------------------------------------------------------------------


def test_last_lines_are_clean_text(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert output.last_lines(log, 3) == []
    log.write_bytes(b"first\nbad \xff byte\n\x1b[31mred\x1b[0m\x07\r\ntab\there")
    assert output.last_lines(log, 3) == ["bad \ufffd byte", "[31mred[0m", "tab\there"]


@pytest.mark.parametrize("shell", ["gate: 1: exec: ", "gate: line 1: exec: ", "gate: line 1: "])
def test_what_the_gates_shell_says_is_told_in_our_words(tmp_path: Path, shell: str) -> None:
    log = tmp_path / "log"
    log.write_text(f"{shell}lama-server: not found\n")
    assert output.last_lines(log, 3) == ["the program cannot be started: lama-server: not found"]


def test_only_the_end_of_a_large_file_is_read(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"x" * (1 << 20) + b"\nlast but one\nlast\n")
    assert output.last_lines(log, 2) == ["last but one", "last"]


@pytest.mark.parametrize("unit", ["x", "ü", "𝄞"])
@pytest.mark.parametrize("lines", [1, 30])
def test_last_words_fit_into_an_event(tmp_path: Path, unit: str, lines: int) -> None:
    log = tmp_path / "log"
    log.write_text("".join(f"{unit * 3000}\n\n" for _ in range(lines)) + "out of memory\n")
    words = output.last_words(log)
    assert len(words.encode()) <= OUTPUT_MAX_BYTES
    assert words.endswith("out of memory")
    log.write_text(unit * 30_000)
    words = output.last_words(log)
    assert 0 < len(words.encode()) <= OUTPUT_MAX_BYTES
    assert set(words) == {unit}


def test_a_file_at_its_limit_is_cut_to_its_end_and_appended_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output, "RUNNER_LOG_MAX_BYTES", 200_000)
    log = tmp_path / "log"
    lines = [f"line {number}\n".encode() for number in range(20_000)]
    with open(log, "ab", buffering=0) as runner:
        runner.write(b"".join(lines)[:200_000])
        output.bound(log)
        assert log.stat().st_size == 200_000
        runner.write(b"".join(lines)[200_000:])
        output.bound(log)
        assert log.stat().st_size <= output.TAIL_BYTES
        runner.write(b"after\n")
    kept = log.read_bytes().splitlines(keepends=True)
    assert kept == [*lines[-len(kept) + 1 :], b"after\n"]
    assert len(kept) > 1000


def test_one_endless_line_is_cut_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "RUNNER_LOG_MAX_BYTES", 100_000)
    log = tmp_path / "log"
    log.write_bytes(b"loading\r" * 20_000)
    output.bound(log)
    assert log.stat().st_size == output.TAIL_BYTES
    assert output.last_lines(log, 1) == ["loading"]
