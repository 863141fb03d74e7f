"""The timeline of a log: what it says of any moment is what the log folds to at that moment."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from functools import cache
from itertools import pairwise

import msgspec
import pytest

from daemon.history.lives import Level, Part, RequestLife, Timeline
from daemon.history.recorder import Recorder, phase
from events import catalogue as c
from events.catalogue import NEVER, Event
from events.envelope import Record
from statemachines.replay import fold
from statemachines.request import RequestState
from statemachines.state import State
from tests.simulation.worlds import run_world

AT = 1_700_000_000_000_000_000
SEEDS = range(20)


def record_of(event: Event) -> Record:
    """An event as the log has it."""
    body = event.body
    kind = str(type(body).__struct_config__.tag)
    payload = msgspec.json.encode(body).decode()
    return Record(
        event.seq, AT + event.t, event.t, kind, type(body).VERSION, event.cause, event.subject, payload, b""
    )


@cache
def log_of(seed: int) -> list[Event]:
    """The log of a random world. It is not changed."""
    return run_world(seed).world.log


def timeline_of(
    log: list[Event], models: frozenset[str] | None = None, state: State | None = None
) -> Timeline:
    recorder = Recorder(state or State(), state.t if state else 0, models)
    for event in log:
        recorder.take(record_of(event))
    return recorder.finish()


def at(level: Level, t: int) -> int:
    """The value of a level at a time."""
    return next((value for since, value in reversed(level.steps) if since <= t), 0)


def within(part: Part, t: int) -> bool:
    return part.start_t <= t and (part.end_t == NEVER or t < part.end_t)


def told(line: Timeline, t: int) -> dict[str, object]:
    """What the timeline says of a moment."""
    runners = {}
    held: Counter[str] = Counter()
    for life in line.runners.values():
        spans = [s for s in life.spans if s.start_t <= t < s.end_t or t == s.end_t == line.end_t]
        if life.load_t <= t and not (life.end is not None and life.end.t <= t):
            (span,) = spans[-1:]
            sizes = next((sizes for since, sizes in reversed(life.held) if since <= t), {})
            runners[life.id] = (life.model, span.state, sizes)
            held.update(sizes)
    slots: dict[str, list[str]] = {}
    queued = []
    for request in line.requests:
        for part in request.parts:
            if within(part, t):
                if part.runner:
                    slots.setdefault(part.runner, []).append(request.id)
                else:
                    queued.append(request.id)
    return {
        "runners": runners,
        "held": {device: size for device, size in held.items() if size},
        "slots": {runner: sorted(ids) for runner, ids in slots.items()},
        "queued": sorted(queued),
        "queue": {model: n for model, level in line.queued.items() if (n := at(level, t))},
        "budgets": {name: at(device.budget_bytes, t) for name, device in line.devices.items()},
    }


def folded(state: State, line: Timeline) -> dict[str, object]:
    """The same, of the state."""
    from statemachines.ledger import budget_bytes

    waiting = [q for q in state.requests.values() if q.state is RequestState.queued]
    budgets = {name: budget_bytes(state, name) for name in line.devices}
    return {
        "runners": {r.id: (r.model, phase(r), r.holds) for r in state.runners.values()},
        "held": {device: size for device, size in state.held.items() if size},
        "slots": {r.id: sorted(r.held) for r in state.runners.values() if r.held},
        "queued": sorted(q.id for q in waiting),
        "queue": dict(Counter(q.model for q in waiting)),
        "budgets": {name: at(Level([(0, NEVER if b is None else b)]), 0) for name, b in budgets.items()},
    }


def moments(log: list[Event], state: State) -> Iterator[State]:
    """The state after the last event of each moment of a log; of a long one, of some."""
    every = max(1, len(log) // 60)
    for i, event in enumerate(log):
        fold([event], state)
        if (i + 1 == len(log) or log[i + 1].t > event.t) and i % every == 0:
            yield state


def check_spans(line: Timeline) -> None:
    """No gap and no overlap in a runner's life, in a slot, or in a row of a queue."""
    for life in line.runners.values():
        t = max(life.load_t, line.start_t)
        assert not life.held or life.held[0][0] >= line.start_t
        for i, span in enumerate(life.spans):
            assert span.start_t == t, f"{life.id}: a gap before {span}"
            assert span.end_t > t or t == line.end_t, f"{life.id}: {span} takes no time"
            assert i == 0 or span.state != life.spans[i - 1].state
            t = span.end_t
        assert t == (line.end_t if life.end is None else life.end.t) or not life.spans
    levels = [
        *line.queued.values(),
        *(level for d in line.devices.values() for level in (d.budget_bytes, d.used_bytes)),
    ]
    assert all(line.start_t <= t <= line.end_t for level in levels for t, _ in level.steps)
    places: dict[tuple[str, str, int], list[Part]] = {}
    for request in line.requests:
        check_parts(request)
        for part in request.parts:
            where = (part.runner, "", part.slot) if part.runner else ("", request.model, part.row)
            places.setdefault(where, []).append(part)
            if part.runner:
                assert part.slot < line.runners[part.runner].slots
    for where, parts in places.items():
        parts.sort(key=lambda part: (part.start_t, part.end_t == NEVER, part.end_t))
        for one, other in pairwise(parts):
            assert one.end_t != NEVER and one.end_t <= other.start_t, f"two in {where}: {one} {other}"


