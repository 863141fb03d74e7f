"""runnerlog: every command for a person on a terminal and for a script without one, on logs good and bad."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
from pathlib import Path
from typing import Any

import pytest
import trio
from click.testing import CliRunner

from daemon.cli import logfile, runnerlog
from events import catalogue as c
from events.catalogue import Event
from events.envelope import decode
from events.reader import Reader
from events.store import open_store
from statemachines.replay import fold
from statemachines.scheduler import RULES
from statemachines.state import canonical
from tests.integration.live import BIN, PATIENCE_S, daemon, ngram
from tests.integration.terminal import Screen, shown
from tests.integration.test_verify import edit, rechain, story

COLUMNS = ["seq", "at_ns", "t_ns", "type", "version", "cause", "subject", "payload"]
AT = 1_700_000_000_000_000_000


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """A log of two models that take turns."""
    path = tmp_path / "events.db"

    async def write() -> None:
        async with open_store(path) as store:
            for event in story():
                store.append([event], AT + event.t)

    trio.run(write)
    return path


def run(path: Path | None, *arguments: str, env: dict[str, str] | None = None) -> Any:
    """The command without a terminal."""
    where = [] if path is None else ["--log", str(path)]
    return subprocess.run(
        [BIN / "runnerlog", *where, *arguments], capture_output=True, text=True, timeout=PATIENCE_S,
        check=False, env={**os.environ, **(env or {})},
    )  # fmt: skip


def rows(path: Path, *arguments: str, code: int = 0) -> list[dict[str, Any]]:
    """The command for a script: its JSON lines."""
    done = run(path, *arguments)
    assert done.returncode == code, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def seqs(path: Path, *arguments: str) -> list[int]:
    return [row["seq"] for row in rows(path, "show", *arguments)]


def screen(path: Path, *arguments: str, columns: int = 80, env: dict[str, str] | None = None) -> Screen:
    """The command for a person."""
    return shown([BIN / "runnerlog", "--log", path, *arguments], columns=columns, env=env)


def of(*types: type[c.Payload]) -> list[int]:
    """The numbers of the story's events of some types."""
    return [event.seq for event in story() if type(event.body) in types]


# --- show ------------------------------------------------------------------------------------------------


def test_show_for_a_script_is_one_json_line_an_event(log: Path) -> None:
    events = rows(log, "show")
    assert [row["seq"] for row in events] == [event.seq for event in story()]
    assert all(list(row) == COLUMNS for row in events)
    first = events[0]
    assert (first["type"], first["at_ns"], first["cause"], first["subject"]) == (
        "daemon.started", AT + first["t_ns"], 0, ""
    )  # fmt: skip
    assert first["payload"]["rules"] == RULES
    assert rows(log, "--json", "show") == events


@pytest.mark.parametrize("columns", [80, 50])
def test_show_for_a_person_is_plain_words_that_fit(log: Path, columns: int) -> None:
    result = screen(log, "show", columns=columns)
    assert result.code == 0
    assert max(map(len, result.lines)) <= columns
    day, first, *rest = result.lines
    assert len(day) == len("2026-01-31")
    assert first.endswith("      1  runnerd 0.1.0 started")
    assert "{" not in result.plain
    loads = of(c.RunnerLoad)[0]
    (line,) = [line for line in rest if f" {loads}  └ r{loads} loads red" in line]
    assert line.split()[0].count(":") == 2
    assert result.plain.count("  └ ") == sum(isinstance(event.body, c.Decision) for event in story())


def test_show_has_colours_only_on_a_terminal_that_wants_them(log: Path) -> None:
    assert "\x1b[" in screen(log, "show").text
    assert "\x1b" not in screen(log, "show", env={"NO_COLOR": "1"}).text
    assert "\x1b" not in run(log, "--no-json", "show").stdout


