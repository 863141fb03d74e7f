"""Leases: slots that clients use by themselves, whom nothing but their word binds.

Rules for its readers:
1. A lease is a request of the kind `lease`. It is granted by its dispatch, and ends as others do: complete,
   when its holder lets go; failed, with its runner.
2. It has no request limit, but is looked at (`due`): it may last as long as nobody waits for its slot, or
   until its turn is over, and for `maxLease` at most.
3. It is revoked by a notice (`lease.revoked`), also whenever its runner drains: who lets go in time leaves a
   slot as any other.
4. Who does not may still be using it. So a lease that is cut takes its runner with it: that drains, gets no
   work, and goes when its requests have ended. Nothing that is not a lease is cut for that.
5. A start of the daemon keeps the slots of the leases whose runners survive, until their holders come back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from events import catalogue as c
from events.catalogue import LEASE
from statemachines.parts import Request, Runner
from statemachines.request import RequestState
from statemachines.runner import RunnerState
from statemachines.state import State, satisfies, unload_due, waiting_for

if TYPE_CHECKING:
    from statemachines.scheduler import Scheduler


def held(state: State, runner: Runner) -> list[Request]:
    """The leases on a runner that have not ended, oldest first."""
    requests = [state.requests[id] for id in runner.held]
    return [r for r in requests if r.kind == LEASE and r.state is RequestState.dispatched]


def due(s: Scheduler, id: str) -> None:
    """A lease is looked at: it has lasted for as long as it may, or others wait for its slot."""
    state = s.state
    request = state.requests[id]
    runner = state.runners[request.runner]
    view = state.model(request.model)
    if view is not None and view.max_lease_ns and state.t - runner.held[id] >= view.max_lease_ns:
        _revoke(s, request, runner, "max_lease", 0)
    elif _in_the_way(state, runner):
        _revoke(s, request, runner, "others_wait", 0)


def _in_the_way(state: State, runner: Runner) -> bool:
    """Whether more wait for a slot of a runner than will be let go anyway."""
    if state.config.policy == "collate" or len(runner.held) < runner.slots:
        return False
    waiting = sum(len(d.waiting) for d in waiting_for(state, runner.model) if satisfies(runner, d))
    return waiting > sum(bool(request.revoked) for request in held(state, runner))


def revoke_all(s: Scheduler, runner: Runner, reason: str, deadline_ns: int) -> None:
    """A runner drains: who holds a lease on it is told."""
    for request in held(s.state, runner):
        if not request.revoked:
            _revoke(s, request, runner, reason, deadline_ns)


def _revoke(s: Scheduler, request: Request, runner: Runner, reason: str, deadline_ns: int) -> None:
    """Give notice: as long as a drain may last (`unloadTimeout`), and not beyond the runner's own end."""
    state = s.state
    until = unload_due(state, runner)
    until = min(until, deadline_ns) if deadline_ns else until
    s.emit(c.LeaseRevoked(request.id, runner.id, reason, until))


def cut(s: Scheduler, request: Request, reason: str) -> None:
    """A lease is about to end though its holder has not let go: its runner goes."""
    runner = s.state.runners[request.runner]
    if not request.revoked:
        s.emit(c.LeaseRevoked(request.id, runner.id, reason, s.state.t))
    if runner.state is RunnerState.ready:
        s.drain(runner, "lease_revoked")


def end_all(s: Scheduler, runner: Runner) -> None:
    """A runner is gone: so are the leases on it."""
    for request in held(s.state, runner):
        if request.revoked:
            s.emit(c.RequestFailed(request.id, "revoked", runner.id, request.revoked))
        else:
            s.emit(c.RequestFailed(request.id, "upstream_failed", runner.id, "it has ended"))
