"""runnerlog waits, stats and what-if: for a person on a terminal, for a script, on logs good and bad."""

from __future__ import annotations

import json
import sqlite3
import subprocess
from pathlib import Path
from typing import Any

import pytest
import trio

from daemon.history.parts import PARTS
from events import catalogue as c
from events.catalogue import Event
from events.pruning import prune
from events.reader import Reader
from events.store import open_store
from statemachines.replay import steps
from tests.integration.live import BIN, PATIENCE_S
from tests.integration.terminal import Screen, shown
from tests.integration.test_verify import edit
from tests.kept import KeptWorld
from tests.simulation.again import LOAD_NS, SERVED_NS, in_turn, story

CALM, SNAPSHOTS = 2, 7
"""A world in which nothing misbehaves, and how often its state is kept."""
AT = 1_700_000_000_000_000_000
CONFIG = """
devices: {gpu0: {budget: 24GiB}}
maxLoadedModels: 2
models:
  blue: {cmd: "llama-server --port ${PORT}", memory: {gpu0: 10GiB}}
  red: {cmd: "llama-server --port ${PORT}", memory: {gpu0: 10GiB}}
"""


def write(path: Path, log: list[Event]) -> Path:
    async def append() -> None:
        async with open_store(path) as store:
            for step in steps(log):
                store.append(step, AT + step[0].t)
                await store.wait(step[-1].seq)

    trio.run(append)
    return path


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen requests for two models in turn, with room for one."""
    return write(tmp_path_factory.mktemp("log") / "events.db", story(in_turn(16)))


def run(path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command without a terminal."""
    command = [str(BIN / "runnerlog"), "--log", str(path), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)


def rows(path: Path, *arguments: str) -> list[dict[str, Any]]:
    """The command for a script: its JSON lines."""
    done = run(path, *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    return [json.loads(line) for line in done.stdout.splitlines()]


def wrong(path: Path, *arguments: str) -> str:
    """What a mistake of usage is told."""
    done = run(path, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    return done.stderr.splitlines()[-1]


def screen(path: Path, *arguments: str, columns: int = 80) -> Screen:
    """The command for a person."""
    return shown([BIN / "runnerlog", "--log", path, *arguments], columns=columns)


# --- waits -----------------------------------------------------------------------------------------------


def test_waits_for_a_script_add_up(log: Path) -> None:
    lines = rows(log, "waits")
    requests, models = lines[:16], lines[16:]
    for line in requests:
        assert line["total_ns"] == sum(line[f"{part}_ns"] for part in PARTS)
        assert (line["outcome"], line["served_ns"]) == ("completed", SERVED_NS)
    assert requests[0]["load_ns"] == LOAD_NS
    assert [line["model"] for line in models] == ["blue", "red"]
    assert [line["requests"] for line in models] == [8, 8]
    assert models[0]["total_ns"]["max"] == max(
        line["total_ns"] for line in requests if line["model"] == "blue"
    )


def test_waits_sorted_limited_and_of_one_model(log: Path) -> None:
    slowest = rows(log, "waits", "--sort", "total", "--limit", "3")
    totals = [line["total_ns"] for line in slowest if "request" in line]
    assert len(totals) == 3
    assert totals == sorted(totals, reverse=True)
    of_red = [line for line in rows(log, "waits", "--model", "red") if "request" in line]
    assert [line["model"] for line in of_red] == ["red"] * 8
    assert rows(log, "waits", of_red[2]["request"]) == [of_red[2]]


def test_waits_for_a_person_fit_the_terminal_and_end_with_percentiles(log: Path) -> None:
    for columns in (60, 80, 120):
        seen = screen(log, "waits", "--limit", "5", columns=columns)
        assert seen.code == 0
        assert max(map(len, seen.lines)) <= columns
        assert "… and 11 more (--limit, --sort)" in seen.plain
        assert all(word in seen.plain for word in ("SECONDS", "LOAD", "SERVED", "p95", "16 requests: "))
    narrow, wide = (screen(log, "waits", columns=columns).plain for columns in (80, 120))
    assert "OTHER" in narrow and "UNLOAD" not in narrow
    assert "UNLOAD" in wide and "OTHER" not in wide


def test_a_window_has_what_arrived_in_it(log: Path) -> None:
    arrivals = [event for event in story(in_turn(16)) if isinstance(event.body, c.RequestArrived)]
    since, until = str(arrivals[4].seq), str(arrivals[9].seq)
    found = [line for line in rows(log, "waits", "--since", since, "--until", until) if "request" in line]
    assert [line["request"] for line in found] == [event.subject for event in arrivals[4:10]]
    assert [line["outcome"] for line in found] == ["completed"] * 5 + [None], "the last has only come"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("waits", "q4711"), "no request q4711 arrived"),
        (("waits", "r12"), "'r12' is no request"),
        (("waits", "--model", "bleu"), "did you mean blue?"),
        (("stats", "--since", "40000"), "the log ends before 40000"),
        (("stats", "--since", "90", "--until", "20"), "20 is before 90"),
        (("what-if", "--slots", "bleu=2"), "no model 'bleu'; did you mean blue?"),
        (("what-if", "--slots", "blue=many"), "'many' is not a number of slots"),
        (("what-if", "--memory", "gpu0=lots"), "'lots' is not a size"),
        (("what-if", "--memory", "24GiB"), "is not DEVICE=SIZE"),
        (("what-if", "--memory", "cuda=24GiB"), "'cuda' is no device"),
        (("what-if", "--keep-alive", "blue=soon"), "'soon' is not a duration"),
        (("what-if", "--policy", "lifo"), "'lifo' is not one of"),
        (("what-if", "--since", "1", "--until", "2"), "no request arrived"),
    ],
)
def test_mistakes_are_told_in_a_line(log: Path, arguments: tuple[str, ...], words: str) -> None:
    assert words in wrong(log, *arguments)


