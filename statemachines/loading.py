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

from itertools import islice
from typing import TYPE_CHECKING

from events import catalogue as c
from events.catalogue import NEVER, Considered
from events.limits import (
    CONSIDERED_MAX,
    FILL_TRIES,
    LINGER_MAX_NS,
    MEMORY_FRESH_NS,
    MEMORY_RETRY_NS,
    MEMORY_WAIT_NS,
    WATCH_NS,
)
from statemachines.groups import kept_from, preload_only, ruled
from statemachines.policy import POLICIES, Cost, costs_to_lose, rank
from statemachines.room import Need, Room, in_use, lease, max_loaded, need_of, never_fits
from statemachines.runner import RunnerState
from statemachines.state import Demand, Runner, State, demand_key, satisfies

if TYPE_CHECKING:
    from statemachines.scheduler import Scheduler


def place(s: Scheduler, arrived: Demand | None = None) -> None:
    """Do what can be done for the starving demands, best rank first. If all that is new is one that has
    `arrived`, the others wait for what they waited for, and nothing is done unless it ranks first."""
    _place(s, arrived)
    _let_go(s)


def _place(s: Scheduler, arrived: Demand | None) -> None:
    state = s.state
    while state.starving and not state.stopping:
        if s.left < 0 or s.more or state.dismissing:
            return  # this step is full, or will be gone on with: its last part places
        demand = next_starving(s)
        if demand is None:
            return
        if arrived is not None and demand is not arrived:
            if _possible(s, arrived) is not None:
                _fill(s, demand, [arrived])
            return
        if not _place_one(s, demand):
            _fill(s, demand, list(islice(state.demands.values(), FILL_TRIES)))
            return
        arrived = None
        s.more = bool(state.starving)  # the next one in a step of its own


def _let_go(s: Scheduler) -> None:
    """End a claim that nobody needs any more, though no other starves: while it stands, nothing grows."""
    claim = s.state.claim
    if claim is not None:
        demand = s.state.demands.get(claim.demand)
        if demand is None or demand.servers:
            s.emit(c.ClaimEnded(claim.demand, "nobody_waits"))


def _fill(s: Scheduler, first: Demand, others: list[Demand]) -> None:
    """While the first in rank waits for its turn, load one of the others that fits as things are, on
    devices that the first does not need (nor its port). Where groups or the matrix rule, none goes ahead."""
    state = s.state
    if len(state.readings) < 2 or ruled(state.config) or len(state.runners) + 2 > max_loaded(state):
        return
    before = need_of(state, first)
    if before is None or before.alone:
        return
    for demand in others:
        if demand is first or demand.servers or not (NEVER == demand.turn_due == demand.short_t):
            continue
        view = state.model(demand.model)
        if view is None or any(device in before.bytes for device in view.memory_bytes):
            continue
        need = need_of(state, demand)
        if need is None or need.alone or any(device in before.bytes for device in need.bytes):
            continue
        if need.view.fixed_port and need.view.fixed_port == before.view.fixed_port:
            continue
        if not _ready(state, demand) or never_fits(state, need) or not _fresh(s):
            continue
        if Room(state, demand, need).fits() and lease(state, need.view) is not None:
            _load(s, demand, need)
            s.more = True
            return


def _possible(s: Scheduler, demand: Demand) -> Need | None:
    """What a demand needs; None if it was refused, since it can never be served, whoever is before it."""
    need = need_of(s.state, demand)
    if need is None:
        s.dismiss(demand.model, "unknown_model")
        return None
    never = never_fits(s.state, need)
    if never:
        s.dismiss(demand.model, "never_fits", detail=never, demand=demand.key)
        return None
    return need


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


def grow(s: Scheduler, model: str, options: dict[str, c.Option], queue: bool) -> None:
    """Load another instance of what is loaded, if the configuration has it, it fits as things are, and nobody
    starves: because there is a `queue` and all are busy, or because there are fewer than the least."""
    state = s.state
    view = state.config.models.get(model)
    if view is None or state.stopping or state.starving or state.claim is not None or s.left < 0:
        return
    demand = Demand(demand_key(model, options, 0), model, options, 0)
    mine = [runner for runner in state.models.get(model, {}).values() if satisfies(runner, demand)]
    full = all(r.state is RunnerState.ready and len(r.held) >= r.slots for r in mine)
    if not (full and queue) and (
        any(r.state is not RunnerState.ready for r in mine) or len(mine) >= view.instances_min
    ):
        return
    need = need_of(state, demand)
    if need is None or need.alone or not _ready(state, demand) or never_fits(state, need):
        return
    if not _fresh(s):
        return
    if Room(state, demand, need).fits() and lease(state, need.view) is not None:
        _load(s, demand, need, "queue" if queue else "instances")


def _fresh(s: Scheduler) -> bool:
    """Whether memory was measured just now; if not, it is asked for."""
    state = s.state
    fresh = state.measured_t != NEVER and state.t - state.measured_t <= MEMORY_FRESH_NS
    if not fresh and not state.measuring:
        s.emit(c.MemoryMeasure("load"))
    return fresh


