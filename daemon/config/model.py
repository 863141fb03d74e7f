"""One entry under `models`: its keys, its macros, its command."""

from __future__ import annotations

import re
from collections.abc import Iterable

import msgspec

from daemon.config.capabilities import read_capabilities
from daemon.config.commands import embeds_only, parallel_flag, starts_container, strip_comments, usual_slots
from daemon.config.config import CONTEXT_OPTION, Model
from daemon.config.endpoint import Endpoint, read_endpoint
from daemon.config.errors import Problems, join_path, shown
from daemon.config.fields import A_SIZE, Section, describe
from daemon.config.filters import FilterRules, read_filters
from daemon.config.macros import MACRO_NAME, Expander, Scope, is_reserved, used
from daemon.config.shards import (
    Shard,
    check_path_of,
    port_names,
    read_check_path,
    read_command,
    shard_sections,
    words_of,
)
from daemon.config.timeouts import Timeouts, read_timeouts
from daemon.config.units import size_bytes
from daemon.config.values import plain
from daemon.config.yaml_source import Mapping, Node, Scalar, Sequence
from events.catalogue import NEVER, Option
from events.limits import (
    CONFIG_INTEGER_MAX,
    CONFIG_NAME_CHARS,
    INSTANCES_MAX,
    LOAD_STALL_LEAST_S,
    PRIORITY_MAX,
    REQUESTS_MAX,
    SLOTS_MAX,
    S,
)

_DEVICE = re.compile(r"host|gpu(0|[1-9][0-9]{0,2})")
_ENV_ENTRY = re.compile(r"([^=\0]+)=([^\0]*)")
_OWN_ENV = "RUNNERD_"
A_COMMAND = "the command that starts the runner"
HARMLESS = {
    "compat": "websockets are not relayed",
}


class Defaults(msgspec.Struct, frozen=True):
    """What the top of the file says for every model that says nothing itself."""

    keep_alive_ns: int
    keep_alive_given: bool
    load_ns: int
    stall_ns: int
    unload_ns: int
    queue_ns: int
    request_ns: int
    max_lease_ns: int
    first_byte_ns: int
    send_loading_state: bool


