"""What those who are queued wait for, in words for people, as the state is now."""

from __future__ import annotations

from collections.abc import Iterable

from events.catalogue import NEVER
from statemachines.claims import before
from statemachines.parts import Demand, Request, Runner
from statemachines.runner import RunnerState
from statemachines.state import State, satisfies

ASKED = ("is asked for its health", "are asked for their health")


def cause(state: State, demand: Demand) -> str:
    """What a demand's requests wait for: `r7 loads`, `r3 is busy`, `memory that other programs hold` …"""
    return _served(state, demand) if demand.servers else _starving(state, demand)


def holder(state: State, request: Request) -> str:
    """What a lease that is held waits for: `its holder, to come back`; "" while all is well."""
    if ("grace", request.id) in state.deadlines:
        return "its holder, to come back"
    return "its holder, to let go" if request.revoked else ""


def _served(state: State, demand: Demand) -> str:
    """What the runners do that are there for it, or will be."""
    mine = [r for r in state.models.get(demand.model, {}).values() if r.live and satisfies(r, demand)]
    ready = [runner for runner in mine if runner.state is RunnerState.ready]
    words = [
        _all((r for r in ready if not r.suspect and len(r.held) >= r.slots), "is busy", "are busy"),
        _all((r for r in ready if r.suspect), *ASKED),
        _all((r for r in mine if r.state is RunnerState.loading), "loads", "load"),
    ]
    return ", ".join(filter(None, words)) or "its turn"


def failed_by(state: State, demand: Demand) -> Runner | None:
    """The runner that failed a demand's request before, if it is asked for its health now."""
    runner = state.runners.get(demand.excluded)
    return runner if runner is not None and runner.suspect and runner.live else None


def _starving(state: State, demand: Demand) -> str:
    """What must be over before its own runner is loaded."""
    cooling, claim = state.cooling.get(demand.model), state.claims.get(demand.key)
    if cooling is not None and cooling.until_t > state.t and not demand.operations:
        return "the end of the pause after a failed load"
    if claim is not None:
        victims = [state.runners[id] for id in claim.victims if id in state.runners]
        return _all(victims, "makes room", "make room") or "room"
    if demand.short_t != NEVER:
        return "memory that other programs hold"
    if demand.turn_due != NEVER:
        return "its turn"
    if (failed := failed_by(state, demand)) is not None:
        return _all([failed], *ASKED)
    first = before(state, demand)
    if first is not None:
        return f"{first.model}, which is next"
    runners = list(state.runners.values())
    return (
        _all((r for r in runners if not r.live and not r.stuck), "is leaving", "are leaving")
        or _all((r for r in runners if ("linger", r.id) in state.deadlines), "lingers", "linger")
        or _all(state.loading.values(), "loads", "load")
        or _all((r for r in runners if r.live and r.suspect), *ASKED)
        or ("a measurement" if state.measuring else "room")
    )


def _all(runners: Iterable[Runner], one: str, several: str) -> str:
    """`r1 is busy`, `r1, r2 are busy`; "" for none."""
    ids = [runner.id for runner in runners]
    return f"{', '.join(ids)} {one if len(ids) == 1 else several}" if ids else ""