@pytest.mark.parametrize("command", [["show"], ["verify"], ["state", "--at", "12"]])
def test_no_json_is_what_a_person_reads_without_a_terminal(log: Path, command: list[str]) -> None:
    done = run(log, "--no-json", *command, env={"COLUMNS": "80"})
    assert (done.returncode, done.stderr) == (0, "")
    seen = screen(log, *command, env={"NO_COLOR": "1"})
    assert set(done.stdout.splitlines()) <= set(seen.lines)
    assert done.stdout.splitlines()[-1] == seen.lines[-2]


def test_json_on_a_terminal_when_asked_for(log: Path) -> None:
    result = screen(log, "--json", "show", "--limit", "2", columns=400)
    assert [json.loads(line)["seq"] for line in result.text.splitlines()] == [1, 2]


def test_a_locale_that_lacks_characters_costs_only_those(log: Path) -> None:
    latin = os.environ | {"PYTHONIOENCODING": "latin-1"}
    person = run(log, "--no-json", "show", "--last", "9", env=latin)
    assert (person.returncode, person.stderr) == (0, "")
    assert "  ? q" in person.stdout
    names = run(log, "--json", "show", env=latin)
    assert [json.loads(line) for line in names.stdout.splitlines()] == rows(log, "show")


def test_show_between_two_events(log: Path) -> None:
    last = len(story())
    assert seqs(log, "--after", "3", "--upto", "6") == [4, 5, 6]
    assert seqs(log, "--after", str(last)) == []
    assert seqs(log, "--after", str(last - 1), "--upto", str(last + 9)) == [last]
    assert seqs(log, "--upto", "0") == []


def test_show_the_first_and_the_last_few(log: Path) -> None:
    last = len(story())
    assert seqs(log, "--limit", "2") == [1, 2]
    assert seqs(log, "--last", "2") == [last - 1, last]
    assert seqs(log, "--last", "9999") == list(range(1, last + 1))
    assert seqs(log, "--limit", "1", "--type", "runner.load") == of(c.RunnerLoad)[:1]
    assert seqs(log, "--last", "1", "--type", "runner.load") == of(c.RunnerLoad)[-1:]


def test_show_some_types(log: Path) -> None:
    assert seqs(log, "--type", "runner.load") == of(c.RunnerLoad)
    both = seqs(log, "--type", "request.completed", "--type", "probe.")
    assert both == of(c.RequestCompleted, c.ProbeAnswered)
    assert set(of(c.RunnerLoad, c.RunnerStop)) < set(seqs(log, "--type", "runner."))


def test_show_what_became_of_the_runners(log: Path) -> None:
    found = {row["type"] for row in rows(log, "show", "--runners")}
    assert {"runner.load", "process.spawned", "probe.answered", "process.exited", "claim.made"} <= found
    assert not any(type.startswith(("request.", "upstream.", "memory.", "deadline.")) for type in found)


def test_show_what_concerns_a_request_and_a_runner(log: Path) -> None:
    request, runner = of(c.RequestArrived)[0], of(c.RunnerLoad)[0]
    theirs = rows(log, "show", f"q{request}")
    assert [row["type"] for row in theirs] == [
        "request.arrived", "request.queued", "request.dispatched", "upstream.ended", "request.completed"
    ]  # fmt: skip
    its = {row["type"] for row in rows(log, "show", f"r{runner}")}
    assert {"runner.load", "process.spawned", "request.dispatched", "runner.unloaded"} <= its
    both = seqs(log, f"q{request}", f"r{runner}")
    assert both == sorted({*seqs(log, f"q{request}"), *seqs(log, f"r{runner}")})
    assert seqs(log, f"r{runner}", "--type", "runner.", "--after", str(runner)) == [
        seq for seq in seqs(log, "--type", "runner.", f"r{runner}") if seq > runner
    ]


