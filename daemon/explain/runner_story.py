"""A runner's story in sentences: why it was loaded, what became of it, and why it went."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from daemon.explain.leases import serves, slots
from daemon.explain.lives import Asker, Choice, End, Life, Turn
from daemon.explain.told import Explanation, Line
from daemon.explain.walk import Happening, happening
from daemon.explain.words import (
    asker_words,
    count,
    demand_name,
    duration,
    listed,
    options_of,
    short,
    size,
    sizes,
)
from events import catalogue as c
from events.reader import Reader
from statemachines.runner import RunnerState
from statemachines.state import State

REASONS = {
    "keep_alive": "nobody had asked for it for its keep-alive",
    "operator": "an operator had asked for that",
    "configuration": "the configuration had changed",
    "stopping": "the daemon was stopped",
    "nobody_waits": "nobody waited for it any more",
    "load_timeout": "it was not ready in time (healthCheckTimeout)",
    "load_stalled": "its load came to a halt (loadStallTimeout)",
    "hung": "it answered neither its requests nor its health checks",
    "shard_exited": "one of its processes had ended",
    "exited": "its process ended by itself",
    "spawn_failed": "its process could not be started",
    "port_taken": "its port was in use by another program",
    "lease_revoked": "a lease of it was revoked, whose holder may still talk to it",
    "lost": "its process had ended while no daemon ran",
}
"""Why a runner went, after `because`."""

REVOKED = {
    "max_lease": "it had lasted for as long as it may (maxLease)",
    "others_wait": "others waited for a slot of that runner",
    "evicted": "that runner had to make room",
    "lease_revoked": "another lease of that runner was not let go of",
}
"""Why a lease was revoked, where that is not for why its runner went."""

FAILURES = (
    "load_timeout",
    "load_stalled",
    "hung",
    "shard_exited",
    "exited",
    "spawn_failed",
    "port_taken",
    "lost",
)
"""Ends that nobody had asked for."""


def name(life: Life) -> str:
    """`r5 (qwen)`."""
    return f"{life.id} ({life.model})"


# --- in one sentence -------------------------------------------------------------------------------------


def summary(life: Life, state: State) -> str:
    """Why it is there, or went."""
    if life.end is None:
        return _alive(life, state)
    return _gone(life, life.end)


def _alive(life: Life, state: State) -> str:
    runner = state.runners.get(life.id)
    why = because(life)
    if runner is None or runner.state is RunnerState.loading:
        return f"{name(life)} is loading, since {duration(state.t - life.load.t)}, {why}."
    if runner.held:
        return f"{name(life)} is loaded {why}. It {serves(state, runner)} now."
    idle = short(state.t - runner.idle_t)
    due = state.deadlines.get(("keep_alive", life.id))
    left = (
        "goes in " + duration(due - state.t) + " if nobody asks"
        if due is not None
        else "stays until its room is needed: it has no keep-alive"
    )
    if runner.model in state.pinned:
        left = "stays: it is pinned"
    return f"{name(life)} is loaded {why}. It has been idle for {idle}, and {left}."


def because(life: Life) -> str:
    """`because q20 (from 127.0.0.1) asked for it`."""
    reason = life.load.body.reason
    if life.older:
        return "since before the log begins"
    if reason == "queue":
        return "beside another one of its model, because all were busy and there was room"
    if reason == "instances":
        return "because the configuration wants several of its model"
    return f"because {asker_words(life.asker)} asked for it" if life.asker is not None else f"({reason})"


def _gone(life: Life, end: End) -> str:
    over = "was unloaded" if life.over else "is on its way out"
    if end.reason == "evicted":
        if end.choice is None:
            return f"{name(life)} {over} to make room for another model."
        rival = end.choice.asker
        return (
            f"{name(life)} {over} to make room for {rival.model}{options_of(rival.options)},"
            f" which {asker_words(rival)} had asked for."
        )
    why = REASONS.get(end.reason, end.reason.replace("_", " "))
    if end.reason == "keep_alive":
        why = f"nobody had asked for it for {duration(end.keep_alive_ns)}, its keep-alive"
    if end.reason in FAILURES:
        when = (
            "while it loaded"
            if life.ready is None
            else f"{duration(end.event.t - life.ready.t)} after it was ready"
        )
        if isinstance(end.event.body, c.ProcessExited):
            why = ("one of its processes " if end.reason == "shard_exited" else "its process ") + ended(
                end.event
            )
        return f"{name(life)} failed {when}: {why}."
    return f"{name(life)} {over} because {why}."


# --- from the first cause on -----------------------------------------------------------------------------


def lines(life: Life, reader: Reader) -> tuple[Line, ...]:
    """The whole story, oldest first."""
    return in_order(_lines(life, reader))


def in_order(each: Iterable[Line]) -> tuple[Line, ...]:
    """By number, each once."""
    return tuple(sorted(dict.fromkeys(each), key=lambda line: line.seq))


def _lines(life: Life, reader: Reader) -> Iterator[Line]:
    if not life.older:
        yield from _birth(life, reader)
    if life.ready is not None and not life.older:
        yield line(life.ready, f"{life.id} was ready, after {duration(life.ready.t - life.load.t)}")
    for start in life.restarts:
        yield line(
            start,
            "the daemon started again, and found it alive"
            if _survived(life, start)
            else "the daemon started again",
        )
    for notice in life.notices:
        yield line(notice.event, revoked_words(notice.event, notice.caller))
    if life.last is not None:
        yield line(
            life.last,
            f"{life.last.body.request} ended, {_last(life)}",
        )
    if life.end is not None:
        yield from _ending(life, life.end, reader)


def _last(life: Life) -> str:
    """Which of its requests that was: of those that have ended, for others may still run."""
    if life.older:
        return f"the last of {life.id}'s requests" + ("" if life.over else " so far")
    if life.exchanges == 1:
        return f"{life.id}'s only request" if life.over else f"the first of {life.id}'s requests"
    return f"the last of {life.id}'s {life.exchanges} requests" + (
        "" if life.over else " that have ended so far"
    )


def line(h: Happening, text: str) -> Line:
    """A line of the story: what is said of an event."""
    return Line(h.seq, h.at, h.t, text)


def _survived(life: Life, start: Happening) -> bool:
    return any(process.runner == life.id for process in start.body.survivors)


def _birth(life: Life, reader: Reader) -> Iterator[Line]:
    load: c.RunnerLoad = life.load.body
    if life.asker is not None:
        yield from asked(life.asker, reader)
    yield from turns(life.turns if life.choice is None else life.choice.turns)
    if life.choice is not None:
        yield line(life.choice.made, choice_words(life.choice))
    alone = ", with nothing beside it until it has been measured" if load.alone else ""
    instead = (
        f" in the place of {listed(list(life.choice.made.body.victims))}"
        if life.choice and life.choice.made.body.victims
        else ""
    )
    why = {
        "queue": ", as all others of its model were busy",
        "instances": ", as the configuration wants several",
    }
    spec = f"{load.model}{options_of(load.options)}, {sizes(load.reserved_bytes)}"
    what = f"{life.id} was started{instead}: {spec}"
    yield line(life.load, what + alone + why.get(load.reason, ""))


def asked(asker: Asker, reader: Reader) -> Iterator[Line]:
    """Who asked, as far as the log still has it."""
    h = happening(reader, int(asker.id[1:]))
    if h is None:
        return
    who = asker_words(asker)
    if asker.id.startswith("o"):
        by = getattr(h.body, "by", "")
        who = f"{by or 'an operator'} " if not asker.preload else "the configuration (preload) "
        yield line(h, f"{who}asked for {asker.model}{options_of(asker.options)}: {asker.id}")
    else:
        met = _met(reader, h, bool(asker.options))
        yield line(h, f"{who} asked for {asker.model}{options_of(asker.options)}{met}")


def _met(reader: Reader, arrived: Happening, options: bool) -> str:
    """What a request met when it came, of which a runner was loaded later. A runner that it went to has
    failed it."""
    decided = happening(reader, arrived.seq + 1)  # the first decision on it
    body = decided.body if decided is not None else None
    if isinstance(body, c.RequestDispatched):
        return f", and went to {body.runner}, which failed it"
    if isinstance(body, c.RequestQueued) and body.reason != "no runner":
        return f", and {runner_is(body.reason)}"
    return f", and {'no runner with that' if options else 'no runner of it'} was there"


def runner_is(reason: str) -> str:
    """`r5 is busy`, as it is said afterwards."""
    return reason.replace(" is ", " was ").replace(" loads", " was loading")


def turns(each: tuple[Turn, ...]) -> Iterator[Line]:
    """What those who waited were told to wait for."""
    for turn in each:
        yield line(turn.event, turn_words(turn))


def turn_words(turn: Turn) -> str:
    """A wait for a turn, or for memory."""
    d: c.TurnWaits = turn.event.body
    left = duration(d.until_ns - turn.event.t)
    model = demand_name(d.demand)
    if d.reason == "memory":
        return f"{model} waited for memory that other programs held; looked at again after {left}"
    holder = f"{d.runner} ({turn.model})" if turn.model else d.runner or "another runner"
    if d.reason == "linger":
        return (
            f"{model} had to wait: {holder} had its room, and had only just become idle. Its clients mostly"
            f" ask again at once, so it kept its place for {left} at most"
        )
    return (
        f"{model} had to wait: {holder} had its room and was busy; its turn would last until it was idle, for"
        f" {left} at most"
    )


def choice_words(choice: Choice) -> str:
    """A claim, with its reason."""
    d: c.ClaimMade = choice.made.body
    asker = choice.asker
    whose = asker.model + options_of(asker.options)
    others = f" ({count(asker.others + 1, 'request')} waited)" if asker.others else ""
    if not d.victims:
        return f"{whose}{others} was next, and needed {sizes(d.need_bytes)}, which was on its way already"
    costs = {each.runner: each for each in choice.considered}
    went = listed(
        [f"{id}{_was(costs[id].idle_ns, costs[id].state) if id in costs else ''}" for id in d.victims]
    )
    why = next((way.why for way in choice.way if way.runner in d.victims), "memory")
    return f"{whose}{others} {NEEDED[why].format(need=_needed(choice))}: {went} had to go"


NEEDED = {
    "memory": "needed {need}",
    "place": "needed a place, and no more runners may be loaded (maxLoadedModels)",
    "alone": "had to be loaded alone",
    "group": "is not loaded beside it, by their groups",
    "matrix": "is not loaded beside it, by the matrix",
    "port": "needed its port",
    "instance": "may be loaded only once",
}


def _needed(choice: Choice) -> str:
    """`6.0 GiB on gpu0, where 2.0 GiB were free`."""
    free = {device.name: device.free_bytes for device in choice.memory}
    words = []
    for device, need in choice.made.body.need_bytes.items():
        left = free.get(device)
        where = f", where {size(max(0, left))} were free" if left is not None and left < need else ""
        words.append(f"{size(need)} on {device}{where}")
    return listed(words)


def _was(idle_ns: int | None, state: str) -> str:
    if idle_ns is not None:
        return f", idle for {short(idle_ns)},"
    return f", {state}," if state else ""


# --- how it went -----------------------------------------------------------------------------------------


def _ending(life: Life, end: End, reader: Reader) -> Iterator[Line]:
    if end.choice is not None:
        yield from asked(end.choice.asker, reader)
        yield from turns(end.choice.turns)
        yield line(end.choice.made, choice_words(end.choice))
    else:
        cause = happening(reader, end.event.cause) if end.event.cause else None
        if cause is not None and (text := _cause(life, end, cause)):
            yield line(cause, text)
    for h in life.after:
        if text := _after(life, end, h):
            yield line(h, f"{life.id} {text}")
    if life.successor is not None:
        rival = life.successor.body.model
        yield line(life.successor, f"{life.successor.subject} ({rival}) was started in its place")


def _cause(life: Life, end: End, h: Happening) -> str:
    """The fact behind an end that was not for another's sake; "": it says nothing beyond the end itself."""
    body = h.body
    if isinstance(body, c.UnloadRequested):
        what = body.runner or body.model or "everything"
        how = (
            ", without waiting for its requests"
            if body.now
            else ", when its requests have ended"
            if body.gently
            else ""
        )
        return f"{body.by or 'an operator'} asked to unload {what}{how}: {h.subject}"
    if isinstance(body, c.ConfigChanged):
        gone = life.model not in body.view.models
        by = f", by {body.by}" if body.by else ""
        what = "was not in it any more" if gone else "was not the same in it"
        return f"the configuration was read again{by}: {life.model} {what}"
    if isinstance(body, c.StopRequested):
        return f"the daemon was told to stop ({body.how}) by {body.by or 'an operator'}"
    if isinstance(body, c.DeadlinePassed) and body.kind == "keep_alive" and body.id == life.id:
        return f"{life.id} had been idle for {duration(end.keep_alive_ns)}, its keep-alive"
    if isinstance(body, c.ClientGone):
        return f"the client of {body.request}, the last that waited for it, went away"
    if isinstance(body, c.ProbeAnswered) and not body.healthy:
        said = body.detail or "unhealthy"
        return f"its health check failed ({said}), as it had for some time, and no request of its moved"
    return ""


