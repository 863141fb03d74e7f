"""Memory as the scheduler counts it: bytes per device, what is held, what is free, what a model needs.

    hold(r) = max(reserved, peak measured)
    free    = min(budget - Σ hold, reported free - Σ loading max(0, hold - used now)) - headroom

Reported memory and the ledger's own prediction are both there because each is wrong at times: the smaller
is trusted.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from events.catalogue import NEVER, Estimate, ModelView, Option
from events.limits import GIB, MIB, RECLAIM_PERCENT, SAMPLE_STEP_BYTES
from statemachines.estimate import ANY, HOST, estimated_bytes, gpu_layers, least_bytes, raised
from statemachines.parts import Runner
from statemachines.runner import RunnerState
from statemachines.state import State, spec_key

Source = Literal["configured", "measured", "estimated", "unknown"]
"""Where the figure of what a load needs is from."""

NONE: Mapping[str, object] = {}
"""No devices in particular."""


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


def unreadable(state: State, device: str) -> bool:
    """Whether a device cannot be read now, so that nothing of it counts as free, whatever is unloaded."""
    reading = state.readings.get(device)
    return reading is not None and not (reading.reliable or reading.free_bytes)


def free_bytes(state: State, device: str) -> int | None:
    """What a new load may reserve on a device. None: unknown device."""
    predicted, reported = predicted_bytes(state, device), reported_bytes(state, device)
    return predicted if predicted is None or reported is None else min(predicted, reported)


def needs(
    state: State,
    view: ModelView,
    options: Mapping[str, Option],
    spoken: Mapping[str, object] = NONE,
    kept: Mapping[str, object] = NONE,
) -> tuple[dict[str, int] | None, Source]:
    """What a load needs per device, and where the figure is from: configured, else learned from its last
    load, else estimated from its file, else unknown. None: nothing is known, or the server takes what it
    finds. An open device is none of those that are `spoken` for, if that can be, and rather one of `kept`."""
    if view.memory_bytes:
        return _placed(state, view.memory_bytes, spoken, kept), "configured"
    estimate = view.estimate
    learned = state.footprints.get(spec_key(view.digest, dict(options)))
    if learned:
        found = _that_fits(state, learned)
        return _placed(state, raised(found, estimate) if estimate else found, spoken, kept), "measured"
    if estimate:
        return _estimated(state, estimate, options, spoken, kept), "estimated"
    return None, "unknown"


def _that_fits(state: State, footprint: Mapping[str, int]) -> Mapping[str, int]:
    """What was measured, but no more than all that may be used of a device for which nobody has set a budget:
    it was there, and it will be again."""
    found = dict(footprint)
    for device, size in footprint.items():
        view, budget = state.config.devices.get(device), budget_bytes(state, device)
        if budget is not None and (view is None or view.budget_bytes is None):
            found[device] = min(size, max(0, budget - state.config.headroom_bytes))
    return found


def _placed(
    state: State, need: Mapping[str, int], spoken: Mapping[str, object], kept: Mapping[str, object]
) -> dict[str, int]:
    """A need with its open device chosen."""
    if ANY not in need:
        return dict(need)
    placed: dict[str, int] = {}
    for device, size in need.items():
        where = roomiest(state, size, spoken, kept) if device == ANY else device
        placed[where] = placed.get(where, 0) + size
    return placed


def _estimated(
    state: State,
    estimate: Estimate,
    options: Mapping[str, Option],
    spoken: Mapping[str, object],
    kept: Mapping[str, object],
) -> dict[str, int] | None:
    """By the model's file. None: no single device holds it, but the server may well spread over several, or
    choose a smaller context, as llama-server does."""
    gpus = gpu_names(state)
    placed = _placed(state, estimated_bytes(estimate, options, bool(gpus)), spoken, kept)
    if all(_holds(state, device, size) for device, size in placed.items()):
        return placed
    layers = gpu_layers(estimate, options)
    fixed = gpus and layers >= estimate.layers
    devices = ["host"] if layers == 0 or not gpus else gpus if fixed else [*gpus, "host"]
    budgets = [budget_bytes(state, device) for device in devices]
    room = sum(max(0, budget - state.config.headroom_bytes) for budget in budgets if budget is not None)
    return placed if None not in budgets and least_bytes(estimate, options) > room else None


def gpu_names(state: State) -> list[str]:
    """The GPUs that there are, or that the configuration names."""
    names = [*state.readings, *state.config.devices]
    return sorted(dict.fromkeys(name for name in names if name != "host"))


def roomiest(
    state: State,
    size_bytes: int,
    spoken: Mapping[str, object] = NONE,
    kept: Mapping[str, object] = NONE,
) -> str:
    """The GPU for a load: among those that could ever hold it, that can be read now, and that are not spoken
    for, one where it fits, else one where it would if idle runners went, else the one for which it waits
    already, else the one with the largest free room by the ledger; ties by name. The host where there is no
    GPU."""
    best, best_key = "host", (False, False, False, False, False, -1 << 62)
    idle: dict[str, int] | None = None
    headroom, held, coming = state.config.headroom_bytes, state.held, state.coming
    for name in gpu_names(state):
        budget = budget_bytes(state, name)
        free, enough = 0, budget is None
        if budget is not None:
            free = budget - held.get(name, 0) - headroom
            if (reading := state.readings.get(name)) is not None:
                free = min(free, reading.free_bytes - coming.get(name, 0) - headroom)
            enough = size_bytes <= free
            if not enough:
                idle = _idle_bytes(state) if idle is None else idle
                enough = size_bytes <= free + idle.get(name, 0)
        possible = budget is None or size_bytes <= budget - headroom
        readable = not unreadable(state, name)
        key = (possible, readable, name not in spoken, enough, name in kept, free)
        if key > best_key:
            best, best_key = name, key
    return best


def _idle_bytes(state: State) -> dict[str, int]:
    """What idle runners that may be evicted hold on each device."""
    idle: dict[str, int] = {}
    for runner in state.runners.values():
        if runner.state is RunnerState.ready and not runner.held and runner.model not in state.pinned:
            for device in runner.reserved_bytes | runner.peak_bytes:
                idle[device] = idle.get(device, 0) + runner.hold_bytes(device)
    return idle


def _holds(state: State, device: str, size_bytes: int) -> bool:
    """Whether a device could hold this much, if nothing else were there."""
    budget = budget_bytes(state, device)
    return budget is None or size_bytes <= budget - state.config.headroom_bytes


def back(state: State, runner: Runner) -> bool:
    """Whether an ended runner's memory has come back: host memory goes with the process; a GPU's must be
    seen, in a measurement after the exit, to have grown by most of what was held, or to be there already: as
    the ledger has it, or as much as there was when it was loaded, if there has been no other since.
    """
    for device, free_at_exit in runner.exit_free_bytes.items():
        hold = runner.hold_bytes(device)
        reading = state.readings.get(device)
        if reading is None or state.measured_t <= runner.exit_t:
            return False
        others = held_bytes(state, device) - hold
        grown = (reading.free_bytes - free_at_exit) * 100 >= hold * RECLAIM_PERCENT
        there = (reading.free_bytes - (reading.total_bytes - others - hold)) * 100 >= hold * RECLAIM_PERCENT
        before = runner.free_bytes.get(device)
        never_gone = before is not None and before - reading.free_bytes < SAMPLE_STEP_BYTES
        if not (grown or there or never_gone):
            return False
    return True


def footprint_of(state: State, runner: Runner) -> dict[str, int]:
    """What an ended incarnation used at its peak; {}: it was never ready. What was learned of GPUs before
    stays where nothing could be seen now: no process of its is known on any, and there were other runners."""
    if runner.ready_t == NEVER:
        return {}
    if runner.free_bytes or any(device != HOST for device in runner.peak_bytes):
        return dict(runner.peak_bytes)
    before = state.footprints.get(spec_key(runner.digest, runner.options), {})
    return {device: size for device, size in before.items() if device != HOST} | runner.peak_bytes


def of_which(headroom_bytes: int) -> str:
    """For people, behind a budget's size: how much of it is kept free."""
    return f", of which {mib(headroom_bytes)} are headroom" if headroom_bytes else ""


def mib(size_bytes: int) -> str:
    """A size for people, in GiB where it is whole ones, else in MiB, rounded up: "0 MiB" explains nothing."""
    whole = size_bytes and size_bytes % GIB == 0
    return f"{size_bytes // GIB} GiB" if whole else f"{-(-size_bytes // MIB)} MiB"
