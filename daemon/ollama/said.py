"""What Ollama says: the lines of its streams, which are its whole answers too."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import msgspec

from daemon.ollama.heard import Likely

MS = 1_000_000


class Token(msgspec.Struct, omit_defaults=True, gc=False):
    """A token and how likely it was."""

    token: str
    logprob: float
    bytes: list[int] | None = None
    top_logprobs: list[Token] | None = None


class CalledFunction(msgspec.Struct, gc=False):
    """A call; its arguments as an object."""

    index: int
    name: str
    arguments: dict[str, Any]


class Called(msgspec.Struct, omit_defaults=True, gc=False):
    """The same, in a message."""

    function: CalledFunction
    id: str = ""


class Figures(msgspec.Struct, omit_defaults=True, gc=False, kw_only=True):
    """Times in ns, and tokens. What is 0 is not known, and is left out."""

    done_reason: str = ""
    total_duration: int = 0
    load_duration: int = 0
    prompt_eval_count: int = 0
    prompt_eval_duration: int = 0
    eval_count: int = 0
    eval_duration: int = 0


class Said(msgspec.Struct, omit_defaults=True, gc=False):
    """A message, or what a line adds to it."""

    role: str
    content: str
    thinking: str = ""
    tool_calls: list[Called] = []


class ChatLine(Figures, gc=False):
    """A line of /api/chat."""

    model: str
    created_at: str
    message: Said
    done: bool
    logprobs: list[Token] = []


class GenerateLine(Figures, gc=False):
    """A line of /api/generate."""

    model: str
    created_at: str
    response: str
    done: bool
    thinking: str = ""
    context: list[int] | None = None
    logprobs: list[Token] = []


def now() -> str:
    """The time as Ollama writes it."""
    return written(datetime.now(UTC))


def written(moment: datetime) -> str:
    """A time of UTC with a fraction of a second, also if that is 0: some clients read no others."""
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")


def tokens(likely: list[Likely], *, alternatives: bool) -> list[Token]:
    """A model server's probabilities of tokens."""
    return [_token(each, alternatives) for each in likely if each.logprob is not None]


def _token(each: Likely, alternatives: bool) -> Token:
    others = each.top_logprobs if alternatives else None
    return Token(
        each.token, each.logprob or 0.0, each.bytes, tokens(others, alternatives=False) if others else None
    )


def error(message: str) -> bytes:
    """An error, as a line or as a whole answer."""
    return msgspec.json.encode({"error": message})


def nothing(form: str, model: str, reason: str) -> bytes:
    """The answer to a request that asked for nothing: "load" or "unload"."""
    if form == "chat":
        return msgspec.json.encode(ChatLine(model, now(), Said("assistant", ""), True, done_reason=reason))
    if form == "generate":
        return msgspec.json.encode(GenerateLine(model, now(), "", True, done_reason=reason))
    return msgspec.json.encode(
        {"embedding": []} if form == "embeddings" else {"model": model, "embeddings": []}
    )
