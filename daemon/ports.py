"""The seams of the daemon: what the driver asks of its surroundings, and what they may ask of it.

One driver owns the state. Everything else hands it facts (`Driver.submit`) and carries out the effects that
it derives from durable events. All of this runs in one trio thread; methods that are not `async` never
block, and no method is called from inside `Scheduler.step`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from daemon.config.filters import Filters
from daemon.config.selectors import Profile
from daemon.gguf import Gguf
from daemon.readiness import Unready
from events.catalogue import Event, Fact, MemoryMeasured, Option, Process, RequestArrived, UpstreamEnded
from events.envelope import Record
from events.limits import HTTP_BODY_BYTES
from statemachines.state import State

if TYPE_CHECKING:  # the log's tools do not wait for the store
    from daemon.figures import Figures


class LogBlocked(Exception):
    """The log cannot be written now: nothing became a fact. Answer 503 with `str(error)` and Retry-After."""


class Launch(msgspec.Struct, frozen=True):
    """One runner to be started: what the log decided, filled into the command by the configuration."""

    runner: str
    model: str
    digest: str
    options: Mapping[str, Option]
    port: int
    socket: bool
    shard_ports: tuple[int, ...] = ()
    """The ports of its further processes, shard 1 and on."""
    stall_ns: int = 0
    """If it is to be reported that the load gets on: how long it may not."""
    ready: bool = False
    """It has been found ready already: one that is adopted need not be found so once more."""


class Address(msgspec.Struct, frozen=True):
    """Where a ready runner answers: `http://127.0.0.1:5800` or `unix:/run/runnerd/r17.sock`.

    `prefix` is put before the request's path ("" mostly). `model_name` replaces the body's "model" where
    the configuration says `useModelName`.
    """

    runner: str
    url: str
    prefix: str = ""
    model_name: str = ""


class Dispatched(msgspec.Struct, frozen=True):
    """The request has a slot of a ready runner."""

    address: Address
    attempt: int
    first_byte_s: float = 0.0
    """How long its runner may take until the first byte of an answer; 0: as long as it likes."""


class Revoked(msgspec.Struct, frozen=True):
    """The holder of a lease is to let go of it. `until_t`: scheduler time, ns."""

    reason: str
    until_t: int


class Ended(msgspec.Struct, frozen=True):
    """The request has ended without (or, while it was being relayed, before) a whole answer.

    kind: the decision's type ("request.rejected", "request.failed", …). reason: its reason, a stable word.
    message: one sentence for the client; the runner's last lines too, where it never became ready and the
    client is local.
    """

    kind: str
    reason: str
    message: str
    status: int
    retry_after_s: int = 0
    position: int = 0
    """Where a full queue has refused it: what its place in it would have been."""


class Ticket(Protocol):
    """One request's way through the scheduler, as its connection sees it."""

    request: str
    """Its id, `q<seq>`."""
    on_end: Callable[[Ended], None] | None
    """Called when the request ends while it is being relayed (cancelled, timed out): close the upstream."""
    on_cut: Callable[[str], None] | None
    """Called when its runner has to stop, with the reason: close the upstream. It may be queued again."""

    async def turn(self) -> Dispatched | Ended:
        """Wait for the dispatch or the end. Call it again after an exchange that ended incomplete with
        nothing sent to the client: the request may have been queued again."""
        ...


class Desk(Protocol):
    """What the front door needs of the driver."""

    @property
    def state(self) -> State:
        """The folded state, to read (never to change)."""
        ...

    def arrive(self, arrival: RequestArrived) -> Ticket:
        """Submit an arrival. Raises LogBlocked; then nothing became a fact."""
        ...

    def gone(self, ticket: Ticket) -> None:
        """The client went away, queued or running. Its exchange, if any, still owes its `ended`."""
        ...

    def ended(self, fact: UpstreamEnded) -> None:
        """Report the end of an upstream exchange: exactly once for each Dispatched. Not awaited."""
        ...


