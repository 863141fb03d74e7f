"""What may be loaded together, as llama-swap's files say it: `groups`, `matrix`, and both under `routing`."""

from __future__ import annotations

import re
from collections.abc import Mapping

import msgspec

from daemon.config.errors import Problems, did_you_mean, join_path, shown
from daemon.config.expression import postfix
from daemon.config.fields import Section, describe
from daemon.config.yaml_source import Mapping as MappingNode
from daemon.config.yaml_source import Node, Scalar
from events.catalogue import GroupView, MatrixView
from events.limits import CONFIG_GROUPS, EVICT_COST_MAX, PRIORITY_MAX

VAR = re.compile(r"[a-zA-Z0-9.-]{1,32}")


class Routing(msgspec.Struct, frozen=True):
    """Groups or a matrix or neither, and priorities of models."""

    groups: dict[str, GroupView] = {}
    matrix: MatrixView | None = None
    priorities: dict[str, int] = {}


class RoutingReader:
    """Reads them, given the models that there are."""

    def __init__(
        self, models: Mapping[str, object], problems: Problems, aliases: Mapping[str, str] | None = None
    ) -> None:
        self._models = models
        self._aliases = aliases or {}
        self._problems = problems

    def read(self, top: Section) -> Routing:
        """The top level's keys, and those under `routing`; one place and one way only."""
        found: dict[str, Section] = {}
        for key in ("groups", "matrix"):
            if _says_something(top.node(key)):
                found[key] = top
        priorities: dict[str, int] = {}
        if (routing := top.below("routing")) is not None:
            router, scheduler = routing.below("router"), routing.below("scheduler")
            if router is not None:
                found = self._router(router, found)
            if scheduler is not None:
                priorities = self._scheduler(scheduler)
            routing.finish()
        if len(found) > 1:
            top.report("matrix", "expected `groups` or `matrix`, not both")
        groups = self._groups(found["groups"]) if "groups" in found else {}
        matrix = self._matrix(found["matrix"]) if "matrix" in found else None
        return Routing(groups, matrix, priorities)

    def _router(self, router: Section, found: dict[str, Section]) -> dict[str, Section]:
        """`routing.router`: `use` says which of its settings holds."""
        use = "matrix" if router.choice("use", "group", ("group", "matrix")) == "matrix" else "groups"
        settings = router.below("settings")
        router.finish()
        given: list[str] = []
        if settings is not None:
            given = [key for key in ("groups", "matrix") if _says_something(settings.node(key))]
            settings.finish()
        if router.node("use") is not None and use not in (*given, *found) and (found or use == "matrix"):
            router.report("use", f"expected `settings.{use}` beside it, found none")
        if settings is None:
            return found
        for key in given:
            if key != use:
                settings.warn(
                    key, f"has no effect: `routing.router.use` is {shown(router.text('use', 'group'))}"
                )
        if use not in given:
            return found
        if found:
            settings.report(
                use, f"expected it here or at the top level, not both (there: {', '.join(found)})"
            )
        return {use: settings}

    def _scheduler(self, scheduler: Section) -> dict[str, int]:
        """`routing.scheduler.settings.fifo.priority`: the models' priorities. The order is `policy`'s."""
        scheduler.choice("use", "fifo", ("fifo",))
        priorities: dict[str, int] = {}
        settings = scheduler.below("settings")
        fifo = settings.below("fifo") if settings is not None else None
        if fifo is not None:
            for model, (node, line, path) in fifo.members("priority").items():
                value = node.value if isinstance(node, Scalar) else None
                id = self._aliases.get(model, model)
                if not self._is_model(id, line, path):
                    continue
                if isinstance(value, bool) or not isinstance(value, int) or abs(value) > PRIORITY_MAX:
                    text = f"expected a whole number from {-PRIORITY_MAX} to {PRIORITY_MAX}"
                    self._problems.add(node.line, path, f"{text}, found {describe(node)}")
                else:
                    priorities[id] = value
            fifo.finish()
        if settings is not None:
            settings.finish()
        scheduler.finish()
        return priorities

    # --- groups ------------------------------------------------------------------------------------------

    def _groups(self, section: Section) -> dict[str, GroupView]:
        groups: dict[str, GroupView] = {}
        owner: dict[str, str] = {}
        members = section.members("groups")
        if len(members) > CONFIG_GROUPS:
            section.report("groups", f"expected at most {CONFIG_GROUPS} groups, found {len(members)}")
        for name, (node, line, path) in members.items():
            if not isinstance(node, MappingNode):
                text = f"expected a mapping with the key `members`, found {describe(node)}"
                self._problems.add(line, path, text)
                continue
            group = Section(node, path, self._problems)
            models = self._members(group, name, owner)
            swap, exclusive = group.flag("swap", True), group.flag("exclusive", True)
            groups[name] = GroupView(tuple(models), swap, exclusive, group.flag("persistent"))
            group.finish()
        return groups

    def _members(self, group: Section, name: str, owner: dict[str, str]) -> list[str]:
        members: list[str] = []
        if group.node("members") is None:
            self._problems.warn(
                group.line, join_path(group.path, "members"), "a group of no models has no effect"
            )
        for item, path in group.texts("members"):
            if not self._is_model(item.text, item.line, path):
                continue
            if item.text in owner:
                text = f"expected a model of no other group, found {shown(item.text)}"
                self._problems.add(item.line, path, f"{text}, which {shown(owner[item.text])} has")
            owner[item.text] = name
            members.append(item.text)
        return members

    def _is_model(self, name: str, line: int, path: str) -> bool:
        if name in self._models:
            return True
        hint = did_you_mean(name, dict.fromkeys(self._models))
        self._problems.add(line, path, f"expected the id of a model, found {shown(name)}{hint}")
        return False

    # --- the matrix --------------------------------------------------------------------------------------

    def _matrix(self, section: Section) -> MatrixView | None:
        matrix = section.below("matrix")
        if matrix is None:
            return None
        names = self._variables(matrix)
        costs = self._costs(matrix, names)
        sets: dict[str, tuple[str, ...]] = {}
        given = matrix.members("sets")
        if not 0 < len(given) <= CONFIG_GROUPS:
            text = f"a mapping of names to expressions, from 1 to {CONFIG_GROUPS}"
            matrix.wrong("sets", text, matrix.node("sets"))
            return None
        for name, (node, line, path) in given.items():
            if not isinstance(node, Scalar) or node.value is None:
                self._problems.add(
                    line, path, f'expected an expression such as "(a | b) & c", found {describe(node)}'
                )
                continue
            try:
                sets[name] = postfix(node.text, names, list(given))
            except ValueError as error:
                self._problems.add(
                    node.line, path, f"expected an expression of models, found {shown(node.text)}: {error}"
                )
        self._check_cycles(sets, given)
        matrix.finish()
        return MatrixView(sets, costs)

    def _variables(self, matrix: Section) -> dict[str, str]:
        """What a name in an expression means: a variable goes before a model's id."""
        names = {model: model for model in self._models}
        for name, (node, line, path) in matrix.members("vars").items():
            if not VAR.fullmatch(name):
                self._problems.add(line, path, "expected a name of 1 to 32 letters, digits, `-` and `.`")
            elif not isinstance(node, Scalar) or node.value is None:
                self._problems.add(line, path, f"expected the id of a model, found {describe(node)}")
            elif self._is_model(node.text, node.line, path):
                names[name] = node.text
        return names

    def _costs(self, matrix: Section, names: Mapping[str, str]) -> dict[str, int]:
        costs: dict[str, int] = {}
        for name, (node, line, path) in matrix.members("evict_costs").items():
            value = node.value if isinstance(node, Scalar) else None
            if name not in names:
                hint = did_you_mean(name, dict.fromkeys(names))
                self._problems.add(
                    line, path, f"expected a variable or the id of a model, found {shown(name)}{hint}"
                )
            elif isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= EVICT_COST_MAX:
                text = f"expected a whole number from 1 to {EVICT_COST_MAX}, found {describe(node)}"
                self._problems.add(node.line, path, text)
            else:
                costs[names[name]] = value
        return costs

    def _check_cycles(
        self, sets: Mapping[str, tuple[str, ...]], given: Mapping[str, tuple[Node, int, str]]
    ) -> None:
        """No set may refer to itself, directly or by way of others."""
        done: dict[str, bool] = {}

        def visit(name: str) -> bool:
            if name in done:
                return done[name]
            done[name] = False  # under way: to come back here is a cycle
            fine = all(visit(token[1:]) for token in sets.get(name, ()) if token[0] == "+")
            done[name] = fine
            return fine

        for name in sets:
            if not visit(name):
                _, line, path = given[name]
                self._problems.add(
                    line, path, f"expected a set that does not refer to itself, found {shown(name)}"
                )
                return


def _says_something(node: Node | None) -> bool:
    """Whether it is there, and not an empty mapping."""
    return node is not None and not (isinstance(node, MappingNode) and not node.items)
