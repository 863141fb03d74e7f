"""The catalogue: every fact and every decision that the event log can hold.

A *fact* is what the world did; a *decision* is what the scheduler concluded from it. Both are frozen
structs tagged with their type (`request.arrived`); the tag is the `type` column of the log.

Rules for whoever adds or changes one:
1. Stored bytes are never rewritten. A field may be added with a default; nothing else may change without a
   new `VERSION` of the type and an upcast (`events/upcast.py`). Defaults are part of the format.
2. Integers only: times and durations in nanoseconds (`_ns`), sizes in bytes (`_bytes`). No float, no set.
3. No prompt, completion, token, command, environment or key ever enters an event.
4. Ids are sequence numbers: request `q<seq of its arrival>`, runner `r<seq of its load>`, operation
   `o<seq of the operator's fact>`. An event that creates a subject therefore does not name it.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import msgspec

from events.parts import (
    AUTO,
    NEVER,
    ConfigView,
    Considered,
    DeviceView,
    Estimate,
    GroupView,
    MatrixView,
    ModelView,
    Option,
    Process,
    Reading,
)

__all__ = [  # the parts, for whoever takes them from here
    "AUTO", "NEVER", "ConfigView", "Considered", "DeviceView", "Estimate", "GroupView", "MatrixView",
    "ModelView", "Option", "Process", "Reading",
]  # fmt: skip


class Payload(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, tag_field="type", gc=False
):
    """What facts and decisions share. `VERSION` is stored beside the type; see rule 1."""

    VERSION: ClassVar[int] = 1


class Fact(Payload, frozen=True, gc=False):
    """What the world did. Clock readings, probe results, sizes and ids enter only as facts."""


class Decision(Payload, frozen=True, gc=False):
    """What the scheduler concluded. Effects are derived from decisions, once they are durable."""


# --- facts: the daemon and its log -----------------------------------------------------------------------


class DaemonStarted(Fact, frozen=True, gc=False, tag="daemon.started"):
    """The first fact of every start. `survivors` are the recorded processes found alive by identity."""

    rules: int
    policy: str
    boot_id: str
    version: str
    node: str = ""
    survivors: tuple[Process, ...] = ()


class ConfigChanged(Fact, frozen=True, gc=False, tag="config.changed"):
    """A configuration was validated and takes effect."""

    view: ConfigView
    by: str = ""


class StopRequested(Fact, frozen=True, gc=False, tag="daemon.stop_requested"):
    """The daemon is to stop: `drain` lets running requests end, `now` does not, `leave` keeps the runners."""

    how: Literal["drain", "now", "leave"]
    by: str = ""


class DaemonStopped(Fact, frozen=True, gc=False, tag="daemon.stopped"):
    """The last fact of a clean stop."""


class LogResumed(Fact, frozen=True, gc=False, tag="log.resumed"):
    """The log had been blocked; `refused` arrivals got 503 meanwhile and are not in it."""

    refused: int
    blocked_ns: int
    error: str


class LogTailLost(Fact, frozen=True, gc=False, tag="log.tail_lost"):
    """After a crash of the machine the log is shorter than its witness says, as its durability allows."""

    expected_seq: int
    found_seq: int


class LogSalvaged(Fact, frozen=True, gc=False, tag="log.salvaged"):
    """A log was damaged at event `broken_seq`: what is before this fact was intact, and what the log held
    after that, at least up to event `lost_upto`, is lost."""

    broken_seq: int
    lost_upto: int
    what: str


class BreachRecorded(Fact, frozen=True, gc=False, tag="breach.recorded"):
    """An earlier start met a fact that broke an invariant; requests of that shape are refused for a while."""

    fact: str
    model: str
    detail: str


class StateCarried(Fact, frozen=True, gc=False, tag="state.carried"):
    """A piece of a snapshot: part `part` of `parts` of the state after event `upto`, whose hash (in
    hexadecimal) is `hash`, as `statemachines.carried` writes it. Somebody folded the log to there; it changes
    nothing. With its last part it counts: what follows event `upto` can be read without what is before."""

    about: ClassVar[str] = "state"

    upto: int
    hash: str
    layout: int
    """The form of the state's text."""
    part: int
    parts: int
    data: str


class DeadlinePassed(Fact, frozen=True, gc=False, tag="deadline.passed"):
    """A deadline came due. Only `step` makes these; its `t` is the time that was due."""

    kind: str
    id: str


# --- facts: requests -------------------------------------------------------------------------------------


