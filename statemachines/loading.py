"""Making room and loading: what happens for a demand that no live runner satisfies.

`place` is called whenever something changed that could help a starving demand. For the best-ranked one it
reaches one of these conclusions, each of which is a decision in the log or a state with a deadline:

- load it now;
- measure memory first;
- wait for memory that is already coming back;
- make a claim: choose victims, once, which drain and stop;
- wait for a busy runner's quantum;
- refuse: it can never fit.

Who comes after it is looked at next, unless it is barred: what those ahead need is theirs (`claims.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from events import catalogue as c
from events.catalogue import NEVER, Considered
from events.limits import (
    CONSIDERED_MAX,
    LINGER_MAX_NS,
    MEMORY_FRESH_NS,
    MEMORY_RETRY_NS,
    MEMORY_WAIT_NS,
    WATCH_NS,
)
from statemachines.claims import (
    Ahead,
    covers,
    devices_of,
    eligible,
    elsewhere,
    first_of_its_kind,
    gathered,
    in_rank,
    own,
    vacant,
    whole,
)
from statemachines.groups import kept_from, preload_only
from statemachines.ledger import NONE, gpu_names, unreadable
from statemachines.parts import Claim, Demand, Runner
from statemachines.policy import POLICIES, Cost, costs_to_lose
from statemachines.room import Need, Room, in_use, lease, most_beside, need_of, never_fits, short
from statemachines.runner import RunnerState
from statemachines.state import State, demand_key, is_many, less_than_default, satisfies
from statemachines.tables import number

if TYPE_CHECKING:
    from statemachines.scheduler import Scheduler


def place(s: Scheduler, arrived: Demand | None = None, *, apart: bool = False) -> None:
    """Do what can be done for the starving demands: for those with a claim first, then best rank first. If
    all that is new is one that has `arrived`, the others wait for what they waited for. Among many runners
    the look at them is a step of its own, if this one has decided something before, or is long enough: is to
    be `apart`."""
    state = s.state
    if state.starving and not (state.stopping or s.more or state.dismissing) and s.left >= 0:
        # Otherwise this step is full, or will be gone on with: its last part places.
        if arrived is None and (apart or state.seq > s.cause) and is_many(state):
            s.more = True
            return
        if arrived is not None and _possible(s, arrived, NONE, NONE) is None:
            return
        if (arrived is None and _go_on(s)) or _next(s, arrived):
            s.more = bool(state.starving)  # the next one in a step of its own
    _let_go(s)


def _go_on(s: Scheduler) -> bool:
    """Load what has its room by a claim, end a claim that cannot have it. True if others may be next now."""
    state = s.state
    for claim in list(state.claims.values()):
        demand = state.demands.get(claim.demand)
        if demand is None or demand.servers or not eligible(state, demand):
            s.emit(c.ClaimEnded(claim.demand, "nobody_waits"))
            continue
        if (victim := _next_victim(state, claim)) is not None:
            s.drain(victim, "evicted")
            return True
        spoken = NONE if demand.where else elsewhere(claim, gpu_names(state))
        need = _possible(s, demand, spoken, NONE)
        if need is None:
            return True
        if not covers(state, claim, need):
            s.emit(c.ClaimEnded(claim.demand, "changed"))
            return True
        if not _fresh(s):
            return False
        if not short(state, need) and _fits(state, claim, demand, need):
            return _load(s, demand, need)
        if vacant(state, claim):
            s.emit(c.ClaimEnded(demand.key, "not_enough"))
            return True  # it may not be the first any more
    return False


def _next_victim(state: State, claim: Claim) -> Runner | None:
    """A victim that nothing has been told yet: among many runners each is in a step of its own."""
    for id in claim.victims:
        runner = state.runners.get(id)
        if runner is not None and runner.state is RunnerState.ready:
            return runner
    return None


def _fits(state: State, claim: Claim, demand: Demand, need: Need) -> bool:
    """Whether what a claim is for fits now, and leaves the other claims what they have booked."""
    if len(state.runners) > most_beside(state, need):
        return False  # its victims have not gone: the usual case
    others = [other for other in state.claims.values() if other is not claim]
    return Room(state, demand, need, Ahead(state, others) if others else None).fits()


def _next(s: Scheduler, arrived: Demand | None) -> bool:
    """Load, or claim, for those without a claim whom nobody ahead of them bars. True if one was served, so
    that the next is looked at in a step of its own."""
    state = s.state
    ahead = Ahead(state, state.claims.values())
    if arrived is not None and (ahead.has(arrived.where) or not first_of_its_kind(state, arrived)):
        return False
    for demand in in_rank(state):
        if ahead.whole:
            return False
        mine = arrived is None or demand is arrived
        need = _look(s, demand, ahead, mine=mine)
        if need is None:
            if mine:
                return True
            continue  # it is refused when it is looked at
        room = None
        if not ahead.bars(state, demand, need):
            if mine and not _fresh(s):
                return False
            room = Room(state, demand, need, ahead)
            if mine and _place_one(s, demand, need, room, ahead):
                return True
        if demand is arrived or (arrived is not None and ahead.has(arrived.where)):
            return False
        claim = state.claims.get(demand.key)
        if claim is not None:
            ahead.claimed(state, claim)
        else:
            ahead.waits(state, demand, need, room)
    return False


def _look(s: Scheduler, demand: Demand, ahead: Ahead, *, mine: bool) -> Need | None:
    """What a demand needs, on devices that nobody ahead of it has, if it may choose."""
    state = s.state
    runner = state.runners.get(demand.turn_of)
    kept = dict.fromkeys(devices_of(runner)) if runner is not None else NONE
    return _possible(s, demand, ahead.devices, kept) if mine else need_of(state, demand, ahead.devices, kept)


def _let_go(s: Scheduler) -> None:
    """End the claims that nobody needs any more: while one stands, nothing grows."""
    for claim in list(s.state.claims.values()) if s.state.claims else ():
        demand = s.state.demands.get(claim.demand)
        if demand is None or demand.servers:
            s.emit(c.ClaimEnded(claim.demand, "nobody_waits"))


def _possible(
    s: Scheduler, demand: Demand, spoken: Mapping[str, object], kept: Mapping[str, object]
) -> Need | None:
    """What a demand needs; None if it was refused, since it can never be served, whoever is before it."""
    need = need_of(s.state, demand, spoken, kept)
    if need is None:
        s.dismiss(demand.model, "unknown_model")
        return None
    unknown = ", ".join(name for name in demand.options if name not in need.view.options)
    if unknown:  # a reload has taken it away
        s.dismiss(demand.model, "unknown_option", detail=unknown, demand=demand.key)
        return None
    never = never_fits(s.state, need)
    if never:
        s.dismiss(demand.model, "never_fits", detail=never, demand=demand.key)
        return None
    return need


def grow(s: Scheduler, model: str, options: dict[str, c.Option], queue: bool) -> None:
    """Load another instance of what is loaded, if the configuration has it, it fits as things are, and nobody
    starves: because there is a `queue` and all are busy, or because there are fewer than the least."""
    state = s.state
    view = state.config.models.get(model)
    if view is None or state.stopping or state.starving or state.claims or s.left < 0:
        return
    demand = Demand(demand_key(model, options, 0), model, options, 0)
    mine = [runner for runner in state.models.get(model, {}).values() if satisfies(runner, demand)]
    full = all(r.state is RunnerState.ready and len(r.held) >= r.slots for r in mine)
    if not (full and queue) and (
        any(r.state is not RunnerState.ready for r in mine) or len(mine) >= view.instances_min
    ):
        return
    need = need_of(state, demand)
    if need is None or need.alone or not eligible(state, demand) or never_fits(state, need):
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


def _place_one(s: Scheduler, demand: Demand, need: Need, room: Room, ahead: Ahead) -> bool:
    """Load for a demand, or claim; True if it was served or refused."""
    state = s.state
    if room.fits():
        if ahead.ports and lease(state, need.view, ahead.ports) is None:
            return False
        return _load(s, demand, need)
    if ahead.share(own(need, room.lacks)):
        return False
    return _make_room(s, demand, need, room, ahead)


def _load(s: Scheduler, demand: Demand, need: Need, reason: str = "") -> bool:
    """Decide the load."""
    state = s.state
    ports = lease(state, need.view)
    if ports is None:
        s.dismiss(demand.model, "no_port", detail="every port of the range is in use", demand=demand.key)
        return True
    reason = reason or ("operator" if demand.operations else f"request {demand.waiting.first()}")
    if demand.key in state.claims:
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
            less=less_than_default(need.view, need.options),
            shard_ports=ports[1:],
            stall_ns=need.view.stall_ns,
        )
    )
    return True


def _make_room(s: Scheduler, demand: Demand, need: Need, room: Room, ahead: Ahead) -> bool:
    """Find the room: wait for what is leaving anyway, else choose victims, else wait for those ahead, else
    for other programs. True if it was refused, or if others are to be looked at in a step of their own."""
    state = s.state
    if any(unreadable(state, device) for device in need.bytes):
        return _wait_for_memory(s, demand, need)  # whoever goes, it does not become readable by that
    kept = _kept(state, demand)
    beside = [kept[id] for id in room.blocking if id in kept]
    if beside and not preload_only(state, demand):
        _refuse(s, demand, beside)  # whoever else goes, and however much memory there is
        return True
    may = _who_may_go(state, demand, room, ahead, kept)
    if may.leaving and room.fits():
        return False
    if kept and not (room.promised() and preload_only(state, demand)) and _blocked(s, demand, need, kept):
        return True
    candidates = costs_to_lose(state, may.idle, may.busy)
    chosen: list[Runner] = []
    for cost in candidates:
        runner = state.runners[cost[3]]
        if room.helps(runner):
            room.lose(runner)
            chosen.append(runner)
            if room.fits():
                _claim(s, demand, need, room, _only_needed(room, chosen), candidates)
                return is_many(state)
    if may.lingering and demand.turn_due == NEVER:
        _let_linger(s, demand, may.lingering)
    if may.lingering or may.leaving or may.unsure or demand.turn_due != NEVER:
        return False
    if ahead.models and _ours_to_move(state, demand, need):
        return False  # it is those ahead of it that will, or its turn will come
    return _wait_for_memory(s, demand, need)


class _MayGo:
    """Whose leaving would bring a load nearer."""

    __slots__ = ("busy", "idle", "leaving", "lingering", "unsure")

    def __init__(self) -> None:
        self.leaving = self.unsure = False
        # Whether some leave anyway; whether there is one of which nobody knows yet what it is worth.
        self.idle: list[Runner] = []
        self.lingering: list[Runner] = []
        """Idle, but they may keep their place for a moment."""
        self.busy: list[Runner] = []


def _who_may_go(state: State, demand: Demand, room: Room, ahead: Ahead, kept: Mapping[str, Runner]) -> _MayGo:
    """Imagine gone what leaves anyway; of the others, who is not `kept`, find those that would help. The busy
    ones are asked for only where no other can make room soon."""
    may, helps, ready = _MayGo(), room.helps, RunnerState.ready
    for runner in state.leaving.values():
        if not runner.stuck:  # what is stuck may hold its place for ever
            may.leaving = True
            room.lose(runner, place=runner.id not in ahead.victims)
    if may.leaving and room.fits():
        return may
    settling = False
    for runner in state.loading.values():  # what loads is no victim: its requests have waited for it
        if runner.id not in kept:
            may.unsure = True
            settling = settling or helps(runner)
    due = POLICIES[state.config.policy]
    for runner in state.resting.values():
        if runner.suspect or runner.id in kept or not helps(runner) or ahead.holds(runner):
            continue
        if state.t - runner.idle_t < LINGER_MAX_NS and due(state, runner, demand) > state.t:
            may.lingering.append(runner)
        else:
            may.idle.append(runner)
    # What loads may be idle soon after it is ready: until then no busy runner is claimed for its room. Who
    # waits for a turn has looked at the busy ones. What is suspect is no victim: its probe, or its exit, says
    # first what it is worth.
    if demand.turn_due == NEVER and not (settling or may.lingering):
        for runner in state.runners.values():
            if runner.state is not ready or not (runner.held or runner.suspect) or runner.id in kept:
                continue
            if runner.suspect:
                may.unsure = may.unsure or not ahead.holds(runner)
            elif helps(runner) and not ahead.holds(runner):
                may.busy.append(runner)
    return may


def _kept(state: State, demand: Demand) -> dict[str, Runner]:
    """The runners that must not be evicted for a demand."""
    runners: Iterable[Runner] = state.runners.values()
    if not (state.pinned or state.group_of or state.preloads):
        excluded = state.runners.get(demand.excluded)
        if excluded is None:
            return {}
        runners = (excluded,)
    return {runner.id: runner for runner in runners if runner.live and kept_from(state, runner, demand)}


def _ours_to_move(state: State, demand: Demand, need: Need) -> bool:
    """Whether there is room as soon as all runners are gone that may go."""
    room = Room(state, demand, need)
    for runner in state.runners.values():
        if not runner.stuck and not (runner.live and kept_from(state, runner, demand)):
            room.lose(runner)
    return room.fits()


def _let_linger(s: Scheduler, demand: Demand, lingering: list[Runner]) -> None:
    """Wait for the first of the idle runners that may keep their place for a moment. (A demand that waits for
    a turn already is looked at when theirs are over: the fold arms that when a runner becomes idle.)"""
    turn = POLICIES[s.state.config.policy]
    first = min(lingering, key=lambda runner: (turn(s.state, runner, demand), number(runner.id)))
    s.emit(c.TurnWaits(demand.key, "linger", turn(s.state, first, demand), first.id))


def _blocked(s: Scheduler, demand: Demand, need: Need, kept: Mapping[str, Runner]) -> bool:
    """Whether only what must not be evicted is in the way, so that waiting is of no use: then say so."""
    state = s.state
    room = Room(state, demand, need)
    room.lose_all([r for r in state.runners.values() if r.id not in kept and not r.stuck])
    if room.fits():
        return False
    helpful = [runner for runner in kept.values() if room.helps(runner)]
    room.lose_all(helpful)
    if not room.fits():
        return False
    _refuse(s, demand, helpful)
    return True


def _refuse(s: Scheduler, demand: Demand, kept: Iterable[Runner]) -> None:
    """Dismiss a demand for which runners would have to go that must not."""
    why = {runner.id: kept_from(s.state, runner, demand) for runner in kept}
    names = ", ".join(f"{runner.id} ({runner.model}, {why[runner.id]})" for runner in kept)
    if "well" in why.values():
        detail = "it broke off, though it is healthy"
        s.dismiss(demand.model, "upstream_failed", demand.excluded, detail, demand.key)
    else:
        reason = "preloaded" if "preloaded" in why.values() else "pinned"
        s.dismiss(demand.model, reason, detail=names, demand=demand.key)


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


def _claim(
    s: Scheduler, demand: Demand, need: Need, room: Room, chosen: list[Runner], candidates: list[Cost]
) -> None:
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
    devices = gathered(need, room, chosen)
    s.emit(c.ClaimMade(demand.key, need.bytes, devices, tuple(picked), whole(state, need), considered))
    for runner in chosen if not is_many(state) else ():
        s.drain(runner, "evicted")
