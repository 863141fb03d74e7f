"""The whole daemon on a bad disk, or with others at its log: what is refused, what goes on, what ends it."""

from __future__ import annotations

import http.client
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from events import catalogue as c
from events.limits import EXIT_LOG_FAILED, EXIT_STEP_FAILED
from events.lock import lock_path
from events.writing import SLOW
from tests.integration.live import PATIENCE_S, Live, gone, ngram

FAULTS = Path(__file__).parents[1] / "fault_disk.c"


@pytest.fixture(scope="module")
def preload(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The disk with faults, for LD_PRELOAD."""
    library = tmp_path_factory.mktemp("disk") / "fault_disk.so"
    flags = ["-shared", "-fPIC", "-Wall", "-Wextra", "-Werror"]
    subprocess.run(["gcc", *flags, "-o", library, FAULTS, "-ldl"], check=True, timeout=60)
    return library


class Bad(Live):
    """A daemon whose disk does as it is told."""

    def __init__(self, directory: Path, preload: Path, more: str = "") -> None:
        command = ngram("--slots 4 --tokens-per-second 40")
        model = f"{{cmd: '{command}', memory: 1MiB, slots: 4, unloadTimeout: 1h}}"
        super().__init__(directory, f"{more}\nmodels: {{one: {model}}}")
        self._preload = preload
        self._state = directory / "disk"

    def start(self) -> None:
        env = {**os.environ, "LD_PRELOAD": str(self._preload), "FAULT_DISK": str(self._state)}
        self.launch(env=env)
        assert self.read_until("listening on"), "".join(self.journal)

    @contextmanager
    def disk(self, how: str) -> Iterator[None]:
        """It is like that within."""
        fresh = self._state.with_suffix(".new")
        fresh.write_text(how)
        fresh.replace(self._state)
        yield
        self._state.unlink()

    def pid(self) -> int:
        """The first runner's."""
        return next(e.body.process.pid for e in self.events() if isinstance(e.body, c.ProcessSpawned))

    def resumptions(self) -> list[c.LogResumed]:
        return [event.body for event in self.events() if isinstance(event.body, c.LogResumed)]


@pytest.fixture
def live(tmp_path: Path, preload: Path) -> Iterator[Bad]:
    """One that has a model loaded; whatever has become of it, it leaves nothing behind."""
    yield from serving(Bad(tmp_path, preload))


@pytest.fixture
def syncing(tmp_path: Path, preload: Path) -> Iterator[Bad]:
    """The same, which syncs each transaction."""
    yield from serving(Bad(tmp_path, preload, "durability: machine"))


@pytest.fixture
def failing(tmp_path: Path, preload: Path) -> Iterator[Bad]:
    """The same, with a mistake in it, and about to prune as soon as its disk is full."""
    live = Bad(tmp_path, preload)
    live.wrapper = [sys.executable, "-c", MISTAKEN]
    yield from serving(live)


MISTAKEN = """
import sys
import trio
from daemon.cli import runnerd
from daemon.driver import Driver, log
from daemon.keeping import Keeping
from events.catalogue import ProcessExited
from statemachines.scheduler import Scheduler

blocked = trio.Event()

async def keep(self):
    await blocked.wait()
    log.info("about to prune")
    await self._store.prune(1, b"")

def step(self, fact, t, step=Scheduler.step):
    assert not isinstance(fact, ProcessExited), "a mistake"
    return step(self, fact, t)

Keeping.run, Scheduler.step = keep, step
Driver._log_blocked = lambda self, error: blocked.set()
del sys.argv[1]
sys.exit(runnerd.main())
"""


def serving(live: Bad) -> Iterator[Bad]:
    live.start()
    try:
        assert live.chat("one", max_tokens=1)[0] == 200
        yield live
        if live.process.poll() is None:
            assert live.stop() == 0, "".join(live.journal)
        assert live.leftovers() == []
        verified = live.runnerlog("verify")
        assert verified.returncode == 0, verified.stdout + verified.stderr
    finally:
        if live.process.poll() is None:
            live.kill()
        if live.log.exists():
            for pid in live.leftovers():
                os.kill(pid, signal.SIGKILL)


class Asked:
    """A request in a thread of its own."""

    def __init__(self, live: Live) -> None:
        self.status = 0
        self._thread = threading.Thread(target=self._ask, args=(live,))
        self._thread.start()

    def _ask(self, live: Live) -> None:
        self.status = live.chat("one", max_tokens=1)[0]

    def answered(self) -> int:
        self._thread.join(PATIENCE_S)
        return self.status


@contextmanager
def locked(live: Bad) -> Iterator[None]:
    """Another program writes, and takes its time."""
    foreign = sqlite3.connect(live.log, isolation_level=None)
    foreign.execute("BEGIN IMMEDIATE")
    yield
    foreign.execute("ROLLBACK")
    foreign.close()


TROUBLES: dict[str, tuple[Callable[[Bad], Any], str]] = {
    "full": (lambda live: live.disk("full"), "database or disk is full"),
    "read-only": (lambda live: live.disk("readonly"), "disk I/O error"),
    "locked": (locked, "database is locked"),
}


@pytest.mark.parametrize("what", TROUBLES)
def test_arrivals_are_refused_what_runs_ends_and_it_goes_on_by_itself(live: Bad, what: str) -> None:
    trouble, reason = TROUBLES[what]
    with live.stream("one", tokens=60) as running:
        with trouble(live):
            first = Asked(live)  # nobody knew when it came: it waits
            assert live.read_until(f"the event log cannot be written: {reason}")
            for _ in range(3):
                status, body, headers = live.chat("one", max_tokens=1)
                assert (status, body["error"]["code"]) == (503, "log_blocked")
                assert reason in body["error"]["message"]
                assert int(headers["Retry-After"]) >= 1
            refused = live.runnerctl("pin", "one")
            assert refused.returncode != 0 and reason in refused.stderr
            assert [r["reason"] for r in live.get("/ready")["reasons"]] == ["log_blocked"]
            assert b"[DONE]" in running.read()
            assert first.status == 0
        assert first.answered() == 200
    assert live.chat("one", max_tokens=1)[0] == 200
    [resumed] = live.resumptions()
    assert (resumed.refused, resumed.error) == (3, reason)
    assert resumed.blocked_ns > 0
    assert live.tags().count("operator.pin") == 0


def test_a_slow_disk_refuses_and_says_how_many(syncing: Bad) -> None:
    """A second for each transaction. No try fails, so that nothing but the time tells."""
    live, statuses = syncing, list[int]()
    with live.disk("slow 1000"):
        while 503 not in statuses:
            first = Asked(live)
            while live.get("/ready")["ready"]:
                continue
            status, body, _ = live.chat("one", max_tokens=1)
            statuses += [status, first.answered()]
            assert status == 200 or SLOW in body["error"]["message"]
    while live.chat("one", max_tokens=1)[0] == 503:
        statuses.append(503)
    resumed = live.resumptions()
    assert {fact.error for fact in resumed} == {SLOW}
    assert sum(fact.refused for fact in resumed) == statuses.count(503)


def test_a_slow_disk_that_refuses_nobody_is_no_fact(syncing: Bad) -> None:
    """Else each of them would be written slowly, and be followed by the next."""
    with syncing.disk("slow 400"):
        assert syncing.chat("one", max_tokens=1)[0] == 200
    assert syncing.resumptions() == []


def test_a_sync_that_fails_ends_the_daemon_and_leaves_its_runners(syncing: Bad) -> None:
    """What it lost cannot be known, so nobody may go on; the next start does, from what is there."""
    live = syncing
    pid = live.pid()
    with live.disk("broken"):
        with suppress(OSError, http.client.HTTPException):
            status, body, _ = live.chat("one", max_tokens=1)  # a sample of memory has met it before
            assert (status, body["error"]["code"]) == (503, "log_blocked")
        assert live.wait() == EXIT_LOG_FAILED
        assert not any("Traceback" in line for line in live.journal)
    assert "disk I/O error" in live.journal[-2]
    os.kill(pid, 0)
    live.start()
    assert live.chat("one", max_tokens=1)[0] == 200
    assert live.tags().count("runner.load") == 1


def test_a_reader_that_does_not_let_go_is_in_nobody_s_way(live: Bad) -> None:
    reader = sqlite3.connect(live.log, isolation_level=None)
    reader.execute("BEGIN")
    count = reader.execute("SELECT count(*) FROM events").fetchone()
    assert [live.chat("one", max_tokens=1)[0] for _ in range(30)] == [200] * 30
    assert reader.execute("SELECT count(*) FROM events").fetchone() == count
    reader.close()
    assert live.resumptions() == []


# --- the log's files are gone -----------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["", "-wal", "-shm"])
@pytest.mark.parametrize("how", ["removed", "replaced"])
def test_a_log_that_is_taken_away_is_saved_and_ends_the_daemon(live: Bad, how: str, suffix: str) -> None:
    pid, file = live.pid(), Path(f"{live.log}{suffix}")
    before = live.tags()
    if how == "removed":
        file.unlink()
    else:
        other = file.with_suffix(".other")
        other.write_bytes(b"")
        other.replace(file)
    assert live.wait() == EXIT_LOG_FAILED
    said = live.journal[-2]
    assert f"{file} has been {how}" in said
    [saved] = live.directory.glob("state/events.db.saved-*")
    assert str(saved) in said and saved.stat().st_mode & 0o777 == 0o600
    os.kill(pid, 0)
    for each in ("", "-wal", "-shm"):
        Path(f"{live.log}{each}").unlink(missing_ok=True)
    saved.rename(live.log)
    assert live.tags()[: len(before)] == before
    live.start()
    assert live.chat("one", max_tokens=1)[0] == 200
    assert live.tags().count("runner.load") == 1


def test_a_folder_that_is_gone_cannot_be_saved_to(live: Bad) -> None:
    aside = live.directory / "aside"
    live.log.parent.rename(aside)
    assert live.wait() == EXIT_LOG_FAILED
    said = live.journal[-2]
    assert "has been removed" in said and "could not be saved: " in said and "[Errno" not in said
    aside.rename(live.log.parent)
    live.start()
    assert live.tags().count("runner.load") == 1


def test_without_its_lock_file_a_log_is_still_one_daemon_s(live: Bad) -> None:
    path = lock_path(live.log)
    path.unlink()
    while not path.exists():
        live.get("/v1/models")
    second = Live(live.directory, live.config.read_text())
    with pytest.raises(AssertionError, match="in use by"):
        second.start()
    assert live.chat("one", max_tokens=1)[0] == 200


def test_another_daemon_that_got_in_ends_the_first(live: Bad, tmp_path: Path) -> None:
    aside = tmp_path / "aside"
    shutil.copytree(live.log.parent, aside)
    thief = aside / "events.db.lock"
    code = "import sys; from pathlib import Path; from events.lock import hold_lock\n"
    code += "hold_lock(Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", code, str(aside / "events.db")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdin is not None and other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        thief.replace(lock_path(live.log))
        assert live.wait() == EXIT_LOG_FAILED
        assert "is in use by pid" in live.journal[-2]
        other.stdin.close()
    live.start()
    assert live.tags().count("runner.load") == 1


@pytest.mark.interpreted
def test_a_step_that_fails_while_nothing_can_be_written_ends_the_daemon(failing: Bad) -> None:
    live = failing
    asked = threading.Thread(target=lambda: live.runnerctl("pin", "one"))
    with live.disk("full"):
        asked.start()
        assert live.read_until("about to prune")
        os.kill(live.pid(), signal.SIGKILL)
        assert live.wait() == EXIT_STEP_FAILED
        assert "a mistake" in live.journal[-2]
    asked.join(PATIENCE_S)
    live.wrapper = []
    live.start()
    assert live.chat("one", max_tokens=1)[0] == 200
    assert live.tags().count("runner.lost") == 1


# --- stopping ---------------------------------------------------------------------------------------------


def test_a_stop_that_cannot_be_logged_ends_the_runners(live: Bad) -> None:
    pid = live.pid()
    with live.disk("full"):
        assert live.stop() == 1
        assert "the stop could not be logged: database or disk is full" in live.journal[-2]
        gone(pid)
    live.start()
    assert live.tags().count("runner.lost") == 1


def test_a_log_that_is_blocked_while_it_stops_holds_nothing_up(live: Bad) -> None:
    pid = live.pid()
    with live.stream("one", tokens=100_000):
        live.process.send_signal(signal.SIGTERM)
        live.until(lambda: "daemon.stop_requested" in live.tags())
        with live.disk("full"):
            assert live.stop() == 1
            gone(pid)
    live.start()


def test_a_stop_that_leaves_the_runners_leaves_them_then_too(live: Bad) -> None:
    pid = live.pid()
    with live.disk("full"):
        live.runnerctl("stop", "leave")
        assert live.wait() == 1
        assert "the next start adopts them" in live.journal[-2]
        os.kill(pid, 0)
    live.start()
    assert live.tags().count("runner.load") == 1
