"""What-if over random worlds: the same configuration gives the same story, any gives each arrival an end."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from daemon.history.changes import Changes
from daemon.history.compare import UNFINISHED, Column, fidelity
from events.limits import GIB
from tests.simulation.again import play, record
from tests.simulation.worlds import RandomWorld

ROOT = Path(__file__).resolve().parents[2]
SEEDS = 30
BLOCK = 10


def world(seed: int) -> RandomWorld:
    """The world of a seed, played."""
    made = RandomWorld(seed)
    made.play()
    return made


def is_calm(seed: int) -> bool:
    """Whether nothing misbehaves in the world of a seed."""
    return not RandomWorld(seed).nature.percent


def check_same(recorded: Column, again: Column, seed: int) -> None:
    """Every request has the same end, at the same nanosecond, and waited for the same."""
    assert again.outcomes == recorded.outcomes, seed
    assert again.waited_ns == recorded.waited_ns, seed
    assert again.parts_ns == recorded.parts_ns, seed
    mine, theirs = again.stats.total, recorded.stats.total
    assert (mine.loads["decided"], mine.swaps, mine.hits) == (
        theirs.loads["decided"],
        theirs.swaps,
        theirs.hits,
    )


@pytest.mark.parametrize("first", range(0, SEEDS, BLOCK))
def test_where_nothing_misbehaves_the_same_configuration_gives_the_same_story(first: int) -> None:
    for seed in filter(is_calm, range(first, first + BLOCK)):
        recording, recorded = record(world(seed).world.log)
        check_same(recorded, play(recording), seed)


@pytest.mark.parametrize("first", [*range(0, SEEDS, BLOCK), 143])
def test_so_it_does_from_the_middle_of_a_log_on(first: int) -> None:
    """With runners that are loaded, load or go, requests that run and that wait."""
    for seed in filter(is_calm, range(first, min(first + BLOCK, 144))):
        log = world(seed).world.log
        for share in (3, 2):
            recording, recorded = record(log, after=len(log) // share)
            check_same(recorded, play(recording), seed)


def test_where_much_goes_wrong_most_of_it_is_as_it_was() -> None:
    """Crashes, hangs, lies and deaths of the daemon are repeated by the place of the load or the request; not
    refused ports, nor facts that come twice."""
    total = alike = 0
    for seed in range(24):
        if not is_calm(seed):
            recording, recorded = record(world(seed).world.log)
            again = play(recording)
            found = fidelity(recorded, again)
            assert UNFINISHED not in again.outcomes, seed
            total, alike = total + found.requests, alike + found.same_wait
    assert total > 1000
    assert alike / total > 0.8


VARIANTS = [
    Changes(policy="fifo"),
    Changes(policy="collate"),
    Changes(policy="balanced", max_loaded=1),
    Changes(budgets_bytes={"gpu0": 200 * GIB, "gpu7": 24 * GIB}),
    Changes(budgets_bytes={"gpu0": GIB, "host": GIB}),
    Changes(slots={"*": 16}, keep_alive_ns={"*": 0}),
]


@pytest.mark.parametrize("variant", VARIANTS, ids=range(len(VARIANTS)))
def test_every_arrival_has_an_end_whatever_is_changed(variant: Changes) -> None:
    for seed in range(8):
        log = world(seed).world.log
        for after in (0, len(log) // 2):
            recording, recorded = record(log, after)
            again = play(recording, variant, dict(variant.budgets_bytes))
            assert len(again.outcomes) == len(recording.arrivals) == len(recorded.outcomes)
            assert again.models == recorded.models
            assert UNFINISHED not in again.outcomes, seed
            assert all(ns >= 0 for ns in again.waited_ns)


def test_the_same_recording_gives_the_same_bytes_under_every_hash_seed() -> None:
    seen = set()
    script = (
        "import json; from tests.simulation.test_whatif import world, record, play, VARIANTS\n"
        "for seed in (2, 5, 8):\n"
        "    recording, recorded = record(world(seed).world.log)\n"
        "    columns = [recorded, play(recording), play(recording, VARIANTS[0])]\n"
        "    print(json.dumps([column.plain() for column in columns]))"
    )
    for hash_seed in ("0", "1", "4711"):
        done = subprocess.run(
            [sys.executable, "-c", script],
            capture_output=True,
            text=True,
            check=True,
            cwd=ROOT,
            env={"PYTHONHASHSEED": hash_seed, "PATH": ""},
        )
        seen.add(done.stdout)
    (only,) = seen
    assert len([json.loads(line) for line in only.splitlines()]) == 3
