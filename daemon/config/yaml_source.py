"""YAML as a tree in which every value knows its line, built from parser events.

A tree of our own, because the usual loaders forget lines, keep the last of two equal keys, and expand a
handful of aliases into gigabytes. Plain scalars follow YAML 1.2: `yes` and `12:30` are text, not true and
750. Nothing here recurses, and size and depth are limited, so that no file can do harm.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

import msgspec
import yaml

from daemon.config.errors import Problems, did_you_mean, join_path, shown
from events.limits import CONFIG_DEPTH, CONFIG_NODES

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_NULLS = {"": None, "~": None, "null": None, "Null": None, "NULL": None}
_BOOLS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]{0,19})")
_HEX_OR_OCTAL = re.compile(r"0x[0-9a-fA-F]{1,16}|0o[0-7]{1,22}")
_LEAST, _MOST = -(1 << 63), (1 << 64) - 1
"""Go's int64 and uint64, and what every encoder of JSON here can write."""
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")

Plain = str | int | float | bool | None


class Scalar(msgspec.Struct):
    """A single value. `text` is how it was written, for use inside other text.

    `plain`: written without quotes. `secret`: it holds something of the environment, or is a key, so that
    messages hide it.
    """

    line: int
    value: Plain
    text: str
    plain: bool = False
    secret: bool = False
    size: int = 1


class Sequence(msgspec.Struct):
    """A list."""

    line: int
    items: list[Node]
    size: int = 1


class Mapping(msgspec.Struct):
    """Keys (text, each once) and values, in the order of the file."""

    line: int
    items: dict[str, Node]
    key_lines: dict[str, int]
    size: int = 1


Node = Scalar | Sequence | Mapping


def parse(text: str, problems: Problems) -> Node:
    """The tree of a document. Raises Unusable where the text is not one YAML document."""
    composer = _Composer(problems)
    try:
        for event in yaml.parse(text, Loader=_LOADER):
            composer.take(event)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        tab = mark is not None and text[mark.index : mark.index + 1] == "\t"
        found = "a tab, where it takes spaces" if tab else error.problem or error.context
        raise problems.give_up(mark.line + 1 if mark else 0, "", f"expected YAML, found: {found}") from None
    except (yaml.YAMLError, RecursionError) as error:
        message = str(error).splitlines()[0] if str(error) else "a syntax error"
        raise problems.give_up(0, "", f"expected YAML, found: {message}") from None
    if composer.root is None:
        raise problems.give_up(0, "", "expected a mapping with the key `models`, found an empty file")
    return composer.root


def hidden(node: Node) -> Node:
    """The same tree, of whose values no message shows any."""
    if isinstance(node, Scalar):
        return Scalar(node.line, node.value, node.text, node.plain, secret=True)
    if isinstance(node, Sequence):
        return Sequence(node.line, [hidden(item) for item in node.items], node.size)
    items = {key: hidden(item) for key, item in node.items.items()}
    return Mapping(node.line, items, node.key_lines, node.size)


def resolve_plain(text: str) -> Plain:
    """What unquoted text means: null, a boolean, a finite number, or itself."""
    if text in _NULLS:
        return None
    if text in _BOOLS:
        return _BOOLS[text]
    if _INTEGER.fullmatch(text) or _HEX_OR_OCTAL.fullmatch(text):
        whole = int(text, 0)
        return whole if _LEAST <= whole <= _MOST else text
    if _FLOAT.fullmatch(text) and not text.lstrip("+-").isdigit() and math.isfinite(number := float(text)):
        return number
    return text


class _Frame:
    """A collection whose end has not come yet."""

    def __init__(self, node: Sequence | Mapping, anchor: str | None) -> None:
        self.node = node
        self.anchor = anchor
        self.key: Scalar | None = None
        self.merged: list[Node] = []