def test_show_what_concerns_a_model(log: Path) -> None:
    """Its requests, its runners, its claims: not only the few events that are about the model itself."""
    blue = rows(log, "show", "blue")
    types = [row["type"] for row in blue]
    for type in ("request.arrived", "runner.load", "process.spawned", "request.completed", "claim.made"):
        assert type in types
    asked = [(event.seq, event.body) for event in story() if isinstance(event.body, c.RequestArrived)]
    arrivals = [row["seq"] for row in blue if row["type"] == "request.arrived"]
    assert arrivals == [seq for seq, body in asked if body.model == "blue"]
    both = seqs(log, "red", "blue")
    assert both == sorted({*seqs(log, "red"), *seqs(log, "blue")})
    runner = of(c.RunnerLoad)[0]
    assert seqs(log, "blue", f"r{runner}") == sorted({*seqs(log, "blue"), *seqs(log, f"r{runner}")})
    after = arrivals[0]
    assert seqs(log, "blue", "--after", str(after)) == [seq for seq in seqs(log, "blue") if seq > after]


def test_show_finds_nothing(log: Path) -> None:
    ids = "; a log knows models by their ids, not by their aliases: blue, red"
    cases = ((["grey"], ids), (["q99"], ""), (["--after", "9999"], ""), (["--type", "log."], ""))
    for arguments, hint in cases:
        assert rows(log, "show", *arguments) == []
        result = screen(log, "show", *arguments, columns=200)
        assert (result.code, result.lines[0]) == (
            0,
            f"no such event among the {len(story())} events of the log{hint}",
        )


def test_show_finds_nothing_of_a_model_that_is_misspelt(log: Path) -> None:
    assert "of the log; did you mean blue? (A log knows" in screen(log, "show", "bleu", columns=200).lines[0]
    assert "mean" not in screen(log, "show", "blue", "--type", "log.").lines[0]


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["show", "rouge"], 0),
        (["replay", "rouge"], 1),
        (["why", "rouge"], 1),
        (["why-not", "rouge"], 1),
        (["waits", "--model", "rouge"], 2),
        (["what-if", "--slots", "rouge=2"], 2),
        (["timeline", "--html", "page", "rouge"], 2),
    ],
    ids=lambda each: each[0] if isinstance(each, list) else "",
)
def test_an_alias_is_answered_with_the_ids_that_the_log_knows(
    log: Path, arguments: list[str], code: int
) -> None:
    done = run(log, "--no-json", *arguments, env={"COLUMNS": "200"})
    assert done.returncode == code
    said = " ".join((done.stdout + done.stderr).split()).lower()
    assert "a log knows models by their ids, not by their aliases: blue, red" in said


# --- verify and state ------------------------------------------------------------------------------------


def test_verify(log: Path) -> None:
    decisions = sum(isinstance(event.body, c.Decision) for event in story())
    (told,) = rows(log, "verify")
    assert (told["ok"], told["events"], told["decisions"]) == (True, len(story()), decisions)
    assert told["not_rederived"] == {}
    result = screen(log, "verify")
    assert result.code == 0
    assert f"chain intact: {len(story())} events" in result.plain
    assert f"decisions reproduced: {decisions} of {decisions}, in {told['steps']} steps" in result.plain


def test_verify_says_what_it_could_not_rederive(log: Path) -> None:
    rechain(log, of_other_rules(story()))
    (told,) = rows(log, "verify")
    assert told["not_rederived"] == {str(RULES + 7): told["steps"]}
    words = run(log, "--no-json", "verify").stdout
    assert f"not re-derived (rules {RULES + 7}): {told['steps']} steps" in words


def of_other_rules(events: list[Event]) -> list[Event]:
    first = events[0]
    assert isinstance(first.body, c.DaemonStarted)
    body = c.DaemonStarted(RULES + 7, first.body.policy, first.body.boot_id, first.body.version)
    return [Event(first.seq, first.t, first.cause, first.subject, body), *events[1:]]


def test_state_is_what_the_log_folds_to(log: Path) -> None:
    with Reader(log) as reader:
        assert run(log, "state").stdout == canonical(fold(map(decode, reader.records()))).decode() + "\n"
        upto = of(c.RequestDispatched)[0]
        then = fold(map(decode, reader.records(0, upto)))
    (state,) = rows(log, "state", "--at", str(upto))
    assert state == json.loads(canonical(then))
    (empty,) = rows(log, "state", "--at", "0")
    assert (empty["seq"], empty["runners"]) == (0, {})