class Control(Desk, Protocol):
    """What the control socket, and what is answered here, need of the driver."""

    def unready(self) -> Sequence[Unready]:
        """Why requests are not served as promised now; empty: they are."""
        ...

    def figures(self) -> Figures:
        """What metrics are made of."""
        ...

    def now(self) -> int:
        """Scheduler time, ns."""
        ...

    def submit(self, fact: Fact) -> Sequence[Event]:
        """Number, fold and append a fact; returns its step's events, which are not durable yet."""
        ...

    async def durable(self, seq: int) -> None:
        """Wait until the event `seq` is durable."""
        ...

    @property
    def log_blocked(self) -> str:
        """Why the log cannot be written now; "" while it can."""
        ...

    async def operation(self, fact: Fact) -> Ended | None:
        """Submit an operator's fact and wait for its durable `operation.ended`; None: done as asked."""
        ...

    def address(self, runner: str) -> Address:
        """Where a runner answers. Raises KeyError for one that is not looked after."""
        ...

    def watch(self, after_seq: int, *, follow: bool) -> AsyncIterator[Record]:
        """Every durable event after `after_seq`, in order and without a gap; then, with `follow`, as they
        come. Raises CursorPruned where `after_seq` is no longer in the log."""
        ...


class Machinery(Protocol):
    """What carries out effects on processes: idempotent, and serial for each runner.

    Its methods return at once; what comes of them arrives as facts: process.spawned, spawn.failed,
    lease.refused, process.exited, load.progressed, probe.answered.
    """

    def ensure(self, launch: Launch) -> None:
        """Fork the runner's gated process(es) and report each; it runs nothing until `release`."""
        ...

    def release(self, process: Process) -> None:
        """`process.spawned` is durable: open the gate (that of a runner's first process when its shards are
        up), then look for readiness until ready or gone."""
        ...

    def stop(self, runner: str) -> None:
        """Stop command or signal, once; also for a runner whose gate is still shut."""
        ...

    def kill(self, runner: str) -> None:
        """SIGKILL every process of the runner: its group, and whatever carries its marker."""
        ...

    def probe(self, runner: str, reason: str) -> None:
        """One health probe now, answered by one probe.answered within PROBE_MS."""
        ...

    def address(self, runner: str) -> Address:
        """Where the runner answers."""
        ...

    def forget(self, runner: str) -> None:
        """The runner is terminal: close and remove what was kept for it."""
        ...

    async def identify(self, recorded: Sequence[tuple[Process, Launch]]) -> Sequence[Process]:
        """At start: which recorded processes are alive, by identity. Marked processes that the log does not
        know are ended. The survivors are watched (and probed) from here on."""
        ...

    def tail(self, runner: str, lines: int) -> list[str]:
        """The last lines of the runner's output."""
        ...

    def outputs(self) -> Sequence[Output]:
        """What runners print: first the last one of each model that has ended lately, then those that are."""
        ...


class Output(msgspec.Struct, frozen=True):
    """The file that one process of a runner's writes to. `name`: "r7", or "r7.1" for its shard 1."""

    model: str
    name: str
    path: Path
    ended: bool = False


class Meter(Protocol):
    """What measures memory."""

    async def measure(self, processes: Mapping[str, Sequence[int]]) -> MemoryMeasured:
        """Read every device, and what each runner's processes (pids, with their descendants) use."""
        ...


class ModelRow(msgspec.Struct, frozen=True):
    """A model (or, where it is configured so, an alias) as /v1/models shows it."""

    id: str
    aliases: Sequence[str] = ()
    name: str = ""
    description: str = ""
    alias_of: str = ""
    """The model's id, where this is an alias."""
    peer: str = ""
    """The peer that has it; "": it is of this machine."""
    metadata: Mapping[str, Any] = {}
    more: Mapping[str, Any] = {}
    """Further members: what it is capable of."""
    kind: Mapping[str, Any] = {}
    """Of a name that stands for models: what it is, in llama-swap's words."""
    behind: Sequence[str] = ()
    """The ids of the models that such a name stands for: it is loaded where one of them is."""


