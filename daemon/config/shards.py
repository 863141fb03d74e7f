"""A model's `shards`: the further processes that, with the one of `cmd`, form one runner.

    shards:
      - rpc-server --port ${PORT}
      - {cmd: rpc-server --port ${PORT}, env: [CUDA_VISIBLE_DEVICES=1], checkEndpoint: none}

Inside a shard `${PORT}` is its own leased port; everywhere in the model `${SHARD_PORT_1}` is the
first one's.
"""

from __future__ import annotations

import msgspec

from daemon.config.commands import split
from daemon.config.errors import Problems, join_path
from daemon.config.fields import Section, describe
from daemon.config.macros import SHARD_PORT, used
from daemon.config.yaml_source import Mapping, Node, Scalar, Sequence
from events.limits import SHARDS_MAX


class Shard(msgspec.Struct, frozen=True):
    """One further process. Words still hold `${PORT}` and its like; `env` goes over the model's.

    `check_path`: what to GET for its health; "": it is up when it listens; None: when it runs.
    """

    argv: tuple[str, ...]
    env: dict[str, str] = {}
    check_path: str | None = None


def shard_nodes(found: Node | None) -> list[Node]:
    """The entries of `shards`, as many as there may be."""
    return found.items[:SHARDS_MAX] if isinstance(found, Sequence) else []


def port_names(found: Node | None) -> set[str]:
    """The macros for the shards' ports."""
    return {f"{SHARD_PORT}{i}" for i in range(1, len(shard_nodes(found)) + 1)}


def port_values(ports: tuple[int, ...]) -> dict[str, str]:
    """The shards' ports by the names of their macros."""
    return {f"{SHARD_PORT}{i}": str(port) for i, port in enumerate(ports, 1)}


def shard_sections(section: Section, problems: Problems) -> list[Section]:
    """The shards of a model, each as a mapping: a text is its `cmd`."""
    found = section.node("shards")
    path = join_path(section.path, "shards")
    if found is None:
        return []
    if not isinstance(found, Sequence):
        section.wrong("shards", "a list of commands", found)
        return []
    if len(found.items) > SHARDS_MAX:
        section.report("shards", f"expected at most {SHARDS_MAX}, found {len(found.items)}")
    sections = []
    for i, node in enumerate(shard_nodes(found)):
        where = join_path(path, i)
        if isinstance(node, Mapping):
            sections.append(Section(node, where, problems))
        elif isinstance(node, Scalar) and node.value is not None:
            whole = Mapping(node.line, {"cmd": node}, {"cmd": node.line})
            sections.append(Section(whole, where, problems))
        else:
            text = f"expected a command, or a mapping with the key `cmd`, found {describe(node)}"
            problems.add(node.line, where, text)
    return sections


def read_command(section: Section, key: str, missing: str) -> tuple[str, ...]:
    """The words of a command; `missing`: what to say that it is for, where it must be there."""
    found = section.scalar(key, "a command")
    if found is None:
        if missing and section.node(key) is None:
            section.wrong(key, missing, None)
        return ()
    try:
        argv = split(found.text)
    except ValueError as error:
        section.report(key, f"expected a command, found: {error}")
        return ()
    if "\0" in found.text:
        section.report(key, "expected a command without NUL characters, which none can have")
    if missing and (not argv or not argv[0]):
        section.report(key, "expected a command, found none")
    return argv


def check_path_of(section: Section, listens: bool) -> str | None:
    """A shard's `checkEndpoint`; without one it is up when it listens, if it was told where."""
    if section.node("checkEndpoint") is None:
        return "" if listens else None
    if not listens:
        section.report(
            "checkEndpoint", "expected ${PORT} in this shard's `cmd` or `env`: that is what is asked"
        )
    return read_check_path(section)


def read_check_path(section: Section) -> str:
    """`checkEndpoint`; "" for `none`."""
    path = section.text("checkEndpoint", "/health")
    if path == "none":
        return ""
    if not path.startswith("/") or not all("!" <= char <= "~" for char in path):
        section.wrong(
            "checkEndpoint", 'a path that begins with "/", or "none"', section.node("checkEndpoint")
        )
    return path


def words_of(shard: Shard) -> set[str]:
    """The macros that a shard uses."""
    return used(" ".join([*shard.argv, *shard.env.values()]))