class ModelReader:
    """Reads models, all with the same defaults and global macros (not expanded: a model may replace some)."""

    def __init__(self, macros: Scope, defaults: Defaults, expander: Expander, problems: Problems) -> None:
        self._macros = macros
        self._defaults = defaults
        self._expander = expander
        self._problems = problems

    def read(self, id: str, node: Node, path: str) -> Model | None:
        """The model; None, or one with defaults in the wrong places, once problems have been reported."""
        if not isinstance(node, Mapping):
            text = f"expected a mapping with the key `cmd`, found {describe(node)}"
            self._problems.add(node.line, path, text)
            return None
        section = Section(self._expanded(id, node, path), path, self._problems)
        section.node("macros")
        options = self._options(section)
        argv, stop_argv = read_command(section, "cmd", A_COMMAND), read_command(section, "cmdStop", "")
        env, shards = self._env(section), self._shards(section)
        known = used(" ".join([*argv, *env.values()]))
        if argv:
            everywhere = known.union(*map(words_of, shards))
            self._check_options_used(section, options, everywhere)
        limit = section.integer("concurrencyLimit", 0, 0, REQUESTS_MAX)
        load_ns, unload_ns = self._defaults.load_ns, self._defaults.unload_ns
        least, most = self._instances(section)
        endpoint = read_endpoint(section, known if argv else None)
        filters = read_filters(section, self._problems)
        self._check_instances(section, endpoint, most)
        model = Model(
            argv=argv,
            endpoint=endpoint,
            env=env,
            stop_argv=stop_argv,
            shards=shards,
            check_path=read_check_path(section),
            trust_probe=section.flag("trustProbe", _is_elsewhere(argv, shards, endpoint)),
            use_model_name=section.text("useModelName", max_chars=CONFIG_NAME_CHARS),
            options=options,
            slots=section.integer("slots", _slots(argv, limit), 1, SLOTS_MAX),
            slots_given=section.node("slots") is not None or bool(parallel_flag(argv)),
            memory_bytes=self._memory(section),
            keep_alive_ns=self._keep_alive_ns(section),
            keep_alive_given=self._keep_alive_given(section),
            load_ns=section.duration_ns("healthCheckTimeout", load_ns) or load_ns,
            stall_ns=read_stall_ns(section, self._defaults.stall_ns),
            unload_ns=section.duration_ns("unloadTimeout", unload_ns) or unload_ns,
            queue_ns=section.duration_ns("queueTimeout", self._defaults.queue_ns),
            request_ns=section.duration_ns("requestTimeout", self._defaults.request_ns),
            max_lease_ns=section.duration_ns("maxLease", self._defaults.max_lease_ns),
            first_byte_ns=section.duration_ns("firstByteTimeout", self._header_ns(section)),
            larger=self._larger(section, options),
            instances_min=least,
            instances_max=most,
            concurrency_limit=limit,
            priority=section.integer("priority", 0, -PRIORITY_MAX, PRIORITY_MAX),
            aliases=_names(id, section, filters),
            filters=filters,
            capabilities=read_capabilities(section, self._problems),
            send_loading_state=section.flag("sendLoadingState", self._defaults.send_loading_state),
            unlisted=section.flag("unlisted"),
            name=section.text("name"),
            description=section.text("description"),
            metadata={key: plain(value) for key, (value, _, _) in section.members("metadata").items()},
        )
        _warn_of_distrust(section, model)
        section.ignore(HARMLESS)
        section.finish()
        return model

    def _header_ns(self, section: Section) -> int:
        """What `firstByteTimeout` is where it is not given: `timeouts.responseHeader`, else the top's."""
        default = Timeouts(first_byte_ns=self._defaults.first_byte_ns)
        why = "connections to runners are local, and nothing of them is configured"
        return read_timeouts(section, default, ("responseHeader",), why).first_byte_ns

    def _expanded(self, id: str, node: Mapping, path: str) -> Mapping:
        """The model with every macro replaced but those of its start."""
        own = self._expander.define(node.items.get("macros"), join_path(path, "macros"))
        definitions = {"MODEL_ID": Scalar(node.line, id, id)} | self._macros | own
        scope = self._expander.scope(definitions, join_path(path, "macros"))
        options = self._option_names(node, path, scope) | port_names(node.items.get("shards"))
        start = {"PORT", "SOCKET"} | options
        later = {
            "cmd": start, "cmdStop": start | {"PID"}, "env": start, "checkEndpoint": start,
            "shards": {"PORT"} | options,
            "proxy": {"PORT", "SOCKET"}, "metadata": {"PORT"},
        }  # fmt: skip
        items = {
            key: self._expander.expand(_bare(key, value), join_path(path, key), scope, later.get(key, ()))
            for key, value in node.items.items()
            if key != "macros"
        }
        if "filters" in items:
            items["filters"] = self._names_expanded(items["filters"], join_path(path, "filters"), scope)
        return Mapping(node.line, items, node.key_lines)

    def _names_expanded(self, filters: Node, path: str, scope: Scope) -> Node:
        """Filters with the macros replaced in the names of `setParamsByID`: the only keys that have any."""
        by_id = filters.items.get("setParamsByID") if isinstance(filters, Mapping) else None
        if not isinstance(filters, Mapping) or not isinstance(by_id, Mapping):
            return filters
        where = join_path(path, "setParamsByID")
        items: dict[str, Node] = {}
        lines: dict[str, int] = {}
        for key, node in by_id.items.items():
            line = by_id.key_lines[key]
            name = self._expander.expand(Scalar(line, key, key), join_path(where, key), scope)
            assert isinstance(name, Scalar)
            if name.text in items:
                text = f"expected each name once, found it again (first on line {lines[name.text]})"
                self._problems.add(line, join_path(where, key), text)
            items[name.text], lines[name.text] = node, line
        changed = {**filters.items, "setParamsByID": Mapping(by_id.line, items, lines, by_id.size)}
        return Mapping(filters.line, changed, filters.key_lines, filters.size)

    def _option_names(self, node: Mapping, path: str, scope: Scope) -> set[str]:
        """The launch options, which `cmd` uses like macros; so none may be a macro as well."""
        options = node.items.get("options")
        if not isinstance(options, Mapping):
            return set()
        for name in options.items:
            if name in scope:
                where = join_path(join_path(path, "options"), name)
                text = "expected a name that is not also a macro's"
                self._problems.add(options.key_lines[name], where, text)
        return set(options.items)

    def _shards(self, section: Section) -> tuple[Shard, ...]:
        shards = []
        for inner in shard_sections(section, self._problems):
            shard = Shard(read_command(inner, "cmd", "the command that starts this shard"), self._env(inner))
            path = check_path_of(inner, "PORT" in words_of(shard))
            shards.append(msgspec.structs.replace(shard, check_path=path))
            inner.finish()
        return tuple(shards)

    def _env(self, section: Section) -> dict[str, str]:
        env: dict[str, str] = {}
        for entry, path in section.texts("env"):
            match = _ENV_ENTRY.fullmatch(entry.text)
            if match is None:
                self._problems.add(entry.line, path, "expected NAME=value, found something else")
            elif match[1].startswith(_OWN_ENV):
                self._problems.add(entry.line, path, f"expected another name: {_OWN_ENV}* is runnerd's own")
            else:
                env[match[1]] = match[2]
        return env

    def _options(self, section: Section) -> dict[str, Option]:
        """Launch options and their defaults: text, whole numbers and booleans."""
        options: dict[str, Option] = {}
        for name, (node, line, path) in section.members("options").items():
            value = node.value if isinstance(node, Scalar) else None
            if not MACRO_NAME.fullmatch(name) or is_reserved(name) or len(name) > CONFIG_NAME_CHARS:
                self._problems.add(line, path, "expected an option's name: letters, digits, `_` and `-`")
            elif value is None or isinstance(value, float) or "\0" in str(value):
                text = f"expected a default: text, a whole number, true or false; found {describe(node)}"
                self._problems.add(node.line, path, text)
            elif isinstance(value, int) and abs(value) > CONFIG_INTEGER_MAX:
                text = f"expected a whole number up to {CONFIG_INTEGER_MAX}, found {describe(node)}"
                self._problems.add(node.line, path, text)
            else:
                options[name] = value
        return options

    def _check_options_used(self, section: Section, options: dict[str, Option], known: set[str]) -> None:
        """An option that the command does not use could be asked for, and would be served wrongly."""
        for name, (_, line, path) in section.members("options").items():
            if name in options and name not in known:
                self._problems.add(line, path, f"expected ${{{name}}} in `cmd` or `env`, which do not use it")

    def _larger(self, section: Section, options: dict[str, Option]) -> str:
        """`acceptLargerContext`: a runner with a larger context serves a request for a smaller one."""
        if not section.flag("acceptLargerContext"):
            return ""
        if not isinstance(options.get(CONTEXT_OPTION), int):
            text = (
                f"expected {CONTEXT_OPTION} among `options`, with a number: it is the context that is meant"
            )
            section.report("acceptLargerContext", text)
        return CONTEXT_OPTION

    def _instances(self, section: Section) -> tuple[int, int]:
        """`instances`: a number, or the least and the most of them."""
        found = section.node("instances")
        if not isinstance(found, Mapping):
            count = section.integer("instances", 1, 1, INSTANCES_MAX)
            return count, count
        inner = Section(found, join_path(section.path, "instances"), self._problems)
        least = inner.integer("min", 1, 1, INSTANCES_MAX)
        most = inner.integer("max", least, least, INSTANCES_MAX)
        inner.finish()
        return least, most

    def _check_instances(self, section: Section, endpoint: Endpoint, most: int) -> None:
        if most > 1 and endpoint.fixed_port:
            section.report("instances", f"expected 1, for all would have the port {endpoint.fixed_port}")

    def _memory(self, section: Section) -> dict[str, int]:
        """Bytes per device; "" for wherever there is room."""
        found = section.node("memory")
        if found is None:
            return {}
        if isinstance(found, Sequence):
            section.wrong("memory", f"{A_SIZE}, or a mapping of devices to sizes", found)
            return {}
        if isinstance(found, Scalar):
            return {"": section.size_bytes("memory", 0)}
        sizes: dict[str, int] = {}
        for device, (node, line, path) in section.members("memory").items():
            check_device(device, line, path, self._problems)
            size = size_bytes(node.value) if isinstance(node, Scalar) else None
            if size is None:
                self._problems.add(node.line, path, f"expected {A_SIZE}, found {describe(node)}")
            sizes[device] = size or 0
        return sizes

    def _keep_alive_ns(self, section: Section) -> int:
        """`ttl`: 0 never, -1 as `globalTTL` says."""
        found = section.scalar("ttl", "a duration")
        if found is None or found.value == -1:
            return self._defaults.keep_alive_ns
        return section.duration_ns("ttl", 0) or NEVER

    def _keep_alive_given(self, section: Section) -> bool:
        """Whether the file says how long this model stays loaded."""
        found = section.node("ttl")
        own = found is not None and not (isinstance(found, Scalar) and found.value == -1)
        return own or self._defaults.keep_alive_given


