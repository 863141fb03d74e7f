"""Recording the log of a simulated world, and playing it again; and logs of plain stories."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

from daemon.history.compare import Column
from daemon.history.observed import Recorder
from daemon.history.recording import Recording
from daemon.history.rerun import Change, Rerun
from events import catalogue as c
from events.catalogue import ConfigView, Event
from events.limits import GIB, MS, S
from statemachines.fold import apply
from statemachines.parts import Runner
from statemachines.replay import steps
from statemachines.simulator import Exchange, Life, Nature, World
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


LOAD_NS, SERVED_NS, STOP_NS = 10 * S, 2 * S, 100 * MS


class Plain(Nature):
    """Everything takes the same time always."""

    def life(self, world: World, runner: Runner) -> Life:
        used = dict(runner.reserved_bytes)
        return Life(spawn_ns=0, ready_ns=LOAD_NS, stop_ns=STOP_NS, used_bytes=used)

    def exchange(self, world: World, request: str, runner: Runner) -> Exchange:
        return Exchange(SERVED_NS)


def story(
    arrivals: list[tuple[int, str]],
    *,
    memory: int = 12,
    device: str = "gpu0",
    until: int = 600,
    **view: Any,
) -> list[Event]:
    """The log of models of 10 GiB each and so much memory; arrivals in seconds."""
    world = World(Plain(), {"host": 64 * GIB, "gpu0": memory * GIB})
    models = {
        name: c.ModelView(name, **{"memory_bytes": {device: 10 * GIB}, **view}) for name in ("blue", "red")
    }
    world.start()
    world.submit(c.ConfigChanged(c.ConfigView(models, {"gpu0": c.DeviceView(gpu=True)})))
    for t, name in arrivals:
        world.at(t * S, partial(world.submit, c.RequestArrived(name, "chat")))
    world.run(until * S)
    return world.log


def in_turn(count: int, every: int = 30) -> list[tuple[int, str]]:
    return [(10 + i * every, ("blue", "red")[i % 2]) for i in range(count)]
