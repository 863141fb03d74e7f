"""Whose turn it is: pure functions behind one small interface.

rank: who among the waiters is next. `(priority + whole age steps, earlier arrival)`, in integers.
turn: when a busy runner closes to new work because others wait for its room.

- `balanced` (default): a resident runner serves its queue until it is idle, but at most for its quantum,
  Q = α × (what loading its rival costs + what draining it takes), once somebody waits for its room.
- `fifo`: at once, as strict arrival order wants it.
- `collate`: never while it has work, as llama-swap does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from events.catalogue import NEVER
from events.limits import AGE_STEP_NS, LOAD_GUESS_NS, SWAP_PATIENCE
from statemachines.state import Demand, Runner, State

Turn = Callable[[State, Runner, Demand], int]
"""The time at which a busy runner may be claimed for a demand; NEVER: not while it is busy."""


def rank(state: State, demand: Demand) -> tuple[int, int]:
    """Sort key of a demand among waiters: smallest first. An operator's load without a request ranks by
    its own arrival."""
    oldest = next(iter(demand.waiting), None)
    if oldest is None:
        return (-demand.priority, int(next(iter(demand.operations))[1:]))
    request = state.requests[oldest]
    age_steps = (state.t - request.arrived_t) // AGE_STEP_NS
    return (-(demand.priority + age_steps), request.seq)


def quantum_ns(state: State, runner: Runner, rival: Demand) -> int:
    """How long a runner may keep its place while a rival waits."""
    swap = state.load_cost_ns.get(rival.model, LOAD_GUESS_NS) + state.drain_cost_ns.get(runner.model, 0)
    return SWAP_PATIENCE * swap


def balanced(state: State, runner: Runner, rival: Demand) -> int:
    """After its quantum, counted from when it became ready."""
    return runner.ready_t + quantum_ns(state, runner, rival)


def fifo(state: State, runner: Runner, rival: Demand) -> int:
    """At once."""
    return state.t


def collate(state: State, runner: Runner, rival: Demand) -> int:
    """Not while it is busy."""
    return NEVER


Cost = tuple[int, int, int, str]
"""What losing a runner costs, comparable; its last part is the runner's id."""

POLICIES: Mapping[str, Turn] = {"balanced": balanced, "fifo": fifo, "collate": collate}


def costs_to_lose(state: State, idle: Sequence[Runner], busy: Sequence[Runner]) -> list[Cost]:
    """Possible victims, the cheapest first: idle before busy, then the cheapest to load again, the least
    recently used."""
    t, load_cost = state.t, state.load_cost_ns
    costs: list[Cost] = []
    for runner in idle:
        # Idle for longer than a load costs: others' use has paid its cost off (Landlord, in integers).
        credit = max(0, load_cost.get(runner.model, LOAD_GUESS_NS) - (t - runner.idle_t))
        costs.append((0, credit, runner.idle_t, runner.id))
    costs += [(1, load_cost.get(runner.model, LOAD_GUESS_NS), t, runner.id) for runner in busy]
    costs.sort()
    return costs
