"""What a stretch of the log looks like along time: the lives of runners and requests, memory, queue, marks.

Times are scheduler time (ns), sizes are bytes. A stretch begins at `start_t` and ends at `end_t`, and so does
all that is in it, except that a request keeps the true times of what it was in the middle of.
"""

from __future__ import annotations

import msgspec

from events.catalogue import NEVER

IDLE = "idle"
BUSY = "busy"
"""What a ready runner is: without a slot in use, or with one."""


class Mark(msgspec.Struct, gc=False):
    """Something that happened at one moment. `words` says what, in a sentence."""

    t: int
    seq: int
    kind: str
    words: str


class Span(msgspec.Struct, gc=False):
    """A runner in one state, from the event `seq` on. `words` is that event's sentence, or "" where it says
    nothing of the runner."""

    state: str
    start_t: int
    end_t: int
    seq: int
    words: str = ""


class RunnerLife(msgspec.Struct):
    """A runner. Its spans follow each other without a gap from the later of its load and the stretch's
    beginning on."""

    id: str
    model: str
    slots: int
    load_t: int
    """True also where that is before the stretch."""
    options: dict[str, int | str | bool]
    words: str = ""
    """The sentence of its load, or "" where that is before the stretch."""
    spans: list[Span] = msgspec.field(default_factory=list)
    held: list[tuple[int, dict[str, int]]] = msgspec.field(default_factory=list)
    """What the ledger counts for it on each device, from each time on; nothing, once it has ended."""
    marks: list[Mark] = msgspec.field(default_factory=list)
    end: Mark | None = None
    """How it ended (`kind`: "unloaded", "failed" or "lost"). None: it has not."""


class Part(msgspec.Struct, gc=False):
    """A request queued (`runner` is ""), or in a slot of a runner. NEVER: it had not ended with the stretch.

    A slot may be held for longer than its request lives: until its exchange with the runner has ended.
    """

    start_t: int
    seq: int
    end_t: int = NEVER
    runner: str = ""
    slot: int = 0
    row: int = 0
    """Of a queued part: which of its model's rows it is drawn in; no two in one row overlap."""
    why: str = ""
    """Of a queued part: the reason."""


class RequestLife(msgspec.Struct):
    """A request, or (`lease`) a lease: its client uses the slot by itself."""

    id: str
    model: str
    arrived_t: int
    lease: bool = False
    parts: list[Part] = msgspec.field(default_factory=list)
    end: Mark | None = None
    """How it ended (`kind`: a terminal state). None: it had not."""


class Level(msgspec.Struct):
    """A number over time: its value from each time on."""

    steps: list[tuple[int, int]] = msgspec.field(default_factory=list)

    def set(self, t: int, value: int) -> None:
        """It is `value` from `t` on, until it is set again. A step without duration is forgotten."""
        steps = self.steps
        if steps and steps[-1][0] == t:
            steps.pop()
        if not steps or steps[-1][1] != value:
            steps.append((t, value))


class Device(msgspec.Struct):
    """A device's memory. A level of -1: unknown."""

    budget_bytes: Level = msgspec.field(default_factory=Level)
    used_bytes: Level = msgspec.field(default_factory=Level)
    """By all programs, as the device reports it."""


class Timeline(msgspec.Struct):
    """A stretch of a log."""

    start_t: int
    end_t: int
    first_seq: int
    last_seq: int
    runners: dict[str, RunnerLife] = msgspec.field(default_factory=dict)
    """In the order of their loads; all models', since all of them share the memory."""
    requests: list[RequestLife] = msgspec.field(default_factory=list)
    """In the order of their arrival."""
    devices: dict[str, Device] = msgspec.field(default_factory=dict)
    queued: dict[str, Level] = msgspec.field(default_factory=dict)
    """How many requests are queued, by model."""
    marks: list[Mark] = msgspec.field(default_factory=list)
    """What concerns more than one runner or request."""
    downs: list[tuple[int, int, bool]] = msgspec.field(default_factory=list)
    """From the last event of a start to the first of the next, and whether it had been stopped: if not, it
    died at some time in between."""
    clock: list[tuple[int, int]] = msgspec.field(default_factory=list)
    """Pairs of `t` and the time of day (UTC, ns) that goes with it; linear from each to the next, at the same
    rate."""
    models: frozenset[str] | None = None
    """Those that were asked for: of others there are only runners. None: all."""

    def shows(self, model: str) -> bool:
        """Whether a model is among those that were asked for."""
        return self.models is None or model in self.models

    def at_ns(self, t: int) -> int:
        """The time of day (UTC, ns) at a scheduler time."""
        known = [pair for pair in self.clock if pair[0] <= t] or self.clock[:1] or [(0, 0)]
        return known[-1][1] + t - known[-1][0]
