"""The control server by itself, on a driver that the test plays: limits, slow readers, a blocked log."""

from __future__ import annotations

import errno
import grp
import json
import os
import socket
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, cast

import pytest
import trio

from daemon.catalog import Catalog
from daemon.config.file import load
from daemon.control import inbox, server
from daemon.control.server import ControlServer, bind, listen
from daemon.driver import Driver
from daemon.leaving import Leaver
from daemon.limits import CONTROL_AHEAD_BYTES
from daemon.logs import Logs, Ring
from daemon.readiness import Unready
from daemon.reload import Reloader
from events.envelope import Record
from events.reader import CursorPruned
from statemachines.state import State

LIMIT_S = 20
CONTROL = "io.runnerd.Control"


class FakeDriver:
    """A log with any number of large events, which may be blocked or broken."""

    path = Path("/nowhere/events.db")
    log_id = "0" * 32

    def __init__(self) -> None:
        self.state = State()
        self.state.seq = 1_000_000
        self.log_blocked = ""
        self.first = 1
        self.fault: Exception | None = None
        self.watching = 0
        self.waits = False
        """Whether a watcher waits for what comes next."""

    def unready(self) -> list[Unready]:
        return [Unready("log_blocked", self.log_blocked, 7)] if self.log_blocked else []

    def now(self) -> int:
        if self.fault is not None:
            raise self.fault
        return 5

    async def watch(self, after_seq: int, *, follow: bool) -> AsyncIterator[Record]:
        if after_seq < self.first - 1:
            raise CursorPruned(f"the log begins at event {self.first}")
        self.watching += 1
        try:
            for seq in range(after_seq + 1, self.state.seq + 1):
                await trio.lowlevel.checkpoint()
                yield Record(seq, 0, 0, "step.continues", 1, 0, "", json.dumps({"x": "y" * 1000}), b"")
            if self.waits:
                await trio.sleep_forever()
        finally:
            self.watching -= 1


@asynccontextmanager
async def served(path: Path) -> AsyncIterator[FakeDriver]:
    """A control server on a socket in `path`."""
    driver = FakeDriver()
    sock = listen(path / "control.sock")
    (path / "config.yaml").write_text("models: {m: {cmd: 'server --port ${PORT}'}}")
    catalog = Catalog(load(path / "config.yaml"))
    logs = Logs(Ring(), lambda: [])
    with trio.fail_after(LIMIT_S):
        async with trio.open_nursery() as nursery:
            leaver = Leaver(cast(Driver, driver), Path("none"))
            reloader = Reloader(cast(Driver, driver), catalog, b"")
            control = ControlServer(cast(Driver, driver), catalog, reloader, logs, leaver)
            nursery.start_soon(control.serve, sock)
            yield driver
            nursery.cancel_scope.cancel()
    sock.close()