# --- stats -----------------------------------------------------------------------------------------------


def test_stats_for_a_script(log: Path) -> None:
    *models, total = rows(log, "stats")
    assert [line["model"] for line in models] == ["blue", "red"]
    assert (total["arrived"], total["completed"], total["swaps"]) == (16, 16, 15)
    assert total["loads"]["ready"] == sum(line["loads"]["ready"] for line in models) == 16
    assert total["load_ns"]["max"] == LOAD_NS
    assert total["hit_rate"] == 0.0
    assert total["devices"]["gpu0"]["held_peak_bytes"] == 10 << 30
    assert total["runners_ns"]["busy"] == 16 * SERVED_NS
    by_hour = rows(log, "stats", "--by", "hour")
    assert sum(line.get("arrived", 0) for line in by_hour[:-1]) == 16
    assert by_hour[-1] == total
    *runners, _ = rows(log, "stats", "--by", "runner")
    assert [(line["dispatched"], line["completed"]) for line in runners] == [(1, 1)] * 16
    (caller, _) = rows(log, "stats", "--by", "caller")
    assert (caller["dispatched"], caller["loads"]["decided"]) == (16, 0)


def test_stats_for_a_person_say_which_model_thrashes(log: Path) -> None:
    for columns in (60, 80, 120):
        seen = screen(log, "stats", columns=columns)
        assert seen.code == 0
        assert max(map(len, seen.lines)) <= columns
        words = " ".join(seen.plain.split())
        assert "16 requests, of those served 0 % at once; 16 loads, 15 swaps" in words
        assert "blue thrashes: 1 min 20 s of loading for 16.0 s of serving, 1.0 requests a load" in words
        for by in ("model", "hour", "caller", "runner"):
            seen = screen(log, "stats", "--by", by, columns=columns)
            above, heading, first = seen.lines[seen.lines.index("") + 1 :][:3]  # headings may take two lines
            if above.startswith(by.upper()):
                above, heading, first = "", above, heading
            assert heading.split()[0] == by.upper()
            assert "REQUESTS  " in heading and "p95" in heading, (columns, by)
            assert "WAIT" in above + heading, "whose percentile that is"
            assert ("LOADS" in heading) == (by != "caller"), "nobody loads but for a model"
            end = heading.index("REQUESTS") + len("REQUESTS")
            assert first[:end].split()[-1] in {"model": "8", "runner": "1"}.get(by, "16")
            assert "COURSE" in seen.plain, columns


# --- what-if ---------------------------------------------------------------------------------------------


def test_what_if_for_a_script(log: Path) -> None:
    recorded, baseline, variant, last = rows(log, "what-if", "--memory", "gpu0=24GiB")
    assert [line["column"] for line in (recorded, baseline, variant)] == ["recorded", "baseline", "what if"]
    assert baseline | {"column": "recorded"} == recorded | {
        "span_ns": baseline["span_ns"],
        "devices": baseline["devices"],
    }
    assert (baseline["swaps"], variant["swaps"], variant["loads"]) == (15, 0, 2)
    assert variant["wait_ns"]["p50"] == 0
    assert last["fidelity"] == {"requests": 16, "same_outcome": 16, "same_wait": 16, "mean_difference_ns": 0}
    assert last["substitutes"] == {"never_served": 0, "cut_off": 0, "loads": 0}
    assert any("asks again only after an answer" in note for note in last["notes"])


