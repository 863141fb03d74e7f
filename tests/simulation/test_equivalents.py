"""Metamorphic checks: the facts of random worlds told otherwise, in ways that mean the same, lead to the same
decisions. What names models have (their order kept), when time began, how many events came before, whether
anything was noted in between, what else is configured and never asked for: nothing may hang on it.
"""

from __future__ import annotations

import json
import os
import random
import re
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest

from events import catalogue as c
from events.catalogue import Event
from statemachines.replay import rederive, steps
from statemachines.scheduler import Scheduler
from tests.simulation.worlds import TRAFFIC_NS, RandomWorld

SEEDS = int(os.environ.get("SEEDS", "500")) // 10
"""About 200 ms each."""
SHIFT_NS = 1_234_567_890_123
FIRST_SEQ = 1_000_000
"""All numbers of events have as many digits: what is due at one time comes in the order of ids, as texts."""
ABSENT = 10**9
"""Added to the number of what never was."""

TIMES = {
    c.TurnWaits: "until_ns",
    c.LeaseRevoked: "until_ns",
    c.ModelCooling: "until_ns",
    c.ReclaimWaits: "until_ns",
    c.RunnerDrain: "deadline_ns",
}
"""The moments in decisions; but for 0, which is none."""

Payload = dict[str, Any]


def plain(event: Event, rename: Callable[[str], str], shift_ns: int) -> tuple[int, str, str]:
    """An event, comparable: when, about what, and all that it says."""
    body = event.body
    if (field := TIMES.get(type(body))) is not None and getattr(body, field):
        body = msgspec.structs.replace(body, **{field: getattr(body, field) - shift_ns})
    if isinstance(body, c.TurnWaits | c.ClaimMade):
        considered = tuple(
            msgspec.structs.replace(each, score=(*each.score[:2], each.score[2] - shift_ns))
            for each in body.considered
        )
        body = msgspec.structs.replace(body, considered=considered)
    told = json.loads(rename(msgspec.json.encode(body).decode()))
    return event.t - shift_ns, rename(event.subject), json.dumps(told, sort_keys=True)


class Numbers:
    """The numbers of events in one telling, and in another."""

    def __init__(self) -> None:
        self.there: dict[int, int] = {}
        self.back: dict[int, int] = {}

    def note(self, one: Event, other: Event) -> None:
        self.there[one.seq], self.back[other.seq] = other.seq, one.seq

    def forth(self, text: str) -> str:
        return ID.sub(lambda m: m[1] + str(self.there.get(int(m[2]), int(m[2]) + ABSENT)), text)

    def home(self, text: str) -> str:
        return ID.sub(lambda m: m[1] + str(self.back.get(int(m[2]), int(m[2]) - ABSENT)), text)


ID = re.compile(r"\b([qro])(\d+)\b")


def retold(
    log: list[Event],
    *,
    forth: Callable[[str], str] = str,
    home: Callable[[str], str] = str,
    shift_ns: int = 0,
    seq: int = FIRST_SEQ,
    chance: random.Random | None = None,
) -> None:
    """Tell the facts of a log again, renamed, later, after other events, or with others in between; fails
    where a step is not the same."""
    scheduler, numbers = Scheduler(), Numbers()
    scheduler.state.seq = seq
    for step in steps(log):
        first = step[0]
        t = first.t + shift_ns
        told = numbers.forth(forth(msgspec.json.encode(first.body).decode()))
        fact = msgspec.json.decode(told, type=type(first.body))
        found = rederive(scheduler, Event(0, t, 0, "", fact))
        for one, other in zip(step, found, strict=False):
            numbers.note(one, other)
        expected = [plain(event, str, 0) for event in step[1:]]
        again = [plain(event, lambda text: home(numbers.home(text)), shift_ns) for event in found[1:]]
        assert again == expected, f"event {first.seq}"
        if chance is not None and chance.randrange(3) == 0 and not scheduler.is_due_before(t + 1):
            scheduler.step(c.LogResumed(0, 0, ""), t)


def worlds(first: int) -> Iterator[tuple[int, list[Event]]]:
    for seed in range(first, first + 10):
        world = RandomWorld(seed)
        world.world.scheduler.state.seq = FIRST_SEQ
        world.prepare()
        world.world.run(TRAFFIC_NS)
        yield seed, world.world.log


def with_another_model(text: str) -> str:
    """A fact; if it is a configuration, with a model more that nobody asks for."""
    if '"config.changed"' not in text:
        return text
    fact = msgspec.json.decode(text, type=c.ConfigChanged)
    models = {"another": c.ModelView("another", instances_max=2), **fact.view.models}
    view = msgspec.structs.replace(fact.view, models=models)
    return msgspec.json.encode(msgspec.structs.replace(fact, view=view)).decode()


@pytest.mark.parametrize("first", range(0, SEEDS, 10))
def test_told_otherwise_it_is_the_same(first: int) -> None:
    for seed, log in worlds(first):
        try:
            retold(log)
            retold(log, shift_ns=SHIFT_NS)
            retold(
                log,
                forth=lambda text: NAME.sub(r"\1z.", text),
                home=lambda text: RENAMED.sub(r"\1", text),
            )
            retold(log, seq=7 * FIRST_SEQ)
            retold(log, forth=with_another_model)
            retold(log, chance=random.Random(seed))
        except AssertionError as error:
            error.add_note(f"seed {seed}")
            raise


NAME = re.compile(r"\b(m|gpu|g|s|d)(?=\d+\b)")
RENAMED = re.compile(r"\b(m|gpu|g|s|d)z\.(?=\d+\b)")
