"""Whose turn it is: pure functions behind one small interface.

rank: who among the waiters is next. `(priority + whole age steps, earlier arrival)`, in integers.
turn: when a runner closes to new work because others wait for its room.

- `balanced` (default): a resident runner serves its queue until it is idle, but at most for its quantum,
  Q = α × (what loading its rival, draining it and loading it again take), once somebody waits for its room.
- `fifo`: at once, as strict arrival order wants it.
- `collate`: never while it has work, as llama-swap does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from events.catalogue import NEVER
from events.limits import (
    LINGER_LEAST_NS,
    LINGER_MAX_NS,
    LINGER_SHARE,
    LINGER_TIMES,
    LOAD_GUESS_NS,
    WATCH_NS,
)
from statemachines.parts import Demand, Runner
from statemachines.state import State, head_seq, oldest
from statemachines.tables import number

Turn = Callable[[State, Runner, Demand], int]
"""The time at which a runner may be claimed for a demand; NEVER: not while it is busy."""


def since_ns(state: State, demand: Demand) -> int:
    """Since when who has waited longest in a demand has been waiting."""
    return _asked_t(state, oldest(demand))


def _asked_t(state: State, id: str) -> int:
    return state.requests[id].arrived_t if id[0] == "q" else state.operations[id].asked_t


def rank(state: State, demand: Demand) -> tuple[int, int]:
    """Sort key of a demand among waiters: smallest first. Who has waited longest speaks for all,
    be it a request or an operator's load."""
    id = oldest(demand)
    steps = (state.t - _asked_t(state, id)) // state.config.age_step_ns
    return (-(demand.priority + steps), number(id))


def first_of(state: State, one: Demand, other: Demand) -> Demand:
    """The one of two in the better rank. Of one priority that is the older, whatever the time."""
    if one.priority == other.priority:
        return one if head_seq(one) < head_seq(other) else other
    return min(one, other, key=lambda demand: rank(state, demand))


def quantum_ns(state: State, runner: Runner, rival: Demand) -> int:
    """How long a runner may keep its place while a rival waits: α times what it costs to swap it out, the
    rival in, and it in again."""
    loads = state.load_cost_ns
    reload = loads.get(rival.model, LOAD_GUESS_NS) + loads.get(runner.model, LOAD_GUESS_NS)
    return state.config.swap_patience * _with_drain(state, runner, reload)


def _with_drain(state: State, runner: Runner, reload_ns: int) -> int:
    """What a swap costs. What was learned of the drain is how long the last one took: it counts for no more
    than the loads, or one request of an hour would keep a runner's place for many hours afterwards."""
    return reload_ns + min(state.drain_cost_ns.get(runner.model, 0), reload_ns)


def lease_turn_ns(state: State, runner: Runner) -> int:
    """How long a lease may keep its slot while others of its model wait: as a busy runner its place, and a
    minute. If it is not let go then, its runner is loaded again."""
    reload = 2 * state.load_cost_ns.get(runner.model, LOAD_GUESS_NS)
    return max(WATCH_NS, state.config.swap_patience * _with_drain(state, runner, reload))


def linger_ns(state: State, runner: Runner) -> int:
    """How long a runner that has just become idle may keep its place while rivals wait: a few times what its
    model's clients last took to ask again, if that is little beside its load; else not at all.

    Whoever asks again as soon as he is answered leaves it idle for a moment only, and to swap in each such
    moment is thrash (deceptive idleness: Iyer and Druschel, "Anticipatory scheduling", SOSP 2001)."""
    if state.config.policy != "balanced":
        return 0
    think_ns = state.think_ns.get(runner.model, NEVER)
    most_ns = min(state.load_cost_ns.get(runner.model, LOAD_GUESS_NS) // LINGER_SHARE, LINGER_MAX_NS)
    if not 0 <= think_ns <= most_ns:
        return 0
    return min(max(LINGER_TIMES * think_ns, LINGER_LEAST_NS), most_ns)


def balanced(state: State, runner: Runner, rival: Demand) -> int:
    """After its quantum, counted from when it became ready; idle, when it has lingered."""
    quantum_due = runner.ready_t + quantum_ns(state, runner, rival)
    if state.config.max_wait_ns:
        quantum_due = min(quantum_due, since_ns(state, rival) + state.config.max_wait_ns)
    return quantum_due if runner.held else min(quantum_due, runner.idle_t + linger_ns(state, runner))


def fifo(state: State, runner: Runner, rival: Demand) -> int:
    """At once."""
    return state.t


def collate(state: State, runner: Runner, rival: Demand) -> int:
    """Not while it is busy."""
    return NEVER if runner.held else state.t


Cost = tuple[int, int, int, str]
"""What losing a runner costs, comparable; its last part is the runner's id."""

POLICIES: Mapping[str, Turn] = {"balanced": balanced, "fifo": fifo, "collate": collate}


def costs_to_lose(state: State, idle: Sequence[Runner], busy: Sequence[Runner]) -> list[Cost]:
    """Possible victims, the cheapest first: idle before busy, then the cheapest to drain and load again, the
    least recently used."""
    t, load_cost = state.t, state.load_cost_ns
    costs: list[Cost] = []
    for runner in idle:
        # Idle for longer than a load costs: others' use has paid its cost off (Landlord, in integers).
        credit = max(0, load_cost.get(runner.model, LOAD_GUESS_NS) - (t - runner.idle_t))
        costs.append((0, credit, runner.idle_t, runner.id))
    for runner in busy:
        # Lengths are heavy-tailed: a drain may last as long again as the oldest request has lasted.
        drain = t - next(iter(runner.held.values()))
        costs.append((1, load_cost.get(runner.model, LOAD_GUESS_NS) + drain, t, runner.id))
    costs.sort()
    return costs
