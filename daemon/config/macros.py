"""Macros: `${name}` from the file, `${env.NAME}` from the environment, and those that a runner gets when it
is started (`${PORT}`, `${SOCKET}`, `${PID}` and launch options), which stay in the text until then.

A macro may use those defined before it, as in llama-swap; so there are no cycles. A value that is one macro
and nothing else takes the macro's type.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from decimal import Decimal

from daemon.config.errors import Problems, did_you_mean, join_path, shown
from daemon.config.yaml_source import Mapping as MappingNode
from daemon.config.yaml_source import Node, Scalar, Sequence, resolve_plain
from events.limits import CONFIG_EXPANDED_CHARS, CONFIG_MACRO_NAME_CHARS, CONFIG_MACROS

MACRO = re.compile(r"\$\{([A-Za-z0-9_-]+)\}")
MACRO_NAME = re.compile(r"[A-Za-z0-9_-]+")
RESERVED = ("MODEL_ID", "PORT", "SOCKET", "PID")
SHARD_PORT = "SHARD_PORT_"
"""With a number behind it: the port of that shard."""
_ENV = re.compile(r"\$\{env\.([^{}]*)\}")

GO_EXPONENT = 6
"""From this power of ten on, Go writes a float with an exponent."""

Scope = dict[str, Scalar]
"""Macros by name, with nothing left to expand but what a runner gets when it is started."""


def is_reserved(name: str) -> bool:
    """Whether a macro's name is one of our own."""
    return name in RESERVED or name.startswith(SHARD_PORT)


def used(text: str) -> set[str]:
    """The names of the macros in a text."""
    return set(MACRO.findall(text))


def fill(text: str, values: Mapping[str, str]) -> str:
    """Put in what a runner gets when it is started. In one pass: a value is never expanded itself."""
    return MACRO.sub(lambda match: values.get(match[1], match[0]), text)


def written(macro: Scalar) -> str:
    """A macro's value within other text: numbers and booleans as Go's `%v` has them, as in llama-swap."""
    value = macro.value
    if value is None or isinstance(value, str):
        return macro.text
    if not isinstance(value, float):
        return str(value).lower()
    number = Decimal(repr(value)).normalize()
    exponent = number.adjusted()
    if not value or -4 <= exponent < GO_EXPONENT:
        return f"{number:f}"
    digits = f"{number.scaleb(-exponent):f}"
    return f"{digits}e{'-' if exponent < 0 else '+'}{abs(exponent):02}"


