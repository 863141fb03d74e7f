"""A whole daemon for tests: real processes, real sockets, a real log, in a directory of the test's own."""

from __future__ import annotations

import http.client
import json
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from daemon.cli import runnerlog
from events.catalogue import Event
from events.reader import Reader
from tests.ports import some_ports

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
PATIENCE_S = 60
"""Far longer than anything here takes; reaching it is a failure."""

Command = list[str | Path]
"""What a process is started with."""


def ngram(*switches: str) -> str:
    """The command of the project's own small runner."""
    return " ".join([sys.executable, str(ROOT / "examples/ngram_runner.py"), "--port ${PORT}", *switches])


class Live:
    """`runnerd serve` on a configuration given as text."""

    def __init__(self, directory: Path, config: str) -> None:
        self.directory = directory
        self.config = directory / "config.yaml"
        self.config.write_text(config if "startPort" in config else f"startPort: {some_ports()}\n{config}")
        self.log = directory / "state" / "events.db"
        self.socket = directory / "control.sock"
        self.port = 0
        self.options: list[str] = []
        """More of `serve`'s, for the next start."""
        self.wrapper: list[str] = []
        """What starts it, if it is not started as it is."""
        self.process: subprocess.Popen[str]
        self.journal: list[str] = []
        self._said = threading.Condition()
        self._began = 0
        self._drain: threading.Thread

    def start(self) -> None:
        """Start it, and return when it listens."""
        self.launch()
        if not self.read_until("listening on"):
            raise AssertionError("runnerd did not start:\n" + "".join(self.journal))

    def launch(self, **more: Any) -> None:
        """Start it, and return at once. `more`: for Popen."""
        command = [
            *self.wrapper, str(BIN / "runnerd"), "serve", "--config", str(self.config),
            "--listen", f"127.0.0.1:{self.port}", "--socket", str(self.socket), "--log", str(self.log),
            *self.options,
        ]  # fmt: skip
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, **more)
        self._began = len(self.journal)
        self._drain = threading.Thread(target=self._read, daemon=True)
        self._drain.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if "listening on" in line:
                self.port = int(line.split("http://")[1].split(",")[0].rpartition(":")[2])
            with self._said:
                self.journal.append(line)
                self._said.notify_all()
        with self._said:
            self.journal.append("")
            self._said.notify_all()

    def read_until(self, words: str) -> bool:
        """Wait until it has said something since it was launched, or (False) has ended without."""

        def said() -> bool | None:
            lines = self.journal[self._began :]
            found = any(words in line for line in lines)
            return found if found or "" in lines else None

        with self._said:
            self._said.wait_for(lambda: said() is not None, PATIENCE_S)
            return bool(said())

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Signal it and wait; its exit code."""
        self.process.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        """Wait for its end; its exit code."""
        code = self.process.wait(PATIENCE_S)
        self._drain.join(PATIENCE_S)
        return code

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()
        self.wait()

    # --- talking to it -----------------------------------------------------------------------------------

    def connect(self) -> http.client.HTTPConnection:
        """A connection to the front door."""
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)

    def post(self, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any], dict[str, str]]:
        """(status, JSON body, headers)."""
        connection = self.connect()
        try:
            connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
            response = connection.getresponse()
            return response.status, json.loads(response.read()), dict(response.getheaders())
        finally:
            connection.close()

    def chat(self, model: str, **more: Any) -> tuple[int, dict[str, Any], dict[str, str]]:
        """One chat completion, not streamed."""
        message = {"role": "user", "content": "Tell me about the sea."}
        return self.post(
            "/v1/chat/completions", {"model": model, "max_tokens": 8, "messages": [message], **more}
        )

    @contextmanager
    def stream(self, model: str, tokens: int = 1000) -> Iterator[http.client.HTTPResponse]:
        """A streamed chat whose first bytes have come; leaving closes the connection."""
        connection = self.connect()
        message = {"role": "user", "content": "Tell me about the sea."}
        body = {"model": model, "stream": True, "max_tokens": tokens, "messages": [message]}
        connection.request("POST", "/v1/chat/completions", json.dumps(body))
        response = connection.getresponse()
        response.readline()
        try:
            yield response
        finally:
            response.close()
            connection.close()

    def get(self, path: str) -> Any:
        """A JSON document."""
        connection = self.connect()
        try:
            connection.request("GET", path)
            return json.loads(connection.getresponse().read())
        finally:
            connection.close()

    def until(self, condition: Callable[[], object]) -> None:
        """Wait until a condition holds; it is looked at after each event that becomes durable."""
        command = [str(BIN / "runnerctl"), "--socket", str(self.socket), "--json", "watch", "--after", "0"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as watcher:
            late = threading.Timer(PATIENCE_S, watcher.kill)
            late.start()
            try:
                assert watcher.stdout is not None
                assert any(condition() for _ in watcher.stdout), "it never came to that"
            finally:
                late.cancel()
                watcher.kill()

    # --- what it left ------------------------------------------------------------------------------------

    def events(self) -> list[Event]:
        """Everything in the log."""
        with Reader(self.log) as reader:
            return list(reader.events())

    def tags(self, subject: str | None = None) -> list[str]:
        """The types of the events, of one subject or of all."""
        return [
            str(event.body.__struct_config__.tag)
            for event in self.events()
            if subject is None or event.subject == subject
        ]

    def leftovers(self) -> list[int]:
        """Live processes that carry this log's marker."""
        with Reader(self.log) as reader:
            marker = f"RUNNERD_RUNNER={reader.log_id}/".encode()
        found = []
        for name in os.listdir("/proc"):
            if name.isdigit():
                try:
                    if marker in Path("/proc", name, "environ").read_bytes():
                        found.append(int(name))
                except OSError:
                    continue
        return found

    def runnerlog(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """The log tool on this log."""
        command = [str(BIN / "runnerlog"), "--log", str(self.log), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)

    def runnerctl(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """The client on this daemon."""
        command = [str(BIN / "runnerctl"), "--socket", str(self.socket), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)


@contextmanager
def daemon(directory: Path, config: str) -> Iterator[Live]:
    """A started daemon; at the end it is stopped, nothing of it may be left, and its log must verify."""
    live = Live(directory, config)
    live.start()
    try:
        yield live
        if live.process.poll() is None:
            code = live.stop()
            assert code == 0, "".join(live.journal)
        assert live.leftovers() == []
        verified = CliRunner().invoke(
            runnerlog.cli, ["--log", str(live.log), "verify"]
        )  # no new process: often
        assert verified.exit_code == 0, verified.output
    finally:
        if live.process.poll() is None:
            live.kill()
        for pid in live.leftovers():
            os.kill(pid, signal.SIGKILL)


def gone(pid: int) -> None:
    """Wait for the end of a process that is not our child."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        ready, _, _ = select.select([descriptor], [], [], PATIENCE_S)
        assert ready, f"process {pid} does not end"
    finally:
        os.close(descriptor)
