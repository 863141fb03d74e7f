"""ollama#14407: other options are asked for while a runner is busy without a pause. Nobody may hang."""

from __future__ import annotations

import os
import subprocess
import threading
from pathlib import Path

import pytest

from events import catalogue as c
from tests.integration.live import PATIENCE_S, ROOT, Live, daemon, ngram

SHARED = Path(os.environ.get("RUNNERD_SHARED", ROOT.parent / "shared"))
"""Where the report of the failure may lie; it is not part of this project."""

REPORTS = sorted((SHARED / "reference").glob("000_*.txt"))

MODEL = "llama3.2:3b"


def config(runners: int) -> str:
    """A model of two slots, and memory for so many runners of it. Turns are short, for the test's sake."""
    return f"""
devices: {{host: {{budget: {runners * 50 + 30}MiB}}}}
memoryHeadroom: 0
swapPatience: 1
models:
  "{MODEL}":
    cmd: "{ngram("--slots 2", "--ctx ${num_ctx}", "--tokens-per-second 1000")}"
    options: {{num_ctx: 2048}}
    slots: 2
    memory: 50MiB
"""


WORKERS = 4
ANSWERS = 3 * WORKERS
"""Served before other options are asked for: by then nobody's first request is under way any more."""


def ask(live: Live, context: int, words: int) -> int:
    """One chat, not streamed; its status."""
    options = {"num_ctx": context, "num_predict": words}
    messages = [{"role": "user", "content": "Write about the sea."}]
    body = {"model": MODEL, "messages": messages, "options": options, "stream": False}
    return live.post("/api/chat", body)[0]


def test_other_options_are_served_while_a_runner_is_busy(tmp_path: Path) -> None:
    """With memory for one runner: it must go, though it is never idle by itself."""
    with daemon(tmp_path, config(runners=1)) as live:
        assert ask(live, 4096, 1) == 200
        over = threading.Event()
        answered = threading.Semaphore(0)
        served: list[int] = []

        def work() -> None:
            while not over.is_set():
                served.append(ask(live, 4096, 150))
                answered.release()

        workers = [threading.Thread(target=work) for _ in range(WORKERS)]
        for worker in workers:
            worker.start()
        assert all(answered.acquire(timeout=PATIENCE_S) for _ in range(ANSWERS))
        for context in (8192, 16384):
            assert ask(live, context, 1) == 200  # or `ask` gives up, after PATIENCE_S
        over.set()
        for worker in workers:
            worker.join(PATIENCE_S)
        assert served and set(served) == {200}, "nobody was cut off"
        loads = [event.body.options for event in live.events() if isinstance(event.body, c.RunnerLoad)]
        assert [options["num_ctx"] for options in loads][:2] == [4096, 8192]
        assert {16384} <= {options["num_ctx"] for options in loads}


def script(report: Path) -> str:
    """The report's own script, as it is."""
    text = report.read_text("utf-8")
    begin = text.index("#!/usr/bin/env bash")
    return text[begin : text.index("\nRoot cause", begin)] + "\n"


@pytest.mark.parametrize("report", REPORTS, ids=lambda report: report.stem)
def test_the_script_of_the_report_passes(tmp_path: Path, report: Path) -> None:
    """Needs bash and curl, and the report: without it there is nothing to run. It gives up after 10 s, which
    is less than a swap may take on a machine that is busy otherwise; so there is memory for two."""
    path = tmp_path / "reproduce.sh"
    path.write_text(script(report))
    with daemon(tmp_path, config(runners=2)) as live:
        environment = os.environ | {"OLLAMA_HOST": f"http://127.0.0.1:{live.port}"}
        command = ["bash", str(path), MODEL]
        ran = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=3 * PATIENCE_S, check=False
        )
        assert ran.returncode == 0, ran.stdout + ran.stderr
        assert "PASS: No deadlock" in ran.stdout