def read_stall_ns(section: Section, default: int) -> int:
    """`loadStallTimeout`; 0: none."""
    stall_ns = section.duration_ns("loadStallTimeout", default)
    if section.node("loadStallTimeout") is not None and 0 < stall_ns < LOAD_STALL_LEAST_S * S:
        section.report("loadStallTimeout", f"expected at least {LOAD_STALL_LEAST_S} s, or 0 for no limit")
    return stall_ns


def check_device(name: str, line: int, path: str, problems: Problems) -> None:
    """Report a device that cannot be one."""
    if not _DEVICE.fullmatch(name):
        problems.add(line, path, f'expected "host", "gpu0", "gpu1" or the like, found {shown(name)}')


def _slots(argv: tuple[str, ...], concurrency_limit: int) -> int:
    """What `slots` is where the file does not say: what the command says, else 1 for a server that generates
    no text, else `concurrencyLimit`, else what is usual for such a server."""
    otherwise = 1 if embeds_only(argv) else concurrency_limit or usual_slots(argv)
    return min(parallel_flag(argv) or otherwise, SLOTS_MAX)


def _is_elsewhere(argv: tuple[str, ...], shards: Iterable[Shard], endpoint: Endpoint) -> bool:
    """Whether it cannot be a process of ours that listens: it is a container's, or another machine's."""
    asked = [shard.argv for shard in shards if shard.check_path is not None]
    if not endpoint.socket:
        asked.append(argv)
    return not endpoint.is_here or any(map(starts_container, asked))


