"""What the bodies of Ollama's requests hold: typed, unknown members ignored, null as if it were not there."""

from __future__ import annotations

import re
from typing import Any, TypeVar

import msgspec

from daemon.limits import OLLAMA_TOP_LOGPROBS
from daemon.ollama.messages import Message
from daemon.ollama.wrong import INVALID_JSON, wrong

T = TypeVar("T")

SURROGATES = re.compile(
    rb"(?:\\(?:[^u]|u(?![dD][89a-fA-F]))[^\\]*+)++"
    rb"|\\u[dD](?:[89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|([89a-fA-F][0-9a-fA-F]{2}))"
)
"""Other escapes (one is a backslash that stands for itself) and the text between them, as many as there are;
a pair of surrogates; or one alone, which is the group."""

LEVELS = ("low", "medium", "high", "max")
"""How hard a model may be told to think."""


class Common(msgspec.Struct, gc=False):
    """What every request for a model's work has."""

    model: str | None = None
    options: dict[str, msgspec.Raw] | None = None
    keep_alive: int | float | str | None = None


class Text(Common, gc=False):
    """What every request for text has."""

    stream: bool | None = None
    format: msgspec.Raw = msgspec.Raw()
    think: bool | str | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None


class Chat(Text, gc=False):
    """POST /api/chat."""

    messages: list[Message] | None = None
    tools: list[msgspec.Raw] | None = None


class Generate(Text, gc=False):
    """POST /api/generate."""

    prompt: str | None = None
    suffix: str | None = None
    system: str | None = None
    template: str | None = None
    context: list[int] | None = None
    raw: bool | None = None
    images: list[str] | None = None


class Embed(Common, gc=False):
    """POST /api/embed."""

    input: str | list[str] | None = None
    dimensions: int | None = None


class Embeddings(Common, gc=False):
    """POST /api/embeddings."""

    prompt: str | None = None


class Show(msgspec.Struct, gc=False):
    """POST /api/show."""

    model: str | None = None
    name: str | None = None


class Pull(Show, gc=False):
    """POST /api/pull."""

    stream: bool | None = None


def read(body: Any, shape: type[T]) -> T:
    """A request's body. Raises Refused."""
    if not len(body):
        raise wrong("missing request body")
    try:
        try:
            return msgspec.json.decode(body, type=shape)
        except msgspec.ValidationError:
            raise
        except msgspec.DecodeError:
            return msgspec.json.decode(paired(body), type=shape)
    except msgspec.ValidationError as invalid:
        raise wrong(f"invalid request body: {invalid}") from None
    except INVALID_JSON as invalid:
        raise wrong(f"the request body is not valid JSON: {invalid}") from None


def paired(body: Any) -> bytes:
    """The body with U+FFFD for each half of a surrogate pair that is alone, as Go reads it: JavaScript writes
    such where it has cut a text within a character."""
    return SURROGATES.sub(lambda found: found[0] if found[1] is None else rb"\ufffd", body)


def check(asked: Text) -> None:
    """What the types do not say. Raises Refused."""
    if not 0 <= (asked.top_logprobs or 0) <= OLLAMA_TOP_LOGPROBS:
        raise wrong(f"top_logprobs must be between 0 and {OLLAMA_TOP_LOGPROBS}")
    if isinstance(asked.think, str) and asked.think not in LEVELS:
        words = ", ".join(f'"{level}"' for level in LEVELS)
        raise wrong(f'invalid think value: "{asked.think}" (must be {words}, true, or false)')


def schema(format: msgspec.Raw) -> dict[str, Any] | str | None:
    """The format that an answer must have: a JSON schema, "json" for any object, or None. Raises Refused."""
    text = bytes(format)
    if text in (b"", b"null", b'""'):
        return None
    if text == b'"json"':
        return "json"
    if not text.startswith(b"{"):
        raise wrong(f'invalid format: {text[:80].decode()}; expected "json" or a valid JSON Schema object')
    try:
        found: dict[str, Any] = msgspec.json.decode(text)
    except INVALID_JSON as invalid:
        raise wrong(f"invalid format: {invalid}") from None
    return found
