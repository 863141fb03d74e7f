"""The daemon with a real llama-server: two models, and memory for one.

Whatever a test does, `daemon` checks at its end that no process is left and that the log verifies.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from events import catalogue as c
from events.catalogue import Event
from tests.integration.live import BIN, PATIENCE_S, Live, daemon, gone

PORT_FIRST = 7300
"""Away from the default, so that a daemon on the same machine is not in the way."""

ENDLESS = 60_000
"""Tokens: most of a minute, while no test takes more than seconds."""


@pytest.fixture
def live(tmp_path: Path, llama_server: str, weights: dict[str, Path]) -> Iterator[Live]:
    """A daemon with both models, either of which fills its memory; and what is wrong with others."""
    serve = f"{llama_server} --host 127.0.0.1 --port ${{PORT}} -t 1 -c 131072 -np 2"
    (tmp_path / "broken.gguf").write_bytes(b"GGUF and nothing else")
    config = f"""
devices: {{host: {{budget: 300MiB}}}}
memoryHeadroom: 0
startPort: {PORT_FIRST}
models:
  red: {{cmd: "{serve} -m {weights["red"]}", memory: 200MiB}}
  blue: {{cmd: "{serve} -m {weights["blue"]}", memory: 200MiB}}
  vectors: {{cmd: "{serve} -m {weights["red"]} --embeddings --pooling mean", memory: 200MiB}}
  missing: {{cmd: "{serve} -m {tmp_path}/no-such-model.gguf", memory: 200MiB}}
  broken: {{cmd: "{serve} -m {tmp_path}/broken.gguf", memory: 200MiB}}
  socket: {{cmd: "{llama_server} --host ${{SOCKET}} -t 1 -c 4096 -m {weights["blue"]}", memory: 200MiB}}
"""
    with daemon(tmp_path, config) as running:
        yield running


# --- helpers ---------------------------------------------------------------------------------------------


def wait_for(live: Live, tag: str, times: int = 1) -> None:
    """Wait until the log holds so many events of a type."""
    command = [str(BIN / "runnerctl"), "--socket", str(live.socket), "--json", "watch", "--after", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as watcher:
        late = threading.Timer(PATIENCE_S, watcher.kill)
        late.start()
        try:
            assert watcher.stdout is not None
            found = (line for line in watcher.stdout if json.loads(line)["type"] == tag)
            assert len(list(islice(found, times))) == times, f"no {tag}, or too few of it"
        finally:
            late.cancel()
            watcher.kill()


def pid_of(live: Live, model: str) -> int:
    """The process of the model's newest runner."""
    runners = [event.subject for event in loads(live.events(), model)]
    spawned = [event.body.process for event in live.events() if isinstance(event.body, c.ProcessSpawned)]
    return next(process.pid for process in spawned if process.runner == runners[-1])


def loads(events: list[Event], model: str) -> list[Event]:
    """The decisions to load a model."""
    return [e for e in events if isinstance(e.body, c.RunnerLoad) and e.body.model == model]


def chunks(response: http.client.HTTPResponse) -> Iterator[str]:
    """The data of a stream's events, each as soon as it is there."""
    for line in response:
        if line.startswith(b"data: "):
            yield line.removeprefix(b"data: ").decode().strip()


def word(chunk: str) -> str:
    """What an event of a chat's stream adds to the answer."""
    choices = json.loads(chunk)["choices"]
    return (choices[0]["delta"].get("content") or "") if choices else ""


def check_one_at_a_time(events: list[Event]) -> None:
    """Memory was never promised twice: each runner was drained, stopped and gone before the next load."""
    story = (c.RunnerDrain, c.RunnerStop, c.ProcessExited, c.RunnerUnloaded)
    before: list[Event] | None = None
    for event in events:
        if isinstance(event.body, c.RunnerLoad):
            if before is not None:
                assert [type(e.body) for e in before] == list(story), before
            before = []
        elif isinstance(event.body, story) and before is not None:
            before.append(event)