class Client:
    """A client in the same thread."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self.buffer = b""

    async def call(self, method: str, **message: Any) -> None:
        await self.stream.send_all(json.dumps({"method": f"{CONTROL}.{method}", **message}).encode() + b"\0")

    async def reply(self) -> Any:
        while b"\0" not in self.buffer:
            try:
                data = await self.stream.receive_some(1 << 16)
            except trio.BrokenResourceError:
                data = b""
            if not data:
                assert self.buffer == b""
                return None
            self.buffer += data
        message, _, self.buffer = self.buffer.partition(b"\0")
        return json.loads(message)


@asynccontextmanager
async def client(path: Path) -> AsyncIterator[Client]:
    async with await trio.open_unix_socket(path / "control.sock") as stream:
        yield Client(stream)


async def test_a_watcher_that_does_not_read_is_told_so_and_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "CONTROL_SEND_S", 0.1)
    async with served(tmp_path) as driver, client(tmp_path) as slow, client(tmp_path) as other:
        await slow.call("Watch", parameters={"after": 0}, more=True)
        assert (await slow.reply())["parameters"]["event"]["seq"] == 1
        while driver.watching:
            await other.call("Status")  # answered all the while
            assert (await other.reply())["parameters"]["seq"] == driver.state.seq
        last = 1
        while "error" not in (reply := await slow.reply()):
            assert reply["parameters"]["event"]["seq"] == last + 1, "gapless to the end"
            last += 1
        assert reply["error"] == f"{CONTROL}.TooSlow"
        assert 10 < last < driver.state.seq
        assert await slow.reply() is None
        await slow_again(tmp_path, last)


async def slow_again(path: Path, last: int) -> None:
    """Who was dropped goes on where it was."""
    async with client(path) as again:
        await again.call("Watch", parameters={"after": last}, more=True)
        assert (await again.reply())["parameters"]["event"]["seq"] == last + 1


async def test_a_watcher_that_leaves_is_noticed(tmp_path: Path) -> None:
    async with served(tmp_path) as driver:
        driver.state.seq = 3
        async with client(tmp_path) as some:
            await some.call("Watch", parameters={"after": 0}, more=True)
            for _ in range(3):
                await some.reply()
        while driver.watching:
            await trio.lowlevel.checkpoint()


async def test_pruned_events_are_refused_by_name(tmp_path: Path) -> None:
    async with served(tmp_path) as driver, client(tmp_path) as some:
        driver.first = 500
        await some.call("Watch", parameters={"after": 3}, more=True)
        message = "the log begins at event 500"
        assert await some.reply() == {"error": f"{CONTROL}.CursorPruned", "parameters": {"message": message}}
        await some.call("Watch", parameters={"after": 499}, more=True)
        assert (await some.reply())["parameters"]["event"]["seq"] == 500


async def test_one_connection_too_many_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "CONTROL_CONNECTIONS", 2)
    async with served(tmp_path), client(tmp_path) as one:
        async with client(tmp_path) as two:
            for each in (one, two):
                await each.call("Status")
                assert "parameters" in await each.reply()
            async with client(tmp_path) as three:
                assert (await three.reply())["error"] == f"{CONTROL}.LimitExceeded"
                assert await three.reply() is None
        while True:  # a place is free as soon as the daemon has seen the end of another
            async with client(tmp_path) as four:
                with trio.move_on_after(LIMIT_S):
                    try:
                        await four.call("Status")
                    except trio.BrokenResourceError:
                        continue
                    if "error" not in await four.reply():
                        break


@pytest.mark.parametrize(
    ("method", "parameters"), [("Load", {"model": "m"}), ("Unload", {"model": "m"}), ("Unload", {})]
)
async def test_nothing_can_be_asked_for_while_the_log_is_blocked(
    tmp_path: Path, method: str, parameters: dict[str, str]
) -> None:
    async with served(tmp_path) as driver, client(tmp_path) as some:
        driver.log_blocked = "database or disk is full"
        await some.call(method, parameters=parameters)
        reply = await some.reply()
        assert reply["error"] == f"{CONTROL}.LogBlocked"
        assert "disk is full" in reply["parameters"]["message"]
        await some.call("Status")
        status = (await some.reply())["parameters"]
        assert status["log_blocked"] == "database or disk is full"
        assert [reason["reason"] for reason in status["unready"]] == ["log_blocked"]


async def test_a_fault_in_a_method_ends_its_connection_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with served(tmp_path) as driver, client(tmp_path) as other:
        for more in (False, True):
            async with client(tmp_path) as some:
                driver.fault = ZeroDivisionError("a fault of ours")
                await some.call("Status", more=more)
                assert await some.reply() is None
                driver.fault = None
        await other.call("Status")
        assert "parameters" in await other.reply()
    assert "a fault of ours" in caplog.text


class Exhausted:
    """A listener that has no descriptor left, once."""

    def __init__(self, listener: trio.SocketListener) -> None:
        self._listener = listener
        self._failed = False

    async def accept(self) -> trio.SocketStream:
        if not self._failed:
            self._failed = True
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return await self._listener.accept()


async def test_running_out_of_descriptors_is_waited_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    make = trio.SocketListener
    monkeypatch.setattr(trio, "SocketListener", lambda sock: Exhausted(make(sock)))
    monkeypatch.setattr(server, "HTTP_ACCEPT_PAUSE_S", 0.0)
    async with served(tmp_path), client(tmp_path) as some:
        await some.call("Status")
        assert "parameters" in await some.reply()
    assert "cannot accept" in caplog.text


# --- where it listens ------------------------------------------------------------------------------------


def test_a_socket_on_which_a_daemon_listens_is_not_taken(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "control.sock"
    first = listen(path)
    with pytest.raises(OSError, match="another daemon") as caught:
        listen(path)
    assert caught.value.errno == errno.EADDRINUSE
    first.close()
    listen(path).close()


def test_a_relative_path_is_of_its_own_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two daemons that start in two directories have nothing in common; one that starts is known by its
    socket's whole path."""
    socks = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        socks.append(bind(Path("r.sock")))
    for path in (Path("./r.sock"), tmp_path / "b" / "r.sock"):
        with pytest.raises(OSError, match="which is starting"):
            bind(path)
    for sock in socks:
        sock.close()


