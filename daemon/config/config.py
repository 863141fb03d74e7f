"""A configuration that has been checked: what the daemon reads, and what the scheduler is told of it."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import msgspec

from daemon.config.capabilities import Capabilities
from daemon.config.commands import Command, ShardCommand, fill_path, option_text
from daemon.config.door import IGNORED_PATHS, exposure
from daemon.config.endpoint import Endpoint
from daemon.config.errors import ConfigError, Problem
from daemon.config.filters import FilterRules, Filters
from daemon.config.macros import fill
from daemon.config.peers import Peer
from daemon.config.peers import find as find_peer
from daemon.config.retention import Retention
from daemon.config.selectors import Profile, Selector
from daemon.config.shards import Shard, port_values
from daemon.config.values import Json
from daemon.gguf import Gguf
from daemon.ports import Launch
from events.catalogue import NEVER, ConfigView, DeviceView, Estimate, GroupView, MatrixView, ModelView, Option
from events.limits import (
    AGE_STEP_NS,
    HEADROOM_BYTES,
    HTTP_BODY_BYTES,
    LISTEN,
    LOAD_NS,
    PORT_COUNT,
    PORT_FIRST,
    QUEUE_MAX,
    SWAP_PATIENCE,
    UNLOAD_NS,
)

DIGEST_CHARS = 32
"""Of a digest's 64: 128 bits, which is more than enough to tell specs apart."""


SETTINGS = {
    "max_queue": "maxQueue",
    "max_loaded": "maxLoadedModels",
    "policy": "policy",
    "swap_patience": "swapPatience",
    "max_wait_ns": "maxWait",
    "age_step_ns": "ageStep",
    "prefetch": "prefetch",
    "preload": "hooks",
    "profile": "hooks",
    "groups": "groups",
    "matrix": "matrix",
    "devices": "devices",
    "headroom_bytes": "memoryHeadroom",
    "port_first": "startPort",
    "unload_ns": "unloadTimeout",
    "include_aliases": "includeAliasesInList",
    "insecure_listen": "insecureListen",
    "api_keys": "apiKeys",
    "hosts": "allowedHosts",
    "cors_origins": "cors",
    "body_bytes": "maxBody",
    "ignore_paths": "upstream",
    "selectors": "selectors",
    "profiles": "profiles",
    "peers": "peers",
    "listen": "listen",
    "control_socket": "controlSocket",
    "control_group": "controlGroup",
    "event_log": "eventLog",
    "durability": "durability",
    "retention": "retention",
}
"""The keys of a Config's fields at the top of the file."""

CONTEXT_OPTION = "num_ctx"
"""Ollama's name of the context's length."""


