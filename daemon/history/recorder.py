"""From events to a timeline: each is folded, and what it changed of runners and requests is written down."""

from __future__ import annotations

from heapq import heappop, heappush

import msgspec

from daemon.cli.describe import describe
from daemon.history.lives import (
    BUSY,
    IDLE,
    Device,
    Level,
    Mark,
    Part,
    RequestLife,
    RunnerLife,
    Span,
    Timeline,
)
from daemon.limits import CLOCK_STEP_NS
from daemon.tally import REQUEST_ENDS, RUNNER_ENDS
from events import catalogue as c
from events.catalogue import NEVER, Event
from events.envelope import Record, decode
from statemachines.fold import apply
from statemachines.ledger import budget_bytes
from statemachines.parts import Runner
from statemachines.request import TERMINAL, RequestState
from statemachines.runner import RunnerState
from statemachines.state import State

ENDS = REQUEST_ENDS | RUNNER_ENDS

OF_ALL = (
    c.DaemonStarted, c.StopRequested, c.DaemonStopped, c.ConfigChanged, c.LogResumed, c.LogTailLost,
    c.BreachRecorded, c.ModelCooling, c.ModelCrowded, c.ModelDismissed, c.ClaimMade, c.LoadRequested,
    c.UnloadRequested, c.PinRequested, c.CancelRequested, c.LeaseRevoked,
)  # fmt: skip
"""What becomes a mark of the whole timeline."""

OF_RUNNER = (c.RunnerKill, c.RunnerStuck, c.LeaseRefused, c.SpawnFailed, c.ProcessExited)
"""What becomes a mark of its runner."""

HOT = (
    c.RequestArrived, c.RequestQueued, c.RequestDispatched, c.UpstreamEnded, c.RequestCompleted, c.ClientGone,
    c.RequestRequeued, c.RequestFailed, c.RequestCancelled, c.RequestTimedOut, c.RequestRejected,
    c.RequestInterrupted,
)  # fmt: skip
"""They change nothing but their request and its runner."""

_parsed = msgspec.json.Decoder(dict).decode


