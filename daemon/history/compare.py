"""One recording under several configurations, beside what really happened: the figures of each, and how far
the same configuration played again is from what happened."""

from __future__ import annotations

from array import array
from typing import Any

import msgspec

from daemon.history.figures import rounded, spread
from daemon.history.parts import PARTS, SERVED
from daemon.history.stats import Stats
from daemon.history.waits import Wait, Waits
from events import catalogue as c
from events.catalogue import Event
from statemachines.ledger import predicted_bytes
from statemachines.room import max_loaded
from statemachines.state import State

UNFINISHED = "unfinished"
"""The outcome of a request that had not ended when the recording did."""
NEAR_NS = 100_000_000
"""Waits that differ by less are the same to whoever waits; so are those that differ by a twentieth."""


class Column:
    """What came of the requests of a recording, by their place among the arrivals. Observes every event."""

    def __init__(self, name: str, state: State) -> None:
        """`state`: before the first event."""
        self.name = name
        self.stats = Stats(state)
        self.outcomes: list[str] = []
        self.waited_ns = array("q")
        self.models: list[str] = []
        self.parts_ns = [0] * len(PARTS)
        """The sums over those that were not refused on arrival."""
        self.claims = self.crowded = self.limit = 0
        """Claims; those that would have had the memory that they need, but not a place among the runners that
        may be loaded; and how many may be."""
        self._spreads: dict[str | None, dict[str, int | None]] = {}
        self._waits = Waits()
        self._places: dict[str, int] = {}

    def note(self, state: State, event: Event, at_ns: int) -> None:
        """Take an event."""
        if type(event.body) is c.RequestArrived:
            self._places[event.subject] = len(self.outcomes)
            self.outcomes.append(UNFINISHED)
            self.waited_ns.append(0)
            self.models.append(event.body.model)
        elif type(event.body) is c.ClaimMade:
            self._claimed(state, event.body)
        self.stats.note(state, event, at_ns)
        ended = self._waits.note(state, event, at_ns)
        if ended is not None:
            self._ended(self._places.pop(ended.request), ended)

    def finish(self, state: State) -> None:
        """Count what goes on still."""
        self.stats.finish()
        for wait in self._waits.until(state):
            place = self._places[wait.request]
            self.waited_ns[place] = wait.waited_ns if wait.waited_ns >= 0 else wait.total_ns

    def _claimed(self, state: State, d: c.ClaimMade) -> None:
        self.claims += 1
        self.limit = max_loaded(state)
        short = [
            device for device, size in d.need_bytes.items() if (predicted_bytes(state, device) or 0) < size
        ]
        self.crowded += not short and len(state.runners) >= self.limit

    def _ended(self, place: int, wait: Wait) -> None:
        self.outcomes[place], self.waited_ns[place] = wait.outcome, wait.waited_ns
        if wait.outcome != "rejected":
            for i, ns in enumerate(wait.parts):
                self.parts_ns[i] += ns

    # --- figures -----------------------------------------------------------------------------------------

    def count(self, outcome: str) -> int:
        """How many requests ended so."""
        return self.outcomes.count(outcome)

    def waits(self, model: str | None = None) -> dict[str, int | None]:
        """How the waits are spread, of all or of one model's: of those that were not refused on arrival. To
        be asked when all has been noted."""
        if model not in self._spreads:
            every = zip(self.waited_ns, self.outcomes, self.models, strict=True)
            mine = [ns for ns, outcome, of in every if outcome != "rejected" and model in (None, of)]
            self._spreads[model] = spread(mine)
        return self._spreads[model]

    @property
    def accepted(self) -> int:
        """Requests that were not refused on arrival."""
        return len(self.outcomes) - self.count("rejected")

    def mean_part_ns(self, part: int) -> int:
        """What a request spent on a part in the mean."""
        return self.parts_ns[part] // max(1, self.accepted)

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        total = self.stats.total
        models = {}
        for name in dict.fromkeys(self.models):
            mine = self.stats.by.get(name)
            models[name] = {
                "requests": self.models.count(name),
                "wait_ns": self.waits(name),
                "loads": mine.loads["decided"] if mine is not None else 0,
                "swaps": mine.swaps if mine is not None else 0,
                "busy_share": rounded(mine.busy_share) if mine is not None else None,
            }
        return {
            "column": self.name,
            "requests": len(self.outcomes),
            "outcomes": {outcome: self.count(outcome) for outcome in sorted(set(self.outcomes))},
            "hit_rate": rounded(total.hit_rate),
            "wait_ns": self.waits(),
            "mean_parts_ns": {name: self.mean_part_ns(i) for i, name in enumerate(PARTS) if i != SERVED},
            "loads": total.loads["decided"],
            "loading_ns": sum(total.load_ns),
            "evictions": dict(sorted(total.evictions.items())),
            "swaps": total.swaps,
            "claims": self.claims,
            "claims_for_a_place": self.crowded,
            "swaps_per_hour": rounded(self.stats.swaps_per_hour),
            "busy_share": rounded(total.busy_share),
            "span_ns": self.stats.span_ns,
            "devices": {
                name: {
                    "held_mean_bytes": held.mean_bytes(self.stats.begin_ns, self.stats.end_ns),
                    "held_peak_bytes": held.peak_bytes,
                }
                for name, held in self.stats.held.items()
            },
            "models": models,
        }


class Fidelity(msgspec.Struct, frozen=True):
    """How far one column is from another, request by request."""

    requests: int
    """Those that ended in both."""
    same_outcome: int
    same_wait: int
    """Those whose waits are near each other."""
    mean_difference_ns: int
    """The mean of how far they are apart."""

    @property
    def share(self) -> float:
        """Of those whose waits are near each other."""
        return self.same_wait / self.requests if self.requests else 1.0


def fidelity(really: Column, baseline: Column) -> Fidelity:
    """How far the baseline is from what happened."""
    number = outcomes = waits = apart_ns = 0
    for was, again, was_ns, again_ns in zip(
        really.outcomes, baseline.outcomes, really.waited_ns, baseline.waited_ns, strict=True
    ):
        if UNFINISHED in (was, again):
            continue
        number += 1
        outcomes += was == again
        difference = abs(was_ns - again_ns)
        waits += difference <= max(NEAR_NS, was_ns // 20)
        apart_ns += difference
    return Fidelity(number, outcomes, waits, apart_ns // max(1, number))