def test_state_for_a_person(log: Path) -> None:
    upto, runner = of(c.RequestDispatched)[0], of(c.RunnerLoad)[0]
    result = screen(log, "state", "--at", str(upto))
    assert result.code == 0
    assert result.lines[0] == f"after event {upto}: 1 runner, 0 queued, 1 running"
    assert any(
        line.split()[:6] == [f"r{runner}", "red", "ready", "1/2", "6.0", "GiB"] for line in result.lines
    )
    assert any(line.split()[1:3] == ["red", "running"] for line in result.lines)
    assert screen(log, "state", "--at", "0").lines[0] == "after event 0: 0 runners, 0 queued, 0 running"


# --- logs that cannot be opened --------------------------------------------------------------------------


def foreign(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE recipes (name TEXT)")
    connection.close()


@pytest.mark.parametrize("command", ["show", "verify", "state"])
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: None, "there is no event log at "),
        (lambda path: path.mkdir(), " is a directory"),
        (lambda path: path.touch(), " is empty"),
        (lambda path: path.write_text("models: {}\n" * 100), ": not a SQLite database"),
        (foreign, ": a SQLite database, but not an event log of runnerd"),
    ],
    ids=["missing", "directory", "empty", "text", "database"],
)
def test_what_is_no_log_exits_3(tmp_path: Path, make: Any, words: str, command: str) -> None:
    path = tmp_path / "events.db"
    make(path)
    before = path.read_bytes() if path.is_file() else b""
    done = run(path, command)
    assert done.returncode == 3
    assert done.stderr.startswith("runnerlog: ")
    assert str(path) in done.stderr
    assert words in done.stderr
    assert "--log PATH names another" in done.stderr
    assert "Traceback" not in done.stderr
    told = json.loads(done.stdout)
    assert (told["ok"], f"runnerlog: {told['error']}\n") == (False, done.stderr)
    assert run(path, "--no-json", command).stdout == ""
    assert (path.read_bytes() if path.is_file() else b"") == before


def test_a_newer_log_exits_3(log: Path) -> None:
    edit(log, lambda db: db.execute("PRAGMA user_version = 99"))
    done = run(log, "show")
    assert done.returncode == 3
    assert "the log has schema 99" in done.stderr
    assert "use a newer runnerd" in done.stderr


