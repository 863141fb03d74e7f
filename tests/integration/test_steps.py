"""`runnerlog replay` and `diff`: printed, as JSON lines, and on a terminal, key by key."""

from __future__ import annotations

import json
import os
import random
import re
import signal
from pathlib import Path

import pytest

from daemon.cli.log_replay import change_words
from daemon.explain import steps as steps_module
from daemon.explain.changes import diff
from daemon.explain.steps import Change, Glance, Step, Steps, changes, glance
from events import catalogue as c
from events.catalogue import Event
from events.reader import CursorPruned, Reader
from statemachines.replay import fold
from statemachines.replay import steps as in_steps
from statemachines.state import canonical
from tests.integration import test_runnerlog
from tests.integration.live import BIN, Command
from tests.integration.terminal import Screen, shown
from tests.integration.test_runnerlog import of, rows, run, screen
from tests.integration.test_verify import edit, rechain, story

log = test_runnerlog.log
"""The fixture: a log of two models that take turns."""

CLEAR = "\x1b[H"
WHOLE = "\x1b[J"


def frames(text: str) -> list[str]:
    """The screens that were drawn, one after the other."""
    parts = [part.split(WHOLE)[0] for part in text.split(CLEAR)[1:]]
    return [part.replace("\x1b[K", "") for part in parts]


def stepped(
    log: Path, keys: list[str], *arguments: str, columns: int = 80, lines: int = 24
) -> tuple[Screen, list[str]]:
    """`replay --step`, with one of these keys for each screen that is drawn, then q."""
    left = [*keys, "q"]
    drawn = 0

    def react(text: str, pid: int) -> str | None:
        nonlocal drawn
        if not text.endswith(WHOLE) or text.count(CLEAR) == drawn or not left:
            return None
        drawn = text.count(CLEAR)
        return left.pop(0)

    command: Command = [BIN / "runnerlog", "--log", log, "replay", "--step", *arguments]
    seen = shown(command, columns=columns, lines=lines, react=react)
    return seen, frames(seen.text)


# --- replay, printed -------------------------------------------------------------------------------------


def test_replay_prints_each_step_and_what_it_changes(log: Path) -> None:
    done = run(log, "--no-json", "replay", env={"COLUMNS": "80"})
    assert done.returncode == 0
    assert len([line for line in done.stdout.splitlines() if re.match(r"\d\d:\d\d:", line)]) == len(story())
    load = of(c.RunnerLoad)[0]
    assert f"~ r{load}: not there → loading 0/2" in done.stdout
    assert "~ host: 0 B held → 6.0 GiB" in done.stdout
    assert "~ blue: makes room" in done.stdout


def test_replay_for_a_script_is_one_line_a_step(log: Path) -> None:
    told = rows(log, "replay")
    assert [row["seq"] for row in told] == [step[0].seq for step in in_steps(story())]
    assert [e["seq"] for row in told for e in row["events"]] == [event.seq for event in story()]
    some = [row for row in told if row["events"][-1]["seq"] >= 5 and row["seq"] <= 9]  # whole steps
    assert rows(log, "replay", "--from", "5", "--to", "9") == some


def test_replay_of_a_subject_is_the_steps_about_it(log: Path) -> None:
    runner = f"r{of(c.RunnerLoad)[1]}"
    told = rows(log, "replay", runner)
    assert told and all(runner in json.dumps(row["events"]) for row in told)
    for subject in ("r999", "bleu"):
        (error,) = rows(log, "replay", subject, code=1)
        assert (error["error"], error["subject"]) == ("io.runnerd.Control.SubjectNotFound", subject)
        assert error["nearest"] == (["blue"] if subject == "bleu" else [])
    done = run(log, "--no-json", "replay", "blue", "--to", "2")
    assert (done.returncode, done.stdout) == (1, "no step is about blue in this part of the log\n")


# --- the steps themselves --------------------------------------------------------------------------------


