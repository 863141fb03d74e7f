"""Workloads of published shape for the policy benchmark: who asks for which model, when, for how long.

The shapes are those of public traces; what a request costs a runner follows from its tokens at fixed speeds.
Everything is drawn from a seed, so that every policy meets the same requests.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from math import exp

from events.limits import MS, S

PREFILL_PER_S = 5_000
DECODE_PER_S = 50
"""Tokens per second of one slot: a model of about 14 B parameters, 4 bits each, on one GPU."""

SLOTS = 4
"""Requests that a runner serves at once: llama-server's usual `--parallel`."""

LENGTHS: dict[str, tuple[tuple[float, float], tuple[float, float]]] = {
    "code": ((7.00, 1.36), (2.79, 0.85)),
    "conversation": ((6.63, 0.99), (5.02, 0.86)),
    "long": ((8.78, 1.105), (5.47, 0.86)),
}
"""(μ, σ) of the lognormal numbers of tokens, in and out: Azure's code and conversation traces of 2023, and
Mooncake's conversations (mean 12,035 in with a p99 of 85,400, mean 343 out)."""

CVS = (1, 3, 13)
"""Coefficients of variation of the time between arrivals: Poisson, Mooncake, Azure's code trace."""

ZIPFS = (1.1, 1.4, 1.8)
"""Skews of the models' popularity: the range that ServeGen reports."""

LOADS_S = (12, 6, 25, 9, 18, 7, 21, 15)
"""What loading each model takes, the most popular first: 6 to 25 s, without any order."""


@dataclass(frozen=True)
class Call:
    """One request. Times in ns."""

    model: int
    at_ns: int
    """When it arrives; if it is `after` another, how long after that one's end."""
    service_ns: int
    after: int = -1


@dataclass(frozen=True)
class Workload:
    """Requests for some models."""

    name: str
    load_ns: tuple[int, ...]
    """What loading each model takes."""
    calls: tuple[Call, ...]
    slots: int = SLOTS


@dataclass(frozen=True)
class Shape:
    """A workload that has yet to be drawn: for how many seconds of arrivals, from which seed."""

    name: str
    draw: Callable[[str, int, int], Workload]
    loaded: bool = False
    """Whether it depends on the load that is asked for."""

    def workload(self, seconds: int, seed: int) -> Workload:
        """The same seconds and seed, the same workload."""
        return self.draw(self.name, seconds, seed)


def service_ns(kind: str, chance: random.Random) -> int:
    """What one request of a kind takes a slot."""
    tokens_in, tokens_out = (chance.lognormvariate(mu, sigma) for mu, sigma in LENGTHS[kind])
    return int((tokens_in / PREFILL_PER_S + tokens_out / DECODE_PER_S) * S) + MS


def mean_service_s(kind: str) -> float:
    """Its mean, from the distributions."""
    tokens_in, tokens_out = (exp(mu + sigma * sigma / 2) for mu, sigma in LENGTHS[kind])
    return tokens_in / PREFILL_PER_S + tokens_out / DECODE_PER_S


def arrivals(count: int, seconds: int, cv: float, chance: random.Random) -> list[int]:
    """Times of arrival (ns) with Gamma gaps of that coefficient of variation, stretched to fill the time: the
    load is the same whatever was drawn."""
    shape = 1 / (cv * cv)
    at, times = 0.0, list[float]()
    for _ in range(count):
        at += chance.gammavariate(shape, 1)
        times.append(at)
    at += chance.gammavariate(shape, 1)
    return [int(t / at * seconds * S) for t in times]


