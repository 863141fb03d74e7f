"""One booted machine for all tests that need it, with runnerd installed as systemd/README.md says."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.systemd.box import ROOT, Box
from tests.systemd.service import Service


@pytest.fixture(scope="session")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    made = Box(tmp_path_factory.mktemp("box"))
    try:
        made.wait()
        yield made
    finally:
        made.stop()


@pytest.fixture(scope="session")
def installed(box: Box) -> Box:
    """The commands of systemd/README.md, but for `make venv`, which needs a network, and the start itself."""
    text = (ROOT / "systemd/README.md").read_text("utf-8")
    script = text.split("```\n")[1]
    lines = [line for line in script.splitlines() if not line.startswith(("make ", "systemctl enable"))]
    assert len(lines) >= 8, "the README begins with something else"
    box.shell("mkdir -p /root/here && echo 'models: {}' >/root/here/config.yaml")
    box.shell("cd /root/here\n" + "\n".join(lines))
    return box


@pytest.fixture
def service(installed: Box, tmp_path: Path) -> Iterator[Service]:
    """The service, not started; afterwards everything of it is gone."""
    made = Service(installed)
    made.configure()
    yield made
    made.clean()
