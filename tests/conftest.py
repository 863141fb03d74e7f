"""What tests of several kinds need."""

from __future__ import annotations

import logging
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

FAKE_NVML = Path(__file__).with_name("fake_nvml.c")

# Whoever runs the tests in the background (`nohup`, `&`) has some signals ignored, and every process that
# they start would inherit that: none could be interrupted.
signal.signal(signal.SIGINT, signal.default_int_handler)
for ignored in (signal.SIGHUP, signal.SIGQUIT):
    signal.signal(ignored, signal.SIG_DFL)


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    """`runnerd` says from its start on where its messages go: not those of the tests behind it."""
    root = logging.getLogger()
    level = root.level
    yield
    root.setLevel(level)
    for handler in root.handlers[:]:
        if not type(handler).__module__.startswith("_pytest"):
            root.removeHandler(handler)


@pytest.fixture(scope="session")
def nvml_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a fake libnvidia-ml.so.1, for LD_LIBRARY_PATH; it reads its state from $FAKE_NVML."""
    folder = tmp_path_factory.mktemp("nvml")
    library = folder / "libnvidia-ml.so.1"
    flags = ["-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", f"-Wl,-soname,{library.name}"]
    subprocess.run(["gcc", *flags, "-o", library, FAKE_NVML], check=True, timeout=60)
    return folder
