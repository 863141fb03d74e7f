"""What has happened since the start, counted from durable events, for GET /metrics.

`note` is on the hot path: four events a request, each of which may cost a fraction of a microsecond. So there
are plain integers here, and `daemon.families` makes metrics of them when somebody looks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from events import catalogue as c
from events.catalogue import NEVER, Event
from events.histogram import FIRST_BYTE_BUCKETS_NS, LOAD_BUCKETS_NS, QUEUE_BUCKETS_NS, Histogram
from events.limits import METRIC_MODELS, METRIC_REASONS
from statemachines.request import TERMINAL
from statemachines.state import State

OUTCOMES = tuple(state.value for state in TERMINAL)
"""How requests end."""
LOAD_OUTCOMES = ("ready", "unloaded", "failed", "lost")
"""How loads end: ready, or as their runner did that never was."""
RUNNER_OUTCOMES = ("unloaded", "failed", "lost")
EVICTIONS = ("evicted", "keep_alive", "operator", "configuration", "stopping", "lease_revoked")
"""Why ready runners are told to go, those that there are today."""

COMPLETED = OUTCOMES.index("completed")
OTHER = "other"

SETTLED_REQUESTS = 64
"""After so many of a model, their durations are put into their buckets: to look for each one alone would cost
every request more, and memory that is touched late does, too."""


class ModelTally:
    """One model's figures."""

    __slots__ = ("arrived", "first_byte_ns", "load_ns", "loads", "queue_ns", "requests", "runners")

    def __init__(self) -> None:
        self.arrived = 0
        self.requests = [0] * len(OUTCOMES)
        self.loads = [0] * len(LOAD_OUTCOMES)
        self.runners = [0] * len(RUNNER_OUTCOMES)
        """Those that have ended."""
        self.queue_ns = Histogram(QUEUE_BUCKETS_NS)
        self.first_byte_ns = Histogram(FIRST_BYTE_BUCKETS_NS)
        self.load_ns = Histogram(LOAD_BUCKETS_NS)

    def settle(self) -> None:
        """Put the durations of requests into their buckets."""
        self.queue_ns.settle()
        self.first_byte_ns.settle()


class Incarnation:
    """A runner that has not ended."""

    __slots__ = ("load_t", "model", "ready")

    def __init__(self, model: ModelTally, load_t: int, *, ready: bool) -> None:
        self.model = model
        self.load_t = load_t
        self.ready = ready


