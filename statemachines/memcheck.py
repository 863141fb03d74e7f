"""Whether models can be loaded together at all: asked before the first of those to be preloaded is started.

They are loaded one after the other into an empty machine that is only imagined, by the rules of every other
load. What other programs hold now does not count: a load waits for that, and says so if it does not come.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from statemachines.groups import in_the_way
from statemachines.ledger import budget_bytes, mib, of_which, predicted_bytes
from statemachines.parts import Demand, Runner
from statemachines.room import ADVICE, Need, Room, max_loaded, need_of, never_fits
from statemachines.state import State


def obstacles(state: State, models: Sequence[str]) -> list[str]:
    """Why these models cannot be loaded together, in this order: a sentence for each reason, with what would
    have to change. Empty: they can, as far as is known."""
    empty = _emptied(state)
    found: list[str] = []
    needs: list[tuple[str, Need]] = []
    short: dict[str, None] = {}
    for model in models:
        demand = Demand(model, model, {}, 0)
        need = need_of(empty, demand)
        if need is None:
            found.append(f"{model} is not configured")
            continue
        if never := never_fits(empty, need):
            found.append(f"{model} can never fit: it {never}")
            continue
        for each in _instances(empty, demand, need):
            needs.append((model, each))
            if Room(empty, demand, each).fits():
                _load(empty, model, each)
                continue
            found += [rule for rule in _rules(empty, model, each) if rule not in found]
            for device, size in each.bytes.items():
                predicted = predicted_bytes(empty, device)
                if predicted is not None and size > predicted:
                    short[device] = None
    return found + [_shortage(empty, device, needs) for device in short]


def _instances(state: State, demand: Demand, need: Need) -> Iterator[Need]:
    """What each of a model's least number of instances needs, as they are loaded one by one. Further ones
    only where there can be any: not of what is loaded alone, nor where a group has one runner at a time."""
    yield need
    for _ in range(1, 1 if need.alone else need.view.instances_min):
        own = state.models.get(demand.model, {})
        if any(id in own for id in in_the_way(state, demand.model)):
            return
        yield need_of(state, demand) or need


def _emptied(state: State) -> State:
    """The same machine and configuration, with nothing loaded and all memory free."""
    empty = State()
    empty.config, empty.group_of = state.config, state.group_of
    empty.footprints, empty.crowded = state.footprints, state.crowded
    empty.readings = {
        device: msgspec.structs.replace(reading, free_bytes=reading.total_bytes)
        for device, reading in state.readings.items()
    }
    return empty


def _load(state: State, model: str, need: Need) -> None:
    view = need.view
    mine = state.models.setdefault(model, {})
    runner = Runner(
        id=f"{model} ({len(mine) + 1})" if mine else model,
        model=model,
        digest=view.digest,
        options=need.options,
        reserved_bytes=need.bytes,
        slots=view.slots,
        keep_alive_ns=view.keep_alive_ns,
        load_ns=view.load_ns,
        port=view.fixed_port,
        socket=view.lease == "socket",
        alone=need.alone,
        load_t=0,
    )
    state.runners[runner.id] = mine[runner.id] = runner
    for port in runner.ports:
        state.leased[port] = runner.id
    if need.alone:
        state.alone[runner.id] = None
    for device, size in need.bytes.items():
        state.held[device] = state.held.get(device, 0) + size


def _rules(state: State, model: str, need: Need) -> list[str]:
    """What but memory forbids a load beside those that are loaded."""
    found = []
    lonely = [model] if need.alone and state.runners else list(state.alone)
    if lonely:
        why = "ran out of memory beside others" if lonely[0] in state.crowded else "needs an unknown amount"
        others = ", ".join(other for other in [*state.runners, model] if other != lonely[0])
        found.append(
            f"{lonely[0]} is loaded alone, since it {why}, and so not together with {others}: "
            "give it `memory`, or preload nothing else"
        )
    if excluded := in_the_way(state, model):
        rule = (
            "no set of the matrix has them all" if state.config.matrix else "their groups exclude each other"
        )
        found.append(f"{model} cannot be loaded beside {', '.join(excluded)}: {rule}")
    port = need.view.fixed_port
    if port and (same := [runner.model for runner in state.runners.values() if port in runner.ports]):
        found.append(f"{model} and {', '.join(same)} both use port {port}: give one of them another")
    if len(state.runners) >= (most := max_loaded(state)):
        found.append(
            f"{model} is one too many: `maxLoadedModels`, the limit of what is loaded at once, is {most}"
        )
    return found


def _shortage(state: State, device: str, needs: Sequence[tuple[str, Need]]) -> str:
    """What all of them need on a device, and what there is."""
    wanted: dict[str, list[Need]] = {}
    for model, need in needs:
        if need.bytes.get(device):
            wanted.setdefault(model, []).append(need)
    each = ", ".join(
        f"{model} {f'{len(mine)} × ' if len(mine) > 1 else ''}{mib(mine[0].bytes[device])}"
        f" ({ADVICE[mine[0].source][0]})"
        for model, mine in wanted.items()
    )
    total = sum(need.bytes[device] for mine in wanted.values() for need in mine)
    headroom = state.config.headroom_bytes
    instances = " or keep fewer `instances`" if any(len(mine) > 1 for mine in wanted.values()) else ""
    budget = budget_bytes(state, device) or 0
    reading = state.readings.get(device)
    all_there_is = reading is not None and budget == reading.total_bytes
    there = f"{device} has {mib(budget)}" if all_there_is else f"the budget of {device} is {mib(budget)}"
    raised = "" if all_there_is else f", or raise the budget to {mib(total + headroom)}"
    return (
        f"together they need {mib(total)} on {device}: {each}; {there}{of_which(headroom)}: "
        f"preload fewer{instances}, give them less (a smaller context, `memory` if a figure is wrong){raised}"
    )
