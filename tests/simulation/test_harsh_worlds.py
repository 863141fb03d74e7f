"""Harsh worlds by seed, and in each of them liveness step by step. `SEEDS=5000` runs more."""

from __future__ import annotations

import os

import pytest

from tests.simulation.harsh import run_harsh

SEEDS = int(os.environ.get("SEEDS", "300")) // 10
"""About half a second each."""
BLOCK = 6


def play(seed: int, *, overdue: bool) -> None:
    try:
        run_harsh(seed, overdue=overdue)
    except Exception as error:
        error.add_note(f"harsh seed {seed}, overdue={overdue}")
        raise


@pytest.mark.parametrize("first", range(0, SEEDS, BLOCK))
def test_whoever_waits_has_a_cause_at_every_step(first: int) -> None:
    for seed in range(first, first + BLOCK):
        play(seed, overdue=False)


def test_whoever_waits_for_a_look_in_a_step_of_its_own_has_a_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("statemachines.state.LOOK_RUNNERS", 0)
    for seed in range(200_000, 200_000 + BLOCK):
        play(seed, overdue=False)


@pytest.mark.interpreted
@pytest.mark.parametrize("first", range(0, SEEDS, BLOCK))
def test_no_decision_is_overdue_at_any_step(first: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.simulation.worlds.AGE_STEP_NS", 1 << 62)
    for seed in range(100_000 + first, 100_000 + first + BLOCK):
        play(seed, overdue=True)
