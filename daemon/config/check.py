"""`runnerd check`: what a configuration means, or everything that is wrong with it."""

from __future__ import annotations

import sys
from pathlib import Path

from daemon.config.config import Config, Model
from daemon.config.errors import ConfigError
from daemon.config.file import load
from daemon.config.units import show_duration, show_size
from events.catalogue import NEVER


def check_main(path: Path) -> int:
    """Print a summary (0), or the problems (1). Warnings and problems go to standard error."""
    try:
        config = load(path)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 1
    for warning in config.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    print("\n".join(summary(config)))
    return 0


def summary(config: Config) -> list[str]:
    """What the daemon would do with it, in a few lines and one for each model."""
    budgets = [
        f"{name} {'as reported' if budget is None else show_size(budget)}"
        for name, budget in config.devices.items()
    ]
    count = len(config.models)
    lines = [
        f"OK: {config.file}: {count} model{'' if count == 1 else 's'}, listening on http://{config.listen}",
        f"devices: {', '.join(budgets) or 'as reported'}; headroom {show_size(config.headroom_bytes)} each",
    ]
    width = max((len(id) for id in config.models), default=0)
    return lines + [f"  {id:{width}}  {_model(config, model)}" for id, model in config.models.items()]


def _model(config: Config, model: Model) -> str:
    endpoint = model.endpoint
    if endpoint.lease == "socket":
        where = "a Unix socket"
    elif endpoint.socket:
        where = f"unix:{endpoint.socket}"
    else:
        port = endpoint.port or f"{config.port_first}-{config.port_last}"
        where = f"http://{endpoint.host}:{port}{endpoint.prefix}"
    memory = ", ".join(
        show_size(size) + (f" on {device}" if device else "") for device, size in model.memory_bytes.items()
    )
    stays = (
        "stays loaded" if model.keep_alive_ns == NEVER else f"idle for {show_duration(model.keep_alive_ns)}"
    )
    parts = [where, f"memory {memory or 'unknown'}", f"slots {model.slots}", stays]
    if model.aliases:
        parts.append(f"also {', '.join(model.aliases)}")
    return "; ".join(parts)