def test_what_if_is_the_same_every_time(log: Path) -> None:
    asked = (
        "what-if",
        "--policy",
        "fifo",
        "--policy",
        "collate",
        "--slots",
        "*=2",
        "--keep-alive",
        "red=never",
    )
    first, again = (run(log, *asked).stdout for _ in range(2))
    assert first == again
    assert [json.loads(line)["column"] for line in first.splitlines()[2:4]] == ["fifo", "collate"]


def test_what_if_for_a_person_begins_with_the_answer(log: Path) -> None:
    seen = screen(log, "what-if", "--memory", "gpu0=24GiB")
    assert seen.code == 0
    answer = " ".join(seen.plain.partition("RECORDED")[0].split())
    assert "gpu0 24 GiB: mean wait " in answer
    assert "swaps 15 → 0" in answer
    for columns in (60, 80, 120):
        lines = screen(log, "what-if", "--policy", "fifo", "--policy", "collate", columns=columns).lines
        assert max(map(len, lines)) <= columns
    assert "all of the requests wait as long" in seen.plain.replace("\n", " ")


def test_what_if_begins_with_what_matters_most(log: Path, tmp_path: Path) -> None:
    """Who gets nothing has not waited less."""

    def answer(*arguments: str) -> str:
        return " ".join(run(log, "--no-json", "what-if", *arguments).stdout.split())

    nothing = "gpu0 1 GiB: none of 16 requests is completed (16 failed); the baseline completes 16 "
    assert answer("--memory", "gpu0=1GiB").startswith(nothing)
    file = tmp_path / "config.yaml"
    file.write_text(CONFIG.replace("gpu0: 10GiB", "gpu0: 30GiB", 1))
    assert "/config.yaml: not done 0 → 8, mean wait " in answer("--config", str(file))


def test_what_if_with_another_file(log: Path, tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(CONFIG)
    *_, variant, last = rows(log, "what-if", "--config", str(file))
    assert (variant["swaps"], variant["outcomes"]) == (15, {"completed": 16})
    assert any("gpu0 has 12 GiB, whatever its budget: --memory" in note for note in last["notes"])
    *_, variant, last = rows(log, "what-if", "--config", str(file), "--memory", "gpu0=24GiB")
    assert (variant["swaps"], variant["outcomes"]) == (0, {"completed": 16})
    assert not any("whatever its budget" in note for note in last["notes"])
    file.write_text(CONFIG.replace("10GiB", "10 apples"))
    done = run(log, "what-if", "--config", str(file))
    check = subprocess.run(
        [BIN / "runnerd", "check", "--config", str(file)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr, done.stdout) == (check.returncode, check.stderr, "")
    assert done.returncode == 1
    assert run(log, "what-if", "--config", str(tmp_path / "none.yaml")).returncode == 2


def test_a_log_that_cannot_be_folded_is_said_to_be(log: Path, tmp_path: Path) -> None:
    broken = tmp_path / "events.db"
    broken.write_bytes(log.read_bytes())

    def drop(db: sqlite3.Connection) -> None:
        db.execute("DELETE FROM events WHERE type = 'request.arrived' AND seq < 40")

    edit(broken, drop)
    for command in ("waits", "stats", "what-if"):
        done = run(broken, command)
        assert done.returncode == 1
        assert "cannot follow" in json.loads(done.stdout.splitlines()[-1])["error"]


# --- a log whose beginning is gone -----------------------------------------------------------------------


def test_a_pruned_log_and_a_window_of_the_whole_one_say_the_same(tmp_path: Path) -> None:
    """What was loaded, running and queued at its beginning comes from the snapshot that it begins with."""
    path = tmp_path / "events.db"
    KeptWorld(path, CALM, SNAPSHOTS)
    with Reader(path) as reader:
        snapshot = list(reader.snapshots())[SNAPSHOTS // 2]
    since = ("--since", str(snapshot.upto + 1))
    asked = (("waits",), ("stats",), ("what-if",), ("what-if", "--policy", "fifo"))
    whole = [run(path, *words, *since).stdout for words in asked]
    connection = sqlite3.connect(path, isolation_level=None)
    prune(connection, snapshot.upto, snapshot.hash)
    connection.close()
    assert [run(path, *words).stdout for words in asked] == whole
    recorded, baseline, *_ = [json.loads(line) for line in whole[2].splitlines()]
    assert recorded["requests"] > 10
    assert (recorded["wait_ns"], recorded["outcomes"]) == (baseline["wait_ns"], baseline["outcomes"])
    assert "arrived in this part" in wrong(path, "waits", "q5")
