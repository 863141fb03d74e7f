"""Sockets that systemd hands down."""

from __future__ import annotations

import http.client
import json
import os
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from daemon.doors import DoorError, Doors, _is_wanted, take
from daemon.unit import job_of, own_unit
from tests.integration.live import PATIENCE_S, Live, gone, ngram

HAND_DOWN = """
import fcntl, os, sys
names, *fds = sys.argv[1].split(",")
rest = sys.argv[2:]
copies = [fcntl.fcntl(int(fd), fcntl.F_DUPFD, 100) for fd in fds]
for place, copy in enumerate(copies, 3):
    os.dup2(copy, place, inheritable=True)
    os.close(copy)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(fds)), LISTEN_FDNAMES=names)
os.execv(rest[0], rest)
"""
"""What systemd does before it starts a service with sockets."""

ONE = f"""
hooks: {{on_startup: {{preload: [red]}}}}
models:
  red: {{cmd: "{ngram("--slots 2")}", memory: 10MiB, slots: 2}}
"""


USERS = "/user.slice/user-1000.slice"


@contextmanager
def activated(live: Live, named: Sequence[tuple[str, socket.socket]]) -> Iterator[Live]:
    """A daemon that is started with sockets; at the end it has stopped, and left the sockets alone."""
    descriptors = [sock.fileno() for _, sock in named]
    words = ",".join([":".join(name for name, _ in named), *map(str, descriptors)])
    live.wrapper = [sys.executable, "-c", HAND_DOWN, words]
    live.launch(pass_fds=descriptors)
    try:
        yield live
    finally:
        if live.process.poll() is None:
            live.stop()


@pytest.fixture
def front() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield sock


@pytest.fixture
def control(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "given.sock"))
        sock.listen()
        yield sock


def test_clients_wait_until_the_daemon_accepts(
    tmp_path: Path, front: socket.socket, control: socket.socket
) -> None:
    live = Live(tmp_path, ONE)
    early = http.client.HTTPConnection("127.0.0.1", front.getsockname()[1], timeout=PATIENCE_S)
    early.request("GET", "/v1/models")
    with activated(live, [("http", front), ("control", control)]):
        assert early.getresponse().status == 200
        early.close()
        assert live.read_until("listening on")
        assert "preload: red is ready" in "".join(live.journal)
        assert live.port == front.getsockname()[1]
        assert not live.socket.exists(), "systemd's is served instead"
        live.socket = tmp_path / "given.sock"
        [row] = map(json.loads, live.runnerctl("--json", "ps").stdout.splitlines())
        names = Path(f"/proc/{row['pid']}/environ").read_bytes()
        assert b"LISTEN_" not in names
        inherited = {os.readlink(path) for path in Path(f"/proc/{row['pid']}/fd").iterdir()}
        own = {os.readlink(f"/proc/self/fd/{sock.fileno()}") for sock in (front, control)}
        assert not inherited & own
        done = live.runnerctl("--json", "restart")
        assert json.loads(done.stdout)["adopted"] == [row["id"]], done.stdout + done.stderr
        assert live.runnerctl("--json", "status").returncode == 0
        assert live.stop() == 0
    assert live.socket.exists(), "it is systemd's"
    gone(row["pid"])
    assert live.leftovers() == []
    socket.create_connection(front.getsockname()).close()


def test_one_of_them_only(tmp_path: Path, front: socket.socket) -> None:
    live = Live(tmp_path, ONE)
    with activated(live, [("http", front)]):
        assert live.read_until("listening on")
        assert live.port == front.getsockname()[1]
        assert live.runnerctl("status").returncode == 0
        assert live.stop() == 0
    assert not live.socket.exists()


def test_a_wide_socket_takes_keys_as_well(tmp_path: Path) -> None:
    with socket.create_server(("0.0.0.0", 0)) as wide:
        live = Live(tmp_path, ONE)
        with activated(live, [("http", wide)]):
            assert live.wait() == 2
        assert "apiKeys" in "".join(live.journal)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("httpd", "a socket named 'httpd'"), ("control", "is not a Unix stream socket that listens")],
)
def test_what_does_not_fit_is_said(tmp_path: Path, front: socket.socket, name: str, expected: str) -> None:
    live = Live(tmp_path, ONE)
    with activated(live, [(name, front)]):
        assert live.wait() == 2
    assert expected in "".join(live.journal)