def test_going_back_and_forth_gives_the_states_of_the_log(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps_module, "KEPT_EVERY", 3)
    monkeypatch.setattr(steps_module, "KEPT", 4)
    events, chance = story(), random.Random(5)
    with Reader(log) as reader:
        there = Steps(reader, 0, len(events))
        for _ in range(200):
            seq = chance.randrange(len(events) + 1)
            assert canonical(there.state(seq)) == canonical(fold(events[:seq])), seq


def test_the_steps_are_those_of_the_log_in_both_directions(log: Path) -> None:
    firsts = [step[0].seq for step in in_steps(story())]
    with Reader(log) as reader:
        there = Steps(reader, 0, len(story()))
        forth, step = list[int](), there.next(None)
        last: Step | None = None
        while step is not None:
            forth.append(step.first)
            last, step = step, there.next(step)
        assert forth == firsts
        back = []
        while last is not None:
            back.append(last.first)
            last = there.previous(last)
        assert back == firsts[::-1]
        for seq in range(1, len(story()) + 1):
            near = there.nearest(seq)
            assert near is not None and near.first <= seq <= near.last


def test_a_change_is_one_in_words_too(log: Path) -> None:
    told = [line.strip() for line in run(log, "--no-json", "replay").stdout.splitlines() if " ~ " in line]
    assert told and not [line for line in told if same(line.partition(": ")[2])]
    for row in rows(log, "replay"):
        assert all(each["before"] != each["after"] for each in row["changes"])


def same(change: str) -> bool:
    """Whether what is on both sides of the arrow is the same."""
    before, arrow, after = change.partition(" → ")
    return bool(arrow) and before.removesuffix(" held") == after


def test_what_grows_by_little_is_no_change_for_a_person() -> None:
    was, now = (
        Change("memory", "host", str(6 << 30), str((6 << 30) + 1)),
        Change("memory", "host", "0", "1024"),
    )
    assert change_words(was) == "" and change_words(now) == "host: 0 B held → 1 KiB"
    before = Glance({"r1": ("red", "idle", "0/2", 6 << 30)}, {}, 0, {}, (), (), ())
    after = Glance({"r1": ("red", "idle", "0/2", 7 << 30)}, {}, 0, {}, (), (), ())
    assert list(changes(before, after)) == [Change("runner", "r1", "idle 0/2, 6.0 GiB", "idle 0/2, 7.0 GiB")]


def test_what_a_step_changes_is_nothing_where_nothing_is_different(log: Path) -> None:
    state = fold(story())
    assert not list(changes(glance(state), glance(state)))


# --- on a terminal ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("columns", "lines"), [(80, 24), (120, 40), (50, 12)])
def test_a_walk_through_the_log(log: Path, columns: int, lines: int) -> None:
    seen, drawn = stepped(log, ["n", "n", " ", "p", "G", "g"], columns=columns, lines=lines)
    assert seen.code == 0
    firsts = [step[0].seq for step in in_steps(story())]
    asked = [firsts[i] for i in (0, 1, 2, 3, 2, -1, 0)]
    assert [int(re.findall(r"events? (\d+)", frame)[0]) for frame in drawn] == asked
    for frame in drawn:
        assert len(frame.split("\r\n")) <= lines
        assert max(map(len, frame.split("\r\n"))) <= columns


def test_the_state_stands_beside_the_step(log: Path) -> None:
    load = of(c.RunnerLoad)[0]
    _, drawn = stepped(log, ["j", *str(load), "\r"])
    assert f"* r{load}  red  loading" in drawn[-1]
    assert "* host: 6.0 GiB held of 8.0 GiB" in drawn[-1]


def test_search_and_what_is_not_there(log: Path) -> None:
    ready = of(c.ProbeAnswered)[0]
    _, drawn = stepped(log, ["/", *"HEALTHY", "\r", "/", *"zeppelin", "\r", "x", "j", *"soon", "\r"])
    assert any(re.search(rf"events? {ready}\b", frame) for frame in drawn)
    assert any("'zeppelin' is not in what comes" in frame for frame in drawn)
    assert any("'x' is no key here" in frame for frame in drawn)
    assert "'soon' is none of" in drawn[-1]


