"""The metric families of GET /metrics, in Prometheus's formats.

Imported at the first scrape: the library takes memory that nobody needs who does not scrape.

A scrape is made piece by piece, so that however many models there are, nobody waits for long meanwhile. What
is now (queues, runners, memory) is looked at once, at its beginning; what has been counted, when its family
is made.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import trio
from prometheus_client import PROCESS_COLLECTOR
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from daemon.figures import Figures
from daemon.tally import LOAD_OUTCOMES, OUTCOMES, RUNNER_OUTCOMES, ModelTally
from daemon.version import VERSION
from events.histogram import Histogram
from events.limits import METRIC_MODELS, SCRAPE_SAMPLES, S
from statemachines.ledger import budget_bytes, held_bytes
from statemachines.runner import TERMINAL, RunnerState

LIVE: tuple[RunnerState, ...] = tuple(state for state in RunnerState if state not in TERMINAL)
SERVING = (RunnerState.ready, RunnerState.draining)


class ModelNow:
    """What there is of one model at the moment."""

    __slots__ = ("oldest_ns", "queued", "runners", "slots", "slots_used")

    def __init__(self) -> None:
        self.queued = self.oldest_ns = self.slots = self.slots_used = 0
        self.runners: dict[RunnerState, int] = dict.fromkeys(LIVE, 0)


class Scrape:
    """What a scrape shows."""

    def __init__(self, figures: Figures) -> None:
        self.figures = figures
        self.state = figures.state
        self.counted: list[tuple[str, ModelTally]] = list(figures.tally.models.items())
        self.now: dict[str, ModelNow] = {name: ModelNow() for name in figures.tally.models}
        for demand in self.state.demands.values():
            if demand.waiting:
                model = self._model(demand.model)
                oldest = self.state.requests[demand.waiting.first()]
                model.queued += len(demand.waiting)
                model.oldest_ns = max(model.oldest_ns, figures.t - oldest.arrived_t)
        for runner in self.state.runners.values():
            model = self._model(runner.model)
            model.runners[runner.state] += 1
            if runner.state in SERVING:
                model.slots += runner.slots
                model.slots_used += len(runner.held)
        self.devices = dict.fromkeys([*self.state.readings, *self.state.config.devices])
        self.readings = dict(self.state.readings)

    def _model(self, name: str) -> ModelNow:
        if name not in self.now and len(self.now) >= METRIC_MODELS:
            name = ""
        return self.now.setdefault(name, ModelNow())


Labels = tuple[str, ...]
Rows = Iterable[tuple[Labels, float | Histogram]]


class Family(NamedTuple):
    """A family, and how its rows are found."""

    name: str
    type: type[CounterMetricFamily] | type[GaugeMetricFamily] | type[HistogramMetricFamily]
    labels: Labels
    help: str
    rows: Callable[[Scrape], Rows]


def _by_model(value: Callable[[ModelTally], float | Histogram]) -> Callable[[Scrape], Rows]:
    return lambda scrape: (((name,), value(model)) for name, model in scrape.counted)


def _by_outcome(names: Labels, counts: Callable[[ModelTally], list[int]]) -> Callable[[Scrape], Rows]:
    def rows(scrape: Scrape) -> Rows:
        for model, tally in scrape.counted:
            for outcome, count in zip(names, counts(tally), strict=True):
                yield (model, outcome), count

    return rows


def _now(value: Callable[[ModelNow], float]) -> Callable[[Scrape], Rows]:
    return lambda scrape: (((name,), value(model)) for name, model in scrape.now.items())


def _one(value: Callable[[Figures], float | Histogram]) -> Callable[[Scrape], Rows]:
    return lambda scrape: [((), value(scrape.figures))]


def _by_name(counts: Callable[[Figures], Iterable[tuple[str, float]]]) -> Callable[[Scrape], Rows]:
    return lambda scrape: (((name,), count) for name, count in list(counts(scrape.figures)))


def _runners(scrape: Scrape) -> Rows:
    for model, now in scrape.now.items():
        for state, count in now.runners.items():
            yield (model, state.value), count


def _budgets(scrape: Scrape) -> Rows:
    for device in scrape.devices:
        budget = budget_bytes(scrape.state, device)
        if budget is not None:
            yield (device,), budget


COUNTER, GAUGE, HISTOGRAM = CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
MODEL, DEVICE = ("model",), ("device",)

FAMILIES = (
    Family(
        "runnerd_requests_arrived_total", COUNTER, MODEL, "Requests that entered the log.",
        _by_model(lambda model: model.arrived),
    ),
    Family(
        "runnerd_requests_total", COUNTER, ("model", "outcome"), "Requests that have ended, by how.",
        _by_outcome(OUTCOMES, lambda model: model.requests),
    ),
    Family(
        "runnerd_request_errors_total", COUNTER, ("reason",),
        "Requests that ended otherwise than completed, by why.",
        _by_name(lambda figures: figures.tally.errors.items()),
    ),
    Family(
        "runnerd_queued_requests", GAUGE, MODEL, "Requests that wait for a slot.",
        _now(lambda model: model.queued),
    ),
    Family(
        "runnerd_queue_oldest_seconds", GAUGE, MODEL, "Since when the oldest of them is here; 0: none waits.",
        _now(lambda model: model.oldest_ns / S),
    ),
    Family(
        "runnerd_request_queue_seconds", HISTOGRAM, MODEL, "From a request's arrival to its first dispatch.",
        _by_model(lambda model: model.queue_ns),
    ),
    Family(
        "runnerd_request_first_byte_seconds", HISTOGRAM, MODEL,
        "From a dispatch to the first byte of the runner's answer.",
        _by_model(lambda model: model.first_byte_ns),
    ),
    Family(
        "runnerd_loads_total", COUNTER, ("model", "outcome"), "Loads that have ended: ready, or how else.",
        _by_outcome(LOAD_OUTCOMES, lambda model: model.loads),
    ),
    Family(
        "runnerd_load_seconds", HISTOGRAM, MODEL, "From the decision to load to ready.",
        _by_model(lambda model: model.load_ns),
    ),
    Family(
        "runnerd_evictions_total", COUNTER, ("reason",),
        "Ready runners that were told to go, by why; `evicted`: for another's room.",
        _by_name(lambda figures: figures.tally.evictions.items()),
    ),
    Family(
        "runnerd_runners_ended_total", COUNTER, ("model", "outcome"), "Runners that are gone, by how.",
        _by_outcome(RUNNER_OUTCOMES, lambda model: model.runners),
    ),
    Family("runnerd_runners", GAUGE, ("model", "state"), "Runners that there are.", _runners),
    Family(
        "runnerd_slots", GAUGE, MODEL, "Slots of runners that are ready or drain.",
        _now(lambda model: model.slots),
    ),
    Family(
        "runnerd_slots_used", GAUGE, MODEL, "Those of them in use.", _now(lambda model: model.slots_used)
    ),
    Family(
        "runnerd_memory_size_bytes", GAUGE, DEVICE, "What a device has, as it was measured last.",
        lambda scrape: (((device,), r.total_bytes) for device, r in scrape.readings.items()),
    ),
    Family(
        "runnerd_memory_used_bytes", GAUGE, DEVICE, "What everybody used of it then.",
        lambda scrape: (((device,), r.total_bytes - r.free_bytes) for device, r in scrape.readings.items()),
    ),
    Family(
        "runnerd_memory_free_bytes", GAUGE, DEVICE, "What was free of it then.",
        lambda scrape: (((device,), r.free_bytes) for device, r in scrape.readings.items()),
    ),
    Family("runnerd_memory_budget_bytes", GAUGE, DEVICE, "What runners may use of it.", _budgets),
    Family(
        "runnerd_memory_held_bytes", GAUGE, DEVICE,
        "What the ledger counts for runners: of each the larger of reserved and measured.",
        lambda scrape: (((device,), held_bytes(scrape.state, device)) for device in scrape.devices),
    ),
    Family(
        "runnerd_log_events_total", COUNTER, (), "Events that have become durable.",
        _one(lambda figures: figures.tally.events),
    ),
    Family(
        "runnerd_log_append_seconds", HISTOGRAM, (),
        "From the append of a step's events until they are durable.",
        _one(lambda figures: figures.append_ns),
    ),
    Family(
        "runnerd_log_waiting_events", GAUGE, (), "Events that are not durable yet.",
        _one(lambda figures: figures.log.queued),
    ),
    Family(
        "runnerd_log_blocked_seconds_total", COUNTER, (), "For how long the log could not be written.",
        _one(lambda figures: figures.log.blocked_ns / S),
    ),
    Family(
        "runnerd_log_refused_requests_total", COUNTER, (),
        "Requests refused for that; the log knows only their number.",
        _one(lambda figures: figures.refused),
    ),
    Family(
        "runnerd_log_size_bytes", GAUGE, (), "The log's file.", _one(lambda figures: figures.log.log_bytes)
    ),
    Family(
        "runnerd_log_wal_size_bytes", GAUGE, (), "Its write-ahead log, which a checkpoint copies into it.",
        _one(lambda figures: figures.log.wal_bytes),
    ),
    Family(
        "runnerd_connections", GAUGE, ("door",),
        "Clients connected: `http`, or `control` for the control socket.",
        _by_name(lambda figures: figures.connections.items()),
    ),
    Family(
        "runnerd_connections_failed_total", COUNTER, ("door",),
        "Connections that a mistake in runnerd has ended; its journal has each.",
        _by_name(lambda figures: figures.mistakes.items()),
    ),
    Family(
        "runnerd_ready", GAUGE, (), "1 where GET /ready answers 200.",
        _one(lambda figures: not figures.unready),
    ),
    Family(
        "runnerd_build_info", GAUGE, ("version", "policy"), "Always 1: the daemon's version and policy.",
        lambda scrape: [((VERSION, scrape.state.config.policy), 1)],
    ),
)  # fmt: skip
"""In the order in which they are shown; `docs/metrics.md` has the same."""


def pieces(figures: Figures) -> Iterator[Metric]:
    """The families, each in pieces of a few hundred samples."""
    scrape = Scrape(figures)
    for family in FAMILIES:
        metric = family.type(family.name, family.help, labels=family.labels)
        for labels, value in family.rows(scrape):
            if len(metric.samples) >= SCRAPE_SAMPLES:
                yield metric
                metric = family.type(family.name, family.help, labels=family.labels)
            if isinstance(metric, HistogramMetricFamily):
                assert isinstance(value, Histogram)
                metric.add_metric(labels, _buckets(value), value.sum_ns / S)
            else:
                assert not isinstance(value, Histogram)
                metric.add_metric(labels, value)
        yield metric
    yield from PROCESS_COLLECTOR.collect()


def _buckets(histogram: Histogram) -> list[tuple[str, float]]:
    """Cumulative, as Prometheus wants them."""
    bounds = [*(ns / S for ns in histogram.bounds_ns), math.inf]
    total, buckets = 0, []
    for bound, count in zip(bounds, histogram.counts, strict=True):
        total += count
        buckets.append((str(bound) if bound < math.inf else "+Inf", float(total)))
    return buckets


class One(Collector):
    """A collector of one piece."""

    def __init__(self, metric: Metric) -> None:
        self._metric = metric

    def collect(self) -> Iterable[Metric]:
        """What the library's encoders ask for."""
        return (self._metric,)


async def render(figures: Figures, accept: str) -> tuple[bytes, str]:
    """The body of an answer in the format that the client accepts, and its content type."""
    encode, content_type = choose_encoder(accept)
    parts: list[bytes] = []
    name = ""
    for metric in pieces(figures):
        parts.append(_text(encode(One(metric)), further=metric.name == name))
        name = metric.name
        await trio.lowlevel.checkpoint()
    if content_type.startswith("application/openmetrics-text"):
        parts.append(EOF)
    return b"".join(parts), content_type


EOF = b"# EOF\n"


def _text(text: bytes, *, further: bool) -> bytes:
    """An encoded piece as it stands among others: without the end, and with one heading for each family."""
    if not further:
        return text.removesuffix(EOF)
    return b"\n".join(line for line in text.split(b"\n") if not line.startswith(b"# "))