class Tally:
    """Counts. `state` is the driver's, as it was folded before the first event that is noted; `reasons` are
    those known why requests end with an error."""

    def __init__(self, state: State, reasons: Iterable[str] = ()) -> None:
        self.events = 0
        self.models: dict[str, ModelTally] = {}
        """By name; a model is here from its first request or load on, and stays until the next start."""
        self.errors = dict.fromkeys(reasons, 0)
        """Requests that ended with an error, by reason."""
        self.evictions = dict.fromkeys(EVICTIONS, 0)
        self.stopping_t = NEVER
        """When the stop was asked for."""
        self._state = state
        self._requests = {r.id: (self._model(r.model), r.arrived_t) for r in state.requests.values()}
        """Those that have not ended."""
        self._runners = {
            r.id: Incarnation(self._model(r.model), r.load_t, ready=r.ready_t != NEVER)
            for r in state.runners.values()
        }

    def note(self, events: Sequence[Event]) -> None:
        """Count events that are durable now, in their order."""
        self.events += len(events)
        requests = self._requests
        for event in events:
            body: Any = event.body
            kind = type(body)
            if kind is c.RequestArrived:
                model = self.models.get(body.model) or self._model(body.model)
                model.arrived += 1
                if model.arrived % SETTLED_REQUESTS == 0:
                    model.settle()
                requests[event.subject] = (model, event.t)
            elif kind is c.RequestDispatched:
                if body.attempt == 1 and (known := requests.get(body.request)) is not None:
                    known[0].queue_ns.add(event.t - known[1])
            elif kind is c.UpstreamEnded:
                if body.first_byte_ns and (runner := self._runners.get(body.runner)) is not None:
                    runner.model.first_byte_ns.add(body.first_byte_ns)
            elif kind is c.RequestCompleted:
                self._ended(body.request, COMPLETED)
            elif kind in RARE:
                RARE[kind](self, event, body)

    def _model(self, name: str) -> ModelTally:
        model = self.models.get(name)
        if model is None:
            if len(self.models) >= METRIC_MODELS:
                name = ""
            model = self.models.setdefault(name, ModelTally())
        return model

    def _ended(self, request: str, outcome: int) -> None:
        known = self._requests.pop(request, None)
        if known is not None:
            known[0].requests[outcome] += 1

    def _failed(self, event: Event, body: Any) -> None:
        """A request has ended with an error, or was let go."""
        self._ended(body.request, ENDS[type(body)])
        _count(self.errors, body.reason)

    def _interrupted(self, event: Event, body: c.RequestInterrupted) -> None:
        self._ended(body.request, ENDS[c.RequestInterrupted])

    def _load(self, event: Event, body: c.RunnerLoad) -> None:
        self._runners[event.subject] = Incarnation(self._model(body.model), event.t, ready=False)

    def _probed(self, event: Event, body: c.ProbeAnswered) -> None:
        """A healthy answer makes a runner ready where all of it is there: the fold knows."""
        runner = self._runners.get(body.runner)
        if runner is None or runner.ready or not body.healthy:
            return
        folded = self._state.runners.get(body.runner)
        if folded is None or NEVER < folded.ready_t <= event.t:
            runner.ready = True
            runner.model.loads[0] += 1
            runner.model.load_ns.add(event.t - runner.load_t)
            runner.model.load_ns.settle()  # a model may be loaded for ever without a request

    def _drain(self, event: Event, body: c.RunnerDrain) -> None:
        _count(self.evictions, body.reason)

    def _gone(self, event: Event, body: Any) -> None:
        runner = self._runners.pop(body.runner, None)
        if runner is not None:
            how = RUNNER_ENDS[type(body)]
            runner.model.runners[RUNNER_OUTCOMES.index(how)] += 1
            if not runner.ready:
                runner.model.loads[LOAD_OUTCOMES.index(how)] += 1

    def _stopping(self, event: Event, body: c.StopRequested) -> None:
        if self.stopping_t == NEVER:
            self.stopping_t = event.t


def _count(counts: dict[str, int], reason: str) -> None:
    """Count a reason; those beyond what anybody could list are one."""
    if reason not in counts and len(counts) >= METRIC_REASONS:
        reason = OTHER
    counts[reason] = counts.get(reason, 0) + 1


REQUEST_ENDS: dict[type, str] = {
    c.RequestCompleted: "completed",
    c.RequestFailed: "failed",
    c.RequestCancelled: "cancelled",
    c.RequestTimedOut: "timed_out",
    c.RequestRejected: "rejected",
    c.RequestInterrupted: "interrupted",
}
"""What a request ends with, by the decision that says so."""

RUNNER_ENDS: dict[type, str] = {c.RunnerUnloaded: "unloaded", c.RunnerFailed: "failed", c.RunnerLost: "lost"}
"""And a runner."""

ENDS = {kind: OUTCOMES.index(name) for kind, name in REQUEST_ENDS.items()}

RARE: dict[type, Callable[[Tally, Event, Any], None]] = {
    c.RequestFailed: Tally._failed,
    c.RequestCancelled: Tally._failed,
    c.RequestTimedOut: Tally._failed,
    c.RequestRejected: Tally._failed,
    c.RequestInterrupted: Tally._interrupted,
    c.RunnerLoad: Tally._load,
    c.ProbeAnswered: Tally._probed,
    c.RunnerDrain: Tally._drain,
    c.RunnerUnloaded: Tally._gone,
    c.RunnerFailed: Tally._gone,
    c.RunnerLost: Tally._gone,
    c.StopRequested: Tally._stopping,
}
