"""Room: what a load needs, and whether it would fit if some runners were gone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import msgspec

from events import catalogue as c
from events.limits import CONFIG_MODELS, MODELS_PER_GPU
from statemachines.groups import in_the_way, ruled
from statemachines.ledger import (
    NONE,
    Source,
    budget_bytes,
    free_bytes,
    mib,
    needs,
    of_which,
    predicted_bytes,
    reported_bytes,
    unreadable,
)
from statemachines.parts import Demand, Runner
from statemachines.state import State, instances

if TYPE_CHECKING:
    from statemachines.claims import Ahead


class Need(msgspec.Struct, frozen=True):
    """What a load of a demand would take."""

    view: c.ModelView
    options: dict[str, c.Option]
    bytes: dict[str, int]
    alone: bool
    source: Source = "configured"


def need_of(
    state: State,
    demand: Demand,
    spoken: Mapping[str, object] = NONE,
    kept: Mapping[str, object] = NONE,
) -> Need | None:
    """The launch spec that would serve a demand, open options filled in from the model's defaults; an open
    device chosen as `roomiest` says."""
    view = state.model(demand.model)
    if view is None:
        return None
    options = {**view.options, **demand.options}
    size, source = needs(state, view, options, spoken, kept)
    alone = demand.model in state.crowded or (size is None and not ruled(state.config))
    return Need(view, options, size or {}, alone, source)


class Room:
    """Whether a need fits, while runners are imagined gone (`lose`) and back (`regain`) one by one."""

    __slots__ = (
        "_blocking", "_count", "_limit", "_need", "_predicted", "_reported", "_short", "crowded", "full",
        "lacks",
    )  # fmt: skip

    def __init__(self, state: State, demand: Demand, need: Need, ahead: Ahead | None = None) -> None:
        self._need = need
        self._limit = most_beside(state, need)
        self._count = len(state.runners) + (ahead.places(state, self._limit) if ahead is not None else 0)
        self._blocking = _blocking(state, demand, need)
        self._predicted: dict[str, int] = {}
        self._reported: dict[str, int] = {}
        for device in need.bytes:
            predicted = predicted_bytes(state, device)
            if predicted is not None:
                booked = ahead.bytes.get(device, 0) if ahead is not None else 0
                self._predicted[device] = predicted - booked
                reported = reported_bytes(state, device)
                self._reported[device] = (predicted if reported is None else reported) - booked
        self._short: list[str] | None = None
        """Devices on which there is too little; None: somebody has gone, or is back, since that was seen."""
        self.full = self._count > self._limit
        """Whether there are too many runners for one more."""
        self.lacks: tuple[str, ...] = tuple(self._lacking())
        """The same, with nobody gone."""
        self.crowded = self.full
        """The same, with nobody gone."""

    @property
    def blocking(self) -> Iterable[str]:
        """The runners beside which it may not be, however much memory there is."""
        return self._blocking

    def fits(self) -> bool:
        """Whether the load could be decided now."""
        return not (self.full or self._lacking() or any(self._blocking.values()))

    def promised(self) -> bool:
        """Whether it fits by the ledger: what there is too little of, other programs hold."""
        enough = all(self._need.bytes[device] <= free for device, free in self._predicted.items())
        return enough and not (self.full or any(self._blocking.values()))

    def helps(self, runner: Runner) -> bool:
        """Whether losing this runner brings the load nearer."""
        if self.full:
            return True
        for device in self._lacking():
            if runner.reserved_bytes.get(device) or runner.peak_bytes.get(device):
                return True
        return runner.id in self._blocking

    def lose(self, runner: Runner, *, place: bool = True) -> None:
        """Imagine a runner gone; its `place` may be another's."""
        self._move((runner,), 1, place)

    def lose_all(self, runners: Iterable[Runner]) -> None:
        """Imagine several gone, with their places."""
        self._move(runners, 1, True)

    def regain(self, runner: Runner) -> None:
        """Imagine it back."""
        self._move((runner,), -1, True)

    def _lacking(self) -> list[str]:
        if self._short is None:
            predicted, reported, need = self._predicted, self._reported, self._need.bytes
            self._short = [d for d in predicted if need[d] > predicted[d] or need[d] > reported[d]]
        return self._short

    def _move(self, runners: Iterable[Runner], sign: int, place: bool) -> None:
        predicted, reported, blocking = self._predicted, self._reported, self._blocking
        for runner in runners:
            if place:
                self._count -= sign
            if blocking and runner.id in blocking:
                blocking[runner.id] = sign < 0
            reserved, peak, used = runner.reserved_bytes, runner.peak_bytes, runner.used_bytes
            for device in predicted:
                hold = max(reserved.get(device, 0), peak.get(device, 0))
                predicted[device] += sign * hold
                reported[device] += sign * (used.get(device, 0) or hold)
        self.full = self._count > self._limit
        self._short = None


