"""Asking runners for their health: what counts as an answer, whose it is, and how often one is asked."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from daemon.config.commands import Command
from daemon.ports import Launch
from daemon.processes import probe
from daemon.processes.charge import Charge
from daemon.processes.supervisor import Supervisor, _port_is_free
from events.catalogue import Fact, ProbeAnswered
from events.limits import READY_PAUSE_S, READY_POLL_S

PATIENCE_S = 30

# --- asking for health -----------------------------------------------------------------------------------

Talk = Callable[[trio.SocketStream], Awaitable[None]]


def saying(*pieces: bytes) -> Talk:
    """A server that reads a request and answers with these pieces, then closes."""

    async def talk(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        for piece in pieces:
            await stream.send_all(piece)

    return talk


async def silence(stream: trio.SocketStream) -> None:
    await trio.sleep_forever()


async def asked(talk: Talk, path: str = "/health", timeout_s: float = PATIENCE_S) -> tuple[bool, str]:
    """What a probe makes of a server."""
    async with trio.open_nursery() as nursery:
        serve = partial(trio.serve_tcp, host="127.0.0.1")
        (listener,) = await nursery.start(serve, talk, 0)
        port = listener.socket.getsockname()[1]
        answer = await probe.healthy(f"http://127.0.0.1:{port}", path, timeout_s)
        nursery.cancel_scope.cancel()
    return answer


@pytest.mark.parametrize(
    ("talk", "healthy", "says"),
    [
        (saying(b"HTTP/1.1 200 OK\r\n\r\nok"), True, "HTTP/1.1 200 OK"),
        (saying(b"HTTP/1.0 2", b"00\r", b"\n"), True, "HTTP/1.0 200"),
        (saying(b"HTTP/1.1 503 Loading model\r\n\r\n"), False, "HTTP/1.1 503 Loading model"),
        (saying(b"HTTP/1.1 404 Not Found\r\n\r\n"), False, "HTTP/1.1 404 Not Found"),
        (saying(b"HTTP/1.1\r\n\r\n"), False, "HTTP/1.1"),
        (saying(b"SSH-2.0 200\r\n"), False, "SSH-2.0 200"),
        (saying(b"\xff 200 \xfe\r\n"), False, "ÿ 200 þ"),
        (saying(b"HTTP/1.1 503 \x1b[2Jgone\x9b\r\n\r\n"), False, "HTTP/1.1 503 [2Jgone"),
        (saying(b"HTTP/1.1 20"), False, "closed the connection"),
        (saying(), False, "closed the connection"),
        (saying(b"x" * 100_000), False, "x" * 100),
    ],
)
async def test_an_answer_is_healthy_or_not(talk: Talk, healthy: bool, says: str) -> None:
    assert await asked(talk) == (healthy, says)


async def test_where_nobody_listens_is_told_without_numbers(tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        assert await probe.healthy(url, "/health", PATIENCE_S) == (False, "connection refused")
    gone = await probe.healthy(f"unix:{tmp_path}/gone.sock", "/health", PATIENCE_S)
    assert gone == (False, "no such file or directory")


async def test_a_host_that_has_no_address_is_told_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """A resolver's numbers are not the system's."""

    async def unresolved(url: str) -> trio.SocketStream:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(probe, "_connect", unresolved)
    answer = await probe.healthy("http://gpu-box:80", "/health", PATIENCE_S)
    assert answer == (False, "name or service not known")


async def test_one_that_does_not_answer_is_unhealthy_after_a_while() -> None:
    assert await asked(silence, timeout_s=0.05) == (False, "no answer within 0.05 s")


async def test_one_that_answers_byte_by_byte_is_not_waited_for(
    autojump_clock: MockClock,
) -> None:
    async def drip(stream: trio.SocketStream) -> None:
        while True:
            await stream.send_all(b"H")
            await trio.sleep(1)

    assert await asked(drip, timeout_s=5) == (False, "no answer within 5 s")


async def test_without_a_path_it_is_enough_to_accept() -> None:
    assert await asked(silence, path="") == (True, "accepts")


async def test_a_refused_connection_is_unhealthy() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    healthy, says = await probe.healthy(f"http://127.0.0.1:{port}", "/health", PATIENCE_S)
    assert not healthy
    assert "refused" in says


async def test_a_unix_socket_is_asked_too(tmp_path: Path) -> None:
    path = str(tmp_path / "r7.sock")
    assert not (await probe.healthy(f"unix:{path}", "/health", PATIENCE_S))[0]
    sock = trio.socket.socket(trio.socket.AF_UNIX)
    await sock.bind(path)
    sock.listen()
    async with trio.open_nursery() as nursery:
        talk = saying(b"HTTP/1.1 200 OK\r\n\r\n")
        nursery.start_soon(trio.serve_listeners, talk, [trio.SocketListener(sock)])
        assert (await probe.healthy(f"unix:{path}", "/health", PATIENCE_S))[0]
        nursery.cancel_scope.cancel()


def another() -> subprocess.Popen[bytes]:
    """Another process: it ends when its input does, as the context that it makes is left."""
    return subprocess.Popen(["cat"], stdin=subprocess.PIPE)


@pytest.mark.parametrize(("family", "host"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def test_who_listens(family: socket.AddressFamily, host: str) -> None:
    with socket.create_server((host, 0), family=family) as server, another() as other:
        port = server.getsockname()[1]
        url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        assert probe.listens(url, [other.pid, os.getpid()])
        assert not probe.listens(url, [other.pid])
        assert not probe.listens(url, [2**22 + 1])
    assert not probe.listens(url, [os.getpid()])


def test_a_connection_from_a_port_does_not_listen_there() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as us,
    ):
        assert not probe.listens(f"http://127.0.0.1:{us.getsockname()[1]}", [os.getpid()])


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "127.0.0.2", "::1", "::"])
def test_a_port_is_free_where_nobody_listens_on_any_address(host: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as server:
        port = server.getsockname()[1]
        assert not _port_is_free(port)
    assert _port_is_free(port)


def test_a_port_that_was_just_used_is_free() -> None:
    """Connections that were closed there linger; a runner that is loaded again must not wait for them."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with socket.create_connection(server.getsockname()) as client:
            server.accept()[0].close()  # closed first by the server: its side lingers
            assert client.recv(1) == b""
    assert _port_is_free(port)


