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
from typing import Final

from events.catalogue import CUT_OFF, RunnerStop
from statemachines.machine import compile_table, declare


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
