"""A request's story, or an operation's: what it waited for and for how long, who served it, how it ended."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from daemon.endings import STATUS
from daemon.explain import runner_story
from daemon.explain.leases import slots
from daemon.explain.lives import Choice, Turn, chosen, other_wait, turn_of
from daemon.explain.runner_story import choice_words, in_order, line, revoked_words, turn_words
from daemon.explain.told import Explanation, Line, Phase
from daemon.explain.waits import Waits
from daemon.explain.walk import Happening, Watch, walk
from daemon.explain.words import duration, listed, options_of, size, sizes
from events import catalogue as c
from events.catalogue import LEASE
from events.reader import Reader
from statemachines.leases import held
from statemachines.ledger import back
from statemachines.parts import Demand
from statemachines.request import RequestState
from statemachines.runner import RunnerState
from statemachines.state import State, demand_key, fits

ENDS = (
    c.RequestCompleted, c.RequestFailed, c.RequestCancelled, c.RequestTimedOut, c.RequestRejected,
    c.RequestInterrupted,
)  # fmt: skip
LINES_KEPT = 200
"""Lines of one story, of which the first are kept: a wait of a day has thousands of turns."""
AHEAD_NAMED = 5
"""Requests ahead in the queue that are named."""
INSTANT_NS = 10_000_000
"""A wait that is not worth a word: it takes as long to measure memory."""


class Told(Watch):
    """What the log says of one who waits, from the event that made it on."""

    def __init__(self, made: Happening) -> None:
        self.made = made
        self.first = made.seq
        self.begin = made.seq - 1
        self.demand = ""
        self.model: str = getattr(made.body, "model", "")
        self.leases = getattr(made.body, "kind", "") == LEASE
        """It is a lease."""
        self.runners: dict[str, str] = {}
        """Runners that matter to it, with why: `mine`, `victim`, `unload`."""
        self.lines: list[Line] = []
        self.choice: Choice | None = None
        self.message = ""
        """What the last runner of its model that failed to load had said."""
        self.output = ""
        self.end: Happening | None = None
        self.dispatch: Happening | None = None
        self.exchange: Happening | None = None
        self.last_t = made.t
        self.waits = Waits(self.where)
        self._turns: tuple[Turn, ...] = ()

    def waiting(self, state: State) -> Demand | None:
        """Where it waits, if it does."""
        demand = state.demands.get(self.demand)
        mine = demand is not None and (
            self.made.subject in demand.waiting or self.made.subject in demand.operations
        )
        return demand if mine else None

    def where(self, state: State) -> Demand | str | None:
        """The demand that it waits in, or the runner that serves it."""
        request = state.requests.get(self.made.subject)
        if request is not None and request.state is RequestState.dispatched:
            return request.runner
        return self.waiting(state)

    def every(self, h: Happening, state: State) -> None:
        """Any event since."""
        self.last_t = h.t
        if self.end is not None:
            self.done = True
            return
        self.waits.every(h, state)
        self._own(h, state)
        tell = TELL.get(type(h.body))
        if tell is not None and len(self.lines) < LINES_KEPT:
            text = tell(self, h, state)
            if text:
                self.lines.append(line(h, text))

    def _own(self, h: Happening, state: State) -> None:
        """Keep up with where it is."""
        cooling = state.cooling.get(self.model)
        self.message = cooling.message if cooling is not None else self.message
        if isinstance(h.body, c.OperationEnded) and h.body.operation == self.made.subject:
            self.end = h
        if h.subject != self.made.subject and getattr(h.body, "request", "") != self.made.subject:
            return
        if isinstance(h.body, c.RequestDispatched):
            self.dispatch, self.exchange = h, None
            self.waits.moved()
        elif isinstance(h.body, c.UpstreamEnded):
            self.exchange = h
        elif isinstance(h.body, ENDS):
            self.end = h
        elif isinstance(h.body, c.RequestRequeued):
            self.dispatch = None
            self.waits.moved()

    # --- what is said of each event ----------------------------------------------------------------------

    def arrived(self, h: Happening, state: State) -> str:
        if h.seq != self.made.seq:
            return ""
        who = f" (from {h.body.caller})" if h.body.caller else ""
        what = f"a lease of {h.body.model}" if self.leases else h.body.model
        return f"{h.subject}{who} asked for {what}{options_of(h.body.options)}"

    def queued(self, h: Happening, state: State) -> str:
        if h.body.request != self.made.subject:
            return ""
        request = state.requests[h.body.request]
        self.demand = demand_key(request.model, request.options, request.priority)
        demand = state.demands.get(self.demand)
        ahead = list(demand.waiting) if demand is not None else []
        none = "no runner with that was there" if request.options else "no runner of it was there"
        reason = none if h.body.reason == "no runner" else runner_story.runner_is(h.body.reason)
        return f"it was queued, as {reason}{ahead_words(ahead)}"

    def requeued(self, h: Happening, state: State) -> str:
        if h.body.request != self.made.subject:
            return ""
        request = state.requests[h.body.request]
        self.demand = demand_key(request.model, request.options, request.priority, h.body.runner)
        why = str(h.body.reason).replace("_", " ")
        return (
            f"{h.body.runner} failed it before a byte was sent ({why}): it was queued again, in its old place"
        )

    def waits_for(self, h: Happening, state: State) -> str:
        if h.body.demand != self.demand:
            return ""
        turn = turn_of(h, state)
        new = not self._turns or other_wait(self._turns[-1].event.body, h.body)
        self._turns = (turn,)
        return turn_words(turn) if new else ""

    def claimed(self, h: Happening, state: State) -> str:
        if h.body.demand != self.demand:
            return ""
        self.choice = chosen(state, h, state.demands[self.demand], ())
        self.runners |= dict.fromkeys(h.body.victims, "victim")
        return choice_words(self.choice)

    def unclaimed(self, h: Happening, state: State) -> str:
        if h.body.demand != self.demand or h.body.reason == "room_made":
            return ""
        return f"the room that was made was given up ({str(h.body.reason).replace('_', ' ')})"

    def loads(self, h: Happening, state: State) -> str:
        waiting, d = self.waiting(state), h.body
        if waiting is None or d.model != self.model or not options_fit(d, waiting):
            return ""
        self.runners[h.subject] = "mine"
        alone = ", with nothing beside it until it has been measured" if d.alone else ""
        return f"{h.subject} was started: {d.model}{options_of(d.options)}, {sizes(d.reserved_bytes)}{alone}"

    def answered(self, h: Happening, state: State) -> str:
        runner = state.runners.get(h.body.runner)
        mine = self.runners.get(h.body.runner) == "mine" or self._would_serve(h.body.runner, state)
        if runner is None or not mine or runner.state is not RunnerState.loading:
            return ""
        if not h.body.healthy or not runner.whole:
            return ""
        return f"{runner.id} was ready, after {duration(h.t - runner.load_t)}"

    def _would_serve(self, id: str, state: State) -> bool:
        demand, runner = self.waiting(state), state.runners.get(id)
        return (
            demand is not None
            and runner is not None
            and runner.model == self.model
            and fits(runner, demand.options)
        )

    def dispatched(self, h: Happening, state: State) -> str:
        if h.body.request != self.made.subject:
            return ""
        self.runners[h.body.runner] = "mine"
        again = ", its second attempt" if h.body.attempt > 1 else ""
        return f"it {'holds a slot of' if self.leases else 'went to'} {h.body.runner}{again}"

    def drains(self, h: Happening, state: State) -> str:
        runner = state.runners.get(h.body.runner)
        if self.runners.get(h.body.runner) != "victim" or runner is None:
            return ""
        running = slots(len(runner.held), len(held(state, runner)))
        went_on = f", and went on with the {running} that it had" if running else ""
        return f"{runner.id} took no new requests{went_on}"

    def gone(self, h: Happening, state: State) -> str:
        if h.body.runner not in self.runners:
            return ""
        runner = state.runners[h.body.runner]
        return f"{runner.id} {runner_story.gone_words(seen=back(state, runner))}"

    def exited(self, h: Happening, state: State) -> str:
        runner = state.runners.get(h.body.runner)
        if self.runners.get(h.body.runner) != "mine" or runner is None or runner.exited:
            return ""
        if runner.state is RunnerState.loading and h.body.output:
            self.output = h.body.output.strip()
        return f"{runner.id} {runner_story.exit_words(h, asked=bool(runner.verdict))}"

    def spawn_failed(self, h: Happening, state: State) -> str:
        if self.runners.get(h.body.runner) != "mine":
            return ""
        self.output = h.body.error
        return f"{h.body.runner} could not be started: {h.body.error}"

    def stops(self, h: Happening, state: State) -> str:
        if self.runners.get(h.body.runner) != "mine":
            return ""
        why = runner_story.REASONS.get(h.body.reason)
        return f"{h.body.runner} was stopped, because {why}" if why else ""

    def cools(self, h: Happening, state: State) -> str:
        if h.body.model != self.model:
            return ""
        return runner_story.cooling_words(h)

    def crowded(self, h: Happening, state: State) -> str:
        if h.body.model != self.model:
            return ""
        return f"{h.body.runner} had run out of memory beside others: {self.model} is tried once more, alone"

    def exchanged(self, h: Happening, state: State) -> str:
        if h.body.request != self.made.subject or not h.body.sent:
            return ""
        if self.leases:
            return f"it let go of {h.body.runner}" if h.body.complete else ""
        if not h.body.complete:
            sent = size(h.body.bytes_to_client)
            return f"{h.body.runner} broke off after {sent}: {h.body.error or 'its answer ended early'}"
        return f"{h.body.runner} answered it: status {h.body.status}, {size(h.body.bytes_to_client)}"

    def revoked(self, h: Happening, state: State) -> str:
        """Its own lease, or one that keeps it waiting."""
        request, own = state.requests[h.body.request], h.body.request == self.made.subject
        goes = self.runners.get(h.body.runner) in ("victim", "unload")
        if not own and not goes and not self._would_serve(h.body.runner, state):
            return ""
        return revoked_words(h, request.caller, own=own)

    def resumed(self, h: Happening, state: State) -> str:
        return "its holder came back" if h.body.request == self.made.subject else ""

    def went(self, h: Happening, state: State) -> str:
        return "its client went away" if h.body.request == self.made.subject else ""

    def cancels(self, h: Happening, state: State) -> str:
        if h.seq == self.made.seq:
            return f"{h.body.by or 'an operator'} cancelled {h.body.request}: {h.subject}"
        asked = f"{h.body.by or 'an operator'} cancelled it: {h.subject}"
        return asked if h.body.request == self.made.subject else ""

    def ended(self, h: Happening, state: State) -> str:
        if h.body.request != self.made.subject or isinstance(h.body, c.RequestCompleted | c.RequestCancelled):
            return ""
        return ended_words(h, self.model, self.message)

    def started(self, h: Happening, state: State) -> str:
        return "the daemon, which had died, was started again"

    # --- operators' --------------------------------------------------------------------------------------

    def load_asked(self, h: Happening, state: State) -> str:
        if h.seq != self.made.seq:
            return ""
        d = h.body
        view = state.model(d.model)
        self.demand = demand_key(d.model, d.options, d.priority + (view.priority if view else 0))
        who = "the configuration (preload)" if d.preload else f"{d.by or 'an operator'}"
        return f"{who} asked for {d.model}{options_of(d.options)} to be loaded: {h.subject}"

    def unload_asked(self, h: Happening, state: State) -> str:
        d = h.body
        if h.seq != self.made.seq:
            return ""
        mine = [
            r
            for r in state.runners.values()
            if d.runner == r.id or (not d.runner and d.model in ("", r.model))
        ]
        self.runners |= dict.fromkeys((r.id for r in mine), "unload")
        self.model = d.model or (mine[0].model if len(mine) == 1 else "")
        there = listed([f"{r.id} ({r.model})" for r in mine]) or "nothing of that was there"
        how = ", without waiting for requests" if d.now else ""
        what = d.runner or d.model or "everything"
        return f"{d.by or 'an operator'} asked to unload {what}{how}: {there}"

    def pin_asked(self, h: Happening, state: State) -> str:
        if h.seq != self.made.seq:
            return ""
        verb = "pinned" if h.body.pinned else "unpinned"
        return f"{h.body.by or 'an operator'} {verb} {h.body.model}"

    def operation_ended(self, h: Happening, state: State) -> str:
        if h.body.operation != self.made.subject:
            return ""
        if h.body.ok:
            return f"{h.subject} was done" + (f": {h.body.runner} was ready" if h.body.runner else "")
        return f"{h.subject} was refused: {reason_words(h.body, self.model, self.message)}"


TELL: dict[Any, Callable[[Told, Happening, State], str]] = {
    c.RequestArrived: Told.arrived,
    c.RequestQueued: Told.queued,
    c.RequestRequeued: Told.requeued,
    c.TurnWaits: Told.waits_for,
    c.ClaimMade: Told.claimed,
    c.ClaimEnded: Told.unclaimed,
    c.RunnerLoad: Told.loads,
    c.ProbeAnswered: Told.answered,
    c.RequestDispatched: Told.dispatched,
    c.RunnerDrain: Told.drains,
    c.RunnerStop: Told.stops,
    c.RunnerUnloaded: Told.gone,
    c.RunnerFailed: Told.gone,
    c.ProcessExited: Told.exited,
    c.SpawnFailed: Told.spawn_failed,
    c.ModelCooling: Told.cools,
    c.ModelCrowded: Told.crowded,
    c.UpstreamEnded: Told.exchanged,
    c.LeaseRevoked: Told.revoked,
    c.LeaseResumed: Told.resumed,
    c.ClientGone: Told.went,
    c.CancelRequested: Told.cancels,
    c.DaemonStarted: Told.started,
    c.LoadRequested: Told.load_asked,
    c.UnloadRequested: Told.unload_asked,
    c.PinRequested: Told.pin_asked,
    c.OperationEnded: Told.operation_ended,
    **dict.fromkeys(ENDS, Told.ended),
}
"""What is said of each type of event, where it concerns who waits."""


def options_fit(d: c.RunnerLoad, demand: Demand) -> bool:
    """Whether a load is one that a demand would be served by."""
    if d.less and d.less not in demand.options:
        return False
    return all(d.options.get(name) == value or name == d.larger for name, value in demand.options.items())


def ahead_words(ahead: list[str]) -> str:
    """Who is in the queue before it."""
    if not ahead:
        return ""
    named = listed(ahead[:AHEAD_NAMED])
    rest = len(ahead) - AHEAD_NAMED
    return f", behind {named}" + (f" and {rest} more" if rest > 0 else "")


def ended_words(h: Happening, model: str, message: str) -> str:
    """How a request ended that was not answered."""
    body = h.body
    if isinstance(body, c.RequestInterrupted):
        return "it was interrupted: the daemon had died under it"
    refused, late = isinstance(body, c.RequestRejected), isinstance(body, c.RequestTimedOut)
    verb = "was refused" if refused else "timed out" if late else "failed"
    return f"it {verb}: {reason_words(body, model, message)}"


def reason_words(
    body: c.RequestFailed | c.RequestRejected | c.OperationEnded, model: str, message: str
) -> str:
    """What its client was told."""
    reason = body.reason or "the daemon was started again"
    if reason == "queue_full":
        return "the queue was full"
    sentence = STATUS.get(reason, (0, reason.replace("_", " ")))[1]
    said = message.strip().splitlines()
    detail = getattr(body, "detail", "") or "no further word"
    return sentence.format(model=model, detail=detail, message=said[-1] if said else "it said nothing")


# --- as a whole ------------------------------------------------------------------------------------------


def explain_request(reader: Reader, made: Happening, upto: int | None, t: int) -> Explanation:
    """A request, from its arrival to its end, or to event `upto`."""
    told, state = _read(reader, made, upto, t)
    return _explained(told, state, "request", request_summary(told, state))


def explain_operation(reader: Reader, made: Happening, upto: int | None, t: int) -> Explanation:
    """An operator's request, from its fact to its answer."""
    told, state = _read(reader, made, upto, t)
    return _explained(told, state, "operation", operation_summary(told, state))


