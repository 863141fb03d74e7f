"""`peers`: other servers, and the models that they have.

    peers:
      openrouter:
        proxy: https://openrouter.ai/api
        apiKey: ${env.OPENROUTER_API_KEY}
        models: [qwen/qwen3-235b-a22b]

A model of a peer is asked for as PEER/MODEL; as MODEL alone where one peer only has it, and nothing here has
that name.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Container, Iterator, Mapping

import msgspec

from daemon.config.door import Secret
from daemon.config.errors import Problems, join_path, shown
from daemon.config.fields import Section, describe
from daemon.config.filters import FilterRules, read_filters
from daemon.config.timeouts import Timeouts, read_timeouts
from daemon.config.yaml_source import Mapping as MappingNode
from daemon.config.yaml_source import Node, hidden
from events.limits import API_KEY_CHARS, CONFIG_MODELS, CONFIG_NAME_CHARS, S

_URL = re.compile(r"https?://(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]{1,253})(:[0-9]{1,5})?(/[!-~]*)?")
_KEY = re.compile(r"[!-~]*")
_DEFAULT = Timeouts(first_byte_ns=60 * S)  # llama-swap's, of peers
_USED = ("connect", "responseHeader")


class Peer(msgspec.Struct, frozen=True):
    """Another server. `url` has no slash at its end; a request's path goes behind it. `api_key` "": none."""

    id: str
    url: str
    models: tuple[str, ...]
    api_key: str = ""
    filters: FilterRules = FilterRules()
    timeouts: Timeouts = Timeouts()

    def qualified(self, model: str) -> str:
        """The name under which a model of it can always be asked for."""
        return f"{self.id}/{model}"


def find(peers: Mapping[str, Peer], name: str) -> tuple[Peer, str] | None:
    """The peer that has a model, and what it calls it; None: none has, or several have, and it is not said
    which."""
    for peer in peers.values():
        for model in peer.models:
            if peer.qualified(model) == name:
                return peer, model
    having = [peer for peer in peers.values() if name in peer.models]
    return (having[0], name) if len(having) == 1 else None


def listed(peers: Mapping[str, Peer], taken: Container[str]) -> Iterator[tuple[str, Peer, str]]:
    """Every model of a peer, as that calls it, behind the name that it is best asked for by: its own where
    that is nobody else's, and not `taken`."""
    count = Counter(model for peer in peers.values() for model in peer.models)
    qualified = {peer.qualified(model) for peer in peers.values() for model in peer.models}
    for peer in peers.values():
        for model in peer.models:
            alone = count[model] == 1 and model not in qualified and model not in taken
            name = model if alone else peer.qualified(model)
            if name not in taken:
                yield name, peer, model


def hide_keys(peers: Node) -> Node:
    """The tree under `peers`, of whose keys no message shows any."""
    if not isinstance(peers, MappingNode):
        return peers
    items: dict[str, Node] = {}
    for id, peer in peers.items.items():
        items[id] = peer
        if isinstance(peer, MappingNode) and "apiKey" in peer.items:
            inner = {**peer.items, "apiKey": hidden(peer.items["apiKey"])}
            items[id] = MappingNode(peer.line, inner, peer.key_lines, peer.size)
    return MappingNode(peers.line, items, peers.key_lines, peers.size)


def read_peers(top: Section, taken: Mapping[str, object], problems: Problems) -> dict[str, Peer]:
    """`peers`; `taken`: the names of models that are served here, which none of theirs may have."""
    peers: dict[str, Peer] = {}
    names: dict[str, str] = {}
    for id, (node, line, path) in top.members("peers").items():
        if not id.strip() or not id.isprintable() or len(id) > CONFIG_NAME_CHARS:
            text = f"expected a name of at most {CONFIG_NAME_CHARS} printable characters, found {shown(id)}"
            problems.add(line, path, text)
        if not isinstance(node, MappingNode):
            problems.add(line, path, f"expected a mapping with the key `proxy`, found {describe(node)}")
            continue
        peer = peers[id] = _read(id, Section(node, path, problems), problems)
        for model in peer.models:
            name = peer.qualified(model)
            if name in taken:
                text = f"expected a name that no model here has, found {shown(name)}"
                problems.add(line, join_path(path, "models"), text)
            elif names.setdefault(name, id) != id:
                text = (
                    f"expected a name of its own, found {shown(name)}, which is {shown(names[name])}'s, too"
                )
                problems.add(line, join_path(path, "models"), text)
    return peers


def _read(id: str, section: Section, problems: Problems) -> Peer:
    why = "connections are opened for each exchange, and one limit holds until they are up"
    peer = Peer(
        id=id,
        url=_url(section),
        models=tuple(dict.fromkeys(_models(section, problems))),
        api_key=_key(section),
        filters=read_filters(section, problems),
        timeouts=read_timeouts(section, _DEFAULT, _USED, why),
    )
    section.finish()
    return peer


def _url(section: Section) -> str:
    url = section.text("proxy")
    if "@" in url:
        section.report("proxy", "expected no user's name in the address: `apiKey` is for what is secret")
    elif not _URL.fullmatch(url):
        section.wrong(
            "proxy", "http://HOST or https://HOST, with a port and a path or none", section.node("proxy")
        )
    return url.rstrip("/")


def _models(section: Section, problems: Problems) -> list[str]:
    models = []
    for item, path in section.texts("models"):
        if not item.text.strip() or not item.text.isprintable() or len(item.text) > CONFIG_NAME_CHARS:
            problems.add(item.line, path, f"expected the name of a model, found {shown(item.text)}")
        models.append(item.text)
    if not 0 < len(models) <= CONFIG_MODELS:
        section.wrong(
            "models", f"a list of 1 to {CONFIG_MODELS} of the peer's models", section.node("models")
        )
    return models


def _key(section: Section) -> str:
    key = section.text("apiKey")
    if not _KEY.fullmatch(key) or len(key) > API_KEY_CHARS:
        section.report(
            "apiKey", f"expected at most {API_KEY_CHARS} letters, digits and signs, without blanks"
        )
    return Secret(key)
