"""Reading a configuration file: llama-swap's YAML with our own keys, checked as a whole."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, cast

import msgspec

from daemon.config.config import Config, Model
from daemon.config.door import read_door
from daemon.config.errors import ConfigError, Problem, Problems, Unreadable, Unusable, join_path, shown
from daemon.config.fields import Section, describe
from daemon.config.hooks import read_hooks
from daemon.config.macros import Expander, Scope
from daemon.config.model import Defaults, ModelReader, check_device, read_stall_ns
from daemon.config.peers import find as find_peer
from daemon.config.peers import hide_keys, read_peers
from daemon.config.retention import read_retention
from daemon.config.routing import Routing, RoutingReader
from daemon.config.selectors import NamesReader
from daemon.config.units import show_duration
from daemon.config.yaml_source import Mapping as MappingNode
from daemon.config.yaml_source import Node, Scalar, hidden, parse
from events.catalogue import NEVER
from events.limits import (
    AGE_STEP_NS,
    CONFIG_MAX_BYTES,
    CONFIG_MODELS,
    CONFIG_NAME_CHARS,
    HEADROOM_BYTES,
    LOAD_GUESS_NS,
    LOAD_LEAST_S,
    LOAD_NS,
    PORT_COUNT,
    PORT_FIRST,
    QUEUE_MAX,
    REQUESTS_MAX,
    SOCKET_PATH_BYTES,
    SWAP_PATIENCE,
    SWAP_PATIENCE_MAX,
    UNLOAD_NS,
    S,
)
from statemachines.policy import POLICIES

HARMLESS = {
    "logLevel": "messages go to standard error, and what happens to the event log",
    "logTimeFormat": "messages carry no time of their own",
    "logToStdout": "runners' output goes to files",
    "logRequests": "the event log has every request",
    "metricsMaxInMemory": "the event log has what happened",
    "captureBuffer": "requests and answers are never kept",
    "store": "the event log is the store; `eventLog` says where",
    "ui": "there is no web interface",
    "performance": "nothing is sampled for a web interface",
}


def load(path: Path, environ: Mapping[str, str] = os.environ, *, guarded: bool = False) -> Config:
    """The configuration in a file; `${env.NAME}` is taken from `environ`. `guarded`: a `listen` that lets in
    anybody is an error as well. Raises ConfigError, Unreadable among them."""
    problems = Problems()
    try:
        root = parse(_read(path, problems), problems)
        config = _Reader(path, environ, problems, guarded=guarded).read(root)
    except Unusable:
        raise ConfigError(path, problems.errors) from None
    if problems.errors:
        raise ConfigError(path, problems.errors)
    return config


def _read(path: Path, problems: Problems) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(CONFIG_MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise Unreadable(path, [Problem(0, "", f"cannot be read: {reason}")]) from None
    if len(data) > CONFIG_MAX_BYTES:
        raise problems.give_up(0, "", f"expected at most {CONFIG_MAX_BYTES} bytes, found more")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise problems.give_up(line, "", "expected UTF-8, found bytes that are not") from None


def _lines(root: MappingNode) -> dict[str, int]:
    """Where the keys of the top and of the models are, by their paths."""
    lines = dict(root.key_lines)
    models = root.items.get("models")
    for id, model in models.items.items() if isinstance(models, MappingNode) else ():
        path = join_path("models", id)
        if isinstance(model, MappingNode):
            lines |= {join_path(path, key): line for key, line in model.key_lines.items()}
    return lines


class _Reader:
    """Reads the top of the tree."""

    def __init__(self, path: Path, environ: Mapping[str, str], problems: Problems, *, guarded: bool) -> None:
        self._path = path
        self._guarded = guarded
        self._problems = problems
        self._expander = Expander(environ, problems)

    def read(self, root: Node) -> Config:
        """The configuration; of no use once problems have been reported."""
        if not isinstance(root, MappingNode):
            text = f"expected a mapping with the key `models`, found {describe(root)}"
            raise self._problems.give_up(root.line, "", text)
        root, macros = self._expanded(root)
        section = Section(root, "", self._problems)
        section.node("macros")
        self._problems.any_keys = section.choice("unknownKeys", "error", ("error", "warn")) == "warn"
        section.ignore(HARMLESS)
        defaults = self._defaults(section)
        models = self._models(section, ModelReader(macros, defaults, self._expander, self._problems))
        aliases = self._aliases(section, models)
        routing = RoutingReader(models, self._problems, aliases).read(section)
        for id, priority in routing.priorities.items():
            if not models[id].priority:
                models[id] = msgspec.structs.replace(models[id], priority=priority)
        names = self._names(section, models, aliases, routing)
        preload, profile = read_hooks(section, models, aliases, names["profiles"], self._problems)
        port = section.integer("startPort", PORT_FIRST, 1, 65535)
        config = Config(
            file=self._path,
            models=models,
            aliases=aliases,
            preload=preload,
            profile=profile,
            control_socket=self._socket(section),
            control_group=section.text("controlGroup"),
            event_log=self._place(section, "eventLog"),
            durability=self._durability(section),
            retention=read_retention(section),
            max_queue=section.integer("maxQueue", QUEUE_MAX, 1, REQUESTS_MAX),
            max_loaded=section.integer("maxLoadedModels", 0, 0, CONFIG_MODELS),
            prefetch=section.flag("prefetch"),
            swap_patience=section.integer("swapPatience", SWAP_PATIENCE, 0, SWAP_PATIENCE_MAX),
            max_wait_ns=self._max_wait_ns(section, len(models)),
            age_step_ns=section.duration_ns("ageStep", AGE_STEP_NS) or AGE_STEP_NS,
            policy=section.choice("policy", "balanced", tuple(POLICIES)),
            groups=routing.groups,
            matrix=routing.matrix,
            devices=self._devices(section),
            headroom_bytes=section.size_bytes("memoryHeadroom", HEADROOM_BYTES),
            port_first=port,
            port_last=min(port + PORT_COUNT - 1, 65535),
            unload_ns=defaults.unload_ns,
            include_aliases=section.flag("includeAliasesInList"),
            **read_door(section, self._problems),
            **names,
        )
        if self._guarded and (text := config.exposed(config.listen.rpartition(":")[0])):
            section.report("listen", text)
        section.finish(extensions=True)
        return msgspec.structs.replace(config, problems=self._problems.sorted_warnings(), lines=_lines(root))

    def _expanded(self, root: MappingNode) -> tuple[MappingNode, Scope]:
        """The tree with the environment and, but for the models, the global macros put in; those macros."""
        items = {
            key: node if key.startswith("x-") else self._expander.environment(node, join_path("", key))
            for key, node in root.items.items()
        }
        if "apiKeys" in items:
            items["apiKeys"] = hidden(items["apiKeys"])
        if "peers" in items:
            items["peers"] = hide_keys(items["peers"])
        macros = self._expander.define(items.get("macros"), "macros")
        scope = self._expander.scope(macros, "macros")
        for key, node in items.items():
            if key not in ("macros", "models") and not key.startswith("x-"):
                items[key] = self._expander.expand(node, join_path("", key), scope)
        return MappingNode(root.line, items, root.key_lines), macros

    def _defaults(self, section: Section) -> Defaults:
        load_ns = section.duration_ns("healthCheckTimeout", LOAD_NS) or LOAD_NS
        if load_ns < LOAD_LEAST_S * S:
            found = section.node("healthCheckTimeout")
            text = f"{show_duration(load_ns)} holds as written; llama-swap would wait {LOAD_LEAST_S} s"
            self._problems.warn(found.line if found else 0, "healthCheckTimeout", text)
        return Defaults(
            keep_alive_ns=section.duration_ns("globalTTL", 0) or NEVER,
            keep_alive_given=section.node("globalTTL") is not None,
            load_ns=load_ns,
            stall_ns=read_stall_ns(section, 0),
            unload_ns=section.duration_ns("unloadTimeout", UNLOAD_NS) or UNLOAD_NS,
            queue_ns=section.duration_ns("queueTimeout", 0),
            request_ns=section.duration_ns("requestTimeout", 0),
            max_lease_ns=section.duration_ns("maxLease", 0),
            first_byte_ns=section.duration_ns("firstByteTimeout", 0),
            send_loading_state=section.flag("sendLoadingState"),
        )

    def _models(self, section: Section, reader: ModelReader) -> dict[str, Model]:
        models: dict[str, Model] = {}
        members = section.members("models")
        if section.node("models") is None:
            self._problems.add(0, "models", "expected a mapping of model ids to models, found nothing")
        if len(members) > CONFIG_MODELS:
            text = f"expected at most {CONFIG_MODELS} models, found {len(members)}"
            raise self._problems.give_up(section.line, "models", text)
        for id, (node, line, path) in members.items():
            if not self._check_name(id, line, path):
                continue
            model = reader.read(id, node, path)
            if model is not None:
                models[id] = model
        return models

    def _names(
        self,
        section: Section,
        models: dict[str, Model],
        aliases: dict[str, str],
        routing: Routing,
    ) -> dict[str, Any]:
        """The fields of a Config for what other names there are: of peers' models, selectors, profiles."""
        here = {**{id: id for id in models}, **aliases}
        peers = read_peers(section, here, self._problems)
        theirs = [name for peer in peers.values() for m in peer.models for name in (peer.qualified(m), m)]
        known = {name: "" for name in theirs if find_peer(peers, name)} | here
        qualified = {peer.qualified(m) for peer in peers.values() for m in peer.models}
        reader = NamesReader(known, qualified | here.keys(), routing, self._problems)
        selectors = reader.selectors(section)
        return {
            "peers": peers, "selectors": selectors, "profiles": reader.profiles(section, selectors),
        }  # fmt: skip

    def _aliases(self, section: Section, models: dict[str, Model]) -> dict[str, str]:
        aliases: dict[str, str] = {}
        members = section.members("models")
        for id, model in models.items():
            _, line, path = members[id]
            derived = {name for name in model.filters.by_name if name != id}
            for i, alias in enumerate(model.aliases):
                where = join_path(join_path(path, "aliases"), i)
                if alias in derived:
                    where = join_path(join_path(join_path(path, "filters"), "setParamsByID"), alias)
                if not self._check_name(alias, line, where) or alias == id:
                    continue
                owner = alias if alias in models else aliases.get(alias)
                if owner is not None and owner != id:
                    text = (
                        f"expected a name of its own, found {shown(alias)}, which is {shown(owner)} already"
                    )
                    self._problems.add(line, where, text)
                aliases.setdefault(alias, id)
        return aliases

    def _max_wait_ns(self, section: Section, models: int) -> int:
        """`maxWait`, with a warning where it is shorter than loading every model once is likely to take."""
        wait_ns = section.duration_ns("maxWait", 0)
        if 0 < wait_ns < models * LOAD_GUESS_NS:
            cycle = f"to load {models} models in turn takes about {show_duration(models * LOAD_GUESS_NS)}"
            section.warn("maxWait", f"{cycle}: shorter turns make all waits longer")
        return wait_ns

    def _check_name(self, name: str, line: int, path: str) -> bool:
        """Whether a model can be called this: printable, no blanks around it, no macro, not too long."""
        if (
            name
            and name == name.strip()
            and name.isprintable()
            and "${" not in name
            and len(name) <= CONFIG_NAME_CHARS
        ):
            return True
        text = f"expected a name of at most {CONFIG_NAME_CHARS} printable characters, without macros"
        self._problems.add(line, path, f"{text}, found {shown(name)}")
        return False

    def _durability(self, section: Section) -> Literal["process", "machine"]:
        choice = section.choice("durability", "process", ("process", "machine"))
        return cast(Literal["process", "machine"], choice)

    def _place(self, section: Section, key: str) -> Path | None:
        """A path; a relative one counts from the file's directory."""
        text = section.text(key)
        if "\0" in text or text.startswith("~"):
            section.wrong(key, "a path (${env.HOME} for the home directory)", section.node(key))
            return None
        return (self._path.parent / text).absolute() if text else None

    def _socket(self, section: Section) -> Path | None:
        path = self._place(section, "controlSocket")
        if path is not None and len(os.fsencode(path)) > SOCKET_PATH_BYTES:
            section.wrong(
                "controlSocket", f"a path of at most {SOCKET_PATH_BYTES} bytes", section.node("controlSocket")
            )
        return path

    def _devices(self, section: Section) -> dict[str, int | None]:
        devices: dict[str, int | None] = {}
        for name, (node, line, path) in section.members("devices").items():
            check_device(name, line, path, self._problems)
            devices[name] = None
            if isinstance(node, MappingNode):
                device = Section(node, path, self._problems)
                if device.node("budget") is not None:
                    devices[name] = device.size_bytes("budget", 0)
                device.finish()
            elif not (isinstance(node, Scalar) and node.value is None):
                text = f'expected a mapping such as {{budget: "12GiB"}}, found {describe(node)}'
                self._problems.add(node.line, path, text)
        return devices