@contextmanager
def asked(live: Live, model: str, tokens: int) -> Iterator[http.client.HTTPResponse]:
    """The answer to a streamed chat, unread; leaving closes the connection."""
    with closing(live.connect()) as connection:
        message = {"role": "user", "content": "Tell me about the sea."}
        body = {"model": model, "stream": True, "max_tokens": tokens, "messages": [message]}
        connection.request("POST", "/v1/chat/completions", json.dumps(body))
        with closing(connection.getresponse()) as response:
            yield response


# --- what it is for --------------------------------------------------------------------------------------


def test_a_model_is_loaded_and_answers(live: Live) -> None:
    status, body, _ = live.chat("red", max_tokens=12)
    assert status == 200, body
    assert body["usage"]["completion_tokens"] == 12
    assert body["choices"][0]["message"]["content"]
    assert [row["model"] for row in live.get("/running")["running"]] == ["red"]
    tags = live.tags()
    order = ["request.arrived", "runner.load", "process.spawned", "probe.answered", "request.dispatched"]
    assert [tag for tag in tags if tag in order] == order


def test_its_slots_are_seen_while_all_are_in_use(live: Live) -> None:
    with live.stream("red", ENDLESS), live.stream("red", ENDLESS):
        assert [slot["is_processing"] for slot in live.get("/upstream/red/slots")] == [True, True]
        assert live.get("/props?model=red")["default_generation_settings"]["n_ctx"] > 0


def test_a_stream_comes_word_by_word_and_says_that_it_is_done(live: Live) -> None:
    with asked(live, "red", 20) as response:
        assert response.getheader("Content-Type", "").startswith("text/event-stream")
        data = list(chunks(response))
    assert data[-1] == "[DONE]"
    assert len([chunk for chunk in data[:-1] if word(chunk)]) == 20
    with asked(live, "red", ENDLESS) as response:
        stream = chunks(response)
        words = [word(next(stream)) for _ in range(20)]
        assert "".join(words)
        assert (
            live.tags().count("upstream.ended") == 1
        )  # the first one: words come while the answer is written


def test_two_models_take_turns(live: Live) -> None:
    for model in ("red", "blue", "red", "blue"):
        status, body, _ = live.chat(model)
        assert status == 200, body
    events = live.events()
    assert len(loads(events, "red")) == len(loads(events, "blue")) == 2
    check_one_at_a_time(events)


def test_many_clients_of_both_models_are_all_served(live: Live) -> None:
    models = ["red", "blue", "blue", "red"] * 4
    answers: list[Any] = [None] * len(models)

    def ask(i: int) -> None:
        if i % 3:
            status, body, _ = live.chat(models[i], max_tokens=16)
            answers[i] = (status, body["usage"]["completion_tokens"])
        else:
            with asked(live, models[i], 16) as response:
                data = list(chunks(response))
            answers[i] = (response.status, len([chunk for chunk in data[:-1] if word(chunk)]))

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(models))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert answers == [(200, 16)] * len(models)
    wait_for(live, "request.completed", len(models))
    events = live.events()
    check_one_at_a_time(events)
    assert 2 <= len(loads(events, "red") + loads(events, "blue")) <= 4


def test_embeddings(live: Live) -> None:
    status, body, _ = live.post("/v1/embeddings", {"model": "vectors", "input": ["the sea", "all the ships"]})
    assert status == 200, body
    assert [len(row["embedding"]) for row in body["data"]] == [64, 64]
    assert body["data"][0]["embedding"] != body["data"][1]["embedding"]


def test_it_serves_on_a_unix_socket(live: Live) -> None:
    assert live.chat("red")[0] == 200
    status, body, _ = live.chat("socket")
    assert status == 200, body
    check_one_at_a_time(live.events())


# --- clients that leave ----------------------------------------------------------------------------------


