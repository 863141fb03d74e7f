"""An event in plain words, for the journal, `runnerctl watch` and `runnerlog show`."""

from __future__ import annotations

import pwd
import re
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
    """A duration for people: `1.2 ms`, `3.4 s`, `5 min 10 s`, `2 h 5 min`, `3 d 4 h`."""
    seconds = ns / 1e9
    if abs(seconds) < 1:
        return f"{seconds * 1000:.1f} ms"
    if abs(seconds) < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 24 else f"{hours // 24} d {hours % 24} h"


def _memory(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{size(n)} on {device}" for device, n in sizes.items()) or "an unknown amount of memory"


def _words(reason: object) -> str:
    """A reason, which is a stable word for programs, as people write it."""
    return str(reason).replace("_", " ")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 'es' if noun.endswith('s') else 's'}"


def _asked(p: Payload, field: str = "by") -> str:
    return f"asked by {p.get(field) or 'an operator'}"


def demand_name(key: str) -> str:
    """What those in one queue want, without the priority and the runner that they must not get again."""
    model, _, rest = key.partition("?")
    fixed = rest.partition("!")[0]
    return f"{model} with {fixed.replace(',', ', ')}" if fixed else model


def _options(options: Mapping[str, Any]) -> str:
    return " with " + ", ".join(f"{name}={value}" for name, value in options.items()) if options else ""


def _arrived(s: str, p: Payload) -> str:
    wants = f"{p['model']}{_options(p.get('options', {}))}"
    if p["kind"] == "lease":
        return f"{s} wants a lease of {wants}, {_asked(p, 'caller')}"
    return f"{s} wants {wants} ({p['kind']})"


def _load(s: str, p: Payload) -> str:
    where = f", port {p['port']}" if p.get("port") else ", a socket" if p.get("socket") else ""
    where += (
        f", shards at {', '.join(str(port) for port in p['shard_ports'])}" if p.get("shard_ports") else ""
    )
    alone = ", alone until it has been measured" if p.get("alone") else ""
    memory, why = _memory(p.get("reserved_bytes", {})), _words(p["reason"])
    return f"{s} loads {p['model']}{_options(p.get('options', {}))}: {memory}{where}{alone} ({why})"


def _leased(s: str, p: Payload) -> str:
    ports = [p["port"], *p.get("shard_ports", ())]
    return f"{s} gets {'ports' if ports[1:] else 'port'} {', '.join(str(port) for port in ports)} instead"


def _exited(s: str, p: Payload) -> str:
    status = p.get("status")
    how = "" if status is None else f" with status {status}" if status >= 0 else f" by signal {-status}"
    words = (p.get("output") or "").strip().splitlines()
    return f"{s}{_shard(p)} exited{how}" + (f": {words[-1]}" if words else "")


def _shard(p: Payload) -> str:
    return f" shard {p['shard']}" if p.get("shard") else ""


SIGNS = {
    "output": "it prints",
    "read": "it reads",
    "work": "it works",
    "answer": "its health check answers otherwise",
}


def _upstream(s: str, p: Payload) -> str:
    if not p.get("sent", True):
        return f"{s} was not sent to {p['runner']}: it had ended"
    if p.get("complete") and not p.get("status"):
        return f"{s}: {p['runner']} has been let go of"
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
    victims = ", ".join(p.get("victims", ())) or "nobody"
    return f"{demand_name(p['demand'])} claims room ({room}): {victims} must go"


def _turn(s: str, p: Payload) -> str:
    if p["reason"] == "memory":
        return f"{demand_name(p['demand'])} waits for memory that other programs hold"
    until = "has been idle for a moment" if p["reason"] == "linger" else "has had its turn"
    return f"{demand_name(p['demand'])} waits until {p.get('runner') or 'another'} {until}"


def _drain(s: str, p: Payload) -> str:
    return f"{s} drains ({_words(p['reason'])})" + (
        ", at most until its deadline" if p.get("deadline_ns") else ""
    )


def _failed(s: str, p: Payload) -> str:
    by = f" on {p['runner']}" if p.get("runner") else ""
    return f"{s} failed{by}: {_words(p['reason'])}" + (f" ({p['detail']})" if p.get("detail") else "")


def _rejected(s: str, p: Payload) -> str:
    after = p.get("retry_after_ns", 0)
    return f"{s} rejected: {_words(p['reason'])}" + (f", again in {duration(after)}" if after else "")


def _cooling(s: str, p: Payload) -> str:
    if p.get("again"):
        return f"{p['model']} may be loaded again at once{_last_words(p)}"
    return f"{p['model']} cools down after {_count(p['failures'], 'failure')}{_last_words(p)}"


