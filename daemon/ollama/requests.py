"""Ollama's requests as requests to a model server: its endpoint, its body, and what the answer becomes."""

from __future__ import annotations

from typing import Any

import msgspec

from daemon.ollama import asked, messages
from daemon.ollama.asked import Chat, Common, Embed, Embeddings, Generate, Text
from daemon.ollama.wrong import wrong

CHAT = b"/v1/chat/completions"
COMPLETION = b"/v1/completions"
INFILL = b"/infill"
"""llama-server's own: OpenAI's completions have a `suffix`, which it refuses there."""
EMBEDDING = b"/v1/embeddings"


class Work(msgspec.Struct, gc=False):
    """What a request asks of a model server. `target` b"": nothing but that the model be loaded."""

    kind: str
    """For the log."""
    reply: str
    """What the answer becomes: "chat", "generate", "embed" or "embeddings"."""
    target: bytes = b""
    body: dict[str, Any] = {}
    """Without the model's name and the options."""
    streamed: bool = False
    top_logprobs: bool = False
    dimensions: int = 0


def named(request: Common) -> str:
    """The name of the model. Raises Refused."""
    if not request.model:
        raise wrong("model is required")
    return request.model


def chat(request: Chat) -> Work:
    """POST /api/chat. Raises Refused."""
    asked.check(request)
    work = _text("chat", "chat", request)
    if not request.messages:
        return work
    work.target = CHAT
    work.body = {"messages": messages.translate(request.messages)}
    if request.tools:
        work.body["tools"] = request.tools
    _tell_chat(work, request)
    return work


def generate(request: Generate) -> Work:
    """POST /api/generate: a chat of one message; with `raw` or `suffix` the bare prompt. Raises Refused."""
    asked.check(request)
    work = _text("completion", "generate", request)
    if request.raw and (request.template or request.system or request.context):
        raise wrong("raw mode does not support template, system, or context")
    if request.template:
        raise wrong(
            '"template" cannot be given here: the model server has its own. "raw" sends a prompt as it is'
        )
    if request.context:
        raise wrong('"context" is not kept here: send the conversation as the messages of /api/chat')
    if (request.raw or request.suffix) and request.images:
        raise wrong("raw mode and suffix do not support images")
    if not request.prompt:
        return work
    if request.suffix:
        work.target = INFILL
        work.body = {"input_prefix": request.prompt, "input_suffix": request.suffix}
        _tell_completion(work, request)
    elif request.raw:
        work.target = COMPLETION
        work.body = {"prompt": request.prompt}
        _tell_completion(work, request)
    else:
        work.target = CHAT
        work.body = {"messages": [{"role": "system", "content": request.system}] if request.system else []}
        content = messages.content(request.prompt, request.images or ())
        work.body["messages"].append({"role": "user", "content": content})
        _tell_chat(work, request)
    return work


def embed(request: Embed) -> Work:
    """POST /api/embed. Raises Refused."""
    texts = [request.input] if isinstance(request.input, str) and request.input else request.input
    work = Work("embedding", "embed", dimensions=max(0, request.dimensions or 0))
    if texts:
        work.target, work.body = EMBEDDING, {"input": texts}
    return work


def embeddings(request: Embeddings) -> Work:
    """POST /api/embeddings, which /api/embed has replaced."""
    work = Work("embedding", "embeddings")
    if request.prompt:
        work.target, work.body = EMBEDDING, {"input": request.prompt}
    return work


def _text(kind: str, reply: str, request: Text) -> Work:
    streamed = request.stream is None or request.stream
    return Work(kind, reply, streamed=streamed, top_logprobs=bool(request.top_logprobs))


def _tell_chat(work: Work, request: Text) -> None:
    """What both chat and generate may say, for /v1/chat/completions."""
    body = work.body
    format = asked.schema(request.format)
    if format is not None:
        body["response_format"] = _response_format(format)
    if request.think is not None:
        body["chat_template_kwargs"] = {"enable_thinking": bool(request.think)}
        if isinstance(request.think, str):
            # Templates read the one, servers with a parser of their own (vLLM's for gpt-oss) the other.
            body["chat_template_kwargs"]["reasoning_effort"] = request.think
            if request.think != "max":
                body["reasoning_effort"] = request.think
    if request.logprobs:
        body["logprobs"] = True
        body["top_logprobs"] = max(1, request.top_logprobs or 0)
    _tell_stream(work)


def _tell_completion(work: Work, request: Text) -> None:
    """The same for /v1/completions and /infill, which know no thinking."""
    body = work.body
    format = asked.schema(request.format)
    if format is not None:
        body["json_schema"] = {"type": "object"} if format == "json" else format
        if work.target == COMPLETION:  # as servers other than llama-server have it
            body["response_format"] = _response_format(format)
    if request.logprobs:
        body["n_probs" if work.target == INFILL else "logprobs"] = max(1, request.top_logprobs or 0)
    _tell_stream(work)


def _response_format(format: dict[str, Any] | str) -> dict[str, Any]:
    if isinstance(format, str):
        return {"type": "json_object"}
    return {"type": "json_schema", "json_schema": {"name": "schema", "schema": format}}


def _tell_stream(work: Work) -> None:
    work.body["stream"] = work.streamed
    if work.streamed and work.target != INFILL:
        work.body["stream_options"] = {"include_usage": True}
