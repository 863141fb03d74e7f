"""Why: the one door to explanations, for `runnerlog why`, `runnerctl why` and Explain."""

from __future__ import annotations

import msgspec

from daemon.explain.lives import Lives, before_load, older
from daemon.explain.model_story import explain_model
from daemon.explain.obstacle import WhyNot, why_not
from daemon.explain.request_story import explain_operation, explain_request
from daemon.explain.runner_story import of_life
from daemon.explain.told import Explanation
from daemon.explain.unknown import ID, UnknownModel, UnknownSubject
from daemon.explain.walk import Happening, Watch, happening, step_end, walk
from daemon.past import nearest
from events import catalogue as c
from events.reader import CursorPruned, Reader

OPERATIONS = (c.LoadRequested, c.UnloadRequested, c.PinRequested, c.CancelRequested)
MADE = (c.RunnerLoad, c.RequestArrived, *OPERATIONS)
"""The events that make a runner, a request, an operation: they have its number."""


def explain(
    reader: Reader, subject: str, upto: int | None = None, *, now: bool = False, t: int = 0
) -> Explanation:
    """Why a runner (r17) was loaded and went, a request (q12) took as long as it did, an operation (o9) ended
    as it did; or why a model is, or is not, loaded. `upto`: of the first three, what was known by that event;
    of a model, the moment that is asked about, unless that is `now`. `t`: the time that it is, in
    scheduler time, if the daemon lives; else that of the last event. Raises UnknownSubject, LogError
    (CursorPruned)."""
    made = happening(reader, int(subject[1:])) if ID.fullmatch(subject) else None
    kind = type(made.body) if made is not None and made.subject == subject else None
    comes = made if made is not None and kind in MADE and upto is not None and made.seq > upto else None
    if made is not None and kind in MADE and comes is None:
        if kind is c.RunnerLoad:
            return explain_runner(reader, made, upto, t)
        if kind is c.RequestArrived:
            return explain_request(reader, made, upto, t)
        return explain_operation(reader, made, upto, t)
    base = reader.base.seq
    if made is None and ID.fullmatch(subject) and int(subject[1:]) < base:
        found = nearest(reader, base - 1)[0].runners.get(subject)
        if found is None:
            raise UnknownSubject(subject, begins=base)
        return explain_runner(reader, older(found).load, upto, t)
    if upto is not None and upto < base - 1:
        raise CursorPruned(f"the log begins at event {base}")
    try:
        return explain_model(reader, subject, upto, now=now or upto is None, t=t)
    except UnknownSubject as error:
        if comes is None and upto is not None and not now:
            comes = _comes(reader, subject, upto)
        raise (error if comes is None else UnknownSubject(subject, comes=comes)) from None


def _comes(reader: Reader, model: str, after: int) -> Happening | None:
    """The first configuration after an event that has a model."""
    for record in reader.records(after):
        if record.type == "config.changed":
            h = happening(reader, record.seq)
            if h is not None and model in h.body.view.models:
                return h
    return None


def explain_absence(reader: Reader, model: str, upto: int | None = None, t: int = 0) -> WhyNot:
    """What was in the way of a model after event `upto` (None: the last), or rather after its step, within
    which nothing is asked. Raises UnknownModel, LogError."""
    watch = Watch()
    watch.upto = watch.begin = reader.head().seq if upto is None else step_end(reader, upto)
    state = walk(reader, watch)
    if model not in state.config.models:
        comes = _comes(reader, model, state.seq)
        raise UnknownModel(model, tuple(state.config.models), comes=comes)
    last = happening(reader, state.seq)
    before_t, state.t = state.t, max(state.t, t)
    at_ns = last.at + state.t - before_t if last is not None else 0
    return msgspec.structs.replace(why_not(state, model), at_ns=at_ns)


def explain_runner(reader: Reader, load: Happening, upto: int | None, t: int) -> Explanation:
    """The whole life of a runner."""
    watch = Lives(load.body.model, load.subject)
    watch.upto, watch.begin = upto, before_load(load)
    state = walk(reader, watch)
    state.t = max(state.t, t)
    return of_life(reader, watch.lives[load.subject], state)
