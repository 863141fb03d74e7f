"""What keeps a model from being loaded: the scheduler is asked, and its answer put into words.

`why_not` lets a request for the model arrive in a copy of the state. The devices are taken to report then
what they reported last. What the scheduler does at that same moment is the answer; where it does nothing,
the state that it waits in says what for, until when, and behind whom. So this never differs from what would
happen.
"""

from __future__ import annotations

import copy
from typing import Literal

import msgspec

from daemon.endings import STATUS
from daemon.explain.leases import first_told, held_of, serves, told
from daemon.explain.memory import Device, activity, ledger
from daemon.explain.words import count, duration, listed, size
from events import catalogue as c
from events.catalogue import NEVER, Event, Option
from events.limits import MEMORY_WAIT_NS
from statemachines.claims import before
from statemachines.groups import in_the_way
from statemachines.leases import held
from statemachines.ledger import Source
from statemachines.parts import Demand, Runner
from statemachines.request import RequestState
from statemachines.room import Need, Room, need_of
from statemachines.runner import RunnerState
from statemachines.scheduler import Scheduler
from statemachines.state import State, satisfies
from statemachines.waiting import cause

TRIAL_STEPS = 1000
"""Steps of a trial: it takes a few; more than this is a loop, and a defect."""

Verdict = Literal["loaded", "coming", "at_once", "obstacle"]


class InTheWay(msgspec.Struct, frozen=True):
    """A runner that is in the way. why: `memory`, `alone`, `group`, `matrix`, `port`, `instance`, `place`."""

    runner: str
    model: str
    state: str
    why: str
    holds_bytes: dict[str, int]


class WhyNot(msgspec.Struct, frozen=True):
    """What a request for a model would have met at a moment.

    verdict: `loaded`, it would be served at once; `coming`, a runner of it loads, or serves others first;
    `at_once`, it would be loaded; `obstacle`. reason: of an obstacle, a stable word. From the moment on it
    cannot be loaded for `earliest_ns`, and after `latest_ns` this obstacle, though perhaps not the next, is
    gone; None: no such time is known.
    """

    model: str
    seq: int
    t_ns: int
    verdict: Verdict
    reason: str
    sentence: str
    when: str
    """When that can clear, for people; "" where nothing has to."""
    earliest_ns: int | None
    latest_ns: int | None
    need_bytes: dict[str, int]
    need_source: Source
    in_the_way: tuple[InTheWay, ...]
    memory: tuple[Device, ...]
    at_ns: int = 0
    """The time of day of the moment, UTC; 0: not known."""


class Trial(msgspec.Struct):
    """What came of the request that was made up: the state then, and what was decided."""

    state: State
    request: str
    events: list[Event]


def tried(state: State, model: str, options: dict[str, Option] | None = None) -> Trial:
    """Let a request arrive in a copy of the state, and whatever follows at the same moment."""
    scheduler = Scheduler(copy.deepcopy(state))
    mine = c.RequestArrived(model, "chat", options or {})
    events = scheduler.step(mine, state.t)
    request = next(event.subject for event in events if event.body is mine)
    for _ in range(TRIAL_STEPS):
        now = scheduler.state
        if now.measuring:
            used = {runner.id: runner.used_bytes for runner in now.runners.values() if runner.used_bytes}
            more = scheduler.step(c.MemoryMeasured(now.readings, used), now.t)
        else:
            more = scheduler.advance_one(now.t)
        if not more:
            break
        events = events + more
    return Trial(scheduler.state, request, events)


class _Found(msgspec.Struct):
    """An obstacle on its way to being one."""

    reason: str
    sentence: str
    when: str = ""
    earliest_t: int = NEVER
    latest_t: int = NEVER


def why_not(state: State, model: str, options: dict[str, Option] | None = None) -> WhyNot:
    """The first thing in the way of a model, and when that can clear."""
    demand = Demand("", model, options or {}, 0)
    need = need_of(state, demand)
    trial = tried(state, model, options)
    verdict, found = _outcome(state, trial, model)
    way: tuple[InTheWay, ...] = ()
    if verdict == "obstacle" and need is not None and found.reason in ROOM:
        way = in_its_way(state, demand, need)
    return WhyNot(
        model, state.seq, state.t, verdict, found.reason, found.sentence, found.when,
        _left(state, found.earliest_t), _left(state, found.latest_t),
        need.bytes if need else {}, need.source if need else "unknown", way, ledger(state),
    )  # fmt: skip


def _left(state: State, due: int) -> int | None:
    return None if due == NEVER else max(0, due - state.t)


