"""The ledger at one moment, and what losing each runner would have cost. Pure: a state in, plain data out.

The scores of a choice are recorded with the claim that made it. What is not in the log (whom nobody thought
of, and why) is found again from the folded state, by the functions that the scheduler itself asks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

from events.catalogue import NEVER, Considered
from events.limits import LOAD_GUESS_NS
from statemachines.groups import kept_from
from statemachines.ledger import budget_bytes, free_bytes, held_bytes
from statemachines.parts import Demand, Runner
from statemachines.policy import costs_to_lose
from statemachines.room import Room, need_of
from statemachines.runner import RunnerState
from statemachines.state import State


class Holder(msgspec.Struct, frozen=True):
    """Who holds memory of a device. state: a runner's, with a ready one `idle` or `busy`."""

    runner: str
    model: str
    state: str
    bytes: int


class Device(msgspec.Struct, frozen=True):
    """A device as the ledger had it. None: not known then."""

    name: str
    budget_bytes: int | None
    headroom_bytes: int
    held_bytes: int
    free_bytes: int | None
    """What a load could have: the smaller of what the books and the device say, without the headroom. Less
    than nothing where a device is over-committed."""
    reported_free_bytes: int | None
    holders: tuple[Holder, ...]


Verdict = Literal[
    "victim", "kept", "pinned", "persistent", "preloaded", "suspect", "loading", "leaving", "stuck", "no_help"
]


class Alternative(msgspec.Struct, frozen=True):
    """A runner that might have gone. verdict: `victim`; `kept`, as it was dearer, or not needed; `no_help`,
    as nothing would have been won, or it is spoken for; else what spared it."""

    runner: str
    model: str
    state: str
    verdict: Verdict
    cost_ns: int | None = None
    """What losing it was reckoned to cost, the cheapest goes first and idle before busy; None where it was
    not reckoned."""
    load_ns: int = 0
    """Loading it again, which is the most of that."""
    idle_ns: int | None = None
    """For how long it had been idle, which makes it cheaper; None where it was busy."""
    running_ns: int | None = None
    """For how long its oldest request had been running: so much more its drain may take."""
    recorded: bool = False
    """The log says so; otherwise it was reckoned again from the state."""


def activity(runner: Runner) -> str:
    """A runner's state, with a ready one idle or busy."""
    if runner.state is not RunnerState.ready:
        return "stuck" if runner.stuck else runner.state.value
    return "busy" if runner.held else "idle"


def holders(state: State, device: str) -> tuple[Holder, ...]:
    """Who holds memory of a device, the oldest first."""
    return tuple(
        Holder(runner.id, runner.model, activity(runner), size)
        for runner in state.runners.values()
        if (size := runner.hold_bytes(device))
    )


def ledger(state: State) -> tuple[Device, ...]:
    """Every device."""
    names = dict.fromkeys([*state.config.devices, *state.readings, *state.held])
    return tuple(
        Device(
            name,
            budget_bytes(state, name),
            state.config.headroom_bytes,
            held_bytes(state, name),
            free_bytes(state, name),
            reading.free_bytes if (reading := state.readings.get(name)) else None,
            holders(state, name),
        )
        for name in names
    )


def alternatives(
    state: State, demand: Demand, recorded: Sequence[Considered] = (), victims: Sequence[str] = ()
) -> tuple[Alternative, ...]:
    """Every runner that there was, the cheapest to lose first, then those that were not to be lost.
    `recorded` and `victims`: as the claim has them."""
    need = need_of(state, demand)
    room = Room(state, demand, need) if need is not None else None
    said = {each.subject: each for each in recorded}
    ready = [r for r in state.runners.values() if r.state is RunnerState.ready and not r.suspect]
    costs = costs_to_lose(state, [r for r in ready if not r.held], [r for r in ready if r.held])
    found = []
    for kind_now, cost_now, _, id in costs:
        kind, cost = kind_now, cost_now
        runner, spared = state.runners[id], kept_from(state, state.runners[id], demand)
        verdict: str = spared or ("no_help" if room is None or not room.helps(runner) else "kept")
        if id in said:
            kind, cost = said[id].score[0], said[id].score[1]
            verdict = "kept"
        idle = kind == 0
        found.append(
            Alternative(
                id,
                runner.model,
                "idle" if idle else "busy",
                "victim" if id in victims else _verdict(verdict),
                cost,
                state.load_cost_ns.get(runner.model, LOAD_GUESS_NS),
                state.t - runner.idle_t if idle and runner.idle_t != NEVER else None,
                None if idle else state.t - next(iter(runner.held.values()), state.t),
                id in said,
            )
        )
    found.sort(key=lambda each: each.verdict not in ("victim", "kept"))
    for runner in state.runners.values():
        if runner not in ready:
            found.append(Alternative(runner.id, runner.model, activity(runner), _not_ready(runner)))
    return tuple(found)


def _verdict(text: str) -> Verdict:
    found: Verdict = msgspec.convert(text, Verdict)
    return found


def _not_ready(runner: Runner) -> Verdict:
    if runner.stuck:
        return "stuck"
    if runner.state is RunnerState.loading:
        return "loading"
    return "suspect" if runner.state is RunnerState.ready else "leaving"
