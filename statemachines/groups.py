"""Which models may be loaded beside which: llama-swap's groups and matrix, and operators' pins.

Both say what must go before a model is loaded, as llama-swap documents it
(https://github.com/mostlygeek/llama-swap, config.example.yaml, "routing"); what may stay must still fit into
memory. Without either, memory alone decides.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from events.catalogue import ConfigView, GroupView, MatrixView
from events.limits import MATRIX_CHOICES
from statemachines.parts import Demand, Runner
from statemachines.state import State

DEFAULT_GROUP = GroupView(())
"""Of the models that no group names: one of them at a time, and nothing else beside it."""


def ruled(config: ConfigView) -> bool:
    """Whether the configuration says which models may be loaded together."""
    return bool(config.groups) or config.matrix is not None


def members_of(config: ConfigView) -> dict[str, str]:
    """The group of each model that is in one."""
    return {model: name for name, group in config.groups.items() for model in group.members}


def in_the_way(state: State, model: str) -> dict[str, None]:
    """The runners beside which the configuration allows no load of a model, however much memory there is."""
    config = state.config
    if config.matrix is not None:
        kept = _kept(state, config.matrix, model)
        return {runner.id: None for runner in state.runners.values() if runner.model not in kept}
    if not config.groups:
        return {}
    return {runner.id: None for runner in state.runners.values() if evicts(state, model, runner.model)}


def evicts(state: State, model: str, other: str) -> bool:
    """Whether, by the groups, a load of `model` lets no runner of `other` be."""
    groups = state.config.groups
    name, others = state.group_of.get(model, ""), state.group_of.get(other, "")
    group = groups.get(name, DEFAULT_GROUP)
    if name == others:
        return group.swap
    return group.exclusive and not groups.get(others, DEFAULT_GROUP).persistent


def protected(state: State, runner: Runner, model: str) -> str:
    """Why a runner must not be evicted for a model: "pinned", or "persistent" (its group is, and the model is
    not of that group); "": it may."""
    if runner.model in state.pinned and not (runner.less and runner.model == model):
        return "pinned"  # but one with less than the default is no pinned model, to who wants that
    other = state.group_of.get(runner.model, "")
    group = state.config.groups.get(other)
    if group is None or not group.persistent or state.group_of.get(model, "") == other:
        return ""
    return "persistent"


def preload_only(state: State, demand: Demand) -> bool:
    """Whether nobody but the configuration wants a demand, as a preload."""
    operations = state.operations
    return (
        bool(demand.operations)
        and not demand.waiting
        and all(operations[id].preload for id in demand.operations)
    )


def kept_from(state: State, runner: Runner, demand: Demand) -> str:
    """Why a runner must not be evicted for a demand: "preloaded" (so is this, and neither makes room for the
    other), "well" (what it broke off is to be tried elsewhere, and it is not suspected any more), or as
    `protected` says."""
    if runner.id == demand.excluded and not runner.suspect:
        return "well"
    if runner.model in state.preloads and preload_only(state, demand):
        return "preloaded"
    return protected(state, runner, demand.model)


# --- the matrix ------------------------------------------------------------------------------------------


def _kept(state: State, matrix: MatrixView, model: str) -> dict[str, None]:
    """The models that may be loaded beside `model` by the set that costs least."""
    costs: dict[str, int] = {model: 0}
    total = sum(matrix.evict_costs.values()) + len(state.runners) + 1
    for runner in state.runners.values():
        cost = matrix.evict_costs.get(runner.model, 1) if runner.live else 0
        if runner.model != model:
            pinned = runner.live and runner.model in state.pinned
            costs[runner.model] = total if pinned else max(cost, costs.get(runner.model, 0))
    return cheapest_set(matrix, model, costs)


def cheapest_set(matrix: MatrixView, model: str, costs: Mapping[str, int]) -> dict[str, None]:
    """Of the models in `costs` those that stay: with every set that contains `model` some go, and what they
    cost is the set's cost; the cheapest set is taken, the first of equals. A model in no set runs alone."""
    bits = {name: 1 << i for i, name in enumerate(costs)}
    wanted = bits[model]
    done: dict[str, list[int]] = {}
    best, best_cost = wanted, -1
    for name in matrix.sets:
        for choice in _choices(matrix, name, bits, done):
            if choice & wanted:
                cost = sum(costs[other] for other, bit in bits.items() if not choice & bit)
                if best_cost < 0 or cost < best_cost:
                    best, best_cost = choice, cost
    return {name: None for name, bit in bits.items() if best & bit}


def _choices(matrix: MatrixView, name: str, bits: Mapping[str, int], done: dict[str, list[int]]) -> list[int]:
    """What a named set can be, of the models that matter: a bit mask each, in the order in which it names
    them. Masks that are part of another are left out, so that there are few however long the set is."""
    if name in done:
        return done[name]
    stack: list[list[int]] = []
    for token in matrix.sets[name]:
        if token == "&":
            right = stack.pop()
            stack[-1] = _largest(a | b for a in stack[-1] for b in right)
        elif token == "|":
            right = stack.pop()
            stack[-1] = _largest([*stack[-1], *right])
        elif token[0] == "+":
            stack.append(_choices(matrix, token[1:], bits, done))
        else:
            stack.append([bits.get(token[1:], 0)])
    done[name] = stack.pop()
    return done[name]


def _largest(masks: Iterable[int]) -> list[int]:
    """Without repetitions, and without those that are part of another."""
    found: list[int] = []
    for mask in masks:
        if not any(mask & other == mask for other in found):
            found = [other for other in found if mask & other != other]
            found.append(mask)
            if len(found) == MATRIX_CHOICES:
                break
    return found