class Expander:
    """Expands macros in trees, within one limit on the text that comes of it."""

    def __init__(self, environ: Mapping[str, str], problems: Problems) -> None:
        self._environ = environ
        self._problems = problems
        self._chars_left = CONFIG_EXPANDED_CHARS

    def environment(self, node: Node, path: str) -> Node:
        """The tree with `${env.NAME}` replaced. Unquoted text that this makes a number is a number."""
        return _walk(node, path, self._environment)

    def expand(self, node: Node, path: str, scope: Scope, later: Collection[str] = ()) -> Node:
        """The tree with the scope's macros replaced. Any other macro but those of `later` is an error."""

        def one(scalar: Scalar, path: str) -> Scalar:
            expanded = self._expand(scalar, path, scope)
            for name in sorted(used(expanded.text) - set(later)):
                self._problems.add(scalar.line, path, _unknown(name, scope, later))
            return expanded

        return _walk(node, path, one)

    def define(self, node: Node | None, path: str) -> Scope:
        """The definitions under a `macros` key, in their order, not expanded yet."""
        if node is None or (isinstance(node, Scalar) and node.value is None):
            return {}
        if not isinstance(node, MappingNode):
            self._problems.add(node.line, path, "expected a mapping of macro names to values")
            return {}
        if len(node.items) > CONFIG_MACROS:
            text = f"expected at most {CONFIG_MACROS} macros, found {len(node.items)}"
            self._problems.add(node.line, path, text)
            return {}
        scope: Scope = {}
        for name, value in node.items.items():
            fault = _fault(name, value)
            if fault:
                self._problems.add(node.key_lines[name], join_path(path, name), fault)
            elif isinstance(value, Scalar):
                scope[name] = value
        return scope

    def scope(self, definitions: Scope, path: str) -> Scope:
        """The definitions expanded, each with those before it."""
        scope: Scope = {}
        for name, scalar in definitions.items():
            scope[name] = self._expand(scalar, join_path(path, name), scope)
        return scope

    def _environment(self, scalar: Scalar, path: str) -> Scalar:
        names = _ENV.findall(scalar.text)
        if not names:
            return scalar
        for name in sorted(set(names)):
            if name not in self._environ:
                named = name if MACRO_NAME.fullmatch(name) else shown(name)
                text = f"expected the environment variable {named}, which is not set"
                self._problems.add(scalar.line, path, text + did_you_mean(name, self._environ))
        text = self._substitute(_ENV, scalar, path, lambda name: self._environ.get(name, ""))
        return Scalar(
            scalar.line, resolve_plain(text) if scalar.plain else text, text, scalar.plain, secret=True
        )

    def _expand(self, scalar: Scalar, path: str, scope: Scope) -> Scalar:
        names = [name for name in MACRO.findall(scalar.text) if name in scope]
        if not names or not isinstance(scalar.value, str):
            return scalar
        secret = scalar.secret or any(scope[name].secret for name in names)
        text = self._substitute(
            MACRO, scalar, path, lambda name: written(scope[name]) if name in scope else None
        )
        whole = MACRO.fullmatch(scalar.text)
        return Scalar(scalar.line, scope[whole[1]].value if whole else text, text, secret=secret)

    def _substitute(
        self, pattern: re.Pattern[str], scalar: Scalar, path: str, value: Callable[[str], str | None]
    ) -> str:
        parts: list[str] = []
        end = 0
        for match in pattern.finditer(scalar.text):
            found = value(match[1])
            parts += [scalar.text[end : match.start()], match[0] if found is None else found]
            end = match.end()
            self._spend(len(parts[-2]) + len(parts[-1]), scalar, path)
        return "".join(parts) + scalar.text[end:]

    def _spend(self, chars: int, scalar: Scalar, path: str) -> None:
        self._chars_left -= chars
        if self._chars_left < 0:
            text = (
                f"expected macros to expand to at most {CONFIG_EXPANDED_CHARS} characters in all, found more"
            )
            raise self._problems.give_up(scalar.line, path, text)


def _walk(node: Node, path: str, change: Callable[[Scalar, str], Scalar]) -> Node:
    if isinstance(node, Scalar):
        return change(node, path)
    if isinstance(node, Sequence):
        items = [_walk(item, join_path(path, i), change) for i, item in enumerate(node.items)]
        return Sequence(node.line, items, node.size)
    members = {key: _walk(item, join_path(path, key), change) for key, item in node.items.items()}
    return MappingNode(node.line, members, node.key_lines, node.size)


def _fault(name: str, value: Node) -> str:
    """What is wrong with a macro's definition; "" where nothing is."""
    if not MACRO_NAME.fullmatch(name) or len(name) > CONFIG_MACRO_NAME_CHARS:
        return f"expected a macro name of at most {CONFIG_MACRO_NAME_CHARS} letters, digits, `_` and `-`"
    if is_reserved(name):
        return f"expected another name: {name} is reserved"
    if not isinstance(value, Scalar) or value.value is None:
        return "expected text, a number or a boolean as the macro's value"
    if name in used(value.text):
        return "expected a value that does not use the macro itself"
    return ""


def _unknown(name: str, scope: Scope, later: Collection[str]) -> str:
    """The message for a macro that could not be expanded where it stands."""
    found = f"found ${{{name}}}"
    if name in scope:
        return f"expected macros that use only those defined before them, {found} used before its definition"
    if is_reserved(name):
        return f"expected a macro that has a value here, {found}"
    return f"expected a macro that is defined, {found}{did_you_mean(name, [*scope, *later])}"