def test_a_client_that_leaves_in_mid_stream_gives_its_slot_back(live: Live) -> None:
    for _ in range(3):  # one more than there are slots
        with asked(live, "red", ENDLESS) as response:
            assert next(chunks(response))
    status, answer, _ = live.chat("red")
    assert status == 200, answer
    wait_for(live, "request.completed")
    events = live.events()
    assert len(loads(events, "red")) == 1
    cancelled = [event.body for event in events if isinstance(event.body, c.RequestCancelled)]
    assert [body.reason for body in cancelled] == ["client_gone"] * 3
    ends = [event.body for event in events if isinstance(event.body, c.UpstreamEnded)]
    assert [end.complete for end in ends] == [False, False, False, True]


def test_a_swap_does_not_cut_a_stream(live: Live) -> None:
    with asked(live, "red", 2000) as response:
        stream = chunks(response)
        next(stream)
        other = threading.Thread(target=live.chat, args=("blue",))
        other.start()
        wait_for(live, "claim.made")
        rest = list(stream)
    assert rest[-1] == "[DONE]"
    other.join(PATIENCE_S)
    wait_for(live, "request.completed", 2)
    check_one_at_a_time(live.events())


# --- runners that die ------------------------------------------------------------------------------------


def test_an_idle_runner_that_is_killed_is_missed_at_once_and_replaced(live: Live) -> None:
    assert live.chat("red")[0] == 200
    pid = pid_of(live, "red")
    os.kill(pid, signal.SIGKILL)
    gone(pid)
    wait_for(live, "runner.failed")
    assert live.chat("red")[0] == 200  # loaded again at once, the first time
    again = pid_of(live, "red")
    assert again != pid
    os.kill(again, signal.SIGKILL)
    gone(again)
    wait_for(live, "runner.failed", 2)
    assert live.chat("blue")[0] == 200  # its memory is free


def test_a_runner_that_is_killed_in_mid_stream_fails_its_requests_alone(live: Live) -> None:
    with asked(live, "red", ENDLESS) as response:
        stream = chunks(response)
        next(stream)
        os.kill(pid_of(live, "red"), signal.SIGKILL)
        assert "[DONE]" not in list(stream)
    wait_for(live, "runner.failed")
    failed = [event.body for event in live.events() if isinstance(event.body, c.RequestFailed)]
    assert [body.reason for body in failed] == ["upstream_failed"]
    assert live.chat("blue")[0] == 200


def test_a_model_whose_file_is_not_there_is_not_loaded(live: Live) -> None:
    status, body, _ = live.chat("missing")
    assert status == 502
    assert body["error"]["message"].endswith("no-such-model.gguf is not there")
    assert live.chat("red")[0] == 200


def test_a_model_that_does_not_load_answers_with_llama_servers_own_words(live: Live) -> None:
    status, body, _ = live.chat("broken")
    assert status == 502
    assert "broken.gguf" in body["error"]["message"]
    assert "failed to" in body["error"]["message"]
    assert live.chat("red")[0] == 200


# --- operators -------------------------------------------------------------------------------------------


def test_an_operator_unloads_a_model(live: Live) -> None:
    assert live.chat("red")[0] == 200
    pid = pid_of(live, "red")
    done = live.runnerctl("unload", "red")
    assert done.returncode == 0, done.stderr
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert live.get("/running")["running"] == []
    assert live.chat("red")[0] == 200
    assert live.tags().count("runner.load") == 2


def test_a_stop_lets_a_stream_end_and_leaves_no_process(live: Live) -> None:
    with asked(live, "red", 2000) as response:
        stream = chunks(response)
        next(stream)
        live.process.send_signal(signal.SIGTERM)
        assert list(stream)[-1] == "[DONE]"
    assert live.wait() == 0
    assert live.leftovers() == []
    assert live.tags()[-1] == "daemon.stopped"


def test_a_second_signal_ends_streams_too(live: Live) -> None:
    with asked(live, "red", ENDLESS) as response:
        stream = chunks(response)
        next(stream)
        rest: list[str] = []
        reader = threading.Thread(target=rest.extend, args=(stream,))
        reader.start()
        live.process.send_signal(signal.SIGTERM)
        wait_for(live, "daemon.stop_requested")
        assert live.stop() == 0
        reader.join(PATIENCE_S)
    assert "[DONE]" not in rest
    assert live.leftovers() == []
