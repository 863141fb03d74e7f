"""Ollama's API on a real daemon, as its own client uses it."""

from __future__ import annotations

import json
import threading
from collections.abc import Generator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import ollama
import pytest

from events import catalogue as c
from tests.integration.live import Live, daemon, ngram

MESSAGES = [{"role": "user", "content": "Tell me about the sea."}]
SLOW = 40
"""Words a second of the model that is to be caught in the middle."""

CONFIG = f"""
devices: {{host: {{budget: 1GiB}}}}
memoryHeadroom: 0
models:
  small:
    cmd: "{ngram("--slots 2", "--ctx ${num_ctx}")}"
    options: {{num_ctx: 4096}}
    slots: 2
    memory: 50MiB
    aliases: [mini]
  org/kept:7b: {{cmd: "{ngram()}", memory: 50MiB, ttl: 600}}
  slow: {{cmd: "{ngram(f"--tokens-per-second {SLOW}", "--slots 2")}", memory: 50MiB, slots: 2}}
  broken: {{cmd: "{ngram("--fail-load", "'no such weights'")}", memory: 50MiB}}
  breaking: {{cmd: "{ngram("--truncate-after 900")}", memory: 50MiB}}
"""


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with daemon(tmp_path_factory.mktemp("ollama"), CONFIG) as running:
        yield running


@pytest.fixture
def client(live: Live) -> ollama.Client:
    return ollama.Client(host=f"http://127.0.0.1:{live.port}", timeout=60)


def loaded(client: ollama.Client) -> dict[str, Any]:
    """Those that `ps` shows, by name."""
    return {str(model.name): model for model in client.ps().models}


def left_s(client: ollama.Client, name: str) -> float:
    """How long a model stays."""
    stays: timedelta = loaded(client)[name].expires_at - datetime.now(UTC)
    return stays.total_seconds()


def refused(call: Any, *arguments: Any, **members: Any) -> tuple[int, str]:
    with pytest.raises(ollama.ResponseError) as error:
        call(*arguments, **members)
    return error.value.status_code, error.value.error


def member(text: str, tools: bool = True) -> str:
    """Something that a model may call.

    Args:
      text: a word
    """
    return text


# --- lists -------------------------------------------------------------------------------------------------


def test_who_is_there(live: Live, client: ollama.Client) -> None:
    assert [model.model for model in client.list().models] == [
        "small:latest", "org/kept:7b", "slow:latest", "broken:latest", "breaking:latest",
    ]  # fmt: skip
    assert live.get("/api/version")["version"].count(".") == 2
    connection = live.connect()
    connection.request("GET", "/")
    answer = connection.getresponse()
    assert (answer.status, answer.read()) == (200, b"Ollama is running")
    for path in ("/", "/api/version", "/api/tags"):
        connection.request("HEAD", path)
        answer = connection.getresponse()
        assert (answer.status, answer.read()) == (200, b"")
    connection.close()


def test_show(client: ollama.Client) -> None:
    shown = client.show("mini")
    assert shown.parameters == "num_ctx                        4096"
    assert (shown.capabilities, shown.modelinfo) == (["completion"], {})
    assert refused(client.show, "nobody") == (404, "model 'nobody' not found")


# --- text --------------------------------------------------------------------------------------------------


def test_a_chat_whole_and_streamed(client: ollama.Client) -> None:
    options = {"num_predict": 12, "seed": 7}
    whole = client.chat("small", MESSAGES, options=options)
    assert whole.message.content and whole.message.role == "assistant"
    assert (whole.done, whole.done_reason, whole.eval_count) == (True, "length", 12)
    assert whole.prompt_eval_count and whole.total_duration and whole.load_duration is not None
    parts = list(client.chat("small:latest", MESSAGES, options=options, stream=True))
    assert len(parts) == 13
    assert "".join(part.message.content or "" for part in parts).strip() == whole.message.content
    assert [part.done for part in parts] == [False] * 12 + [True]
    last = parts[-1]
    assert (last.model, last.done_reason, last.eval_count) == ("small:latest", "length", 12)
    assert last.prompt_eval_count == whole.prompt_eval_count
    assert last.total_duration and last.total_duration >= (last.eval_duration or 0)


def test_generate_whole_and_streamed(client: ollama.Client) -> None:
    options = {"num_predict": 6}
    whole = client.generate("mini", "The sea", options=options, system="Be brief.")
    assert (whole.done_reason, whole.eval_count, whole.model) == ("length", 6, "mini")
    parts = list(client.generate("mini", "The sea", options=options, system="Be brief.", stream=True))
    assert "".join(part.response or "" for part in parts).strip() == whole.response
    raw = client.generate("mini", "The sea", raw=True, options=options)
    assert raw.response and raw.prompt_eval_count == 2


