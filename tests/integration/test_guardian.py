"""The guardian: it ends a log's runners once no daemon has held the log for a while, and never before."""

from __future__ import annotations

import ast
import errno
import os
import resource
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import trio

from daemon import guardian
from daemon.processes.identity import MARKER
from daemon.service import stay_guarded
from events.limits import GUARDIAN_LOOK_S
from events.lock import hold_lock, lock_path, sign_lock
from tests.integration.yard import gone, is_alive, marker_of

PATIENCE_S = 30
GRACE_S = 60.0

RUNNER = """
import os, signal, sys
if "refuse" in sys.argv:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if "child" in sys.argv and not os.fork():
    os.environ.clear()
    os.execv("/bin/sh", ["sh", "-c", "sleep 1000 & echo $$; wait"])
if "child" not in sys.argv:
    print(os.getpid(), flush=True)
while True:
    signal.pause()
"""


class Time:
    """What the guardian knows of time: it passes as it sleeps, and brings what a test has planned."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        self.dying: list[subprocess.Popen[bytes]] = []
        """They get the real time that they need to die of SIGTERM, before more passes here."""
        self._plans: list[tuple[float, Callable[[], object]]] = []
        monkeypatch.setattr(guardian, "time", self)

    def at(self, second: float, act: Callable[[], object]) -> None:
        """Do this when so much has passed from now on."""
        self._plans.append((self.now + second, act))
        self._plans.sort(key=lambda plan: plan[0])

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert 0 < seconds <= 1
        assert self.now < 100_000, "the guardian goes on for ever"
        if seconds < guardian.POLL_S:  # it has signalled them, and waits for their end
            for process in self.dying:
                process.wait(PATIENCE_S)
        self.now += seconds
        while self._plans and self._plans[0][0] <= self.now:
            self._plans.pop(0)[1]()


class Box:
    """A log, its runners, and who holds it. Nobody does at first."""

    def __init__(self, folder: Path) -> None:
        self.log = folder / "events.db"
        self.log_id = uuid.uuid4().hex
        self._held = -1
        self._runners: list[subprocess.Popen[bytes]] = []

    def daemon_comes(self, log_id: str = "") -> None:
        """`log_id`: of another log, which has been put in the place of this one."""
        self._held = hold_lock(self.log)
        sign_lock(self._held, log_id or self.log_id)

    def daemon_goes(self) -> None:
        os.close(self._held)
        self._held = -1

    def runner(self, *how: str, marker: str = "") -> tuple[subprocess.Popen[bytes], int]:
        """A runner, and the number that it printed."""
        process = subprocess.Popen(
            [sys.executable, "-ISc", RUNNER, *how],
            env={**os.environ, MARKER: marker or f"{self.log_id}/r7/0"},
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        self._runners.append(process)
        assert process.stdout is not None
        return process, int(process.stdout.readline())

    def watch(self) -> int:
        """The guardian, in this very process."""
        return guardian.watch(str(self.log), self.log_id, GRACE_S)

    def end(self) -> None:
        if self._held >= 0:
            self.daemon_goes()
        for process in self._runners:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    made = Box(tmp_path)
    yield made
    made.end()


@pytest.fixture
def passing(monkeypatch: pytest.MonkeyPatch) -> Time:
    """Time that passes as fast as the guardian looks."""
    return Time(monkeypatch)


def test_it_ends_every_runner_when_nobody_held_the_log_for_the_grace_time(box: Box, passing: Time) -> None:
    box.daemon_comes()
    runners = passing.dying = [box.runner(marker=f"{box.log_id}/r{number}/0")[0] for number in (7, 8)]
    began = passing.now

    def none_ended() -> None:
        assert [runner.poll() for runner in runners] == [None, None]

    passing.at(5000, none_ended)
    passing.at(5000, box.daemon_goes)
    passing.at(5000 + GRACE_S - 2, none_ended)
    assert box.watch() == 0
    assert [runner.wait(PATIENCE_S) for runner in runners] == [-signal.SIGTERM] * 2
    assert passing.now - began < 5000 + GRACE_S + 2 * guardian.TERM_S + 2


def test_a_runner_that_refuses_is_killed(box: Box, passing: Time) -> None:
    runner, _ = box.runner("refuse")
    began = passing.now
    assert box.watch() == 0
    assert runner.wait(PATIENCE_S) == -signal.SIGKILL
    assert GRACE_S + guardian.TERM_S <= passing.now - began < GRACE_S + 2 * guardian.TERM_S + 2


def test_a_daemon_that_comes_back_in_time_keeps_its_runners(box: Box, passing: Time) -> None:
    runner, _ = box.runner()
    passing.dying = [runner]
    for comes in (50, 150, 250):
        passing.at(comes, box.daemon_comes)
        passing.at(comes + 50, box.daemon_goes)
    passing.at(300 + GRACE_S - 2, lambda: check(runner.poll() is None))
    assert box.watch() == 0
    assert runner.wait(PATIENCE_S) == -signal.SIGTERM


def check(holds: bool) -> None:
    assert holds


def test_a_daemon_that_comes_back_while_they_are_being_ended_does_as_it_sees_fit(
    box: Box, passing: Time
) -> None:
    runner, _ = box.runner("refuse")
    passing.at(GRACE_S + guardian.TERM_S / 2, box.daemon_comes)
    passing.at(1000, lambda: check(runner.poll() is None))
    passing.at(1000, lambda: os.killpg(runner.pid, signal.SIGKILL))
    passing.at(1001, runner.wait)
    passing.at(1001, box.daemon_goes)
    assert box.watch() == 0


def test_without_a_daemon_and_runners_it_goes_at_once(box: Box, passing: Time) -> None:
    began = passing.now
    assert box.watch() == 0
    assert passing.now == began


def test_it_goes_when_the_daemon_has_gone_and_left_nothing(box: Box, passing: Time) -> None:
    box.daemon_comes()
    passing.at(500, box.daemon_goes)
    began = passing.now
    assert box.watch() == 0
    assert passing.now - began <= 502


def test_others_processes_are_left_alone(box: Box, passing: Time) -> None:
    mine, _ = box.runner()
    passing.dying = [mine]
    others = [box.runner(marker=marker)[0] for marker in (f"{box.log_id}0/r7/0", "0/r7/0", box.log_id)]
    assert box.watch() == 0
    assert mine.wait(PATIENCE_S) == -signal.SIGTERM
    assert [other.poll() for other in others] == [None] * 3


def test_children_that_lost_the_marker_are_ended_with_their_group(box: Box, passing: Time) -> None:
    runner, child = box.runner("child")
    passing.dying = [runner]
    assert not guardian.is_marked(child, box.log_id)
    assert set(guardian.guarded(box.log_id)) > {runner.pid, child}
    assert box.watch() == 0
    assert runner.wait(PATIENCE_S) == -signal.SIGTERM
    gone(child)


def test_a_group_that_no_marked_process_leads_is_not_ours(box: Box) -> None:
    """A marked process that somebody started by hand shares its group with that somebody."""
    env = {**os.environ, MARKER: f"{box.log_id}/r7/0"}
    with subprocess.Popen(["cat"], env=env, stdin=subprocess.PIPE) as process:
        assert os.getpgid(process.pid) == os.getpgrp()
        assert marker_of(process.pid)
        assert guardian.guarded(box.log_id) == [process.pid]


def test_one_that_got_the_number_meanwhile_is_not_signalled(
    box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[int] = []
    monkeypatch.setattr(signal, "pidfd_send_signal", lambda descriptor, number: sent.append(number))
    other, _ = box.runner(marker="another/r7/0")
    guardian.send(other.pid, signal.SIGKILL, box.log_id)
    guardian.send(2**22 + 1, signal.SIGKILL, box.log_id)
    assert sent == []
    mine, _ = box.runner()
    guardian.send(mine.pid, signal.SIGKILL, box.log_id)
    assert sent == [signal.SIGKILL]


def test_a_log_that_another_was_put_in_place_of_is_held_by_nobody(box: Box, passing: Time) -> None:
    """Nobody will ever adopt its runners; the daemon of the other log is not asked."""
    box.daemon_comes("another")
    runner, _ = box.runner()
    passing.dying = [runner]
    began = passing.now
    assert box.watch() == 0
    assert runner.wait(PATIENCE_S) == -signal.SIGTERM
    assert passing.now - began >= GRACE_S


def test_the_guardian_of_the_log_before_is_waited_for(
    box: Box, passing: Time, monkeypatch: pytest.MonkeyPatch
) -> None:
    box.daemon_comes()
    guarded: list[float] = []
    monkeypatch.setattr(guardian, "guard", lambda log, log_id, grace_s: guarded.append(passing.now))
    words = [guardian.__file__, str(box.log), "another", "60.0"]
    code = "import sys, time; print('there', flush=True); time.sleep(1000)"
    with subprocess.Popen([sys.executable, "-c", code, *words], stdout=subprocess.PIPE) as before:
        assert before.stdout is not None and before.stdout.readline()
        taken = guardian.take(f"{box.log}.guardian")
        Path(f"{box.log}.guardian").write_text(str(before.pid))
        began = passing.now
        passing.at(20, lambda: os.close(taken))
        passing.at(20, before.kill)
        monkeypatch.setattr(guardian, "is_held_for", lambda log, log_id: False)
        assert box.watch() == 0
    assert [now - began >= 20 for now in guarded] == [True]


def test_a_second_guardian_goes_at_once(box: Box, passing: Time) -> None:
    box.daemon_comes()
    runner, _ = box.runner()
    taken = guardian.take(f"{box.log}.guardian")
    assert taken >= 0
    try:
        assert box.watch() == 0
        assert runner.poll() is None
        assert Path(f"{box.log}.guardian").read_text() == str(os.getpid())
    finally:
        os.close(taken)


def test_a_daemon_that_comes_as_the_guardian_leaves_is_guarded(
    box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own guardian may have left, having met the old one's lock."""
    rounds: list[str] = []

    def guard(log: str, log_id: str, grace_s: float) -> None:
        rounds.append(Path(f"{log}.guardian").read_text())
        box.daemon_comes() if len(rounds) == 1 else box.daemon_goes()

    monkeypatch.setattr(guardian, "guard", guard)
    assert box.watch() == 0
    assert rounds == [str(os.getpid())] * 2
    assert not guardian.is_held(f"{box.log}.guardian")