class SpecChanged(Exception):
    """A launch asks for a model, or an option, that this configuration does not have, or not so."""


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """One model. Words of `argv`, `env`, `stop_argv` and `check_path` still hold `${PORT}` and its like.

    `memory_bytes` per device, "" for "wherever there is room"; empty: unknown. Times in nanoseconds;
    `stall_ns`, `queue_ns`, `request_ns` and `max_lease_ns` 0: no limit; `keep_alive_ns` may be NEVER.
    `metadata` may hold `${PORT}`.
    """

    argv: tuple[str, ...]
    endpoint: Endpoint
    env: dict[str, str] = {}
    stop_argv: tuple[str, ...] = ()
    shards: tuple[Shard, ...] = ()
    """The further processes that form one runner with that of `argv`."""
    check_path: str = "/health"
    trust_probe: bool = False
    use_model_name: str = ""
    options: dict[str, Option] = {}
    slots: int = 1
    slots_given: bool = False
    """Whether the file, or the command in it, says so."""
    memory_bytes: dict[str, int] = {}
    estimate: Estimate | None = None
    """What its file says of the memory that it needs, once that has been read."""
    file: Gguf | None = None
    """What it says of the model itself."""
    missing: str = ""
    """The file that a llama-server is told to load, where that was not there when it was looked for."""
    keep_alive_ns: int = NEVER
    keep_alive_given: bool = False
    """Whether the configuration says so."""
    load_ns: int = LOAD_NS
    stall_ns: int = 0
    unload_ns: int = UNLOAD_NS
    queue_ns: int = 0
    request_ns: int = 0
    max_lease_ns: int = 0
    first_byte_ns: int = 0
    larger: str = ""
    instances_min: int = 1
    instances_max: int = 1
    concurrency_limit: int = 0
    priority: int = 0
    aliases: tuple[str, ...] = ()
    unlisted: bool = False
    name: str = ""
    description: str = ""
    metadata: dict[str, Json] = {}
    capabilities: Capabilities = Capabilities()
    send_loading_state: bool = False
    """Tell a client that waits for a load of it, in the reasoning of a streamed chat."""
    filters: FilterRules = FilterRules()

    def takes(self, option: str, value: Option) -> bool:
        """Whether a launch option exists and can have this value: its default's type, fit for a command."""
        default = self.options.get(option)
        return type(value) is type(default) and not (isinstance(value, str) and "\0" in value)

    def digest(self, key: bytes) -> str:
        """What fixes its processes (but for the values of options), so that a change of it shows."""
        spec = [self.argv, self.env, self.stop_argv, self.endpoint, self.check_path, self.trust_probe]
        if self.shards:
            spec.append(self.shards)
        encoded = msgspec.json.encode(spec, order="deterministic")
        return hmac.new(key, encoded, hashlib.sha256).hexdigest()[:DIGEST_CHARS]

    def view(self, key: bytes) -> ModelView:
        """What the scheduler knows of it."""
        return ModelView(
            digest=self.digest(key),
            slots=self.slots,
            memory_bytes=self.memory_bytes,
            keep_alive_ns=self.keep_alive_ns,
            options=self.options,
            lease=self.endpoint.lease,
            fixed_port=self.endpoint.fixed_port,
            load_ns=self.load_ns,
            stall_ns=self.stall_ns,
            shards=len(self.shards),
            unload_ns=self.unload_ns,
            concurrency_limit=self.concurrency_limit,
            queue_ns=self.queue_ns,
            request_ns=self.request_ns,
            max_lease_ns=self.max_lease_ns,
            first_byte_ns=self.first_byte_ns,
            larger=self.larger,
            at_least=CONTEXT_OPTION if isinstance(self.options.get(CONTEXT_OPTION), int) else "",
            instances_min=self.instances_min,
            instances_max=self.instances_max,
            priority=self.priority,
            estimate=self.estimate,
        )


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """A whole configuration. `devices`: the budget of each in bytes, None: whatever the machine reports."""

    file: Path
    models: dict[str, Model]
    aliases: dict[str, str] = {}
    listen: str = LISTEN
    insecure_listen: bool = False
    api_keys: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()
    body_bytes: int = HTTP_BODY_BYTES
    ignore_paths: tuple[str, ...] = IGNORED_PATHS
    """These seven: see Door."""
    control_socket: Path | None = None
    control_group: str = ""
    event_log: Path | None = None
    durability: Literal["process", "machine"] = "process"
    retention: Retention = Retention()
    max_queue: int = QUEUE_MAX
    max_loaded: int = 0
    policy: str = "balanced"
    prefetch: bool = False
    swap_patience: int = SWAP_PATIENCE
    age_step_ns: int = AGE_STEP_NS
    max_wait_ns: int = 0
    preload: tuple[str, ...] = ()
    """The ids of the models that are loaded at start, in their order."""
    profile: str = ""
    """The profile that a start and a reload use; "": whichever was in use."""
    groups: dict[str, GroupView] = {}
    matrix: MatrixView | None = None
    devices: dict[str, int | None] = {}
    headroom_bytes: int = HEADROOM_BYTES
    port_first: int = PORT_FIRST
    port_last: int = PORT_FIRST + PORT_COUNT - 1
    unload_ns: int = UNLOAD_NS
    include_aliases: bool = False
    selectors: dict[str, Selector] = {}
    profiles: dict[str, Profile] = {}
    peers: dict[str, Peer] = {}
    problems: tuple[Problem, ...] = ()
    lines: dict[str, int] = {}
    """Where in the file the keys of the top and of the models are, by their paths."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the user should know, one line each."""
        return tuple(problem.show(self.file) for problem in self.problems)

    def problem(self, path: str, text: str) -> Problem:
        """What is wrong with a key (`models.m.cmd`), or with something below one of the top."""
        return Problem(self.lines.get(path, self.lines.get(path.partition(".")[0], 0)), path, text)

    def check_exposure(self, host: str, *, insecure: bool) -> None:
        """Raises ConfigError where listening at a host would let in anybody, and nobody says that it may."""
        text = self.exposed(host)
        if text and not insecure:
            raise ConfigError(self.file, [self.problem("listen", text)])

    def exposed(self, host: str) -> str:
        """Why listening at a host would let in anybody, where the file does not say that it may; else ""."""
        return "" if self.insecure_listen else exposure(host, self.api_keys)

    def resolve(self, name: str) -> str | None:
        """The id of the model with this id or alias (both as they are written, case and all)."""
        return name if name in self.models else self.aliases.get(name)

    def peer(self, name: str) -> tuple[Peer, str] | None:
        """The peer that has the model of a name, and what it is called there; None: none, or it is served
        here."""
        return None if self.resolve(name) else find_peer(self.peers, name)

    def filters(self, name: str) -> Filters | None:
        """What is done to the body of a request for a model, by the id or alias that the request has; None:
        nothing."""
        id = self.resolve(name)
        if id is not None:
            return self.models[id].filters.of(name)
        found = self.peer(name)
        return found[0].filters.of(name) if found else None

    def view(self, key: bytes) -> ConfigView:
        """What the scheduler knows of it. Without `key` nobody can tell anything from the digests."""
        return ConfigView(
            models={id: model.view(key) for id, model in self.models.items()},
            devices={name: DeviceView(budget, name != "host") for name, budget in self.devices.items()},
            max_queue=self.max_queue,
            max_loaded=self.max_loaded,
            policy=self.policy,
            swap_patience=self.swap_patience,
            age_step_ns=self.age_step_ns,
            max_wait_ns=self.max_wait_ns,
            groups=self.groups,
            matrix=self.matrix,
            port_first=self.port_first,
            port_last=self.port_last,
            headroom_bytes=self.headroom_bytes,
            unload_ns=self.unload_ns,
        )

    def command(self, model: str, launch: Launch, socket_path: str) -> Command:
        """What starts a runner. Raises SpecChanged where the model or an option is not configured so."""
        spec = self.models.get(model)
        if spec is None:
            raise SpecChanged(f"{model} is not configured any more")
        for name, value in launch.options.items():
            if not spec.takes(name, value):
                raise SpecChanged(f"{model} has no launch option {name} that can have this value")
        if len(launch.shard_ports) != len(spec.shards):
            raise SpecChanged(f"{model} has not as many shards as it had")
        options = {**spec.options, **launch.options}
        values = {name: option_text(value) for name, value in options.items()}
        values |= {"PORT": str(launch.port), "SOCKET": socket_path, **port_values(launch.shard_ports)}
        env = {name: fill(text, values) for name, text in spec.env.items()}
        pairs = zip(spec.shards, launch.shard_ports, strict=True)
        return Command(
            argv=tuple(fill(word, values) for word in spec.argv),
            env=env,
            url=_url(spec.endpoint, launch.port, socket_path),
            prefix=spec.endpoint.prefix,
            check_path=fill_path(spec.check_path, values),
            model_name=spec.use_model_name,
            trust_probe=spec.trust_probe,
            stop_template=tuple(fill(word, values) for word in spec.stop_argv),
            shards=tuple(_shard(shard, port, values, env) for shard, port in pairs),
        )

    def metadata(self, model: str, port: int | None = None) -> Mapping[str, Json]:
        """A model's metadata, as lists of models show it; `${PORT}` is null while it has none."""
        return {key: _fill_port(value, port) for key, value in self.models[model].metadata.items()}


def _shard(shard: Shard, port: int, values: Mapping[str, str], env: Mapping[str, str]) -> ShardCommand:
    """A shard's command: with its own port, and the environment of the model where it has none of its own."""
    own = {**values, "PORT": str(port)}
    return ShardCommand(
        argv=tuple(fill(word, own) for word in shard.argv),
        env={**env, **{name: fill(text, own) for name, text in shard.env.items()}},
        url="" if shard.check_path is None else f"http://127.0.0.1:{port}",
        check_path=fill_path(shard.check_path or "", own),
    )


def _url(endpoint: Endpoint, port: int, socket_path: str) -> str:
    if endpoint.socket:
        return "unix:" + fill(endpoint.socket, {"SOCKET": socket_path})
    return f"http://{endpoint.host}:{endpoint.port or port}"


def _fill_port(value: Json, port: int | None) -> Json:
    if isinstance(value, dict):
        return {key: _fill_port(item, port) for key, item in value.items()}
    if isinstance(value, list):
        return [_fill_port(item, port) for item in value]
    if value == "${PORT}":
        return port
    return fill(value, {"PORT": "null" if port is None else str(port)}) if isinstance(value, str) else value
