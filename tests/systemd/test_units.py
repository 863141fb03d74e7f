"""The unit files, as systemd-analyze sees them. Needs no systemd that runs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.integration.live import BIN, PATIENCE_S
from tests.systemd.box import ROOT

UNITS = ROOT / "systemd"
WORST = 20
"""The largest exposure, in tenths."""


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """The units, with programs that are there."""
    made = tmp_path / "units"
    shutil.copytree(UNITS, made)
    for path in made.rglob("*.service"):
        text = path.read_text()
        for folder in ("/opt/runnerd/.venv/bin/", "%h/runnerd/.venv/bin/"):
            text = text.replace(folder, f"{BIN}/")
        path.write_text(text)
    return made


def analyze(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["systemd-analyze", "--no-pager", *map(str, arguments)],
        capture_output=True, text=True, check=False, timeout=PATIENCE_S,
        env={**os.environ, "XDG_RUNTIME_DIR": "/tmp", "SYSTEMD_LOG_LEVEL": "warning"},
    )  # fmt: skip


def complaints(*paths: Path, user: bool = False) -> str:
    """What verify says of some units: it exits with 0 all the same."""
    mode = ["--user"] if user else []
    return analyze("verify", "--man=no", "--recursive-errors=no", *mode, *paths).stderr


def test_systemd_understands_every_line(units: Path) -> None:
    assert complaints(*units.glob("runnerd*.*")) == ""
    assert complaints(units / "user/runnerd.service", user=True) == ""


def test_a_mistake_would_be_found(units: Path) -> None:
    path = units / "runnerd.service"
    path.write_text(path.read_text().replace("WatchdogSec=", "WatchdogSecs="))
    assert "'WatchdogSecs'" in complaints(path)


def test_little_is_exposed() -> None:
    done = analyze("security", "--offline=true", f"--threshold={WORST}", UNITS / "runnerd.service")
    assert done.returncode == 0, done.stdout[-200:]
    assert analyze("security", "--offline=true", "--threshold=5", UNITS / "runnerd.service").returncode == 1


def test_each_exception_has_its_reason() -> None:
    """Whatever counts as exposed is named in the unit, below the line where reasons are given."""
    unit = UNITS / "runnerd.service"
    table = json.loads(analyze("security", "--offline=true", "--json=short", unit).stdout)
    open_ones = {row["name"].split("=")[0] for row in table if float(row["exposure"] or 0) > 0}
    assert len(open_ones) > 5
    _, _, reasons = unit.read_text().partition("# --- what it must be able to do")
    above = "ProtectHome"  # its reason stands with it
    assert sorted(name for name in open_ones if name.split("/")[0] not in reasons and name != above) == []
