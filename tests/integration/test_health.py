"""What those who watch a daemon are told: /ready and /metrics, of real daemons under load."""

from __future__ import annotations

import http.client
import json
import sqlite3
import threading
from collections import Counter
from contextlib import closing
from itertools import pairwise
from pathlib import Path

import msgspec
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from daemon.readiness import Unready
from events import catalogue as c
from events.catalogue import Event
from tests.integration.front_door_world import world
from tests.integration.live import PATIENCE_S, Live, daemon, ngram
from tests.integration.test_daemon import TWO, at_once

SLOW = TWO.replace("--slots 2", "--slots 2 --tokens-per-second 400")
BAD = f"{SLOW}  broken: {{cmd: 'false --port ${{PORT}}', memory: 10MiB}}\n"
OPENMETRICS = "application/openmetrics-text; version=1.0.0, text/plain; q=0.5"

Samples = dict[tuple[str, ...], float]


def ask(live: Live, path: str, method: str = "GET", accept: str = "") -> tuple[int, str, bytes]:
    """Status, content type, body."""
    with closing(live.connect()) as connection:
        connection.request(method, path, headers={"Accept": accept})
        response: http.client.HTTPResponse = connection.getresponse()
        return response.status, response.headers["Content-Type"], response.read()


def scrape(live: Live, accept: str = "") -> Samples:
    """A scrape, by name and label values."""
    status, kind, text = ask(live, "/metrics", accept=accept)
    assert status == 200
    parse = parse_openmetrics if kind.startswith("application/openmetrics-text") else parse_text
    return {(s.name, *s.labels.values()): s.value for f in parse(text.decode()) for s in f.samples}


def never_less(before: Samples, after: Samples) -> None:
    """Counters do not go back."""
    for key, value in before.items():
        if key[0].endswith(("_total", "_bucket", "_count", "_sum")):
            assert after[key] >= value, key


def test_the_counts_of_a_busy_daemon_are_those_of_its_log(tmp_path: Path) -> None:
    with daemon(tmp_path, BAD) as live:
        assert scrape(live)["runnerd_ready",] == 1
        scrapes: list[Samples] = []
        over = threading.Event()

        def watch() -> None:
            while not over.is_set():
                scrapes.append(scrape(live, OPENMETRICS if len(scrapes) % 2 else ""))

        watcher = threading.Thread(target=watch)
        watcher.start()
        statuses = at_once(live, ["red", "blue", "rouge", "broken", "red", "blue"] * 4)
        with live.stream("red", 100_000):
            pass  # leaving in the middle
        live.until(lambda: live.tags().count("request.cancelled") == 1)
        over.set()
        watcher.join(PATIENCE_S)
        assert Counter(statuses)[200] == 20
        for before, after in pairwise(scrapes):
            never_less(before, after)
        last, found = Samples(), scrape(live)
        while last.get(("runnerd_log_events_total",)) != found["runnerd_log_events_total",]:
            last, found = found, scrape(live)
        shown = live.runnerlog("--json", "show").stdout.splitlines()
        events = live.events()[: int(found["runnerd_log_events_total",])]
        assert len(shown) >= len(events)
        check_counts(found, events)
        assert found["runnerd_connections", "http"] >= 1
        assert found["runnerd_slots", "red"] in (0, 2)
        assert found["runnerd_memory_held_bytes", "host"] <= found["runnerd_memory_budget_bytes", "host"]
        assert 0 < found["runnerd_log_size_bytes",] == live.log.stat().st_size
        assert found["process_resident_memory_bytes",] > 0


def check_counts(found: Samples, events: list[Event]) -> None:
    """Every counter and histogram against what the log says."""
    expected = from_log(events)
    families = {key[0] for key in expected} | {"runnerd_request_errors_total", "runnerd_evictions_total"}
    nonzero = {key: value for key, value in found.items() if key[0] in families and value}
    assert nonzero == {key: value for key, value in expected.items() if value}
    assert {key[1] for key in nonzero if key[0] == "runnerd_requests_arrived_total"} == {
        "red",
        "blue",
        "broken",
    }


