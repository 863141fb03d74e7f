"""Why: the one door to explanations, for `runnerlog why`, `runnerctl why` and Explain."""

from __future__ import annotations

import re

from daemon.history.lives import Lives
from daemon.history.model_story import explain_model
from daemon.history.past import happening, walk
from daemon.history.request_story import explain_operation, explain_request
from daemon.history.runner_story import of_life
from daemon.history.told import Explanation, UnknownSubject
from events import catalogue as c
from events.reader import Reader

_ID = re.compile(r"[rqo][1-9][0-9]{0,17}")
OPERATIONS = (c.LoadRequested, c.UnloadRequested, c.PinRequested, c.CancelRequested)


def explain(reader: Reader, subject: str, upto: int | None = None) -> Explanation:
    """Why a runner (r17) was loaded and went, a request (q12) took as long as it did, an operation (o9) ended
    as it did; or why a model is, or is not, loaded. `upto`: of the first three, what was known by that event;
    of a model, the moment that is asked about. Raises UnknownSubject, LogError."""
    made = happening(reader, int(subject[1:])) if _ID.fullmatch(subject) else None
    kind = type(made.body) if made is not None and made.subject == subject else None
    if made is not None and (upto is None or made.seq <= upto):
        if kind is c.RunnerLoad:
            return explain_runner(reader, subject, made.body.model, upto)
        if kind is c.RequestArrived:
            return explain_request(reader, made, upto)
        if kind in OPERATIONS:
            return explain_operation(reader, made, upto)
    return explain_model(reader, subject, upto)


def explain_runner(reader: Reader, id: str, model: str, upto: int | None) -> Explanation:
    """The whole life of a runner."""
    watch = Lives(model, id)
    watch.upto = upto
    state = walk(reader, watch)
    life = watch.lives.get(id)
    if life is None:
        raise UnknownSubject(id)
    return of_life(reader, life, state)
