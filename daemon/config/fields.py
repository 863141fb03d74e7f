"""Typed reading of one mapping: each getter takes a key, checks its value and reports what is wrong with it.

After a problem a getter returns the default, so that reading goes on and every problem is found at once.
"""

from __future__ import annotations

from collections.abc import Mapping

from daemon.config.errors import Problems, did_you_mean, join_path, shown
from daemon.config.units import duration_ns, size_bytes
from daemon.config.yaml_source import Mapping as MappingNode
from daemon.config.yaml_source import Node, Scalar, Sequence

A_DURATION = 'a number of seconds or a duration ("90s", "1h30m")'
A_SIZE = 'a size ("6GiB", "512MiB") or a number of bytes'

_FLAGS = {"yes": True, "on": True, "no": False, "off": False}


class Section:
    """One mapping of the file. What has been asked for is what is known; `finish` reports the rest."""

    def __init__(self, node: MappingNode, path: str, problems: Problems) -> None:
        self.line = node.line
        self.path = path
        self._node = node
        self._problems = problems
        self._known: dict[str, None] = {}

    def node(self, key: str) -> Node | None:
        """The value of a key; None where it is absent or null."""
        self._known[key] = None
        found = self._node.items.get(key)
        return None if isinstance(found, Scalar) and found.value is None else found

    def scalar(self, key: str, expected: str) -> Scalar | None:
        """A single value; None where it is absent, null or something else."""
        found = self.node(key)
        if found is None or isinstance(found, Scalar):
            return found
        self.wrong(key, expected, found)
        return None

    def text(self, key: str, default: str = "", *, max_chars: int = 0) -> str:
        """Text; numbers and booleans are taken as they were written."""
        found = self.scalar(key, "text")
        if found is None:
            return default
        if max_chars and len(found.text) > max_chars:
            self.wrong(key, f"at most {max_chars} characters", found)
            return default
        return found.text

    def choice(self, key: str, default: str, choices: tuple[str, ...]) -> str:
        """One word of several."""
        expected = " or ".join(f'"{choice}"' for choice in choices)
        found = self.scalar(key, expected)
        if found is None or found.text in choices:
            return default if found is None else found.text
        self.wrong(key, expected, found)
        return default

    def flag(self, key: str, default: bool = False) -> bool:
        """true or false (yes and no, too)."""
        found = self.scalar(key, "true or false")
        if found is None:
            return default
        if isinstance(found.value, bool):
            return found.value
        if found.plain and found.text.lower() in _FLAGS:
            return _FLAGS[found.text.lower()]
        self.wrong(key, "true or false", found)
        return default

    def integer(self, key: str, default: int, least: int, most: int) -> int:
        """A whole number between two limits, both allowed."""
        expected = f"a whole number from {least} to {most}"
        found = self.scalar(key, expected)
        if found is None:
            return default
        value = found.value
        if isinstance(value, int) and not isinstance(value, bool) and least <= value <= most:
            return value
        self.wrong(key, expected, found)
        return default

    def duration_ns(self, key: str, default: int) -> int:
        """A duration, in nanoseconds."""
        found = self.scalar(key, A_DURATION)
        value = duration_ns(found.value) if found else default
        if value is None:
            self.wrong(key, A_DURATION, found)
            return default
        return value

    def size_bytes(self, key: str, default: int) -> int:
        """A size, in bytes."""
        found = self.scalar(key, A_SIZE)
        value = size_bytes(found.value) if found else default
        if value is None:
            self.wrong(key, A_SIZE, found)
            return default
        return value

    def texts(self, key: str) -> list[tuple[Scalar, str]]:
        """A list of text: each with its path."""
        found = self.node(key)
        path = join_path(self.path, key)
        if found is None:
            return []
        if not isinstance(found, Sequence):
            self.wrong(key, "a list of text", found)
            return []
        texts = []
        for i, item in enumerate(found.items):
            if isinstance(item, Scalar) and item.value is not None:
                texts.append((item, join_path(path, i)))
            else:
                text = f"expected text, found {describe(item)}"
                self._problems.add(item.line, join_path(path, i), text)
        return texts

    def members(self, key: str) -> dict[str, tuple[Node, int, str]]:
        """A mapping: each value with the line of its key and its path."""
        found = self.node(key)
        if found is None:
            return {}
        if not isinstance(found, MappingNode):
            self.wrong(key, "a mapping", found)
            return {}
        path = join_path(self.path, key)
        return {k: (node, found.key_lines[k], join_path(path, k)) for k, node in found.items.items()}

    def below(self, key: str) -> Section | None:
        """The mapping that a key has; None where it is absent, null or something else."""
        found = self.node(key)
        if found is None or isinstance(found, MappingNode):
            return None if found is None else Section(found, join_path(self.path, key), self._problems)
        self.wrong(key, "a mapping", found)
        return None

    def wrong(self, key: str, expected: str, found: Node | None) -> None:
        """Report a value: what was expected, what was found."""
        line = found.line if found else self.line
        self._problems.add(line, join_path(self.path, key), f"expected {expected}, found {describe(found)}")

    def report(self, key: str, text: str) -> None:
        """Report a key that is there, without showing its value."""
        self._problems.add(self._line(key), join_path(self.path, key), text)

    def warn(self, key: str, text: str) -> None:
        """Warn of a key that is there."""
        self._problems.warn(self._line(key), join_path(self.path, key), text)

    def ignore(self, harmless: Mapping[str, str]) -> None:
        """Known keys that can be ignored, each with a warning that says what that means."""
        for key, meaning in harmless.items():
            if self.node(key) is not None:
                self._problems.warn(self._line(key), join_path(self.path, key), f"has no effect: {meaning}")

    def finish(self, *, extensions: bool = False) -> None:
        """Report the keys that nobody asked for. `extensions`: those that begin with `x-` may be there."""
        for key in self._node.items:
            if key not in self._known and not (extensions and key.startswith("x-")):
                near = did_you_mean(key, self._known)
                self._problems.unknown(self._line(key), join_path(self.path, key), key, near)

    def _line(self, key: str) -> int:
        return self._node.key_lines[key]


def describe(node: Node | None) -> str:
    """A value as a message shows it; never what came out of the environment, or is a key."""
    if node is None:
        return "nothing"
    if isinstance(node, Sequence):
        return "a list"
    if isinstance(node, MappingNode):
        return "a mapping"
    if node.secret:
        return "something that is not shown"
    return "nothing" if node.value is None else shown(node.value)