def _after(life: Life, end: End, h: Happening) -> str:
    """What is said of each event of an end, after the runner's name; "": nothing."""
    body = h.body
    if isinstance(body, c.RunnerDrain):
        return f"took no new requests{_rest(end)}"
    if isinstance(body, c.RunnerStop):
        if end.reason in FAILURES:
            return f"was told to stop, because {REASONS[end.reason]}"
        if h is end.event:
            return "was told to stop"
        if not end.running:
            return ""  # its drain says so
        late = end.event.body.deadline_ns if isinstance(end.event.body, c.RunnerDrain) else 0
        last = "had been let go of" if end.leases == end.running else "had ended its last request"
        had = "had no more time for its requests" if late and h.t >= late else last
        return f"{had}, and was told to stop"
    if isinstance(body, c.ProcessExited):
        cut = f", and the {slots(end.running, end.leases)} that it served broke off" if end.running else ""
        return exit_words(h, asked=h is not end.event) + (cut if h is end.event else "")
    if isinstance(body, c.RunnerUnloaded | c.RunnerFailed):
        return gone_words(seen=life.memory_seen)
    words = AFTER.get(type(body))
    return words(h) if words is not None else ""


def gone_words(*, seen: bool) -> str:
    """That a runner has ended; `seen`: its memory was measured back, or needs no measuring."""
    free = "was free" if seen else "was counted as free, though it had not been seen to come back"
    return f"was gone, and its memory {free}"


