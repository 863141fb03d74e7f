"""`runnerctl restart`: the same process, the same runners, and nobody who is turned away."""

from __future__ import annotations

import http.client
import json
import resource
import socket
import subprocess
import sys
import threading
from pathlib import Path

from daemon.cli.restart import words
from events.lock import lock_path
from tests.integration.live import PATIENCE_S, Live, daemon, gone, ngram

SLOW = ngram("--slots 2", "--tokens-per-second 20")
TWO = f"""
unloadTimeout: 20
models:
  red: {{cmd: "{SLOW}", memory: 10MiB, slots: 2}}
  blue: {{cmd: "{ngram("--slots 2")}", memory: 10MiB, slots: 2}}
"""


def pids(live: Live) -> dict[str, int]:
    """The runners' processes."""
    rows = live.runnerctl("--json", "ps").stdout.splitlines()
    return {row["id"]: row["pid"] for row in map(json.loads, rows)}


def test_runners_stay_and_a_request_that_runs_is_answered(tmp_path: Path) -> None:
    with daemon(tmp_path, TWO) as live:
        assert live.chat("blue")[0] == 200
        assert live.runnerctl("load", "red").returncode == 0
        before, pid, port = pids(live), live.process.pid, live.port
        answers: list[int] = []
        asker = threading.Thread(target=lambda: answers.append(live.chat("red", max_tokens=20)[0]))
        asker.start()
        live.until(lambda: "request.dispatched" in live.tags()[-3:])
        done = live.runnerctl("--no-json", "restart")
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("runnerd 0.1.0 -> 0.1.0, 2 runners adopted in ")
        asker.join(PATIENCE_S)
        assert answers == [200]
        assert (pids(live), live.process.pid) == (before, pid)
        assert json.loads(live.runnerctl("--json", "status").stdout)["pid"] == pid
        assert live.chat("red")[0] == 200
        assert live.port == port
        gone_pid = next(iter(before.values()))
        assert live.runnerctl("unload", "blue").returncode == 0
        gone(gone_pid)
        assert not Path(f"/proc/{gone_pid}").exists(), "a zombie is left"
    tags = live.tags()
    assert (tags.count("runner.load"), tags.count("daemon.started")) == (2, 2)
    assert "request.interrupted" not in tags


def test_nobody_is_turned_away(tmp_path: Path) -> None:
    """Each request has a connection of its own: while one program goes and the next comes, they wait."""
    with daemon(tmp_path, TWO) as live:
        assert live.chat("blue")[0] == 200
        over = threading.Event()
        statuses: list[int] = []

        def ask() -> None:
            while not over.is_set():
                statuses.append(live.chat("blue")[0])

        askers = [threading.Thread(target=ask) for _ in range(3)]
        for asker in askers:
            asker.start()
        for _ in range(3):
            done = live.runnerctl("--json", "restart")
            assert len(json.loads(done.stdout)["adopted"]) == 1, done.stdout + done.stderr
        over.set()
        for asker in askers:
            asker.join(PATIENCE_S)
        assert set(statuses) == {200}
        assert len(statuses) > 20
    assert live.tags().count("daemon.started") == 4
    assert live.tags().count("request.interrupted") == 0


def test_one_that_takes_too_long_is_cut(tmp_path: Path) -> None:
    with daemon(tmp_path, TWO.replace("unloadTimeout: 20", "unloadTimeout: 1")) as live:
        assert live.runnerctl("load", "red").returncode == 0
        with live.stream("red"):
            done = live.runnerctl("--json", "restart")
            assert len(json.loads(done.stdout)["adopted"]) == 1, done.stdout + done.stderr
    assert live.tags().count("request.interrupted") == 1


def test_now_waits_for_nobody(tmp_path: Path) -> None:
    with daemon(tmp_path, TWO.replace("unloadTimeout: 20", "unloadTimeout: 3600")) as live:
        assert live.runnerctl("load", "red").returncode == 0
        with live.stream("red", 100_000):
            done = live.runnerctl("--json", "restart", "--now")
            assert len(json.loads(done.stdout)["adopted"]) == 1, done.stdout + done.stderr
    assert live.tags().count("request.interrupted") == 1


def test_an_idle_connection_is_closed_and_served_ones_say_so_by_closing(tmp_path: Path) -> None:
    with daemon(tmp_path, TWO) as live:
        idle = live.connect()
        idle.request("GET", "/health")
        assert idle.getresponse().read()
        assert isinstance(idle.sock, socket.socket)
        assert live.runnerctl("restart").returncode == 0
        assert idle.sock.recv(1) == b""
        idle.close()


def test_a_program_that_would_not_start_is_not_started(tmp_path: Path) -> None:
    with daemon(tmp_path, TWO) as live:
        assert live.runnerctl("load", "blue").returncode == 0
        good = live.config.read_text()
        live.config.write_text("models: [\n")
        done = live.runnerctl("restart")
        assert done.returncode == 1
        assert "nothing was restarted" in done.stderr
        assert "config.yaml" in done.stderr
        assert "Traceback" not in done.stderr
        assert live.chat("blue")[0] == 200
        live.config.write_text(good)
        assert live.runnerctl("restart").returncode == 0
    assert live.tags().count("daemon.started") == 2


def test_a_daemon_that_stops_does_not_start_again(tmp_path: Path) -> None:
    with daemon(tmp_path, TWO) as live:
        assert live.runnerctl("load", "red").returncode == 0
        with live.stream("red", 100_000):
            live.process.terminate()
            live.until(lambda: "daemon.stop_requested" in live.tags())
            done = live.runnerctl("restart")
            assert done.returncode == 1
            assert "stopping" in done.stderr
        assert live.wait() == 0


