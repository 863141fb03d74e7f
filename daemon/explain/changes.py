"""What is different between two moments of a log."""

from __future__ import annotations

from typing import Any

import msgspec

from daemon.explain.memory import Device, activity, ledger
from daemon.explain.walk import Happening, Watch, happening, walk
from daemon.tally import OUTCOMES
from events import catalogue as c
from events.catalogue import ConfigView
from events.reader import CursorPruned, Reader
from statemachines.request import RequestState
from statemachines.state import State

NAMED = 20
"""Requests that are named, of each kind: the rest is a number."""


SETTINGS = tuple(name for name in ConfigView.__struct_fields__ if name != "models")
"""What a configuration has beside its models."""


class RunnerChange(msgspec.Struct, frozen=True):
    """A runner that is there at one of the moments. before, after: its state then, `idle` or `busy` where it
    is ready; "": it was not there. reason: why it ended, where it did."""

    runner: str
    model: str
    before: str
    after: str
    reason: str


class ModelChange(msgspec.Struct, frozen=True):
    """A model of the configuration. what: added, removed or changed; fields: those that changed."""

    model: str
    what: str
    fields: tuple[str, ...] = ()


class Moment(msgspec.Struct, frozen=True):
    """One of the two. Times are ns: at_ns UTC, t_ns the scheduler's."""

    seq: int
    at_ns: int
    t_ns: int
    queued: int
    running: int
    memory: tuple[Device, ...]


class Diff(msgspec.Struct, frozen=True):
    """Everything that is different. requests_gone: those that were there at the first moment, and how they
    ended ("" where the log does not say yet); requests_new: those that are there only at the second;
    some of each.
    ended: how many ended between, by how; passed: runners that came and went between."""

    before: Moment
    after: Moment
    runners: tuple[RunnerChange, ...]
    passed: int
    arrived: int
    ended: dict[str, int]
    requests_gone: dict[str, str]
    requests_new: tuple[str, ...]
    pinned: tuple[str, ...]
    unpinned: tuple[str, ...]
    claims_made: tuple[str, ...]
    claims_ended: tuple[str, ...]
    cooling: tuple[str, ...]
    cooled: tuple[str, ...]
    models: tuple[ModelChange, ...]
    settings: tuple[str, ...]
    stopping: tuple[str, str]
    starts: int
    """How often the daemon started between."""


class _Glance(msgspec.Struct):
    """What of a state is compared: taken before the fold goes on, which changes it."""

    moment: Moment
    runners: dict[str, tuple[str, str]]
    requests: dict[str, None]
    counts: dict[str, int]
    pinned: dict[str, None]
    claims: dict[str, None]
    cooling: dict[str, None]
    config: ConfigView
    stopping: str


class _Between(Watch):
    """The first moment, and what became of runners and requests since."""

    def __init__(self, first: int, last: int) -> None:
        self.begin = self.stop_at = first
        self.upto = last
        self.glance: _Glance | None = None
        self.gone: dict[str, str] = {}
        self.ended: dict[str, str] = {}
        self.arrived = self.starts = self.loads = 0
        ends = (
            c.RequestCompleted,
            c.RequestFailed,
            c.RequestCancelled,
            c.RequestTimedOut,
            c.RequestInterrupted,
        )
        self.looks = {
            c.RequestArrived: self._arrives,
            c.RunnerLoad: self._loads,
            c.DaemonStarted: self._starts,
            **dict.fromkeys((c.RunnerUnloaded, c.RunnerFailed, c.RunnerLost), self._goes),
            **dict.fromkeys(ends, self._ends),
        }

    def stopped(self, state: State) -> None:
        self.glance = _glance(state, 0)

    def _arrives(self, h: Happening, state: State) -> None:
        self.arrived += self.glance is not None

    def _loads(self, h: Happening, state: State) -> None:
        self.loads += self.glance is not None

    def _starts(self, h: Happening, state: State) -> None:
        self.starts += self.glance is not None

    def _goes(self, h: Happening, state: State) -> None:
        if self.glance is not None and h.body.runner in self.glance.runners:
            failed = "failed: " if isinstance(h.body, c.RunnerFailed) else ""
            self.gone[h.body.runner] = failed + getattr(h.body, "reason", "lost")

    def _ends(self, h: Happening, state: State) -> None:
        if self.glance is not None and h.body.request in self.glance.requests:
            how = str(h.body.__struct_config__.tag).partition(".")[2]
            self.ended[h.body.request] = how


