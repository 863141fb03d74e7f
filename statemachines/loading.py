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

from events import catalogue as c
from events.catalogue import NEVER, Considered
from events.limits import (
    CONSIDERED_MAX,
    MEMORY_FRESH_NS,
    MEMORY_RETRY_NS,
    MEMORY_WAIT_NS,
    WATCH_NS,
)
from statemachines.policy import POLICIES, Cost, costs_to_lose, rank
from statemachines.room import Need, Room, free_port, in_use, need_of, never_fits
from statemachines.runner import RunnerState
from statemachines.state import Demand, Runner, State

if TYPE_CHECKING:
    from statemachines.scheduler import Scheduler


def place(s: Scheduler, arrived: Demand | None = None) -> None:
    """Do what can be done for the starving demands, best rank first. If all that is new is one that has
    `arrived`, the others wait for what they waited for, and nothing is done unless it ranks first."""
    state = s.state
    while state.starving and not state.stopping:
        if s.left < 0 or s.more or state.dismissing:
            return  # this step is full, or will be gone on with: its last part places
        demand = next_starving(s)
        if demand is None or (arrived is not None and demand is not arrived):
            return
        if not _place_one(s, demand):
            return
        arrived = None
        s.more = bool(state.starving)  # the next one in a step of its own


def next_starving(s: Scheduler) -> Demand | None:
    """The demand with the claim, or the best-ranked one that can be helped now; None: there is none."""
    state = s.state
    if state.claim is not None:
        demand = state.demands.get(state.claim.demand)
        if demand is not None and not demand.servers and _ready(state, demand):
            return demand
        s.emit(c.ClaimEnded(state.claim.demand, "nobody_waits"))
    best: Demand | None = None
    for agenda in state.starving.values():
        first = agenda.first()
        demand = state.demands[first[1]] if first else None
        if demand is not None and not _ready(state, demand):
            ready = [key for key in agenda.due if _ready(state, state.demands[key])]
            demand = state.demands[min(ready, key=agenda.due.__getitem__)] if ready else None
        if demand is not None and (best is None or rank(state, demand) < rank(state, best)):
            best = demand
    return best


def _ready(state: State, demand: Demand) -> bool:
    """Not waiting for memory that others hold, and not cooling down (an operator's load does not wait for
    that)."""
    if NEVER not in (demand.short_t, demand.turn_due):
        return False
    cooling = state.cooling.get(demand.model) if state.cooling else None
    return cooling is None or cooling.until_t <= state.t or bool(demand.operations)


def _place_one(s: Scheduler, demand: Demand) -> bool:
    """One demand; True if it was served or refused, so that the next may be looked at."""
    state = s.state
    need = need_of(state, demand)
    if need is None:
        s.dismiss(demand.model, "unknown_model")
        return True
    never = never_fits(state, need)
    if never:
        s.dismiss(demand.model, "never_fits", detail=never, demand=demand.key)
        return True
    if state.measured_t == NEVER or state.t - state.measured_t > MEMORY_FRESH_NS:
        if not state.measuring:
            s.emit(c.MemoryMeasure("load"))
        return False
    room = Room(state, demand, need)
    if room.fits():
        return _load(s, demand, need)
    if state.claim is not None:
        if any(id in state.runners and not state.runners[id].stuck for id in state.claim.victims):
            return False
        s.emit(c.ClaimEnded(demand.key, "not_enough"))
    return _make_room(s, demand, need, room)


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


def _make_room(s: Scheduler, demand: Demand, need: Need, room: Room) -> bool:
    """Find the room: wait for what is leaving anyway, else choose victims, else wait for other programs."""
    state = s.state
    idle: list[Runner] = []
    busy: list[Runner] = []
    leaving = unsure = False
    turn, ready, loading = demand.turn_due == NEVER, RunnerState.ready, RunnerState.loading
    for runner in state.runners.values():
        if runner.state is ready:
            # What is suspect is no victim: its probe, or its exit, says first what it is worth.
            if runner.suspect:
                unsure = True
            elif (turn or not runner.held) and room.helps(runner):
                # Without a turn it waits for one, and the busy ones were looked at.
                (busy if runner.held else idle).append(runner)
        elif runner.state is loading:  # nor is what loads: its requests have waited for it
            unsure = True
        elif not runner.stuck:  # what is stuck may hold its place for ever
            leaving = True
            room.lose(runner)
    if leaving and room.fits():
        return False
    candidates = costs_to_lose(state, idle, busy)
    chosen: list[Runner] = []
    for cost in candidates:
        runner = state.runners[cost[3]]
        if room.helps(runner):
            room.lose(runner)
            chosen.append(runner)
            if room.fits():
                _claim(s, demand, need, _only_needed(room, chosen), candidates)
                return False
    if leaving or unsure or demand.turn_due != NEVER:
        return False
    return _wait_for_memory(s, demand, need)


def _only_needed(room: Room, chosen: list[Runner]) -> list[Runner]:
    """The victims without those that the rest can do without, the dearest dropped first."""
    for runner in reversed(chosen[:-1]):
        room.regain(runner)
        if room.fits():
            chosen.remove(runner)
        else:
            room.lose(runner)
    return chosen


def _wait_for_memory(s: Scheduler, demand: Demand, need: Need) -> bool:
    """Nothing of ours can make room: other programs hold the memory. Wait a while, then say so."""
    t = s.state.t
    if demand.short_t != NEVER and t - demand.short_t > MEMORY_WAIT_NS:
        s.dismiss(demand.model, "no_memory", detail=in_use(s.state, need), demand=demand.key)
        return True
    s.emit(c.TurnWaits(demand.key, "memory", t + MEMORY_RETRY_NS))
    return True


def _claim(s: Scheduler, demand: Demand, need: Need, chosen: list[Runner], candidates: list[Cost]) -> None:
    """Claim the victims, or wait until the busy ones among them have had their turn."""
    state = s.state
    picked = {runner.id: None for runner in chosen}
    considered = tuple(
        Considered(cost[3], "victim" if cost[3] in picked else "kept", cost[:3])
        for cost in candidates[:CONSIDERED_MAX]
    )
    turn = POLICIES[state.config.policy]
    for runner in chosen:
        due = turn(state, runner, demand) if runner.held else state.t
        if due == NEVER:
            due = state.t + WATCH_NS
        if due > state.t:
            s.emit(c.TurnWaits(demand.key, "quantum", due, runner.id, considered))
            return
    s.emit(c.ClaimMade(demand.key, need.bytes, tuple(picked), considered))
    for runner in chosen:
        s.drain(runner, "evicted")
