"""All that metrics are made of, at one moment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from daemon.readiness import Unready
from daemon.tally import Tally
from events.histogram import Histogram
from events.store import StoreStats
from statemachines.state import State


class Figures(msgspec.Struct, frozen=True):
    """What has been counted, and where what is now can be looked at."""

    t: int
    """Scheduler time, ns."""
    tally: Tally
    state: State
    log: StoreStats
    append_ns: Histogram
    refused: int
    """Requests that were refused because the log was blocked: they are not in it."""
    unready: Sequence[Unready]
    connections: Mapping[str, int]
    """Clients connected now, by the door that they came in by."""
    mistakes: Mapping[str, int] = {}
    """Connections that a mistake in runnerd has ended, likewise."""
