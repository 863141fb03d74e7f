"""Runners' lives, gathered in one pass: for whom they were loaded, in whose place, how they ended."""

from __future__ import annotations

from typing import Any

import msgspec

from daemon.explain.memory import Alternative, Device, alternatives, ledger
from daemon.explain.obstacle import InTheWay, in_its_way
from daemon.explain.walk import Happening, Watch
from events import catalogue as c
from events.catalogue import NEVER, Option
from statemachines.leases import held
from statemachines.ledger import back
from statemachines.parts import Demand, Runner
from statemachines.request import RequestState
from statemachines.room import need_of
from statemachines.runner import RunnerState
from statemachines.state import State, oldest, waiting_for

TURNS_KEPT = 32
"""Times that a demand is told to wait, of which the first are kept: their words repeat."""

RESTARTS_KEPT = 8
"""Starts of the daemon that a runner lived through, of which the last are kept."""

NOTICES_KEPT = 8
"""Leases of a runner that were revoked, of which the last are kept: who leases one for days is told often."""

LIVES_KEPT = 16
"""Runners of one model that have ended, of which the last are kept: more instances than one has at once."""


BEFORE_LOAD = 10_000
"""Events before a load that no request is named for: among them is who asked for it."""


class Asker(msgspec.Struct, frozen=True):
    """Who waited longest in a demand. since_t: scheduler time, ns."""

    id: str
    model: str
    options: dict[str, Option]
    who: str
    since_t: int
    preload: bool
    others: int
    """How many more waited with him."""


class Turn(msgspec.Struct, frozen=True):
    """That a demand was told to wait, and for what. model: that of the runner in its way, or ""."""

    event: Happening
    model: str


class Notice(msgspec.Struct, frozen=True):
    """That a lease was revoked. caller: who held it."""

    event: Happening
    caller: str


class Choice(msgspec.Struct, frozen=True):
    """A claim, with what it was decided on: the state just before it."""

    made: Happening
    asker: Asker
    turns: tuple[Turn, ...]
    """When those who waited were told to wait, and for what."""
    way: tuple[InTheWay, ...]
    considered: tuple[Alternative, ...]
    memory: tuple[Device, ...]


class End(msgspec.Struct, frozen=True):
    """The first event of a runner's end, and what it was doing then."""

    event: Happening
    reason: str
    was: str
    """Its state."""
    running: int
    """Slots in use."""
    leases: int
    """Those of them that were leased."""
    idle_ns: int | None
    keep_alive_ns: int
    output: str
    memory: tuple[Device, ...]
    choice: Choice | None


class Life(msgspec.Struct):
    """One runner, from its load on."""

    id: str
    model: str
    load: Happening
    memory: tuple[Device, ...]
    """The ledger just before its load."""
    asker: Asker | None
    choice: Choice | None = None
    """The room that was made for it."""
    turns: tuple[Turn, ...] = ()
    ready: Happening | None = None
    exchanges: int = 0
    """Exchanges with it that have ended, as far as the pass has seen them."""
    last: Happening | None = None
    """The last of their ends."""
    restarts: list[Happening] = []
    notices: list[Notice] = []
    end: End | None = None
    after: list[Happening] = []
    """What followed: stop, kill, exit, and what came of it."""
    over: bool = False
    """It has ended."""
    memory_seen: bool = True
    """Its memory was seen to have come back then; False: it was counted as free at a deadline."""
    successor: Happening | None = None
    """The load for which it had to go."""
    older: bool = False
    """It is older than what was read: `load` and `ready` are made of the state, and have no number."""


ENDINGS = (c.RunnerDrain, c.RunnerStop, c.ProcessExited, c.SpawnFailed, c.LeaseRefused, c.RunnerLost)
OVER = (c.RunnerUnloaded, c.RunnerFailed, c.RunnerLost)


