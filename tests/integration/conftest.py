"""What these tests share: a machine without GPUs, and a yard, cleared of its processes afterwards."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.yard import Yard


@pytest.fixture
def yard(tmp_path: Path) -> Iterator[Yard]:
    made = Yard(tmp_path)
    yield made
    made.end()


@pytest.fixture(scope="session", autouse=True)
def no_gpus(nvml_folder: Path) -> Iterator[None]:
    """Daemons that are started here find a driver that is not loaded: where this machine's GPUs counted,
    models would be put on them, and not on the host."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LD_LIBRARY_PATH", str(nvml_folder), prepend=os.pathsep)
        patch.delenv("FAKE_NVML", raising=False)
        yield
