"""The kernel's count of processes killed for want of memory."""

from __future__ import annotations

from pathlib import Path

from daemon.processes.oom import kills, more


def test_the_count(tmp_path: Path) -> None:
    vmstat = tmp_path / "vmstat"
    vmstat.write_text("nr_free_pages 123\noom_kill 7\ndrop_pagecache 1\n")
    assert kills(vmstat) == 7


def test_a_kernel_that_does_not_tell(tmp_path: Path) -> None:
    vmstat = tmp_path / "vmstat"
    assert kills(vmstat) is None
    vmstat.write_text("nr_free_pages 123\noom_reaper 1\n")
    assert kills(vmstat) is None


def test_only_a_greater_count_is_evidence() -> None:
    assert not more(None)
    assert not more(1 << 62)
    assert more(-1) is (kills() is not None)
