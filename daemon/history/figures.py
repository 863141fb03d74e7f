"""What is counted of a stretch of a log, for one model, hour or caller, or all together; and percentiles."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Any

OUTCOMES = ("completed", "failed", "cancelled", "timed_out", "rejected", "interrupted")
PHASES = ("loading", "busy", "idle", "leaving")
"""What a runner does: it loads; a slot is in use; it is ready, with none in use; it is on its way out."""
LOADING, BUSY, IDLE, LEAVING = range(len(PHASES))
SHARES = {"p50": 500, "p95": 950, "p99": 990}
"""The percentiles that are shown, in thousandths."""


class Figures:
    """Counts. Durations in ns."""

    def __init__(self) -> None:
        self.arrived = self.dispatched = self.hits = 0
        self.outcomes = dict.fromkeys(OUTCOMES, 0)
        self.reasons: dict[str, int] = {}
        """Why requests ended that were not completed: `rejected queue_full`, by how often."""
        self.waits_ns = array("q")
        """From the arrival to the first slot; of those that got none, to the end. Those that were refused on
        arrival have not waited."""
        self.queue_ns = 0
        """The sum of it over those that got a slot, as /metrics counts it."""
        self.loads = dict.fromkeys(("decided", "ready", "unloaded", "failed", "lost"), 0)
        self.load_ns = array("q")
        """Of those that became ready."""
        self.evictions: dict[str, int] = {}
        """Ready runners that were told to go, by reason."""
        self.phases_ns = [0] * len(PHASES)
        """Of all its runners."""

    @property
    def swaps(self) -> int:
        """Runners that had to go to make room for others."""
        return self.evictions.get("evicted", 0)

    @property
    def life_ns(self) -> int:
        """The lives of its runners, together."""
        return sum(self.phases_ns)

    @property
    def hit_rate(self) -> float | None:
        """The share of the requests that got a slot which got it on arrival; None: there were none."""
        return self.hits / self.dispatched if self.dispatched else None

    @property
    def busy_share(self) -> float | None:
        """The share of its runners' lives in which a slot was in use."""
        return self.phases_ns[BUSY] / self.life_ns if self.life_ns else None

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "arrived": self.arrived,
            **self.outcomes,
            "reasons": dict(sorted(self.reasons.items())),
            "dispatched": self.dispatched,
            "hits": self.hits,
            "hit_rate": rounded(self.hit_rate),
            "wait_ns": spread(self.waits_ns),
            "loads": self.loads,
            "load_ns": {"sum": sum(self.load_ns), **spread(self.load_ns)},
            "evictions": dict(sorted(self.evictions.items())),
            "runners_ns": dict(zip(PHASES, self.phases_ns, strict=True)),
            "busy_share": rounded(self.busy_share),
        }


def rounded(share: float | None) -> float | None:
    """A share for JSON."""
    return None if share is None else round(share, 4)


def spread(values_ns: Sequence[int]) -> dict[str, int | None]:
    """How durations are spread: their number, mean, percentiles and greatest; None where there are none."""
    if not values_ns:
        return {"count": 0, "mean": None, **dict.fromkeys(SHARES), "max": None}
    ordered = sorted(values_ns)
    quantiles = {name: percentile(ordered, share) for name, share in SHARES.items()}
    mean = sum(ordered) // len(ordered)
    return {"count": len(ordered), "mean": mean, **quantiles, "max": ordered[-1]}


def percentile(ordered: Sequence[int], thousandths: int) -> int:
    """By nearest rank: the least value that so many thousandths of them do not exceed."""
    return ordered[max(0, -(-thousandths * len(ordered) // 1000) - 1)]
