"""Words that explanations share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from daemon.cli.describe import demand_name, duration, size
from events.catalogue import Option

if TYPE_CHECKING:
    from daemon.explain.lives import Asker

MOMENT_NS = 50_000_000
"""Shorter than anybody notices."""


def count(number: int, noun: str) -> str:
    """`1 request`, `2 requests`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def listed(names: list[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}" if names else ""


def sizes(each: Mapping[str, int]) -> str:
    """`6.0 GiB on gpu0`; of nothing known, that it is so."""
    return listed([f"{size(n)} on {device}" for device, n in each.items()]) or "an unknown amount of memory"


def options_of(options: Mapping[str, Option]) -> str:
    """` with num_ctx=8192`, or nothing."""
    return " with " + ", ".join(f"{name}={value}" for name, value in options.items()) if options else ""


def asker_words(asker: Asker) -> str:
    """Who asked: `q20 (from 127.0.0.1)`, `an operator (o9)`, `the configuration (preload)`."""
    if asker.preload:
        return f"the configuration, which preloads it ({asker.id})"
    if asker.id.startswith("o"):
        return f"an operator ({asker.id})"
    return f"{asker.id} (from {asker.who})" if asker.who else asker.id


def short(ns: int) -> str:
    """A duration; what is hardly one is a moment."""
    return duration(ns) if ns >= MOMENT_NS else "a moment"


def first_up(text: str) -> str:
    """As a sentence begins."""
    return text[:1].upper() + text[1:]


__all__ = [
    "asker_words",
    "count",
    "demand_name",
    "duration",
    "first_up",
    "listed",
    "options_of",
    "size",
    "sizes",
]
