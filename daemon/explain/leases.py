"""Leases in explanations: who holds a slot of a runner by himself, and until when he may."""

from __future__ import annotations

from daemon.explain.words import count, duration, listed
from statemachines.leases import held
from statemachines.parts import Request, Runner
from statemachines.state import State


def holder(request: Request) -> str:
    """Who holds a lease: `q12 (from 127.0.0.1)`."""
    return f"{request.id} (from {request.caller})" if request.caller else request.id


def held_of(state: State, runners: list[Runner]) -> list[Request]:
    """The leases on some runners."""
    return [request for runner in runners for request in held(state, runner)]


def slots(running: int, leases: int) -> str:
    """What goes on in so many slots, of which some are leased: `2 requests`, `1 request and 1 lease`."""
    each = [(running - leases, "request"), (leases, "lease")]
    return listed([count(number, noun) for number, noun in each if number])


def serves(state: State, runner: Runner) -> str:
    """What a busy runner does: `serves 2 requests`, `is leased to q12 (from 127.0.0.1)`, or both."""
    leases = held(state, runner)
    requests = len(runner.held) - len(leases)
    words = [f"serves {count(requests, 'request')}"] if requests else []
    words += [f"is leased to {listed([holder(request) for request in leases])}"] if leases else []
    return listed(words)


def told(before: State, after: State, leases: list[Request]) -> str:
    """What becomes of the leases on runners that have to go, or would: in `after` they are revoked."""
    one = len(leases) == 1
    due = max(after.deadlines["revoke", request.id] for request in leases)
    had = all(before.requests[request.id].revoked for request in leases)
    verb = f"{'has' if one else 'have'} been told to let go" if had else "would be told to let go at once"
    late = f"{'is' if one else 'are'} cut" if had else "be cut"
    return f"{listed([request.id for request in leases])} {verb}, and {late} in {duration(due - after.t)}"


def first_told(state: State, leases: list[Request]) -> str:
    """Which of the leases on runners that stay is the first to go, while others wait for a slot, and when."""
    first = [request for request in leases if request.revoked] or leases
    kind = "revoke" if first[0].revoked else "lease"
    due, id = min((state.deadlines[kind, request.id], request.id) for request in first)
    left = duration(max(0, due - state.t))
    if first[0].revoked:
        return f"{id} has been told to let go, and is cut in {left}"
    return f"{id} is told to let go in {left} at the earliest"
