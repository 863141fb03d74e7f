"""Harsher random worlds: bursts of operators, configurations that change under load, a daemon that dies at
any step, memory readings that lie, clocks that jump. `run_harsh(seed)` plays one; after each step the precise
form of liveness is checked too (`tests.simulation.causes`).
"""

from __future__ import annotations

import random
from collections.abc import Callable

from events import catalogue as c
from events.catalogue import Event, Fact, Reading
from events.limits import GIB, S
from statemachines.simulator import World
from tests.simulation.causes import check_causes
from tests.simulation.worlds import MINUTE, RandomWorld

HARSH_NS = 4 * MINUTE
"""How long it goes on: shorter than in the other worlds, and denser."""
STORM_DEATHS = 20
"""How often the daemon dies in one storm: each start folds the whole log."""


class Liar(World):
    """A world whose devices lie, and whose clock is not always read in order."""

    chance: random.Random
    lies = 0
    """Percent of measurements that are not true."""
    late = 0
    """Percent of facts that come with a time before the last one's."""
    deaths = 0
    """How often the daemon may yet die in this storm."""
    calm: Callable[[], None]
    overdue = False
    """Whether missed decisions are looked for: only where waiters do not age."""

    def measurement(self) -> c.MemoryMeasured:
        told = super().measurement()
        if self.chance.randrange(100) >= self.lies:
            return told
        n = self.chance.randrange
        devices, runners = dict(told.devices), dict(told.runners)
        for name, reading in told.devices.items():
            lie = n(6)
            if lie == 0:
                del devices[name]
            elif lie == 1:
                devices[name] = Reading(reading.total_bytes, n(2 * reading.total_bytes))
            elif lie == 2:
                devices[name] = Reading(n(2 * reading.total_bytes), 0, reliable=False)
            elif lie == 3:
                runners |= {id: {name: n(64 * GIB)} for id in [*runners, "r999999"]}
        return c.MemoryMeasured(devices, runners if n(4) else {})

    def restart(self, down_ns: int = 0) -> None:
        self.deaths -= 1
        if self.deaths <= 0:
            self.calm()
        super().restart(down_ns)

    def submit(self, fact: Fact) -> list[Event]:
        if not isinstance(fact, c.DaemonStarted) and self.chance.randrange(100) < self.late:
            events = self.scheduler.step(fact, max(0, self.t - self.chance.randrange(1, 10 * S)))
            self._done(events)
            return events
        return super().submit(fact)

    def _done(self, events: list[Event]) -> None:
        super()._done(events)
        check_causes(self.state, overdue=self.overdue)


class HarshWorld(RandomWorld):
    """One harsh world of a seed."""

    world: Liar

    def __init__(
        self, seed: int, trace: Callable[[Event], None] | None = None, *, overdue: bool = False
    ) -> None:
        super().__init__(seed, trace)
        pick = self.chance.choice
        self.world = Liar(self.nature, self.devices)
        self.world.chance = self.chance
        self.world.overdue = overdue
        self.world.calm = self.calm
        self.world.lies = pick([0, 0, 5, 40])
        self.world.late = pick([0, 0, 0, 20])
        if self.world.lies or self.world.late or pick([0, 1]):
            self.nature.percent = max(self.nature.percent, 5)  # it is not calm
        self.nature.crash_permille = 0

    def burst(self, what: Callable[[], object], times: int, spread_ns: int) -> None:
        at = self.chance.randrange(HARSH_NS)
        for _ in range(times):
            self.world.at(at, what)
            at += self.chance.randrange(spread_ns + 1)

    def storm(self) -> None:
        """The daemon dies at any step, for a while."""
        self.world.deaths = STORM_DEATHS
        self.nature.crash_permille = self.chance.choice([20, 100, 400])
        self.world.at(self.world.t + self.chance.randrange(3 * S), self.calm)

    def calm(self) -> None:
        """The storm is over."""
        self.nature.crash_permille = 0

    def jump(self) -> None:
        """The clock leaps ahead."""
        self.world.t += self.chance.choice([S, 30 * S, 10 * MINUTE, 60 * MINUTE])

    def repeat(self) -> None:
        """A fact of some time ago comes once more."""
        facts = [e.body for e in self.world.log[-300:] if isinstance(e.body, ECHOES)]
        if facts:
            self.world.submit(self.chance.choice(facts))

    def prepare(self) -> None:
        world, pick = self.world, self.chance.choice
        submit = world.submit
        world.start()
        submit(c.ConfigChanged(self.view))
        for _ in range(pick([2, 6, 12])):
            self.burst(lambda: submit(self.arrival()), pick([1, 5, 20]), pick([0, 0, S, 10 * S]))
        for _ in range(pick([0, 1, 3])):
            self.burst(lambda: submit(self.operator()), pick([2, 8, 20]), pick([0, S, 5 * S]))
        for what, often in (
            (self.reconfigure, [0, 0, 2, 6]), (self.foreign, [0, 0, 2, 6]), (self.repeat, [0, 10, 40]),
            (self.jump, [0, 0, 2] if self.nature.percent else [0]),
        ):  # fmt: skip
            for _ in range(pick(often)):
                self.burst(what, 1, 0)
        if self.nature.percent:
            for what in (self.stop, self.storm):
                for _ in range(pick([0, 0, 1, 3])):
                    self.burst(what, 1, 0)


ECHOES = (
    c.ClientGone, c.UpstreamEnded, c.ProcessSpawned, c.ProcessExited, c.SpawnFailed, c.LeaseRefused,
    c.ProbeAnswered, c.MemoryMeasured, c.BreachRecorded,
)  # fmt: skip
"""Facts that may come twice, or late."""


def run_harsh(seed: int, *, overdue: bool = False) -> HarshWorld:
    """Play the harsh world of a seed. Raises whatever is wrong with it."""
    world = HarshWorld(seed, overdue=overdue)
    world.play()
    return world
