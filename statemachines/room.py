"""Room: what a load needs, and whether it would fit if some runners were gone."""

from __future__ import annotations

import msgspec

from events import catalogue as c
from events.catalogue import NEVER
from events.limits import MODELS_PER_GPU
from statemachines.ledger import budget_bytes, free_bytes, mib, needs_bytes, predicted_bytes, reported_bytes
from statemachines.state import Demand, Runner, State


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


class Room:
    """Whether a need fits, while runners are imagined gone (`lose`) and back (`regain`) one by one."""

    __slots__ = ("_blocking", "_count", "_limit", "_need", "_predicted", "_reported", "_short")

    def __init__(self, state: State, demand: Demand, need: Need) -> None:
        self._need = need
        self._count = len(state.runners)
        self._limit = 0 if need.alone else max_loaded(state) - 1
        """How many runners there may be beside it."""
        self._blocking = _blocking(state, demand, need)
        self._predicted: dict[str, int] = {}
        self._reported: dict[str, int] = {}
        for device in need.bytes:
            predicted = predicted_bytes(state, device)
            if predicted is not None:
                self._predicted[device] = predicted
                reported = reported_bytes(state, device)
                self._reported[device] = predicted if reported is None else reported
        self._short: list[str] = []
        """Devices on which there is too little."""
        self._compare()

    def fits(self) -> bool:
        """Whether the load could be decided now."""
        return self._count <= self._limit and not self._short and not any(self._blocking.values())

    def helps(self, runner: Runner) -> bool:
        """Whether losing this runner brings the load nearer."""
        if self._count > self._limit or runner.id in self._blocking:
            return True
        for device in self._short:
            if runner.reserved_bytes.get(device) or runner.peak_bytes.get(device):
                return True
        return False

    def lose(self, runner: Runner) -> None:
        """Imagine a runner gone."""
        self._move(runner, 1)

    def regain(self, runner: Runner) -> None:
        """Imagine it back."""
        self._move(runner, -1)

    def _compare(self) -> None:
        predicted, reported, need = self._predicted, self._reported, self._need.bytes
        self._short = [d for d in predicted if need[d] > predicted[d] or need[d] > reported[d]]

    def _move(self, runner: Runner, sign: int) -> None:
        self._count -= sign
        if runner.id in self._blocking:
            self._blocking[runner.id] = sign < 0
        for device in self._predicted:
            hold = runner.hold_bytes(device)
            self._predicted[device] += sign * hold
            self._reported[device] += sign * (runner.used_bytes.get(device, 0) or hold)
        self._compare()


def _blocking(state: State, demand: Demand, need: Need) -> dict[str, bool]:
    """Runners beside which this load may not be, however much memory there is: one that must be alone, one
    with the port that this one needs, one of the same launch spec."""
    blocking = dict.fromkeys(state.alone, True)
    for runner in state.models.get(demand.model, {}).values():
        if runner.digest == need.view.digest and runner.options == need.options:
            blocking[runner.id] = True
    port = need.view.fixed_port
    if port:
        blocking |= {runner.id: True for runner in state.runners.values() if runner.port == port}
    return blocking


def max_loaded(state: State) -> int:
    """How many runners may exist at once."""
    if state.config.max_loaded:
        return state.config.max_loaded
    gpus = [reading for name, reading in state.readings.items() if name != "host"]
    if gpus and not all(reading.reliable for reading in gpus):
        return len(gpus)
    return MODELS_PER_GPU * max(1, len(gpus))


def never_fits(state: State, need: Need) -> str:
    """Why the need exceeds all there is on a device; "": it does not."""
    headroom = state.config.headroom_bytes
    for device, size in need.bytes.items():
        budget = budget_bytes(state, device)
        if budget is not None and size > budget - headroom:
            kept = f", of which {mib(headroom)} are headroom" if headroom else ""
            return f"needs {mib(size)} on {device}; its budget is {mib(budget)}{kept}"
    return ""


def in_use(state: State, need: Need) -> str:
    """What keeps a load from its room that is not ours to move."""
    stuck = [runner.id for runner in state.runners.values() if runner.stuck]
    if stuck:
        return f"{', '.join(stuck)} cannot be ended"
    for device, size in need.bytes.items():
        free = free_bytes(state, device)
        if free is not None and size > free:
            return f"needs {mib(size)} on {device}; other programs leave {mib(max(0, free))}"
    return "other programs hold the memory"


def free_port(state: State, view: c.ModelView) -> int:
    """A port for a new load: fixed, or the next of the range that nobody holds, one that was refused before
    only if there is no other. 0: needs none. NEVER: there is none."""
    if view.fixed_port or view.lease != "port":
        return view.fixed_port
    port = next_port(state)
    if port == NEVER:
        taken = {runner.port: None for runner in state.runners.values()}
        return next((port for port in state.refused_ports if port not in taken), NEVER)
    return port


def next_port(state: State) -> int:
    """The next port of the range that nobody holds and that was not refused. NEVER: there is none."""
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