LEASE = "lease"
"""The kind of a request for a slot that its client will use by itself."""


class RequestArrived(Fact, frozen=True, gc=False, tag="request.arrived"):
    """A client asked for `model`. Its id is `q<seq>`. `options`: the launch options that it fixed. `priority`
    is added to the model's. `keep_alive_ns`: how long its runner may be idle from then on; `…_else_ns`:
    where no request has said so. `token_digest`: SHA-256 of what proves whose a lease is."""

    model: str
    kind: str
    options: dict[str, Option] = {}
    priority: int = 0
    keep_alive_ns: int | None = None
    caller: str = ""
    token_digest: str = ""
    keep_alive_else_ns: int | None = None


class ClientGone(Fact, frozen=True, gc=False, tag="client.gone"):
    """The client of a request went away before its answer was complete."""

    request: str


FIRST_BYTE_LATE = "no first byte in time"
CUT_OFF = "its runner was told to stop"
"""The `error` of an exchange that was given up: for the request's time limit; for its runner has to go."""


class UpstreamEnded(Fact, frozen=True, gc=False, tag="upstream.ended"):
    """The upstream exchange of a dispatch has ended; exactly one for each dispatch. It frees the slot.

    `complete`: the whole answer reached the end of its framing. `sent` False: the effect was skipped
    because the request had already ended. `first_byte_ns` is measured from the dispatch's effect.
    """

    request: str
    runner: str
    complete: bool
    bytes_to_client: int = 0
    status: int = 0
    sent: bool = True
    first_byte_ns: int = 0
    error: str = ""


class LeaseResumed(Fact, frozen=True, gc=False, tag="lease.resumed"):
    """A client has shown a lease's token: it holds the lease from now on, after a start of the daemon or in
    the place of another connection."""

    request: str
    by: str = ""


class CancelRequested(Fact, frozen=True, gc=False, tag="operator.cancel"):
    """An operator cancels a request."""

    request: str
    by: str = ""


# --- facts: operators ------------------------------------------------------------------------------------


class LoadRequested(Fact, frozen=True, gc=False, tag="operator.load"):
    """An operator wants a model loaded. The operation's id is `o<seq>`. `priority` is added to the
    model's. `preload`: the configuration wants it, at start; it evicts nothing that was preloaded."""

    model: str
    options: dict[str, Option] = {}
    by: str = ""
    priority: int = 0
    preload: bool = False


class UnloadRequested(Fact, frozen=True, gc=False, tag="operator.unload"):
    """An operator wants a model's runners (or, with `model` empty, every runner) gone. `gently`: what they
    serve now may run to its end, however long that takes."""

    model: str = ""
    runner: str = ""
    cancel: bool = False
    now: bool = False
    by: str = ""
    gently: bool = False


class PinRequested(Fact, frozen=True, gc=False, tag="operator.pin"):
    """An operator pins a model, or unpins it. Runners of a pinned model are not evicted and do not expire."""

    model: str
    pinned: bool = True
    by: str = ""


class ProfileRequested(Fact, frozen=True, gc=False, tag="operator.profile"):
    """An operator has a profile of the configuration used; "": none. It says what names stand for, before a
    request becomes a fact, so no decision rests on it."""

    name: str = ""
    by: str = ""


# --- facts: runners --------------------------------------------------------------------------------------


class ProcessSpawned(Fact, frozen=True, gc=False, tag="process.spawned"):
    """A gated process exists. Its command runs only after this fact is durable (RULES 6)."""

    process: Process

    @property
    def runner(self) -> str:
        """The runner that the process belongs to."""
        return self.process.runner


class SpawnFailed(Fact, frozen=True, gc=False, tag="spawn.failed"):
    """No process could be made for a runner."""

    runner: str
    error: str


class LeaseRefused(Fact, frozen=True, gc=False, tag="lease.refused"):
    """A port that was leased to a runner is taken by somebody else; no process was made."""

    runner: str
    port: int


class ProcessExited(Fact, frozen=True, gc=False, tag="process.exited"):
    """No process of this shard is left. `status` is None where it cannot be known (an adopted process).

    `output` holds the last lines of a runner that never became ready, and is empty otherwise (RULES 8).
    `oom_kill`: the process was killed, and since it began the kernel has killed for want of memory.
    """

    runner: str
    shard: int
    status: int | None
    output: str = ""
    oom_kill: bool = False


class LoadProgressed(Fact, frozen=True, gc=False, tag="load.progressed"):
    """A runner that loads has printed, read, worked or answered otherwise since the last look. Only for
    those that have a limit to how long they may not, and a few times within that."""

    runner: str
    sign: Literal["output", "read", "work", "answer"]