class _Composer:
    """Puts parser events together."""

    def __init__(self, problems: Problems) -> None:
        self.root: Node | None = None
        self._problems = problems
        self._frames: list[_Frame] = []
        self._anchors: dict[str, Node] = {}
        self._documents = 0

    def take(self, event: yaml.Event) -> None:
        """The next event."""
        line = event.start_mark.line + 1 if event.start_mark else 0
        if isinstance(event, yaml.DocumentStartEvent):
            self._documents += 1
            if self._documents > 1:
                raise self._problems.give_up(line, "", "expected one YAML document, found a second one")
        elif isinstance(event, yaml.AliasEvent):
            self._add(self._aliased(event.anchor or "", line))
        elif isinstance(event, yaml.ScalarEvent):
            self._finish(self._scalar(event, line), event.anchor)
        elif isinstance(event, yaml.SequenceStartEvent):
            self._open(Sequence(line, []), event)
        elif isinstance(event, yaml.MappingStartEvent):
            self._open(Mapping(line, {}, {}), event)
        elif isinstance(event, yaml.CollectionEndEvent):
            frame = self._frames.pop()
            if isinstance(frame.node, Mapping):
                self._merge(frame.node, frame.merged)
            self._finish(frame.node, frame.anchor)

    def _open(self, node: Sequence | Mapping, event: yaml.CollectionStartEvent) -> None:
        if len(self._frames) >= CONFIG_DEPTH:
            text = f"expected at most {CONFIG_DEPTH} levels of nesting, found more"
            raise self._problems.give_up(node.line, "", text)
        self._no_tag(event.tag, node.line)
        self._frames.append(_Frame(node, event.anchor))

    def _finish(self, node: Node, anchor: str | None) -> None:
        if anchor is not None:
            self._anchors[anchor] = node
        self._add(node)

    def _scalar(self, event: yaml.ScalarEvent, line: int) -> Scalar:
        if event.tag == "tag:yaml.org,2002:str":
            return Scalar(line, event.value, event.value)
        self._no_tag(event.tag, line)
        plain = event.implicit[0]
        return Scalar(line, resolve_plain(event.value) if plain else event.value, event.value, plain)

    def _no_tag(self, tag: str | None, line: int) -> None:
        if tag is not None and tag != "!":
            self._problems.add(
                line, self._path(), f"expected a value without a tag, found the tag {shown(tag)}"
            )

    def _aliased(self, anchor: str, line: int) -> Node:
        node = self._anchors.get(anchor)
        if node is None:
            hint = did_you_mean(anchor, self._anchors)
            text = f"expected an anchor that is defined above, and complete, found *{anchor}{hint}"
            raise self._problems.give_up(line, self._path(), text)
        return node

    def _add(self, node: Node) -> None:
        if not self._frames:
            self.root = node
            return
        frame = self._frames[-1]
        parent = frame.node
        parent.size += node.size
        if parent.size > CONFIG_NODES:
            text = f"expected at most {CONFIG_NODES} values with all aliases expanded, found more"
            raise self._problems.give_up(node.line, "", text)
        if isinstance(parent, Sequence):
            parent.items.append(node)
        elif frame.key is None:
            frame.key = self._key(node)
        else:
            key, frame.key = frame.key, None
            self._set(frame, parent, key, node)

    def _key(self, node: Node) -> Scalar:
        if isinstance(node, Scalar):
            return node
        raise self._problems.give_up(
            node.line, self._path(), "expected text as a key, found a list or a mapping"
        )

    def _set(self, frame: _Frame, parent: Mapping, key: Scalar, node: Node) -> None:
        if key.text == "<<" and key.plain:
            frame.merged.append(node)
        elif key.text in parent.items:
            path = join_path(self._path(), key.text)
            first = parent.key_lines[key.text]
            self._problems.add(
                key.line, path, f"expected each key once, found it again (first on line {first})"
            )
        else:
            parent.items[key.text] = node
            parent.key_lines[key.text] = key.line

    def _merge(self, parent: Mapping, merged: list[Node]) -> None:
        """`<<: *base`: what the mapping itself does not say."""
        for source in _flatten(merged):
            if not isinstance(source, Mapping):
                text = "expected a mapping, or a list of mappings, to merge"
                self._problems.add(source.line, join_path(self._path(), "<<"), text)
                continue
            for key, node in source.items.items():
                if key not in parent.items:
                    parent.items[key] = node
                    parent.key_lines[key] = source.key_lines[key]

    def _path(self) -> str:
        path = ""
        for frame in self._frames:
            if frame.key is not None:
                path = join_path(path, frame.key.text)
            elif isinstance(frame.node, Sequence):
                path = join_path(path, len(frame.node.items))
        return path


def _flatten(nodes: list[Node]) -> Iterator[Node]:
    for node in nodes:
        if isinstance(node, Sequence):
            yield from node.items
        else:
            yield node
