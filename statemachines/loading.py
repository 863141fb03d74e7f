"""Making room and loading: what happens for a demand that no live runner satisfies.

`place` is called whenever something changed that could help a starving demand. For the best-ranked one it
reaches one of these conclusions, each of which is a decision in the log or a state with a deadline:

- load it now;
- measure memory first;
- wait for memory that is already coming back;
- make a claim: choose victims, once, which drain and stop;
- wait for a busy runner's quantum;
- refuse: it can never fit.

One claim at a time: while it stands, the demands behind it wait.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from events import catalogue as c
from events.catalogue import NEVER, Considered
from events.limits import (
    CONSIDERED_MAX,
    MEMORY_FRESH_NS,
    MEMORY_RETRY_NS,
    MEMORY_WAIT_NS,
    MODELS_PER_GPU,
    WATCH_NS,
)
from statemachines.ledger import budget_bytes, free_bytes, mib, needs_bytes
from statemachines.policy import POLICIES, cost_to_lose, rank
from statemachines.runner import RunnerState
from statemachines.state import Demand, Runner, State, being_dismissed

if TYPE_CHECKING:
    from statemachines.scheduler import Scheduler


class Need(msgspec.Struct, frozen=True):
    """What a load of a demand would take."""

    view: c.ModelView
    options: dict[str, c.Option]
    bytes: dict[str, int]
    alone: bool


def need_of(state: State, demand: Demand) -> Need | None:
    """The launch spec that would serve a demand, open options filled in from the model's defaults."""
    view = state.model(demand.model)
    if view is None:
        return None
    options = {**view.options, **demand.options}
    size = needs_bytes(state, view, options)
    return Need(view, options, size or {}, size is None)


def place(s: Scheduler) -> None:
    """Do what can be done for the starving demands, best rank first."""
    state = s.state
    while state.starving and not state.stopping:
        ready = [demand for key in state.starving if _placeable(state, demand := state.demands[key])]
        if state.claim is not None:
            claimed = [demand for demand in ready if demand.key == state.claim.demand]
            if not claimed:
                s.emit(c.ClaimEnded(state.claim.demand, "nobody_waits"))
            ready = claimed or ready
        if not ready:
            return
        if not _place_one(s, min(ready, key=lambda demand: rank(state, demand))):
            return


def _placeable(state: State, demand: Demand) -> bool:
    """Not being dismissed, and not cooling down (an operator's load does not wait for that)."""
    cooling = state.cooling.get(demand.model)
    cold = cooling is None or cooling.until_t <= state.t or bool(demand.operations)
    return cold and not being_dismissed(state, demand)


def _place_one(s: Scheduler, demand: Demand) -> bool:
    """One demand; True if it was served or refused, so that the next may be looked at."""
    state = s.state
    need = need_of(state, demand)
    if need is None:
        s.dismiss(demand.model, "unknown_model")
        return True
    device = _never_fits(state, need)
    if device:
        s.dismiss(demand.model, "never_fits", detail=_shortage(state, need, device), demand=demand.key)
        return True
    if _stale(state):
        if not state.measuring:
            s.emit(c.MemoryMeasure("load"))
        return False
    if _fits(state, need, demand, {}):
        return _load(s, demand, need)
    if state.claim is not None:
        if any(id in state.runners and not state.runners[id].stuck for id in state.claim.victims):
            return False
        s.emit(c.ClaimEnded(demand.key, "not_enough"))
    return _make_room(s, demand, need)


def _shortage(state: State, need: Need, device: str) -> str:
    """What it needs, what there is, and what would have to change; sizes in bytes."""
    budget, headroom = budget_bytes(state, device) or 0, state.config.headroom_bytes
    return (
        f"needs {mib(need.bytes[device])} on {device}; its budget is {mib(budget)}, "
        f"of which {mib(headroom)} are headroom"
    )


def _in_use(state: State, need: Need) -> str:
    """What other programs, or runners that cannot be ended, keep it from."""
    stuck = [runner.id for runner in state.runners.values() if runner.stuck]
    if stuck:
        return f"{', '.join(stuck)} cannot be ended"
    for device, size in need.bytes.items():
        free = free_bytes(state, device)
        if free is not None and size > free:
            return f"needs {mib(size)} on {device}; other programs leave {mib(max(0, free))}"
    return "other programs hold the memory"


def _stale(state: State) -> bool:
    return state.measured_t == NEVER or state.t - state.measured_t > MEMORY_FRESH_NS


def _never_fits(state: State, need: Need) -> str:
    """The device on which the need exceeds all there is, or ""."""
    for device, size in need.bytes.items():
        budget = budget_bytes(state, device)
        if budget is not None and size > budget - state.config.headroom_bytes:
            return device
    return ""


def _fits(state: State, need: Need, demand: Demand, without: dict[str, Runner]) -> bool:
    """Whether the load could be decided now, if the runners in `without` were gone."""
    others = [runner for runner in state.runners.values() if runner.id not in without]
    if need.alone and others:
        return False
    if any(_in_the_way(runner, need, demand) for runner in others):
        return False
    if len(others) >= max_loaded(state):
        return False
    for device, size in need.bytes.items():
        free = free_bytes(state, device, without)
        if free is not None and size > free:
            return False
    return True


def _in_the_way(runner: Runner, need: Need, demand: Demand) -> bool:
    """A runner beside which this load may not be, however much memory there is."""
    port = need.view.fixed_port
    twin = runner.digest == need.view.digest and runner.options == need.options
    return runner.alone or (port != 0 and runner.port == port) or (twin and runner.model == demand.model)


