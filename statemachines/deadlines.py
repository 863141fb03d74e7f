"""Deciding what follows from a deadline: one function for each kind of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from events import catalogue as c
from events.catalogue import NEVER
from statemachines.decide import (
    answer_unloads,
    dismiss_waiting,
    dispatch_waiting,
    finish,
    grow_all,
    left,
    settle,
    silent,
    slot_freed,
)
from statemachines.leases import cut, due
from statemachines.loading import place
from statemachines.parts import Runner
from statemachines.request import RequestState
from statemachines.runner import RunnerState
from statemachines.state import instances

if TYPE_CHECKING:
    from statemachines.scheduler import Scheduler


def deadline_passed(s: Scheduler, f: c.DeadlinePassed, id: str) -> None:
    """What a deadline means depends on its kind; `id` is a runner, a request, a model or a demand."""
    DEADLINES[f.kind](s, f.id)


def _load_late(s: Scheduler, id: str) -> None:
    s.emit(c.RunnerStop(id, "failed", "load_timeout"))


def _stalled(s: Scheduler, id: str) -> None:
    s.emit(c.RunnerStop(id, "failed", "load_stalled"))


def _expired(s: Scheduler, id: str) -> None:
    """An idle runner goes; of a model that has a least number of instances only what is above it, or all at
    once, when the last of them is over."""
    state = s.state
    if ("keep_alive", id) in state.deadlines:
        return  # it was put off
    runner = state.runners[id]
    mine = [runner]
    if runner.model in state.scaled:
        least = state.config.models[runner.model].instances_min
        same = instances(state, runner.model, runner.digest, runner.options).values()
        live = [other for other in same if other.live]
        if len(live) <= least:
            if not all(_is_over(s, other) for other in live):
                return
            mine = live
    for each in mine:
        s.drain(each, "keep_alive")


def _is_over(s: Scheduler, runner: Runner) -> bool:
    """Whether a runner is idle and its keep-alive has run out."""
    if runner.held or runner.state is not RunnerState.ready:
        return False
    never = runner.keep_alive_ns == NEVER or runner.model in s.state.pinned
    return not never and ("keep_alive", runner.id) not in s.state.deadlines


def _drain_late(s: Scheduler, id: str) -> None:
    runner = s.state.runners[id]
    s.emit(c.RunnerStop(id, "unloaded", runner.reason))


def _stop_late(s: Scheduler, id: str) -> None:
    s.emit(c.RunnerKill(id))


def _kill_late(s: Scheduler, id: str) -> None:
    s.emit(c.RunnerStuck(id))
    answer_unloads(s)
    place(s)


def _probe_late(s: Scheduler, id: str) -> None:
    runner = s.state.runners[id]
    if runner.suspect:
        s.emit(c.RunnerStop(id, "failed", "hung"))
    else:
        silent(s, runner)


def _reprobe(s: Scheduler, id: str) -> None:
    s.emit(c.RunnerProbe(id, "again"))


def _watch(s: Scheduler, id: str) -> None:
    s.emit(c.RunnerProbe(id, "busy"))


def _memory_late(s: Scheduler, id: str) -> None:
    finish(s, s.state.runners[id])


def _poll(s: Scheduler, id: str) -> None:
    if not s.state.measuring:
        s.emit(c.MemoryMeasure(f"reclaim {id}"))


def _queue_late(s: Scheduler, id: str) -> None:
    _time_out(s, id, "queue_timeout")


def _request_late(s: Scheduler, id: str) -> None:
    _time_out(s, id, "request_timeout")


def _time_out(s: Scheduler, id: str, reason: str) -> None:
    request = s.state.requests[id]
    s.emit(c.RequestTimedOut(id, reason))
    left(s, request)


def _close_late(s: Scheduler, id: str) -> None:
    """The relay owed the end of an exchange and did not say it: the fold took the slot back."""
    request = s.state.requests.get(id)
    if request is not None and request.state is RequestState.dispatched:
        s.emit(c.RequestFailed(id, "upstream_failed", request.runner, "its exchange did not end"))
    for runner in list(s.state.runners.values()):
        if runner.suspect or runner.state is not RunnerState.ready:
            slot_freed(s, runner)


def _again(s: Scheduler, id: str) -> None:
    place(s)


def _cooled(s: Scheduler, id: str) -> None:
    """A model may be loaded again: for those who wait, or as one of its least number of instances."""
    place(s)
    if id in s.state.scaled:
        grow_all(s, id)


def _resume(s: Scheduler, id: str) -> None:
    """Go on with what did not fit into the last step."""
    for dismissal in list(s.state.dismissing):
        dismiss_waiting(s, dismissal)
    for runner in s.state.runners.values() if not s.state.only_loads else ():
        if s.left < 0:
            return
        if runner.model in s.state.wanted and runner.state is RunnerState.ready and not runner.suspect:
            dispatch_waiting(s, runner)
    if s.state.measuring:
        place(s)  # whose memory is back is seen when it is measured
    else:
        settle(s)


def _lease_late(s: Scheduler, id: str) -> None:
    """Who held a lease has not let go of it in time."""
    request = s.state.requests[id]
    cut(s, request, request.revoked)
    s.emit(c.RequestFailed(id, "revoked", request.runner, request.revoked))
    place(s)


def _forsaken(s: Scheduler, id: str) -> None:
    """Nobody has come back for a lease since the daemon started again."""
    s.emit(c.RequestInterrupted(id))


DEADLINES: dict[str, Callable[[Scheduler, str], None]] = {
    "load": _load_late,
    "stall": _stalled,
    "keep_alive": _expired,
    "drain": _drain_late,
    "stop": _stop_late,
    "kill": _kill_late,
    "probe": _probe_late,
    "reprobe": _reprobe,
    "watch": _watch,
    "memory": _memory_late,
    "poll": _poll,
    "queue": _queue_late,
    "request": _request_late,
    "close": _close_late,
    "lease": due,
    "revoke": _lease_late,
    "grace": _forsaken,
    "measure": _again,
    "cool": _cooled,
    "turn": _again,
    "linger": _again,
    "quarantine": _again,
    "resume": _resume,
}
