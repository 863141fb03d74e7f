"""Ollama's own client, the daemon, and a real llama-server behind it."""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import ollama
import pytest

from tests.integration.live import Live, daemon

MESSAGES = [{"role": "user", "content": "the time of the way"}]
FORMAT = {
    "type": "object",
    "properties": {"colour": {"enum": ["red", "blue"]}},
    "required": ["colour"],
    "additionalProperties": False,
}


STRICT = """\
{% macro check(id) %}
{%- if id is not defined or id | length != 9 %}{{ raise_exception("9!") }}{% endif %}{{ id }}{% endmacro %}
{%- for m in messages %}{{ m.role }}: {{ m.content }}
{%- for call in m.tool_calls or [] %}{{ check(call.id) }}{{ call.function | tojson }}{% endfor %}
{%- if m.role == "tool" %}{{ check(m.tool_call_id) }}{% endif %}
{% endfor %}{{ tools | tojson if tools else "" }}assistant:"""
"""As Mistral's templates are: ids of tool calls have nine characters."""


@pytest.fixture(scope="module")
def live(
    tmp_path_factory: pytest.TempPathFactory, llama_server: str, weights: dict[str, Path]
) -> Iterator[Live]:
    template = tmp_path_factory.mktemp("templates") / "strict.jinja"
    template.write_text(STRICT)
    serve = f"{llama_server} --host 127.0.0.1 --port ${{PORT}} -t 1 -np 2 --jinja"
    config = f"""
devices: {{host: {{budget: 700MiB}}}}
memoryHeadroom: 0
models:
  red: {{cmd: "{serve} -c ${{num_ctx}} -m {weights["red"]}", options: {{num_ctx: 8192}}, memory: 200MiB}}
  strict:
    {{cmd: "{serve} -c 4096 -m {weights["red"]} --chat-template-file {template}", unlisted: true}}
  vectors: {{cmd: "{serve} -c 4096 -m {weights["blue"]} --embeddings --pooling mean", memory: 200MiB}}
"""
    with daemon(tmp_path_factory.mktemp("ollama"), config) as running:
        yield running


@pytest.fixture
def client(live: Live) -> ollama.Client:
    return ollama.Client(host=f"http://127.0.0.1:{live.port}", timeout=60)


def told(**options: Any) -> dict[str, Any]:
    return {"num_predict": 8, "temperature": 0, "seed": 1, **options}


def test_a_chat_whole_and_streamed(client: ollama.Client) -> None:
    whole = client.chat("red", MESSAGES, options=told())
    assert whole.message.content and (whole.done_reason, whole.eval_count) == ("length", 8)
    assert whole.prompt_eval_count and whole.prompt_eval_duration and whole.eval_duration
    assert whole.load_duration and whole.total_duration and whole.load_duration < whole.total_duration
    parts = list(client.chat("red:latest", MESSAGES, options=told(), stream=True))
    assert "".join(part.message.content or "" for part in parts) == whole.message.content
    last = parts[-1]
    assert (last.done, last.eval_count, last.prompt_eval_count) == (True, 8, whole.prompt_eval_count)
    assert last.eval_duration and last.prompt_eval_duration


def test_options_reach_the_server(client: ollama.Client) -> None:
    long = client.generate("red", "the", options=told(num_predict=40), raw=True).response or ""
    assert len(long) > 10
    stop = long[6:9]
    options = told(
        num_predict=40, stop=[stop], top_k=40, top_p=0.9, min_p=0.0, typical_p=1.0, repeat_last_n=64,
        repeat_penalty=1.0, presence_penalty=0.0, frequency_penalty=0.0, mirostat=0, num_keep=4,
    )  # fmt: skip
    short = client.generate("red", "the", options=options, raw=True)
    assert short.response == long[: long.index(stop)] and short.done_reason == "stop"


def test_generate(client: ollama.Client) -> None:
    chat = client.chat("red", MESSAGES, options=told())
    generated = client.generate("red", MESSAGES[0]["content"], options=told())
    assert generated.response == chat.message.content, "a chat of one message"
    raw = client.generate("red", "the time", raw=True, options=told())
    parts = list(client.generate("red", "the time", raw=True, options=told(), stream=True))
    assert "".join(part.response or "" for part in parts) == raw.response
    assert raw.prompt_eval_count and parts[-1].prompt_eval_count == raw.prompt_eval_count


def test_a_format(client: ollama.Client) -> None:
    for answer in (
        client.chat("red", MESSAGES, format=FORMAT, options=told(num_predict=64)).message.content,
        client.generate("red", "the", format=FORMAT, options=told(num_predict=64)).response,
        client.generate("red", "the", raw=True, format=FORMAT, options=told(num_predict=64)).response,
    ):
        assert json.loads(answer or "")["colour"] in ("red", "blue")