def test_a_log_that_may_not_be_read_exits_3(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> Reader:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(logfile, "Reader", refuse)
    result = CliRunner().invoke(runnerlog.cli, ["--log", str(log), "show"])
    assert result.exit_code == 3
    assert f"this user may not read {log}" in result.output


def test_the_log_of_this_user_is_the_default(log: Path) -> None:
    there = log.parent / "runnerd"
    there.mkdir()
    for file in log.parent.glob("events.db*"):
        file.rename(there / file.name)
    environ = {"XDG_STATE_HOME": str(log.parent), "STATE_DIRECTORY": ""}
    assert len(run(None, "show", env=environ).stdout.splitlines()) == len(story())
    assert run(None, "verify", env={"STATE_DIRECTORY": str(there)}).returncode == 0
    done = run(None, "show", env={**environ, "XDG_STATE_HOME": str(there)})
    assert done.returncode == 3
    assert f"there is no event log at {there}/runnerd/events.db" in done.stderr


# --- logs that somebody has altered ----------------------------------------------------------------------


def test_an_altered_log_is_refused_with_where(log: Path) -> None:
    edit(log, lambda db: db.execute("UPDATE events SET subject = 'q999' WHERE seq = 9"))
    (told,) = rows(log, "verify", code=1)
    assert (told["ok"], told["seq"]) == (False, 9)
    assert told["error"] == "the chain breaks at event 9: its hash does not match"
    result = screen(log, "verify")
    assert result.code == 1
    assert "the chain breaks at event 9: its hash does not match" in result.plain
    assert "intact" not in result.plain


def test_an_altered_decision_is_told_with_what_follows_from_the_facts(log: Path) -> None:
    events = story()
    seq = of(c.RunnerLoad)[0]
    body = events[seq - 1].body
    assert isinstance(body, c.RunnerLoad)
    fields = {name: getattr(body, name) for name in body.__struct_fields__}
    altered = c.RunnerLoad(**{**fields, "port": 7777})
    events[seq - 1] = Event(seq, events[seq - 1].t, events[seq - 1].cause, f"r{seq}", altered)
    rechain(log, events)
    (told,) = rows(log, "verify", code=1)
    assert told["seq"] == seq
    result = screen(log, "verify")
    assert result.code == 1
    assert f"event {seq}: " in result.plain
    assert '"port":7777' in result.plain
    assert "follows from the facts" in result.plain


def test_a_log_that_no_runnerd_has_written_is_refused_with_where(log: Path) -> None:
    """Its chain is right, and its rules are others, so that nothing is re-derived: the fold finds it."""
    events = of_other_rules(story())
    done, load = of(c.RequestCompleted)[0], of(c.RunnerLoad)[0]
    ghost = c.RequestDispatched(request="q999", runner=f"r{load}")
    events[done - 1] = Event(done, events[done - 1].t, events[done - 1].cause, "q999", ghost)
    rechain(log, events)
    (told,) = rows(log, "verify", code=1)
    assert told["seq"] == events[done - 1].cause
    assert "no runnerd has written" in told["error"]
    (told,) = rows(log, "state", code=1)
    assert told["seq"] == done
    assert screen(log, "state").lines[0].startswith(f"event {done} cannot follow: ")


def test_a_damaged_event_is_shown_up_to(log: Path) -> None:
    edit(log, lambda db: db.execute("UPDATE events SET payload = '[]' WHERE seq = 5"))
    for subjects in ([], ["red"]):
        *before, told = rows(log, "show", *subjects, code=1)
        assert all(row["seq"] < 5 for row in before)
        assert (told["ok"], told["seq"]) == (False, 5)
    result = screen(log, "show")
    assert result.code == 1
    assert "event 5" in result.lines[-2]


def test_what_was_pruned_is_a_mistake_of_usage(log: Path) -> None:
    def prune(db: sqlite3.Connection) -> None:
        db.execute("UPDATE log_base SET seq = 10, hash = (SELECT hash FROM events WHERE seq = 9)")
        db.execute("DELETE FROM events WHERE seq < 10")

    edit(log, prune)
    assert seqs(log)[0] == 10
    assert seqs(log, "--after", "9")[0] == 10
    done = run(log, "show", "--after", "3")
    assert done.returncode == 2
    assert "the log begins at event 10" in done.stderr


# --- usage and pipes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "Usage: "),
        (["shw"], "Did you mean 'show'?"),
        (["show", "--type", "runer.load"], "did you mean runner.load?"),
        (["show", "--type", "zzz"], "no event has a type that begins with 'zzz'"),
        (["show", "--after", "soon"], "'soon' is not a valid whole number"),
        (["show", "--after", "-1"], "x>=0"),
        (["show", "--limit", "0"], "x>=1"),
        (["show", "--lst", "2"], "--last"),
        (["show", "--json"], "--json comes before the command: runnerlog --json"),
        (["state", "--log", "x"], "--log comes before the command"),
        (["state", "--at", "9999"], "the log ends at event"),
        (["verify", "red"], "Path 'red' does not exist"),
    ],
)
def test_bad_usage_exits_2_and_says_what_is_right(log: Path, arguments: list[str], words: str) -> None:
    done = run(log, *arguments)
    assert done.returncode == 2, done
    assert words in done.stderr
    assert done.stdout == ""


def test_a_broken_pipe_is_silent(log: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [BIN / "runnerlog", "--log", log, "show"], stdout=write, stderr=subprocess.PIPE, text=True,
        timeout=PATIENCE_S, check=False,
    )  # fmt: skip
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")