def test_embeddings(client: ollama.Client) -> None:
    found = client.embed("small", ["the sea", "the shore"])
    assert [len(vector) for vector in found.embeddings] == [64, 64]
    assert client.embed("small", "the sea").embeddings == found.embeddings[:1]
    assert client.embeddings("small", "the sea").embedding == found.embeddings[0]
    short = client.embed("small", "the sea and the shore", dimensions=32).embeddings[0]
    assert len(short) == 32 and abs(sum(x * x for x in short) - 1) < 1e-6
    assert client.embed("small", "").embeddings == []


def test_tools(client: ollama.Client) -> None:
    ask = [{"role": "user", "content": "Please use member tide."}]
    whole = client.chat("small", ask, tools=[member])
    [call] = whole.message.tool_calls or []
    assert call.function.name == "member"
    assert call.function.arguments["text"] == "tide"
    parts = list(client.chat("small", ask, tools=[member], stream=True))
    assert [part.message.tool_calls for part in parts] == [[call], None]
    assert (parts[-1].done, parts[-1].done_reason) == (True, "stop")
    result = {"role": "tool", "content": "high", "tool_name": "member"}
    answer = client.chat("small", [*ask, whole.message, result], tools=[member], options={"num_predict": 3})
    assert answer.message.content and not answer.message.tool_calls


# --- launch options, keep-alive ----------------------------------------------------------------------------


def test_a_launch_option_loads_another_runner(client: ollama.Client) -> None:
    client.chat("small", MESSAGES, options={"num_ctx": 512, "num_predict": 1})
    client.chat("small", MESSAGES, options={"num_ctx": 1024.0, "num_predict": 1})
    contexts = [model.context_length for model in client.ps().models if model.name == "small:latest"]
    assert {512, 1024} <= set(contexts)
    client.chat("small", keep_alive=0)
    assert "small:latest" not in loaded(client), "all of them are unloaded"


def test_keep_alive(client: ollama.Client) -> None:
    client.generate("small", "a", options={"num_predict": 1})
    assert 290 < left_s(client, "small:latest") <= 300, "Ollama's five minutes"
    client.generate("small", "a", options={"num_predict": 1}, keep_alive="10m")
    assert 590 < left_s(client, "small:latest") <= 600
    client.generate("small", "a", options={"num_predict": 1}, keep_alive=-1)
    assert left_s(client, "small:latest") > 1e9, "for ever"
    client.generate("org/kept:7b", "a", options={"num_predict": 1})
    assert 590 < left_s(client, "org/kept:7b") <= 600, "as the configuration says"
    assert refused(client.generate, "small", "a", keep_alive="soon")[0] == 400


def test_load_and_unload(live: Live, client: ollama.Client) -> None:
    answer = client.generate("org/kept:7b", "", keep_alive=60)
    assert (answer.done, answer.done_reason, answer.response) == (True, "load", "")
    assert 50 < left_s(client, "org/kept:7b") <= 60
    chat = client.chat("small")
    assert (chat.done_reason, chat.message.content) == ("load", "")
    assert client.generate("org/kept:7b", keep_alive=0).done_reason == "unload"
    assert "org/kept:7b" not in loaded(client)
    assert client.chat("small", keep_alive=0).done_reason == "unload"
    assert "small:latest" not in loaded(client)
    loads = live.tags().count("runner.load")
    assert client.chat("small", keep_alive="0s").done_reason == "unload", "nothing was loaded"
    assert live.tags().count("runner.load") == loads


def test_an_unload_cuts_nobody_off(live: Live, client: ollama.Client) -> None:
    parts = iter(client.chat("slow", MESSAGES, options={"num_predict": 3 * SLOW}, stream=True))
    next(parts)
    assert client.generate("slow", keep_alive=0).done_reason == "unload"
    assert "slow:latest" in loaded(client), "it works"
    rest = list(parts)
    assert rest[-1].eval_count == 3 * SLOW
    live.until(lambda: not live.get("/running")["running"] or "slow:latest" not in loaded(client))


# --- errors ------------------------------------------------------------------------------------------------


def test_names_as_ollama_takes_them(client: ollama.Client) -> None:
    for name in ("SMALL", "Mini:latest", "library/small", "registry.ollama.ai/library/small:latest"):
        assert client.show(name).parameters, name
        assert client.generate(name, "Hello").model == name
    assert refused(client.show, "ORG/kept:8b") == (404, "model 'ORG/kept:8b' not found")
    assert client.show("ORG/Kept:7B").capabilities == ["completion"]


