"""Where a request's time went: parts of it, each with what it waited for then, or who served it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Literal

from daemon.explain.told import Phase
from daemon.explain.walk import Happening
from events import catalogue as c
from events.catalogue import NEVER
from statemachines.parts import Demand
from statemachines.state import State
from statemachines.waiting import cause

PHASES_SHOWN = 24
"""Parts that are told one by one; where there are more, those of the same words are added up."""

MOVERS = (
    c.TurnWaits, c.ClaimMade, c.ClaimEnded, c.RunnerLoad, c.RunnerDrain, c.RunnerStop, c.RunnerUnloaded,
    c.RunnerFailed, c.RunnerLost, c.RunnerProbe, c.ProbeAnswered, c.ProcessExited, c.ModelCooling,
    c.ModelDismissed, c.MemoryMeasure, c.MemoryMeasured, c.DeadlinePassed, c.RequestQueued, c.RequestRequeued,
    c.ConfigChanged, c.DaemonStarted, c.OperationEnded, c.LoadRequested,
)  # fmt: skip
"""Events after which a demand may wait for something else."""

PAST = (
    (" is busy", " was busy"),
    (" are busy", " were busy"),
    (" is asked for its health", " was asked for its health"),
    (" are asked for their health", " were asked for their health"),
    (" loads", " was loading"),
    (" load", " were loading"),
    (" makes room", " made room"),
    (" make room", " made room"),
    (" is leaving", " was leaving"),
    (" are leaving", " were leaving"),
    (" lingers", " had only just become idle, and kept its place"),
    (" linger", " had only just become idle, and kept their places"),
    (", which is next", " was next"),
)
"""What `waiting.cause` says, as it is said afterwards."""

WHOLE = {
    "a measurement": "free memory was measured",
    "room": "room was waited for",
    "its turn": "it was not its turn yet",
    "memory that other programs hold": "other programs held the memory",
    "the end of the pause after a failed load": "it was not tried again yet, after a failed load",
}
"""The same, of what it says whole."""

Kind = Literal["waited", "loaded", "served"]
Part = tuple[Kind, str]


class Waits:
    """The parts of a request's time, from the events as they are shown to it. `where`: the demand that it
    waits in, or the runner that serves it."""

    def __init__(self, where: Callable[[State], Demand | str | None]) -> None:
        self._where = where
        self._since: int | None = None
        self._words: Part = ("waited", "")
        self._moved = True
        self.parts: list[tuple[Part, int]] = []

    def every(self, h: Happening, state: State) -> None:
        """An event, and the state before it: until now it waited for what that state says."""
        if h.cause == 0:
            self.look(h.t, state)
        self._moved = self._moved or isinstance(h.body, MOVERS)

    def moved(self) -> None:
        """It does something else from now on."""
        self._moved = True

    def look(self, t: int, state: State) -> None:
        """The time is `t`, and until now it waited for what the state says, or was served."""
        where = self._where(state)
        if where is None:
            self._since, self._moved = None, True
            return
        if isinstance(where, str):
            self._words, self._moved = ("served", f"{where} served it"), True
        elif self._moved or self._since is None:
            self._words, self._moved = words(state, where), False
        self._add(self._words, t - (self._since if self._since is not None else state.t))
        self._since = t

    def _add(self, part: Part, ns: int) -> None:
        if self.parts and self.parts[-1][0] == part:
            self.parts[-1] = (part, self.parts[-1][1] + ns)
        elif ns:
            self.parts.append((part, ns))

    def phases(self) -> Iterator[Phase]:
        """The parts, in their order; too many of them, added up."""
        parts = self.parts
        if len(parts) > PHASES_SHOWN:
            added: dict[Part, int] = {}
            for part, ns in parts:
                added[part] = added.get(part, 0) + ns
            parts = list(added.items())
        for (kind, text), ns in parts:
            yield Phase(kind, ns, text)


def words(state: State, demand: Demand) -> Part:
    """What a demand waits for, as it is said afterwards; its own runner's load is `loaded`."""
    text = _turn(state, demand) or cause(state, demand)
    kind: Kind = "loaded" if demand.servers and text.endswith((" loads", " load")) else "waited"
    text = WHOLE.get(text, text)
    for now, then in PAST:
        if text.endswith(now):
            text = text.removesuffix(now) + then
            break
    if text == f"{demand.model} was next":
        text = f"others who wanted {demand.model} were first"
    return kind, re.sub(r"\br\d+\b", lambda found: _named(state, demand, found[0]), text)


def _turn(state: State, demand: Demand) -> str:
    """Whose turn it waits for, if that is it."""
    waits = demand.turn_due != NEVER and demand.short_t == NEVER and not demand.servers
    if not waits or demand.key in state.claims or demand.turn_of not in state.runners:
        return ""
    return f"{demand.turn_of} {'had its turn' if state.runners[demand.turn_of].held else 'lingers'}"


def _named(state: State, demand: Demand, id: str) -> str:
    """A runner of another model, with that."""
    runner = state.runners.get(id)
    return id if runner is None or runner.model == demand.model else f"{id} ({runner.model})"