# --- a log whose daemon lives ----------------------------------------------------------------------------


def test_a_log_while_its_daemon_lives(tmp_path: Path) -> None:
    config = f'models: {{red: {{cmd: "{ngram("--slots 2")}", memory: 50MiB, slots: 2}}}}\n'
    with daemon(tmp_path, config) as live:
        assert live.chat("red")[0] == 200
        with live.stream("red", tokens=100_000):
            (told,) = rows(live.log, "verify")
            assert told["ok"]
            (state,) = rows(live.log, "state")
            assert [runner["state"] for runner in state["runners"].values()] == ["ready"]
            assert len(state["requests"]) == 1
            assert [row["seq"] for row in rows(live.log, "show")][: told["events"]] == list(
                range(1, told["events"] + 1)
            )
            assert "red" in screen(live.log, "state").plain
        assert live.chat("red")[0] == 200


# --- what is appended meanwhile --------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [[], ["blue"], ["blue", "r6"], ["--last", "1"], ["--runners"]])
async def test_following_goes_on_with_what_is_appended(tmp_path: Path, arguments: list[str]) -> None:
    """The first events are there before it looks, the others are written while it does."""
    path = tmp_path / "events.db"
    events = story()
    async with open_store(path) as store:
        for event in events[:20]:
            store.append([event], AT + event.t)
        await store.wait(20)
        expected = seqs(path, *arguments)
        command = [str(BIN / "runnerlog"), "--log", str(path), "show", "--follow", *arguments]
        process = await trio.lowlevel.open_process(command, stdout=subprocess.PIPE)
        seen: list[int] = []
        rest = b""
        with trio.fail_after(PATIENCE_S):
            assert process.stdout is not None
            async for chunk in process.stdout:
                if not seen:
                    for event in events[20:]:
                        store.append([event], AT + event.t)
                    await store.wait(len(events))
                    later = [
                        seq
                        for seq in seqs(path, *(a for a in arguments if a not in ("--last", "1")))
                        if seq > 20
                    ]
                    expected += later
                *lines, rest = (rest + chunk).split(b"\n")
                seen += [json.loads(line)["seq"] for line in lines]
                if len(seen) >= len(expected):
                    break
        process.terminate()
        await process.wait()
    assert seen == expected
    assert seen[-1] > 20


def test_following_has_no_end(log: Path) -> None:
    assert run(log, "show", "--follow", "--until", "now").returncode == 2


async def test_following_what_is_not_there_yet_says_so_and_waits(tmp_path: Path) -> None:
    """Of an id that comes, what it is asked for; of an alias, the ids."""
    path, events = tmp_path / "events.db", story()
    late = next(e.subject for e in events[20:] if isinstance(e.body, c.RequestArrived))
    async with open_store(path) as store:
        for event in events[:20]:
            store.append([event], AT + event.t)
        await store.wait(20)
        command = [str(BIN / "runnerlog"), "--log", str(path), "show", "-f", late, "rouge"]
        process = await trio.lowlevel.open_process(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        with trio.fail_after(PATIENCE_S):
            assert process.stdout is not None and process.stderr is not None
            said = ""
            while said.count("\n") < 2:
                said += (await process.stderr.receive_some()).decode()
            for event in events[20:]:
                store.append([event], AT + event.t)
            await store.wait(len(events))
            seen, rest, expected = list[int](), b"", seqs(path, late)
            while len(seen) < len(expected):
                *lines, rest = (rest + await process.stdout.receive_some()).split(b"\n")
                seen += [json.loads(line)["seq"] for line in lines]
        process.terminate()
        await process.wait()
    assert seen == expected
    first, second = said.splitlines()
    assert first == f"runnerlog: nothing of {late} is in the log yet: waiting for it"
    assert second.startswith(
        "runnerlog: nothing of rouge is in the log yet: waiting for it; a log knows models"
    )
