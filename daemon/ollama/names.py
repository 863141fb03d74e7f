"""Model names: `small` and `small:latest` are the same to Ollama's clients."""

from __future__ import annotations

from collections.abc import Callable

LATEST = ":latest"


def shown(id: str) -> str:
    """A model's id as Ollama's clients know names: always with a tag."""
    return id if ":" in id.rpartition("/")[2] else id + LATEST


def configured(name: str, known: Callable[[str], bool]) -> str:
    """The name as the configuration has it: as it is, without `:latest`, or with it. "": in no way."""
    if known(name):
        return name
    other = name.removesuffix(LATEST) if name.endswith(LATEST) else shown(name)
    return other if other != name and known(other) else ""
