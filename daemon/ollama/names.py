"""Model names: `small`, `small:latest`, `Small` and `library/small` are the same to Ollama's clients."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

LATEST = ":latest"
LIBRARY = ("registry.ollama.ai/library/", "library/")
"""What Ollama takes a name to begin with that has no such beginning."""


def shown(id: str) -> str:
    """A model's id as Ollama's clients know names: always with a tag."""
    return id if ":" in id.rpartition("/")[2] else id + LATEST


def configured(name: str, known: Callable[[str], bool]) -> str:
    """The name as the configuration has it: as it is, without `:latest`, or with it. "": in no way."""
    if known(name):
        return name
    other = name.removesuffix(LATEST) if name.endswith(LATEST) else shown(name)
    return other if other != name and known(other) else ""


def spellings(name: str, names: Callable[[], Iterable[str]]) -> Iterator[str]:
    """How a name may be configured, the likeliest first: as it is, without the library that it is of, and in
    other letters, large for small, if just one of all `names` is the same but for that."""
    yield name
    bare = _bare(name)
    if bare != name:
        yield bare
    folded = shown(bare).lower()
    alike = {shown(_bare(each)): each for each in names() if shown(_bare(each)).lower() == folded}
    if len(alike) == 1:
        yield from alike.values()


def _bare(name: str) -> str:
    """The name without the library that every name is of where nothing else is said."""
    lower = name.lower()
    start = next((start for start in LIBRARY if lower.startswith(start)), "")
    return name[len(start) :]
