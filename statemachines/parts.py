"""What the state is made of: runners, requests, demands, operations, and what is remembered of models. Plain
data. Times are scheduler time in ns, sizes are bytes.
"""

from __future__ import annotations

from collections import OrderedDict

import msgspec

from events.catalogue import NEVER, Option, Process
from statemachines.request import RequestState
from statemachines.runner import RunnerState
from statemachines.tables import Line


class Runner(msgspec.Struct):
    """One incarnation of a model's process(es)."""

    id: str
    model: str
    digest: str
    options: dict[str, Option]
    reserved_bytes: dict[str, int]
    slots: int
    keep_alive_ns: int
    load_ns: int
    port: int
    socket: bool
    alone: bool
    load_t: int
    shard_ports: tuple[int, ...] = ()
    """Those of its further processes, shard 1 and on."""
    stall_ns: int = 0
    """How long its load may show no progress; 0: there is no such limit."""
    larger: str = ""
    """The launch option of which it may have more than a request asks for."""
    less: str = ""
    """The launch option of which it has less than who leaves that open may expect."""
    kept: bool = False
    """A request has said how long it is to stay."""
    wanted: bool = False
    """An operator asked for it: it stays though nobody waits for it."""
    state: RunnerState = RunnerState.loading
    verdict: str = ""
    """How it will end, once that is settled: "unloaded" or "failed"."""
    reason: str = ""
    """Why it drains, stops or ended."""
    ready_t: int = NEVER
    idle_t: int = NEVER
    """Since when no slot is in use; NEVER while one is, or before it is ready."""
    drain_t: int = NEVER
    drain_due: int = 0
    """When a drain may cut the requests that still run; 0: never."""
    held: dict[str, int] = {}
    """Slots in use: request id to the time of dispatch. A request may have ended while its slot is held."""
    served: int = 0
    """Requests completed."""
    cancelled: bool = False
    """An operator unloads it and cancels its requests: one that is cut is not tried again."""
    suspect: bool = False
    probe_due: int = 0
    """When a suspicion, unless it is lifted, becomes a failure."""
    silent_t: int = NEVER
    """Since when it has left requests unanswered, moved no byte and failed its probes."""
    stuck: bool = False
    processes: dict[int, Process] = {}
    """Those that are there, by shard."""
    ended: dict[int, None] = {}
    """The shards of those that were, where others are left: it is broken, and must go."""
    exited: bool = False
    """No process of it is left."""
    status: int | None = None
    """How its first process ended, where that is known."""
    short: bool = False
    """Its load ran out of memory."""
    exit_t: int = NEVER
    exit_free_bytes: dict[str, int] = {}
    """What was free, when it exited, on the GPUs that it held memory of."""
    lease_tries: int = 1
    used_bytes: dict[str, int] = {}
    peak_bytes: dict[str, int] = {}
    free_bytes: dict[str, int] = {}
    """What was free of the GPUs when it was loaded, if there was no other runner, nor has been one since."""
    output: str = ""
    """Its last lines, if it never became ready."""

    @property
    def live(self) -> bool:
        """It serves, or will: loading or ready."""
        return self.state is RunnerState.loading or self.state is RunnerState.ready

    @property
    def ports(self) -> tuple[int, ...]:
        """Every port that is leased to it."""
        return (self.port, *self.shard_ports) if self.port else self.shard_ports

    @property
    def whole(self) -> bool:
        """Every process of it is there. One that has no shards is not asked: its probe's answer is enough."""
        return not self.shard_ports or len(self.processes) > len(self.shard_ports)

    def coming_bytes(self, device: str) -> int:
        """What a runner that loads has yet to take of what it holds."""
        return max(0, self.hold_bytes(device) - self.used_bytes.get(device, 0))

    def hold_bytes(self, device: str) -> int:
        """What the ledger counts for it on a device: the larger of reserved and measured peak."""
        return max(self.reserved_bytes.get(device, 0), self.peak_bytes.get(device, 0))

    @property
    def holds(self) -> dict[str, int]:
        """What the ledger counts for it on each device."""
        return {device: self.hold_bytes(device) for device in self.reserved_bytes | self.peak_bytes}


class Request(msgspec.Struct):
    """A request from its arrival until it has ended *and* its slot is back."""

    id: str
    seq: int
    model: str
    demand: str
    kind: str
    options: dict[str, Option]
    arrived_t: int
    priority: int
    keep_alive_ns: int | None
    caller: str
    state: RequestState = RequestState.arrived
    runner: str = ""
    """The runner whose slot it holds, or held last."""
    slot: bool = False
    attempt: int = 0
    token_digest: str = ""
    """Of a lease: what its holder's token is told by."""
    revoked: str = ""
    """Why a lease's holder was told to let go."""
    queued_t: int = NEVER
    """When it was queued last."""
    loads: int = 0
    """How many loads had been decided by then."""
    keep_alive_else_ns: int | None = None


class Demand(msgspec.Struct):
    """Those who want one launch spec: model, the launch options that they fixed, priority. A queue each."""

    key: str
    model: str
    options: dict[str, Option]
    priority: int
    excluded: str = ""
    """A runner that must not serve it: the one that failed its request before."""
    waiting: Line = msgspec.field(default_factory=Line)
    """Queued requests, oldest first."""
    operations: OrderedDict[str, None] = msgspec.field(default_factory=OrderedDict)
    """Operators' loads that wait for a runner."""
    servers: int = 0
    """Live runners that satisfy it. At 0 it starves: it needs a load."""
    where: tuple[str, ...] = ()
    """The devices that its model is configured for; none where that is open until it is loaded."""
    turn_due: int = NEVER
    """When it is looked at again: the busy runner in its way has had its quantum, or memory may be back."""
    turn_of: str = ""
    """The runner whose turn it waited for last."""
    short_t: int = NEVER
    """Since when it has been waiting for memory that other programs hold."""
    bound_t: int = NEVER
    """From when on the bound of its waits counts: a runner that served it ceased to, or the configuration
    changed."""
    bound_loads: int = 0
    """How many loads had been decided by then."""


class Operation(msgspec.Struct):
    """An operator's load or unload that has no answer yet."""

    id: str
    kind: str
    model: str
    asked_t: int
    demand: str = ""
    runners: OrderedDict[str, None] = msgspec.field(default_factory=OrderedDict)
    """The runners whose end an unload waits for."""
    preload: bool = False
    """It is the configuration that wants it loaded."""


class Cooling(msgspec.Struct):
    """A model whose last load failed."""

    runner: str
    failures: int
    until_t: int
    message: str


class Claim(msgspec.Struct):
    """The room that is being made for one demand."""

    demand: str
    need_bytes: dict[str, int]
    devices: tuple[str, ...]
    """Where it gathers room: its own until it ends."""
    victims: tuple[str, ...]
    whole: bool
    """All devices are."""
