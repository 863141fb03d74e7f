"""A model at a moment: loaded, and for whom, or not, and why; with the life of the runner that tells it."""

from __future__ import annotations

import msgspec

from daemon.explain import runner_story
from daemon.explain.lives import Life, Lives, before_load, older
from daemon.explain.obstacle import WhyNot, why_not
from daemon.explain.told import Explanation, Line
from daemon.explain.unknown import UnknownSubject
from daemon.explain.walk import Happening, Watch, happening, walk
from daemon.explain.words import MOMENT_NS, count, duration, first_up, listed, options_of
from events import catalogue as c
from events.envelope import decode
from events.reader import Reader
from statemachines.state import State


class ModelWatch(Lives):
    """The lives of a model's runners and who asked for it, up to a moment; those alive then to their end."""

    def __init__(self, model: str, moment: int) -> None:
        super().__init__(model)
        self.stop_at = moment
        self.asked = 0
        """Requests for it; operators are counted apart."""
        self.operators = 0
        self.last_asked: Happening | None = None
        self.refused: Happening | None = None
        """The last of those that was refused on arrival, or failed while it waited."""
        self.alive: list[Life] = []
        """Runners of it at the moment."""
        self.ended: Life | None = None
        """The last that had ended by then."""
        self.absent: WhyNot | None = None
        """What kept it from being loaded at the moment, if it was not."""
        self.known: tuple[str, ...] = ()
        self.t = 0
        self.now_t = 0
        """The time that it is, where that is later than the last event."""
        self._past = False
        self._requests: dict[str, None] = {}
        self.looks = {
            **self.looks,
            c.RequestArrived: self._arrives,
            c.RequestRejected: self._refuses,
            c.RequestFailed: self._refuses,
            c.OperationEnded: self._refuses_operator,
        }

    def _arrives(self, h: Happening, state: State) -> None:
        if self._past and all(life.over and self._told(life) for life in self.alive):
            self.done = True

    def _told(self, life: Life) -> bool:
        """Whether nothing more is to come of an ended runner."""
        return life.end is None or life.end.choice is None or life.successor is not None

    def _refuses(self, h: Happening, state: State) -> None:
        if self._past:
            return
        request = state.requests.get(h.body.request)
        if request is not None and request.model == self.model:
            self.refused = h

    def _refuses_operator(self, h: Happening, state: State) -> None:
        mine = self.last_asked is not None and h.body.operation == self.last_asked.subject
        if mine and not h.body.ok and not self._past:
            self.refused = h

    def stopped(self, state: State) -> None:
        """The moment has come."""
        state.t = max(state.t, self.now_t)
        self._past, self.t = True, state.t
        self.known = tuple(state.config.models)
        self.alive = [life for life in self if not life.over]
        self.ended = next((life for life in reversed(list(self)) if life.over), None)
        if not any(life.end is None for life in self.alive) and not state.stopping:
            self.absent = why_not(state, self.model)


def explain_model(reader: Reader, model: str, moment: int | None, *, now: bool, t: int = 0) -> Explanation:
    """Why a model was loaded, or was not, after event `moment` (None: the last). `now`: nothing that came
    after is told, and it is said in the present; `t`: the time that it is, if the daemon lives."""
    head = reader.head().seq
    watch = ModelWatch(model, head if moment is None else moment)
    watch.upto = moment if now else None
    watch.now_t = t
    watch.begin = _begins(reader, watch)
    state = walk(reader, watch)
    if watch.last_asked is None and not watch.lives and model not in watch.known:
        raise UnknownSubject(model, watch.known)
    life = _telling(watch)
    summary = _summary(watch, life, state, now=now)
    if life is None:
        lines = tuple(_asked(watch))
        memory = watch.absent.memory if watch.absent else ()
        return Explanation(
            model, "model", model, summary, lines, memory=memory, decided_seq=watch.stop_at or 0,
            upto_seq=state.seq, absent=watch.absent,
        )  # fmt: skip
    told = runner_story.of_life(reader, life, state, model, summary)
    return msgspec.structs.replace(
        told, absent=watch.absent, lines=runner_story.in_order([*told.lines, *_asked(watch, life)])
    )


