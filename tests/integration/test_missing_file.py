"""A llama-server whose model's file is not there: asking for it unloads nobody."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

import pytest
import trio

from daemon.http import arrivals
from daemon.http.refusals import Refused
from events.catalogue import RequestArrived
from tests.integration.live import ROOT, daemon, ngram


def test_who_asks_for_a_model_without_a_file_unloads_nobody(tmp_path: Path) -> None:
    server, file = tmp_path / "llama-server", tmp_path / "m.gguf"
    runner = ROOT / "examples/ngram_runner.py"
    server.write_text(f'#!/bin/sh\nshift 2\nexec {sys.executable} {runner} "$@"\n')
    server.chmod(0o755)
    text = (
        "devices: {host: {budget: 500MiB}}\nmemoryHeadroom: 0\nmodels:\n"
        f"  red: {{cmd: '{ngram()}', memory: 200MiB}}\n"
        f"  gone: {{cmd: '{server} -m {file} --port ${{PORT}}'}}\n"
    )
    with daemon(tmp_path, text) as live:
        assert live.chat("red")[0] == 200
        status, body, _ = live.chat("gone")
        assert (status, body["error"]["code"]) == (502, "load_failed")
        assert body["error"]["message"] == f"model 'gone' failed to load: {file} is not there"
        assert live.post("/api/chat", {"model": "gone", "messages": []})[0] == 502
        assert live.tags().count("runner.load") == 1 and "runner.drain" not in live.tags()

        file.touch()  # it has come meanwhile, of which nobody has told the daemon
        assert live.chat("gone")[0] == 200
        os.remove(file)
        assert live.chat("gone")[0] == 200  # its runner is there
        assert live.tags().count("runner.load") == 2


async def test_a_file_system_that_hangs_takes_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Large bodies, among others, need one of the few that there are."""
    answers = threading.Event()
    monkeypatch.setattr(os.path, "exists", lambda path: answers.wait() and False)
    monkeypatch.setattr(arrivals, "FILE_LOOK_S", 0.01)
    limiter = trio.to_thread.current_default_thread_limiter()
    arrival = RequestArrived("gone", "chat")
    for _ in range(3):
        await arrivals.check_file("/mnt/models/gone.gguf", arrival)  # nobody is refused for it
    assert limiter.borrowed_tokens == 1
    answers.set()
    with trio.fail_after(30):
        while limiter.borrowed_tokens:
            await trio.lowlevel.checkpoint()
    monkeypatch.setattr(arrivals, "FILE_LOOK_S", 30)
    with pytest.raises(Refused):
        await arrivals.check_file("/mnt/models/gone.gguf", arrival)
