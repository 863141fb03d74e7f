"""Kill daemons: at every failpoint in turn, then at so many random moments.

    python -m tests.crash.run [--count 1000] [--seed 1]

A failure names its world, whose folder is kept; the same seed gives the same kills at nearly
the same moments.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from events.failpoints import NAMES
from tests.crash.evidence import Evidence
from tests.crash.world import World

LIVES = 50
"""Daemons that one log sees."""

TIMES = (1, 1, 2, 3, 5, 8, 13, 21)
"""At which passage of a failpoint."""

PATIENCE_S = 0.5
"""How much longer a daemon may live that is to die at a failpoint: it may never come to it so often."""

RARE = ("migration.before", "migration.after")
"""Failpoints that only the first life of a log comes to."""

LEAVING = ("leave.before", "again.before", "again.after")
"""Those that only a restart in place comes to."""

SECOND = ("recovery.before:2", "recovery.after:2")
"""Where the program is that one has started in place."""


class Tally(msgspec.Struct):
    """What many worlds have seen."""

    worlds: int = 0
    kills: int = 0
    at: dict[str, int] = {}
    """Kills by failpoint; "": at a moment."""
    events: int = 0
    pruned: int = 0
    adopted: int = 0
    asked: int = 0
    whole: int = 0
    watched: int = 0
    operations: int = 0
    commands: int = 0
    leases: int = 0
    resumed: int = 0
    """How often a holder came back for one, and had it."""
    held: int = 0
    """How often a start kept one."""
    restarts: int = 0
    """In place, from the call to the first answer; more were killed on the way."""
    first_ms: list[float] = []

    def add(self, world: World, evidence: Evidence) -> None:
        """Count a world that has come to its end."""
        self.worlds += 1
        self.kills += world.died_at.total()
        self.at = dict(Counter(self.at) + world.died_at)
        self.events += len(evidence.events)
        self.pruned += evidence.pruned
        self.adopted += evidence.adopted
        self.asked += world.told.asked
        self.whole += len(world.told.whole)
        self.watched += len(world.told.events)
        self.operations += world.told.done.total()
        self.commands += sum("start" in note for note in evidence.ledger)
        self.leases += len(world.told.leases.holds)
        self.resumed += world.told.leases.resumed.total()
        self.held += evidence.held
        self.restarts += len(world.told.restarted_s)
        self.first_ms += world.first_ms

    def __str__(self) -> str:
        first = sorted(self.first_ms) or [0.0]
        return (
            f"{self.kills:,} kills, {self.kills - self.at.get('', 0):,} of them at "
            f"{len(self.at.keys() - {''})} failpoints; {self.worlds} logs, {self.events:,} events, of which "
            f"{self.pruned:,} were pruned; {self.adopted:,} adoptions of {self.commands:,} processes; "
            f"{self.asked:,} requests; {self.whole:,} answers, {self.watched:,} watched events and "
            f"{self.operations:,} operations were acknowledged: none lost, nothing twice; {self.leases:,} "
            f"leases, {self.held:,} times kept by a start, {self.resumed:,} times resumed by their holders; "
            f"{self.restarts:,} whole restarts in place. From launch to the first answer of an adopted "
            f"runner: median {first[len(first) // 2]:.0f} ms, longest {first[-1]:.0f} ms"
        )


def in_world(folder: Path, seed: str, act: Callable[[World], None], tally: Tally) -> None:
    """Let something happen in a world, and examine it."""
    world = World(folder / seed, seed)
    try:
        act(world)
        tally.add(world, world.end())
    finally:
        world.clear()


def at_every_failpoint(world: World) -> None:
    """Each in turn, on one log; each runner that is there at the end serves at once."""
    for name in NAMES:
        world.live(name, restarts=name in LEAVING)
    world.look()


def at_moments(count: int) -> Callable[[World], None]:
    """So many kills: of three, two at a moment, and one at a failpoint, on one of its passages."""

    def act(world: World) -> None:
        chance = random.Random(f"moments {world.seed}")
        for _ in range(count):
            match chance.randrange(30):
                case 0 | 1:
                    world.look()
                case 2 | 3:
                    world.lose_a_runner()
                    world.live(after_s=world.moment_s())
                case 4 | 5 | 6:
                    world.live(after_s=world.restart_moment_s(), restarts=True)
                case 7:
                    name = chance.choice((*LEAVING, *SECOND, "stop.before", "stop.done", "stop.after"))
                    world.live(name, after_s=world.restart_moment_s() + PATIENCE_S, restarts=True)
                case n if n < 20:
                    world.live(after_s=world.moment_s())
                case _:
                    name = chance.choice([name for name in NAMES if name not in (*RARE, *LEAVING)])
                    times = 1 if name.startswith("stop.") else chance.choice(TIMES)
                    world.live(f"{name}:{times}", after_s=world.moment_s() + PATIENCE_S)

    return act


def shares(count: int) -> Iterator[int]:
    """A number of kills as those of several worlds."""
    while count > 0:
        yield min(LIVES, count)
        count -= LIVES


def main() -> int:
    """Exit code 0: nothing went wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--count", type=int, default=1000, help="random kills, beside those at each failpoint"
    )
    options = parser.parse_args()
    folder, began, tally = Path(tempfile.mkdtemp(prefix="runnerd-crash-")), time.monotonic(), Tally()
    try:
        in_world(folder, f"{options.seed}-every", at_every_failpoint, tally)
        in_world(folder, f"{options.seed}-grace", World.outlast_a_grace, tally)
        for number, share in enumerate(shares(options.count)):
            in_world(folder, f"{options.seed}-{number}", at_moments(share), tally)
            if sys.stderr.isatty():
                print(f"\r{tally.kills} kills", end="", file=sys.stderr, flush=True)
    except BaseException:
        print(f"the files are in {folder}", file=sys.stderr)
        raise
    shutil.rmtree(folder)
    print(f"{tally}; {time.monotonic() - began:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