ROOM = (
    "claimed", "quantum", "linger", "pinned", "persistent", "preloaded", "leaving", "loading", "suspect",
    "ahead", "room",
)  # fmt: skip
"""Obstacles that consist of runners."""


def _outcome(state: State, trial: Trial, model: str) -> tuple[Verdict, _Found]:
    request = trial.state.requests.get(trial.request)
    if request is None:
        return "obstacle", _refused(state, trial, model)
    if request.state is RequestState.dispatched:
        return "loaded", _Found("", f"{model} is loaded: {request.runner} has a free slot for it.")
    demand = trial.state.demands[request.demand]
    mine = [r for r in trial.state.models.get(model, {}).values() if r.live and satisfies(r, demand)]
    if any(runner.id not in state.runners for runner in mine):
        return "at_once", _Found("", f"Nothing: {model} would be loaded at once.")
    if mine:
        return "coming", _coming(trial.state, demand, mine)
    return "obstacle", _waits(state, trial.state, demand)


# --- refused ---------------------------------------------------------------------------------------------


def _refused(state: State, trial: Trial, model: str) -> _Found:
    """The request would get an error."""
    for event in trial.events:
        body = event.body
        if event.subject != trial.request or not isinstance(body, c.RequestRejected | c.RequestFailed):
            continue
        detail = body.detail or "no further word"
        cooling = state.cooling.get(model)
        message = cooling.message.strip() if cooling else ""
        template = STATUS.get(body.reason, (500, body.reason))[1]
        if body.reason == "queue_full":
            template = f"the queue is full: {state.queued} wait"
        sentence = template.format(model=model, detail=detail, message=message or "it said nothing")
        if body.reason == "pinned" and "persistent" in detail and ", pinned)" not in detail:
            words = f"{_sentence(sentence.partition(';')[0])} Nobody else's load unloads a persistent group."
            return _Found("persistent", words, WHEN["persistent"])
        found = _Found(body.reason, _sentence(sentence), WHEN.get(body.reason, "When somebody asks again."))
        if isinstance(body, c.RequestRejected) and body.reason in ("cooling_down", "quarantined"):
            found.earliest_t = found.latest_t = state.t + body.retry_after_ns
            found.when = f"In {duration(body.retry_after_ns)}, if somebody asks then."
        return found
    return _Found("ended", f"a request for '{model}' would end at once.")


WHEN = {
    "unknown_model": "When it is in the configuration (runnerctl reload).",
    "stopping": "When the daemon has been started again.",
    "queue_full": "As soon as one of those in the queue has had its turn.",
    "concurrency_limit": "As soon as one of its requests has ended.",
    "never_fits": "Not by itself: its memory, or the budget, has to be configured otherwise.",
    "pinned": "Not by itself.",
    "persistent": "Not by itself: members of a persistent group leave when they expire, or are unloaded.",
    "preloaded": "Not by itself: what was preloaded does not make room for a preload.",
    "load_failed": "After the pause that follows a failed load, if somebody asks then.",
    "no_port": "As soon as a runner has ended and given its port back.",
    "no_memory": "When another program has given memory back.",
}


def _sentence(text: str) -> str:
    """As a sentence: it begins large and ends with a stop."""
    text = " ".join(text.split())
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) else ".")


# --- loaded, but not free --------------------------------------------------------------------------------


def _coming(state: State, demand: Demand, mine: list[Runner]) -> _Found:
    """Runners serve it, or will: what they do, and until when at the latest."""
    ahead = len(demand.waiting) - 1
    behind = f" {count(ahead, 'request')} would be served before." if ahead else ""
    words = f"A runner of {demand.model} is there already: {cause(state, demand)}.{behind}"
    loading = [runner for runner in mine if runner.state is RunnerState.loading]
    if not loading:
        leased = [runner for runner in mine if held(state, runner)]
        words += "".join(f" {runner.id} {serves(state, runner)}." for runner in leased)
        return _Found("busy", words, _when_free(state, mine))
    due = _first_due(state, "load", loading)
    usual_ns = state.load_cost_ns.get(demand.model)
    usually = f"; its last load took {duration(usual_ns)}" if usual_ns is not None else ""
    return _Found(
        "loading",
        words,
        f"When it is ready{usually}. It is given up in {duration(due - state.t)}.",
        latest_t=due,
    )


def _when_free(state: State, mine: list[Runner]) -> str:
    """When a slot of runners that are busy is free."""
    leases = held_of(state, mine)
    if not leases:
        return "As soon as one of the requests that it serves ends."
    requests = sum(len(runner.held) for runner in mine) > len(leases)
    ends = "one of the requests that it serves ends, or " if requests else ""
    return f"As soon as {ends}a lease is let go of: {first_told(state, leases)}."