def _begins(reader: Reader, watch: ModelWatch) -> int:
    """The event up to which nothing has to be seen: the pass finds the runners that live at the moment, or
    the last that had, and who asked for the model last."""
    moment = watch.stop_at or 0
    at = Watch()
    at.begin = at.upto = moment
    alive = walk(reader, at).models.get(watch.model, {})
    loads = [happening(reader, int(id[1:])) or older(runner).load for id, runner in alive.items()]
    if not alive:
        for record in reader.records(0, moment):
            if record.type not in ("runner.load", "request.arrived", "operator.load"):
                continue
            body = decode(record).body
            if getattr(body, "model", "") == watch.model:
                h = Happening(record.seq, record.at, record.t, record.cause, record.subject, body)
                if isinstance(body, c.RunnerLoad):
                    loads = [h]
                else:
                    watch.last_asked = h
                    watch.asked += isinstance(body, c.RequestArrived)
                    watch.operators += isinstance(body, c.LoadRequested)
    begins = [before_load(h) for h in loads]
    if watch.last_asked is not None:
        begins.append(watch.last_asked.seq - 1)
    return min([moment, *begins])


def _telling(watch: ModelWatch) -> Life | None:
    """The runner whose life says most: one that serves or will, else one on its way out, else the last."""
    serving = [life for life in watch.alive if life.end is None or life.end.event.t > watch.t]
    ready = [life for life in serving if life.ready is not None]
    return next(iter([*ready, *serving, *watch.alive]), watch.ended)


def _summary(watch: ModelWatch, life: Life | None, state: State, *, now: bool) -> str:
    """The state then, and why."""
    then = "now" if now else "then"
    is_, has = ("is", "has") if now else ("was", "had")
    if life is None:
        if watch.model not in watch.known:
            return f"{watch.model} {is_} not loaded {then}: the configuration {has} no such model."
        askers = {"request": watch.asked, "operator": watch.operators}
        counts = [count(number, what) for what, number in askers.items() if number]
        asked = f"{listed(counts)} had asked for it" if counts else f"nobody {has} asked for it"
        never = f"no runner of it {has} been there since the log begins"
        return f"{watch.model} {is_} not loaded {then}: {never}, and {asked}."
    if life in watch.alive:
        if now or life.end is None:
            return runner_story.summary(life, state)
        if life.end.event.t <= watch.t:
            return f"{watch.model} was on its way out then: {runner_story.summary(life, state)}"
        ready = "was loaded" if life.ready is not None and life.ready.t <= watch.t else "was loading"
        later = duration(life.end.event.t - watch.t)
        return f"{watch.model} {ready} then, as {life.id}. {later} later, {runner_story.summary(life, state)}"
    ago_ns = watch.t - (life.after[-1].t if life.after else life.load.t)
    ago = duration(ago_ns)
    when = (
        f"{ago} {'ago' if now else 'before'}"
        if ago_ns >= MOMENT_NS
        else "just now"
        if now
        else "at that moment"
    )
    return f"{watch.model} {is_} not loaded {then}. {first_up(when)}, {runner_story.summary(life, state)}"


def _asked(watch: ModelWatch, life: Life | None = None) -> list[Line]:
    """The last that asked for it, if that was not long told."""
    h = watch.last_asked
    told = life is not None and h is not None and life.after and h.seq < life.after[-1].seq
    if h is None or told or (life is not None and not life.over):
        return []
    d = h.body
    if isinstance(d, c.LoadRequested):
        by = "the configuration (preload)" if d.preload else d.by or "an operator"
        text = f"{by} asked for {d.model}{options_of(d.options)} to be loaded: {h.subject}"
    else:
        who = f" (from {d.caller})" if d.caller else ""
        text = f"{h.subject}{who} asked for {d.model}{options_of(d.options)}"
    lines = [runner_story.line(h, text)]
    end = watch.refused
    if end is not None and h.subject in (
        getattr(end.body, "request", ""),
        getattr(end.body, "operation", ""),
    ):
        verb = "given an error" if isinstance(end.body, c.RequestFailed) else "refused"
        lines.append(runner_story.line(end, f"it was {verb}: {end.body.reason.replace('_', ' ')}"))
    return lines