class Lives(Watch):
    """The lives of one runner, or of all of a model's (the last few)."""

    def __init__(self, model: str, runner: str = "") -> None:
        self.model = model
        self.runner = runner
        """The only one that is wanted; "": all of the model's."""
        self.lives: dict[str, Life] = {}
        self._turns: dict[str, tuple[Turn, ...]] = {}
        self._choices: dict[str, Choice] = {}
        self.looks = {
            c.TurnWaits: self._waits,
            c.ClaimMade: self._claims,
            c.ClaimEnded: self._claim_ends,
            c.RunnerLoad: self._loads,
            c.ProbeAnswered: self._answers,
            c.UpstreamEnded: self._exchanged,
            c.RequestInterrupted: self._interrupted,
            c.LeaseRevoked: self._revokes,
            c.DaemonStarted: self._starts,
            c.ModelCooling: self._follows,
            c.ModelCrowded: self._follows,
            c.RunnerKill: self._follows,
            c.RunnerStuck: self._follows,
            c.RunnerUnloaded: self._follows,
            c.RunnerFailed: self._follows,
            **dict.fromkeys(ENDINGS, self._ends),
        }

    def begun(self, state: State) -> None:
        """Who is there already: the log, or the pass, begins later than he."""
        for runner in state.models.get(self.model, {}).values():
            if self.runner in ("", runner.id):
                self.lives[runner.id] = older(runner)

    def __iter__(self) -> Any:
        return iter(self.lives.values())

    # --- who waited, and for what ------------------------------------------------------------------------

    def _waits(self, h: Happening, state: State) -> None:
        if h.seq <= self.begin:  # of somebody who waited for the same before, and went
            return
        before = self._turns.get(h.body.demand, ())
        if len(before) < TURNS_KEPT and (not before or other_wait(before[-1].event.body, h.body)):
            self._turns[h.body.demand] = (*before, turn_of(h, state))

    def _claims(self, h: Happening, state: State) -> None:
        d: c.ClaimMade = h.body
        demand = state.demands[d.demand]
        mine = [self.lives[id] for id in d.victims if id in self.lives]
        if demand.model != self.model and not mine:
            return
        choice = chosen(state, h, demand, self._turns.get(d.demand, ()))
        self._choices[d.demand] = choice

    def _claim_ends(self, h: Happening, state: State) -> None:
        if h.body.reason != "room_made":
            self._choices.pop(h.body.demand, None)
            self._turns.pop(h.body.demand, None)

    def _loads(self, h: Happening, state: State) -> None:
        d: c.RunnerLoad = h.body
        demand = demand_of(state, d)
        key = demand.key if demand is not None else ""
        choice, turns = self._choices.pop(key, None), self._turns.pop(key, ())
        for life in self.lives.values():
            if choice is not None and life.end is not None and life.end.choice is choice:
                life.successor = h
        if d.model == self.model and self.runner in ("", h.subject):
            asker = asker_of(state, demand) if demand is not None else None
            self.lives[h.subject] = Life(h.subject, d.model, h, ledger(state), asker, choice, turns)
            self._forget()
        self._settle(h)

    def _forget(self) -> None:
        """Keep the last few lives that are over."""
        over = [id for id, life in self.lives.items() if life.over and id != self.runner]
        for id in over[:-LIVES_KEPT]:
            del self.lives[id]

    # --- what they do ------------------------------------------------------------------------------------

    def _answers(self, h: Happening, state: State) -> None:
        life = self.lives.get(h.body.runner)
        if life is not None and life.ready is None and h.body.healthy:
            runner = state.runners.get(life.id)
            if runner is not None and runner.state is RunnerState.loading and runner.whole:
                life.ready = h

    def _exchanged(self, h: Happening, state: State) -> None:
        life = self.lives.get(h.body.runner)
        if life is not None:
            life.last, life.exchanges = h, life.exchanges + 1
        self._settle(h)

    def _interrupted(self, h: Happening, state: State) -> None:
        """A crash ends an exchange without a word of it."""
        request = state.requests[h.body.request]
        life = self.lives.get(request.runner)
        if life is not None and request.state is RequestState.dispatched and not request.slot:
            life.last, life.exchanges = h, life.exchanges + 1

    def _revokes(self, h: Happening, state: State) -> None:
        life = self.lives.get(h.body.runner)
        if life is not None:
            notice = Notice(h, state.requests[h.body.request].caller)
            life.notices = [*life.notices, notice][-NOTICES_KEPT:]

    def _starts(self, h: Happening, state: State) -> None:
        self._choices.clear()  # claims die with a start
        self._turns.clear()
        for life in self.lives.values():
            if not life.over:
                life.restarts = [*life.restarts, h][-RESTARTS_KEPT:]

    # --- how they end ------------------------------------------------------------------------------------

    def _ends(self, h: Happening, state: State) -> None:
        life, runner = self.lives.get(h.body.runner), state.runners.get(h.body.runner)
        if life is None or runner is None or runner.exited:
            return
        life.after = [*life.after, h]
        if life.end is None and not isinstance(h.body, c.LeaseRefused):
            life.end = end_of(state, runner, h, self._choice_for(state, runner))
        life.over = isinstance(h.body, OVER)

    def _choice_for(self, state: State, runner: Runner) -> Choice | None:
        """The choice that made it a victim."""
        key = next((key for key, claim in state.claims.items() if runner.id in claim.victims), "")
        return self._choices.get(key)

    def _follows(self, h: Happening, state: State) -> None:
        life = self.lives.get(h.body.runner)
        if life is None:
            return
        life.after = [*life.after, h]
        if isinstance(h.body, OVER):
            life.over, life.memory_seen = True, back(state, state.runners[life.id])
            life.end = life.end or end_of(state, state.runners[life.id], h, None)

    def _settle(self, h: Happening) -> None:
        """Whether the one runner that is wanted has nothing more to come: its last step is behind us, and
        what it had to go for has been loaded."""
        life = self.lives.get(self.runner) if self.runner else None
        if life is not None and life.over and h.cause != life.after[-1].cause:
            self.done = life.end is None or life.end.choice is None or life.successor is not None


