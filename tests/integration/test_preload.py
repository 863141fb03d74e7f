"""Models that are loaded before the doors open: in order, together where they fit, or not at all."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from daemon.doors import bind_front, listen_front, url_of
from events import catalogue as c
from tests.integration.live import BIN, PATIENCE_S, ROOT, Live, daemon, gone, ngram

HOOKS = "hooks: {{on_startup: {{preload: [{}]}}}}\n"


def config(preload: str, budget: str = "500MiB", **models: str) -> str:
    """Models by their commands, 200 MiB each."""
    rows = "".join(f"  {id}: {{cmd: '{cmd}', memory: 200MiB}}\n" for id, cmd in models.items())
    top = f"devices: {{host: {{budget: {budget}}}}}\nmemoryHeadroom: 0\n"
    return top + HOOKS.format(preload) + "models:\n" + rows


def held(fifo: Path) -> str:
    """A runner that loads only when somebody writes into a pipe."""
    os.mkfifo(fifo)
    runner = f"{sys.executable} {ROOT / 'examples/ngram_runner.py'} --port ${{PORT}}"
    return f'sh -c "read line < {fifo}; exec {runner}"'


@contextmanager
def starting(directory: Path, text: str, until: str, *options: str) -> Iterator[Live]:
    """A daemon that has said something in its journal, and may not be ready."""
    live = Live(directory, text)
    live.options = list(options)
    live.launch()
    try:
        assert live.read_until(until), "".join(live.journal)
        yield live
    finally:
        if live.process.poll() is None:
            live.process.kill()
            live.process.wait(PATIENCE_S)
        for pid in live.leftovers():
            os.kill(pid, signal.SIGKILL)


def fails(live: Live, code: int, *words: str) -> None:
    """It ends by itself, says why, and leaves nothing behind."""
    assert live.wait() == code, "".join(live.journal)
    journal = "".join(live.journal)
    for each in words:
        assert each in journal
    assert "listening on" not in journal
    assert "Traceback" not in journal
    assert live.leftovers() == []
    assert not live.socket.exists()
    verified = live.runnerlog("verify")
    assert verified.returncode == 0, verified.stdout + verified.stderr


def loads(live: Live) -> list[str]:
    return [event.body.model for event in live.events() if isinstance(event.body, c.RunnerLoad)]


def test_models_are_loaded_together_and_in_order_before_it_listens(tmp_path: Path) -> None:
    text = config("blue, rot", red=ngram(), blue=ngram(), green=ngram())
    with daemon(tmp_path, text.replace("200MiB}\n  blue", "200MiB, aliases: [rot]}\n  blue")) as live:
        journal = "".join(live.journal)
        assert journal.index("preload: blue, red") < journal.index("preload: red is ready after")
        assert "(2 of 2)" in journal
        assert [row["model"] for row in live.get("/running")["running"]] == ["blue", "red"]
        assert live.chat("red")[0] == 200
    assert loads(live) == ["blue", "red"]
    tags = live.tags()
    assert tags.index("probe.answered") > len(tags) - 1 - tags[::-1].index("runner.load")
    asked = [event.body for event in live.events() if isinstance(event.body, c.LoadRequested)]
    assert [(each.model, each.by, each.preload) for each in asked] == [
        ("blue", "preload", True),
        ("red", "preload", True),
    ]


def test_nobody_gets_in_while_it_loads_and_another_daemon_is_told_at_once(tmp_path: Path) -> None:
    text = config("red", red=held(tmp_path / "go"))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with starting(
        tmp_path, f"listen: 127.0.0.1:{port}\n" + text, "loads red", "--listen", f":{port}"
    ) as live:
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))
        assert live.runnerctl("status").returncode == 3
        serve = [str(BIN / "runnerd"), "serve", "--config", str(live.config)]
        other = ["--socket", str(tmp_path / "o.sock"), "--log", str(tmp_path / "other/events.db")]
        for options, code, words in (
            (
                [*other, "--listen", f":{port}"],
                1,
                f"cannot listen on 127.0.0.1:{port}: Address already in use",
            ),
            ([*other[2:], "--socket", str(live.socket), "--listen", ":0"], 1, "which is starting, has"),
            ([*other[:2], "--log", str(live.log), "--listen", ":0"], 3, "is in use by pid"),
        ):
            done = subprocess.run(
                [*serve, *options], capture_output=True, text=True, timeout=PATIENCE_S, check=False
            )
            assert (done.returncode, words in done.stderr) == (code, True), done.stderr
        (tmp_path / "go").write_text("now\n")
        assert live.read_until("listening on")
        assert live.chat("red")[0] == 200
        assert live.stop() == 0
        assert live.leftovers() == []


def test_a_failed_preload_is_a_failed_start_that_leaves_nothing(tmp_path: Path) -> None:
    text = config("red, bad", red=ngram(), bad=ngram("--fail-load", "out-of-luck-and-memory"))
    with starting(tmp_path, text, "preload: red, bad") as live:
        fails(live, 1, "runnerd: preload: model 'bad' failed to load", "out-of-luck-and-memory", "--lazy")
    assert "daemon.stopped" in live.tags()


def test_lazy_opens_at_once_and_a_failure_is_a_warning(tmp_path: Path) -> None:
    fifo = tmp_path / "go"
    text = config("bad, red", red=held(fifo), bad=ngram("--fail-load", "out-of-luck-and-memory"))
    with starting(tmp_path, text, "listening on", "--lazy") as live:
        assert live.runnerctl("status").returncode == 0
        fifo.write_text("now\n")
        assert live.chat("red")[0] == 200
        assert live.read_until("W preload: model 'bad' failed to load")
        assert live.stop() == 0
        assert live.leftovers() == []
    assert loads(live) == ["bad", "red"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT], ids=lambda n: n.name)
def test_a_signal_while_it_preloads_stops_it_cleanly(tmp_path: Path, number: signal.Signals) -> None:
    text = config("red, blue", red=held(tmp_path / "go"), blue=ngram())
    with starting(tmp_path, text, "preload: blue is ready") as live:
        live.process.send_signal(number)
        fails(live, 0, f"{number.name}: stopping", "I stopped")
    assert live.tags()[-1] == "daemon.stopped"


def test_a_restart_adopts_what_was_preloaded(tmp_path: Path) -> None:
    with daemon(tmp_path, config("red, blue", red=ngram(), blue=ngram())) as live:
        live.kill()
        live.start()
        assert live.chat("blue")[0] == 200
    assert loads(live) == ["red", "blue"]


def test_a_survivor_makes_room_for_what_is_to_be_preloaded(tmp_path: Path) -> None:
    models = {"red": ngram(), "blue": ngram()}
    with daemon(tmp_path, config("red", "300MiB", **models)) as live:
        live.kill()
        live.config.write_text(config("blue", "300MiB", **models))
        live.start()
        assert live.read_until("preload: blue is ready")
        assert [row["model"] for row in live.get("/running")["running"]] == ["blue"]
    assert loads(live) == ["red", "blue"]


def test_who_survived_is_served_before_the_preloads_are_ready(tmp_path: Path) -> None:
    fifo = tmp_path / "go"
    text = config("red, slow", red=ngram(), slow=held(fifo))
    with starting(tmp_path, text, "preload: red is ready") as live:
        fifo.write_text("now\n")
        assert live.read_until("listening on")
        live.kill()
        loaded = {e.body.model: e.subject for e in live.events() if isinstance(e.body, c.RunnerLoad)}
        spawned = [e.body.process for e in live.events() if isinstance(e.body, c.ProcessSpawned)]
        slow = next(process.pid for process in spawned if process.runner == loaded["slow"])
        os.kill(slow, signal.SIGKILL)
        gone(slow)
        live.start()
        assert live.chat("red")[0] == 200
        assert [row["model"] for row in live.get("/running")["running"] if row["state"] == "ready"] == ["red"]
        fifo.write_text("now\n")
        assert live.read_until("preload: slow is ready")
        assert live.stop() == 0
    assert loads(live) == ["red", "slow", "slow"]


def test_a_preload_that_fails_ends_no_survivor(tmp_path: Path) -> None:
    models = {"red": ngram(), "bad": ngram("--fail-load", "out-of-luck-and-memory")}
    with daemon(tmp_path, config("red", **models)) as live:
        live.kill()
        live.config.write_text(config("red, bad", **models))
        live.start()
        assert live.read_until("W preload: model 'bad' failed to load")
        assert live.chat("red")[0] == 200
    assert loads(live) == ["red", "bad"]


def test_preloads_that_cannot_fit_together_end_no_survivor(tmp_path: Path) -> None:
    models = {"red": ngram(), "blue": ngram()}
    with daemon(tmp_path, config("red", "300MiB", **models)) as live:
        live.kill()
        live.config.write_text(config("red, blue", "300MiB", **models))
        live.start()
        assert "W preload: together they need 400 MiB on host" in "".join(live.journal)
        assert live.chat("red")[0] == 200
    assert loads(live) == ["red"]


def test_what_cannot_fit_together_is_refused_before_anything_is_started(tmp_path: Path) -> None:
    text = config("red, blue", "300MiB", red=ngram(), blue=ngram())
    together = "they need 400 MiB on host: red 200 MiB (as configured), blue 200 MiB (as configured); "
    with starting(tmp_path, text, "cannot be loaded together") as live:
        fails(
            live, 2, together, "the budget of host is 300 MiB: preload fewer", "raise the budget to 400 MiB"
        )
    assert not {"process.spawned", "runner.load"} & set(live.tags())
    done = subprocess.run(
        [BIN / "runnerd", "check", "--config", live.config], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr.count("\n")) == (0, 1)
    line = 1 + live.config.read_text().partition("hooks:")[0].count("\n")
    where = f"{live.config}:{line}: hooks.on_startup.preload"
    assert done.stderr.startswith(f"warning: {where}: together {together}")


def test_two_of_unknown_memory_cannot_be_preloaded_together(tmp_path: Path) -> None:
    text = config("red, blue", red=ngram(), blue=ngram()).replace(", memory: 200MiB", "")
    with starting(tmp_path, text, "cannot be loaded together") as live:
        fails(live, 2, "blue is loaded alone, since it needs an unknown amount", "give it `memory`")


def test_without_the_check_none_evicts_another(tmp_path: Path) -> None:
    text = config("red, blue", "300MiB", red=ngram(), blue=ngram())
    with starting(tmp_path, text, "preload: red, blue", "--no-memcheck") as live:
        fails(live, 1, "no room for model 'blue' beside what is preloaded: r", "(red, preloaded)")
    assert loads(live) == ["red"]


def test_lazily_what_fits_is_loaded_and_requests_may_evict_it(tmp_path: Path) -> None:
    text = config("red, blue", "300MiB", red=ngram(), blue=ngram())
    with starting(tmp_path, text, "preload: red is ready", "--lazy") as live:
        journal = "".join(live.journal)
        assert "W preload: together they need 400 MiB on host" in journal
        assert "W preload: no room for model 'blue' beside what is preloaded" in journal
        assert live.read_until("listening on")
        assert live.chat("blue")[0] == 200
        assert live.stop() == 0
    assert loads(live) == ["red", "blue"]


def test_the_address_is_taken_before_it_listens() -> None:
    with bind_front("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with pytest.raises(OSError, match=f"cannot listen on 127.0.0.1:{port}: Address already in use"):
            bind_front("127.0.0.1", port)
        listen_front(first)
        with socket.create_connection(("127.0.0.1", port)), first.accept()[0] as ours:
            ours.shutdown(socket.SHUT_RDWR)  # what closes first is what lingers
    with bind_front("127.0.0.1", port) as again:
        listen_front(again)
        assert url_of(again) == f"http://127.0.0.1:{port}"


def test_an_ipv6_address_has_brackets() -> None:
    with bind_front("::1", 0) as sock:
        assert url_of(sock) == f"http://[::1]:{sock.getsockname()[1]}"


def test_a_preloaded_runner_that_died_with_the_daemon_away_is_loaded_again(tmp_path: Path) -> None:
    with daemon(tmp_path, config("red", red=ngram())) as live:
        live.kill()
        pid = next(e.body.process.pid for e in live.events() if isinstance(e.body, c.ProcessSpawned))
        os.kill(pid, signal.SIGKILL)
        gone(pid)
        live.start()
    assert loads(live) == ["red", "red"]
