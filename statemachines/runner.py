"""The runner machine: one incarnation of a model's process(es), from the load decision to its end.

Rules for its readers:
1. A runner is terminal only when no process of it is left; till then it holds its memory, port and name.
2. Only `ready` runners get work. `draining` has admitted its last; it is never revived.
3. `stopping` carries the verdict that the runner will end with; a kill does not change it, nor the state.
4. `reclaiming` means: no process is left, but its memory has not been seen to come back yet.
5. Terminal states have no rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from events.catalogue import CUT_OFF, NEVER, RunnerStop
from statemachines.machine import compile_table, declare

if TYPE_CHECKING:
    from statemachines.parts import Runner


class RunnerState(StrEnum):
    """The states of a runner; values are what logs and people see."""

    loading = "loading"
    ready = "ready"
    draining = "draining"
    stopping = "stopping"
    reclaiming = "reclaiming"
    unloaded = "unloaded"
    failed = "failed"
    lost = "lost"


_R = RunnerState
MACHINE: Final = declare(
    RunnerState,
    _R.loading,
    [
        ([_R.loading], "healthy", _R.ready),
        ([_R.ready], "drain", _R.draining),
        ([_R.loading, _R.ready, _R.draining], "stop", _R.stopping),
        ([_R.stopping], "kill", _R.stopping),
        ([_R.stopping], "stuck", _R.stopping),
        ([_R.loading, _R.ready, _R.draining, _R.stopping], "exited", _R.reclaiming),
        ([_R.reclaiming], "unloaded", _R.unloaded),
        ([_R.reclaiming], "failed", _R.failed),
        ([_R.loading, _R.ready, _R.draining, _R.stopping, _R.reclaiming], "lost", _R.lost),
    ],
)
TABLE: Final[Mapping[tuple[RunnerState, str], RunnerState]] = compile_table(MACHINE, RunnerState)
TERMINAL: Final = (_R.unloaded, _R.failed, _R.lost)


def why_cut(stop: RunnerStop) -> str:
    """The `error` of the exchanges with a runner that is told to stop: CUT_OFF, unless it has failed."""
    return CUT_OFF if stop.verdict == "unloaded" else f"it was ended ({stop.reason})"


def last_words(runner: Runner) -> str:
    """Why a runner failed, for people: what ended it, and what it said last."""
    late = LATE.get(runner.reason)
    if late is not None:
        return f"{late}: {runner.output}" if runner.output else late
    status = runner.status
    killed = runner.reason == "exited" and status is not None and status < 0  # of which it could say nothing
    if runner.output and not killed:
        return runner.output
    if runner.reason != "exited" or status is None:
        return runner.reason
    ended = f"it was killed by signal {-status}" if status < 0 else f"it exited with status {status}"
    ended = f"{ended} when it was ready" if runner.ready_t != NEVER else ended
    return f"{runner.output}\n{ended}" if runner.output else ended


LATE = {
    "load_timeout": "it was not ready in time (healthCheckTimeout)",
    "load_stalled": "its load came to a halt (loadStallTimeout)",
}
