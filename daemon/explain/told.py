"""An explanation as plain data: what `runnerlog why`, `runnerctl why` and Explain answer."""

from __future__ import annotations

from typing import Literal

import msgspec

from daemon.explain.memory import Alternative, Device
from daemon.explain.obstacle import WhyNot

Kind = Literal["runner", "request", "operation", "model"]


class Line(msgspec.Struct, frozen=True):
    """One step of the chain of causes: the event, and what it meant. at_ns: UTC; t_ns: scheduler time."""

    seq: int
    at_ns: int
    t_ns: int
    text: str


class Phase(msgspec.Struct, frozen=True):
    """A part of a request's time. kind: `waited`, `loaded` or `served`; the parts add up to the whole."""

    kind: Literal["waited", "loaded", "served"]
    ns: int
    text: str


class Explanation(msgspec.Struct, frozen=True):
    """Why: in one sentence, as a chain, and with what it was decided on."""

    subject: str
    kind: Kind
    model: str
    summary: str
    lines: tuple[Line, ...]
    phases: tuple[Phase, ...] = ()
    considered: tuple[Alternative, ...] = ()
    """Who might have gone, of a choice of victims."""
    memory: tuple[Device, ...] = ()
    """The ledger just before the event `decided_seq`; 0: there is none that it would explain."""
    decided_seq: int = 0
    output: str = ""
    """The last lines of a runner that never became ready."""
    upto_seq: int = 0
    """How far the log was read."""
    absent: WhyNot | None = None
    """Of a model that was not loaded: what a request for it would have met."""