def test_errors(live: Live, client: ollama.Client) -> None:
    for call in (client.chat, client.generate, client.embed, client.embeddings):
        assert refused(call, "nobody", keep_alive=0) == (404, "model 'nobody' not found")
    assert live.post("/api/chat", {"messages": MESSAGES})[:2] == (400, {"error": "model is required"})
    bad = refused(client.chat, "small", MESSAGES, options={"num_ctx": "large"})
    assert bad == (400, "The option \"num_ctx\" must be an integer, not 'large'.")
    assert refused(client.chat, "small", MESSAGES, options={"temperature": "hot"})[0] == 400
    assert refused(client.generate, "small", "a", template="{{ .Prompt }}")[0] == 400
    assert refused(client.generate, "small", "a", suffix="b") == (501, "File Not Found")
    status, message = refused(client.chat, "broken", MESSAGES)
    assert status == 502 and "no such weights" in message
    with pytest.raises(ollama.ResponseError) as error:
        list(client.chat("broken", MESSAGES, stream=True))
    assert error.value.status_code == 503, "it cools down"
    status, answer, _ = live.post("/api/chat", {"model": "small", "messages": [{"role": 1}]})
    assert (status, answer["error"][:20]) == (400, "invalid request body")
    assert live.get("/api/chat") == {"error": "GET is not allowed here, but POST."}


def test_what_has_no_library(live: Live, client: ollama.Client) -> None:
    calls = (
        lambda: client.pull("nobody"), lambda: client.push("small"), lambda: client.delete("small"),
        lambda: client.copy("small", "big"), lambda: client.create("big", from_="small"),
    )  # fmt: skip
    for call in calls:
        status, message = refused(call)
        assert status == 501 and "GET /api/tags" in message
    assert live.post("/api/blobs/sha256:abc", {})[0] == 501


def test_a_model_that_there_is_can_be_pulled(live: Live, client: ollama.Client) -> None:
    assert client.pull("small").status == "success"
    assert [step.status for step in client.pull("small:latest", stream=True)] == [
        "pulling manifest",
        "success",
    ]
    assert live.post("/api/pull", {"name": "small", "stream": False})[:2] == (200, {"status": "success"})
    with pytest.raises(ollama.ResponseError) as error:
        list(client.pull("nobody", stream=True))
    assert error.value.status_code == 501
    assert live.post("/api/pull", {})[:2] == (400, {"error": "model is required"})


def test_a_runner_that_breaks_off(client: ollama.Client) -> None:
    parts: list[ollama.ChatResponse] = []
    with pytest.raises(ollama.ResponseError, match="closed the connection"):
        parts.extend(part for part in client.chat("breaking", MESSAGES, stream=True))


def test_a_client_that_leaves(live: Live, client: ollama.Client) -> None:
    parts = client.chat("slow", MESSAGES, options={"num_predict": 100_000}, stream=True)
    next(iter(parts))
    assert isinstance(parts, Generator)
    parts.close()
    live.until(lambda: "request.cancelled" in live.tags())
    assert client.chat("slow", MESSAGES, options={"num_predict": 1}).done, "the slot is free"


def test_a_full_queue(tmp_path: Path) -> None:
    config = f"""
maxQueue: 1
models:
  slow: {{cmd: "{ngram(f"--tokens-per-second {SLOW}")}", memory: 50MiB}}
"""
    with daemon(tmp_path, config) as live:
        client = ollama.Client(host=f"http://127.0.0.1:{live.port}", timeout=60)
        first = client.chat("slow", MESSAGES, options={"num_predict": 100_000}, stream=True)
        next(iter(first))
        body = json.dumps({"model": "slow", "messages": MESSAGES, "options": {"num_predict": 1}})
        second = live.connect()
        second.request("POST", "/api/chat", body)
        live.until(lambda: live.tags().count("request.queued") == 2)  # the first waited for its load
        words = "server busy, please try again.  maximum pending requests exceeded"
        assert refused(client.chat, "slow", MESSAGES) == (503, words)
        assert isinstance(first, Generator)
        first.close()
        assert second.getresponse().status == 200
        second.close()


def test_several_at_once(live: Live, client: ollama.Client) -> None:
    """More clients than slots, streaming and not: each gets its own whole answer."""
    counts: list[int | None] = []

    def ask(words: int) -> None:
        if words % 2:
            *_, last = client.chat("small", MESSAGES, options={"num_predict": words}, stream=True)
        else:
            last = client.chat("small", MESSAGES, options={"num_predict": words})
        counts.append(last.eval_count)

    threads = [threading.Thread(target=ask, args=(words,)) for words in range(1, 17)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(count or 0 for count in counts) == list(range(1, 17))
    assert not [event for event in live.events() if isinstance(event.body, c.BreachRecorded)]
