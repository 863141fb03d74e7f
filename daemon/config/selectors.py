"""Names that stand for models: `selectors`, whose target is chosen for each request, and `profiles`.

    selectors:
      coding: {strategy: warm, targets: [qwen, llama]}
      chat: {strategy: spillover, targets: [small-1, small-2], settings: {spillover: 4}}
      plan: {strategy: pin, targets: [llama]}

`warm`: the first target that is loaded, else the first that loads, else the first. `spillover`: the least
busy of those that are loaded or wanted while it has fewer requests than `spillover`, else the next one.
`pin`: the first. As llama-swap has them; but a request counts wherever it came from.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Literal, cast

import msgspec

from daemon.config.errors import Problems, did_you_mean, join_path, shown
from daemon.config.fields import Section, describe
from daemon.config.routing import Routing
from daemon.config.values import Json, plain
from daemon.config.yaml_source import Mapping as MappingNode
from daemon.config.yaml_source import Scalar
from events.limits import REQUESTS_MAX
from statemachines.groups import cheapest_set

Strategy = Literal["warm", "pin", "spillover"]
STRATEGIES = ("warm", "pin", "spillover")


class Selector(msgspec.Struct, frozen=True):
    """A name whose target, an id or alias or a peer's model, is chosen for each request."""

    strategy: Strategy
    targets: tuple[str, ...]
    spillover: int = 1
    name: str = ""
    description: str = ""
    unlisted: bool = False
    metadata: dict[str, Json] = {}


class Profile(msgspec.Struct, frozen=True):
    """Names that stand for others while it is in use; "" for none: 404."""

    description: str = ""
    pins: dict[str, str] = {}


class Look(msgspec.Struct, frozen=True):
    """How a target is: whether a runner of it is ready, or loads; how many requests run or wait for it."""

    ready: bool = False
    loading: bool = False
    busy: int = 0


def choose(selector: Selector, look: Callable[[str], Look]) -> str:
    """The target for the next request."""
    first = selector.targets[0]
    if selector.strategy == "pin":
        return first
    seen = {target: look(target) for target in selector.targets}
    if selector.strategy == "warm":
        ready = [target for target in seen if seen[target].ready]
        return (ready or [target for target in seen if seen[target].loading] or [first])[0]
    active = [target for target, each in seen.items() if each.ready or each.loading or each.busy]
    least = min(active, key=lambda target: seen[target].busy, default=first)
    if active and seen[least].busy < selector.spillover:
        return least
    return next((target for target in seen if target not in active), least)


class NamesReader:
    """Reads selectors and profiles. `known`: every name that can be asked for, and the model's id behind it,
    or "" where that is a peer's. `taken`: those of them that a selector may not have."""

    def __init__(
        self,
        known: Mapping[str, str],
        taken: Collection[str],
        routing: Routing,
        problems: Problems,
    ) -> None:
        self._known = known
        self._taken = taken
        self._groups = routing.groups
        self._matrix = None if problems.errors else routing.matrix  # one that is wrong may not even end
        self._problems = problems

    def selectors(self, top: Section) -> dict[str, Selector]:
        """`selectors`."""
        members = top.members("selectors")
        found: dict[str, Selector] = {}
        for id, (node, line, path) in members.items():
            if id in self._taken or not id.strip() or not id.isprintable():
                text = f"expected a name of its own, which no model has, found {shown(id)}"
                self._problems.add(line, path, text)
            if not isinstance(node, MappingNode):
                text = f"expected a mapping with the keys `strategy` and `targets`, found {describe(node)}"
                self._problems.add(line, path, text)
                continue
            section = Section(node, path, self._problems)
            found[id] = self._selector(section, members)
            section.finish()
        return found

    def _selector(self, section: Section, selectors: Mapping[str, object]) -> Selector:
        if section.node("strategy") is None:
            section.wrong("strategy", '"warm", "pin" or "spillover"', None)
        strategy = section.choice("strategy", "pin", STRATEGIES)
        settings = section.below("settings")
        selector = Selector(
            strategy=cast(Strategy, strategy),
            targets=tuple(self._targets(section, selectors, strategy)) or ("",),
            spillover=settings.integer("spillover", 1, 1, REQUESTS_MAX) if settings is not None else 1,
            name=section.text("name"),
            description=section.text("description"),
            unlisted=section.flag("unlisted"),
            metadata={key: plain(value) for key, (value, _, _) in section.members("metadata").items()},
        )
        if settings is not None:
            settings.finish()
        if strategy == "spillover":
            self._check_together(section, selector)
        return selector

    def _targets(self, section: Section, selectors: Mapping[str, object], strategy: str) -> list[str]:
        targets = []
        for item, path in section.texts("targets"):
            if item.text in selectors:
                text = f"expected a model, found {shown(item.text)}, which is a selector itself"
                self._problems.add(item.line, path, text)
            elif item.text not in self._known:
                hint = did_you_mean(item.text, dict.fromkeys(self._known))
                text = f"expected the id or alias of a model, found {shown(item.text)}{hint}"
                self._problems.add(item.line, path, text)
            elif strategy == "warm" and not self._known[item.text]:
                text = f"expected a model of this machine, found {shown(item.text)}, which is a peer's"
                self._problems.add(item.line, path, text)
            targets.append(item.text)
        if not targets:
            section.wrong("targets", "a list of models", section.node("targets"))
        return targets

    def _check_together(self, section: Section, selector: Selector) -> None:
        """Targets that push one another out of memory would spill over for ever."""
        models = [id for target in selector.targets if (id := self._known.get(target))]
        if len(set(models)) < len(models):
            section.report("targets", "expected each model once, found one under two names")
        homes = {name for name, group in self._groups.items() for model in models if model in group.members}
        fine = len(homes) == 1 and not self._groups[next(iter(homes))].swap
        if self._groups and len(models) > 1 and (not fine or not self._all_in(models, homes)):
            section.report("targets", "expected models of one group, which has `swap: false`")
        if self._matrix and models:
            kept = cheapest_set(self._matrix, models[0], dict.fromkeys(models, 1))
            if len(kept) < len(set(models)):
                section.report("targets", "expected models that one set of the matrix has all of")

    def _all_in(self, models: list[str], homes: set[str]) -> bool:
        return all(model in self._groups[home].members for home in homes for model in models)

    def profiles(self, top: Section, selectors: Mapping[str, object]) -> dict[str, Profile]:
        """`profiles`."""
        profiles: dict[str, Profile] = {}
        for name, (node, line, path) in top.members("profiles").items():
            if not isinstance(node, MappingNode):
                text = f"expected a mapping with the key `pins`, found {describe(node)}"
                self._problems.add(line, path, text)
                continue
            section = Section(node, path, self._problems)
            pins = {
                pin: self._pin(target, join_path(join_path(path, "pins"), pin), selectors)
                for pin, (target, _, _) in section.members("pins").items()
            }
            if not pins:
                section.wrong("pins", "a mapping of names to models", section.node("pins"))
            profiles[name] = Profile(section.text("description"), pins)
            section.finish()
        return profiles

    def _pin(self, node: object, path: str, selectors: Mapping[str, object]) -> str:
        if not isinstance(node, Scalar):
            self._problems.add(0, path, "expected the name of a model, or nothing, found something else")
            return ""
        target = "" if node.value is None else node.text
        if target and target not in self._known and target not in selectors:
            hint = did_you_mean(target, [*self._known, *selectors])
            self._problems.add(node.line, path, f"expected the name of a model, found {shown(target)}{hint}")
        return target
