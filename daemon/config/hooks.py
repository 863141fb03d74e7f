"""What happens around the daemon's life: `hooks.on_startup.preload`, the models that are loaded at start."""

from __future__ import annotations

from collections.abc import Mapping

from daemon.config.errors import Problems, did_you_mean, shown
from daemon.config.fields import Section


def read_preload(
    top: Section, models: Mapping[str, object], aliases: Mapping[str, str], problems: Problems
) -> tuple[str, ...]:
    """The ids of the models to preload, in the file's order, each once; ids and aliases may be given."""
    hooks = top.below("hooks")
    started = hooks.below("on_startup") if hooks is not None else None
    found: dict[str, None] = {}
    if hooks is not None and started is not None:
        for item, path in started.texts("preload"):
            id = item.text if item.text in models else aliases.get(item.text)
            if id is None:
                hint = did_you_mean(item.text, [*models, *aliases])
                text = f"expected the id or alias of a model, found {shown(item.text)}{hint}"
                problems.add(item.line, path, text)
            else:
                found[id] = None
        started.finish()
    if hooks is not None:
        hooks.finish()
    return tuple(found)
