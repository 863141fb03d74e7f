"""GET /metrics: its families, what the documents say of them, and a scrape of very much."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec
import pytest
import trio
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from benchmarks.bench_scrape import crowd
from daemon import families
from daemon.families import FAMILIES, pieces, render
from daemon.figures import Figures
from daemon.readiness import Unready
from daemon.tally import Tally
from events.limits import SCRAPE_SAMPLES, S
from statemachines.state import State

ROOT = Path(__file__).resolve().parents[2]
OPENMETRICS = "application/openmetrics-text; version=1.0.0"
ROW = re.compile(r"^\| `(\w+)` \| (\w+) \| (.*?) \| (.*) \|$", re.MULTILINE)

parse_openmetrics: Callable[[str], Iterable[Metric]] = openmetrics.text_string_to_metric_families
"""There it has no annotations."""

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def samples(found: Iterable[Metric]) -> Samples:
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for f in found for s in f.samples}


def kept(all_samples: Samples) -> Samples:
    """Without what is measured anew at each scrape."""
    return {key: value for key, value in all_samples.items() if not key[0].startswith("process_")}


def small() -> Figures:
    """One model with a name that must be escaped."""
    figures = crowd(models=1, queued=3)
    figures.tally.models['a"b\\c\nd'] = figures.tally.models.pop("m0")
    return figures


def test_the_documents_have_every_family() -> None:
    """The table is generated: this says that nothing is made that is not in it, and the reverse."""
    shown = ROW.findall((ROOT / "docs/metrics.md").read_text())
    known = []
    for family in FAMILIES:
        kind = family.type.__name__.removesuffix("MetricFamily").lower()
        labels = ", ".join(f"`{label}`" for label in family.labels)
        known.append((family.name, kind, labels or "–", family.help))
    assert shown[: len(known)] == known
    made = dict.fromkeys(metric.name for metric in pieces(small()))
    assert [name.removesuffix("_total") for name, *_ in shown] == list(made)


def test_names_are_as_prometheus_wants_them() -> None:
    for family in FAMILIES:
        counter = family.type is families.COUNTER
        assert family.name.startswith("runnerd_")
        assert family.name.endswith("_total") is counter
        if family.type is families.HISTOGRAM:
            assert family.name.endswith("_seconds")
        assert family.help.endswith(".")


async def test_both_formats_say_the_same_and_escape_names() -> None:
    figures = small()
    text, plain_type = await render(figures, "")
    open_text, open_type = await render(figures, OPENMETRICS)
    assert plain_type.startswith("text/plain; version=0.0.4")
    assert open_type.startswith("application/openmetrics-text; version=1.0.0")
    assert open_text.endswith(b"\n# EOF\n") and open_text.count(b"# EOF") == 1
    plain = kept(samples(parse_text(text.decode())))
    assert plain == kept(samples(parse_openmetrics(open_text.decode())))
    assert plain["runnerd_queued_requests", (("model", "m0"),)] == 3
    name = ("model", 'a"b\\c\nd')
    assert plain["runnerd_requests_total", (name, ("outcome", "completed"))] == 1
    buckets = [v for (n, labels), v in plain.items() if n.endswith("queue_seconds_bucket") and name in labels]
    assert buckets == sorted(buckets)
    assert buckets[-1] == plain["runnerd_request_queue_seconds_count", (name,)] > 0


async def test_a_machine_of_which_nothing_is_known() -> None:
    figures = msgspec.structs.replace(crowd(models=0, queued=0), state=State(), tally=Tally(State()))
    figures = msgspec.structs.replace(figures, unready=[Unready("stopping", "", 0)])
    text, _ = await render(figures, "text/plain")
    found = samples(parse_text(text.decode()))
    assert found["runnerd_ready", ()] == 0
    assert "runnerd_memory_size_bytes" not in {name for name, _ in found}


async def test_very_much_comes_in_small_pieces() -> None:
    """1,000 models and 10,000 queued requests: others have their turn after each few hundred samples."""
    figures = crowd(models=1000, queued=10_000)
    made = list(pieces(figures))
    most = SCRAPE_SAMPLES + max(len(figures.append_ns.counts), 20) + 2
    assert max(len(metric.samples) for metric in made) <= most
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(others)
        text, _ = await render(figures, "")
        nursery.cancel_scope.cancel()
    assert turns >= len(made) // 2
    found = samples(parse_text(text.decode()))
    assert text.count(b"# TYPE runnerd_request_queue_seconds ") == 1
    assert sum(v for (name, _), v in found.items() if name == "runnerd_queued_requests") == 10_000
    assert sum(v for (name, _), v in found.items() if name == "runnerd_request_queue_seconds_count") == 1000


def test_more_models_than_can_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("daemon.families.METRIC_MODELS", 3)
    figures = msgspec.structs.replace(crowd(models=5, queued=50), tally=Tally(State()))
    found = samples(pieces(figures))
    queued = {labels[0][1]: v for (name, labels), v in found.items() if name == "runnerd_queued_requests"}
    assert queued == {"m0": 10, "m1": 10, "m2": 10, "": 20}
    assert figures.t > S