def test_the_ends_of_the_log_are_said(log: Path) -> None:
    _, drawn = stepped(log, ["p", "G", "n"])
    assert "this is the first step" in drawn[1]
    assert "this is the last step" in drawn[3]
    _, drawn = stepped(log, ["j", *"99999", "\r", "j", *"0", "\r"])
    assert any("there is nothing later: this is the last step" in frame for frame in drawn)
    assert "there is nothing earlier: this is the first step" in drawn[-1]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_leaves_the_terminal_as_it_was(log: Path, number: signal.Signals) -> None:
    sent = False

    def react(text: str, pid: int) -> None:
        nonlocal sent
        if WHOLE in text and not sent:
            sent = True
            os.kill(pid, number)

    seen = shown([BIN / "runnerlog", "--log", log, "replay", "--step"], react=react)
    assert seen.code == 128 + number
    assert seen.text.endswith("\x1b[?25h\x1b[?1049l")
    assert "Traceback" not in seen.text


def test_without_a_terminal_it_is_printed(log: Path) -> None:
    assert run(log, "--no-json", "replay", "--step").stdout == run(log, "--no-json", "replay").stdout


# --- diff ------------------------------------------------------------------------------------------------


def test_diff_names_what_is_different(log: Path) -> None:
    red, blue = of(c.RunnerLoad)[:2]
    (told,) = rows(log, "diff", str(of(c.RequestDispatched)[0]), str(of(c.RequestDispatched)[1]))
    assert told["runners"] == [
        {"runner": f"r{red}", "model": "red", "before": "busy", "after": "", "reason": "evicted"},
        {"runner": f"r{blue}", "model": "blue", "before": "", "after": "busy", "reason": ""},
    ]
    assert (told["arrived"], told["ended"], told["passed"]) == (1, {"completed": 1}, 0)
    assert told["before"]["running"] == told["after"]["running"] == 1
    assert list(told["requests_gone"].values()) == ["completed"]


def test_diff_is_the_same_in_either_order_and_nothing_of_one_moment(log: Path) -> None:
    assert rows(log, "diff", "3", "20") == rows(log, "diff", "20", "3")
    seen = screen(log, "diff", "7", "7")
    assert (
        ": 0 events in" in seen.plain.replace("\n", " ")
        and "Nothing that is shown here has changed." in seen.plain
    )


def test_diff_of_everything_begins_with_nothing(log: Path) -> None:
    (told,) = rows(log, "diff", "0", str(len(story())))
    assert told["before"]["memory"] == []
    assert {each["what"] for each in told["models"]} == {"added"}
    counted = [len(of(c.RequestArrived)), len(of(c.RequestCompleted)), len(of(c.RunnerLoad))]
    came = len([r for r in told["runners"] if not r["before"]])
    assert [told["arrived"], told["ended"]["completed"], told["passed"] + came] == counted


@pytest.mark.parametrize("columns", [80, 45])
def test_diff_for_a_person_fits(log: Path, columns: int) -> None:
    seen = screen(log, "diff", "1", str(len(story())), columns=columns)
    assert seen.code == 0
    assert max(map(len, seen.lines)) <= columns


