"""How a scenario shows the log: one short line for each event, ids counted from 1."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from events import catalogue as c
from events.catalogue import NEVER, Event, Fact, Option
from events.limits import GIB, MIB, MS, S
from events.upcast import type_of
from statemachines.ledger import budget_bytes, free_bytes, held_bytes
from statemachines.state import State

UNITS = {"ms": MS, "s": S, "m": 60 * S, "h": 3600 * S}
SIZES = {"MiB": MIB, "GiB": GIB}


def duration(text: str) -> int:
    """`250ms`, `1.5s`, `5m`, `1h`, `never` in ns."""
    if text == "never":
        return NEVER
    found = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s|m|h)", text)
    if found is None:
        raise ValueError(f"not a duration: {text}")
    return round(float(found[1]) * UNITS[found[2]])


def size(text: str) -> int:
    """`6GiB`, `512MiB` in bytes."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)(MiB|GiB)", text)
    if found is None:
        raise ValueError(f"not a size: {text}")
    return round(float(found[1]) * SIZES[found[2]])


def seconds(ns: int) -> str:
    return f"{ns / S:.3f}".rstrip("0").rstrip(".") + "s"


def gib(size_bytes: int) -> str:
    return f"{size_bytes / GIB:.2f}".rstrip("0").rstrip(".") + " GiB"


def label(model: str, options: dict[str, Option]) -> str:
    """What a request asks for, or a runner serves: `a num_ctx=4096`."""
    return " ".join([model, *(f"{name}={options[name]}" for name in sorted(options))])


def demand(key: str) -> str:
    """A demand's key for people: `a num_ctx=8192`, `a priority=1`, `a, but not r1`."""
    model, _, rest = key.partition("?")
    fixed, _, rest = rest.partition("!")
    priority, _, excluded = rest.partition("!")
    text = " ".join([model, *fixed.split(",")] if fixed else [model])
    text += f" priority={priority}" if priority not in ("", "0") else ""
    return text + (f", but not {excluded}" if excluded else "")


def places(sizes: dict[str, int]) -> str:
    return ", ".join(f"{device} {gib(size_bytes)}" for device, size_bytes in sizes.items())


def _of(*parts: str) -> str:
    return " ".join(part for part in parts if part)


def _arrived(id: str, f: c.RequestArrived) -> str:
    priority = f"priority={f.priority}" if f.priority else ""
    keep = "" if f.keep_alive_ns is None else f"keep_alive={_kept(f.keep_alive_ns)}"
    if f.keep_alive_else_ns is not None:
        keep = _of(keep, f"keep_alive_else={_kept(f.keep_alive_else_ns)}")
    what = "wants a lease:" if f.kind == c.LEASE else "arrived:"
    return _of(id, what, label(f.model, f.options), priority, keep)


def _kept(ns: int) -> str:
    return "never" if ns == NEVER else seconds(ns)


def _exchange(id: str, f: c.UpstreamEnded) -> str:
    if not f.sent:
        return f"{f.request} was never sent to {f.runner}"
    if f.complete:
        return f"{f.request} answered by {f.runner}"
    return f"{f.request} broken off by {f.runner} after {f.bytes_to_client} bytes"


def _unload(id: str, f: c.UnloadRequested) -> str:
    how = "gently" if f.gently else "now" if f.now else ""
    return _of(id, "operator unloads", f.runner or f.model or "everything", "cancel" if f.cancel else "", how)


def _loaded(id: str, d: c.RunnerLoad) -> str:
    where = f"on {places(d.reserved_bytes)}" if d.reserved_bytes else "of unknown size"
    alone = ", alone" if d.alone else ""
    port = f", port {d.port}" if d.port else ""
    port += f", shards {', '.join(map(str, d.shard_ports))}" if d.shard_ports else ""
    return f"{id} load {label(d.model, d.options)} {where}{alone}{port} ({d.reason})"


def _drain(id: str, d: c.RunnerDrain) -> str:
    return f"{id} drain: {d.reason}" + (f", until {seconds(d.deadline_ns)}" if d.deadline_ns else "")