def _crowded(s: str, p: Payload) -> str:
    return f"{p['model']} is tried once more, alone: {p['runner']} ran out of memory{_last_words(p)}"


def _last_words(p: Payload) -> str:
    words = (p.get("message") or "").strip().splitlines()
    return f": {words[-1]}" if words else ""


def _started(s: str, p: Payload) -> str:
    lived = len(p.get("survivors", ()))
    return f"runnerd {p['version']} started" + (
        f", {_count(lived, 'runner process')} of the last start found alive" if lived else ""
    )


def _carried(s: str, p: Payload) -> str:
    part = f", part {p['part']} of {p['parts']}" if p["parts"] > 1 else ""
    return f"snapshot of the state after event {p['upto']}{part}"


def _ended(s: str, p: Payload) -> str:
    if p.get("ok"):
        return f"{s} done ({p['runner']})" if p.get("runner") else f"{s} done"
    detail = f" ({p['detail']})" if p.get("detail") else ""
    return f"{s} refused: {_words(p.get('reason') or 'the daemon started again')}{detail}"


def _unload(s: str, p: Payload) -> str:
    what = p.get("runner") or p.get("model") or "everything"
    waiting = " and cancel who waits" if p.get("cancel") else ""
    how = " gently" if p.get("gently") else " now" if p.get("now") else ""
    return f"{s}: unload {what}{how}{waiting}, {_asked(p)}"


def _cancel(s: str, p: Payload) -> str:
    return f"{s}: cancel {p['request']}, {_asked(p)}"


def _wanted(s: str, p: Payload) -> str:
    return f"{s}: load {p['model']}{_options(p.get('options', {}))}, {_asked(p)}"


def _dismissed(s: str, p: Payload) -> str:
    whom = demand_name(p.get("demand") or p["model"])
    detail = f" ({p['detail']})" if p.get("detail") else ""
    return f"those who wait for {whom} are told: {_words(p['reason'])}{detail}"


DEADLINES: dict[str, str] = {
    "load": "{id} has taken too long to load",
    "stall": "{id} has shown no progress for too long",
    "keep_alive": "{id} has been idle for its keep-alive",
    "drain": "{id} may drain no longer",
    "stop": "{id} has not stopped in time",
    "kill": "{id} is there though it was killed",
    "probe": "{id} has not answered its health probe",
    "reprobe": "time to ask {id} for its health again",
    "watch": "{id} has been busy for a while",
    "memory": "the memory of {id} has not come back in time",
    "poll": "time to look whether the memory of {id} is back",
    "queue": "{id} has waited for as long as it may",
    "request": "{id} has taken as long as it may",
    "lease": "time to see whether others wait for the lease {id}",
    "revoke": "the lease {id} was to be let go of by now",
    "grace": "nobody has come back for the lease {id}",
    "close": "the exchange of {id} has not ended in time",
    "measure": "memory has not been measured in time",
    "cool": "{id} may be tried again",
    "linger": "{id} has been idle for long enough to make room",
    "turn": "time to look again at who waits for {id}",
    "quarantine": "requests for {id} are let in again",
    "resume": "what did not fit into the last step goes on",
}


def _deadline(s: str, p: Payload) -> str:
    words = DEADLINES.get(p["kind"]) or f"the deadline {p['kind']} of {{id}} has passed"
    return words.replace("{id}", demand_name(p["id"]) or "the daemon")


