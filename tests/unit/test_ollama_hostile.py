"""Whatever clients and model servers send: a refusal or an error, never another exception. Seeded."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from daemon.http.refusals import Refused
from daemon.ollama import options, requests
from daemon.ollama.asked import Chat, Embed, Embeddings, Generate, read
from daemon.ollama.replies import TextReply
from daemon.ollama.vectors import VectorReply

ROUNDS = 3000

WORDS = [
    "model", "messages", "role", "content", "thinking", "images", "tool_calls", "function", "name",
    "arguments", "tool_name", "tool_call_id", "stream", "format", "keep_alive", "tools", "options",
    "think", "logprobs", "top_logprobs", "prompt", "suffix", "system", "template", "context", "raw",
    "input", "dimensions", "num_ctx", "num_predict", "stop", "seed", "temperature", "id", "user",
    "assistant", "tool", "json", "low",
]  # fmt: skip
SAID = [
    "choices", "delta", "message", "text", "finish_reason", "logprobs", "content", "reasoning_content",
    "index", "tool_calls", "function", "name", "arguments", "usage", "prompt_tokens",
    "completion_tokens", "timings", "prompt_ms", "predicted_n", "error", "stop", "stop_type", "data",
    "embedding", "token", "logprob", "bytes",
]  # fmt: skip
PLAIN: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 1.5, 1e308, 10**30, -(10**30), "", "a", "\u0000", "\U0001f600", "iVBORw0K",
    "é", "5m", "length", [], {},
)  # fmt: skip


def anything(chance: random.Random, words: list[str], depth: int = 4) -> Any:
    """Some JSON, made of words that mean something."""
    kind = chance.randrange(8) if depth else 0
    if kind < 3:
        return chance.choice(PLAIN) if chance.randrange(3) else chance.choice(words)
    count = chance.randrange(5)
    if kind < 5:
        return [anything(chance, words, depth - 1) for _ in range(count)]
    return {chance.choice(words): anything(chance, words, depth - 1) for _ in range(count)}


def request(chance: random.Random) -> dict[str, Any]:
    """A request that is mostly as it should be."""
    made: dict[str, Any] = {
        "model": "m", "prompt": "a", "input": ["a"],
        "messages": [
            {"role": "user", "content": "a", "images": ["iVBORw0K"]},
            {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {"a": 1}}}]},
            {"role": "tool", "tool_name": "f", "content": "b"},
        ],
        "options": {"num_ctx": 5, "stop": ["a"], "temperature": 1}, "think": "low", "format": {"a": 1},
    }  # fmt: skip
    if chance.randrange(2):
        made["messages"][chance.randrange(3)][chance.choice(WORDS)] = anything(chance, WORDS)
    for _ in range(chance.randrange(4)):
        made[chance.choice(WORDS)] = anything(chance, WORDS)
    return made


CALLS: tuple[tuple[type, Callable[[Any], requests.Work]], ...] = (
    (Chat, requests.chat), (Generate, requests.generate), (Embed, requests.embed),
    (Embeddings, requests.embeddings),
)  # fmt: skip


@pytest.mark.parametrize(("shape", "call"), CALLS, ids=lambda value: value.__name__)
def test_requests(shape: type[Any], call: Callable[[Any], requests.Work]) -> None:
    chance = random.Random(shape.__name__)
    understood = 0
    for _ in range(ROUNDS):
        made = request(chance) if chance.randrange(5) else anything(chance, WORDS)
        try:
            asked = read(json.dumps(made).encode(), shape)
            work = call(asked)
            body = {**work.body, **options.sampling(asked.options or {}, {"num_ctx": 1})}
            options.launch(asked.options or {}, {"num_ctx": 1})
        except Refused as refused:
            assert refused.refusal.status == 400 and refused.refusal.message
            continue
        json.loads(msgspec.json.encode(body))
        understood += 1
    assert understood > ROUNDS // 20


def event(chance: random.Random) -> bytes:
    """What a model server might say, or not."""
    made: Any = {"choices": [{"index": 0, "delta": {"content": "a"}, "finish_reason": None}]}
    if chance.randrange(3):
        made["choices"][0]["delta"][chance.choice(SAID)] = anything(chance, SAID)
    if not chance.randrange(3):
        made[chance.choice(SAID)] = anything(chance, SAID)
    data = json.dumps(made if chance.randrange(6) else anything(chance, SAID)).encode()
    if not chance.randrange(8):
        data = data[: chance.randrange(len(data) + 1)] + bytes([chance.randrange(256)])
    return b"data: " + data + chance.choice([b"\n\n", b"\r\n\r\n", b"\n", b"\r\r", b""])


@pytest.mark.parametrize("streamed", [True, False])
def test_answers(streamed: bool) -> None:
    chance = random.Random(streamed)
    lines = 0
    for number in range(ROUNDS):
        reply: TextReply | VectorReply
        form = chance.choice(["chat", "generate"])
        reply = TextReply(form, "m", streamed=streamed) if number % 5 else VectorReply("m", dimensions=2)
        reply.began()
        reply.head(chance.choice([200, 200, 200, 500]), b"text/event-stream" if streamed else b"")
        said = b""
        try:
            for _ in range(chance.randrange(6)):
                said += reply.feed(event(chance)[0 if streamed else 6 :])
            said += reply.end()
        except ValueError:
            said += reply.broken("it broke")
        for line in said.splitlines():
            assert isinstance(json.loads(line), dict)
            lines += 1
    assert lines > ROUNDS // 2