def max_loaded(state: State) -> int:
    """How many runners may exist at once."""
    if state.config.max_loaded:
        return state.config.max_loaded
    gpus = [reading for name, reading in state.readings.items() if name != "host"]
    if gpus and not all(reading.reliable for reading in gpus):
        return len(gpus)
    return MODELS_PER_GPU * max(1, len(gpus))


def _load(s: Scheduler, demand: Demand, need: Need) -> bool:
    """Decide the load."""
    state = s.state
    port = free_port(state, need.view)
    if port == NEVER:
        s.dismiss(demand.model, "no_port", detail="every port of the range is in use", demand=demand.key)
        return True
    reason = "operator" if demand.operations else f"request {next(iter(demand.waiting))}"
    if state.claim is not None:
        s.emit(c.ClaimEnded(state.claim.demand, "room_made"))
    s.emit(
        c.RunnerLoad(
            model=demand.model,
            digest=need.view.digest,
            options=need.options,
            reserved_bytes=need.bytes,
            slots=need.view.slots,
            keep_alive_ns=need.view.keep_alive_ns,
            load_ns=need.view.load_ns,
            reason=reason,
            port=port,
            socket=need.view.lease == "socket",
            alone=need.alone,
        )
    )
    return True


def free_port(state: State, view: c.ModelView) -> int:
    """A free port: fixed, or the next of the range that nobody holds. 0: needs none. NEVER: there is none."""
    if view.fixed_port or view.lease != "port":
        return view.fixed_port
    config = state.config
    taken = {runner.port: None for runner in state.runners.values()}
    size = config.port_last - config.port_first + 1
    start = (
        state.next_port - config.port_first if config.port_first <= state.next_port <= config.port_last else 0
    )
    for i in range(size):
        port = config.port_first + (start + i) % size
        if port not in taken and port not in state.refused_ports:
            return port
    return NEVER


def _make_room(s: Scheduler, demand: Demand, need: Need) -> bool:
    """Find the room: wait for what is leaving anyway, else choose victims, else wait for other programs."""
    state = s.state
    # What is stuck does not leave: it may hold its place for ever.
    leaving = {runner.id: runner for runner in state.runners.values() if not runner.live and not runner.stuck}
    if leaving and _fits(state, need, demand, leaving):
        return False
    gone, chosen = dict(leaving), []
    # Not a victim: what is loading (its own requests have waited for it), and what is suspect (its probe,
    # its exit or the probe deadline says first what it is worth).
    candidates = sorted(
        (r for r in state.runners.values() if r.state is RunnerState.ready and not r.suspect),
        key=lambda runner: cost_to_lose(state, runner),
    )
    for runner in candidates:
        if _helps(state, runner, need, demand, gone):
            gone[runner.id] = runner
            chosen.append(runner)
            if _fits(state, need, demand, gone):
                return _claim(s, demand, need, _minimal(state, need, demand, leaving, chosen), candidates)
    if leaving or any(r.suspect or r.state is RunnerState.loading for r in state.runners.values()):
        return False
    return _wait_for_memory(s, demand, need)


def _wait_for_memory(s: Scheduler, demand: Demand, need: Need) -> bool:
    """Nothing of ours can make room: other programs hold the memory. Wait a while, then say so."""
    t = s.state.t
    if demand.short_t != NEVER and t - demand.short_t > MEMORY_WAIT_NS:
        s.dismiss(demand.model, "no_memory", detail=_in_use(s.state, need), demand=demand.key)
        return True
    if demand.turn_due == NEVER:
        s.emit(c.TurnWaits(demand.key, "memory", t + MEMORY_RETRY_NS))
    return False


def _helps(state: State, runner: Runner, need: Need, demand: Demand, gone: dict[str, Runner]) -> bool:
    """Whether losing this runner brings the load nearer."""
    count = len(state.runners) - len(gone)
    if need.alone or _in_the_way(runner, need, demand) or count >= max_loaded(state):
        return True
    for device, size in need.bytes.items():
        free = free_bytes(state, device, gone)
        if free is not None and size > free and runner.hold_bytes(device):
            return True
    return False


def _minimal(
    state: State, need: Need, demand: Demand, leaving: dict[str, Runner], chosen: list[Runner]
) -> list[Runner]:
    """Only what is needed: drop each victim without which the rest suffice, the dearest first."""
    for runner in reversed(chosen[:-1]):
        rest = [other for other in chosen if other is not runner]
        if _fits(state, need, demand, {**leaving, **{other.id: other for other in rest}}):
            chosen = rest
    return chosen


def _claim(s: Scheduler, demand: Demand, need: Need, chosen: list[Runner], candidates: list[Runner]) -> bool:
    """Claim the victims, or wait until the busy ones among them have had their turn."""
    state = s.state
    picked = {runner.id: None for runner in chosen}
    considered = tuple(
        Considered(runner.id, "victim" if runner.id in picked else "kept", cost_to_lose(state, runner)[:3])
        for runner in candidates[:CONSIDERED_MAX]
    )
    turn = POLICIES[state.config.policy]
    for runner in chosen:
        due = turn(state, runner, demand) if runner.held else state.t
        if due == NEVER:
            due = state.t + WATCH_NS
        if due > state.t:
            if demand.turn_due == NEVER:
                s.emit(c.TurnWaits(demand.key, "quantum", due, runner.id, considered))
            return False
    s.emit(c.ClaimMade(demand.key, need.bytes, tuple(picked), considered))
    for runner in chosen:
        s.drain(runner, "evicted")
    return False
