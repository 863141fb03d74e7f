"""A conversation as Ollama's clients write it, in OpenAI's words: images, tool calls, tool results."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from typing import Any

import msgspec

from daemon.limits import OLLAMA_ROLE_CHARS
from daemon.ollama.wrong import wrong

HEAD_CHARS = 24
"""As much of a picture in base64 as says what it is; a multiple of four."""

PICTURES = {b"\x89PNG": "png", b"\xff\xd8\xff": "jpeg", b"GIF8": "gif", b"BM": "bmp"}


class Function(msgspec.Struct, gc=False):
    """A call that a model has made."""

    name: str | None = None
    arguments: dict[str, msgspec.Raw] | None = None


class ToolCall(msgspec.Struct, gc=False):
    """The same, in a message."""

    function: Function
    id: str | None = None


class Message(msgspec.Struct, gc=False):
    """One message of a conversation."""

    role: str | None = None
    content: str | None = None
    thinking: str | None = None
    images: list[str] | None = None
    tool_calls: list[ToolCall] | None = None
    tool_name: str | None = None
    tool_call_id: str | None = None


def translate(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """The messages for /v1/chat/completions. Raises Refused.

    Ollama matches a tool's result to its call by name or by place, OpenAI by an id. So a call without one is
    given one, and a result without one is that of the oldest unanswered call of its name, or of all; a result
    whose id no call has is that of one whose id was left out (some clients keep only the result's).
    """
    calls = _Calls()
    return [_message(message, calls) for message in messages]


class _Calls:
    """The calls that no tool message has answered yet: ids and names, oldest first."""

    def __init__(self) -> None:
        self._open: list[tuple[str, str]] = []
        self._made_up: set[str] = set()
        self._count = 0

    def made(self, id: str, name: str) -> str:
        """The id of a call, made up where it has none."""
        self._count += 1
        if not id:
            id = f"call{self._count:05}"  # nine letters and digits: the templates of Mistral's models insist
            self._made_up.add(id)
        self._open.append((id, name))
        return id

    def answered(self, id: str, name: str) -> str:
        """The id of the call that a result belongs to."""
        found = [call for call in self._open if call[0] == id]
        if not found:
            could = [call for call in self._open if call[0] in self._made_up] if id else self._open
            found = [call for call in could if name in ("", call[1])] or could
        if not found:
            return id
        oldest = found[0]
        self._open.remove(oldest)
        return oldest[0]


def _message(message: Message, calls: _Calls) -> dict[str, Any]:
    role = (message.role or "").lower()
    if not 0 < len(role) <= OLLAMA_ROLE_CHARS:
        text = '"system", "user", "assistant", "tool", or another that the model knows'
        raise wrong(f"invalid role {role[:OLLAMA_ROLE_CHARS]!r}: expected {text}")
    made: dict[str, Any] = {"role": role, "content": content(message.content or "", message.images or ())}
    if message.thinking:
        made["reasoning_content"] = message.thinking
    if message.tool_calls:
        made["tool_calls"] = [_tool_call(call, calls) for call in message.tool_calls]
    if role == "tool":
        if message.tool_name:
            made["name"] = message.tool_name
        id = calls.answered(message.tool_call_id or "", message.tool_name or "")
        if id:
            made["tool_call_id"] = id
    return made


def _tool_call(call: ToolCall, calls: _Calls) -> dict[str, Any]:
    name = call.function.name or ""
    arguments = msgspec.json.encode(call.function.arguments or {}).decode()
    id = calls.made(call.id or "", name)
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


def content(text: str, images: Sequence[str]) -> str | list[dict[str, Any]]:
    """A message's content: its text, or where there are images or sounds, its parts. Raises Refused."""
    if not images:
        return text
    parts: list[dict[str, Any]] = [{"type": "text", "text": text}] if text else []
    return parts + [_medium(image) for image in images]


def _medium(data: str) -> dict[str, Any]:
    """A picture as a data URL; a sound as it is. Raises Refused for what is no base64. It may be in lines, as
    `base64` writes it: Ollama does not mind, model servers do."""
    if "\n" in data or "\r" in data:
        data = data.replace("\n", "").replace("\r", "")
    try:
        binascii.a2b_base64(data, strict_mode=True)
        head = base64.b64decode(data[:HEAD_CHARS])
    except (binascii.Error, ValueError):
        raise wrong("illegal base64 data in images") from None
    if head.startswith(b"RIFF") and head[8:12] == b"WAVE":
        return {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}
    if head.startswith(b"ID3"):
        return {"type": "input_audio", "input_audio": {"data": data, "format": "mp3"}}
    kind = "webp" if head.startswith(b"RIFF") and head[8:12] == b"WEBP" else "jpeg"
    kind = next((name for magic, name in PICTURES.items() if head.startswith(magic)), kind)
    return {"type": "image_url", "image_url": {"url": f"data:image/{kind};base64,{data}"}}
