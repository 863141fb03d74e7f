"""The least total wait that any schedule can reach which knows the future: exact, on short windows.

One model is resident at a time, and everything happens in whole units of time. A schedule is a path through
(resident model, unit): it stays, or it leaves and is with another model when that one's load is over. The
path is binary, what waits follows from it, and HiGHS finds the cheapest (`scipy.optimize.milp`). Relaxed to
fractions of a path, the program finds waits 20 to 100 times too short, so only a proven optimum counts.

scipy is an optional dependency (`pip install 'runnerd[bench]'`); it is imported when a bound is asked for.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from typing import Any

from benchmarks.workloads import UNIT_NS, Workload
from events.limits import S

NO_SCIPY = (
    "the clairvoyant bound needs scipy, which is not installed here: run `make bench-policy`, or "
    "`pip install 'runnerd[bench]'`, or leave the bound out with --no-bound"
)
LIMIT_S = 30
"""Time for one window."""


class NoScipy(Exception):
    """scipy is not installed: nothing is wrong, and the message says what to do."""


class NotSolved(Exception):
    """HiGHS did not prove an optimum within its time."""


@dataclass
class Program:
    """A mixed-integer program, row by row: minimise cost·x, low ≤ A·x ≤ high, 0 ≤ x ≤ top."""

    cost: list[float] = field(default_factory=list)
    top: list[float] = field(default_factory=list)
    whole: list[int] = field(default_factory=list)
    entries: list[tuple[int, int, float]] = field(default_factory=list)
    low: list[float] = field(default_factory=list)
    high: list[float] = field(default_factory=list)

    def variable(self, cost: float = 0, top: float = 1, whole: bool = False) -> int:
        """A new variable; its index."""
        self.cost.append(cost)
        self.top.append(top)
        self.whole.append(int(whole))
        return len(self.cost) - 1

    def row(self, terms: list[tuple[int, float]], low: float, high: float) -> None:
        """A constraint on the sum of some variables."""
        self.entries += [(len(self.low), variable, factor) for variable, factor in terms]
        self.low.append(low)
        self.high.append(high)


@dataclass
class Window:
    """A workload in whole units."""

    loads: list[int]
    arrivals: list[dict[int, int]]
    """How many arrive, by model and unit."""
    busy: bool
    """Whether a request takes a unit of its runner's only slot, or no time."""
    end: int
    """Any schedule that wastes nothing is over by then."""

    @classmethod
    def of(cls, workload: Workload) -> Window:
        """Raises ValueError for a workload that is not in whole units, or not of one kind."""
        loads = [load_ns // UNIT_NS for load_ns in workload.load_ns]
        arrivals: list[dict[int, int]] = [{} for _ in loads]
        services = {call.service_ns for call in workload.calls}
        times = [*workload.load_ns, *(call.at_ns for call in workload.calls)]
        if any(t % UNIT_NS for t in times) or services not in ({UNIT_NS}, {0}):
            raise ValueError(f"{workload.name} is not in whole units")
        for call in workload.calls:
            mine = arrivals[call.model]
            unit = call.at_ns // UNIT_NS
            mine[unit] = mine.get(unit, 0) + 1
        busy = services == {UNIT_NS}
        last = max((unit for mine in arrivals for unit in mine), default=0)
        # Whatever is loading when the last one arrives, then every model once, serving all that waits.
        return cls(loads, arrivals, busy, last + sum(loads) + max(loads) + busy * len(workload.calls) + 1)


def least_wait_s(workload: Workload) -> float:
    """The least mean wait of a window, in seconds. Raises NoScipy and NotSolved."""
    window = Window.of(workload)
    program, visits = _program(window)
    total, solution = _solve(program)
    path = [[solution[v] > 0.5 for v in row] for row in visits]
    if abs(total_wait(window, path) - total) > 0.5:
        raise NotSolved(f"{workload.name}: the path found waits {total_wait(window, path)}, not {total}")
    return total * UNIT_NS / S / len(workload.calls)


def total_wait(window: Window, path: list[list[bool]]) -> int:
    """What all requests wait together, in units, if each model serves in the given ones."""
    total = 0
    for arrivals, there in zip(window.arrivals, path, strict=True):
        waiting = 0
        for unit in range(window.end):
            waiting += arrivals.get(unit, 0)
            if there[unit]:
                waiting = max(0, waiting - 1) if window.busy else 0
            total += waiting
    return total


def _program(window: Window) -> tuple[Program, list[list[int]]]:
    """The path, and who waits; of each model and unit the variable that says it can serve then."""
    p = Program()
    models, end = range(len(window.loads)), window.end
    stay = [[p.variable(whole=True) for _ in range(end)] for _ in models]
    load = [[p.variable(whole=True) for _ in range(end)] for _ in models]
    leave = [[p.variable() for _ in range(end)] for _ in models]
    empty = [p.variable() for _ in range(end)]
    for t in range(end):
        into = [(load[m][t], -1.0) for m in models] + [(leave[m][t], 1.0) for m in models]
        before = [(empty[t - 1], 1.0)] if t else []
        p.row([*into, *before, (empty[t], -1.0)], -(not t), -(not t))
        for m in models:
            came = [(stay[m][t - 1], 1.0)] if t else []
            came += [(load[m][t - window.loads[m]], 1.0)] if t >= window.loads[m] else []
            p.row([*came, (stay[m][t], -1.0), (leave[m][t], -1.0)], 0, 0)
    serve = stay
    if not window.busy:  # who is there for no time at all serves all that wait
        serve = [[p.variable() for _ in range(end)] for _ in models]
        for m in models:
            for t in range(end):
                p.row([(serve[m][t], 1.0), (stay[m][t], -1.0), (leave[m][t], -1.0)], 0, 0)
    waits = _busy_waits if window.busy else _instant_waits
    for m in models:
        waits(p, window, m, serve[m])
    return p, serve


def _busy_waits(p: Program, window: Window, model: int, serve: list[int]) -> None:
    """A queue that loses at most one each unit; it is empty at the end."""
    arrivals = window.arrivals[model]
    total = float(sum(arrivals.values()))
    queue = None
    for t in range(window.end):
        served, left = p.variable(), p.variable(cost=1, top=0 if t == window.end - 1 else total)
        p.row([(served, 1.0), (serve[t], -1.0)], -1, 0)
        came = float(arrivals.get(t, 0))
        before: list[tuple[int, float]] = [(queue, -1.0)] if queue is not None else []
        p.row([(left, 1.0), (served, 1.0), *before], came, came)
        queue = left


def _instant_waits(p: Program, window: Window, model: int, serve: list[int]) -> None:
    """Those who arrive together wait until the model is there."""
    for unit, count in window.arrivals[model].items():
        before: list[tuple[int, float]] = []
        for t in range(unit, window.end):
            waits = p.variable(cost=count, top=0 if t == window.end - 1 else 1)
            p.row([(waits, 1.0), (serve[t], 1.0), *before], 0 if before else 1, 2)
            before = [(waits, -1.0)]


def _solve(p: Program) -> tuple[float, Any]:
    """The proven optimum and its variables."""
    try:
        optimize = importlib.import_module("scipy.optimize")
        sparse = importlib.import_module("scipy.sparse")
    except ImportError:
        raise NoScipy(NO_SCIPY) from None
    rows, columns, factors = zip(*p.entries, strict=True)
    matrix = sparse.csr_array((factors, (rows, columns)), shape=(len(p.low), len(p.cost)))
    found = optimize.milp(
        p.cost,
        integrality=p.whole,
        bounds=optimize.Bounds(0, p.top),
        constraints=optimize.LinearConstraint(matrix, p.low, p.high),
        options={"time_limit": LIMIT_S, "mip_rel_gap": 0},
    )
    if found.status != 0:
        raise NotSolved(str(found.message))
    return float(found.fun), found.x
