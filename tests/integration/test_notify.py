"""What systemd is told of a daemon, and when its watchdog goes hungry."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import pytest

from daemon.driver import Driver
from daemon.notify import US, Notifier, Pulse, summary
from daemon.readiness import Unready
from events import catalogue as c
from events.store import open_store
from statemachines.state import State
from tests.integration.live import PATIENCE_S, daemon, ngram
from tests.integration.test_preload import held
from tests.unit.test_scheduler import Core, model

ONE = f"""
hooks: {{on_startup: {{preload: [red]}}}}
models:
  red: {{cmd: "{ngram("--slots 2")}", memory: 10MiB, slots: 2}}
"""


class Systemd:
    """The other end of $NOTIFY_SOCKET."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.sock.bind(str(path))
        self.sock.settimeout(PATIENCE_S)

    def next(self) -> dict[str, str]:
        """The next message."""
        return dict(line.split("=", 1) for line in self.sock.recv(65536).decode().splitlines())

    def until(self, name: str, value: str | None = None) -> list[dict[str, str]]:
        """The messages up to the first that has a field, and with it a value."""
        told = [self.next()]
        while told[-1].get(name) is None or value not in (None, told[-1][name]):
            told.append(self.next())
        return told

    def now(self) -> list[dict[str, str]]:
        """What has been told so far."""
        self.sock.setblocking(False)
        told = []
        try:
            while True:
                told.append(self.next())
        except BlockingIOError:
            return told
        finally:
            self.sock.settimeout(PATIENCE_S)


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Systemd]:
    made = Systemd(tmp_path / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", str(made.path))
    yield made
    made.sock.close()


def statuses(told: list[dict[str, str]]) -> list[str]:
    return [message["STATUS"] for message in told if "STATUS" in message]


def test_a_daemon_says_what_it_does(
    tmp_path: Path, systemd: Systemd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", str(60 * US))
    with daemon(tmp_path, ONE) as live:
        told = systemd.until("READY")
        assert statuses(told)[0] == f"reading the log {live.log}"
        loaded = "1 runner loaded, 0 requests running, 0 queued"
        assert "preload: red is ready" in "".join(live.journal)
        if loaded not in statuses(told):
            systemd.until("STATUS", loaded)
        assert systemd.until("WATCHDOG")

        assert live.runnerctl("reload").returncode == 0
        told = systemd.until("RELOADING")
        assert int(told[-1]["MONOTONIC_USEC"]) > 0
        systemd.until("READY")

        [pid] = live.leftovers()
        for process in (pid, int(Path(f"{live.log}.guardian").read_text())):
            names = Path(f"/proc/{process}/environ").read_bytes()
            assert b"NOTIFY_" not in names
            assert b"WATCHDOG_" not in names

        assert live.runnerctl("restart").returncode == 0
        told = systemd.until("RELOADING")
        assert told[-1]["STATUS"] == "starting again in place"
        told = systemd.until("READY")
        patience = [int(message["WATCHDOG_USEC"]) for message in told if "WATCHDOG_USEC" in message]
        assert patience == [600 * US, 60 * US]

        with live.stream("red", 100_000):
            live.process.send_signal(signal.SIGTERM)
            systemd.until("STOPPING")
            [extended] = systemd.until("EXTEND_TIMEOUT_USEC")[-1:]
            assert int(extended["EXTEND_TIMEOUT_USEC"]) == 30 * US
        assert live.wait() == 0


def test_after_a_crash_clients_are_served_before_the_start_has_come_to_its_end(
    tmp_path: Path, systemd: Systemd
) -> None:
    fifo = tmp_path / "go"
    slow = ONE.replace("[red]", "[red, slow]") + f"  slow: {{cmd: '{held(fifo)}', memory: 10MiB}}\n"
    with daemon(tmp_path, ONE) as live:
        systemd.until("READY")
        live.kill()
        systemd.now()
        live.config.write_text(slow)
        live.start()
        assert live.chat("red")[0] == 200
        assert not any("READY" in message for message in systemd.now())
        fifo.write_text("now\n")
        systemd.until("READY")
        assert live.read_until("preload: slow is ready")


def test_nobody_is_told_where_nobody_asked() -> None:
    notifier = Notifier({"WATCHDOG_USEC": "5", "WATCHDOG_PID": "1"})
    assert not notifier.wanted
    assert notifier.watchdog_us == 0, "it is meant for another process"
    notifier.tell(READY=1)
    Notifier({"NOTIFY_SOCKET": "/nowhere/at/all"}).tell(READY=1)


def test_an_abstract_socket_and_one_line() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as theirs:
        theirs.bind(f"\0runnerd-test-{os.getpid()}")
        notifier = Notifier({"NOTIFY_SOCKET": f"@runnerd-test-{os.getpid()}"})
        notifier.status("one\nREADY=1")
        notifier.status("one\nREADY=1")
        assert theirs.recv(4096) == b"STATUS=one READY=1"
        theirs.setblocking(False)
        with pytest.raises(BlockingIOError):
            theirs.recv(4096)


class Patient:
    """A driver as the pulse sees it."""

    def __init__(self) -> None:
        self.state = State()
        self.log_tries = self.log_owed = 0
        self.found: list[Unready] = []

    def unready(self) -> list[Unready]:
        return self.found


@contextmanager
def pulse(systemd: Systemd) -> Iterator[tuple[Patient, Pulse]]:
    notifier = Notifier({"NOTIFY_SOCKET": str(systemd.path), "WATCHDOG_USEC": str(60 * US)})
    patient = Patient()
    yield patient, Pulse(notifier, cast(Driver, patient))


def is_fed(systemd: Systemd, beats: Pulse) -> bool:
    """Whether the next beat feeds the watchdog."""
    systemd.now()
    beats.beat()
    return {"WATCHDOG": "1"} in systemd.now()


def test_the_watchdog_is_fed_while_core_and_log_make_progress(systemd: Systemd) -> None:
    with pulse(systemd) as (patient, beats):
        assert is_fed(systemd, beats)
        patient.log_owed, patient.log_tries = 3, 1
        assert is_fed(systemd, beats), "it has written something since"
        assert not is_fed(systemd, beats), "it owes three events, and has tried nothing"
        assert beats.stalled == "the event log"
        patient.log_tries += 1  # a full disk: each try fails, and killing the daemon makes no room
        patient.found = [Unready("log_blocked", "the event log cannot be written: disk full", 1)]
        assert is_fed(systemd, beats)
        patient.log_owed, patient.found = 0, [Unready("wait_too_long", "q1 has waited", 1)]
        assert is_fed(systemd, beats), "a restart would not mend that"
        patient.found = [Unready("scheduler_late", "the scheduler does nothing", 1)]
        assert not is_fed(systemd, beats)
        assert beats.stalled == "the scheduler"


def test_a_stop_that_makes_progress_is_given_time(systemd: Systemd) -> None:
    with pulse(systemd) as (patient, beats):
        patient.state.stopping = "drain"
        beats.beat()
        beats.beat()
        told = systemd.now()
        assert told.count({"STOPPING": "1"}) == 1
        assert told.count({"EXTEND_TIMEOUT_USEC": str(30 * US)}) == 2
        patient.found = [Unready("scheduler_late", "the scheduler does nothing", 1)]
        beats.beat()
        assert [message for message in systemd.now() if "EXTEND_TIMEOUT_USEC" in message] == []


async def test_a_real_log_that_hangs_shows(tmp_path: Path) -> None:
    """`hold` stops its writer without an error, as a disk that does not answer would."""
    async with open_store(tmp_path / "events.db") as store:
        store.append([c.Event(1, 0, 0, "", c.DaemonStarted(1, "fifo", "boot", "0.1.0", "here", ()))], 1)
        await store.wait(1)
        assert (store.owed, store.tries) == (0, 1)
        await store.hold()
        store.append([c.Event(2, 0, 0, "", c.DaemonStopped())], 2)
        assert (store.owed, store.tries) == (1, 1)
        store.release()
        await store.wait(2)
        assert (store.owed, store.tries) == (0, 2)


def test_a_summary() -> None:
    core = Core({"a": model(), "b": model(6)})
    assert summary(core.state) == "0 runners loaded, 0 requests running, 0 queued"
    core.load("a")
    core.arrive("a")
    core.arrive("b")
    assert summary(core.state) == "1 runner loaded, 1 loading, 1 request running, 1 queued"
