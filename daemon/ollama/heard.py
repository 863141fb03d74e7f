"""What model servers say, in OpenAI's words or llama-server's own (/infill), as one kind of piece."""

from __future__ import annotations

from typing import Any

import msgspec

from daemon.ollama.wrong import INVALID_JSON


class Function(msgspec.Struct, gc=False):
    """A call, or a part of one."""

    name: str | None = None
    arguments: str | dict[str, Any] | None = None
    """JSON, as text; some servers send what it would say."""


class ToolCall(msgspec.Struct, gc=False):
    """The same: `index` says of which call it is a part."""

    index: int | None = None
    id: str | None = None
    function: Function | None = None


class Words(msgspec.Struct, gc=False):
    """A message, or what a chunk adds to it."""

    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    """vLLM's newer name for the same."""
    tool_calls: list[ToolCall] | None = None


class Likely(msgspec.Struct, gc=False):
    """How likely a token was."""

    token: str = ""
    logprob: float | None = None
    bytes: list[int] | None = None
    top_logprobs: list[Likely] | None = None


class Logprobs(msgspec.Struct, gc=False):
    """The same of all tokens of a chunk."""

    content: list[Likely] | None = None


class Choice(msgspec.Struct, gc=False):
    """One answer; nobody asks for several."""

    delta: Words | None = None
    message: Words | None = None
    text: str | None = None
    finish_reason: str | None = None
    logprobs: Logprobs | None = None


class Usage(msgspec.Struct, gc=False):
    """Tokens."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class Timings(msgspec.Struct, gc=False):
    """llama-server's own figures; `cache_n` tokens of the prompt were there already."""

    cache_n: int = 0
    prompt_n: int = 0
    prompt_ms: float = 0.0
    predicted_n: int = 0
    predicted_ms: float = 0.0


class _Chunk(msgspec.Struct, gc=False):
    choices: list[Choice] | None = None
    usage: Usage | None = None
    timings: Timings | None = None
    error: msgspec.Raw = msgspec.Raw()
    content: str | None = None
    stop: bool | None = None
    stop_type: str | None = None
    completion_probabilities: list[Likely] | None = None


class Piece(msgspec.Struct, gc=False):
    """A part of an answer, or all of it."""

    text: str = ""
    thinking: str = ""
    calls: list[ToolCall] = []
    likely: list[Likely] = []
    finish: str = ""
    """Why it ends: "stop" or "length"; "": it does not."""
    usage: Usage | None = None
    timings: Timings | None = None
    error: str = ""


class NotUnderstood(ValueError):
    """It is nothing that a model server says."""


_CHUNK = msgspec.json.Decoder(_Chunk)


def piece(data: bytes) -> Piece:
    """A chunk of a stream, or a whole answer. Raises NotUnderstood."""
    try:
        chunk = _CHUNK.decode(data)
    except INVALID_JSON as invalid:
        raise NotUnderstood(str(invalid)) from None
    found = Piece(usage=chunk.usage, timings=chunk.timings)
    if bytes(chunk.error) not in (b"", b"null"):
        found.error = error(data)
    elif chunk.choices:
        _add_choice(found, chunk.choices[0])
    elif chunk.content is not None or chunk.stop:
        found.text = chunk.content or ""
        found.likely = chunk.completion_probabilities or []
        if chunk.stop or chunk.stop is None:
            found.finish = "length" if chunk.stop_type == "limit" else "stop"
    return found


def _add_choice(found: Piece, choice: Choice) -> None:
    words = choice.delta or choice.message or Words()
    found.text = words.content or choice.text or ""
    found.thinking = words.reasoning_content or words.reasoning or ""
    found.calls = words.tool_calls or []
    if choice.logprobs is not None:
        found.likely = choice.logprobs.content or []
    if choice.finish_reason:
        found.finish = "length" if choice.finish_reason == "length" else "stop"


class _Nested(msgspec.Struct, gc=False):
    message: str = ""


class _Error(msgspec.Struct, gc=False):
    error: _Nested | str | None = None
    message: str | None = None
    detail: str | None = None


def error(data: bytes) -> str:
    """The sentence in an error's body, in OpenAI's shape, Ollama's, or whatever it is."""
    try:
        found = msgspec.json.decode(data, type=_Error)
    except INVALID_JSON:
        return data.decode("utf-8", "replace").strip() or "the model server gave no reason"
    if isinstance(found.error, _Nested):
        sentence = found.error.message
    else:
        sentence = found.error or found.message or found.detail or ""
    return sentence.strip() or data.decode("utf-8", "replace").strip()