def zipf(kind: str, cv: int, skew: float, load: float) -> Shape:
    """Models of unequal popularity; `load` is the share of one runner's slots that the requests need."""

    def draw(name: str, seconds: int, seed: int) -> Workload:
        chance = random.Random(f"{kind} {cv} {skew} {load} {seed}")
        count = round(load * seconds * SLOTS / mean_service_s(kind))
        weights = [1 / rank**skew for rank in range(1, len(LOADS_S) + 1)]
        models = chance.choices(range(len(weights)), weights, k=count)
        times = arrivals(count, seconds, cv, chance)
        calls = (Call(m, t, service_ns(kind, chance)) for m, t in zip(models, times, strict=True))
        return Workload(name, tuple(s * S for s in LOADS_S), tuple(calls))

    return Shape(f"{kind} cv{cv} zipf{skew}", draw, loaded=True)


def hot(name: str, seconds: int, seed: int) -> Workload:
    """A hot model that is never idle, at half its capacity, and three that are asked for now and then."""
    chance = random.Random(f"hot {seed}")
    calls = [Call(0, i * 2 * S, 4 * S) for i in range(seconds // 2)]
    for model in (1, 2, 3):
        times = arrivals(max(1, seconds // 180), seconds, 1, chance)
        calls += [Call(model, t, 2 * S) for t in times]
    calls.sort(key=lambda call: call.at_ns)
    return Workload(name, tuple(s * S for s in (12, 6, 25, 9)), tuple(calls))


def agents(name: str, seconds: int, seed: int) -> Workload:
    """Three agents, each asking A, B, C, A … in turn, one after the other's answer."""
    chance = random.Random(f"agents {seed}")
    calls: list[Call] = []
    for agent in range(3):
        for i in range(seconds // 60):
            service = service_ns("conversation", chance)
            if i == 0:
                calls.append(Call(agent, agent * 5 * S, service))
            else:
                calls.append(Call((agent + i) % 3, 500 * MS, service, len(calls) - 1))
    return Workload(name, (12 * S, 6 * S, 18 * S), tuple(calls))


def alternating(name: str, seconds: int, seed: int) -> Workload:
    """Two models in turn, one request every six seconds."""
    calls = (Call(i % 2, i * 6 * S, 2 * S) for i in range(seconds // 6))
    return Workload(name, (12 * S, 9 * S), tuple(calls))


def one_long(name: str, seconds: int, seed: int) -> Workload:
    """A request of a quarter of the time on one model, and many short ones on that and two others."""
    chance = random.Random(f"long {seed}")
    calls = [Call(0, seconds * S // 8, seconds * S // 4)]
    for t in arrivals(seconds // 5, seconds, 1, chance):
        calls.append(Call(chance.choice((0, 1, 1, 2)), t, S))
    calls.sort(key=lambda call: call.at_ns)
    return Workload(name, (12 * S, 6 * S, 18 * S), tuple(calls))


def shapes(load: float) -> list[Shape]:
    """Every workload of the benchmark."""
    grid = [zipf(kind, cv, skew, load) for kind in LENGTHS for cv in CVS for skew in ZIPFS]
    return [
        *grid,
        Shape("hot model", hot),
        Shape("agents A B C", agents),
        Shape("two in turn", alternating),
        Shape("one long", one_long),
    ]


UNIT_NS = 3 * S
"""The step of time in short windows: coarse, so that an exact bound is found."""


def window(units: int, models: int, busy: bool, seed: int) -> Workload:
    """A short window in whole units, for the exact bound: bursty requests, which take one unit of a single
    slot each if `busy`, and no time otherwise."""
    chance = random.Random(f"window {units} {models} {busy} {seed}")
    weights = [1 / rank**1.2 for rank in range(1, models + 1)]
    count = units // 2 if busy else units * 2
    times = arrivals(count, units, 3, chance)
    names = chance.choices(range(models), weights, k=count)
    service = UNIT_NS if busy else 0
    calls = (Call(m, t // S * UNIT_NS, service) for m, t in zip(names, times, strict=True))
    load_ns = tuple(units * UNIT_NS for units in (4, 2, 6, 3, 5, 2)[:models])
    kind = "busy" if busy else "instant"
    name = f"{kind}, {models} models, {units * UNIT_NS // S} s, #{seed}"
    return Workload(name, load_ns, tuple(calls), 1 if busy else count)
