"""Model names: `small` and `small:latest` are the same to Ollama's clients."""

from __future__ import annotations

from collections.abc import Callable

LATEST = ":latest"


def shown(id: str) -> str:
    """A model's id as Ollama's clients know names: always with a tag."""
    return id if ":" in id.rpartition("/")[2] else id + LATEST


def resolve(name: str, known: Callable[[str], str | None]) -> str | None:
    """The model's id for a name as it is, without `:latest`, or with it."""
    found = known(name)
    if found is None and name.endswith(LATEST):
        return known(name.removesuffix(LATEST))
    if found is None and shown(name) != name:
        return known(shown(name))
    return found
