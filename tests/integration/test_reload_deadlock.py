"""ollama#14407: other options are asked for while a runner is busy without a pause. Nobody may hang."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
import time
from pathlib import Path

import pytest

from events import catalogue as c
from tests.integration.live import PATIENCE_S, ROOT, Live, daemon, ngram

SHARED = Path(os.environ.get("RUNNERD_SHARED", ROOT.parent / "shared"))
"""Where the report of the failure may lie; it is not part of this project."""

MODEL = "llama3.2:3b"
CONFIG = f"""
devices: {{host: {{budget: 80MiB}}}}
memoryHeadroom: 0
models:
  "{MODEL}":
    cmd: "{ngram("--slots 2", "--ctx ${num_ctx}", "--tokens-per-second 400")}"
    options: {{num_ctx: 2048}}
    slots: 2
    memory: 50MiB
"""
WORKERS = 4
BUSY_S = 3
"""Longer than the quantum of so quick a model, and than its load."""

HANGS_S = 30
"""What the report calls a deadlock."""


def ask(live: Live, context: int, words: int) -> int:
    """One chat, not streamed; its status."""
    options = {"num_ctx": context, "num_predict": words}
    messages = [{"role": "user", "content": "Write about the sea."}]
    body = {"model": MODEL, "messages": messages, "options": options, "stream": False}
    return live.post("/api/chat", body)[0]


def test_other_options_are_served_while_a_runner_is_busy(tmp_path: Path) -> None:
    with daemon(tmp_path, CONFIG) as live:
        assert ask(live, 4096, 1) == 200
        over = threading.Event()
        served: list[int] = []

        def work() -> None:
            while not over.is_set():
                served.append(ask(live, 4096, 500))

        workers = [threading.Thread(target=work) for _ in range(WORKERS)]
        for worker in workers:
            worker.start()
        time.sleep(BUSY_S)  # the point: they never pause
        waits = []
        for context in (8192, 16384):
            began = time.monotonic()
            assert ask(live, context, 1) == 200
            waits.append(time.monotonic() - began)
        over.set()
        for worker in workers:
            worker.join(PATIENCE_S)
        assert max(waits) < HANGS_S
        assert served and set(served) == {200}, "nobody was cut off"
        loads = [event.body.options for event in live.events() if isinstance(event.body, c.RunnerLoad)]
        assert [options["num_ctx"] for options in loads][:2] == [4096, 8192]
        assert {16384} <= {options["num_ctx"] for options in loads}


def script() -> str:
    """The report's own script, as it is."""
    reports = sorted((SHARED / "reference").glob("000_*.txt"))
    if not reports:
        pytest.skip(f"the report of ollama#14407 is not in {SHARED}/reference")
    text = reports[0].read_text("utf-8")
    begin = text.index("#!/usr/bin/env bash")
    return text[begin : text.index("\nRoot cause", begin)] + "\n"


def test_the_script_of_the_report_passes(tmp_path: Path) -> None:
    if shutil.which("curl") is None:
        pytest.skip("the report's script needs curl")
    path = tmp_path / "reproduce.sh"
    path.write_text(script())
    with daemon(tmp_path, CONFIG) as live:
        environment = os.environ | {"OLLAMA_HOST": f"http://127.0.0.1:{live.port}"}
        command = ["bash", str(path), MODEL]
        ran = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=3 * PATIENCE_S, check=False
        )
        assert ran.returncode == 0, ran.stdout + ran.stderr
        assert "PASS: No deadlock" in ran.stdout