# --- how often a loading runner is asked -----------------------------------------------------------------


class Loader:
    """A loading runner as the probe sees it, in a test's own time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, answers_in_s: float) -> None:
        self.ready_at = float("inf")
        self.asked_at: list[float] = []
        self.told_at: list[float] = []
        self._answers_in_s = answers_in_s
        self._asked_now = 0
        monkeypatch.setattr(probe, "healthy", self._healthy)
        launch = Launch("r7", "m", "", {}, 0, False)
        self._charge = Charge(launch, tmp_path)
        command = Command(("true",), {}, "http://127.0.0.1:1", check_path="/", trust_probe=True)
        self._charge.command = command
        self._supervisor = Supervisor(self._submit, lambda *_: command, tmp_path, "0", "")

    def _submit(self, fact: Fact) -> None:
        assert fact == ProbeAnswered("r7", True)
        self.told_at.append(trio.current_time())

    async def _healthy(self, url: str, path: str, timeout_s: float) -> tuple[bool, str]:
        self.asked_at.append(trio.current_time())
        self._asked_now += 1
        assert self._asked_now == 1, "asked twice at once"
        with trio.move_on_after(self._answers_in_s):
            await trio.sleep_forever()
        self._asked_now -= 1
        return trio.current_time() >= self.ready_at, ""

    async def load(self, seconds: float) -> float:
        """Be ready that much later: how long after that it was known."""
        self.ready_at = trio.current_time() + seconds
        await self._supervisor._find_ready(self._charge)
        (told,) = self.told_at
        return told - self.ready_at


@pytest.mark.parametrize("seconds", [0, 0.0551, 1.2345, 60.007])
async def test_readiness_is_found_within_ten_milliseconds(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, seconds: float
) -> None:
    loader = Loader(monkeypatch, tmp_path, answers_in_s=0.0)
    assert await loader.load(seconds) <= READY_POLL_S + 1e-9 == 0.01 + 1e-9
    assert len(loader.asked_at) <= seconds / READY_POLL_S + 2


@pytest.mark.parametrize("answers_in_s", [0.02, 0.5, 20.0])
async def test_a_loader_that_is_slow_to_answer_is_left_in_peace(
    autojump_clock: MockClock,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    answers_in_s: float,
) -> None:
    loader = Loader(monkeypatch, tmp_path, answers_in_s)
    late = await loader.load(100)
    pause = min(10 * answers_in_s, READY_PAUSE_S)
    assert late <= pause + answers_in_s + 1e-6
    assert len(loader.asked_at) <= 100 / (answers_in_s + pause) + 2
