"""The request machine: from arrival to exactly one end, of which its client is told.

Rules for its readers:
1. A request is not a slot. It may end (client gone, cancelled, timed out) while its upstream exchange still
   holds a slot; the slot comes back with `upstream.ended`, which changes no terminal state.
2. A request goes back to `queued` at most once, and only if no byte of an answer reached its client.
3. Every end but `completed` is told to the client as an error, unless the client is what went away.
4. Terminal states have no rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Final

from statemachines.machine import compile_table, declare


class RequestState(StrEnum):
    """The states of a request; `arrived` lasts only within the step of its arrival."""

    arrived = "arrived"
    queued = "queued"
    dispatched = "dispatched"
    completed = "completed"
    failed = "failed"
    cancelled = "cancelled"
    timed_out = "timed_out"
    rejected = "rejected"
    interrupted = "interrupted"


_Q = RequestState
MACHINE: Final = declare(
    RequestState,
    _Q.arrived,
    [
        ([_Q.arrived], "queue", _Q.queued),
        ([_Q.arrived, _Q.queued], "dispatch", _Q.dispatched),
        ([_Q.arrived], "reject", _Q.rejected),
        ([_Q.dispatched], "requeue", _Q.queued),
        ([_Q.dispatched], "complete", _Q.completed),
        ([_Q.queued, _Q.dispatched], "fail", _Q.failed),
        ([_Q.queued, _Q.dispatched], "cancel", _Q.cancelled),
        ([_Q.queued, _Q.dispatched], "time_out", _Q.timed_out),
        ([_Q.queued, _Q.dispatched], "interrupt", _Q.interrupted),
    ],
)
TABLE: Final[Mapping[tuple[RequestState, str], RequestState]] = compile_table(MACHINE, RequestState)
TERMINAL: Final = (_Q.completed, _Q.failed, _Q.cancelled, _Q.timed_out, _Q.rejected, _Q.interrupted)
NAMES: Final = {state: state.value for state in RequestState}
"""What the counts call each: looking `value` up costs a call."""
