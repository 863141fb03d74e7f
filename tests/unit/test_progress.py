"""What counts as progress of a load, and what does not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from daemon.processes import identity, progress
from daemon.processes.charge import Part
from daemon.processes.progress import Look, Sign
from events.catalogue import Process
from events.limits import LOAD_READ_BYTES_S

BEFORE = Look(10.0, (100, 0), ("refused", ""), {1: 1000}, {1: 50})


def after(
    printed: int = 100,
    answer: str = "refused",
    read_bytes: int = 1000,
    ticks: int = 50,
    child_ticks: int = 0,
) -> Look:
    """Two seconds later."""
    return Look(12.0, (printed, 0), (answer, ""), {1: read_bytes}, {1: ticks, 2: child_ticks})


@pytest.mark.parametrize(
    ("now", "said"),
    [
        (after(), None),
        (after(printed=101), "output"),
        (after(printed=50), "output"),  # it was cut, because it had grown
        (after(answer="HTTP/1.1 503"), "answer"),
        (after(read_bytes=1000 + 2 * LOAD_READ_BYTES_S), None),  # what answering health probes may take
        (after(read_bytes=1001 + 2 * LOAD_READ_BYTES_S), "read"),
        (after(ticks=50 + progress.TICKS_PER_S // 2), None),
        (after(ticks=51 + progress.TICKS_PER_S // 2), "work"),
        (after(child_ticks=progress.TICKS_PER_S), "work"),
    ],
)
def test_a_sign_of_progress(now: Look, said: Sign | None) -> None:
    assert progress.sign(BEFORE, now) == said


def test_one_that_ended_is_no_progress() -> None:
    gone = Look(12.0, BEFORE.printed, BEFORE.answers, {}, {})
    assert progress.sign(BEFORE, gone) is None


WORKS = """
import sys
data = open("/dev/zero", "rb").read(64 << 20)
while sum(range(100_000)) and not sys.stdin.closed:
    print("read", flush=True)
    sys.stdin.read(1) or sys.exit()
"""


def test_a_process_that_reads_and_works_is_seen_to(tmp_path: Path) -> None:
    command = [sys.executable, "-ISc", WORKS]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == b"read\n"
        stat = identity.stat_of(process.pid)
        assert stat is not None
        part = Part(Process("r1", 0, "boot", process.pid, stat.start_time), -1, tmp_path / "no-log", None)
        seen = progress.look([part], [stat], 1.0)
        assert seen.printed == (0,)
        assert seen.read_bytes[process.pid] >= 64 << 20
        assert seen.work_ticks[process.pid] >= 0
        process.stdin.close()
    assert progress.look([], [stat], 2.0).read_bytes == {process.pid: 0}
    assert os.sysconf("SC_CLK_TCK") == progress.TICKS_PER_S