def test_logprobs(client: ollama.Client) -> None:
    whole = client.chat("red", MESSAGES, options=told(), logprobs=True, top_logprobs=3)
    assert whole.logprobs and len(whole.logprobs) == 8
    assert all(len(token.top_logprobs or ()) == 3 and token.logprob <= 0 for token in whole.logprobs)
    parts = client.generate("red", "the", raw=True, options=told(), logprobs=True, stream=True)
    tokens = [token for part in parts for token in part.logprobs or ()]
    assert len(tokens) == 8 and not any(token.top_logprobs for token in tokens)


def test_conversations_with_tools_and_thoughts(client: ollama.Client) -> None:
    """The model cannot use a tool; its server takes the conversation and the tools as they should be."""

    def weather(city: str) -> str:
        """The weather.

        Args:
          city: where
        """
        return city

    call = {"function": {"name": "weather", "arguments": {"city": "Oslo"}}}
    conversation: list[dict[str, Any]] = [
        {"role": "system", "content": "Be brief."},
        *MESSAGES,
        {"role": "assistant", "content": "", "thinking": "Hm", "tool_calls": [call]},
        {"role": "tool", "tool_name": "weather", "content": "cold"},
    ]
    for think in (None, False, True, "low"):
        answer = client.chat("red", conversation, tools=[weather], think=think, options=told())
        assert answer.done and answer.eval_count
    assert list(client.chat("red", conversation, tools=[weather], options=told(), stream=True))[-1].done


def test_a_template_that_is_strict_about_ids(client: ollama.Client) -> None:
    """Ollama's client sends none."""
    call = {"function": {"name": "weather", "arguments": {"city": "Oslo"}}}
    conversation: list[dict[str, Any]] = [
        *MESSAGES,
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "cold"},
    ]
    assert client.chat("strict", conversation, options=told()).eval_count == 8


def test_embeddings(client: ollama.Client) -> None:
    found = client.embed("vectors", ["the time", "all of them"])
    assert len(found.embeddings) == 2 and found.prompt_eval_count
    assert abs(sum(x * x for x in found.embeddings[0]) - 1) < 1e-3
    alone = client.embeddings("vectors", "the time").embedding
    assert max(abs(a - b) for a, b in zip(alone, found.embeddings[0], strict=True)) < 1e-3


def test_what_cannot_be_done_is_said(client: ollama.Client) -> None:
    for call in (
        lambda: client.generate("red", "a", suffix="b"),  # this model knows no infill
        lambda: client.embed("red", "a"),
        lambda: list(client.generate("red", "a", suffix="b", stream=True)),
    ):
        with pytest.raises(ollama.ResponseError) as error:
            call()
        assert error.value.status_code == 501 and "support" in error.value.error
    with pytest.raises(ollama.ResponseError) as error:
        client.chat("red", [{"role": "user", "content": "x", "images": [b"\x89PNG1234"]}])
    assert error.value.status_code >= 400 and error.value.error
    with pytest.raises(ollama.ResponseError) as error:
        list(client.chat("red", [{"role": "user", "content": "the time " * 9000}], stream=True))
    assert error.value.status_code == 400 and "context" in error.value.error


def test_lists(client: ollama.Client, weights: dict[str, Path]) -> None:
    red, vectors = client.list().models
    assert (red.model, vectors.model) == ("red:latest", "vectors:latest")
    assert red.size and 0 < weights["red"].stat().st_size - int(red.size) < 20_000
    assert red.details and (red.details.family, red.details.quantization_level) == ("llama", "F32")
    shown = client.show("red")
    assert shown.modelinfo and shown.modelinfo["llama.context_length"] == 131072
    assert shown.capabilities == ["completion"]
    assert client.show("vectors").capabilities == ["embedding"]
    client.chat("red", MESSAGES, options=told(num_ctx=4096))
    contexts = {model.context_length for model in client.ps().models if model.name == "red:latest"}
    assert 4096 in contexts


def test_a_client_that_leaves(live: Live, client: ollama.Client) -> None:
    parts = client.chat("red", MESSAGES, options={"num_predict": 4000, "num_ctx": 8192}, stream=True)
    next(iter(parts))
    assert isinstance(parts, Generator)
    parts.close()
    live.until(lambda: "request.cancelled" in live.tags())
    assert client.chat("red", keep_alive=0).done_reason == "unload"
    assert not any(model.name == "red:latest" for model in client.ps().models)