def before_load(load: Happening) -> int:
    """The event up to which nothing tells why a runner was loaded: the last before somebody asked for it."""
    kind, _, id = load.body.reason.partition(" ")
    if not load.seq:
        return 0
    if kind == "request" and id[1:].isdigit():
        return min(int(id[1:]), load.seq) - 1
    return max(0, load.seq - BEFORE_LOAD)


def turn_of(h: Happening, state: State) -> Turn:
    """A wait for a turn, with the model of the runner whose it is."""
    runner = state.runners.get(h.body.runner)
    return Turn(h, runner.model if runner is not None else "")


def other_wait(before: c.TurnWaits, now: c.TurnWaits) -> bool:
    """Whether a demand is told to wait for something else than before."""
    return (before.reason, before.runner) != (now.reason, now.runner)


def chosen(state: State, h: Happening, demand: Demand, turns: tuple[Turn, ...]) -> Choice:
    """A claim that is about to be made, and what it is decided on."""
    d: c.ClaimMade = h.body
    need = need_of(state, demand)
    way = in_its_way(state, demand, need) if need is not None else ()
    others = alternatives(state, demand, d.considered, d.victims)
    return Choice(h, asker_of(state, demand), turns, way, others, ledger(state))


def older(runner: Runner) -> Life:
    """The life of a runner whose beginning was not read."""
    r = runner
    body = c.RunnerLoad(
        r.model, r.digest, r.options, r.reserved_bytes, r.slots, r.keep_alive_ns, r.load_ns, "older"
    )
    load = Happening(0, 0, r.load_t, 0, r.id, body)
    ready = Happening(0, 0, r.ready_t, 0, r.id, None) if r.ready_t != NEVER else None
    return Life(r.id, r.model, load, (), None, ready=ready, older=True)


def asker_of(state: State, demand: Demand) -> Asker:
    """Who has waited longest in a demand, and with how many others."""
    id = oldest(demand)
    others = len(demand.waiting) + len(demand.operations) - 1
    if id in demand.operations:
        operation = state.operations[id]
        return Asker(id, demand.model, demand.options, "", operation.asked_t, operation.preload, others)
    request = state.requests[id]
    return Asker(id, demand.model, request.options, request.caller, request.arrived_t, False, others)


def demand_of(state: State, d: c.RunnerLoad) -> Demand | None:
    """The demand that a load is decided for; None: it is another instance of what is loaded."""
    kind, _, id = d.reason.partition(" ")
    if kind == "request" and id in state.requests:
        return state.demands.get(state.requests[id].demand)
    if kind != "operator":
        return None
    mine = [demand for demand in waiting_for(state, d.model) if demand.operations and not demand.servers]
    return next((each for each in mine if need_options(state, each) == d.options), None)


def need_options(state: State, demand: Demand) -> dict[str, Option]:
    """All launch options of the runner that a demand would be given."""
    need = need_of(state, demand)
    return need.options if need is not None else {}


def end_of(state: State, runner: Runner, h: Happening, choice: Choice | None) -> End:
    """The beginning of a runner's end."""
    body, output = h.body, ""
    reason = getattr(body, "reason", "lost")
    if isinstance(body, c.ProcessExited):
        reason, output = "shard_exited" if len(runner.processes) > 1 else "exited", body.output
    elif isinstance(body, c.SpawnFailed):
        reason, output = "spawn_failed", body.error
    idle = runner.idle_t
    return End(
        h,
        reason,
        runner.state.value,
        len(runner.held),
        len(held(state, runner)),
        state.t - idle if idle != NEVER else None,
        runner.keep_alive_ns,
        output,
        choice.memory if choice is not None else ledger(state),
        choice if reason == "evicted" else None,
    )