def test_whether_a_log_is_held_is_asked_and_not_taken(box: Box, tmp_path: Path) -> None:
    path = str(lock_path(box.log))
    assert not guardian.is_held(path)
    box.daemon_comes()
    assert guardian.is_held(path)
    box.daemon_goes()
    assert not guardian.is_held(path)
    assert not guardian.is_held(str(tmp_path / "no" / "such" / "folder"))
    assert not guardian.is_held(f"{path}/not-a-folder")


def test_what_cannot_be_told_is_taken_for_held(box: Box) -> None:
    box.daemon_comes()
    box.daemon_goes()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        with pytest.raises(OSError) as raised:
            os.open("/", os.O_RDONLY)
        assert raised.value.errno == errno.EMFILE
        assert guardian.is_held(str(lock_path(box.log)))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# --- as a process ----------------------------------------------------------------------------------------

DAEMON = """
import subprocess, sys, os
from pathlib import Path
from daemon import guardian
from events.lock import hold_lock
log, log_id, grace = sys.argv[1:]
hold_lock(Path(log))
guardian.start(log, log_id, float(grace))
input()
"""


@contextmanager
def daemon_of(box: Box, grace_s: float) -> Iterator[subprocess.Popen[bytes]]:
    """A daemon that holds the log and has started its guardian."""
    command = [sys.executable, "-c", DAEMON, str(box.log), box.log_id, str(grace_s)]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()