def _place_one(s: Scheduler, demand: Demand) -> bool:
    """One demand; True if it was served, refused or lost its claim, so that the next is looked at."""
    state = s.state
    need = _possible(s, demand)
    if need is None:
        return True
    if not _fresh(s):
        return False
    room = Room(state, demand, need)
    if room.fits():
        return _load(s, demand, need)
    if state.claim is not None:
        if any(id in state.runners and not state.runners[id].stuck for id in state.claim.victims):
            return False
        s.emit(c.ClaimEnded(demand.key, "not_enough"))
        return True  # it may not be the first any more
    return _make_room(s, demand, need, room)


def _load(s: Scheduler, demand: Demand, need: Need, reason: str = "") -> bool:
    """Decide the load."""
    state = s.state
    ports = lease(state, need.view)
    if ports is None:
        s.dismiss(demand.model, "no_port", detail="every port of the range is in use", demand=demand.key)
        return True
    reason = reason or ("operator" if demand.operations else f"request {next(iter(demand.waiting))}")
    if state.claim is not None and state.claim.demand == demand.key:
        s.emit(c.ClaimEnded(demand.key, "room_made"))
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
            port=ports[0],
            socket=need.view.lease == "socket",
            alone=need.alone,
            larger=need.view.larger,
            shard_ports=ports[1:],
            stall_ns=need.view.stall_ns,
        )
    )
    return True


def _make_room(s: Scheduler, demand: Demand, need: Need, room: Room) -> bool:
    """Find the room: wait for what is leaving anyway, else choose victims, else wait for other programs."""
    state = s.state
    idle: list[Runner] = []
    lingering: list[Runner] = []
    busy: list[Runner] = []
    kept: list[Runner] = []
    leaving = unsure = settling = False
    turn, ready, loading = demand.turn_due == NEVER, RunnerState.ready, RunnerState.loading
    due = POLICIES[state.config.policy]
    preload = preload_only(state, demand)
    guarded = state.pinned or state.group_of or preload
    for runner in state.runners.values():
        if guarded and runner.live and kept_from(state, runner, demand):
            kept.append(runner)
        elif runner.state is ready:
            # What is suspect is no victim: its probe, or its exit, says first what it is worth.
            if runner.suspect:
                unsure = True
            elif (turn or not runner.held) and room.helps(runner):
                # Without a turn it waits for one, and the busy ones were looked at.
                if runner.held:
                    busy.append(runner)
                elif state.t - runner.idle_t < LINGER_MAX_NS and due(state, runner, demand) > state.t:
                    lingering.append(runner)
                else:
                    idle.append(runner)
        elif runner.state is loading:  # nor is what loads: its requests have waited for it
            unsure = True
            settling = settling or room.helps(runner)
        elif not runner.stuck:  # what is stuck may hold its place for ever
            leaving = True
            room.lose(runner)
    if leaving and room.fits():
        return False
    if kept and not (preload and room.promised()) and _blocked(s, demand, need, kept):
        return True
    # What loads may be idle soon after it is ready: until then no busy runner is claimed for its room.
    candidates = costs_to_lose(state, idle, [] if settling or lingering else busy)
    chosen: list[Runner] = []
    for cost in candidates:
        runner = state.runners[cost[3]]
        if room.helps(runner):
            room.lose(runner)
            chosen.append(runner)
            if room.fits():
                _claim(s, demand, need, _only_needed(room, chosen), candidates)
                return False
    if lingering and demand.turn_due == NEVER:
        _let_linger(s, demand, lingering)
    if lingering or leaving or unsure or demand.turn_due != NEVER:
        return False
    return _wait_for_memory(s, demand, need)


def _let_linger(s: Scheduler, demand: Demand, lingering: list[Runner]) -> None:
    """Wait for the first of the idle runners that may keep their place for a moment. (A demand that waits for
    a turn already is looked at when theirs are over: the fold arms that when a runner becomes idle.)"""
    turn = POLICIES[s.state.config.policy]
    first = min(lingering, key=lambda runner: turn(s.state, runner, demand))
    s.emit(c.TurnWaits(demand.key, "linger", turn(s.state, first, demand), first.id))


def _blocked(s: Scheduler, demand: Demand, need: Need, kept: list[Runner]) -> bool:
    """Whether only what must not be evicted is in the way, so that waiting is of no use: then say so."""
    state = s.state
    room = Room(state, demand, need)
    for runner in state.runners.values():
        if runner not in kept and not runner.stuck:
            room.lose(runner)
    if room.fits():
        return False
    helpful = [runner for runner in kept if room.helps(runner)]
    for runner in helpful:
        room.lose(runner)
    if not room.fits():
        return False
    why = {runner.id: kept_from(state, runner, demand) for runner in helpful}
    names = ", ".join(f"{runner.id} ({runner.model}, {why[runner.id]})" for runner in helpful)
    reason = "preloaded" if "preloaded" in why.values() else "pinned"
    s.dismiss(demand.model, reason, detail=names, demand=demand.key)
    return True


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
        due = turn(state, runner, demand)
        if due == NEVER:
            due = state.t + WATCH_NS
        if due > state.t:
            s.emit(c.TurnWaits(demand.key, "quantum", due, runner.id, considered))
            return
    s.emit(c.ClaimMade(demand.key, need.bytes, tuple(picked), considered))
    for runner in chosen:
        s.drain(runner, "evicted")
