"""`filters` of a model or a peer: what is taken out of the JSON of a request, and what is put in.

    filters:
      stripParams: temperature, top_p
      setParams: {max_tokens: 1000}
      setParamsByID: {"qwen:high": {chat_template_kwargs: {reasoning_effort: high}}}

As llama-swap has them: first what is stripped, then `setParams`, then what the name asks for that the client
used; each key of `setParamsByID` is another name of the model. A name with dots reaches into objects. "model"
is never touched.
"""

from __future__ import annotations

import mmap
import re
from collections.abc import Mapping, Sequence

import msgspec

from daemon.config.errors import Problems, join_path, shown
from daemon.config.fields import Section, describe
from daemon.config.values import Json, plain
from daemon.config.yaml_source import Mapping as MappingNode
from daemon.config.yaml_source import Node, Scalar
from daemon.config.yaml_source import Sequence as SequenceNode

PROTECTED = "model"
"""What routes a request is not for a filter to change."""

_PATH = re.compile(r"[\w$/-]+(\.(?!-?[0-9]+(\.|$))[\w$/-]+)*")
_TOO_LARGE = re.compile(r"[-+]?[1-9][0-9]{18,}")
_MEMBERS = msgspec.json.Decoder(dict[str, msgspec.Raw])
_EXPECTED = (
    "a name of letters, digits, `_`, `-`, `$` and `/`, with dots to reach into objects (not into lists)"
)


class Filters(msgspec.Struct, frozen=True):
    """What is done to the body of one request. Names with dots reach into objects."""

    strip: tuple[str, ...] = ()
    set: dict[str, Json] = {}
    then: dict[str, Json] = {}
    """What is set behind that, for the name that the request has."""


class FilterRules(msgspec.Struct, frozen=True):
    """A model's or a peer's filters; `by_name`: what else is set for those who use that name."""

    strip: tuple[str, ...] = ()
    set: dict[str, Json] = {}
    by_name: dict[str, dict[str, Json]] = {}

    def of(self, name: str) -> Filters | None:
        """What is done to a request that asks for `name`; None: nothing."""
        if not (self.strip or self.set or self.by_name):
            return None
        found = Filters(self.strip, self.set, self.by_name.get(name, {}))
        return found if found.strip or found.set or found.then else None


def apply(filters: Filters, body: bytes | mmap.mmap) -> list[bytes | memoryview]:
    """The body of a request after its filters, in pieces: the other members keep their order and their bytes.
    `body` is a JSON object. Raises msgspec.MsgspecError where it is none."""
    members = _MEMBERS.decode(body)
    for name in filters.strip:
        _strip(members, name.split("."))
    for put in (filters.set, filters.then):
        for name in sorted(put):  # so that what reaches into an object comes after what sets it
            _set(members, name.split("."), put[name])
    return in_pieces(members)


def in_pieces(members: Mapping[str, msgspec.Raw]) -> list[bytes | memoryview]:
    """An object as JSON. Its members may be large views of a file, which are not copied together."""
    pieces: list[bytes | memoryview] = [b"{"]
    for key, raw in members.items():
        pieces += (b"" if len(pieces) == 1 else b",", msgspec.json.encode(key), b":", memoryview(raw))
    return [*pieces, b"}"]


def _strip(members: dict[str, msgspec.Raw], path: Sequence[str]) -> None:
    name, *rest = path
    if not rest:
        members.pop(name, None)
        return
    inner = _object(members.get(name))
    if inner is not None:
        _strip(inner, rest)
        members[name] = msgspec.Raw(msgspec.json.encode(inner))


def _set(members: dict[str, msgspec.Raw], path: Sequence[str], value: Json) -> None:
    name, *rest = path
    if not rest:
        members[name] = msgspec.Raw(msgspec.json.encode(value))
        return
    raw = members.get(name)
    if (
        raw is not None and memoryview(raw)[:1].tobytes() == b"["
    ):  # what a client has in a list is not thrown away
        return
    inner = _object(raw) or {}
    _set(inner, rest, value)
    members[name] = msgspec.Raw(msgspec.json.encode(inner))


def _object(raw: msgspec.Raw | None) -> dict[str, msgspec.Raw] | None:
    """The members of a value that is an object; None of any other."""
    if raw is None or memoryview(raw)[:1].tobytes() != b"{":
        return None
    return _MEMBERS.decode(raw)


def read_filters(section: Section, problems: Problems) -> FilterRules:
    """`filters` of a section."""
    filters = section.below("filters")
    if filters is None:
        return FilterRules()
    strip = _names(filters, "stripParams", problems) or _names(filters, "strip_params", problems)
    rules = FilterRules(
        strip=tuple(sorted(strip)),
        set=_params(filters.members("setParams"), problems),
        by_name=_by_name(filters, problems),
    )
    filters.finish()
    return rules


def _names(filters: Section, key: str, problems: Problems) -> dict[str, None]:
    """What is stripped: names with commas between them, or a list."""
    found = filters.node(key)
    names: dict[str, None] = {}
    if found is None:
        return names
    where = join_path(filters.path, key)
    if isinstance(found, Scalar):
        given = [(name.strip(), found.line, where) for name in found.text.split(",")]
    elif isinstance(found, SequenceNode):
        given = [(item.text, item.line, path) for item, path in filters.texts(key)]
    else:
        filters.wrong(key, 'names with commas between them ("temperature, top_p")', found)
        return names
    for name, line, path in given:
        if name and _may_be_touched(name, line, path, problems):
            names[name] = None
    return names


def _params(given: Mapping[str, tuple[Node, int, str]], problems: Problems) -> dict[str, Json]:
    for node, _, path in given.values():
        _check_numbers(node, path, problems)
    return {
        name: plain(node)
        for name, (node, line, path) in given.items()
        if _may_be_touched(name, line, path, problems)
    }


def _check_numbers(node: Node, path: str, problems: Problems) -> None:
    """Report numbers that were read as text because they do not fit into 64 bits."""
    if isinstance(node, SequenceNode):
        for i, item in enumerate(node.items):
            _check_numbers(item, join_path(path, i), problems)
    elif isinstance(node, MappingNode):
        for key, item in node.items.items():
            _check_numbers(item, join_path(path, key), problems)
    elif node.plain and isinstance(node.value, str) and _TOO_LARGE.fullmatch(node.text):
        text = f"expected a number of at most 64 bits, or text in quotes, found {describe(node)}"
        problems.add(node.line, path, text)


def _by_name(filters: Section, problems: Problems) -> dict[str, dict[str, Json]]:
    found: dict[str, dict[str, Json]] = {}
    for name, (node, line, path) in filters.members("setParamsByID").items():
        if not isinstance(node, MappingNode):
            problems.add(line, path, f"expected a mapping of parameters to values, found {describe(node)}")
            continue
        members = {k: (v, node.key_lines[k], join_path(path, k)) for k, v in node.items.items()}
        found[name] = _params(members, problems)
    return found


def _may_be_touched(name: str, line: int, path: str, problems: Problems) -> bool:
    """Whether a filter may touch it. Reports what it may not."""
    if not _PATH.fullmatch(name):
        problems.add(line, path, f"expected {_EXPECTED}, found {shown(name)}")
        return False
    if name.split(".", maxsplit=1)[0] == PROTECTED:
        problems.warn(line, path, f"has no effect: {shown(PROTECTED)} is never stripped or set")
        return False
    return True
