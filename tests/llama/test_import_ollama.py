"""What `runnerd import-ollama` writes is served by a real llama-server, from where Ollama has it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from tests.integration.live import BIN, PATIENCE_S, daemon
from tests.unit.test_importing import Ollama


def test_an_imported_model_is_served(tmp_path: Path, llama_server: str, weights: dict[str, Path]) -> None:
    ollama = Ollama(tmp_path / "ollama")
    parameters = {
        "num_ctx": 2048, "num_gpu": 0, "num_keep": 2, "num_predict": 5, "num_thread": 1, "num_batch": 256,
        "main_gpu": 0, "seed": 7, "temperature": 0.5, "top_k": 20, "top_p": 0.9, "min_p": 0.1, "typical_p": 1,
        "repeat_last_n": 32, "repeat_penalty": 1.1, "presence_penalty": 0, "frequency_penalty": 0.1,
        "stop": ["<|im_end|>", "\n\n'quoted' \\"],
    }  # fmt: skip
    ollama.model("tiny/latest", model=weights["red"].read_bytes(), params=parameters)
    output = tmp_path / "imported.yaml"
    command = [str(BIN / "runnerd"), "import-ollama", str(ollama.place), "--server", llama_server]
    done = subprocess.run(
        [*command, "--output", str(output)], capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert done.returncode == 0, done.stderr
    with daemon(tmp_path, output.read_text()) as live:
        status, body, _ = live.post("/v1/completions", {"model": "tiny", "prompt": "the sea"})
        assert status == 200
        assert body["usage"]["completion_tokens"] <= 5  # a parameter is what a request gets that says nothing
        body = live.post("/v1/completions", {"model": "tiny:latest", "prompt": "the sea", "max_tokens": 9})[1]
        assert body["usage"]["completion_tokens"] > 5 or body["choices"][0]["finish_reason"] == "stop"
        (runner,) = live.get("/running")["running"]
        assert runner["model"] == "tiny:latest"
    assert all(os.stat(path).st_nlink == 1 for path in (ollama.place / "blobs").iterdir())