def guardian_of(box: Box) -> int:
    """The guardian's number, once it is there."""
    with subprocess.Popen(
        ["sh", "-c", f"until [ -s '{box.log}.guardian' ]; do sleep 0.01; done; cat '{box.log}.guardian'"],
        stdout=subprocess.PIPE,
        start_new_session=True,
    ) as process:
        try:
            out, _ = process.communicate(timeout=PATIENCE_S)
        finally:
            process.kill()
    return int(out)


def test_a_crash_that_nobody_restarts_is_bounded(box: Box) -> None:
    runner, _ = box.runner()
    with daemon_of(box, grace_s=0.2) as daemon:
        pid = guardian_of(box)
        assert os.getsid(pid) == pid  # what ends the daemon's terminal or group does not end it
        assert {os.readlink(f"/proc/{pid}/fd/{number}") for number in (0, 1, 2)} == {"/dev/null"}
        daemon.kill()
    assert runner.wait(PATIENCE_S) == -signal.SIGTERM
    gone(pid)
    assert not is_alive(pid)


def test_after_a_clean_stop_it_is_sent_away(box: Box) -> None:
    with daemon_of(box, grace_s=GRACE_S):
        pid = guardian_of(box)
        guardian.stop(str(box.log))
        gone(pid)
        guardian.stop(str(box.log))


