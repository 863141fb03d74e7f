"""A stretch of a log made ready to be played again: what processes and exchanges will do, whatever is
decided.

What was seen is taken as it was. What was not is put in its place, always by the same rules:

- how long a request takes that was never served, or was cut off: the next time of its model, of those that
  were completed, in their order of arrival, begun again when they are used up; but longer than it was seen to
  take. Of a model of which none was completed, the median of all.
- the n-th load of a model behaves as the n-th that was recorded did. When those are used up, those that
  became ready come again in their order. A load that was given up before it was ready takes the median of its
  model, but longer than it was seen to take. Of a model that was not loaded, what its last load took before.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from daemon.history.observed import CRASH_NS, Arrival, Attempt, Behaviour, Input, Measure, Recorder, Restart
from events.catalogue import NEVER
from events.limits import LOAD_GUESS_NS, MS, S
from statemachines.parts import Runner
from statemachines.simulator import Exchange, Life
from statemachines.state import State

SERVICE_GUESS_NS = 5 * S
"""What a request takes where a log has not a single one that was completed: some hundred tokens."""
HEEDS_NS = 100 * MS
"""How soon the holder of a lease lets go who was never told to."""
GIVEN_UP = ("load_timeout", "load_stalled")
"""Stops of a runner that would not have become ready."""


class Substitutes(msgspec.Struct):
    """How often something was put in the place of what the log does not say."""

    never_served: int = 0
    cut_off: int = 0
    loads: int = 0


class Recording:
    """What there is to be played again. Times are scheduler time, ns."""

    def __init__(self, recorder: Recorder, start: State) -> None:
        """`start`: the state before the first event, which is not changed any more."""
        self.start = start
        self.first_t, self.last_t = recorder.first_t, recorder.last_t
        self.inputs: list[Input] = recorder.inputs
        self.restarts: dict[int, Restart] = recorder.restarts
        self.arrivals: list[Arrival] = recorder.arrivals
        self.behaviours: dict[str, Behaviour] = recorder.behaviours
        self.attempts = recorder.attempts
        self.measure_ns = recorder.measure_ns
        self.refused = recorder.refused
        self.rules = list(recorder.rules)
        self.substitutes = Substitutes()
        self.places = {arrival.id: i for i, arrival in enumerate(self.arrivals)}
        self.loaded = recorder.loads
        """By model, the runners that were loaded."""
        self.nth: dict[str, tuple[str, int]] = {
            id: (model, n) for model, ids in recorder.loads.items() for n, id in enumerate(ids)
        }
        """Of each runner that was loaded: its model, and how many of that came before it."""
        self.readings = _readings(recorder.measures, self.behaviours)
        self._services = Services(recorder)
        self.exchanges = {id: self._exchanges(recorder, id, pool) for id, pool in recorder.pools.items()}
        """By request: one for each attempt, and for any further one."""
        self.lives: dict[str, list[Life]] = {}
        """By model: of each load that was seen."""
        self.spare: dict[str, list[Life]] = {}
        """By model: for loads beyond those."""
        self._stop_ns = (
            _median([b.exit_t - b.stop_t for b in self.behaviours.values() if _stopped(b)]) or 100 * MS
        )
        self._lives(recorder)

    def life(self, model: str, n: int) -> Life:
        """How the n-th load of a model behaves."""
        seen = self.lives.get(model, [])
        if n < len(seen):
            return seen[n]
        spare = self.spare.get(model) or [self._unknown(model)]
        return spare[(n - len(seen)) % len(spare)]

    def remaining(self, runner: Runner) -> Life:
        """How a runner goes on that is there at the beginning: its times count from there."""
        b = self.behaviours[runner.id]
        life = self.lived(b, self.start.load_cost_ns.get(b.model, LOAD_GUESS_NS))
        if not runner.processes:
            life.spawn_ns = max(0, _begun(b) - self.first_t)
        elif b.ready_t != NEVER:
            life.ready_ns = max(0, b.ready_t - self.first_t)
        if b.crashed:
            life.exit_ns = b.exit_t - self.first_t
        return life

    def _unknown(self, model: str) -> Life:
        """Of a model that was never loaded in the stretch."""
        return Life(ready_ns=self.start.load_cost_ns.get(model, LOAD_GUESS_NS), stop_ns=self._stop_ns)

    # --- exchanges ---------------------------------------------------------------------------------------

    def _exchanges(self, recorder: Recorder, id: str, pool: str) -> list[Exchange]:
        attempts, found = self.attempts.get(id, []), list[Exchange]()
        for i, attempt in enumerate(attempts):
            cut_ns = self._cut_ns(attempt, recorder.ends.get(id, self.last_t))
            if cut_ns is None:
                ns = attempt.end_t - attempt.sent_t
                sent = attempt.bytes_to_client
                # It may have gone on to its end though its request had ended: it would have been let.
                close_ns = max(MS, attempt.end_t - recorder.ends.get(id, attempt.end_t) + 1)
                found.append(
                    Exchange(
                        ns, attempt.complete, sent, close_ns, back_ns=attempt.back_ns, error=attempt.error
                    )
                )
                continue
            cut_ns = max(cut_ns, attempt.end_t - attempt.sent_t)  # and it was not let go at once
            later = [
                a.end_t - a.sent_t for a in attempts[i + 1 :] if a.complete and a.end_t - a.sent_t > cut_ns
            ]
            if not later:
                self.substitutes.cut_off += 1
            ns = later[0] if later else self._services.substitute(pool, cut_ns)
            close_ns = attempt.end_t - attempt.cut_t if attempt.end_t >= attempt.cut_t >= 0 else MS
            if attempt.end_t == NEVER and id in recorder.ends:
                close_ns = NEVER  # nobody ever said that it had ended
            heeded = attempt.revoked_t == attempt.cut_t != NEVER
            heeds_ns = attempt.end_t - attempt.revoked_t if heeded else NEVER
            if attempt.revoked_t == NEVER:
                heeds_ns = HEEDS_NS
            found.append(Exchange(ns, close_ns=close_ns, heeds_ns=heeds_ns, back_ns=attempt.back_ns))
        if not found:
            self.substitutes.never_served += 1
            found.append(Exchange(self._services.substitute(pool, 0)))
        return found

    def _cut_ns(self, attempt: Attempt, ended_t: int) -> int | None:
        """How long an exchange went on that was cut off, or goes on still; None: it came to its own end.
        `ended_t`: when its request ended, or was seen last."""
        if attempt.end_t == NEVER:
            return max(0, ended_t - attempt.sent_t)
        if attempt.cut_t != NEVER:
            return max(attempt.cut_t, attempt.end_t if attempt.cut_t < attempt.sent_t else 0) - attempt.sent_t
        runner = self.behaviours.get(attempt.runner)
        crashed = not attempt.complete and runner is not None and runner.crashed
        if crashed and runner is not None and 0 <= runner.exit_t - attempt.end_t <= CRASH_NS:
            return attempt.end_t - attempt.sent_t
        return None

    # --- processes ---------------------------------------------------------------------------------------

    def _lives(self, recorder: Recorder) -> None:
        for model, ids in recorder.loads.items():
            seen = [self.behaviours[id] for id in ids]
            ready = [b.ready_t - _begun(b) for b in seen if b.ready_t != NEVER]
            median = _median(ready) or self.start.load_cost_ns.get(model, LOAD_GUESS_NS)
            self.lives[model] = [self.lived(b, median, counted=True) for b in seen]
            good = [life for b, life in zip(seen, self.lives[model], strict=True) if b.ready_t != NEVER]
            # What crashed in the end did so once; a load more than there were is of one that does not.
            self.spare[model] = [
                msgspec.structs.replace(life, exit_ns=NEVER, shard_ns=NEVER) for life in good
            ]
        for b in self.behaviours.values():
            if b.id not in self.nth and NEVER < b.load_t < b.ready_t and not self.spare.get(b.model):
                used = dict(took(b))
                life = Life(spawn_ns=0, ready_ns=b.ready_t - b.load_t, stop_ns=self._stop_ns, used_bytes=used)
                self.spare[b.model] = [life]

    def lived(self, b: Behaviour, median_ns: int, *, counted: bool = False) -> Life:
        """An incarnation as it was seen, and what it would have done if it had been let."""
        begun = _begun(b)
        life = Life(
            spawn="failed" if b.spawn_failed else "ok",
            spawn_ns=max(0, begun - b.load_t),
            stop_ns=self._stop_ns,
            used_bytes=dict(took(b)),
            words=b.words,
        )
        if b.ready_t != NEVER:
            life.ready_ns = b.ready_t - begun
        elif b.crashed or b.stop_reason in GIVEN_UP or b.shard_t != NEVER:
            life.ready_ns = NEVER
        else:
            seen_ns = (b.stop_t if b.stop_t != NEVER else self.last_t) - begun
            life.ready_ns = max(median_ns, seen_ns + 1)
            self.substitutes.loads += counted and not b.spawn_failed
        stalled = b.stop_reason == "load_stalled"
        life.progress_ns = max(0, b.progress_t - begun) if stalled else life.ready_ns
        if b.crashed:
            life.exit_ns = b.exit_t - begun
        if b.shard_t != NEVER:
            life.shard_ns = b.shard_t - begun
        if _stopped(b):
            life.stop_ns = b.exit_t - b.stop_t
        if b.kill_t != NEVER:
            life.stop_ns, life.kill_ns = NEVER, b.exit_t - b.kill_t if b.exit_t != NEVER else NEVER
        if b.back_t != NEVER:
            life.return_ns = b.back_t - b.exit_t
        return life


class Services:
    """How long requests took, by pool, for those of which that is not known."""

    def __init__(self, recorder: Recorder) -> None:
        self._known: dict[str, list[int]] = {}
        self._next: dict[str, int] = {}
        for id, attempts in recorder.attempts.items():
            last = attempts[-1]
            if last.complete and last.cut_t == NEVER and (pool := recorder.pools.get(id)) is not None:
                self._known.setdefault(pool, []).append(last.end_t - last.sent_t)
        every = [ns for known in self._known.values() for ns in known]
        self._otherwise = [_median(every) or SERVICE_GUESS_NS]

    def substitute(self, pool: str, more_than_ns: int) -> int:
        """The next one that is longer than that."""
        known = self._known.get(pool, self._otherwise)
        at = self._next.get(pool, 0)
        for i in range(len(known)):
            ns = known[(at + i) % len(known)]
            if ns > more_than_ns:
                self._next[pool] = (at + i + 1) % len(known)
                return ns
        return more_than_ns + 1


class Memory(msgspec.Struct):
    """What devices report at a time, but for what runners use."""

    t: int
    total_bytes: dict[str, int]
    reliable: dict[str, bool]
    foreign_bytes: dict[str, int]
    """What others than our runners use."""


def _readings(measures: Sequence[Measure], behaviours: dict[str, Behaviour]) -> list[Memory]:
    """The measurements, in their order. What runners held whose processes are gone is not others' memory, as
    long as it is not back; where more is free than that leaves, those that went first have given theirs back,
    though they were still looked after."""
    gone = sorted((b.exit_t, int(b.id[1:])) for b in behaviours.values() if b.exit_t != NEVER)
    found, next_gone = list[Memory](), 0
    leaving: dict[str, Behaviour] = {}
    for measure in measures:
        while next_gone < len(gone) and gone[next_gone][0] <= measure.t:
            id = f"r{gone[next_gone][1]}"
            leaving[id] = behaviours[id]
            next_gone += 1
        for id in [id for id, b in leaving.items() if NEVER < b.back_t <= measure.t]:
            del leaving[id]
        for device in measure.devices:
            while _theirs(measure, device, leaving) < 0 and (first := _first(leaving, device)) is not None:
                leaving.pop(first).back_t = measure.t
        foreign = {device: max(0, _theirs(measure, device, leaving)) for device in measure.devices}
        total = {device: reading.total_bytes for device, reading in measure.devices.items()}
        reliable = {device: reading.reliable for device, reading in measure.devices.items()}
        found.append(Memory(measure.t, total, reliable, foreign))
    return found


def _theirs(measure: Measure, device: str, leaving: dict[str, Behaviour]) -> int:
    """What is neither free on a device, nor our runners', nor was that of those who have left."""
    reading = measure.devices[device]
    ours = measure.used_bytes.get(device, 0) + sum(took(b).get(device, 0) for b in leaving.values())
    return reading.total_bytes - reading.free_bytes - ours


def _first(leaving: dict[str, Behaviour], device: str) -> str | None:
    """Who went first of those who had some of a device."""
    return next((id for id, b in leaving.items() if took(b).get(device)), None)


def took(b: Behaviour) -> dict[str, int]:
    """What an incarnation used at its peak; if nobody measured it, what was reserved for it."""
    return b.used_bytes or b.reserved_bytes


def _begun(b: Behaviour) -> int:
    """When an incarnation's process was there; of one that had none, when it was loaded."""
    return b.load_t if b.spawn_t == NEVER else b.spawn_t


def _stopped(b: Behaviour) -> bool:
    """Whether it was seen how long a runner took to end when it was told to."""
    return b.kill_t == NEVER and not b.lost and NEVER < b.stop_t <= b.exit_t


def _median(values: Sequence[int]) -> int | None:
    """The lower one of the middle; None of none."""
    return sorted(values)[(len(values) - 1) // 2] if values else None