def _read(reader: Reader, made: Happening, upto: int | None, t: int) -> tuple[Told, State]:
    """What there is to tell, and the state at its end."""
    told = Told(made)
    told.upto = upto
    state = walk(reader, told)
    if told.end is None:
        told.last_t = state.t = max(state.t, t)
    told.waits.look(told.last_t, state)
    return told, state


def _explained(told: Told, state: State, kind: str, summary: str) -> Explanation:
    choice = told.choice
    return Explanation(
        told.made.subject,
        "request" if kind == "request" else "operation",
        told.model,
        summary,
        in_order(told.lines),
        tuple(phases(told)),
        choice.considered if choice else (),
        choice.memory if choice else (),
        choice.made.seq if choice else 0,
        told.output,
        state.seq,
    )


def phases(told: Told) -> Iterator[Phase]:
    """The parts of its time; they add up to all of it."""
    parts = list(told.waits.phases())
    for i, part in enumerate(parts):
        last = part.kind == "served" and i == len(parts) - 1
        yield msgspec.structs.replace(part, text=part.text + served_words(told.exchange)) if last else part


def served_words(exchange: Happening | None) -> str:
    """`: first byte after 0.3 s, status 200`."""
    if exchange is None or not exchange.body.complete:
        return ""
    first = exchange.body.first_byte_ns
    return f": first byte after {duration(first)}" if first else ""


