"""runnerctl on a whole daemon: every command for a person on a terminal, and for a script without one."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from daemon.control.client import Client
from tests.integration.live import BIN, PATIENCE_S, Command, Live, daemon, gone, ngram
from tests.integration.terminal import Screen, shown

LONG = "qwen2.5-coder-32b-instruct-q4_k_m"
CONFIG = f"""
devices: {{host: {{budget: 300MiB}}}}
memoryHeadroom: 0
models:
  red:
    cmd: "{ngram("--slots 2 --load-seconds 0.6 --ctx ${num_ctx}")}"
    memory: 100MiB
    slots: 2
    aliases: [rouge]
    options: {{num_ctx: 4096}}
  {LONG}:
    cmd: "{ngram("--slots 2 --tokens-per-second 20")}"
    memory: 150MiB
    slots: 2
    ttl: 600
    aliases: [gpt-4o-mini, coder]
  one: {{cmd: "{ngram("--slots 1 --tokens-per-second 20")}", memory: 50MiB, slots: 1}}
  bad: {{cmd: "{ngram("--fail-load", "no-luck-today")}", memory: 1MiB}}
"""


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """A daemon for every test here."""
    with daemon(tmp_path_factory.mktemp("runnerctl"), CONFIG) as live:
        yield live


@pytest.fixture(autouse=True)
def tidy(request: pytest.FixtureRequest) -> Iterator[None]:
    """Each test begins with nothing loaded, and nobody waiting."""
    if "live" in request.fixturenames:
        live = request.getfixturevalue("live")
        if live.process.poll() is None:
            Client([live.socket]).call("Unload", now=True, cancel=True)
    yield


def screen(live: Live, *arguments: str, columns: int = 80, env: dict[str, str] | None = None) -> Screen:
    """A command for a person."""
    return shown([BIN / "runnerctl", "--socket", live.socket, *arguments], columns=columns, env=env)


def rows(live: Live, *arguments: str, code: int = 0) -> list[dict[str, Any]]:
    """A command for a script: its JSON lines."""
    done = live.runnerctl(*arguments)
    assert done.returncode == code, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def fits(result: Screen, columns: int = 80) -> None:
    paths = ("log  ",)  # as long as they are
    assert max(len(line) for line in result.lines if not line.startswith(paths)) <= columns, result.plain


def heading(result: Screen) -> list[str]:
    return next(line for line in result.lines if line.isupper() and "  " in line).split()


# --- what there is ---------------------------------------------------------------------------------------


def test_status(live: Live) -> None:
    assert live.runnerctl("load", "red").returncode == 0
    result = screen(live, "status")
    assert result.code == 0
    fits(result)
    assert result.lines[0].startswith(f"runnerd 0.1.0, pid {live.process.pid}, up ")
    assert any(line.startswith("requests  0 running, 0 queued (at most 512)") for line in result.lines)
    assert "ready     yes" in result.lines
    assert "host    100 MiB  300 MiB  200 MiB  ███████░░░░░░░░░░░░░" in result.plain
    assert live.chat("red")[0] == 200
    assert any(
        line.startswith("          ") and " completed" in line for line in screen(live, "status").lines
    )
    (reply,) = rows(live, "status")
    assert (reply["runners"], reply["pid"], reply["log"]) == (1, live.process.pid, str(live.log))
    assert reply["devices"][0]["held_bytes"] == 100 << 20


@pytest.mark.parametrize("columns", [80, 200, 40])
def test_lists_fit_the_terminal_and_keep_what_matters(live: Live, columns: int) -> None:
    for model in ("red", LONG):
        assert live.runnerctl("load", model).returncode == 0
    for command, least in (
        ("models", ["MODEL", "STATE", "SLOTS"]),
        ("ps", ["RUNNER", "MODEL", "STATE", "SLOTS"]),
    ):
        result = screen(live, command, columns=columns)
        assert result.code == 0
        fits(result, columns)
        assert heading(result)[: len(least)] == least
        if columns != 80:  # there the name is cut where that keeps a column
            assert ("…" in result.plain) == (columns == 40)
            assert (LONG in result.plain) == (columns == 200)
    assert {"PID", "PORT"} < set(heading(screen(live, "ps", columns=200)))
    assert "gpt-4o-mini coder" in screen(live, "models", columns=200).plain


def test_numbers_are_aligned_on_the_right(live: Live) -> None:
    result = screen(live, "models", columns=100)
    table = result.lines[: 1 + 4]
    end = table[0].index("MEMORY") + len("MEMORY")
    assert [line[:end].split()[-2:] for line in table[1:]] == [
        ["100", "MiB"], ["150", "MiB"], ["50", "MiB"], ["1", "MiB"]
    ]  # fmt: skip
    assert all(line[end - 3 : end] == "MiB" for line in table[1:])


def test_lists_for_scripts(live: Live) -> None:
    assert rows(live, "ps") == []
    assert rows(live, "queue") == []
    assert [row["id"] for row in rows(live, "--json", "models")] == ["red", LONG, "one", "bad"]
    assert live.runnerctl("load", "red").returncode == 0
    (runner,) = rows(live, "ps")
    assert (runner["model"], runner["state"], runner["slots"]) == ("red", "ready", 2)
    os.kill(runner["pid"], 0)
    assert rows(live, "models")[0]["runners"] == [runner["id"]]


def test_empty_lists_say_so(live: Live) -> None:
    assert screen(live, "ps").lines[0] == "no runners"
    assert screen(live, "queue").lines[0] == "no requests"


def test_the_queue_shows_who_runs_and_who_waits(live: Live) -> None:
    with live.stream("one", tokens=100_000):
        waiter = threading.Thread(target=live.chat, args=("one",), kwargs={"max_tokens": 1})
        waiter.start()
        wait_for(live, "queued", 1)
        result = screen(live, "queue")
        fits(result)
        running, waiting = rows(live, "queue")
    waiter.join(PATIENCE_S)
    assert (running["state"], waiting["state"], waiting["position"]) == ("dispatched", "queued", 1)
    assert (running["reason"], waiting["reason"]) == ("", f"{running['runner']} is busy")
    assert [line.split()[:3] for line in result.lines[1:3]] == [
        [running["id"], "one", "running"], [waiting["id"], "one", "queued"]
    ]  # fmt: skip


def wait_for(live: Live, field: str, number: int) -> None:
    """Wait until the status says so, by the events that change it."""
    client = Client([live.socket])
    for _ in Client([live.socket]).calls("Watch", after=0):
        if client.call("Status")[field] == number:
            return


# --- what to do ------------------------------------------------------------------------------------------


def test_loading_shows_its_progress(live: Live) -> None:
    result = screen(live, "load", "red")
    assert result.code == 0
    assert "red: loading, " in result.text
    assert "red is ready (r" in result.lines[-2]
    assert "usually" in screen(live, "load", "-o", "num_ctx=2048", "rouge").text


def test_loading_for_a_script_tells_each_stage_once(live: Live) -> None:
    stages = rows(live, "load", "red")
    assert [stage["done"] for stage in stages] == [False] * (len(stages) - 1) + [True]
    assert len({(s["state"], s["runner"], s["done"]) for s in stages}) == len(stages) <= 4
    assert stages[-1]["state"] == "ready"
    (again,) = rows(live, "--json", "load", "red")
    assert (again["done"], again["runner"]) == (True, stages[-1]["runner"])


def test_a_failed_load_exits_1_with_the_runners_last_words(live: Live) -> None:
    done = live.runnerctl("load", "bad")
    assert done.returncode == 1
    assert "no-luck-today" in done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert (told["ok"], told["error"], told["reason"]) == (
        False,
        "io.runnerd.Control.OperationFailed",
        "load_failed",
    )
    result = screen(live, "load", "bad")
    assert result.code == 1
    assert "no-luck-today" in result.plain


def test_unloading(live: Live) -> None:
    for model in ("red", "one"):
        assert live.runnerctl("load", model).returncode == 0
    red, one = rows(live, "ps")
    assert rows(live, "unload", "red") == [{"ok": True}]
    gone(red["pid"])
    assert screen(live, "unload", "--runner", one["id"]).lines[0] == f"{one['id']} unloaded"
    gone(one["pid"])
    assert live.runnerctl("load", "red").returncode == 0
    assert screen(live, "unload", "--all").lines[0] == "everything unloaded"
    assert rows(live, "ps") == []
    assert rows(live, "unload", "red") == [{"ok": True}]


def test_unload_now_does_not_wait_and_cancel_fails_who_waits(live: Live) -> None:
    answers: list[int] = []
    with live.stream("one", tokens=100_000):
        waiter = threading.Thread(target=lambda: answers.append(live.chat("one")[0]))
        waiter.start()
        wait_for(live, "queued", 1)
        assert rows(live, "unload", "one", "--now", "--cancel") == [{"ok": True}]
        waiter.join(PATIENCE_S)
    assert answers == [503]
    assert rows(live, "queue") == []


def test_unload_leaves_who_waits_in_the_queue(live: Live) -> None:
    answers: list[int] = []
    with live.stream("one", tokens=100_000):
        waiter = threading.Thread(target=lambda: answers.append(live.chat("one", max_tokens=1)[0]))
        waiter.start()
        wait_for(live, "queued", 1)
        assert rows(live, "unload", "one", "--now") == [{"ok": True}]
    waiter.join(PATIENCE_S)
    assert answers == [200]


def test_cancelling_a_queued_and_a_running_request(live: Live) -> None:
    answers: list[int] = []
    with live.stream("one", tokens=100_000) as stream:
        waiter = threading.Thread(target=lambda: answers.append(live.chat("one")[0]))
        waiter.start()
        wait_for(live, "queued", 1)
        running, waiting = rows(live, "queue")
        assert rows(live, "cancel", waiting["id"]) == [{"ok": True}]
        waiter.join(PATIENCE_S)
        assert screen(live, "cancel", running["id"]).lines[0] == f"{running['id']} cancelled"
        while stream.readline():  # it ends, cut or not
            pass
    assert answers == [503]
    assert "request.cancelled" in live.tags(running["id"])


def test_stopping(tmp_path: Path) -> None:
    with daemon(tmp_path, CONFIG) as live:
        rows(live, "load", "red")
        assert screen(live, "stop").lines[:2] == ["stopping (drain)", "stopped"]
        assert live.process.wait(PATIENCE_S) == 0, "it has stopped, or is about to exit"
        assert live.wait() == 0
        done = live.runnerctl("status")
        assert done.returncode == 3


# --- watching --------------------------------------------------------------------------------------------


def test_watching_for_a_script_is_one_json_line_an_event(live: Live) -> None:
    command: Command = [BIN / "runnerctl", "--socket", live.socket, "watch", "--after", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        events = [json.loads(process.stdout.readline()) for _ in range(5)]
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE_S) == 130
    assert [event["seq"] for event in events] == [1, 2, 3, 4, 5]
    assert list(events[0]) == ["seq", "at_ns", "t_ns", "type", "version", "cause", "subject", "payload"]


def test_watching_for_a_person_is_plain_words_and_ctrl_c_is_quiet(live: Live) -> None:
    interrupted = threading.Event()

    def react(text: str, pid: int) -> None:
        if text.count("\n") > 4 and not interrupted.is_set():
            interrupted.set()
            os.kill(pid, signal.SIGINT)

    result = shown([BIN / "runnerctl", "--socket", live.socket, "watch", "--after", "0"], react=react)
    assert result.code == 130
    assert "Traceback" not in result.plain
    assert "Abort" not in result.plain
    fits(result)
    day, *lines = result.lines
    assert len(day) == len("2026-01-31")
    assert lines[0].endswith("     1  runnerd 0.1.0 started")
    assert lines[1].endswith("     2  configuration: 4 models")


def test_watch_refuses_what_no_log_has(live: Live) -> None:
    done = live.runnerctl("watch", "--after", "99999999")
    assert done.returncode == 1
    assert "the log ends at event" in done.stderr
    assert live.runnerctl("watch", "--after", "-1").returncode == 2
    assert live.runnerctl("watch", "--after", "soon").returncode == 2


def test_a_watch_ends_with_the_daemon(tmp_path: Path) -> None:
    with daemon(tmp_path, CONFIG) as live:
        command: Command = [BIN / "runnerctl", "--socket", live.socket, "watch", "--after", "0"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            process.stdout.readline()
            assert live.stop() == 0
            seen, errors = process.communicate(timeout=PATIENCE_S)
            assert process.returncode == 3
            assert json.loads(seen.splitlines()[-2])["type"] == "daemon.stopped"
    assert "the daemon closed the connection" in errors


# --- errors ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["load", "rad"], "no model 'rad'; did you mean red or bad?"),
        (["load", "ruge"], "no model 'ruge'; did you mean rouge?"),
        (["load", "zzzzz"], "no model 'zzzzz'; runnerctl models lists them"),
        (["unload", "coderr"], "no model 'coderr'; did you mean coder?"),
        (["unload", "--runner", "r999999"], "no runner 'r999999'; runnerctl ps lists them"),
        (["cancel", "q999999"], "no request 'q999999' is queued or running; runnerctl queue lists them"),
        (
            ["load", "-o", "num_ctx=many", "red"],
            "--option num_ctx: the model has no such launch option, or it",
        ),
        (["load", "-o", "seed=1", "red"], "--option seed: the model has no such launch option"),
    ],
)
def test_a_refusal_exits_1_and_says_what_next(live: Live, arguments: list[str], words: str) -> None:
    done = live.runnerctl(*arguments)
    assert done.returncode == 1
    assert done.stderr.startswith(f"runnerctl: {words}")
    (told,) = [json.loads(line) for line in done.stdout.splitlines()]
    assert told["ok"] is False
    assert "." in told["error"]
    result = screen(live, *arguments)
    assert result.code == 1
    assert words in result.plain
    assert "{" not in result.plain


@pytest.mark.parametrize(
    "arguments",
    [[], ["nope"], ["load"], ["load", "red", "blue"], ["unload"], ["unload", "red", "--all"], ["cancel"],
     ["load", "-o", "num_ctx", "red"], ["stop", "gently"], ["status", "--loud"], ["--socket"]],
)  # fmt: skip
def test_bad_usage_exits_2(tmp_path: Path, arguments: list[str]) -> None:
    done = subprocess.run(
        [BIN / "runnerctl", *arguments], capture_output=True, text=True, timeout=PATIENCE_S, check=False,
        env={**os.environ, "RUNNERD_SOCKET": str(tmp_path / "none")},
    )  # fmt: skip
    assert done.returncode == 2, done
    assert "Error: " in done.stderr or "Usage: " in done.stderr


def run_at(env: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    environ = {k: v for k, v in os.environ.items() if k not in ("RUNNERD_SOCKET", "XDG_RUNTIME_DIR")}
    command: Command = [BIN / "runnerctl", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=PATIENCE_S, check=False, env={**environ, **env}
    )


def test_an_unreachable_daemon_exits_3_and_says_where_it_was_looked_for(tmp_path: Path) -> None:
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(tmp_path / "stale.sock"))
    stale.close()
    done = run_at({}, "--socket", str(tmp_path / "stale.sock"), "status")
    assert done.returncode == 3
    assert f"{tmp_path}/stale.sock: nobody listens there any more" in done.stderr
    assert "runnerd serve" in done.stderr
    assert json.loads(done.stdout)["error"] == "unreachable"
    done = run_at({"RUNNERD_SOCKET": str(tmp_path / "none.sock")}, "ps")
    assert f"{tmp_path}/none.sock: there is no such socket" in done.stderr
    done = run_at({"XDG_RUNTIME_DIR": str(tmp_path)}, "load", "red")
    assert done.returncode == 3
    assert "/run/runnerd/control.sock" in done.stderr
    assert f"{tmp_path}/runnerd/control.sock" in done.stderr
    on_terminal = shown([BIN / "runnerctl", "--socket", tmp_path / "none.sock", "load", "red"])
    assert on_terminal.lines[0] == "runnerctl: no daemon answers"
    assert "{" not in on_terminal.plain


def test_the_socket_can_come_from_the_environment(live: Live) -> None:
    assert run_at({"RUNNERD_SOCKET": str(live.socket)}, "status").returncode == 0


# --- terminals and pipes ---------------------------------------------------------------------------------


def test_colours_only_on_a_terminal_and_not_with_no_color(live: Live) -> None:
    assert live.runnerctl("load", "red").returncode == 0
    assert "\x1b[" in screen(live, "ps").text
    assert "\x1b[" not in screen(live, "ps", env={"NO_COLOR": "1"}).text
    assert "\x1b[" not in screen(live, "status", env={"NO_COLOR": "1"}).text
    assert "\x1b" not in live.runnerctl("ps").stdout


def test_json_on_a_terminal_when_asked_for(live: Live) -> None:
    result = screen(live, "--json", "models")
    assert [json.loads(line)["id"] for line in result.text.splitlines()] == ["red", LONG, "one", "bad"]


@pytest.mark.parametrize(
    "command",
    [["models"], ["ps"], ["queue"], ["status"], ["load", "one"], ["unload", "red"], ["load", "rad"]],
)
def test_no_json_is_what_a_person_reads_without_a_terminal(live: Live, command: list[str]) -> None:
    assert live.runnerctl("load", "one").returncode == 0
    done = live.runnerctl("--no-json", *command)
    seen = screen(live, *command, env={"NO_COLOR": "1"})
    assert done.returncode == seen.code == (command == ["load", "rad"])
    ours, theirs = (  # what a number of seconds is depends on when it is asked for
        [
            re.sub(r"r?\d+(\.\d+)?( ms| s| min)?", "0", line)
            for line in text.splitlines()
            if line and "asking" not in line
        ]
        for text in (done.stdout + done.stderr, seen.plain)
    )
    assert [line.split() for line in theirs][-len(ours) :] == [line.split() for line in ours]
    assert "{" not in done.stdout
    assert "\x1b" not in done.stdout


def test_no_json_shows_events_in_plain_words(live: Live) -> None:
    command: Command = [BIN / "runnerctl", "--socket", live.socket, "--no-json", "watch", "--after", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        day, first = process.stdout.readline(), process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE_S) == 130
    assert len(day) == len("2026-01-31\n")
    assert first.endswith("     1  runnerd 0.1.0 started\n")


@pytest.mark.parametrize("arguments", [["watch", "--after", "0"], ["models"]])
def test_a_broken_pipe_is_silent(live: Live, arguments: list[str]) -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [BIN / "runnerctl", "--socket", live.socket, *arguments],
        stdout=write, stderr=subprocess.PIPE, text=True, timeout=PATIENCE_S, check=False,
    )  # fmt: skip
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")


def test_it_brings_nothing_along_that_is_slow() -> None:
    """It starts as fast as its imports do: rich comes with the first table, the rest is the daemon's."""
    script = "import sys, daemon.cli.runnerctl; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "click" in loaded
    assert not loaded & {
        "rich",
        "trio",
        "sqlalchemy",
        "aiosqlite",
        "sqlite3",
        "transitions",
        "yaml",
        "asyncio",
    }


