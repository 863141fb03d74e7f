"""The whole daemon, as its users meet it."""

from __future__ import annotations

import http.client
import os
import signal
import threading
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest

from events import catalogue as c
from tests.integration.live import PATIENCE_S, Live, daemon, gone, ngram

TWO = f"""
devices: {{host: {{budget: 300MiB}}}}
memoryHeadroom: 0
models:
  red: {{cmd: "{ngram("--slots 2")}", memory: 200MiB, slots: 2, aliases: [rouge]}}
  blue: {{cmd: "{ngram("--slots 2")}", memory: 200MiB, slots: 2}}
"""


def at_once(live: Live, models: list[str], **more: Any) -> list[int]:
    """Ask for all of them at the same time; their statuses."""
    statuses = [0] * len(models)

    def ask(i: int, model: str) -> None:
        statuses[i] = live.chat(model, **more)[0]

    threads = [threading.Thread(target=ask, args=(i, model)) for i, model in enumerate(models)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    return statuses


def test_two_models_share_memory_for_one(tmp_path: Path) -> None:
    with daemon(tmp_path, TWO) as live:
        assert at_once(live, ["red", "blue", "red", "blue", "rouge", "red", "blue", "blue"]) == [200] * 8
        assert [row["id"] for row in live.get("/v1/models")["data"]] == ["red", "blue"]
    loaded: set[str] = set()
    for event in live.events():
        if isinstance(event.body, c.RunnerLoad):
            loaded.add(event.subject)
        elif isinstance(event.body, c.RunnerUnloaded):
            loaded.remove(event.subject)
        assert len(loaded) <= 1
    assert live.tags().count("request.completed") == 8
    assert live.tags()[-1] == "daemon.stopped"


def test_many_first_requests_cause_one_load(tmp_path: Path) -> None:
    with daemon(tmp_path, TWO) as live:
        assert at_once(live, ["red"] * 12) == [200] * 12
    assert live.tags().count("runner.load") == 1


def test_a_failed_load_answers_with_the_runners_last_words_and_cools_down(tmp_path: Path) -> None:
    command = ngram("--fail-load", "out-of-luck-and-memory")
    with daemon(tmp_path, f"models: {{bad: {{cmd: '{command}', memory: 1MiB}}}}") as live:
        status, body, _ = live.chat("bad")
        assert status == 502
        assert "out-of-luck-and-memory" in body["error"]["message"]
        status, body, headers = live.chat("bad")
        assert status == 503
        assert int(headers["Retry-After"]) >= 1
        assert body["error"]["code"] == "cooling_down"


def test_a_command_that_does_not_exist_is_a_failed_load(tmp_path: Path) -> None:
    config = "models: {bad: {cmd: '/no/such/llama-server --port ${PORT}', memory: 1MiB}}"
    with daemon(tmp_path, config) as live:
        status, body, _ = live.chat("bad")
        assert status == 502
        assert "/no/such/llama-server" in body["error"]["message"]


def test_an_unknown_model_is_told_apart(tmp_path: Path) -> None:
    with daemon(tmp_path, TWO) as live:
        status, body, _ = live.chat("green")
        assert (status, body["error"]["code"]) == (404, "model_not_found")


def test_a_client_that_leaves_in_mid_stream_gives_its_slot_back(tmp_path: Path) -> None:
    config = (
        f"models: {{one: {{cmd: '{ngram('--slots 1 --tokens-per-second 50')}', memory: 1MiB, slots: 1}}}}"
    )
    with daemon(tmp_path, config) as live:
        with live.stream("one", tokens=100_000):
            pass
        assert live.chat("one", max_tokens=2)[0] == 200
    assert "client.gone" in live.tags()
    assert live.tags().count("runner.load") == 1


def test_a_runner_that_dies_under_its_first_request_is_a_failed_load(tmp_path: Path) -> None:
    command = ngram("--crash-after-requests", "1")
    with daemon(tmp_path, f"models: {{one: {{cmd: '{command}', memory: 1MiB}}}}") as live:
        status, body, _ = live.chat("one")
        assert status == 502, body
    tags = live.tags()
    assert "request.requeued" in tags
    assert "runner.failed" in tags
    assert "model.cooling" in tags


def test_a_broken_stream_is_reported_and_its_runner_probed(tmp_path: Path) -> None:
    command = ngram("--truncate-after", "300")
    with daemon(tmp_path, f"models: {{one: {{cmd: '{command}', memory: 1MiB}}}}") as live:
        try:
            status, _, _ = live.chat("one", max_tokens=400)
        except (http.client.HTTPException, OSError):
            status = 502  # the answer had begun: its connection was cut
        assert status == 502
    tags = live.tags()
    assert "request.failed" in tags
    assert "runner.probe" in tags


def test_the_queue_has_a_limit(tmp_path: Path) -> None:
    model = f"{{cmd: '{ngram('--slots 1 --tokens-per-second 20')}', memory: 1MiB, slots: 1}}"
    answers: SimpleQueue[tuple[int, Any, dict[str, str]]] = SimpleQueue()
    with daemon(tmp_path, f"maxQueue: 1\nmodels: {{one: {model}}}") as live:
        with live.stream("one", tokens=10_000):
            for _ in range(3):
                threading.Thread(
                    target=lambda: answers.put(live.chat("one", max_tokens=1)), daemon=True
                ).start()
            for _ in range(2):
                status, body, headers = answers.get(timeout=PATIENCE_S)
                assert status == 503
                assert "maximum pending requests exceeded" in body["error"]["message"]
                assert int(headers["Retry-After"]) >= 1
                assert headers["X-Runnerd-Queue-Position"] == "2"
        assert answers.get(timeout=PATIENCE_S)[0] == 200


def test_keep_alive_unloads_an_idle_runner(tmp_path: Path) -> None:
    config = f"models: {{one: {{cmd: '{ngram()}', memory: 1MiB, ttl: 1}}}}"
    with daemon(tmp_path, config) as live:
        assert live.chat("one")[0] == 200
        pid = next(e.body.process.pid for e in live.events() if isinstance(e.body, c.ProcessSpawned))
        gone(pid)
    drains = [event.body for event in live.events() if isinstance(event.body, c.RunnerDrain)]
    assert [drain.reason for drain in drains] == ["keep_alive"]


def test_a_killed_daemon_adopts_its_runner(tmp_path: Path) -> None:
    config = (
        f"models: {{one: {{cmd: '{ngram('--slots 2 --tokens-per-second 50')}', memory: 1MiB, slots: 2}}}}"
    )
    with daemon(tmp_path, config) as live:
        with live.stream("one", tokens=100_000):
            live.kill()
        pid = next(e.body.process.pid for e in live.events() if isinstance(e.body, c.ProcessSpawned))
        os.kill(pid, 0)
        live.start()
        assert live.chat("one", max_tokens=2)[0] == 200
    tags = live.tags()
    assert tags.count("runner.load") == 1
    assert tags.count("request.interrupted") == 1
    assert tags.count("daemon.started") == 2
    assert tags[tags.index("request.interrupted") :].count("probe.answered") == 1, "it is asked once"


def test_a_runner_that_died_with_the_daemon_away_is_lost_and_replaced(tmp_path: Path) -> None:
    config = f"models: {{one: {{cmd: '{ngram()}', memory: 1MiB}}}}"
    with daemon(tmp_path, config) as live:
        assert live.chat("one")[0] == 200
        live.kill()
        pid = next(e.body.process.pid for e in live.events() if isinstance(e.body, c.ProcessSpawned))
        os.kill(pid, signal.SIGKILL)
        gone(pid)
        live.start()
        assert live.chat("one")[0] == 200
    tags = live.tags()
    assert tags.count("runner.lost") == 1
    assert tags.count("runner.load") == 2


def test_a_second_sigterm_cuts_what_still_runs(tmp_path: Path) -> None:
    config = f"models: {{one: {{cmd: '{ngram('--tokens-per-second 20')}', memory: 1MiB}}}}"
    with daemon(tmp_path, config) as live, live.stream("one", tokens=100_000):
        live.process.send_signal(signal.SIGTERM)
        status, body, _ = live.chat("one")
        while status == 200:
            status, body, _ = live.chat("one")
        assert (status, body["error"]["code"]) == (503, "stopping")
        assert live.stop() == 0


def is_whole(response: http.client.HTTPResponse) -> bool:
    """Whether a stream comes to its proper end."""
    try:
        return b"[DONE]" in response.read()
    except (http.client.HTTPException, OSError):
        return False


def slow(*switches: str, more: str = "") -> str:
    """A model of four slots whose requests take their time."""
    command = ngram("--slots 4 --tokens-per-second 40", *switches)
    return f"models: {{one: {{cmd: '{command}', memory: 1MiB, slots: 4{more}}}}}"


@pytest.mark.parametrize("how", ["SIGTERM", "SIGINT", "stop", "unload"])
def test_a_drain_lets_requests_end(tmp_path: Path, how: str) -> None:
    with daemon(tmp_path, slow()) as live, live.stream("one", tokens=40) as response:
        if how.startswith("SIG"):
            live.process.send_signal(signal.Signals[how])
        else:
            asked = threading.Thread(target=live.runnerctl, args=(how, *["one"][how == "stop" :]))
            asked.start()
        assert is_whole(response)
        if how != "unload":
            assert live.wait() == 0
        if not how.startswith("SIG"):
            asked.join(PATIENCE_S)
    assert "request.completed" in live.tags()
    assert "request.failed" not in live.tags()


@pytest.mark.parametrize("how", ["SIGQUIT", "SIGTERM twice", "SIGINT twice", "stop now", "unload --now"])
def test_at_once_cuts_requests(tmp_path: Path, how: str) -> None:
    with daemon(tmp_path, slow(more=", unloadTimeout: 1h")) as live:
        with live.stream("one", tokens=100_000) as response:
            name, _, twice = how.partition(" ")
            if how.startswith("SIG"):
                for _ in range(2 if twice else 1):
                    live.process.send_signal(signal.Signals[name])
                    assert live.read_until(f"{name}: stopping (draining)" if twice else "(at once)")
                    twice = ""
            else:
                assert live.runnerctl(name, twice, *["one"][name == "stop" :]).returncode == 0
            assert not is_whole(response)
        if name != "unload":
            assert live.wait() == 0
            assert live.leftovers() == []
    assert "request.failed" in live.tags()
    assert "runner.kill" not in live.tags()


def test_a_drain_ends_at_unload_timeout(tmp_path: Path) -> None:
    with daemon(tmp_path, slow(more=", unloadTimeout: 500ms")) as live:
        with live.stream("one", tokens=100_000) as response:
            live.process.send_signal(signal.SIGTERM)
            assert not is_whole(response)
        assert live.wait() == 0
    passed = [event.body.kind for event in live.events() if isinstance(event.body, c.DeadlinePassed)]
    assert "drain" in passed


def test_a_runner_that_refuses_to_stop_is_killed(tmp_path: Path) -> None:
    with daemon(tmp_path, slow("--refuse-stop")) as live:
        assert live.chat("one", max_tokens=1)[0] == 200
        assert live.stop(signal.SIGQUIT) == 0
        assert live.leftovers() == []
    assert live.tags().count("runner.kill") == 1


def test_a_signal_is_heeded_from_the_first_moment_on(tmp_path: Path) -> None:
    with daemon(tmp_path, TWO) as live:
        assert live.stop() == 0  # it has said that it listens, and no more
        live.start()
        assert live.chat("red")[0] == 200
        live.kill()
        live.launch()
        assert live.read_until("recovered")
        assert live.stop() == 0
        assert live.leftovers() == []
    assert live.tags().count("daemon.stopped") == 2
    stops = [event.body.by for event in live.events() if isinstance(event.body, c.StopRequested)]
    assert stops == ["SIGTERM", "SIGTERM"]


def test_a_second_daemon_on_the_same_log_is_refused(tmp_path: Path) -> None:
    with daemon(tmp_path, TWO) as live:
        second = Live(tmp_path, TWO)
        with pytest.raises(AssertionError, match="in use by"):
            second.start()
        assert second.process.wait(PATIENCE_S) == 3
        assert live.get("/v1/models")["data"]
