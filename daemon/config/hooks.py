"""What happens at start: `hooks.on_startup`, the models that are loaded and the profile that is used."""

from __future__ import annotations

from collections.abc import Mapping

from daemon.config.errors import Problems, did_you_mean, shown
from daemon.config.fields import Section


def read_hooks(
    top: Section,
    models: Mapping[str, object],
    aliases: Mapping[str, str],
    profiles: Mapping[str, object],
    problems: Problems,
) -> tuple[tuple[str, ...], str]:
    """The ids of the models to preload, in the file's order, each once (ids and aliases may be given), and
    the profile to use; "": whichever is in use."""
    hooks = top.below("hooks")
    started = hooks.below("on_startup") if hooks is not None else None
    found: dict[str, None] = {}
    profile = ""
    if hooks is not None and started is not None:
        for item, path in started.texts("preload"):
            id = item.text if item.text in models else aliases.get(item.text)
            if id is None:
                hint = did_you_mean(item.text, [*models, *aliases])
                text = f"expected the id or alias of a model, found {shown(item.text)}{hint}"
                problems.add(item.line, path, text)
            else:
                found[id] = None
        profile = started.text("profile")
        if profile and profile not in profiles:
            expected = f"the name of one of `profiles`{did_you_mean(profile, profiles)}"
            started.wrong("profile", expected, started.node("profile"))
        started.finish()
    if hooks is not None:
        hooks.finish()
    return tuple(found), profile