def request_summary(told: Told, state: State) -> str:
    """How long it took, and for what."""
    what = f"a lease of {told.model}" if told.leases else told.model
    name, parts = f"{told.made.subject} ({what})", list(phases(told))
    if told.end is None:
        return f"{name} {_goes_on(told, parts)}."
    took = f"after {duration(told.end.t - told.made.t)}"
    body = told.end.body
    if isinstance(body, c.RequestCompleted):
        return f"{name} was {'let go of' if told.leases else 'answered'} {took}{shares(parts)}."
    if isinstance(body, c.RequestCancelled):
        who = "its client went away" if body.reason == "client_gone" else "an operator cancelled it"
        while_ = f", while {told.dispatch.body.runner} served it" if told.dispatch else _while(parts)
        return f"{name} ended {took} because {who}{while_}."
    verb, _, why = ended_words(told.end, told.model, told.message).removeprefix("it ").partition(":")
    if told.end.t - told.made.t < INSTANT_NS:
        return f"{name} {verb} at once:{why}."
    return f"{name} {verb} {took}:{why}{shares(parts).replace(': ', ' (', 1) + ')' if parts else ''}."


def shares(parts: list[Phase]) -> str:
    """`: 5.4 s waiting, 3.2 s loading, 4.1 s being served`; of a short wait, that there was none."""
    kinds = (("waited", "waiting"), ("loaded", "loading"), ("served", "being served"))
    each = [(sum(part.ns for part in parts if part.kind == kind), what) for kind, what in kinds]
    if all(ns < INSTANT_NS for ns, what in each[:2]):
        return ": a runner was free for it at once"
    return ": " + listed([f"{duration(ns)} {what}" for ns, what in each if ns >= INSTANT_NS])


