"""Memory as the scheduler counts it: bytes per device, what is held, what is free, what a model needs.

    hold(r) = max(reserved, peak measured)
    free    = min(budget - Σ hold, reported free - Σ loading max(0, hold - used now)) - headroom

Reported memory and the ledger's own prediction are both there because each is wrong at times: the smaller
is trusted.
"""

from __future__ import annotations

from collections.abc import Mapping

from events.catalogue import ModelView
from events.limits import GIB, MIB, RECLAIM_PERCENT
from statemachines.state import Runner, State, spec_key

ANY = ""
"""In a model's configured memory: the device is left open (the GPU with most room, else the host)."""


def budget_bytes(state: State, device: str) -> int | None:
    """What may be used of a device: configured, but never more than it has. None: nothing is known."""
    view = state.config.devices.get(device)
    configured = view.budget_bytes if view else None
    reading = state.readings.get(device)
    if reading is None or configured is None:
        return reading.total_bytes if reading else configured
    return min(configured, reading.total_bytes)


def held_bytes(state: State, device: str) -> int:
    """What all runners hold on a device."""
    return state.held.get(device, 0)


def predicted_bytes(state: State, device: str) -> int | None:
    """What the ledger says is free for a new load. None: unknown device."""
    budget = budget_bytes(state, device)
    return None if budget is None else budget - state.held.get(device, 0) - state.config.headroom_bytes


def reported_bytes(state: State, device: str) -> int | None:
    """What the device reports free, less what runners that load are yet to take. None: it reports nothing."""
    reading = state.readings.get(device)
    if reading is None:
        return None
    return reading.free_bytes - state.coming.get(device, 0) - state.config.headroom_bytes


def free_bytes(state: State, device: str) -> int | None:
    """What a new load may reserve on a device. None: unknown device."""
    predicted, reported = predicted_bytes(state, device), reported_bytes(state, device)
    return predicted if predicted is None or reported is None else min(predicted, reported)


def needs_bytes(state: State, view: ModelView, options: Mapping[str, object]) -> dict[str, int] | None:
    """What a load needs per device: configured, else learned from its last load. None: nothing is known."""
    learned = state.footprints.get(spec_key(view.digest, dict(options)))  # type: ignore[arg-type]
    need = view.memory_bytes or learned
    if not need:
        return None
    placed: dict[str, int] = {}
    for device, size in need.items():
        where = roomiest(state) if device == ANY else device
        placed[where] = placed.get(where, 0) + size
    return placed


def roomiest(state: State) -> str:
    """The GPU with the largest free room by the ledger, ties by name; the host where there is no GPU."""
    names = [*state.readings, *state.config.devices]
    gpus = sorted(dict.fromkeys(name for name in names if name != "host"))
    if not gpus:
        return "host"
    return max(gpus, key=lambda name: free_bytes(state, name) or 0)


def back(state: State, runner: Runner) -> bool:
    """Whether an ended runner's memory has come back: host memory goes with the process; a GPU's must be
    seen, in a measurement after the exit, to have grown by most of what was held, or to be there already.
    """
    for device, free_at_exit in runner.exit_free_bytes.items():
        hold = runner.hold_bytes(device)
        reading = state.readings.get(device)
        if reading is None or state.measured_t <= runner.exit_t:
            return False
        others = held_bytes(state, device) - hold
        grown = (reading.free_bytes - free_at_exit) * 100 >= hold * RECLAIM_PERCENT
        there = (reading.free_bytes - (reading.total_bytes - others - hold)) * 100 >= hold * RECLAIM_PERCENT
        if not grown and not there:
            return False
    return True


def mib(size_bytes: int) -> str:
    """A size for people, in GiB where it is whole ones, else in MiB, rounded up: "0 MiB" explains nothing."""
    whole = size_bytes and size_bytes % GIB == 0
    return f"{size_bytes // GIB} GiB" if whole else f"{-(-size_bytes // MIB)} MiB"
