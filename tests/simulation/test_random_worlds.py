"""Random worlds by seed. `SEEDS=5000 pytest tests/simulation` runs more; a failing seed is in the message:
`python -m tests.simulation.run --seed N --trace` shows it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from events import catalogue as c
from tests.simulation.worlds import run_world

ROOT = Path(__file__).resolve().parents[2]
SEEDS = int(os.environ.get("SEEDS", "500"))
"""About 80 ms each."""
BLOCK = 20


@pytest.mark.parametrize("first", range(0, SEEDS, BLOCK))
def test_every_request_ends_and_nothing_is_left(first: int) -> None:
    for seed in range(first, min(first + BLOCK, SEEDS)):
        try:
            run_world(seed)
        except Exception as error:
            error.add_note(f"seed {seed}: python -m tests.simulation.run --seed {seed} --trace")
            raise


def test_the_worlds_reach_what_they_are_for() -> None:
    """A simulation in which nothing ever went wrong would prove nothing."""
    counts: dict[str, int] = {}
    for seed in range(60):
        standing: dict[str, None] = {}
        for event in run_world(seed).world.log:
            kind = type(event.body).__struct_config__.tag
            counts[str(kind)] = counts.get(str(kind), 0) + 1
            if isinstance(event.body, c.ClaimMade):
                standing[event.body.demand] = None
                counts["claims at once"] = max(counts.get("claims at once", 0), len(standing))
            elif isinstance(event.body, c.ClaimEnded):
                del standing[event.body.demand]
            elif isinstance(event.body, c.DaemonStarted):
                standing = {}
    for kind in (
        "request.completed", "request.requeued", "request.timed_out", "request.interrupted", "claim.made",
        "turn.waits", "runner.leased", "runner.kill", "runner.stuck", "runner.lost", "model.cooling",
        "step.continues", "reclaim.waits", "config.changed", "operator.unload",
    ):  # fmt: skip
        assert counts.get(kind, 0) > 0, f"{kind} never happened in {counts}"
    assert counts["claims at once"] > 1, "no two claims ever stood side by side"


def test_a_look_in_a_step_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in worlds of more runners than these have."""
    monkeypatch.setattr("statemachines.state.LOOK_RUNNERS", 0)
    looks = 0
    for seed in range(40):
        log = run_world(seed).world.log
        resumed = [event.seq for event in log if event.body == c.DeadlinePassed("resume", "")]
        loads = (event.cause for event in log if isinstance(event.body, c.RunnerLoad | c.ClaimMade))
        looks += sum(cause in resumed for cause in loads)
    assert looks > 100


def test_the_same_seed_is_the_same_log_under_every_hash_seed() -> None:
    seen = set()
    for hash_seed in ("0", "1", "4711"):
        done = subprocess.run(
            [sys.executable, "-m", "tests.simulation.run", "--fingerprint", "1", "2", "5", "8", "13"],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        )
        seen.add(done.stdout)
    assert len(seen) == 1
