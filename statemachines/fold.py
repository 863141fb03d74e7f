"""Folding: the only code that changes the state. The same function live, in recovery, replay and simulation.

`apply(state, event)` takes one event and does what that event says, no more: it never concludes anything.
A fact that no longer applies (the runner is gone, the request has ended) changes nothing. A decision that
does not apply is a defect of this program and raises: `Breach` or `IllegalTransition`.
"""

from __future__ import annotations

from events.catalogue import Event
from statemachines import fold_daemon, fold_requests, fold_runners
from statemachines.moves import Handlers
from statemachines.state import State

HANDLERS: Handlers = {**fold_requests.HANDLERS, **fold_runners.HANDLERS, **fold_daemon.HANDLERS}


def apply(state: State, event: Event) -> None:
    """Fold one event. Raises Breach or IllegalTransition for a decision that may not be."""
    state.seq = event.seq
    state.t = event.t
    HANDLERS[type(event.body)](state, event, event.body)