def test_a_number_left_by_an_earlier_guardian_is_not_signalled(
    box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[int] = []
    monkeypatch.setattr(signal, "pidfd_send_signal", lambda descriptor, number: sent.append(number))
    runner, _ = box.runner(marker="another/r7/0")
    taken = guardian.take(f"{box.log}.guardian")  # a new guardian that has not yet written its own
    try:
        for text in (str(runner.pid), str(2**22 + 1), "", "nonsense", "-1"):
            Path(f"{box.log}.guardian").write_text(text)
            guardian.stop(str(box.log))
    finally:
        os.close(taken)
    assert sent == []


async def test_one_that_has_gone_is_replaced(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: object, caplog: pytest.LogCaptureFixture
) -> None:
    started: list[float] = []
    there = iter([True, True, False, True, False])
    monkeypatch.setattr(guardian, "start", lambda *of: started.append(trio.current_time()))
    monkeypatch.setattr(guardian, "is_held", lambda path: path == "LOG.guardian" and next(there))
    began = trio.current_time()
    with trio.move_on_after(5.5 * GUARDIAN_LOOK_S):
        await stay_guarded("LOG", "id")
    assert [t - began for t in started] == [3 * GUARDIAN_LOOK_S, 5 * GUARDIAN_LOOK_S]
    assert [record.getMessage() for record in caplog.records] == [
        "the guardian of the runners has gone; another is started"
    ] * 2


async def test_one_that_cannot_be_replaced_now_is_replaced_later(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: object, caplog: pytest.LogCaptureFixture
) -> None:
    """Of what killed it the daemon must not die, too."""
    tries: list[float] = []

    def start(*of: object) -> None:
        tries.append(trio.current_time())
        if len(tries) == 1:
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    there = iter([False, False, True])
    monkeypatch.setattr(guardian, "start", start)
    monkeypatch.setattr(guardian, "is_held", lambda path: next(there))
    with trio.move_on_after(3.5 * GUARDIAN_LOOK_S):
        await stay_guarded("LOG", "id")
    assert len(tries) == 2
    assert "no guardian could be started: Cannot allocate memory" in caplog.text


def test_it_imports_little() -> None:
    """It is there for as long as the daemon is."""
    tree = ast.parse(Path(guardian.__file__).read_text("utf-8"))
    names = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert sorted(names) == ["fcntl", "os", "signal", "struct", "subprocess", "sys", "time"]