class Recorder:
    """Takes the events of a stretch, in order. `state` is what the log folds to before its first event, and
    is changed by them; `t` is when the stretch begins. With `models`, other models' requests are left out."""

    def __init__(self, state: State, t: int, models: frozenset[str] | None = None) -> None:
        self.state = state
        self.timeline = Timeline(t, t, state.seq + 1, state.seq, models=models)
        self._stopped = False
        """The last event was the end of a clean stop."""
        self._there: dict[str, None] = {}
        """Runners that have not ended."""
        self._lives: dict[str, RequestLife] = {}
        """Those that have not ended, or hold a slot."""
        self._slots: dict[str, Rows] = {}
        self._rows: dict[str, Rows] = {}
        self._waiting: dict[str, int] = {}
        self._look_at_all(None)

    def take(self, record: Record) -> None:
        """Fold an event. Raises EventUnreadable, and what `apply` does."""
        event = decode(record)
        line, body = self.timeline, event.body
        self._tell_time(event, record.at)
        if isinstance(body, c.DaemonStarted) and event.t > line.end_t:
            line.downs.append((line.end_t, event.t, self._stopped))
        left = self._runner_of(event)
        apply(self.state, event)
        line.end_t, line.last_seq = event.t, event.seq
        self._stopped = isinstance(body, c.DaemonStopped)
        if isinstance(body, HOT):
            self._request(event, record, event.subject)
            self._runner(event, None, left)
            self._runner(event, None, self._runner_of(event))
        elif event.subject in self.state.runners or event.subject in self._there:
            self._runner(event, record, event.subject)
        elif isinstance(body, c.DeadlinePassed):
            if body.kind == "close":
                self._request(event, None, body.id)
            self._runner(event, None, left)
        elif isinstance(body, c.Fact) and not isinstance(body, c.StateCarried):
            self._look_at_all(event)
        if isinstance(body, OF_ALL):
            line.marks.append(Mark(event.t, event.seq, record.type, words(record)))

    def finish(self) -> Timeline:
        """The timeline; what goes on ends with it."""
        line = self.timeline
        for life in line.runners.values():
            if life.end is None and life.spans:
                life.spans[-1].end_t = line.end_t
        return line

    # --- time --------------------------------------------------------------------------------------------

    def _tell_time(self, event: Event, at_ns: int) -> None:
        """Compare the clocks. A deadline's time is when it was due, which may be long ago; what the world did
        happens as it is written."""
        if event.cause or isinstance(event.body, c.DeadlinePassed):
            return
        clock = self.timeline.clock
        if not clock or abs(at_ns - event.t - clock[-1][1] + clock[-1][0]) > CLOCK_STEP_NS:
            clock.append((event.t, at_ns))

    # --- runners -----------------------------------------------------------------------------------------

    def _runner_of(self, event: Event) -> str:
        """The runner that a request's event, or a deadline, is also about: as far as is known now."""
        body = event.body
        if isinstance(body, c.DeadlinePassed):
            if body.kind != "close":
                return body.id
            request = self.state.requests.get(body.id)
        else:
            request = self.state.requests.get(event.subject)
        return request.runner if request is not None else ""

    def _look_at_all(self, event: Event | None) -> None:
        """Everything may be other than it was."""
        state = self.state
        for id in {**self._there, **state.runners}:
            self._runner(event, None, id)
        if event is None or not isinstance(event.body, c.MemoryMeasured):
            for id in {**self._lives, **state.requests}:
                self._request(event, None, id)
        self._memory(event.t if event is not None else self.timeline.start_t)

    def _runner(self, event: Event | None, record: Record | None, id: str) -> None:
        """Write down what has become of a runner. With a `record`, it is what that event is about."""
        line, runner = self.timeline, self.state.runners.get(id)
        t, seq = (event.t, event.seq) if event is not None else (line.start_t, self.state.seq)
        life = line.runners.get(id)
        if life is None:
            if runner is None:
                return
            life = RunnerLife(id, runner.model, runner.slots, runner.load_t, dict(runner.options))
            line.runners[id] = life
            self._there[id] = None
            life.words = words(record)
        elif life.end is not None:
            return
        elif record is not None and event is not None and isinstance(event.body, OF_RUNNER):
            life.marks.append(Mark(t, seq, type_of(event), words(record)))
        if runner is None:
            kind = ENDS.get(type(event.body), "lost") if event is not None else "lost"
            life.end = Mark(t, seq, kind, words(record))
            self._change(life, "", t, seq, None)
            self._hold(life, t, {})
            del self._there[id]
        else:
            self._change(life, phase(runner), t, seq, record)
            self._hold(life, t, runner.holds)

    def _change(self, life: RunnerLife, state: str, t: int, seq: int, record: Record | None) -> None:
        """From `t` on it is in this state ("": in none)."""
        spans = life.spans
        if spans:
            if spans[-1].state == state:
                return
            spans[-1].end_t = t
            if spans[-1].start_t == t:
                spans.pop()
                if spans and spans[-1].state == state:  # it was otherwise for no time
                    return
        if state:
            spans.append(Span(state, t, t, seq, words(record)))

    def _hold(self, life: RunnerLife, t: int, sizes: dict[str, int]) -> None:
        held = life.held
        if (held[-1][1] if held else {}) != sizes:
            if held and held[-1][0] == t:
                held.pop()
            held.append((t, sizes))

    # --- requests ----------------------------------------------------------------------------------------

    def _request(self, event: Event | None, record: Record | None, id: str) -> None:
        """Write down what has become of a request."""
        request, life = self.state.requests.get(id), self._lives.get(id)
        t, seq = (event.t, event.seq) if event is not None else (self.timeline.start_t, self.state.seq)
        if life is None:
            if request is None or not self.timeline.shows(request.model):
                return
            life = self._lives[id] = RequestLife(
                id, request.model, request.arrived_t, request.kind == c.LEASE
            )
            self.timeline.requests.append(life)
            if request.state in TERMINAL:
                life.end = Mark(t, seq, request.state.value, "")
        holding = request.runner if request is not None and request.slot else ""
        queued = request is not None and request.state is RequestState.queued
        last = life.parts[-1] if life.parts and life.parts[-1].end_t == NEVER else None
        if last is not None and not (last.runner == holding if last.runner else queued):
            self._leave(life, last, t)
            last = None
        if last is None and holding:
            self._enter(life, Part(self.state.runners[holding].held.get(id, t), seq, runner=holding))
        elif last is None and queued and request is not None:
            why = getattr(event.body, "reason", "") if event is not None else ""
            self._enter(life, Part(request.queued_t, seq, why=why))
        if event is not None and life.end is None and type(event.body) in ENDS:
            life.end = Mark(t, seq, ENDS[type(event.body)], words(record, named=False))
        if request is None:
            del self._lives[id]

    def _enter(self, life: RequestLife, part: Part) -> None:
        """A part begins: it gets the lowest slot, or row of its model's queue, that is free."""
        life.parts.append(part)
        if part.runner:
            part.slot = self._slots.setdefault(part.runner, Rows()).take()
        else:
            part.row = self._rows.setdefault(life.model, Rows()).take()
            self._count(life.model, +1, max(part.start_t, self.timeline.start_t))

    def _leave(self, life: RequestLife, part: Part, t: int) -> None:
        part.end_t = t
        if part.runner:
            self._slots[part.runner].give_back(part.slot)
        else:
            self._rows[life.model].give_back(part.row)
            self._count(life.model, -1, t)

    def _count(self, model: str, by: int, t: int) -> None:
        self._waiting[model] = self._waiting.get(model, 0) + by
        self.timeline.queued.setdefault(model, Level()).set(t, self._waiting[model])

    # --- devices -----------------------------------------------------------------------------------------

    def _memory(self, t: int) -> None:
        """Write down what the devices have and report."""
        state, devices = self.state, self.timeline.devices
        for name in {**state.config.devices, **state.readings, **devices}:
            device = devices.setdefault(name, Device())
            budget, reading = budget_bytes(state, name), state.readings.get(name)
            device.budget_bytes.set(t, NEVER if budget is None else budget)
            device.used_bytes.set(t, NEVER if reading is None else reading.total_bytes - reading.free_bytes)


class Rows:
    """Numbered places of which the lowest free one is taken."""

    def __init__(self) -> None:
        self._free: list[int] = []
        self._made = 0

    def take(self) -> int:
        """A place."""
        if self._free:
            return heappop(self._free)
        self._made += 1
        return self._made - 1

    def give_back(self, place: int) -> None:
        """It is free."""
        heappush(self._free, place)


def phase(runner: Runner) -> str:
    """The state of a runner, as a timeline tells it."""
    if runner.state is RunnerState.ready:
        return BUSY if runner.held else IDLE
    return runner.state.value


def type_of(event: Event) -> str:
    """The type of an event, as the log names it."""
    return str(type(event.body).__struct_config__.tag)


def words(record: Record | None, *, named: bool = True) -> str:
    """An event's sentence; not `named`: without the subject with which it begins."""
    if record is None:
        return ""
    payload = _parsed(record.payload)
    payload.pop("type", None)
    return describe(record.type, record.subject if named else "", payload)
