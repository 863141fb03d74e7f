"""What events are made of: the values inside facts and decisions, under the catalogue's rules."""

from __future__ import annotations

from typing import Literal

import msgspec

NEVER = -1
"""A keep-alive that never ends, where a duration in nanoseconds is expected."""

AUTO = -1
"""A number of layers on GPUs that is left to the server: as many as fit."""

Option = int | str | bool
"""The value of a launch option (`num_ctx`, an adapter's path). Floats are refused at the edge."""


class Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, gc=False):
    """A value inside an event."""


class Process(Part, frozen=True, gc=False):
    """A process identity: never by pid alone. `start_time` is field 22 of /proc/PID/stat, in clock ticks."""

    runner: str
    shard: int
    boot_id: str
    pid: int
    start_time: int


class DeviceView(Part, frozen=True, gc=False):
    """A device of the configuration. `budget_bytes` None: whatever the machine reports."""

    budget_bytes: int | None = None
    gpu: bool = False


class Estimate(Part, frozen=True, gc=False):
    """What a model's file says of the memory that it needs: `weights_bytes + buffers_bytes`, and
    `context_bytes` for each token of its context."""

    weights_bytes: int
    buffers_bytes: int = 0
    context_bytes: int = 0
    context: str = ""
    """The launch option that is the context; "": the command fixes it."""
    context_tokens: int = 0
    """The context that the command fixes, for all slots together; 0: left to the server, which takes what it
    was trained for, or what there is room for."""
    trained_context: int = 0
    vision: bool = False
    layers: int = 0
    gpu: str = ""
    """The launch option that says how many layers go to a GPU; "": the command fixes it."""
    gpu_layers: int = AUTO
    """How many the command puts there. 0: none, all is in host memory."""


class ModelView(Part, frozen=True, gc=False):
    """What the scheduler knows of a model's configuration; commands and environments stay in the process."""

    digest: str
    slots: int = 1
    memory_bytes: dict[str, int] = {}
    """Configured footprint per device ("": whichever device serves). Empty: what the last load took, else
    the estimate; with neither it is loaded alone."""
    keep_alive_ns: int = NEVER
    options: dict[str, Option] = {}
    """Launch options and their defaults. An option that is not here cannot be asked for."""
    lease: Literal["port", "socket", "none"] = "port"
    fixed_port: int = 0
    """A port that the configuration fixes (0: leased from the range)."""
    load_ns: int = 120_000_000_000
    stall_ns: int = 0
    """How long a load may show no progress (`loadStallTimeout`); 0: as long as the load may take."""
    shards: int = 0
    """Processes of one runner beside its first, each with a leased port."""
    unload_ns: int = 30_000_000_000
    """How long a drain for unload, reload or stop may last (`unloadTimeout`)."""
    concurrency_limit: int = 0
    queue_ns: int = 0
    """How long a request may queue (`queueTimeout`); 0: no limit."""
    request_ns: int = 0
    """How long a request may take in all (`requestTimeout`); 0: no limit."""
    max_lease_ns: int = 0
    """How long a client may hold a slot by itself (`maxLease`); 0: for as long as nobody waits for it."""
    first_byte_ns: int = 0
    """How long its runner may take until the first byte of an answer (`firstByteTimeout`); 0: no limit."""
    priority: int = 0
    larger: str = ""
    """The launch option, a number, of which a runner that has more than is asked for serves as well."""
    at_least: str = ""
    """The launch option, a number, of which a request that leaves it open takes no less than the default."""
    instances_min: int = 1
    """Runners of one launch spec that are loaded as soon as one is, if they fit."""
    instances_max: int = 1
    """Runners of one launch spec that there may be at once: more where a queue and free memory justify it."""
    estimate: Estimate | None = None
    """None: its command names no file, or nothing could be learned from it."""


class GroupView(Part, frozen=True, gc=False):
    """A group of models, as llama-swap has them."""

    members: tuple[str, ...]
    swap: bool = True
    """One member at a time."""
    exclusive: bool = True
    """When a member is loaded, the other groups' go."""
    persistent: bool = False
    """Other groups' loads evict none of its members."""


class MatrixView(Part, frozen=True, gc=False):
    """The sets of models that may be loaded together, as llama-swap's matrix has them. Each is an expression
    in postfix form: `=model`, `+set`, and `&` (together) or `|` (either) of the two before it."""

    sets: dict[str, tuple[str, ...]] = {}
    evict_costs: dict[str, int] = {}
    """What it costs to lose a model; 1 for those that are not here."""


class ConfigView(Part, frozen=True, gc=False):
    """The scheduling view of a configuration: no command, environment or key, which may hold secrets."""

    models: dict[str, ModelView] = {}
    devices: dict[str, DeviceView] = {}
    max_queue: int = 512
    max_loaded: int = 0
    """Runners loaded at once; 0: automatic."""
    port_first: int = 5800
    port_last: int = 6799
    headroom_bytes: int = 0
    unload_ns: int = 30_000_000_000
    """As a model's, for runners whose model is no longer configured."""
    policy: str = "balanced"
    swap_patience: int = 4
    """α: how many times what a swap costs a runner may keep its place while others wait (`balanced`)."""
    age_step_ns: int = 60_000_000_000
    """A waiter's priority rises by one for each of these."""
    max_wait_ns: int = 0
    """Whoever has waited for so long has his turn, whatever is left of a quantum (`balanced`); 0: off."""
    groups: dict[str, GroupView] = {}
    matrix: MatrixView | None = None


class Reading(Part, frozen=True, gc=False):
    """What a device reports. `reliable` False where its free memory cannot be trusted."""

    total_bytes: int
    free_bytes: int
    reliable: bool = True


class Considered(Part, frozen=True, gc=False):
    """One alternative that a decision weighed, and what became of it."""

    subject: str
    verdict: str
    score: tuple[int, ...] = ()