class Access(msgspec.Struct, frozen=True):
    """Who may use the front door, as the configuration has it."""

    api_keys: tuple[str, ...] = ()
    """One of them is needed, if there are any."""
    hosts: tuple[str, ...] = ()
    """Names that the daemon answers to, beside those that it knows to be its own."""
    origins: tuple[str, ...] = ()
    """Origins of pages that may use it, such as `https://chat.example`; `*`: all, and within one any
    characters but `/`."""
    body_bytes: int = HTTP_BODY_BYTES
    """The largest body of a request."""

    def __repr__(self) -> str:
        """Without the keys: what is shown may be logged."""
        return f"Access({len(self.api_keys)} keys, hosts={self.hosts}, origins={self.origins})"


class Served(msgspec.Struct, frozen=True):
    """What is known beforehand of the requests for one of the models, by the name that they have."""

    model: str
    options: Mapping[str, Option]
    """The launch options that they may fix, with their defaults."""
    filters: Filters | None
    """What is done to their bodies; None: nothing."""
    tells_loading: bool
    """Who waits for a stream is told so in it."""


class PeerModel(msgspec.Struct, frozen=True):
    """A model of another server: `model` is what it is called there. `url` is without a slash at its end."""

    id: str
    url: str
    model: str
    api_key: str = ""
    first_byte_s: float = 0.0
    """How long it may take until the first byte of an answer; 0: as long as it likes."""

    def __repr__(self) -> str:
        """Without the key: what is shown may be logged."""
        return f"PeerModel({self.id!r}, {self.url!r}, {self.model!r})"


class Card(msgspec.Struct, frozen=True):
    """What is known of a model beyond its name."""

    file: Gguf | None = None
    """What its file says; None: it has none, or it could not be read."""
    vision: bool = False
    """It sees images."""
    audio: bool = False
    """It hears sounds."""
    tools: bool = False
    """It can be given tools."""
    embeds: bool = False
    """It generates no text."""
    keep_alive_given: bool = False
    """The configuration says how long it stays loaded."""


class Catalog(Protocol):
    """What the front door needs of the configuration. It may change between two calls."""

    def direct(self, name: str) -> Served | None:
        """What `target` and `served` come to where there is nothing to it, as there mostly is not: a model's
        own name, which no selector or profile has, and bodies that no filter changes. None: ask those two."""
        ...

    def target(self, name: str) -> str:
        """What a name stands for now, for this request: a selector's target, mostly the name itself."""
        ...

    def served(self, target: str) -> Served | None:
        """What is known of requests for a target that is a model here, by id or alias; None: it is none."""
        ...

    def filters(self, name: str) -> Filters | None:
        """What is done to the body of a request for a target; None: nothing."""
        ...

    def peer(self, name: str) -> PeerModel | None:
        """The model of a peer that a target is."""
        ...

    def at_peer(self, peer: PeerModel) -> AbstractContextManager[None]:
        """As long as a request runs there, it counts for the selectors that have it as a target."""
        ...

    @property
    def profile(self) -> str:
        """The name of the profile in use; "": none."""
        ...

    def profiles(self) -> Mapping[str, Profile]:
        """Those of the configuration, by name."""
        ...

    def missing(self, model: str) -> str:
        """A file that a model cannot be loaded without and that was not there at start, or when reloaded;
        "": none, or a runner of the model's is there."""
        ...

    def loads_nothing(self, path: str) -> bool:
        """Whether a request for this path below a model must not have the model loaded."""
        ...

    @property
    def access(self) -> Access:
        """Who may come in: the same object until it changes."""
        ...

    def resolve(self, name: str) -> str | None:
        """The model's id for an id or alias."""
        ...

    def names(self) -> Sequence[str]:
        """Every name that can be asked for, listed or not."""
        ...

    def models(self) -> Sequence[ModelRow]:
        """The rows of /v1/models, in order, those of peers last; without unlisted models."""
        ...

    def row(self, name: str) -> ModelRow | None:
        """The row of one model, listed or not, by any name that it has."""
        ...

    def card(self, model: str) -> Card:
        """What is known of a model."""
        ...

    def launch_options(self, model: str) -> Mapping[str, Option]:
        """The launch options that a request may fix, with their defaults, which give their types."""
        ...

    def bounded(self, model: str, options: Mapping[str, Option]) -> dict[str, Option]:
        """The launch options that a request fixes, within what the model's file says of it."""
        ...