def _goes_on(told: Told, parts: list[Phase]) -> str:
    whole = duration(told.last_t - told.made.t)
    if told.dispatch is not None:
        since = duration(told.last_t - told.dispatch.t)
        before = shares(parts[:-1]) if parts[1:] else ""
        verb = "has held a slot of" if told.leases else "has been running on"
        return f"{verb} {told.dispatch.body.runner} for {since}{before}"
    return f"has been waiting for {whole}; at last, {parts[-1].text}" if parts else "has only just arrived"


def _while(parts: list[Phase]) -> str:
    return f", while it waited ({parts[-1].text})" if parts else ""


VERBS = {
    "operator.load": "load",
    "operator.unload": "unload",
    "operator.cancel": "cancel",
    "operator.pin": "pin",
}


def operation_summary(told: Told, state: State) -> str:
    """What an operator asked for, and what came of it."""
    made = told.made
    what = VERBS.get(str(made.body.__struct_config__.tag), "")
    if isinstance(made.body, c.PinRequested):
        what = "pin" if made.body.pinned else "unpin"
    about = (
        getattr(made.body, "runner", "")
        or getattr(made.body, "model", "")
        or getattr(made.body, "request", "")
    )
    name = f"{made.subject} ({what} {about or 'everything'}, by {made.body.by or 'an operator'})"
    if told.end is None:
        return f"{name} has no answer yet, after {duration(told.last_t - made.t)}."
    took = duration(told.end.t - made.t)
    if told.end.body.ok:
        return f"{name} was done, after {took}."
    return f"{name} was refused after {took}: {reason_words(told.end.body, told.model, told.message)}."
