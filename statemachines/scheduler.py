"""The core's one door: `Scheduler.step(fact, t)`, which returns the fact and the decisions that follow.

    fact ──▶ step ──▶ [fact, decision, decision …] ──▶ log (durable) ──▶ effects

The law of the returned events: they are appended to the log, whole steps in order, before any opening effect
of theirs is carried out. `step` is total and deterministic and never waits; it does no I/O. Deadlines that
came due before `t` are steps of their own and come first, each beginning with its `deadline.passed`.
"""

from __future__ import annotations

from operator import attrgetter

from events import catalogue as c
from events.catalogue import Decision, Event, Fact, Payload
from events.limits import STEP_DECISIONS
from statemachines import deadlines, decide, leases
from statemachines.fold import apply
from statemachines.parts import Runner
from statemachines.runner import RunnerState
from statemachines.state import State, dismissal_key, is_many

RULES = 4
"""Raised by any change that could alter a decision; recorded by every start."""


class Scheduler:
    """The state, and the only way to change it. Raises Breach or IllegalTransition if a step must not be;
    the state is then void, and nothing of the step may be appended."""

    __slots__ = ("cause", "events", "left", "more", "state")

    def __init__(self, state: State | None = None) -> None:
        self.state = state or State()
        self.events: list[Event] = []
        self.cause = 0
        self.left = 0
        """Waiters that this step may still answer."""
        self.more = False
        """Whether loads, or ends of runners, are left for another step."""

    def step(self, fact: Fact, t: int) -> list[Event]:
        """Fire every deadline before `t`, then take the fact. `t`: scheduler time, ns; one that is earlier
        than the last counts as that."""
        events: list[Event] = []
        self.events = events
        state = self.state
        t = t if t > state.t else state.t  # what is due by then comes first, as in a replay
        if state.deadlines.soonest <= t and type(fact) is not c.DaemonStarted:
            self._fire(t)
        self._take(fact, t)
        return events

    def advance(self, t: int) -> list[Event]:
        """Fire every deadline up to `t`."""
        events: list[Event] = []
        self.events = events
        self._fire(t)
        return events

    def advance_one(self, t: int) -> list[Event]:
        """Fire the first deadline alone, if it is due at `t`: one step of `advance`, for replay."""
        events: list[Event] = []
        self.events = events
        first = self.state.deadlines.due(t)
        if first is not None:
            self._take(c.DeadlinePassed(*first[1]), max(first[0], self.state.t))
        return events

    def next_due(self) -> int | None:
        """When the next deadline is due, in scheduler time; None: there is none."""
        first = self.state.deadlines.first()
        return first[0] if first else None

    def is_due_before(self, t: int) -> bool:
        """Whether a deadline is due before `t`: cheap where none is."""
        deadlines = self.state.deadlines
        return deadlines.soonest < t and deadlines.due(t - 1) is not None

    def _fire(self, t: int) -> None:
        deadlines = self.state.deadlines
        while (first := deadlines.due(t)) is not None:
            due, key = first
            self._take(c.DeadlinePassed(*key), max(due, self.state.t))

    def _take(self, fact: Fact, t: int) -> None:
        state = self.state
        seq = state.seq + 1
        event = Event(seq, t, 0, subject_of(fact, seq), fact)
        apply(state, event)
        self.events.append(event)
        self.cause = seq
        self.left, self.more = STEP_DECISIONS // 2 if is_many(state) else STEP_DECISIONS, False
        HANDLERS[type(fact)](self, fact, event.subject)
        if self.left < 0 or self.more:
            resumes = ("resume", "") in state.deadlines
            if not resumes or (state.only_loads and self.left < 0):
                self.emit(c.StepContinues(only_loads=self.left >= 0))

    # --- what decisions are made of ----------------------------------------------------------------------

    def emit(self, decision: Decision) -> None:
        """Conclude: number the decision, fold it, add it to the step."""
        state = self.state
        seq = state.seq + 1
        event = Event(seq, state.t, self.cause, subject_of(decision, seq), decision)
        apply(state, event)
        self.events.append(event)

    def drain(self, runner: Runner, reason: str, deadline_ns: int = 0) -> None:
        """Close a ready runner to new work, and stop it at once if it has none."""
        self.emit(c.RunnerDrain(runner.id, reason, deadline_ns))
        if not runner.held:
            self.emit(c.RunnerStop(runner.id, "unloaded", reason))
        else:
            leases.revoke_all(self, runner, reason, deadline_ns)

    def retire(self, runner: Runner, reason: str, deadline_ns: int) -> None:
        """Make a runner go, whatever state it is in; its requests may run until the deadline."""
        if runner.state is RunnerState.ready:
            self.drain(runner, reason, deadline_ns)
        elif runner.state is RunnerState.loading:
            self.emit(c.RunnerStop(runner.id, "unloaded", reason))

    def dismiss(self, model: str, reason: str, runner: str = "", detail: str = "", demand: str = "") -> None:
        """Answer those who wait for a model (or one demand) with an error, as many as this step may. Among
        many runners, in steps of their own."""
        self.emit(c.ModelDismissed(model, reason, runner, detail, demand))
        if is_many(self.state):
            self.left = min(self.left, 0)
        decide.dismiss_waiting(self, dismissal_key(model, demand))


def subject_of(body: Payload, seq: int) -> str:
    """The id of what an event is about: made from its own number where it creates the subject."""
    kind = type(body)
    named = NAMED.get(kind)
    if named is not None:
        subject: str = named(body)
        return subject
    prefix = CREATES.get(kind)
    return f"{prefix}{seq}" if prefix is not None else ""


HANDLERS = decide.HANDLERS | {c.DeadlinePassed: deadlines.deadline_passed}

CREATES: dict[type, str] = {
    c.RequestArrived: "q",
    c.RunnerLoad: "r",
    c.LoadRequested: "o",
    c.UnloadRequested: "o",
    c.PinRequested: "o",
    c.ProfileRequested: "o",
    c.CancelRequested: "o",
}

SUBJECTS = ("request", "operation", "model", "runner", "demand", "id", "about")

SUBJECT_FIELD: dict[type, str] = {
    kind: name
    for kind in (*c.FACTS, *c.DECISIONS)
    for name in [next((f for f in SUBJECTS if hasattr(kind, f)), "")]
    if name and kind not in CREATES and kind not in (c.TurnWaits, c.BreachRecorded)
}
NAMED = {kind: attrgetter(name) for kind, name in SUBJECT_FIELD.items()}