def _first_due(state: State, kind: str, runners: list[Runner]) -> int:
    """The first deadline of a kind; NEVER: none has one."""
    dues = [due for runner in runners if (due := state.deadlines.get((kind, runner.id))) is not None]
    return min(dues, default=NEVER)


# --- it waits --------------------------------------------------------------------------------------------


def _waits(state: State, after: State, demand: Demand) -> _Found:
    """What it would wait for, in the state in which the scheduler leaves it. The order is that in which the
    scheduler looks."""
    model = demand.model
    claim = after.claims.get(demand.key)
    if claim is not None:
        victims = [after.runners[id] for id in claim.victims if id in after.runners]
        return _claimed(state, after, demand, victims)
    if demand.short_t != NEVER:
        words = f"Other programs hold the memory that {model} needs: {_lacking(after, demand)}."
        when = "As soon as they give it back."
        return _Found("foreign_memory", words, when, latest_t=demand.short_t + MEMORY_WAIT_NS)
    runner = after.runners.get(demand.turn_of)
    if demand.turn_due != NEVER and runner is not None and runner.state is RunnerState.ready:
        return _turn(after, demand, runner)
    first = before(after, demand)
    if first is not None:
        words = (
            f"{first.model} is ahead of it, needs the same room, and waits itself ({cause(after, first)})."
        )
        return _Found("ahead", words, f"When {first.model} is loaded, or nobody waits for it any more.")
    return _pending(after, demand)


def _turn(state: State, demand: Demand, runner: Runner) -> _Found:
    """A runner keeps its place for a while."""
    left_ns = max(0, demand.turn_due - state.t)
    if not runner.held:
        return _lingers(runner, left_ns, demand.turn_due)
    words = f"{name(runner)} has the room. It {serves(state, runner)}, and its turn is not over."
    over = f"in {duration(left_ns)} at the latest"
    when = f"When it is idle, or its turn is over ({over}) and its last request has ended."
    if leases := held(state, runner):
        ids, one = listed([request.id for request in leases]), len(leases) == 1
        view = state.model(runner.model)
        unload_ns = view.unload_ns if view is not None else state.config.unload_ns
        when = f"When it is idle, or its turn is over ({over}): then {ids} {'is' if one else 'are'} told to"
        when += f" let go, and {'is' if one else 'are'} cut after {duration(unload_ns)}."
    return _Found("quantum", words, when, latest_t=demand.turn_due)


def _lingers(runner: Runner, left_ns: int, due: int) -> _Found:
    words = (
        f"{name(runner)} has the room, and has only just become idle. Its clients mostly ask again at once."
    )
    return _Found("linger", words, f"In {duration(left_ns)}, unless somebody asks for it before.", due)


def _claimed(state: State, after: State, demand: Demand, victims: list[Runner]) -> _Found:
    """Room is made for it, or would be."""
    if not victims:
        words = f"Room has been made for {demand.model}, and is being measured."
        return _Found("claimed", words, "At once, if it is enough.")
    one = len(victims) == 1
    names = listed([f"{name(r)}, which {_does(state, state.runners[r.id])}" for r in victims])
    words = f"{names}, {'has' if one else 'have'} the room that {demand.model} needs"
    if demand.key in state.claims:
        words += f", and {'is' if one else 'are'} on the way out for it."
    else:
        words += f". {'It' if one else 'They'} would be unloaded for a request that came now."
    return _Found("claimed", words, _when_gone(state, after, victims), *_ends(after, victims))


def _when_gone(state: State, after: State, victims: list[Runner]) -> str:
    """When those have ended that have to go, or would have to."""
    one = len(victims) == 1
    it, serve = ("it", "serves") if one else ("they", "serve")
    leases = held_of(after, victims)
    serving = sum(len(runner.held) for runner in victims) - len(leases)
    last = f"the {'last ' if serving > 1 else ''}request that {it} {serve} has ended"
    if not leases:
        if serving:
            return f"When {last}: none is cut short for this."
        return f"As soon as {it} {'has' if one else 'have'} ended: no request has to be waited for."
    ends = f"{last}, which is not cut short for this, and " if serving else ""
    all_ = "the lease is" if len(leases) == 1 else "all leases are"
    return f"When {ends}{all_} let go of: {told(state, after, leases)}."


def _does(state: State, runner: Runner) -> str:
    """`is idle`, `serves 2 requests`, `is leased to q12`, `is stopping`."""
    if runner.held:
        return serves(state, runner)
    return (
        "is idle"
        if runner.state is RunnerState.ready
        else f"is {LEAVING.get(runner.state, runner.state.value)}"
    )


