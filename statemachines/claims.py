"""What is spoken for: by the claims that stand, and by those who wait in a better rank.

Rules for its readers:
1. A claim gathers room on its devices: those that its load needs, and its victims'. They are its own until it
   ends: nobody else loads there, or claims there. Who needs one of them waits behind it.
2. The host is different: every runner uses a little of it, and mostly there is enough. It is one of the
   devices only of who lacks it, or needs nothing else; all others book the bytes that they need of it.
3. A claim has a place among the `maxLoadedModels`: its victims', or, once they have all gone, one that it
   books.
4. Who waits in a better rank has the same, without victims: that nobody behind it delays it is what rank
   means. One that lacks a place may find it anywhere; so nobody goes before it.
5. One that is loaded alone, or by the matrix, or takes an unknown amount, has everything to itself. Loads of
   one model, or that groups or a fixed port keep apart, wait for each other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from heapq import heapify, heappop, heappush
from itertools import islice

from events.catalogue import NEVER, ModelView
from events.limits import FILL_TRIES
from statemachines.estimate import HOST
from statemachines.groups import evicts
from statemachines.parts import Claim, Demand, Runner
from statemachines.policy import rank
from statemachines.room import Need, Room, need_of, ports_of
from statemachines.state import State
from statemachines.tables import Ages


class Ahead:
    """What those who are ahead of a demand keep from it: claims, and whoever else it is told of."""

    __slots__ = ("_booked", "_reserved", "bytes", "devices", "models", "ports", "victims", "whole")

    def __init__(self, state: State, claims: Iterable[Claim]) -> None:
        self.devices: dict[str, None] = {}
        """Nobody else loads there."""
        self.bytes: dict[str, int] = {}
        """What is booked on devices that are shared."""
        self.models: dict[str, ModelView | None] = {}
        self.victims: dict[str, None] = {}
        """The claims' victims: their places are not for others."""
        self.ports = 0
        """Ports of the range that they need."""
        self.whole = False
        """Whether one of them has everything to itself."""
        self._booked = self._reserved = 0
        for claim in claims:
            self.claimed(state, claim)

    def claimed(self, state: State, claim: Claim) -> None:
        """A claim is ahead."""
        self.devices |= dict.fromkeys(claim.devices)
        self.victims |= dict.fromkeys(claim.victims)
        self.whole |= claim.whole
        self._booked += vacant(state, claim)
        demand = state.demands.get(claim.demand)
        if demand is not None:
            self._needs(demand.model, state.model(demand.model), claim.need_bytes)

    def waits(self, state: State, demand: Demand, need: Need, room: Room | None) -> None:
        """A demand that waits is ahead; `room`: as it was looked at, unless it was not."""
        self.devices |= dict.fromkeys(own(need, room.lacks if room is not None else ()))
        if room is not None:
            self.whole |= room.crowded
            for id in room.blocking:
                self.devices |= dict.fromkeys(devices_of(state.runners[id]))
        self.whole |= whole(state, need)
        # Who waits for a runner's turn will have that runner's place.
        self._reserved += demand.turn_due == NEVER or demand.short_t != NEVER
        self._needs(demand.model, need.view, need.bytes)

    def _needs(self, model: str, view: ModelView | None, size_bytes: dict[str, int]) -> None:
        self.models[model] = view
        self.ports += ports_of(view) if view is not None else 0
        for device, size in size_bytes.items():
            if device not in self.devices:
                self.bytes[device] = self.bytes.get(device, 0) + size

    def places(self, state: State, limit: int) -> int:
        """How many places that are free now are theirs, where so many runners may be beside one more."""
        free = limit + 1 - len(state.runners) - self._booked
        return self._booked + min(self._reserved, max(0, free))

    def bars(self, state: State, demand: Demand, need: Need) -> bool:
        """Whether a demand has to wait for one of them, whatever room there is."""
        if not self.devices and not self.whole:
            return False
        if self.whole or demand.model in self.models or whole(state, need) or self.has(need.bytes):
            return True
        for model, view in self.models.items():
            if view is not None and need.view.fixed_port and need.view.fixed_port == view.fixed_port:
                return True
            if apart(state, demand.model, model):
                return True
        return False

    def has(self, devices: Iterable[str]) -> bool:
        """Whether one of these devices is theirs."""
        return bool(self.devices) and any(device in self.devices for device in devices)

    def holds(self, runner: Runner) -> bool:
        """Whether a runner's memory lies on one of their devices."""
        return bool(self.devices) and self.has(devices_of(runner))

    def share(self, devices: Iterable[str]) -> bool:
        """Whether they have booked something of one of these devices."""
        return bool(self.bytes) and any(device in self.bytes for device in devices)


def whole(state: State, need: Need) -> bool:
    """Whether a load needs everything to itself."""
    return need.alone or not need.bytes or state.config.matrix is not None


def apart(state: State, model: str, other: str) -> bool:
    """Whether the groups keep two models from being loaded beside each other."""
    return bool(state.config.groups) and (evicts(state, model, other) or evicts(state, other, model))


def own(need: Need, lacks: Sequence[str]) -> list[str]:
    """The devices of a need that it shares with nobody."""
    return [d for d in need.bytes if d != HOST or d in lacks or len(need.bytes) == 1]


def devices_of(runner: Runner) -> list[str]:
    """Where a runner's memory lies, but for the host."""
    devices = [device for device in runner.reserved_bytes if device != HOST]
    return devices + [d for d in runner.peak_bytes if d != HOST and d not in runner.reserved_bytes]