class ProbeAnswered(Fact, frozen=True, gc=False, tag="probe.answered"):
    """A health probe's result. `moved`: one of the runner's requests moved a byte since the probe before."""

    runner: str
    healthy: bool
    moved: bool = False
    detail: str = ""


class MemoryMeasured(Fact, frozen=True, gc=False, tag="memory.measured"):
    """What the devices report, and what each runner's processes use on each device."""

    devices: dict[str, Reading]
    runners: dict[str, dict[str, int]] = {}


# --- decisions: requests ---------------------------------------------------------------------------------


class RequestQueued(Decision, frozen=True, gc=False, tag="request.queued"):
    """The request waits, for `reason`, which is itself a state with a deadline."""

    request: str
    reason: str


class RequestDispatched(Decision, frozen=True, gc=False, tag="request.dispatched"):
    """The request takes a slot of a ready runner. The only event that its client waits for."""

    request: str
    runner: str
    attempt: int = 1


class RequestRequeued(Decision, frozen=True, gc=False, tag="request.requeued"):
    """Its runner failed it before the first byte: back to its old place, once; never to the same runner."""

    request: str
    runner: str
    reason: str


class RequestCompleted(Decision, frozen=True, gc=False, tag="request.completed"):
    """The whole answer of the runner went to the client, whatever its HTTP status."""

    request: str


class RequestFailed(Decision, frozen=True, gc=False, tag="request.failed"):
    """The request ends with an error that is ours or a runner's. `runner` names the culprit where one is."""

    request: str
    reason: str
    runner: str = ""
    detail: str = ""


class RequestCancelled(Decision, frozen=True, gc=False, tag="request.cancelled"):
    """The client went away, or an operator cancelled."""

    request: str
    reason: str


class RequestTimedOut(Decision, frozen=True, gc=False, tag="request.timed_out"):
    """A time limit of the request passed."""

    request: str
    reason: str


class RequestRejected(Decision, frozen=True, gc=False, tag="request.rejected"):
    """Refused on arrival. `retry_after_ns` 0: no use in trying again soon."""

    request: str
    reason: str
    retry_after_ns: int = 0
    detail: str = ""


class LeaseRevoked(Decision, frozen=True, gc=False, tag="lease.revoked"):
    """Who holds the lease is told to let go: "max_lease", "others_wait", or why its runner drains. After
    `until_ns` the lease ends, and its runner goes, whose slot may still be used by who held it."""

    request: str
    runner: str
    reason: str
    until_ns: int


class RequestInterrupted(Decision, frozen=True, gc=False, tag="request.interrupted"):
    """The daemon died under it."""

    request: str


# --- decisions: runners ----------------------------------------------------------------------------------


class RunnerLoad(Decision, frozen=True, gc=False, tag="runner.load"):
    """Load a model: memory reserved, port leased. The runner's id is `r<seq>`."""

    model: str
    digest: str
    options: dict[str, Option]
    reserved_bytes: dict[str, int]
    slots: int
    keep_alive_ns: int
    load_ns: int
    reason: str
    port: int = 0
    socket: bool = False
    alone: bool = False
    """Nothing is known about its memory: nothing may be loaded beside it until it has been measured."""
    larger: str = ""
    less: str = ""
    """Options: who fixed less of `larger` is served, too; only who fixed `less`: it is below the default."""
    considered: tuple[Considered, ...] = ()
    shard_ports: tuple[int, ...] = ()
    """The ports of its further processes, shard 1 and on; `port` is that of the first."""
    stall_ns: int = 0
    """As the model's."""


class RunnerLeased(Decision, frozen=True, gc=False, tag="runner.leased"):
    """A port of the runner's was refused; here are all that it has now, with the next one in its place."""

    runner: str
    port: int
    shard_ports: tuple[int, ...] = ()


class RunnerDrain(Decision, frozen=True, gc=False, tag="runner.drain"):
    """Admit no more work and stop when the last slot is given back, or at the deadline (0: none)."""

    runner: str
    reason: str
    deadline_ns: int = 0
    considered: tuple[Considered, ...] = ()


class RunnerStop(Decision, frozen=True, gc=False, tag="runner.stop"):
    """End the runner's processes: by its stop command or signal."""

    runner: str
    verdict: Literal["unloaded", "failed"]
    reason: str


class RunnerKill(Decision, frozen=True, gc=False, tag="runner.kill"):
    """The stop deadline passed: SIGKILL."""

    runner: str