def test_a_socket_that_cannot_be_bound_is_named() -> None:
    path = Path("/proc/control.sock")
    with pytest.raises(OSError) as caught:
        bind(path)
    assert caught.value.filename == str(path)


def test_what_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "precious.txt"
    path.write_text("text")
    with pytest.raises(OSError, match="is no socket"):
        listen(path)
    assert path.read_text() == "text"


def test_a_path_that_is_too_long_is_an_error_of_the_system(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="too long"), listen(tmp_path / ("x" * 120)) as sock:
        assert isinstance(sock, socket.socket)


def test_the_socket_is_given_to_a_group(tmp_path: Path) -> None:
    group = grp.getgrgid(os.getgid())
    for name in (group.gr_name, str(group.gr_gid)):
        path = tmp_path / f"{name}.sock"
        bind(path, name).close()
        assert (path.stat().st_gid, stat.S_IMODE(path.stat().st_mode)) == (group.gr_gid, 0o660)
    with pytest.raises(KeyError):
        bind(tmp_path / "none.sock", "no-such-group")
    assert not (tmp_path / "none.sock").exists()


def test_a_group_that_the_socket_may_not_be_given_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "chown", refused)
    path = tmp_path / "control.sock"
    with pytest.raises(OSError, match="of which this user is no member") as caught:
        bind(path, str(os.getgid()))
    assert caught.value.errno == errno.EPERM
    assert not path.exists(), "nobody may use a socket that is not as it was to be"


# --- limits of one client --------------------------------------------------------------------------------


async def test_one_user_does_not_keep_the_others_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "CONTROL_CONNECTIONS_OF_ONE", 1)
    users = iter([7, 7, 8])
    monkeypatch.setattr(server, "_peer", lambda stream: (1, next(users)))
    async with served(tmp_path), client(tmp_path) as one, client(tmp_path) as again:
        await one.call("Status")
        assert "parameters" in await one.reply()
        reply = await again.reply()
        assert reply["error"] == f"{CONTROL}.LimitExceeded"
        assert reply["parameters"]["message"].startswith("1 connections are open")
        async with client(tmp_path) as other:
            await other.call("Status")
            assert "parameters" in await other.reply()


async def test_a_call_that_comes_too_slowly_ends_its_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inbox, "CONTROL_MESSAGE_S", 0.1)
    async with served(tmp_path), client(tmp_path) as idle, client(tmp_path) as slow:
        await idle.call("Status")
        await idle.reply()
        for byte in b'{"method":':
            await slow.stream.send_all(bytes([byte]))
        reply = await slow.reply()
        assert reply["error"] == f"{CONTROL}.LimitExceeded"
        assert "did not come within" in reply["parameters"]["message"]
        assert await slow.reply() is None
        await idle.call("Status")  # who says nothing is not hurried
        assert "parameters" in await idle.reply()


async def test_who_sends_on_and_on_while_a_call_runs_is_told_so(tmp_path: Path) -> None:
    async with served(tmp_path) as driver, client(tmp_path) as some:
        driver.waits, driver.state.seq = True, 3
        await some.call("Watch", parameters={"after": 3}, more=True)
        while not driver.watching:
            await trio.lowlevel.checkpoint()
        with suppress(trio.BrokenResourceError):
            await some.stream.send_all(b'{"method":"a.B"}\0' * (2 * CONTROL_AHEAD_BYTES // 17))
        while (reply := await some.reply()) is not None and "error" not in reply:
            pass
        assert reply is None or reply["error"] == f"{CONTROL}.LimitExceeded"
        while driver.watching:
            await trio.lowlevel.checkpoint()