def test_a_socket_that_does_not_listen_is_no_door(tmp_path: Path) -> None:
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        live = Live(tmp_path, ONE)
        with activated(live, [("http", deaf)]):
            assert live.wait() == 2
        assert "is not a TCP socket that listens" in "".join(live.journal)


def test_what_is_meant_for_another_process_is_not_taken() -> None:
    environ = {"LISTEN_PID": "1", "LISTEN_FDS": "2", "LISTEN_FDNAMES": "http:control", "HOME": "/"}
    assert take(environ).fronts == []
    assert environ == {"HOME": "/"}


@pytest.mark.parametrize(
    ("count", "names"), [("x", "http"), ("-1", ""), ("1", ""), ("2", "http"), ("1000", "http"), ("٣", "http")]
)
def test_variables_that_make_no_sense(count: str, names: str) -> None:
    environ = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": count, "LISTEN_FDNAMES": names}
    with pytest.raises(DoorError):
        take(environ)


def test_what_is_kept_is_used_where_it_is_wanted() -> None:
    with Doors() as doors:
        doors.open_front("127.0.0.1", 0)
        [kept] = doors.fronts
        doors._names[kept.fileno()] = "http.kept"
        port = kept.getsockname()[1]
        doors.open_front("localhost", port)
        assert doors.fronts == [kept]
        doors.open_front("127.0.0.2", port)
        assert doors.fronts != [kept]
        assert kept.fileno() == -1
        assert doors.fronts[0].getsockname() == ("127.0.0.2", port)


def test_a_control_socket_is_kept_where_it_is_wanted_and_whose_it_is_to_be(tmp_path: Path) -> None:
    path, gid = tmp_path / "c.sock", tmp_path.stat().st_gid
    with Doors() as doors:
        doors.kept = True
        with doors.control(path) as kept:
            doors._names[kept.fileno()] = "control.kept"
        assert _is_wanted(kept, path, "")
        assert _is_wanted(kept, path, str(gid))
        assert not _is_wanted(kept, path, str(gid + 1))
        assert not _is_wanted(kept, tmp_path / "other.sock", "")
        with doors.control(path, str(gid)) as same:
            assert same is kept
        path.unlink()  # whoever has removed it: nobody can reach it any more
        doors.kept = False
        with doors.control(path) as made:
            assert kept.fileno() == -1
            assert made.getsockname() == str(path)
            assert path.is_socket()


@pytest.mark.parametrize(
    ("cgroup", "unit"),
    [
        ("0::/system.slice/runnerd.service\n", ("runnerd.service", False)),
        (f"0::{USERS}/user@1000.service/app.slice/runnerd.service\n", ("runnerd.service", True)),
        ("12:pids:/x\n1:name=systemd:/system.slice/a.service\n0::/system.slice/a\n", ("a.service", False)),
        (f"0::{USERS}/session-3.scope\n", ("", False)),
        (f"0::{USERS}/user@1000.service/app.slice/term.scope\n", ("", False)),
        ("5:memory:/docker/abc\n0::/\n", ("", False)),
    ],
)
def test_the_unit_that_a_process_is_of(cgroup: str, unit: tuple[str, bool]) -> None:
    assert own_unit(cgroup) == unit


def test_the_job_of_a_unit() -> None:
    jobs = "  7 other.service restart running\n 12 runnerd.service restart running\n"
    assert job_of("runnerd.service", jobs) == "restart"
    assert job_of("runnerd.service", " 12 runnerd.service stop running\n") == "stop"
    assert job_of("runnerd.service", "No jobs running.\n") == ""


def test_sockets_are_given_back_at_the_end(tmp_path: Path) -> None:
    """Another daemon can have the address and the path at once."""
    for _ in range(2):
        with Doors() as doors:
            doors.open_front("127.0.0.1", 0)
            with doors.control(tmp_path / "c.sock"):
                doors.listen()
                address = doors.fronts[0].getsockname()
                with socket.create_connection(address), doors.fronts[0].accept()[0]:
                    pass
        assert not (tmp_path / "c.sock").exists()