def test_diff_cannot_look_before_the_log_begins(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Reader(log) as reader:
        monkeypatch.setattr(reader, "base", type(reader.base)(reader.log_id, 0, 9, b""))
        with pytest.raises(CursorPruned):
            diff(reader, 3, 20)


# --- logs good and bad -----------------------------------------------------------------------------------

COMMANDS = [
    ["why", "r7"],
    ["why", "red"],
    ["why-not", "red"],
    ["diff", "1", "20"],
    ["replay"],
    ["replay", "red"],
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_no_log_and_a_damaged_one_are_said(log: Path, command: list[str]) -> None:
    assert run(log.parent / "none.db", *command).returncode == 3
    edit(log, lambda db: db.execute("UPDATE events SET payload = '{}' WHERE seq = 5"))
    done = run(log, *command)
    assert (done.returncode, "Traceback" in done.stderr) == (1, False)
    assert json.loads(done.stdout.splitlines()[-1])["seq"] == 5


@pytest.mark.parametrize("command", [each for each in COMMANDS if each[0] != "replay"], ids=" ".join)
def test_a_log_that_no_runnerd_has_written_is_said(log: Path, command: list[str]) -> None:
    events = story()
    i = next(i for i, event in enumerate(events) if isinstance(event.body, c.RequestDispatched))
    old = events[i]
    body = c.RequestDispatched("q999999", "r999999")
    events[i] = Event(old.seq, old.t, old.cause, "q999999", body)
    rechain(log, events)
    done = run(log, *command)
    assert (done.returncode, "Traceback" in done.stderr) == (1, False)
    assert f"event {old.seq} cannot follow" in done.stdout


@pytest.mark.parametrize("name", ["zebra", "r999", "q1", "o5", "r0", "", "red?", "\x1b[31m"])
def test_a_name_that_the_log_does_not_have(log: Path, name: str) -> None:
    near = ["red"] if name == "red?" else []
    errors = (("why", "SubjectNotFound", "subject"), ("why-not", "ModelNotFound", "model"))
    for command, error, field in errors:
        done = run(log, command, name)
        assert (done.returncode, "Traceback" in done.stderr, "\x1b" in done.stderr) == (1, False, False)
        assert done.stderr.startswith("runnerlog: the ")
        told = json.loads(done.stdout)
        assert told == {"ok": False, "error": f"io.runnerd.Control.{error}", field: name, "nearest": near}
        done = run(log, "--no-json", command, name)
        assert (done.returncode, done.stdout) == (1, "")


def test_a_runner_is_told_as_far_as_was_known_by_a_moment(log: Path) -> None:
    load, ready = of(c.RunnerLoad)[0], of(c.ProbeAnswered)[0]
    (told,) = rows(log, "why", f"r{load}", "--at", str(load))
    assert "is loading" in told["summary"] and told["lines"][-1]["seq"] == load
    (told,) = rows(log, "why", f"r{load}", "--at", str(ready))
    assert "is loaded" in told["summary"] and told["lines"][-1]["seq"] == ready


@pytest.mark.parametrize("kind", [c.RequestArrived, c.RunnerLoad, c.ConfigChanged])
def test_what_had_not_come_by_a_moment_is_told_with_when_it_came(log: Path, kind: type[c.Payload]) -> None:
    seq = of(kind)[0]
    subject = story()[seq - 1].subject or "red"
    done = run(log, "why", subject, "--at", str(seq - 1))
    words = f"there was no {subject} yet: it came with event {seq}, at 2023-11-1"
    assert (done.returncode, words in done.stderr) == (1, True)
    assert run(log, "why", subject, "--at", str(seq)).returncode == 0
    if kind is c.ConfigChanged:
        done = run(log, "why-not", subject, "--at", str(seq - 1))
        assert (done.returncode, words in done.stderr) == (1, True)


def test_a_model_at_a_time_is_told_with_what_came_after(log: Path) -> None:
    """At three minutes past it was loaded; it had to go a little later: that is what is asked."""
    ready = of(c.ProbeAnswered)[0]
    (told,) = rows(log, "why", "red", "--at", str(ready))
    assert told["summary"].startswith("red was loaded then, as ")
    assert "later, " in told["summary"] and "to make room for blue" in told["summary"]
    (told,) = rows(log, "why", "blue", "--at", str(ready))
    assert told["summary"].startswith("blue was not loaded then: no runner of it had been there since")
    assert told["absent"]["reason"] == "claimed"
