"""The timeline's page, as far as it can be judged without a browser: it holds everything it needs, asks for
nothing else, and what the log says stays data. tests/browser has the rest."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from typing import Any

import pytest

from daemon.history.lives import Part, RequestLife, Timeline
from daemon.history.page import ENDS, STATES, Origin, page, tracks_of
from events import catalogue as c
from events.catalogue import NEVER, Event
from statemachines.replay import fold
from statemachines.request import TERMINAL
from statemachines.scheduler import RULES, Scheduler
from statemachines.state import State
from tests.unit.test_timeline import log_of, timeline_of

ORIGIN = Origin("/var/lib/runnerd/events.db", "id", "0.1.0", "runnerlog why")
HOSTILE = (
    "</script><script>alert(1)</script>",
    "<!--<script>",
    "<img src=x onerror=alert(1)>",
    "]]>&lt;\"'`${x}",
    "\u202egnp.exe\u2066",
    "שלום עולם",
    "a\u2028b\u2029c\x00d\x1b[31m",
    "%DATA% %SCRIPT% %STYLE-HASH%",
    "https://example.com/x.js",
    "x" * 300,
)


class Parsed(HTMLParser):
    """The elements of a page with their attributes, and the text of its scripts and styles."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, str] = {}
        self._inside = ""
        self.open: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.elements.append((tag, given))
        if tag not in ("meta", "input", "br", "link"):
            self.open.append(tag)
        self._inside = f"{tag}#{given.get('id', '')}" if tag in ("script", "style") else ""

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.texts[self._inside] = self.texts.get(self._inside, "") + data


def made(line: Timeline) -> tuple[str, dict[str, Any]]:
    """A page and its data."""
    html = page(line, ORIGIN).decode()
    data: dict[str, Any] = json.loads(Parsed(html).texts["script#data"])
    return html, data


def hostile_log() -> list[Event]:
    """Models with names that somebody chose to do harm: one request each, one load."""
    scheduler, log = Scheduler(), []
    models = {name: c.ModelView(digest=str(i), memory_bytes={"host": 1}) for i, name in enumerate(HOSTILE)}
    devices = {"host": c.DeviceView(1 << 30), "</script>": c.DeviceView(5)}
    facts: list[c.Fact] = [
        c.DaemonStarted(RULES, "balanced", "boot", "0.1.0"),
        c.ConfigChanged(c.ConfigView(models=models, devices=devices)),
        c.MemoryMeasured({"host": c.Reading(1 << 34, 1 << 34)}),
        *(c.RequestArrived(name, "chat") for name in HOSTILE),
        c.RequestArrived("</script><b>no such model", "chat"),
    ]  # fmt: skip
    for i, fact in enumerate(facts):
        log += scheduler.step(fact, i * 10**9)
    runner = next(event.subject for event in log if isinstance(event.body, c.RunnerLoad))
    log += scheduler.step(c.SpawnFailed(runner, "<script>alert(2)</script>\u2028"), 60 * 10**9)
    return log


def test_it_is_one_well_formed_page_that_asks_for_nothing() -> None:
    html, _ = made(timeline_of(log_of(3)))
    parsed = Parsed(html)
    assert parsed.open == []
    assert {tag for tag, _ in parsed.elements} & {
        "link",
        "img",
        "iframe",
        "object",
        "embed",
        "base",
        "video",
    } == set()
    for tag, attributes in parsed.elements:
        assert not {name for name in attributes if name.startswith("on")} | (
            {"src", "href", "style"} & set(attributes)
        ), tag
    code = parsed.texts["script#"] + parsed.texts["style#"]
    assert not re.search(
        r"https?:|url\(|@import|fetch\(|XMLHttp|import\(|WebSocket|innerHTML|outerHTML|insertAdjacent|eval\(|document\.write",
        code,
    )
    ids = [attributes["id"] for _, attributes in parsed.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    asked = set(re.findall(r'(?:\$|getElementById)\("([\w-]+)"\)', code))
    assert asked and asked <= set(ids)


def test_only_its_own_script_and_style_may_run() -> None:
    html, _ = made(timeline_of(hostile_log()))
    parsed = Parsed(html)
    (policy,) = [
        a["content"] for tag, a in parsed.elements if a.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy is not None
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))

    def hashed(text: str) -> str:
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    assert rules == {
        "default-src": "'none'", "base-uri": "'none'", "form-action": "'none'",
        "script-src": hashed(parsed.texts["script#"]), "style-src": hashed(parsed.texts["style#"]),
    }  # fmt: skip


def test_hostile_names_stay_data() -> None:
    log = hostile_log()
    html, data = made(timeline_of(log))
    assert set(HOSTILE) <= set(data["models"])
    assert data["devices"][1]["name"] == "</script>"
    assert any("alert(2)" in words for words in data["strings"])
    parsed = Parsed(html)
    assert [tag for tag, _ in parsed.elements if tag in ("script", "b", "img")] == ["script", "script"]
    assert re.fullmatch("[\\x20-\\x7e]+", parsed.texts["script#data"])
    assert not set("<>&") & set(parsed.texts["script#data"])
    plain, _ = made(timeline_of([]))
    assert html.replace(parsed.texts["script#data"], "") == plain.replace(
        Parsed(plain).texts["script#data"], ""
    )


