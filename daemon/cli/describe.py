"""An event in plain words, for the journal, `runnerctl watch` and `runnerlog show`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

Payload = Mapping[str, Any]


def size(count: int) -> str:
    """Bytes for people: `6.0 GiB`."""
    number, unit = float(count), "B"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(number) < 1024 or unit == "TiB":
            break
        number /= 1024
    return f"{number:.0f} {unit}" if unit in ("B", "KiB", "MiB") else f"{number:.1f} {unit}"


def duration(ns: int) -> str:
    """A duration for people: `1.2 ms`, `3.4 s`, `5 min 10 s`, `2 h 5 min`."""
    seconds = ns / 1e9
    if abs(seconds) < 1:
        return f"{seconds * 1000:.1f} ms"
    if abs(seconds) < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _memory(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{size(n)} on {device}" for device, n in sizes.items()) or "an unknown amount of memory"


def _options(options: Mapping[str, Any]) -> str:
    return " with " + ", ".join(f"{name}={value}" for name, value in options.items()) if options else ""


def _load(s: str, p: Payload) -> str:
    where = f", port {p['port']}" if p.get("port") else ", a socket" if p.get("socket") else ""
    alone = ", alone until it has been measured" if p.get("alone") else ""
    memory = _memory(p.get("reserved_bytes", {}))
    return f"{s} loads {p['model']}{_options(p.get('options', {}))}: {memory}{where}{alone} ({p['reason']})"


def _exited(s: str, p: Payload) -> str:
    status = p.get("status")
    how = "" if status is None else f" with status {status}" if status >= 0 else f" by signal {-status}"
    words = (p.get("output") or "").strip().splitlines()
    return f"{s} exited{how}" + (f": {words[-1]}" if words else "")


def _upstream(s: str, p: Payload) -> str:
    if not p.get("sent", True):
        return f"{s} was not sent to {p['runner']}: it had ended"
    whole = "answered" if p.get("complete") else f"broken off ({p.get('error') or 'ended early'})"
    return f"{s} {whole} by {p['runner']}: status {p.get('status', 0)}, {size(p.get('bytes_to_client', 0))}"


def _measured(s: str, p: Payload) -> str:
    readings = p.get("devices", {}).items()
    free = ", ".join(
        f"{name} {size(r['free_bytes'])} free of {size(r['total_bytes'])}" for name, r in readings
    )
    used = ", ".join(f"{id} {_memory(sizes)}" for id, sizes in p.get("runners", {}).items())
    return f"memory: {free}" + (f"; {used}" if used else "")


def _claim(s: str, p: Payload) -> str:
    room = _memory(p.get("need_bytes", {}))
    return f"{p['demand']} claims room ({room}): {', '.join(p.get('victims', ()))} must go"


def _turn(s: str, p: Payload) -> str:
    if p["reason"] == "memory":
        return f"{p['demand']} waits for memory that other programs hold"
    return f"{p['demand']} waits until {p['runner']} has had its turn"


def _drain(s: str, p: Payload) -> str:
    return f"{s} drains ({p['reason']})" + (", at most until its deadline" if p.get("deadline_ns") else "")


def _failed(s: str, p: Payload) -> str:
    by = f" on {p['runner']}" if p.get("runner") else ""
    return f"{s} failed{by}: {p['reason']}" + (f" ({p['detail']})" if p.get("detail") else "")


def _rejected(s: str, p: Payload) -> str:
    after = p.get("retry_after_ns", 0)
    return f"{s} rejected: {p['reason']}" + (f", again in {duration(after)}" if after else "")


def _cooling(s: str, p: Payload) -> str:
    words = (p.get("message") or "").strip().splitlines()
    return f"{p['model']} cools down after {p['failures']} failed loads" + (f": {words[-1]}" if words else "")


def _started(s: str, p: Payload) -> str:
    lived = len(p.get("survivors", ()))
    return f"runnerd {p['version']} started" + (f", {lived} of its processes live" if lived else "")


def _ended(s: str, p: Payload) -> str:
    done = f"done ({p['runner']})" if p.get("runner") else "done"
    return f"{s} {done}" if p.get("ok") else f"{s} refused: {p.get('reason')}"


def _unload(s: str, p: Payload) -> str:
    what = p.get("runner") or p.get("model") or "everything"
    return f"{s}: unload {what}{' now' if p.get('now') else ''}, asked by {p.get('by') or 'an operator'}"


SENTENCES: dict[str, Callable[[str, Payload], str]] = {
    "daemon.started": _started,
    "config.changed": lambda s, p: f"configuration: {len(p.get('view', {}).get('models', {}))} models",
    "daemon.stop_requested": lambda s, p: f"stop requested ({p['how']}) by {p.get('by') or 'an operator'}",
    "daemon.stopped": lambda s, p: "stopped",
    "log.resumed": lambda s, p: (
        f"the log is written again after {duration(p['blocked_ns'])} ({p['error']}), {p['refused']} refused"
    ),
    "log.tail_lost": lambda s, p: (
        f"events {p['found_seq'] + 1} to {p['expected_seq']} were lost with the machine"
    ),
    "breach.recorded": lambda s, p: f"an earlier start broke at a {p['fact']}: {p['detail']}",
    "deadline.passed": lambda s, p: f"deadline: {p['kind']} of {p['id'] or 'the daemon'}",
    "request.arrived": lambda s, p: f"{s} wants {p['model']}{_options(p.get('options', {}))} ({p['kind']})",
    "client.gone": lambda s, p: f"{s}: its client went away",
    "upstream.ended": _upstream,
    "operator.cancel": lambda s, p: f"{s}: cancel {p['request']}, asked by {p.get('by') or 'an operator'}",
    "operator.load": lambda s, p: (
        f"{s}: load {p['model']}{_options(p.get('options', {}))}, asked by {p.get('by') or 'an operator'}"
    ),
    "operator.unload": _unload,
    "process.spawned": lambda s, p: f"{s} has process {p['process']['pid']}",
    "spawn.failed": lambda s, p: f"{s} could not be started: {p['error']}",
    "lease.refused": lambda s, p: f"{s}: port {p['port']} is in use by another program",
    "process.exited": _exited,
    "probe.answered": lambda s, p: (
        f"{s} is healthy" if p.get("healthy") else f"{s} is not healthy: {p.get('detail', '')}"
    ),
    "memory.measured": _measured,
    "request.queued": lambda s, p: f"{s} queued ({p['reason']})",
    "request.dispatched": lambda s, p: (
        f"{s} goes to {p['runner']}" + (" (second attempt)" if p.get("attempt", 1) > 1 else "")
    ),
    "request.requeued": lambda s, p: f"{s} queued again: {p['runner']} failed it ({p['reason']})",
    "request.completed": lambda s, p: f"{s} completed",
    "request.failed": _failed,
    "request.cancelled": lambda s, p: f"{s} cancelled: {p['reason']}",
    "request.timed_out": lambda s, p: f"{s} timed out: {p['reason']}",
    "request.rejected": _rejected,
    "request.interrupted": lambda s, p: f"{s} interrupted: the daemon had died under it",
    "runner.load": _load,
    "runner.leased": lambda s, p: f"{s} gets port {p['port']} instead",
    "runner.drain": _drain,
    "runner.stop": lambda s, p: f"{s} is stopped ({p['reason']})",
    "runner.kill": lambda s, p: f"{s} did not stop: killed",
    "runner.stuck": lambda s, p: f"{s} cannot be killed: it keeps its memory and port",
    "runner.probe": lambda s, p: f"{s} is asked for its health ({p['reason']})",
    "runner.unloaded": lambda s, p: f"{s} unloaded ({p['reason']})",
    "runner.failed": lambda s, p: f"{s} failed ({p['reason']})",
    "runner.lost": lambda s, p: f"{s} is gone: its process ended while no daemon ran",
    "model.cooling": _cooling,
    "model.dismissed": lambda s, p: (
        f"those who wait for {p['model']} are told: {p['reason']}"
        + (f" ({p['detail']})" if p.get("detail") else "")
    ),
    "claim.made": _claim,
    "claim.ended": lambda s, p: f"the claim of {p['demand']} ends: {p['reason']}",
    "turn.waits": _turn,
    "reclaim.waits": lambda s, p: f"{s}: its memory has not come back yet",
    "step.continues": lambda s, p: "more to decide: goes on in the next step",
    "memory.measure": lambda s, p: f"measure memory ({p['reason']})",
    "operation.ended": _ended,
}


def describe(type: str, subject: str, payload: Payload) -> str:
    """One event, in a sentence. A type that this program does not know is named, with its payload."""
    sentence = SENTENCES.get(type)
    if sentence is None:
        return f"{subject} {type} {dict(payload)}"
    return sentence(subject, payload)