AFTER: dict[type, Callable[[Happening], str]] = {
    c.RunnerKill: lambda h: "had not stopped in time, and was killed",
    c.RunnerStuck: lambda h: "did not even end when it was killed: it keeps its memory",
    c.SpawnFailed: lambda h: f"could not be started: {h.body.error}",
    c.LeaseRefused: lambda h: f"found its port {h.body.port} in use by another program",
    c.RunnerLost: lambda h: "was not there any more when the daemon started again",
    c.ModelCooling: lambda h: f"having failed, {cooling_words(h)}",
    c.ModelCrowded: lambda h: (
        f"had run out of memory beside others: {h.body.model} was to be tried once more, alone"
    ),
}


def revoked_words(h: Happening, caller: str, *, own: bool = False) -> str:
    """That a lease was revoked; `own`: in its own story."""
    d: c.LeaseRevoked = h.body
    who = f"{d.request}{f' (from {caller})' if caller else ''}, which held a lease of {d.runner},"
    why = REVOKED.get(d.reason) or REASONS.get(d.reason, d.reason.replace("_", " "))
    left_ns = d.until_ns - h.t
    told = f"told to let go of {d.runner} within {duration(left_ns)}" if left_ns > 0 else "cut"
    return f"{'it' if own else who} was {told}, because {why}"