def _blocking(state: State, demand: Demand, need: Need) -> dict[str, bool]:
    """Runners beside which this load may not be, however much memory there is: one that must be alone, one
    that a group or the matrix excludes, one with the port that this one needs, one instance too many of the
    same launch spec (or another of the same model, where nothing is known about its memory)."""
    blocking = dict.fromkeys(state.alone, True)
    if ruled(state.config):
        blocking |= dict.fromkeys(in_the_way(state, demand.model), True)
    if demand.model in state.models:
        if need.bytes:
            same = list(instances(state, demand.model, need.view.digest, need.options))
            same = same[: max(0, len(same) - need.view.instances_max + 1)]
        else:
            same = list(state.models[demand.model])
        blocking |= dict.fromkeys(same, True)
    holder = state.leased.get(need.view.fixed_port)
    if holder is not None:
        blocking[holder] = True
    return blocking


def most_beside(state: State, need: Need) -> int:
    """How many runners there may be beside a load."""
    return 0 if need.alone else max_loaded(state) - 1


def max_loaded(state: State) -> int:
    """How many runners may exist at once. No number of ours where the configuration says which may."""
    if state.config.max_loaded:
        return state.config.max_loaded
    if ruled(state.config):
        return CONFIG_MODELS
    gpus = [name for name in state.readings if name != "host"]
    # One that cannot be read just now is not one whose figures are never to be trusted.
    if not all(state.readings[name].reliable or unreadable(state, name) for name in gpus):
        return len(gpus)
    return MODELS_PER_GPU * max(1, len(gpus))


ADVICE = {
    "configured": ("as configured", "lower its `memory`, or raise the budget"),
    "measured": ("as measured", "raise the budget, or configure a smaller context or `memory`"),
    "estimated": (
        "as estimated from its file",
        "ask for a smaller context, raise the budget, or set `memory` if the estimate is wrong",
    ),
}
"""By where a figure is from: how to say so, and what would have to change."""


def never_fits(state: State, need: Need) -> str:
    """Why the need exceeds all there is on a device, and what would have to change; "": it does not."""
    headroom = state.config.headroom_bytes
    for device, size in need.bytes.items():
        budget = budget_bytes(state, device)
        if budget is not None and size > budget - headroom:
            whence, advice = ADVICE[need.source]
            budgeted = f"the budget of {device} is {mib(budget)}{of_which(headroom)}"
            return f"needs {mib(size)} on {device}, {whence}; {budgeted}: {advice}"
    return ""


def in_use(state: State, need: Need) -> str:
    """What keeps a load from its room that is not ours to move."""
    stuck = [runner.id for runner in state.runners.values() if runner.stuck]
    if stuck:
        return f"{', '.join(stuck)} cannot be ended"
    device = short(state, need)
    if device and unreadable(state, device):
        return f"needs {mib(need.bytes[device])} on {device}, which cannot be read"
    if device:
        left = max(0, free_bytes(state, device) or 0)
        return f"needs {mib(need.bytes[device])} on {device}; other programs leave {mib(left)}"
    return "other programs hold the memory"


def short(state: State, need: Need) -> str:
    """A device on which there is less memory free than needed; "": there is none."""
    for device, size in need.bytes.items():
        free = free_bytes(state, device)
        if free is not None and size > free:
            return device
    return ""


def lease(state: State, view: c.ModelView, spared: int = 0) -> tuple[int, ...] | None:
    """Ports for a new load: that of its first process (fixed, or the next of the range; 0: it needs none),
    then those of its shards. Ports that were refused before only if there are no others. None: too few, with
    some `spared` for others."""
    count = ports_of(view)
    wanted = count + spared if count else 0
    ports = next_ports(state, wanted, view.fixed_port)
    if len(ports) < wanted:
        taken = (*state.leased, view.fixed_port)
        again = [port for port in state.refused_ports if port not in taken]
        ports += tuple(again[: wanted - len(ports)])
    if len(ports) < wanted:
        return None
    leased = view.lease == "port" and not view.fixed_port
    return ports[:count] if leased else (view.fixed_port, *ports[:count])


def ports_of(view: c.ModelView) -> int:
    """How many ports of the range a load takes."""
    return view.shards + (view.lease == "port" and not view.fixed_port)


def next_ports(state: State, count: int, fixed: int = 0) -> tuple[int, ...]:
    """The next ports of the range that nobody holds and that were not refused, as many as there are, up to
    `count`; `fixed` is none of them."""
    config = state.config
    leased, refused = state.leased, state.refused_ports
    size = config.port_last - config.port_first + 1
    start = (
        state.next_port - config.port_first if config.port_first <= state.next_port <= config.port_last else 0
    )
    found: list[int] = []
    for i in range(size if count else 0):
        port = config.port_first + (start + i) % size
        if port not in leased and port not in refused and port != fixed:
            found.append(port)
            if len(found) == count:
                break
    return tuple(found)
