"""The installed service in a box, and what tests ask of it."""

from __future__ import annotations

import json
import subprocess
from typing import Any

from tests.systemd.box import PATIENCE_S, Box

UNITS = "runnerd.socket runnerd-control.socket runnerd.service"
RUNNER = "/opt/runnerd/.venv/bin/python /opt/runnerd/examples/ngram_runner.py --port ${PORT} --slots 2"
CONFIG = f"""
models:
  red: {{cmd: "{RUNNER}", memory: 10MiB, slots: 2}}
  slow: {{cmd: "{RUNNER} --tokens-per-second 20", memory: 10MiB, slots: 2}}
"""
MARKED = "grep -lzs '^RUNNERD_RUNNER=' /proc/[0-9]*/environ"


class Service:
    """See the module."""

    def __init__(self, box: Box) -> None:
        self.box = box
        for what in ("--sync", "--rotate", "--vacuum-time=1us"):  # begin with an empty journal
            box.run("journalctl", what)

    def configure(self, config: str = CONFIG, **settings: object) -> None:
        """The configuration file, and a drop-in for the unit."""
        self.box.run("tee", "/etc/runnerd/config.yaml", input=config)
        lines = "".join(f"{name}={value}\n" for name, value in settings.items())
        self.box.shell("mkdir -p /etc/systemd/system/runnerd.service.d")
        self.box.run("tee", "/etc/systemd/system/runnerd.service.d/test.conf", input=f"[Service]\n{lines}")
        self.box.run("systemctl", "daemon-reload")

    def clean(self) -> None:
        """Stop everything, and forget the log."""
        self.box.shell(f"systemctl stop {UNITS} || true; systemctl reset-failed || true")
        left = " ".join(map(str, self.marked()))
        self.box.shell(f"kill -9 {left} 2>/dev/null || true; rm -rf /var/lib/runnerd/* /run/runnerd/*")

    def start(self) -> None:
        self.box.run("systemctl", "start", "runnerd")

    def show(self, name: str, unit: str = "runnerd.service") -> str:
        """A property of a unit."""
        return self.box.run("systemctl", "show", "--value", "-p", name, unit).stdout.strip()

    @property
    def main_pid(self) -> int:
        return int(self.show("MainPID"))

    def ctl(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """runnerctl, as its user's group may use it."""
        return self.box.run("runnerctl", *arguments, check=check)

    def runners(self) -> dict[str, int]:
        """The models of the runners that are there, with their processes."""
        lines = self.ctl("--json", "ps").stdout.splitlines()
        return {row["model"]: row["pid"] for row in map(json.loads, lines)}

    def load(self, *models: str) -> dict[str, int]:
        """Load models; the runners that are there then."""
        for model in models:
            self.ctl("load", model)
        return self.runners()

    def marked(self) -> list[int]:
        """Processes that are runners', or our guardian."""
        script = f"{MARKED} || true; pgrep -f '[d]aemon/guardian.py' || true"
        return sorted(
            {int(line.removeprefix("/proc/").split("/")[0]) for line in self.box.shell(script).split()}
        )

    def curl(self, *arguments: str, path: str = "/health") -> subprocess.Popen[str]:
        """Ask over HTTP; it goes on while the test does something else."""
        url = f"http://127.0.0.1:8080{path}"
        return self.box.start("curl", "-sS", "--max-time", str(PATIENCE_S), *arguments, url)

    def chat(self, model: str, tokens: int, *arguments: str) -> subprocess.Popen[str]:
        """A chat that takes a while."""
        messages = [{"role": "user", "content": "Tell me about the sea."}]
        body = json.dumps({"model": model, "max_tokens": tokens, "messages": messages, "stream": True})
        return self.curl("--no-buffer", "--data", body, *arguments, path="/v1/chat/completions")

    def journal(self, *match: str) -> list[dict[str, Any]]:
        """Lines of the journal about the service, oldest first."""
        self.box.run("journalctl", "--sync")
        found = self.box.run("journalctl", "-u", "runnerd", "--output=json", *match).stdout
        return [json.loads(line) for line in found.splitlines()]

    def said(self, words: str) -> bool:
        """Whether the service has said something in the journal."""
        return any(words in line["MESSAGE"] for line in self.journal())

    def follow(self, words: str) -> None:
        """Wait until the journal has something about the service."""
        command = ["journalctl", "-u", "runnerd", "--output=cat", "--follow", "--no-tail"]
        with self.box.start("timeout", str(PATIENCE_S), *command) as told:
            assert told.stdout is not None
            found = any(words in line for line in told.stdout)
            told.terminate()
        assert found, words

    def until(self, type: str, after: int = 0) -> int:
        """Wait until the daemon's log has an event; its number."""
        command = ["runnerctl", "--json", "watch", "--after", str(after)]
        with self.box.start("timeout", str(PATIENCE_S), *command) as told:
            assert told.stdout is not None
            found = next(event for event in map(json.loads, told.stdout) if event["type"] == type)
            told.terminate()
        return int(found["seq"])
