"""A real llama-server, and two tiny models for it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.live import PATIENCE_S, ROOT


@pytest.fixture(scope="session")
def llama_server() -> str:
    """The path of llama-server, from the environment."""
    path = os.environ.get("RUNNERD_LLAMA_SERVER", "")
    if not path:
        pytest.fail(
            "RUNNERD_LLAMA_SERVER does not name a llama-server; `make test-llama` finds or builds one"
        )
    if not os.access(path, os.X_OK):
        pytest.fail(f"RUNNERD_LLAMA_SERVER={path} is no program that can be run")
    return path


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two different models, by name. Their context is long enough for streams that outlast any test."""
    folder = tmp_path_factory.mktemp("models")
    made = {name: folder / f"{name}.gguf" for name in ("red", "blue")}
    for seed, (name, path) in enumerate(made.items(), start=1):
        command = [sys.executable, str(ROOT / "scripts/make_tiny_gguf.py"), str(path)]
        command += ["--name", name, "--seed", str(seed), "--ctx", "131072"]
        subprocess.run(command, check=True, timeout=PATIENCE_S)
    return made
