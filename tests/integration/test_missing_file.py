"""A llama-server whose model's file is not there: asking for it unloads nobody."""

from __future__ import annotations

import os
import sys
from pathlib import Path

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
