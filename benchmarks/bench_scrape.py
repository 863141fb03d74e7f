"""What GET /metrics and GET /ready cost, and how long they hold up everything else.

usage: python -m benchmarks.bench_scrape

A machine with 1,000 models that have all been used and 10,000 queued requests is scraped in an event loop in
which another task wants its turn all the time: the longest that it has to wait is what a client notices.
"""

from __future__ import annotations

from time import perf_counter_ns, process_time_ns

import trio

from daemon import families
from daemon.figures import Figures
from daemon.readiness import Signs, reasons
from daemon.tally import Tally
from events import catalogue as c
from events.catalogue import Event
from events.histogram import APPEND_BUCKETS_NS, Histogram
from events.limits import GIB, MS, S
from events.store import StoreStats
from statemachines.scheduler import RULES, Scheduler

MODELS, QUEUED, RUNNERS = 1000, 10_000, 64
ROUNDS = 5


def crowd(models: int, queued: int) -> Figures:
    """So many models, each of which has answered a request, and so many requests that wait for them."""
    scheduler = Scheduler()
    views = {
        f"m{i}": c.ModelView(f"d{i}", slots=1, memory_bytes={"host": GIB}, keep_alive_ns=c.NEVER)
        for i in range(models)
    }
    scheduler.step(c.DaemonStarted(RULES, "balanced", "boot", "bench"), 0)
    scheduler.step(c.ConfigChanged(c.ConfigView(views, max_queue=queued or 1, max_loaded=RUNNERS)), 0)
    scheduler.step(c.MemoryMeasured({"host": c.Reading(RUNNERS * GIB, RUNNERS * GIB)}), 0)
    tally = Tally(scheduler.state)
    for i, name in enumerate(views):
        tally.note(
            [
                Event(4 * i, 0, 0, f"q{i}", c.RequestArrived(name, "chat")),
                Event(4 * i + 1, MS, 0, f"q{i}", c.RequestDispatched(f"q{i}", "r1")),
                Event(4 * i + 2, 2 * MS, 0, f"q{i}", c.UpstreamEnded(f"q{i}", "r1", True, 1, 200)),
                Event(4 * i + 3, 2 * MS, 0, f"q{i}", c.RequestCompleted(f"q{i}")),
            ]
        )
    for i in range(queued):
        scheduler.step(c.RequestArrived(f"m{i % models}", "chat"), S)
    state = scheduler.state
    return Figures(
        t=3 * S,
        tally=tally,
        state=state,
        log=StoreStats(*[0] * len(StoreStats.__struct_fields__)),
        append_ns=Histogram(APPEND_BUCKETS_NS),
        refused=0,
        unready=(),
        connections={"http": 1, "control": 1},
    )


async def scrape(figures: Figures) -> tuple[int, int, int]:
    """A scrape: its bytes, how long it took, and the longest that another task had to wait; ns."""
    longest = 0

    async def another() -> None:
        nonlocal longest
        last = perf_counter_ns()
        while True:
            await trio.lowlevel.checkpoint()
            now = perf_counter_ns()
            longest, last = max(longest, now - last), now

    async with trio.open_nursery() as nursery:
        nursery.start_soon(another)
        await trio.lowlevel.checkpoint()
        begun = perf_counter_ns()
        text, _ = await families.render(figures, "")
        took = perf_counter_ns() - begun
        nursery.cancel_scope.cancel()
    return len(text), took, longest


def note_ns() -> float:
    """What counting costs, per event, in the stream of events that requests make."""
    tally = Tally(Scheduler().state)
    tally.note([Event(1, 0, 0, "r1", c.RunnerLoad("m", "d", {}, {}, 1, 0, 0, "bench"))])
    groups = [
        [
            Event(i, i, 0, f"q{i}", c.RequestArrived("m", "chat")),
            Event(i, i, 0, f"q{i}", c.RequestDispatched(f"q{i}", "r1")),
            Event(i, i, 0, f"q{i}", c.UpstreamEnded(f"q{i}", "r1", True, 1, 200, first_byte_ns=MS)),
            Event(i, i, 0, f"q{i}", c.RequestCompleted(f"q{i}")),
        ]
        for i in range(100_000)
    ]
    begun = process_time_ns()
    for group in groups:
        tally.note(group)
    return (process_time_ns() - begun) / sum(map(len, groups))


def ready_ns(figures: Figures) -> int:
    """What looking for reasons costs."""
    begun = perf_counter_ns()
    reasons(figures.state, figures.t, Signs())
    return perf_counter_ns() - begun


def main() -> None:
    """Measure, print."""
    print(f"counting: {min(note_ns() for _ in range(ROUNDS)):.0f} ns an event (bound 1,000)")
    for models, queued in ((8, 100), (MODELS, QUEUED)):
        figures = crowd(models, queued)
        size, took, longest = min((trio.run(scrape, figures) for _ in range(ROUNDS)), key=lambda run: run[2])
        ready = min(ready_ns(figures) for _ in range(ROUNDS))
        print(
            f"{models:,} models, {queued:,} queued: a scrape of {size / 1e3:,.0f} kB "
            f"takes {took / MS:.1f} ms, others wait for {longest / MS:.1f} ms at most; "
            f"/ready is known in {ready / MS:.2f} ms"
        )


if __name__ == "__main__":
    main()