def _ends(state: State, leaving: list[Runner]) -> tuple[int, int]:
    """When runners that leave will have gone: the earliest is not known, the latest by their deadlines."""
    dues = [_first_due(state, kind, leaving) for kind in ("drain", "stop", "kill", "memory")]
    busy = any(runner.held for runner in leaving)
    return NEVER, NEVER if busy else max(dues)


def _pending(state: State, demand: Demand) -> _Found:
    """It waits for what is under way anyway."""
    runners = list(state.runners.values())
    if state.measuring:
        return _Found("measuring", "The devices are asked first how much memory is free.", "In a moment.")
    if leaving := [r for r in runners if not r.live and not r.stuck]:
        names = listed([f"{name(r)} {_leaves(state, r)}" for r in leaving])
        when = "When that is over and the memory is back."
        # One whose runner has failed was not told: it ends with that.
        if leases := [r for r in held_of(state, leaving) if ("revoke", r.id) in state.deadlines]:
            when = f"{when[:-1]}: {told(state, state, leases)}."
        return _Found("leaving", f"{names}.", when, *_ends(state, leaving))
    if linger := [r for r in runners if ("linger", r.id) in state.deadlines]:
        due = _first_due(state, "linger", linger)
        first = next(r for r in linger if state.deadlines["linger", r.id] == due)
        return _lingers(first, due - state.t, due)
    if loading := [r for r in runners if r.state is RunnerState.loading]:
        has = (
            "is still loading, and has the room"
            if len(loading) == 1
            else "are still loading, and have the room"
        )
        due = _first_due(state, "load", loading)
        when = f"When that is over, in {duration(due - state.t)} at the latest. No load is cut short."
        return _Found("loading", f"{listed([name(r) for r in loading])} {has}.", when, latest_t=due)
    if suspect := [r for r in runners if r.state is RunnerState.ready and r.suspect]:
        words = (
            f"{listed([name(r) for r in suspect])} broke a request off: whether it is well is asked first."
        )
        due = _first_due(state, "probe", suspect)
        return _Found("suspect", words, "When that is answered.", latest_t=due)
    return _Found("room", f"{demand.model} waits for room.", "When something changes.")


def _leaves(state: State, runner: Runner) -> str:
    """`is stopping`, `is on its way out, but is leased to q12`."""
    leased = held(state, runner)
    return f"is on its way out, but {serves(state, runner)}" if leased else f"is {LEAVING[runner.state]}"


LEAVING = {
    RunnerState.draining: "finishing the requests that it has",
    RunnerState.stopping: "stopping",
    RunnerState.reclaiming: "gone, and its memory is not back yet",
}


# --- who is in the way -----------------------------------------------------------------------------------


def in_its_way(state: State, demand: Demand, need: Need) -> tuple[InTheWay, ...]:
    """The runners without which it would be nearer to being loaded, each with the first reason."""
    room = Room(state, demand, need)
    blocking = dict.fromkeys(room.blocking)
    by_config = in_the_way(state, demand.model)
    found = []
    for runner in state.runners.values():
        why = ""
        if runner.id in blocking:
            why = _blocks(state, runner, need, by_config)
        elif need.alone:
            why = "alone"
        elif any(runner.hold_bytes(device) for device in room.lacks):
            why = "memory"
        elif room.crowded:
            why = "place"
        if why:
            holds = {device: held for device in state.held if (held := runner.hold_bytes(device))}
            found.append(InTheWay(runner.id, runner.model, activity(runner), why, holds))
    return tuple(found)


def _blocks(state: State, runner: Runner, need: Need, by_config: dict[str, None]) -> str:
    """Why a runner may not be beside it, however much memory there is."""
    if runner.id in state.alone:
        return "alone"
    if runner.id in by_config:
        return "matrix" if state.config.matrix is not None else "group"
    if need.view.fixed_port and state.leased.get(need.view.fixed_port) == runner.id:
        return "port"
    return "instance"


def _lacking(state: State, demand: Demand) -> str:
    """`it needs 8.0 GiB on gpu0, where 2.0 GiB are free`."""
    need = need_of(state, demand)
    if need is None:
        return "it is not configured any more"
    room = Room(state, demand, need)
    words = []
    for device in ledger(state):
        if device.name in room.lacks:
            free = size(max(0, device.free_bytes or 0))
            words.append(f"it needs {size(need.bytes[device.name])} on {device.name}, where {free} are free")
    return ", and ".join(words) or "it needs what they hold"


def name(runner: Runner) -> str:
    """`r5 (qwen)`."""
    return f"{runner.id} ({runner.model})"