class RunnerStuck(Decision, frozen=True, gc=False, tag="runner.stuck"):
    """A process that cannot die. An alarm; nothing is freed."""

    runner: str


class RunnerProbe(Decision, frozen=True, gc=False, tag="runner.probe"):
    """Ask a suspect or silent runner for its health, now."""

    runner: str
    reason: str


class RunnerUnloaded(Decision, frozen=True, gc=False, tag="runner.unloaded"):
    """The incarnation has ended as asked; its memory, port and name are free."""

    runner: str
    reason: str
    footprint_bytes: dict[str, int] = {}


class RunnerFailed(Decision, frozen=True, gc=False, tag="runner.failed"):
    """The incarnation has ended in failure; its memory, port and name are free."""

    runner: str
    reason: str
    footprint_bytes: dict[str, int] = {}


class RunnerLost(Decision, frozen=True, gc=False, tag="runner.lost"):
    """At recovery its recorded processes are proven gone."""

    runner: str


class ModelCooling(Decision, frozen=True, gc=False, tag="model.cooling"):
    """A failed load: the model is not tried again before `until_ns` (scheduler time)."""

    model: str
    runner: str
    failures: int
    until_ns: int
    message: str
    again: bool = False
    """It was ready before it failed, for the first time: it may be loaded again at once."""


class ModelCrowded(Decision, frozen=True, gc=False, tag="model.crowded"):
    """A load ran out of memory beside other runners, which may be evicted: it is tried once more, without."""

    model: str
    runner: str
    message: str


class ClaimMade(Decision, frozen=True, gc=False, tag="claim.made"):
    """A waiter's victims, chosen once; they admit no other work. Until the claim ends, nothing else is loaded
    on its `devices`, nor claims there; with `whole`, nowhere."""

    demand: str
    need_bytes: dict[str, int]
    devices: tuple[str, ...]
    victims: tuple[str, ...]
    whole: bool = False
    considered: tuple[Considered, ...] = ()


class ClaimEnded(Decision, frozen=True, gc=False, tag="claim.ended"):
    """The claim's load has begun ("room_made"), or never will by it: nobody waits for it any more, its room
    was not enough, or what it needs has changed."""

    demand: str
    reason: str


class TurnWaits(Decision, frozen=True, gc=False, tag="turn.waits"):
    """A demand waits: for a busy runner that keeps its place until it has had its quantum ("quantum"), for
    one that has just become idle ("linger"), or for memory that other programs hold ("memory")."""

    demand: str
    reason: str
    until_ns: int
    runner: str = ""
    considered: tuple[Considered, ...] = ()


class ReclaimWaits(Decision, frozen=True, gc=False, tag="reclaim.waits"):
    """The memory of a runner that is gone has not come back yet: it is measured again then."""

    runner: str
    until_ns: int


class ModelDismissed(Decision, frozen=True, gc=False, tag="model.dismissed"):
    """Those who wait for a model get an error, a few in each step: those of one `demand`, where it is named;
    those whom no other runner will serve, where a `runner` is; else all."""

    model: str
    reason: str
    runner: str = ""
    detail: str = ""
    demand: str = ""


class StepContinues(Decision, frozen=True, gc=False, tag="step.continues"):
    """There is more to decide than fits into one step: it goes on in the next, which is due at once."""

    only_loads: bool = False
    """No waiter can be answered now; only loads, and ends of runners, are left."""


class MemoryMeasure(Decision, frozen=True, gc=False, tag="memory.measure"):
    """Measure the devices now: a load or a reclaim waits for it."""

    reason: str


class OperationEnded(Decision, frozen=True, gc=False, tag="operation.ended"):
    """An operator's request has its answer."""

    operation: str
    ok: bool
    reason: str = ""
    runner: str = ""
    detail: str = ""


FACTS: tuple[type[Fact], ...] = tuple(Fact.__subclasses__())
DECISIONS: tuple[type[Decision], ...] = tuple(Decision.__subclasses__())


class Event(msgspec.Struct, frozen=True, gc=False):
    """An event as the core folds it: numbered, timed, with its cause. `body` is a Fact or a Decision.

    seq: 1, 2, 3 … over the whole log. t: scheduler time, ns. cause: the seq of the fact that a decision
    follows from; for a fact, 0. subject: the id of the request, runner or operation that it is about, a
    model's name, or "" for the daemon itself.
    """

    seq: int
    t: int
    cause: int
    subject: str
    body: Payload
