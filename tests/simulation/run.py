"""Run random worlds: `python -m tests.simulation.run --seed N --trace` replays one readably;
`--from N --count M` runs many and prints the seeds that fail."""

from __future__ import annotations

import argparse
import hashlib
import sys
import traceback
from collections import Counter

import msgspec

from events.catalogue import Event, Fact
from events.limits import S
from statemachines.state import canonical
from tests.simulation.worlds import RandomWorld


def line(event: Event) -> str:
    """One event for a person: facts at the margin, decisions below them."""
    body = msgspec.json.encode(event.body).decode()
    indent = "" if isinstance(event.body, Fact) else "    "
    return f"{event.t / S:12.6f} {event.seq:6d} {indent}{event.subject} {body[:300]}"


def fingerprint(seed: int) -> str:
    """What a world came to: its log and its last state."""
    world = RandomWorld(seed)
    world.play()
    log = msgspec.json.encode(world.world.log)
    return hashlib.sha256(log + canonical(world.world.state)).hexdigest()


def many(first: int, count: int, *, stop: bool = False) -> int:
    """Run seeds (up to the first failure, if it is to stop there); a line a failure, and a summary."""
    failures: Counter[str] = Counter()
    ends: Counter[str] = Counter()
    events = 0
    for seed in range(first, first + count):
        world = RandomWorld(seed)
        try:
            world.play()
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            print(f"seed {seed}: {type(error).__name__}: {error} ({where.name}:{where.lineno})", flush=True)
            if stop:
                return 1
            failures[f"{type(error).__name__} {where.name}:{where.lineno}"] += 1
        ends.update(world.nature.ended)
        events += len(world.world.log)
    print(f"{count} worlds, {events} events, {failures.total()} failures")
    for what, n in [*failures.most_common(), *ends.most_common()]:
        print(f"{n:9d} {what}")
    return 1 if failures else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--trace", action="store_true")
    parser.add_argument("--from", dest="first", type=int, default=0)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--first-failure", dest="stop", action="store_true")
    parser.add_argument("--fingerprint", type=int, nargs="*")
    asked = parser.parse_args()
    if asked.fingerprint is not None:
        for seed in asked.fingerprint:
            print(fingerprint(seed))
        return 0
    if asked.seed is None:
        return many(asked.first, asked.count, stop=asked.stop)
    RandomWorld(asked.seed, (lambda event: print(line(event))) if asked.trace else None).play()
    return 0


if __name__ == "__main__":
    sys.exit(main())
