"""runnerlog timeline: the command, on whole logs, parts of them, pruned ones and damaged ones."""

from __future__ import annotations

import json
import sqlite3
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest
import trio

from daemon.history.lives import Timeline
from daemon.history.recorder import Recorder
from daemon.past import state_at
from events import catalogue as c
from events.pruning import prune
from events.reader import Reader
from events.store import open_store
from statemachines.replay import steps
from tests.integration.live import BIN, PATIENCE_S
from tests.integration.terminal import shown
from tests.integration.test_verify import edit, story
from tests.kept import KeptWorld
from tests.unit.test_page import Parsed, requests_of

AT = 1_700_000_000_000_000_000


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """A log of two models that take turns."""
    path = tmp_path / "events.db"

    async def write() -> None:
        async with open_store(path) as store:
            for step in steps(story()):
                store.append(step, AT + step[0].t)

    trio.run(write)
    return path


def run(*arguments: str | Path) -> Any:
    return subprocess.run(
        [BIN / "runnerlog", *arguments], capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )


def draw(log: Path, *arguments: str | Path) -> dict[str, Any]:
    """The data of the page that the command writes."""
    path = log.with_name("page.html")
    done = run("--log", log, "timeline", "--force", "--html", path, *arguments)
    assert done.returncode == 0, done.stderr
    data: dict[str, Any] = json.loads(Parsed(path.read_text()).texts["script#data"])
    return data


def test_a_page_of_the_whole_log(log: Path) -> None:
    data = draw(log)
    assert (data["first"], data["last"]) == (1, len(story()))
    loads = [event.subject for event in story() if isinstance(event.body, c.RunnerLoad)]
    assert [runner["id"] for runner in data["runners"]] == loads
    arrivals = [event.seq for event in story() if isinstance(event.body, c.RequestArrived)]
    assert [request["seq"] for request in requests_of(data)] == arrivals
    assert data["clock"] == [[0, (AT + story()[0].t) // 1000]]
    with Reader(log) as reader:
        assert data["origin"]["log_id"] == reader.log_id
    assert data["origin"]["command"] == f"runnerlog --log {log} why"


def test_the_command_names_no_log_where_none_was_named(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STATE_DIRECTORY", str(log.parent))
    path = log.with_name("p.html")
    assert run("timeline", "--html", path).returncode == 0
    assert json.loads(Parsed(path.read_text()).texts["script#data"])["origin"]["command"] == "runnerlog why"


def test_what_is_told(log: Path, tmp_path: Path) -> None:
    page, trace = tmp_path / "a.html", tmp_path / "a.json"
    done = run("--log", log, "timeline", "--html", page, "--perfetto", trace)
    assert (done.returncode, done.stderr) == (0, "")
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["path"] for row in told] == [str(page), str(trace)]
    for row, path in zip(told, (page, trace), strict=True):
        assert (row["ok"], row["bytes"], row["runners"], row["requests"]) == (True, path.stat().st_size, 3, 3)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert json.loads(trace.read_text())["traceEvents"]
    result = shown([BIN / "runnerlog", "--log", log, "timeline", "--force", "--html", page], columns=200)
    assert result.lines[-2].startswith("3 runners, 3 requests, ")
    assert result.lines[-2].endswith(f"KiB: {page}")


def test_mistakes_of_usage(log: Path, tmp_path: Path) -> None:
    page = tmp_path / "a.html"
    for arguments, code, words in (
        (["timeline"], 2, "say where to: --html FILE or --perfetto FILE"),
        (["timeline", "--html", page, "blu"], 2, "nothing of a model 'blu' in this time; did you mean blue?"),
        (["timeline", "--html", page, "--until", "99999"], 2, "the log ends at event"),
        (["timeline", "--html", page, "--since", "soon"], 2, "is none of:"),
        (["timeline", "--html", log], 1, "belongs to the log"),
        (["timeline", "--html", tmp_path], 1, "is there, and not a file"),
    ):
        done = run("--log", log, *arguments)
        assert (done.returncode, done.stdout) == (code, ""), arguments
        assert words in " ".join(done.stderr.split())
        assert not page.exists()
    page.write_text("mine")
    done = run("--log", log, "timeline", "--html", page)
    assert done.returncode == 1
    assert "--force replaces it" in done.stderr
    assert page.read_text() == "mine"


def test_one_model(log: Path) -> None:
    data = draw(log, "blue")
    names = {name: shown for name, shown in zip(data["models"], data["shown"], strict=True)}
    assert names == {"red": False, "blue": True}
    assert len(data["requests"]["seq"]) == 1
    assert len(data["runners"]) == 3  # the memory is everybody's


def test_a_part_begins_with_what_is_there(log: Path) -> None:
    first = next(event.seq for event in story() if isinstance(event.body, c.ProcessSpawned))
    data = draw(log, "--since", str(first), "--until", str(first + 3))
    assert (data["first"], data["last"]) == (first, first + 3)
    (runner,) = data["runners"]
    assert runner["load"] < 0
    assert [data["states"][span[0]] for span in runner["spans"]] == ["loading", "busy", "idle"]
    (request,) = requests_of(data)
    assert request["arrived"] < 0
    assert data["queued"]["start"] == [0]
    assert data["queued"]["length"] == [-request["arrived"] + runner["spans"][0][2]]
    nothing = draw(log, "--since", str(len(story()) + 1))
    assert (nothing["length"], nothing["first"], nothing["last"]) == (0, len(story()) + 1, len(story()))


def lines_of(log: Path, after: int) -> Timeline:
    """The timeline after an event, by the events alone."""
    with Reader(log) as reader:
        state = state_at(reader, after)
        recorder = Recorder(state, next(iter(reader.records(after, after + 1))).t)
        for record in reader.records(after):
            recorder.take(record)
        return recorder.finish()


def test_a_pruned_log_begins_with_what_its_snapshot_says(tmp_path: Path) -> None:
    path = tmp_path / "events.db"
    KeptWorld(path, 9, 5)
    with Reader(path) as reader:
        (upto,) = [s.upto for s in reader.snapshots() if state_at(reader, s.upto).runners][:1]
        hash = reader.hash_of(upto)
    before = lines_of(path, upto)
    connection = sqlite3.connect(path, isolation_level=None)
    prune(connection, upto, hash)
    connection.close()
    data = draw(path)
    assert data["first"] == upto + 1
    assert [runner["id"] for runner in data["runners"]] == list(before.runners)
    assert any(runner["load"] < 0 for runner in data["runners"])
    assert [f"q{request['seq']}" for request in requests_of(data)] == [life.id for life in before.requests]
    done = run("--log", path, "timeline", "--force", "--html", tmp_path / "x.html", "--since", "2")
    assert done.returncode == 2
    assert f"the log begins with event {upto + 1}" in " ".join(done.stderr.split())


def test_a_damaged_log_leaves_no_page(log: Path, tmp_path: Path) -> None:
    edit(log, lambda db: db.execute("UPDATE events SET payload = '{}' WHERE seq = 9"))
    done = run("--log", log, "timeline", "--html", tmp_path / "x.html")
    assert (done.returncode, json.loads(done.stdout)["seq"]) == (1, 9)
    edit(log, lambda db: db.execute("DELETE FROM events WHERE seq BETWEEN 3 AND 12"))
    done = run("--log", log, "timeline", "--html", tmp_path / "x.html")
    assert done.returncode == 1
    assert "cannot follow" in json.loads(done.stdout)["error"]
    assert not list(tmp_path.glob("*x.html*"))
