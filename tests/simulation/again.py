"""Recording the log of a simulated world, and playing it again."""

from __future__ import annotations

import copy

from daemon.history.compare import Column
from daemon.history.recorder import Recorder
from daemon.history.recording import Recording
from daemon.history.rerun import Change, Rerun
from events.catalogue import ConfigView, Event
from statemachines.fold import apply
from statemachines.replay import steps
from statemachines.state import State


def record(log: list[Event], after: int = 0) -> tuple[Recording, Column]:
    """What the steps after an event say, and what came of their requests."""
    state, taken = State(), list(steps(log))
    before = [step for step in taken if step[0].seq <= after]
    for step in before:
        for event in step:
            apply(state, event)
    start = copy.deepcopy(state)
    recorder, column = Recorder(start), Column("recorded", state)
    for step in taken[len(before) :]:
        for event in step:
            apply(state, event)
        for event in step:
            recorder.note(state, event)
            column.note(state, event, event.t)
    column.finish(state)
    return Recording(recorder, start), column


def same(view: ConfigView) -> ConfigView:
    """No change."""
    return view


def play(
    recording: Recording,
    change: Change = same,
    sizes_bytes: dict[str, int] | None = None,
    name: str = "again",
) -> Column:
    """A recording, played again."""
    column = Column(name, recording.start)
    rerun = Rerun(recording, change, [column], sizes_bytes=sizes_bytes or {})
    rerun.play()
    column.finish(rerun.state)
    return column
