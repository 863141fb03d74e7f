"""The trace for Perfetto, against what the format's definition asks of each kind of entry."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest

from daemon.history.page import Origin
from daemon.history.perfetto import trace
from statemachines.replay import fold
from tests.unit.test_timeline import log_of, timeline_of

ORIGIN = Origin("/log", "id", "0.1.0", "runnerlog why")
NEEDS = {
    "X": {"name", "cat", "ts", "dur", "pid", "tid"},
    "b": {"name", "cat", "ts", "pid", "tid", "id2"},
    "e": {"name", "cat", "ts", "pid", "tid", "id2"},
    "C": {"name", "ts", "pid", "args"},
    "M": {"name", "pid", "tid", "args"},
    "i": {"name", "ts", "pid", "tid", "s"},
}
"""The fields of each phase, by the definition of the trace event format."""

Entry = dict[str, Any]


def entries_of(seed: int, cut: int = 0) -> list[Entry]:
    log = log_of(seed)
    at = len(log) * cut // 10
    line = timeline_of(log[at:], state=fold(log[:at]) if cut else None)
    made = json.loads(b"".join(trace(line, ORIGIN)))
    assert made["displayTimeUnit"] in ("ms", "ns")
    entries: list[Entry] = made["traceEvents"]
    return entries


def check_fields(entries: list[Entry]) -> None:
    for entry in entries:
        assert NEEDS[entry["ph"]] <= set(entry), entry
        assert entry["ts"] >= 0
        assert entry.get("dur", 0) >= 0
        if entry["ph"] == "C":
            assert all(isinstance(value, int) for value in entry["args"].values())
        if entry["ph"] == "i":
            assert entry["s"] in ("g", "p", "t")


def check_names(entries: list[Entry]) -> None:
    """Every process and thread is named before it is used; no thread is in two processes."""
    named: dict[tuple[str, int], str] = {}
    of: dict[int, int] = {}
    for entry in entries:
        if entry["ph"] == "M":
            key = (entry["name"], entry["tid"] if entry["name"].startswith("thread") else entry["pid"])
            assert key not in named
            named[key] = str(entry["args"])
            continue
        assert ("process_name", entry["pid"]) in named
        if entry["ph"] == "X":
            assert ("thread_name", entry["tid"]) in named
            assert of.setdefault(entry["tid"], entry["pid"]) == entry["pid"]
    processes = [pid for kind, pid in named if kind == "process_name"]
    assert not set(processes) & set(of)


def check_nesting(entries: list[Entry]) -> None:
    """On a thread each slice is within, or after, the one before it."""
    stacks: dict[int, list[float]] = {}
    for entry in entries:
        if entry["ph"] != "X":
            continue
        start, end = entry["ts"], round(entry["ts"] + entry["dur"], 3)
        stack = stacks.setdefault(entry["tid"], [])
        while stack and stack[-1] <= start:
            stack.pop()
        assert not stack or end <= stack[-1], entry
        if end > start:
            stack.append(end)


def check_async(entries: list[Entry]) -> None:
    """Each begin has its end, the inner one first."""
    open: dict[tuple[int, str], list[str]] = {}
    for entry in entries:
        if entry["ph"] in ("b", "e"):
            stack = open.setdefault((entry["pid"], entry["id2"]["local"]), [])
            if entry["ph"] == "b":
                stack.append(entry["name"])
            else:
                assert stack.pop() == entry["name"]
    assert not any(open.values())


def check_flows(entries: list[Entry]) -> int:
    """Each arrow has one beginning and one end, which is not earlier."""
    out = {entry["bind_id"]: entry for entry in entries if entry.get("flow_out")}
    into = {entry["bind_id"]: entry for entry in entries if entry.get("flow_in")}
    assert set(out) == set(into)
    assert len(out) == sum(bool(entry.get("flow_out")) for entry in entries)
    for bind, entry in out.items():
        assert (entry["ph"], entry["name"], into[bind]["ph"]) == ("b", "queued", "X")
        assert into[bind]["ts"] >= entry["ts"]
    return len(out)


@pytest.mark.parametrize("seed", range(16))
@pytest.mark.parametrize("cut", [0, 4])
def test_it_is_what_the_format_asks_for(seed: int, cut: int) -> None:
    entries = entries_of(seed, cut)
    times = [entry["ts"] for entry in entries if entry["ph"] != "M"]
    assert times == sorted(times)
    check_fields(entries)
    check_names(entries)
    check_nesting(entries)
    check_async(entries)
    check_flows(entries)


def test_it_holds_what_the_timeline_holds() -> None:
    log = log_of(3)
    line = timeline_of(log)
    entries = entries_of(3)
    counts = Counter((entry["ph"], entry.get("cat", "")) for entry in entries)
    assert counts["X", "runner"] == len(line.runners)
    assert counts["X", "state"] == sum(len(life.spans) for life in line.runners.values())
    parts = [part for request in line.requests for part in request.parts]
    assert counts["X", "served"] == sum(bool(part.runner) for part in parts) > 0
    assert counts["b", "request"] == len(line.requests) + sum(not part.runner for part in parts)
    assert check_flows(entries) > 0
    queues = {
        entry["args"]["requests"] for entry in entries if entry["ph"] == "C" and entry["name"] == "queued"
    }
    assert queues == {value for level in line.queued.values() for _, value in level.steps}
    last = {
        (entry["pid"], entry["name"]): entry["args"]["bytes"]
        for entry in entries
        if entry["ph"] == "C" and entry["name"] == "held"
    }
    assert last and set(last.values()) == {0}


def test_held_memory_is_the_sum_of_what_runners_hold() -> None:
    log = log_of(5)
    names = {
        entry["pid"]: entry["args"]["name"].removeprefix("device ")
        for entry in entries_of(5)
        if entry["ph"] == "M" and entry["name"] == "process_name"
    }
    told: dict[str, int] = {}
    entries = [entry for entry in entries_of(5) if entry["ph"] == "C" and entry["name"] == "held"]
    fed, state = 0, fold([])
    for i, entry in enumerate(entries):
        told[names[entry["pid"]]] = entry["args"]["bytes"]
        if i + 1 < len(entries) and entries[i + 1]["ts"] == entry["ts"]:
            continue
        while fed < len(log) and log[fed].t <= round(entry["ts"] * 1000):
            fold([log[fed]], state)
            fed += 1
        assert {d: n for d, n in told.items() if n} == {d: n for d, n in state.held.items() if n}
    assert entries