def parts_of(data: dict[str, Any], which: str) -> list[dict[str, int]]:
    columns = data[which]
    assert len({len(column) for column in columns.values()}) == 1
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    request = 0
    for row in rows:
        request = row["request"] = request + row["request"]
    return rows


def requests_of(data: dict[str, Any]) -> list[dict[str, int]]:
    columns = data["requests"]
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    seq = arrived = 0
    for row in rows:
        seq = row["seq"] = seq + row["seq"]
        arrived = row["arrived"] = arrived + row["arrived"]
    return rows


def us(line: Timeline, t: int) -> int:
    return (t - line.start_t) // 1000


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("cut", [0, 1])
def test_the_data_is_the_timeline(seed: int, cut: int) -> None:
    log = log_of(seed)
    at = len(log) // 2 * cut
    line = timeline_of(log[at:], state=fold(log[:at]) if cut else State())
    _, data = made(line)
    assert (data["first"], data["last"], data["length"]) == (
        line.first_seq,
        line.last_seq,
        us(line, line.end_t),
    )
    requests = requests_of(data)
    assert [f"q{row['seq']}" for row in requests] == [life.id for life in line.requests]
    leases = {requests[i]["seq"] for i in data["leases"]}
    for row, life in zip(requests, line.requests, strict=True):
        assert data["models"][row["model"]] == life.model
        assert row["arrived"] == us(line, life.arrived_t)
        assert (life.lease, row["seq"]) == (row["seq"] in leases, int(life.id[1:]))
        assert ENDS[row["end"]] == (life.end.kind if life.end else "")
        if life.end is not None:
            assert row["arrived"] + row["ended"] == us(line, life.end.t)
            assert row["seq"] + row["last"] == life.end.seq
            assert data["strings"][row["why"]] == ("" if life.end.kind == "completed" else life.end.words)
    check_parts(line, data, requests)
    for told, runner in zip(data["runners"], line.runners.values(), strict=True):
        assert (told["id"], data["models"][told["model"]], told["slots"]) == (
            runner.id,
            runner.model,
            runner.slots,
        )
        assert [STATES[span[0]] for span in told["spans"]] == [span.state for span in runner.spans]
        assert [span[1:4] for span in told["spans"]] == [
            [us(line, span.start_t), us(line, span.end_t), span.seq] for span in runner.spans
        ]
        for device, steps in told["held"].items():
            assert steps[1] > 0 and (runner.end is None or steps[-1] == 0), device


def check_parts(line: Timeline, data: dict[str, Any], requests: list[dict[str, int]]) -> None:
    queued, served = iter(parts_of(data, "queued")), iter(parts_of(data, "served"))
    for i, life in enumerate(line.requests):
        for part in life.parts:
            row = next(served if part.runner else queued)
            assert row["request"] == i
            start = requests[i]["arrived"] + row["start"]
            assert start == us(line, part.start_t)
            check_end(line, life, part, row, start)
            if part.runner:
                assert data["runners"][row["runner"]]["id"] == part.runner
                assert (row["slot"], requests[i]["seq"] + row["seq"]) == (part.slot, part.seq)
            else:
                assert (row["row"], data["strings"][row["why"]]) == (part.row, part.why)
    assert next(queued, None) is None and next(served, None) is None


def check_end(line: Timeline, life: RequestLife, part: Part, row: dict[str, int], start: int) -> None:
    if row["length"] == NEVER:
        assert part.end_t == NEVER and life.end is None
        return
    assert row["length"] >= 0 and row.get("tail", 0) >= 0
    assert start + row["length"] + row.get("tail", 0) == us(
        line, line.end_t if part.end_t == NEVER else part.end_t
    )
    if row.get("tail", 0):
        assert life.end is not None and start + row["length"] == max(start, us(line, life.end.t))


def test_every_state_and_end_has_a_name() -> None:
    assert set(ENDS) == {"", *(state.value for state in TERMINAL)}
    seen, leases = set(), 0
    for seed in range(12):
        line = timeline_of(log_of(seed))
        seen |= {span.state for life in line.runners.values() for span in life.spans}
        leases += sum(life.lease for life in line.requests)
    assert seen == set(STATES)
    assert leases


def test_runners_of_one_track_do_not_overlap() -> None:
    for seed in range(12):
        line = timeline_of(log_of(seed))
        taken: dict[tuple[str, int], int] = {}
        for id, track in tracks_of(line).items():
            life = line.runners[id]
            assert life.end is not None and taken.get((life.model, track), 0) <= life.load_t
            taken[life.model, track] = life.end.t


def test_a_page_of_nothing() -> None:
    html, data = made(timeline_of([]))
    assert (data["length"], data["runners"], data["first"], data["last"]) == (0, [], 1, 0)
    assert len(html) < 100_000