def _glance(state: State, at_ns: int) -> _Glance:
    live = {
        id: None
        for id, r in state.requests.items()
        if r.state in (RequestState.queued, RequestState.dispatched)
    }
    moment = Moment(state.seq, at_ns, state.t, state.queued, len(live) - state.queued, ledger(state))
    return _Glance(
        moment,
        {id: (runner.model, activity(runner)) for id, runner in state.runners.items()},
        live,
        dict(state.counts),
        dict(state.pinned),
        dict.fromkeys(state.claims),
        {model: None for model, cooling in state.cooling.items() if cooling.until_t > state.t},
        state.config,
        state.stopping,
    )


def diff(reader: Reader, first: int, last: int) -> Diff:
    """What changed between event `first` and event `last`, which comes later. Raises LogError."""
    watch = _Between(first, last)
    if first < reader.base.seq:
        if reader.base.seq > 1:
            raise CursorPruned(f"the log begins at event {reader.base.seq}")
        watch.stopped(State())
    state = walk(reader, watch)
    before, after = watch.glance or _glance(state, 0), _glance(state, 0)
    before.moment = _timed(reader, before.moment)
    after.moment = _timed(reader, after.moment)
    came = [id for id in after.runners if id not in before.runners]
    gone = {id: watch.ended.get(id, "") for id in before.requests if id not in after.requests}
    new = [id for id in after.requests if id not in before.requests]
    return Diff(
        before.moment,
        after.moment,
        tuple(_runners(before, after, watch.gone)),
        watch.loads - len(came),
        watch.arrived,
        {end: n for end in OUTCOMES if (n := after.counts.get(end, 0) - before.counts.get(end, 0))},
        dict(list(gone.items())[:NAMED]),
        tuple(new[:NAMED]),
        _only(after.pinned, before.pinned),
        _only(before.pinned, after.pinned),
        _only(after.claims, before.claims),
        _only(before.claims, after.claims),
        _only(after.cooling, before.cooling),
        _only(before.cooling, after.cooling),
        tuple(_models(before.config, after.config)),
        tuple(name for name in SETTINGS if getattr(before.config, name) != getattr(after.config, name)),
        (before.stopping, after.stopping),
        watch.starts,
    )


def _timed(reader: Reader, moment: Moment) -> Moment:
    h = happening(reader, moment.seq)
    return msgspec.structs.replace(moment, at_ns=h.at if h is not None else 0)


def _only(here: dict[str, None], there: dict[str, None]) -> tuple[str, ...]:
    return tuple(name for name in here if name not in there)


def _runners(before: _Glance, after: _Glance, gone: dict[str, str]) -> list[RunnerChange]:
    found = []
    for id, (model, was) in before.runners.items():
        now = after.runners.get(id, ("", ""))[1]
        if was != now:
            found.append(RunnerChange(id, model, was, now, gone.get(id, "")))
    new = [(id, about) for id, about in after.runners.items() if id not in before.runners]
    return found + [RunnerChange(id, model, "", now, "") for id, (model, now) in new]


def _models(before: ConfigView, after: ConfigView) -> list[ModelChange]:
    found = []
    for name, was in before.models.items():
        now = after.models.get(name)
        if now is None:
            found.append(ModelChange(name, "removed"))
        elif now != was:
            found.append(ModelChange(name, "changed", _fields(was, now)))
    return found + [ModelChange(name, "added") for name in after.models if name not in before.models]


def _fields(was: Any, now: Any) -> tuple[str, ...]:
    return tuple(name for name in was.__struct_fields__ if getattr(was, name) != getattr(now, name))