def _warn_of_distrust(section: Section, model: Model) -> None:
    """Whose probe is not believed never becomes ready where nobody of ours listens."""
    if not model.trust_probe and _is_elsewhere(model.argv, model.shards, model.endpoint):
        text = (
            "who listens is no process of the command's (a container, another host): it never becomes ready"
        )
        section.warn("trustProbe", text)


def _names(id: str, section: Section, filters: FilterRules) -> tuple[str, ...]:
    """A model's other names: its aliases, and the names that its filters know."""
    given = [alias.text for alias, _ in section.texts("aliases")]
    return (*given, *(name for name in filters.by_name if name != id and name not in given))


def _bare(key: str, value: Node) -> Node:
    """A command without its comments: a macro in a comment is not expanded."""
    if key == "shards" and isinstance(value, Sequence):
        items = [
            Mapping(item.line, {k: _bare(k, v) for k, v in item.items.items()}, item.key_lines)
            if isinstance(item, Mapping)
            else _bare("cmd", item)
            for item in value.items
        ]
        return Sequence(value.line, items, value.size)
    if key in ("cmd", "cmdStop") and isinstance(value, Scalar) and isinstance(value.value, str):
        text = strip_comments(value.value)
        return Scalar(value.line, text, text, value.plain, value.secret)
    return value