def cooling_words(h: Happening) -> str:
    """What a failed load means for its model."""
    body: c.ModelCooling = h.body
    if body.again:
        return f"{body.model} may be loaded again at once, for it had been ready before"
    times = "" if body.failures == 1 else f", as this was failure {body.failures} in a row"
    return f"{body.model} is not tried again for {duration(body.until_ns - h.t)}{times}"


def _rest(end: End) -> str:
    if not end.running:
        return "; it served none, and was told to stop"
    limit = getattr(end.event.body, "deadline_ns", 0)
    until = f", for {duration(limit - end.event.t)} at most" if limit else ""
    return f", and went on with the {slots(end.running, end.leases)} that it had{until}"


def exit_words(h: Happening, *, asked: bool) -> str:
    """The end of one of a runner's processes, after the runner's name."""
    shard = h.body.shard
    return f"lost its shard {shard}, which {ended(h, asked=asked)}" if shard else ended(h, asked=asked)


def ended(h: Happening, *, asked: bool = False) -> str:
    """How a process ended. Of one that was asked to, its status says nothing."""
    status = h.body.status
    if status is None or (asked and status >= 0):
        how = "ended"
    elif status < 0:
        how = f"was ended by signal {-status}"
    else:
        how = f"exited by itself with status {status}"
    return how + (", when the kernel had run out of memory" if h.body.oom_kill else "")


def output(life: Life) -> str:
    """The last lines of a runner that never became ready."""
    said = [h.body.output for h in life.after if isinstance(h.body, c.ProcessExited) and h.body.output]
    said += [h.body.error for h in life.after if isinstance(h.body, c.SpawnFailed)]
    return said[0].strip() if said and life.ready is None else ""


def of_life(reader: Reader, life: Life, state: State, subject: str = "", said: str = "") -> Explanation:
    """An explanation that is a runner's life."""
    end = life.end
    choice = (
        end.choice if end is not None and end.choice is not None else life.choice if end is None else None
    )
    if end is None:
        decided, memory = life.choice.made.seq if life.choice else life.load.seq, life.memory
    else:
        decided, memory = choice.made.seq if choice else end.event.seq, end.memory
    return Explanation(
        subject or life.id,
        "model" if subject else "runner",
        life.model,
        said or summary(life, state),
        lines(life, reader),
        (),
        choice.considered if choice is not None else (),
        choice.memory if choice is not None else memory,
        decided,
        output(life),
        state.seq,
    )


__all__ = ["because", "cooling_words", "in_order", "lines", "of_life", "output", "summary", "turn_words"]