def _stop(id: str, d: c.RunnerStop) -> str:
    return f"{id} stop: {d.reason}" + (" (failed)" if d.verdict == "failed" else "")


def _over(word: str) -> Callable[[str, Any], str]:
    def line(id: str, d: c.RunnerUnloaded | c.RunnerFailed) -> str:
        learned = f", used {places(d.footprint_bytes)}" if d.footprint_bytes else ""
        return f"{id} {word}: {d.reason}{learned}"

    return line


def _ended(word: str) -> Callable[[str, Any], str]:
    def line(id: str, d: Any) -> str:
        retry = getattr(d, "retry_after_ns", 0)
        later = f"; retry after {seconds(retry)}" if retry else ""
        runner, detail = getattr(d, "runner", ""), getattr(d, "detail", "")
        return _of(id, f"{word}:", d.reason, runner, f"({detail})" if detail else "") + later

    return line


def _dismissed(id: str, d: c.ModelDismissed) -> str:
    who = demand(d.demand) if d.demand else d.model
    return f"who waits for {who} is told: " + _of(d.reason, d.runner)


def _waits(id: str, d: c.TurnWaits) -> str:
    what = {
        "quantum": f"{d.runner} to have had its turn",
        "memory": "memory that other programs hold",
        "linger": f"{d.runner} to be idle for long enough",
    }[d.reason]
    return f"{demand(d.demand)} waits until {seconds(d.until_ns)} for {what}"


def _exited(id: str, f: c.ProcessExited) -> str:
    shard = f" shard {f.shard}" if f.shard else ""
    return f"{id}{shard} exited" + (f': "{f.output}"' if f.output else "")


def _probe_answer(id: str, f: c.ProbeAnswered) -> str:
    return _of(id, "healthy" if f.healthy else "unhealthy", "(it moves)" if f.moved else "")


def _operation(id: str, d: c.OperationEnded) -> str:
    return _of(id, "done" if d.ok else "refused", d.runner, f"({d.reason})" if d.reason else "")


def _cooling(id: str, d: c.ModelCooling) -> str:
    if d.again:
        return f'{d.model} may be loaded again: "{d.message}"'
    return f'{d.model} cools until {seconds(d.until_ns)}, failure {d.failures}: "{d.message}"'


