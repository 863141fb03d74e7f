"""Whether requests that come now are served as promised, and if not, why: what GET /ready answers."""

from __future__ import annotations

import msgspec

from events.limits import DEADLINE_LATE_NS, S
from statemachines.bound import overdue
from statemachines.state import State
from statemachines.waiting import cause


class Unready(msgspec.Struct, frozen=True):
    """A reason not to send requests here now. `age_ns`: for how long it has been so."""

    reason: str
    """A stable word: scheduler_failed, scheduler_late, log_blocked, stopping, wait_too_long."""
    message: str
    age_ns: int
    request: str = ""
    """Of a wait: whose it is."""
    model: str = ""


class Signs(msgspec.Struct, frozen=True):
    """What the driver and the log show of themselves. An age is None where there is nothing of the kind."""

    failed: str = ""
    """Why a step failed."""
    failed_ns: int | None = None
    log_error: str = ""
    log_blocked_ns: int | None = None
    stopping_ns: int = 0


def reasons(state: State, t: int, signs: Signs) -> list[Unready]:
    """Why the daemon is not ready; empty: it is."""
    found = []
    if signs.failed_ns is not None:
        # The state is void: nothing else can be told from it.
        return [Unready("scheduler_failed", f"a step failed: {signs.failed}", signs.failed_ns)]
    late = _late(state, t)
    if late is not None:
        found.append(late)
    if signs.log_blocked_ns is not None:
        message = f"the event log cannot be written: {signs.log_error}"
        found.append(Unready("log_blocked", message, signs.log_blocked_ns))
    if state.stopping:
        found.append(Unready("stopping", f"the daemon is stopping ({state.stopping})", signs.stopping_ns))
        return found  # nobody waits for a runner any more
    wait = _too_long(state, t)
    if wait is not None:
        found.append(wait)
    return found


def _late(state: State, t: int) -> Unready | None:
    """Deadlines that nobody fires."""
    first = state.deadlines.first()
    if first is None or t - first[0] <= DEADLINE_LATE_NS:
        return None
    due, (kind, id) = first
    about = f"{kind} of {id}" if id else kind
    message = f"the scheduler does nothing: its deadline {about} is overdue"
    return Unready("scheduler_late", message, t - due)


def _too_long(state: State, t: int) -> Unready | None:
    wait = overdue(state, t)
    if wait is None:
        return None
    why = cause(state, state.demands[state.requests[wait.request].demand])
    waited_s, bound_s = wait.waited_ns // S, wait.bound_ns // S
    message = (
        f"{wait.request} has waited for a runner of {wait.model} for {waited_s} s, where {bound_s} s are the "
        f"most that turns, drains and loads take; it waits for {why}"
    )
    return Unready("wait_too_long", message, wait.waited_ns, wait.request, wait.model)