def from_log(events: list[Event]) -> Samples:
    """What the metrics are to say of these events, which begin with the daemon's start."""
    counts: Counter[tuple[str, ...]] = Counter()
    arrived: dict[str, tuple[str, int]] = {}
    loaded: dict[str, tuple[str, int]] = {}
    ready: set[str] = set()
    for event in events:
        body = event.body
        tag = str(body.__struct_config__.tag)
        kind, _, what = tag.partition(".")
        counts["runnerd_log_append_seconds_count",] += event.cause == 0
        if isinstance(body, c.RequestArrived):
            arrived[event.subject] = (body.model, event.t)
            counts["runnerd_requests_arrived_total", body.model] += 1
        elif isinstance(body, c.RequestDispatched) and body.attempt == 1:
            counts["runnerd_request_queue_seconds_count", arrived[body.request][0]] += 1
        elif isinstance(body, c.UpstreamEnded) and body.first_byte_ns:
            counts["runnerd_request_first_byte_seconds_count", loaded[body.runner][0]] += 1
        elif kind == "request" and what in ("completed", "failed", "cancelled", "timed_out", "rejected"):
            counts["runnerd_requests_total", arrived[event.subject][0], what] += 1
            if what != "completed":
                counts["runnerd_request_errors_total", str(getattr(body, "reason", ""))] += 1
        elif isinstance(body, c.RunnerLoad):
            loaded[event.subject] = (body.model, event.t)
        elif isinstance(body, c.ProbeAnswered) and body.healthy and body.runner not in ready:
            ready.add(body.runner)
            counts["runnerd_loads_total", loaded[body.runner][0], "ready"] += 1
            counts["runnerd_load_seconds_count", loaded[body.runner][0]] += 1
        elif isinstance(body, c.RunnerDrain):
            counts["runnerd_evictions_total", body.reason] += 1
        elif kind == "runner" and what in ("unloaded", "failed", "lost"):
            model = loaded[event.subject][0]
            counts["runnerd_runners_ended_total", model, what] += 1
            if event.subject not in ready:
                counts["runnerd_loads_total", model, what] += 1
    return {key: float(value) for key, value in counts.items()}


def test_ready_until_it_stops(tmp_path: Path) -> None:
    config = f"models: {{slow: {{cmd: '{ngram('--tokens-per-second 50')}', memory: 10MiB}}}}"
    with daemon(tmp_path, config) as live:
        assert ask(live, "/ready") == (200, "application/json", b'{"ready":true}')
        assert ask(live, "/ready", "HEAD")[::2] == (200, b"")
        assert ask(live, "/metrics", "HEAD")[::2] == (200, b"")
        with live.stream("slow"):
            events = threading.Thread(target=live.runnerctl, args=("stop",))
            events.start()
            live.until(lambda: "daemon.stop_requested" in live.tags())
            status, _, body = ask(live, "/ready")
            [reason] = json.loads(body)["reasons"]
            assert (status, reason["reason"]) == (503, "stopping")
            assert reason["message"] == "the daemon is stopping (drain)"
            assert 0 <= reason["age_s"] < PATIENCE_S
            assert ask(live, "/health")[0] == 200
        events.join(PATIENCE_S)
        assert live.wait() == 0


def test_not_ready_while_the_log_is_blocked(tmp_path: Path) -> None:
    with daemon(tmp_path, TWO) as live:
        live.chat("red")
        with closing(sqlite3.connect(live.log, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            waiting = threading.Thread(target=live.chat, args=("red",))
            waiting.start()
            while ask(live, "/ready", "HEAD")[0] == 200:
                pass
            status, _, body = ask(live, "/ready")
            assert (status, json.loads(body)["reasons"][0]["reason"]) == (503, "log_blocked")
            assert "ready     no, for" in live.runnerctl("--no-json", "status").stdout
            assert live.chat("red")[0] == 503
            before = scrape(live)
            assert before["runnerd_ready",] == 0
            # Another event may have met the lock before the one that waits, which is then refused, too.
            assert before["runnerd_log_refused_requests_total",] in (1, 2)
            assert before["runnerd_log_blocked_seconds_total",] > 0
            other.execute("ROLLBACK")
        waiting.join(PATIENCE_S)
        live.until(lambda: "log.resumed" in live.tags())
        assert ask(live, "/ready")[0] == 200
        never_less(before, scrape(live))


async def test_reasons_are_worded_for_programs_and_people(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        here.desk.reasons = [
            Unready("log_blocked", "full", 12_345_678_901),
            Unready("wait_too_long", "late", 5, "q7", "m"),
        ]
        client = await here.client()
        answer = await client.ask("GET", "/ready")
        assert (answer.status, answer.headers["content-type"]) == (503, "application/json")
        assert msgspec.json.decode(answer.body) == {
            "ready": False,
            "reasons": [
                {"reason": "log_blocked", "message": "full", "age_s": 12.345},
                {"reason": "wait_too_long", "message": "late", "age_s": 0.0, "request": "q7", "model": "m"},
            ],
        }  # fmt: skip
        assert (await client.ask("HEAD", "/ready")).status == 503
        assert (await client.ask("POST", "/ready", b"")).status == 405