def test_a_stop_that_comes_while_it_waits_is_a_stop(tmp_path: Path) -> None:
    with daemon(tmp_path, TWO) as live:
        assert live.runnerctl("load", "red").returncode == 0
        with live.stream("red", 100_000):
            asked = threading.Thread(target=lambda: live.runnerctl("restart"))
            asked.start()
            assert live.read_until("requests that run may end first: 1")
            assert live.runnerctl("stop", "now").returncode == 0
        asked.join(PATIENCE_S)
        assert live.wait() == 0
    assert live.tags().count("daemon.started") == 1
    assert live.leftovers() == []


def test_a_connection_that_is_made_meanwhile_is_answered_by_the_next(tmp_path: Path) -> None:
    with daemon(tmp_path, TWO) as live:
        assert live.runnerctl("load", "red").returncode == 0
        asked = threading.Thread(target=lambda: live.runnerctl("restart"))
        with live.stream("red", 100_000):
            asked.start()
            assert live.read_until("requests that run may end first: 1")
            late = http.client.HTTPConnection("127.0.0.1", live.port, timeout=PATIENCE_S)
            late.request("GET", "/health")
        assert late.getresponse().status == 200
        late.close()
        asked.join(PATIENCE_S)
    assert live.tags().count("daemon.started") == 2


def test_what_a_person_is_told() -> None:
    done = {"before": "0.1.0", "after": "0.2.0", "adopted": ["r5"], "gone": [], "gap_ns": 400_000_000}
    assert words(done) == "runnerd 0.1.0 -> 0.2.0, 1 runner adopted in 400.0 ms"
    done = {**done, "adopted": ["r5", "r6"], "gone": ["r9"], "gap_ns": 1_200_000_000}
    assert words(done) == (
        "runnerd 0.1.0 -> 0.2.0, 2 of 3 runners adopted in 1.2 s; gone: r9 (runnerlog show r9 says why)"
    )


def test_a_preload_that_fails_ends_nothing_that_is_served(tmp_path: Path) -> None:
    """A first start ends then. Here clients wait in the sockets, and runners serve them."""
    there = tmp_path / "there"
    there.touch()
    fragile = tmp_path / "fragile"
    fragile.write_text(f"#!/bin/sh\ntest -e {there} && exec {ngram().replace('${PORT}', '$1')}\n")
    fragile.chmod(0o755)
    green = f'  green: {{cmd: "{fragile} ${{PORT}}", memory: 10MiB}}\n'
    with daemon(tmp_path, f"hooks: {{on_startup: {{preload: [blue, green]}}}}\n{TWO}{green}") as live:
        assert live.runnerctl("unload", "green").returncode == 0
        there.unlink()
        before = pids(live)
        done = live.runnerctl("--json", "restart")
        assert len(json.loads(done.stdout)["adopted"]) == 1, done.stdout + done.stderr
        assert live.chat("blue")[0] == 200
        assert pids(live) == before
        assert live.read_until("preload: model 'green' failed to load")


def test_a_runner_s_limit_of_open_files_is_what_it_was(tmp_path: Path) -> None:
    """The daemon raises its own; a runner that uses select() must not have more than 1024."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    live = Live(tmp_path, TWO)
    live.wrapper = [sys.executable, "-c", LIMITED, str(hard)]
    live.start()
    try:
        assert live.chat("blue")[0] == 200
        assert live.runnerctl("restart").returncode == 0
        assert live.chat("red")[0] == 200
        limits = {resource.prlimit(pid, resource.RLIMIT_NOFILE) for pid in pids(live).values()}
        assert limits == {(1024, hard)}
    finally:
        assert live.stop() == 0


LIMITED = """
import os, resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (1024, int(sys.argv[1])))
os.execv(sys.argv[2], sys.argv[2:])
"""


def test_nobody_gets_the_log_between_the_two_programs(tmp_path: Path) -> None:
    """Who waits for its lock would be given it at once, were it let go of."""
    with daemon(tmp_path, TWO) as live:
        path = lock_path(live.log)
        with subprocess.Popen([sys.executable, "-c", THIEF, path], stdout=subprocess.PIPE) as thief:
            assert thief.stdout is not None
            assert thief.stdout.readline() == b"waits\n"
            assert live.runnerctl("restart").returncode == 0
            assert live.runnerctl("restart").returncode == 0
            assert thief.poll() is None
            assert path.read_text().splitlines()[0].startswith(f"pid {live.process.pid} ")
            assert live.stop() == 0
            assert thief.stdout.readline() == b"has it\n"
    assert live.tags().count("daemon.started") == 3


THIEF = """
import fcntl, struct, sys
with open(sys.argv[1], "r+b") as file:
    print("waits", flush=True)
    fcntl.fcntl(file, fcntl.F_OFD_SETLKW, struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 0, 1, 0))
    print("has it", flush=True)
"""


def test_a_stop_that_comes_as_the_program_ends_is_for_the_next(tmp_path: Path) -> None:
    live = Live(tmp_path, TWO)
    live.wrapper = [sys.executable, "-c", STOPPED]
    live.start()
    try:
        assert live.chat("blue")[0] == 200
        [pid] = pids(live).values()
        live.runnerctl("restart")
        assert live.wait() == 0
        gone(pid)
    finally:
        if live.process.poll() is None:
            live.kill()
    tags = live.tags()
    assert (tags.count("daemon.started"), tags.count("runner.unloaded")) == (2, 1)


STOPPED = """
import os, signal, sys
from daemon import doors
from daemon.cli import runnerd

def start_again(given, start_again=doors.start_again):
    os.kill(os.getpid(), signal.SIGTERM)
    start_again(given)

doors.start_again = start_again
del sys.argv[1]
sys.exit(runnerd.main())
"""
"""A daemon to which a SIGTERM comes when it has ended but for its last line. Idle threads are left over."""