def check_parts(request: RequestLife) -> None:
    t = request.arrived_t
    for i, part in enumerate(request.parts):
        assert part.start_t >= t
        assert part.end_t != NEVER or i == len(request.parts) - 1
        t = part.end_t


@pytest.mark.parametrize("seed", SEEDS)
def test_it_says_what_the_log_folds_to(seed: int) -> None:
    log = log_of(seed)
    line = timeline_of(log)
    check_spans(line)
    for state in moments(log, State()):
        assert told(line, state.t) == folded(state, line), f"at event {state.seq}"
    assert all(life.end is not None for life in line.requests)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_part_of_a_log_begins_with_what_is_there_already(seed: int) -> None:
    log = log_of(seed)
    cut = len(log) // 2
    begin = fold(log[:cut])
    line = timeline_of(log[cut:], state=begin)
    assert (line.first_seq, line.last_seq) == (cut + 1, len(log))
    check_spans(line)
    for state in moments(log[cut:], fold(log[:cut])):
        assert told(line, state.t) == folded(state, line), f"at event {state.seq}"


def test_other_models_are_seen_only_by_their_memory() -> None:
    log = log_of(3)
    whole = timeline_of(log)
    models = sorted({life.model for life in whole.requests})
    some = timeline_of(log, frozenset(models[:1]))
    assert [q.id for q in some.requests] == [q.id for q in whole.requests if q.model == models[0]]
    assert list(some.runners) == list(whole.runners)
    assert set(some.queued) <= set(models[:1]) < set(whole.queued)
    assert 0 < len(some.requests) < len(whole.requests)


def test_the_time_of_day_follows_the_world_not_the_deadlines() -> None:
    log = log_of(1)
    recorder = Recorder(State(), 0)
    for event in log:
        record = record_of(event)
        late = AT + event.t + (7 * 10**9 if event.seq > log[-1].seq // 2 else 0)
        if isinstance(event.body, c.DeadlinePassed):
            late += 3600 * 10**9  # it was due while no daemon ran
        recorder.take(msgspec.structs.replace(record, at=late))
    line = recorder.finish()
    assert len(line.clock) == 2
    assert line.at_ns(log[0].t) == AT + log[0].t
    assert line.at_ns(log[-1].t) == AT + log[-1].t + 7 * 10**9
    assert Timeline(0, 0, 1, 0).at_ns(5) == 5


def test_when_no_daemon_ran() -> None:
    seen = set()
    for seed in range(12):
        log = log_of(seed)
        line = timeline_of(log)
        starts = [i for i, event in enumerate(log) if isinstance(event.body, c.DaemonStarted) and i]
        expected = [(log[i - 1].t, log[i].t, isinstance(log[i - 1].body, c.DaemonStopped)) for i in starts]
        assert line.downs == [down for down in expected if down[1] > down[0]]
        seen |= {stopped for _, _, stopped in line.downs}
    assert False in seen
    log = [Event(1, 0, 0, "", c.DaemonStarted(1, "balanced", "b", "0"))]
    log += [Event(2, 5, 0, "", c.DaemonStopped()), Event(3, 9, 0, "", log[0].body)]
    assert timeline_of(log).downs == [(5, 9, True)]


def test_marks_are_sentences() -> None:
    kinds: Counter[str] = Counter()
    ends: Counter[str] = Counter()
    for seed in range(12):
        line = timeline_of(log_of(seed))
        for mark in line.marks:
            kinds[mark.kind] += 1
            assert mark.words and "{" not in mark.words
        for life in line.runners.values():
            assert life.end is not None and life.id in life.end.words and life.id in life.words
            assert all(mark.words for mark in life.marks)
            ends[life.end.kind] += 1
        for request in line.requests:
            assert request.end is not None and request.end.words.startswith(
                request.end.kind.replace("_", " ").split()[0]
            )
            ends[request.end.kind] += 1
    assert {"daemon.started", "config.changed", "claim.made", "model.cooling", "operator.unload"} <= set(
        kinds
    )
    assert {"unloaded", "failed", "lost", "completed", "timed_out", "rejected", "cancelled"} <= set(ends)


def test_a_level_forgets_what_lasted_no_time() -> None:
    level = Level()
    for t, value in ((0, 1), (5, 2), (5, 1), (7, 3), (7, 4), (9, 4)):
        level.set(t, value)
    assert level.steps == [(0, 1), (7, 4)]
    assert json.loads(msgspec.json.encode(level)) == {"steps": [[0, 1], [7, 4]]}
