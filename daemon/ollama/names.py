"""Model names: `small` and `small:latest` are the same to Ollama's clients."""

from __future__ import annotations

from collections.abc import Callable

LATEST = ":latest"


def shown(id: str) -> str:
    """A model's id as Ollama's clients know names: always with a tag."""
    return id if ":" in id.rpartition("/")[2] else id + LATEST


def known(name: str, resolve: Callable[[str], str | None]) -> str | None:
    """The name as the configuration has it: as it is, without `:latest`, or with it."""
    for spelled in (name, name.removesuffix(LATEST), shown(name)):
        if resolve(spelled) is not None:
            return spelled
    return None