LINES: dict[type, Callable[[str, Any], str]] = {
    c.DaemonStarted: lambda id, f: (
        f"daemon started, survivors: {', '.join(dict.fromkeys(p.runner for p in f.survivors)) or 'none'}"
    ),
    c.ConfigChanged: lambda id, f: f"configuration: {', '.join(f.view.models) or 'no models'}",
    c.BreachRecorded: lambda id, f: f"an earlier start broke on {f.fact} for {f.model}",
    c.StopRequested: lambda id, f: f"daemon is to stop: {f.how}",
    c.DeadlinePassed: lambda id, f: _of("deadline", f.kind, demand(f.id)),
    c.RequestArrived: _arrived,
    c.ClientGone: lambda id, f: f"{f.request} client gone",
    c.UpstreamEnded: _exchange,
    c.CancelRequested: lambda id, f: f"{id} operator cancels {f.request}",
    c.LoadRequested: lambda id, f: f"{id} operator loads {label(f.model, f.options)}",
    c.UnloadRequested: _unload,
    c.PinRequested: lambda id, f: f"{id} operator {'pins' if f.pinned else 'unpins'} {f.model}",
    c.ProfileRequested: lambda id, f: f"{id} operator uses profile {f.name or '-'}",
    c.ProcessSpawned: lambda id, f: (
        f"{f.runner} spawned" + (f": shard {f.process.shard}" if f.process.shard else "")
    ),
    c.SpawnFailed: lambda id, f: f"{id} spawn failed: {f.error}",
    c.LeaseRefused: lambda id, f: f"{id} port {f.port} is taken",
    c.ProcessExited: _exited,
    c.ProbeAnswered: _probe_answer,
    c.MemoryMeasured: lambda id, f: (
        "memory free: " + places({name: r.free_bytes for name, r in f.devices.items()})
    ),
    c.RequestQueued: lambda id, d: f"{id} queued: {d.reason}",
    c.RequestDispatched: lambda id, d: (
        f"{id} dispatched to {d.runner}" + (f", attempt {d.attempt}" if d.attempt > 1 else "")
    ),
    c.RequestRequeued: lambda id, d: f"{id} requeued: {d.runner} {d.reason}",
    c.LeaseResumed: lambda id, f: _of(id, "resumed", f"by {f.by}" if f.by else ""),
    c.LeaseRevoked: lambda id, d: f"{id} is to let go of {d.runner} until {seconds(d.until_ns)}: {d.reason}",
    c.RequestCompleted: lambda id, d: f"{id} completed",
    c.RequestFailed: _ended("failed"),
    c.RequestCancelled: _ended("cancelled"),
    c.RequestTimedOut: _ended("timed out"),
    c.RequestRejected: _ended("rejected"),
    c.RequestInterrupted: lambda id, d: f"{id} interrupted",
    c.RunnerLoad: _loaded,
    c.LoadProgressed: lambda id, f: f"{id} gets on ({f.sign})",
    c.RunnerLeased: lambda id, d: f"{id} tries port " + ", ".join(map(str, (d.port, *d.shard_ports))),
    c.RunnerDrain: _drain,
    c.RunnerStop: _stop,
    c.RunnerKill: lambda id, d: f"{id} kill",
    c.RunnerStuck: lambda id, d: f"{id} stuck: cannot be ended",
    c.RunnerProbe: lambda id, d: f"{id} probe: {d.reason}",
    c.RunnerUnloaded: _over("unloaded"),
    c.RunnerFailed: _over("failed"),
    c.RunnerLost: lambda id, d: f"{id} lost",
    c.ModelCooling: _cooling,
    c.ModelCrowded: lambda id, d: (
        f'{d.model} is tried again alone: {d.runner} ran out of memory ("{d.message}")'
    ),
    c.ClaimMade: lambda id, d: f"claim for {demand(d.demand)}: victims {', '.join(d.victims)}",
    c.ClaimEnded: lambda id, d: f"claim for {demand(d.demand)} ended: {d.reason}",
    c.TurnWaits: _waits,
    c.ReclaimWaits: lambda id, d: f"{id} memory not back, again at {seconds(d.until_ns)}",
    c.ModelDismissed: _dismissed,
    c.StepContinues: lambda id, d: "more in the next step",
    c.MemoryMeasure: lambda id, d: f"measure memory: {d.reason}",
    c.OperationEnded: _operation,
}


def line(event: Event) -> str:
    """One event: facts with their time at the margin, decisions below them."""
    write = LINES.get(type(event.body))
    text = write(event.subject, event.body) if write else f"{event.subject} {type_of(type(event.body))}"
    return f"{seconds(event.t) if isinstance(event.body, Fact) else '':>9}  {text}"


def state_lines(state: State) -> list[str]:
    """Runners, requests, claims and memory, as few lines as possible."""
    lines = []
    for runner in state.runners.values():
        held = f"{len(runner.held)}/{runner.slots} slots" + (
            f" ({', '.join(runner.held)})" * bool(runner.held)
        )
        marks = [mark for mark in ("suspect", "stuck") if getattr(runner, mark)]
        lines.append(
            ", ".join([f"{runner.id} {label(runner.model, runner.options)} {runner.state}", held, *marks])
        )
    for request in state.requests.values():
        held = f", holds a slot of {request.runner}" if request.slot else ""
        lines.append(f"{request.id} {label(request.model, request.options)} {request.state}{held}")
    for claim in state.claims.values():
        lines.append(f"claim for {demand(claim.demand)}: victims {', '.join(claim.victims)}")
    for device in dict.fromkeys([*state.config.devices, *state.readings]):
        budget, free = budget_bytes(state, device) or 0, free_bytes(state, device) or 0
        lines.append(f"{device}: {gib(held_bytes(state, device))} of {gib(budget)} held, {gib(free)} free")
    return lines
