"""Folding what happens to requests: arrival, queue, slots, ends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from events import catalogue as c
from events.catalogue import LEASE, NEVER, Event
from events.limits import WATCH_NS
from statemachines.invariants import Breach, check_dispatch
from statemachines.moves import (
    Handlers,
    end_request,
    enqueue,
    look_at_lease,
    release,
    request_to,
    unqueue,
    watched,
)
from statemachines.parts import Request
from statemachines.request import RequestState
from statemachines.runner import RunnerState
from statemachines.state import State


def _arrived(state: State, event: Event, f: c.RequestArrived) -> None:
    view = state.config.models.get(f.model)
    if (last := state.idle.get(f.model)) is not None and f.options.items() <= last[1].items():
        del state.idle[f.model]
        state.think_ns[f.model] = event.t - last[0]
    state.requests[event.subject] = Request(
        id=event.subject,
        seq=event.seq,
        model=f.model,
        demand="",
        kind=f.kind,
        options=f.options,
        arrived_t=event.t,
        priority=f.priority + view.priority if view else f.priority,
        keep_alive_ns=f.keep_alive_ns,
        caller=f.caller,
        token_digest=f.token_digest,
        keep_alive_else_ns=f.keep_alive_else_ns,
    )


def _queued(state: State, event: Event, d: c.RequestQueued) -> None:
    request = state.requests[d.request]
    request_to(request, "queue")
    enqueue(state, request)
    _limit_wait(state, request)
    view = state.model(request.model)
    if view and view.request_ns and request.kind != LEASE:
        state.deadlines.arm(("request", request.id), request.arrived_t + view.request_ns)


def _limit_wait(state: State, request: Request) -> None:
    """A request may queue for so long from its arrival, whichever time it queues."""
    view = state.model(request.model)
    if view and view.queue_ns:
        state.deadlines.arm(("queue", request.id), request.arrived_t + view.queue_ns)


def _dispatched(state: State, event: Event, d: c.RequestDispatched) -> None:
    request = state.requests[d.request]
    runner = state.runners[d.runner]
    check_dispatch(state, request, runner)
    if request.state is RequestState.queued:
        unqueue(state, request)
        state.deadlines.disarm(("queue", request.id))
    elif (view := state.model(request.model)) and view.request_ns and request.kind != LEASE:
        state.deadlines.arm(("request", request.id), request.arrived_t + view.request_ns)
    request_to(request, "dispatch")
    request.runner = runner.id
    request.slot = True
    request.attempt = d.attempt
    if request.keep_alive_ns is not None:
        runner.keep_alive_ns, runner.kept = request.keep_alive_ns, True
    elif request.keep_alive_else_ns is not None and not runner.kept:
        runner.keep_alive_ns = request.keep_alive_else_ns
    if not runner.held:
        del state.resting[runner.id]
        runner.idle_t = NEVER
        state.deadlines.disarm(("keep_alive", runner.id))
        state.deadlines.disarm(("linger", runner.id))
        if ("watch", runner.id) not in state.deadlines:
            state.deadlines.arm(("watch", runner.id), event.t + WATCH_NS)
    runner.held[request.id] = event.t
    if request.kind == LEASE:
        look_at_lease(state, request)


def _requeued(state: State, event: Event, d: c.RequestRequeued) -> None:
    request = state.requests[d.request]
    if request.slot or request.attempt != 1:
        raise Breach(f"{request.id} requeued out of turn")
    request_to(request, "requeue")
    enqueue(state, request, d.runner)
    _limit_wait(state, request)


def _completed(state: State, event: Event, d: c.RequestCompleted) -> None:
    request = state.requests[d.request]
    if request.slot:
        raise Breach(f"{request.id} completed while its exchange runs")
    end_request(state, request, "complete")
    if state.cooling:
        state.cooling.pop(request.model, None)
        state.deadlines.disarm(("cool", request.model))
    runner = state.runners.get(request.runner)
    if runner is not None:
        runner.served += 1


def _ender(trigger: str) -> Callable[[State, Event, Any], None]:
    def ended(state: State, event: Event, d: Any) -> None:
        end_request(state, state.requests[d.request], trigger)

    return ended


def _upstream_ended(state: State, event: Event, f: c.UpstreamEnded) -> None:
    request = state.requests.get(f.request)
    if request is None or not request.slot or request.runner != f.runner:
        return
    runner = state.runners[f.runner]
    if not f.complete and f.sent and request.state is RequestState.dispatched:
        runner.suspect = runner.state in (RunnerState.ready, RunnerState.draining)
    release(state, request)
    if (f.complete or f.bytes_to_client) and not runner.held:
        watched(state, runner, True)


def _lease_resumed(state: State, event: Event, f: c.LeaseResumed) -> None:
    request = state.requests.get(f.request)
    if request is not None and request.kind == LEASE and request.state is RequestState.dispatched:
        request.caller = f.by
        state.deadlines.disarm(("grace", request.id))


def _lease_revoked(state: State, event: Event, d: c.LeaseRevoked) -> None:
    request = state.requests[d.request]
    if not request.slot or request.kind != LEASE or request.revoked:
        raise Breach(f"{request.id} revoked")
    request.revoked = d.reason
    state.deadlines.disarm(("lease", request.id))
    state.deadlines.arm(("revoke", request.id), d.until_ns)


HANDLERS: Handlers = {
    c.LeaseResumed: _lease_resumed,
    c.LeaseRevoked: _lease_revoked,
    c.RequestArrived: _arrived,
    c.RequestDispatched: _dispatched,
    c.UpstreamEnded: _upstream_ended,
    c.RequestCompleted: _completed,
    c.RequestQueued: _queued,
    c.RequestRequeued: _requeued,
    c.RequestFailed: _ender("fail"),
    c.RequestCancelled: _ender("cancel"),
    c.RequestTimedOut: _ender("time_out"),
    c.RequestRejected: _ender("reject"),
    c.RequestInterrupted: _ender("interrupt"),
}
