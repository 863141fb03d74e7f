"""What the policies decide, measured on workloads of published shape: `python -m benchmarks.bench_policy`.

Each workload is played through the real core in virtual time, for each policy, with memory for one, two and
four models at once. The goal: `balanced` is never worse than `collate` by more than a tenth on the mean wait,
never worse on the p99 of the model that fares worst, and no model waits for its runner for longer than the
turns, drains and loads of those ahead of it, and its own, take together. On short windows the mean wait is
also compared with the least that knowing the future could reach.

All figures follow from the seeds: they are the same on every machine.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from benchmarks.bound import NoScipy, NotSolved, least_wait_s
from benchmarks.play import POLICIES, Result, p99, play
from benchmarks.workloads import Shape, Workload, shapes, window
from events.limits import S

MEMORIES = (1, 2, 4)
"""Models that fit at once."""
MEAN_TOLERANCE = 1.1
FLOOR_NS = S
"""Waits below this count as this where two are compared: nobody minds, and their ratio says nothing."""
WINDOWS = ((20, 3, False, 1), (20, 3, False, 2), (20, 3, True, 1), (20, 3, True, 2), (30, 3, True, 1))
MORE_WINDOWS = (*((20, 3, False, i) for i in range(3, 9)), *((40, 3, True, i) for i in range(1, 7)))
"""Units, models, whether requests take time, seed."""


Figure = Callable[[Result], float]


@dataclass
class Cell:
    """One workload with one size of memory under each policy."""

    workload: str
    load: float
    memory: int
    results: dict[str, Result]

    @property
    def mean_ratio(self) -> float:
        """The mean wait, balanced to collate, to a hundredth."""
        return self._ratio(lambda result: result.mean_ns)

    @property
    def p99_ratio(self) -> float:
        """The p99 of the model that fares worst, balanced to collate."""
        return self._ratio(lambda result: result.worst_p99_ns)

    def _ratio(self, figure: Figure) -> float:
        mine, other = (max(FLOOR_NS, figure(self.results[name])) for name in ("balanced", "collate"))
        return round(mine / other, 2)

    @property
    def misses(self) -> list[str]:
        """Where the goal is missed."""
        beyond = self.results["balanced"].beyond
        return [
            *([f"mean x{self.mean_ratio:.2f}"] if self.mean_ratio > MEAN_TOLERANCE else []),
            *([f"worst p99 x{self.p99_ratio:.2f}"] if self.p99_ratio > 1 else []),
            *([f"{beyond} beyond bound"] if beyond else []),
        ]

    def plain(self) -> dict[str, Any]:
        """For JSON; times in seconds."""
        policies = {name: figures(result) for name, result in self.results.items()}
        key = {"workload": self.workload, "load": self.load, "memory": self.memory}
        return {**key, "policies": policies, "misses": self.misses}


def figures(result: Result) -> dict[str, Any]:
    """The figures of one policy; times in seconds."""
    waits = result.all_waits()
    lasted, allowed, claims = result.worst
    return {
        "requests": len(waits),
        "swaps": result.swaps,
        "mean_s": round(result.mean_ns / S, 3),
        "p99_s": round(p99(waits) / S, 3),
        "worst_model_p99_s": round(result.worst_p99_ns / S, 3),
        "longest_s": round(waits[-1] / S, 3),
        "bound_used": round(lasted / allowed, 4),
        "bound_claims": claims,
        "waits_for_a_runner": result.hungers,
        "beyond_bound": result.beyond,
    }


def measure(shape: Shape, load: float, memory: int, seconds: int, seeds: range) -> Cell:
    """One cell of the table, the seeds pooled."""
    results = {policy: Result() for policy in POLICIES}
    for seed in seeds:
        workload = shape.workload(seconds, seed)
        for policy, result in results.items():
            result.add(play(workload, policy, memory))
    return Cell(shape.name, load, memory, results)


def cells(loads: tuple[float, ...], seconds: int, seeds: range) -> Iterator[Cell]:
    """Every cell. What does not depend on the load is measured once."""
    for load in loads:
        for shape in shapes(load):
            if shape.loaded or load == loads[0]:
                for memory in MEMORIES:
                    yield measure(shape, load, memory, seconds, seeds)


@dataclass
class Ratio:
    """A short window: the mean wait (s) of each policy beside the least that is possible."""

    window: str
    least_s: float | None
    """None: no optimum was proven in the time that it may take."""
    means_s: dict[str, float]

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return {"window": self.window, "least_s": self.least_s, "means_s": self.means_s}


def compare(workload: Workload) -> Ratio:
    """One window. Raises NoScipy."""
    means = {policy: play(workload, policy, 1).mean_ns / S for policy in POLICIES}
    try:
        least = least_wait_s(workload)
    except NotSolved:
        return Ratio(workload.name, None, means)
    return Ratio(workload.name, least, means)


# --- what is printed -------------------------------------------------------------------------------------

HEAD = (
    f"{'workload':<25} {'load':>4} {'mem':>3}  {'policy':<8} {'swaps':>6} {'mean':>8} {'p99':>8} {'worst':>8}"
    f" {'longest':>8} {'bound':>6} {'out':>4}"
)


def lines(cell: Cell) -> Iterator[str]:
    """A cell as a line for each policy, and one for what is missed."""
    first = f"{cell.workload:<25} {cell.load:>4} {cell.memory:>3} "
    for policy, result in cell.results.items():
        f = figures(result)
        bound = f"{f['bound_used']:6.0%} {f['beyond_bound']:4}"
        yield (
            f"{first} {policy:<8} {f['swaps']:6} {f['mean_s']:8.1f} {f['p99_s']:8.1f}"
            f" {f['worst_model_p99_s']:8.1f} {f['longest_s']:8.1f} {bound}"
        )
        first = " " * len(first)
    if cell.misses:
        yield f"{'':35} missed: {', '.join(cell.misses)}"


def summary(all_cells: list[Cell]) -> Iterator[str]:
    """Where the goal is kept, and where it is not."""
    mean = [cell.mean_ratio for cell in all_cells]
    tail = [cell.p99_ratio for cell in all_cells]
    beyond = sum(cell.results["balanced"].beyond > 0 for cell in all_cells)
    much, more, less = (
        sum(r > MEAN_TOLERANCE for r in mean),
        sum(r > 1 for r in tail),
        sum(r < 1 for r in tail),
    )
    yield f"balanced against collate, in {len(all_cells)} cells:"
    yield f"  mean wait: more than a tenth worse in {much}, at most x{max(mean):.2f}"
    yield f"  p99 of the model that fares worst: worse in {more}, at most x{max(tail):.2f}; better in {less}"
    yield f"  a wait for a runner beyond the bound in {beyond}"
    for cell in all_cells:
        if cell.misses:
            key = f"{cell.workload}, load {cell.load}, memory {cell.memory}"
            yield f"    {key:<46} {', '.join(cell.misses)}"


def ratio_line(ratio: Ratio) -> str:
    """A window as a line."""
    if ratio.least_s is None:
        return f"{ratio.window:<30} no optimum proven in time"
    parts = (f"{name} x{mean / ratio.least_s:.2f}" for name, mean in ratio.means_s.items())
    return f"{ratio.window:<30} least mean wait {ratio.least_s:5.1f} s   {'   '.join(parts)}"


LEGEND = """\
swaps: runners drained to make room; mean, p99, longest: waits from arrival to dispatch, s;
worst: the p99 of the model that fares worst; bound: the most that a wait for a runner took of what
it may take (turns, drains and loads of those ahead, and its own); out: how many took longer"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=1, help="the first of them")
    parser.add_argument("--seeds", type=int, help="how many (2; --full: 5)")
    parser.add_argument("--seconds", type=int, help="of arrivals (1800; --full: 3600)")
    parser.add_argument("--load", type=float, action="append", help="share of one runner's slots (0.5)")
    parser.add_argument("--full", action="store_true", help="loads 0.3, 0.5 and 0.7, more seeds and windows")
    parser.add_argument("--no-bound", action="store_true", help="leave out what needs scipy")
    parser.add_argument("--json", action="store_true", help="print JSON, with every figure")
    asked = parser.parse_args()
    seconds = asked.seconds or (3600 if asked.full else 1800)
    seeds = range(asked.seed, asked.seed + (asked.seeds or (5 if asked.full else 2)))
    loads = tuple(asked.load or ((0.5, 0.3, 0.7) if asked.full else (0.5,)))
    windows = () if asked.no_bound else WINDOWS + (MORE_WINDOWS if asked.full else ())
    say: Callable[[str], None] = (lambda line: None) if asked.json else lambda line: print(line, flush=True)
    try:
        ratios = [compare(window(*which)) for which in windows]
    except NoScipy as missing:
        sys.exit(str(missing))
    say(f"{seconds} s of arrivals, seeds {seeds[0]} to {seeds[-1]}")
    say(HEAD)
    all_cells = []
    for cell in cells(loads, seconds, seeds):
        all_cells.append(cell)
        for line in lines(cell):
            say(line)
    say(LEGEND)
    for line in [*summary(all_cells), *(["", "short windows, memory for one:"] if ratios else [])]:
        say(line)
    for ratio in ratios:
        say(ratio_line(ratio))
    if asked.json:
        how = {"seconds": seconds, "seeds": list(seeds), "loads": list(loads)}
        plain = {"cells": [cell.plain() for cell in all_cells], "windows": [r.plain() for r in ratios]}
        print(json.dumps({**how, **plain}, indent=1))


if __name__ == "__main__":
    main()