SENTENCES: dict[str, Callable[[str, Payload], str]] = {
    "daemon.started": _started,
    "config.changed": lambda s, p: (
        f"configuration: {_count(len(p.get('view', {}).get('models', {})), 'model')}"
        + (f", by {p['by']}" if p.get("by", "start") not in ("", "start") else "")
    ),
    "daemon.stop_requested": lambda s, p: f"stop requested ({p['how']}) by {p.get('by') or 'an operator'}",
    "daemon.stopped": lambda s, p: "stopped",
    "log.resumed": lambda s, p: (
        f"the log is written again after {duration(p['blocked_ns'])} ({p['error']}), {p['refused']} refused"
    ),
    "log.tail_lost": lambda s, p: (
        f"events {p['found_seq'] + 1} to {p['expected_seq']} were lost with the machine"
    ),
    "log.salvaged": lambda s, p: (
        f"the log was salvaged: {p['what']}; events {p['broken_seq']} to {p['lost_upto']} are lost"
    ),
    "state.carried": _carried,
    "breach.recorded": lambda s, p: f"an earlier start broke at a {p['fact']}: {p['detail']}",
    "deadline.passed": _deadline,
    "request.arrived": _arrived,
    "lease.resumed": lambda s, p: f"{s}: its lease is held by {p.get('by') or 'its holder'} now",
    "lease.revoked": lambda s, p: (
        f"{s}: its holder is told to let go of {p['runner']} ({_words(p['reason'])})"
    ),
    "client.gone": lambda s, p: f"{s}: its client went away",
    "upstream.ended": _upstream,
    "operator.cancel": _cancel,
    "operator.load": _wanted,
    "operator.unload": _unload,
    "operator.profile": lambda s, p: (
        f"{s}: use {'profile ' + p['name'] if p.get('name') else 'no profile'}, {_asked(p)}"
    ),
    "operator.pin": lambda s, p: (
        f"{s}: {'pin' if p.get('pinned', True) else 'unpin'} {p['model']}, {_asked(p)}"
    ),
    "process.spawned": lambda s, p: f"{s}{_shard(p['process'])} has process {p['process']['pid']}",
    "spawn.failed": lambda s, p: f"{s} could not be started: {p['error']}",
    "lease.refused": lambda s, p: f"{s}: port {p['port']} is in use by another program",
    "process.exited": _exited,
    "load.progressed": lambda s, p: f"{s} gets on with its load: {SIGNS[p['sign']]}",
    "probe.answered": lambda s, p: (
        f"{s} is healthy" if p.get("healthy") else f"{s} is not healthy: {p.get('detail', '')}"
    ),
    "memory.measured": _measured,
    "request.queued": lambda s, p: f"{s} queued ({_words(p['reason'])})",
    "request.dispatched": lambda s, p: (
        f"{s} goes to {p['runner']}" + (" (second attempt)" if p.get("attempt", 1) > 1 else "")
    ),
    "request.requeued": lambda s, p: f"{s} queued again: {p['runner']} failed it ({_words(p['reason'])})",
    "request.completed": lambda s, p: f"{s} completed",
    "request.failed": _failed,
    "request.cancelled": lambda s, p: f"{s} cancelled: {_words(p['reason'])}",
    "request.timed_out": lambda s, p: f"{s} timed out: {_words(p['reason'])}",
    "request.rejected": _rejected,
    "request.interrupted": lambda s, p: f"{s} interrupted: the daemon had died under it",
    "runner.load": _load,
    "runner.leased": _leased,
    "runner.drain": _drain,
    "runner.stop": lambda s, p: f"{s} is stopped ({_words(p['reason'])})",
    "runner.kill": lambda s, p: f"{s} did not stop: killed",
    "runner.stuck": lambda s, p: f"{s} cannot be killed: it keeps its memory and port",
    "runner.probe": lambda s, p: f"{s} is asked for its health ({_words(p['reason'])})",
    "runner.unloaded": lambda s, p: f"{s} unloaded ({_words(p['reason'])})",
    "runner.failed": lambda s, p: f"{s} failed ({_words(p['reason'])})",
    "runner.lost": lambda s, p: f"{s} is gone: its process ended while no daemon ran",
    "model.cooling": _cooling,
    "model.crowded": _crowded,
    "model.dismissed": _dismissed,
    "claim.made": _claim,
    "claim.ended": lambda s, p: f"the claim of {demand_name(p['demand'])} ends: {_words(p['reason'])}",
    "turn.waits": _turn,
    "reclaim.waits": lambda s, p: f"{s}: its memory has not come back yet",
    "step.continues": lambda s, p: "more to decide: goes on in the next step",
    "memory.measure": lambda s, p: f"measure memory ({_words(p['reason'])})",
    "operation.ended": _ended,
}


def describe(type: str, subject: str, payload: Payload) -> str:
    """One event, in a sentence of one line. A type that this program does not know is named, with its
    payload; so is one whose payload is not as it should be (a log can hold what anybody wrote)."""
    sentence = SENTENCES.get(type)
    try:
        words = sentence(subject, payload) if sentence is not None else ""
    except (LookupError, TypeError, ValueError, AttributeError):
        words = ""
    return printable(words or f"{subject} {type} {dict(payload)}")


CALLER = re.compile(r"\buid (\d{1,10}) pid (\d+)")


def named(text: str) -> str:
    """The same with the names of users: `alice (uid 1000, pid 42)`. Not for the daemon: to look one up may
    take long, where a server on the network knows it."""
    return CALLER.sub(_name, text)


def _name(found: re.Match[str]) -> str:
    try:
        name = pwd.getpwuid(int(found[1])).pw_name
    except (KeyError, OverflowError):
        return found[0]
    return printable(f"{name} (uid {found[1]}, pid {found[2]})")


def printable(text: str) -> str:
    """Text without what a terminal would obey: a runner's last words may hold escapes and line ends."""
    return "".join(char if char.isprintable() else " " for char in text).strip()