# --- logs -------------------------------------------------------------------------------------------------


def test_logs_of_the_daemon_and_of_a_model(live: Live) -> None:
    rows(live, "load", "red")
    lines = [row["line"] for row in rows(live, "logs", "rouge")]
    assert any("load: 100" in line for line in lines) and not any("listening on" in line for line in lines)
    assert any("listening on" in row["line"] for row in rows(live, "logs", "--daemon"))
    everything = screen(live, "logs").text
    assert "listening on" in everything and "load: 100" in everything
    rows(live, "unload", "red")
    assert any("load: 100" in row["line"] for row in rows(live, "logs", "red")), "of what has ended"
    rows(live, "logs", "no-such-model", code=1)
    rows(live, "logs", "red", "--daemon", code=2)


def test_logs_are_followed(live: Live) -> None:
    command = [str(BIN / "runnerctl"), "--socket", str(live.socket), "--json", "logs", "-f"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as follower:
        late = threading.Timer(PATIENCE_S, follower.kill)
        late.start()
        try:
            assert follower.stdout is not None
            lines = (json.loads(line)["line"] for line in follower.stdout)
            next(lines)
            rows(live, "load", "red")
            assert next(line for line in lines if "loads red" in line)
            assert next(line for line in lines if "load: 100" in line)
        finally:
            late.cancel()
            follower.kill()
