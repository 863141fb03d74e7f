"""Counting a stretch of a log: requests, waits, loads, evictions, what runners did with their lives, memory
held over time; in all, and for each key that is asked for (a model, an hour, a caller, a runner).

What `daemon.tally` counts for /metrics is counted by the same events here. Arrivals count when they arrive,
ends when they end, waits when a slot is got or given up: also of requests that arrived before the stretch.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Callable
from typing import Any

from daemon.history.figures import BUSY, IDLE, LEAVING, LOADING, Figures
from daemon.tally import REQUEST_ENDS, RUNNER_ENDS
from events import catalogue as c
from events.catalogue import NEVER, Event
from events.limits import S
from statemachines.parts import Runner
from statemachines.runner import RunnerState
from statemachines.state import State

HOUR_NS = 3600 * S


class Asked:
    """A request that has not ended."""

    __slots__ = ("arrived_t", "caller", "model", "runner", "served")

    def __init__(self, model: str, caller: str, arrived_t: int, *, served: bool, runner: str = "") -> None:
        self.model, self.caller, self.arrived_t = model, caller, arrived_t
        self.served = served
        """It has had a slot."""
        self.runner = runner
        """Whose slot it had last."""


class Life:
    """A runner that has not ended."""

    __slots__ = ("id", "load_t", "model", "phase", "ready", "since_at", "since_t")

    def __init__(self, runner: Runner, t: int, at_ns: int) -> None:
        self.id, self.model, self.load_t = runner.id, runner.model, runner.load_t
        self.ready = runner.ready_t != NEVER
        self.phase = phase_of(runner)
        self.since_t, self.since_at = t, at_ns


class Held:
    """What runners hold of a device, whenever that changes."""

    def __init__(self) -> None:
        self.at_ns = array("q")
        self.bytes = array("q")

    def mean_bytes(self, begin_ns: int, end_ns: int) -> int:
        """The mean over a time."""
        total, last = 0, begin_ns
        i = bisect_right(self.at_ns, begin_ns)
        size = self.bytes[i - 1] if i else 0
        while i < len(self.at_ns) and self.at_ns[i] < end_ns:
            total += size * (self.at_ns[i] - last)
            last, size = self.at_ns[i], self.bytes[i]
            i += 1
        total += size * (end_ns - last)
        return total // max(1, end_ns - begin_ns)

    @property
    def peak_bytes(self) -> int:
        """The most."""
        return max(self.bytes, default=0)


Key = Callable[[str, str | None, str, int], str | None]
"""By which figures are kept apart: of a model, a caller (None: it is no request), a runner ("": it has none)
and a time. None: it is counted in all only."""


class Stats:
    """Notes every event of every step, with the state after the step."""

    def __init__(self, state: State, key: Key = lambda model, *_: model) -> None:
        """`state`: before the first event that is noted."""
        self.total = Figures()
        self.by: dict[str, Figures] = {}
        self.held: dict[str, Held] = {}
        self.begin_ns = self.end_ns = 0
        self.first_t = self.last_t = state.t
        self._key = key
        self._asked = {
            r.id: Asked(r.model, r.caller, r.arrived_t, served=r.attempt > 0, runner=r.runner)
            for r in state.requests.values()
        }
        self._lives = {r.id: Life(r, state.t, 0) for r in state.runners.values()}
        self._begun = False
        self._down_t = 0
        """When the daemon that started last had been seen before."""
        self._hold(state)

    def note(self, state: State, event: Event, at_ns: int) -> None:
        """Take an event."""
        if not self._begun:
            self._begin(event.t, at_ns)
        body: Any = event.body
        kind = type(body)
        if kind is not c.LogSalvaged:  # which took no scheduler time, however late it came
            self.end_ns = max(self.end_ns, at_ns)
        if kind is c.DaemonStarted:
            self._down_t = self.last_t
        self.last_t = event.t
        handler = HANDLERS.get(kind)
        if handler is not None:
            handler(self, state, event, body)
        if kind in OF_RUNNERS:
            self._move(state, getattr(body, "runner", "") or event.subject)
        elif kind in OF_ALL:
            for id in list(self._lives):
                self._move(state, id)

    def _begin(self, t: int, at_ns: int) -> None:
        """The stretch begins with its first event."""
        self._begun, self.begin_ns, self.first_t = True, at_ns, t
        for life in self._lives.values():
            life.since_t, life.since_at = t, at_ns

    def finish(self) -> None:
        """Count what goes on up to now."""
        for life in self._lives.values():
            self._spend(life)

    @property
    def span_ns(self) -> int:
        """How long the stretch is, in scheduler time."""
        return max(0, self.last_t - self.first_t)

    @property
    def swaps_per_hour(self) -> float | None:
        """None: no time has passed."""
        return self.total.swaps * HOUR_NS / self.span_ns if self.span_ns else None

    # --- whose figures -----------------------------------------------------------------------------------

    def _of(self, model: str, caller: str | None = None, runner: str = "") -> tuple[Figures, ...]:
        key = self._key(model, caller, runner, self.end_ns)
        if key is None:
            return (self.total,)
        figures = self.by.get(key)
        if figures is None:
            figures = self.by[key] = Figures()
        return (self.total, figures)

    # --- requests ----------------------------------------------------------------------------------------

    def _arrived(self, state: State, event: Event, f: c.RequestArrived) -> None:
        self._asked[event.subject] = Asked(f.model, f.caller, event.t, served=False)
        for figures in self._of(f.model, f.caller):
            figures.arrived += 1

    def _dispatched(self, state: State, event: Event, d: c.RequestDispatched) -> None:
        asked = self._asked.get(d.request)
        if asked is None:
            return
        asked.runner = d.runner
        if asked.served:
            return
        asked.served = True
        wait_ns, hit = event.t - asked.arrived_t, d.request == f"q{event.cause}"
        for figures in self._of(asked.model, asked.caller, d.runner):
            figures.dispatched += 1
            figures.hits += hit
            figures.queue_ns += wait_ns
            figures.waits_ns.append(wait_ns)

    def _ended(self, state: State, event: Event, d: Any) -> None:
        asked = self._asked.pop(d.request, None)
        if asked is None:
            return
        outcome, reason = REQUEST_ENDS[type(d)], getattr(d, "reason", "")
        until_t = self._down_t if outcome == "interrupted" else event.t  # since then nobody was there
        for figures in self._of(asked.model, asked.caller, asked.runner):
            figures.outcomes[outcome] += 1
            if reason:
                why = f"{outcome} {reason}"
                figures.reasons[why] = figures.reasons.get(why, 0) + 1
            if not asked.served and outcome != "rejected":
                figures.waits_ns.append(until_t - asked.arrived_t)

    # --- runners -----------------------------------------------------------------------------------------

    def _load(self, state: State, event: Event, d: c.RunnerLoad) -> None:
        runner = state.runners.get(event.subject)
        if runner is not None:
            self._lives[runner.id] = Life(runner, event.t, self.end_ns)
        for figures in self._of(d.model, runner=event.subject):
            figures.loads["decided"] += 1
        self._hold(state)

    def _probed(self, state: State, event: Event, f: c.ProbeAnswered) -> None:
        life, runner = self._lives.get(f.runner), state.runners.get(f.runner)
        if life is None or life.ready or runner is None or runner.ready_t != event.t:
            return
        life.ready = True
        for figures in self._of(life.model, runner=life.id):
            figures.loads["ready"] += 1
            figures.load_ns.append(event.t - life.load_t)

    def _drain(self, state: State, event: Event, d: c.RunnerDrain) -> None:
        life = self._lives.get(d.runner)
        for figures in self._of(life.model if life is not None else "", runner=d.runner):
            figures.evictions[d.reason] = figures.evictions.get(d.reason, 0) + 1

    def _gone(self, state: State, event: Event, d: Any) -> None:
        life = self._lives.pop(d.runner, None)
        if life is None:
            return
        self._spend(life)
        if not life.ready:
            for figures in self._of(life.model, runner=life.id):
                figures.loads[RUNNER_ENDS[type(d)]] += 1
        self._hold(state)

    def _measured(self, state: State, event: Event, f: c.MemoryMeasured) -> None:
        self._hold(state)

    def _hold(self, state: State) -> None:
        for device, size in state.held.items():
            held = self.held.setdefault(device, Held())
            if not held.bytes or held.bytes[-1] != size:
                held.at_ns.append(self.end_ns)
                held.bytes.append(size)

    def _move(self, state: State, id: str) -> None:
        """A runner may do something else now."""
        life, runner = self._lives.get(id), state.runners.get(id)
        if life is not None and runner is not None and (phase := phase_of(runner)) != life.phase:
            self._spend(life)
            life.phase = phase

    def _spend(self, life: Life) -> None:
        """Count what it has done until now, to each of the hours that it did it in."""
        t, at_ns, left = self.last_t, self.end_ns, self.last_t - life.since_t
        begin, part = life.since_at, life.phase
        life.since_t, life.since_at = t, at_ns
        self.total.phases_ns[part] += left
        while left > 0:
            piece = min(left, HOUR_NS - begin % HOUR_NS) if at_ns > begin else left
            key = self._key(life.model, None, life.id, begin)
            if key is not None:
                self.by.setdefault(key, Figures()).phases_ns[part] += piece
            left, begin = left - piece, begin + piece


def phase_of(runner: Runner) -> int:
    """What a runner does."""
    if runner.state is RunnerState.loading:
        return LOADING
    if runner.held:
        return BUSY
    return IDLE if runner.state is RunnerState.ready else LEAVING


OF_RUNNERS = {
    c.RequestDispatched, c.UpstreamEnded, c.ProbeAnswered, c.RunnerDrain, c.RunnerStop, c.ProcessExited,
    c.SpawnFailed, c.LeaseRefused,
}  # fmt: skip
"""Events after which the runner that they name may do something else."""
OF_ALL = {c.DeadlinePassed, c.DaemonStarted}
"""Those after which any may."""

HANDLERS: dict[type, Callable[[Stats, State, Event, Any], None]] = {
    c.RequestArrived: Stats._arrived,
    c.RequestDispatched: Stats._dispatched,
    **dict.fromkeys(REQUEST_ENDS, Stats._ended),
    c.RunnerLoad: Stats._load,
    c.ProbeAnswered: Stats._probed,
    c.RunnerDrain: Stats._drain,
    c.RunnerUnloaded: Stats._gone,
    c.RunnerFailed: Stats._gone,
    c.RunnerLost: Stats._gone,
    c.MemoryMeasured: Stats._measured,
}