def gathered(need: Need, room: Room, victims: Iterable[Runner]) -> tuple[str, ...]:
    """The devices of a claim."""
    mine = dict.fromkeys(own(need, room.lacks))
    for runner in victims:
        for device in devices_of(runner):
            mine[device] = None
    return tuple(sorted(mine))


def vacant(state: State, claim: Claim) -> bool:
    """Whether no victim of a claim is left that can go: then the place that it waits for is a free one."""
    for id in claim.victims:
        runner = state.runners.get(id)
        if runner is not None and not runner.stuck:
            return False
    return True


def covers(state: State, claim: Claim, need: Need) -> bool:
    """Whether what a demand needs now is on the devices that its claim was made for."""
    if whole(state, need) and not claim.whole:
        return False
    host_is_new = HOST in need.bytes and HOST not in claim.need_bytes  # a measurement has told of it
    if host_is_new and any(HOST in other.devices for other in state.claims.values()):
        return False
    return all(device == HOST or device in claim.devices for device in need.bytes)


def elsewhere(claim: Claim, devices: Iterable[str]) -> dict[str, None]:
    """All devices but those of a claim's load: an open one stays where it was when the claim was made."""
    return {device: None for device in devices if device not in claim.need_bytes}


def before(state: State, demand: Demand) -> Demand | None:
    """Whom a demand without a claim waits behind, if anybody bars it."""
    need = need_of(state, demand)
    if need is None:
        return None
    for claim in state.claims.values():
        if Ahead(state, [claim]).bars(state, demand, need):
            return state.demands.get(claim.demand)
    for other in in_rank(state):
        if other is demand:
            return None
        its = need_of(state, other)
        if its is not None:
            ahead = Ahead(state, ())
            ahead.waits(state, other, its, Room(state, other, its))
            if ahead.bars(state, demand, need):
                return other
    return None


# --- in which order they are looked at -------------------------------------------------------------------


def eligible(state: State, demand: Demand) -> bool:
    """Not waiting for memory that others hold, and not cooling down (an operator's load does not wait for
    that)."""
    if NEVER not in (demand.short_t, demand.turn_due):
        return False
    cooling = state.cooling.get(demand.model) if state.cooling else None
    return cooling is None or cooling.until_t <= state.t or bool(demand.operations)


def in_rank(state: State) -> Iterator[Demand]:
    """The demands that starve and have no claim, best rank first, but for those that are not `eligible`. Of
    those for the same configured devices only the first: the rest is behind it. Of those whose device is open
    the first few, if they are asked for.

    Of one priority the older is never in the worse rank, so that only the first of each are compared; and who
    is first for some devices is looked for only when nobody else can be older."""
    lines: dict[int, list[Entry]] = {}
    for (priority, where), ages in state.starving.items():
        lines.setdefault(priority, []).append((ages.first[0], where, "", ages))
    heads: list[Head] = []
    alone = len(lines) == 1
    for priority, line in lines.items():
        heapify(line)
        _enter(state, heads, priority, line, alone=alone)
    while heads:
        _, priority = heappop(heads)
        line = lines[priority]
        _, where, key, more = heappop(line)
        yield state.demands[key]
        if more is not None:
            for seq, other, _ in _others(state, more, key):
                heappush(line, (seq, where, other, None))
        _enter(state, heads, priority, line, alone=alone)


Entry = tuple[int, tuple[str, ...], str, Ages | None]
"""The age of a demand that starves (`head_seq`), its devices, its key, and where more of its kind are to be
found. Without a key: nobody there is older."""

Head = tuple[tuple[int, int], int]
"""The rank of a priority's first, and the priority."""


def _enter(state: State, heads: list[Head], priority: int, line: list[Entry], *, alone: bool) -> None:
    """Enter the first of a priority, if anybody is left: by rank, unless it is the only priority."""
    while line:
        _, where, key, ages = line[0]
        if key or ages is None:
            heappush(heads, ((0, 0) if alone else rank(state, state.demands[key]), priority))
            return
        heappop(line)
        for seq, first, more in _first_of(state, ages, is_open=not where):
            heappush(line, (seq, where, first, more))


def _first_of(state: State, ages: Ages, *, is_open: bool) -> Sequence[tuple[int, str, Ages | None]]:
    """Who is to be looked at first of those for the same devices, which may be open."""
    seq, key = ages.first
    if key in state.claims:
        return _others(state, ages, "") if is_open else ()
    if not eligible(state, state.demands[key]):
        oldest = next((entry for entry in ages if _may(state, entry[1])), None)
        if oldest is None:
            return ()
        seq, key = oldest
    return ((seq, key, ages if is_open else None),)


def first_of_its_kind(state: State, demand: Demand) -> bool:
    """Whether nobody is before a demand among those for the same devices, of the same priority."""
    ages = state.starving.get((demand.priority, demand.where))
    key = ages.first[1] if ages is not None and demand.where else demand.key
    return key == demand.key or not eligible(state, state.demands[key])


def _others(state: State, ages: Ages, but: str) -> list[tuple[int, str, None]]:
    """Some more of the same priority whose devices are open, too."""
    may = ((seq, key, None) for seq, key in ages if key != but and _may(state, key))
    return list(islice(may, FILL_TRIES))


def _may(state: State, key: str) -> bool:
    return key not in state.claims and eligible(state, state.demands[key])
