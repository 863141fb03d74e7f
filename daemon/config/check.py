"""`runnerd check`: what a configuration means, or everything that is wrong with it."""

from __future__ import annotations

import logging
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import trio

from daemon.cli.runnerd import EXIT_REFUSED, EXIT_USAGE
from daemon.config.config import Config, Model
from daemon.config.errors import ConfigError, Unreadable, join_path
from daemon.config.file import load
from daemon.config.macros import fill
from daemon.config.units import show_duration, show_size
from daemon.estimates import with_estimates
from events.catalogue import NEVER, ConfigChanged, Event
from events.limits import CONFIG_MODELS
from statemachines.estimate import context_tokens, total_bytes
from statemachines.fold import apply
from statemachines.ledger import of_which
from statemachines.memcheck import obstacles
from statemachines.state import State

log = logging.getLogger("runnerd")

LEAST_MODEL_BYTES = 1 << 20
"""No model server is smaller than this."""


def check_main(path: Path, *, insecure: bool = False) -> int:
    """Print a summary (0), or the problems (1; 2: the file cannot be read). Warnings and problems go to
    standard error."""
    try:
        config = load(path, guarded=not insecure)
        with _printed():
            config = trio.run(with_estimates, config)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return EXIT_USAGE if isinstance(error, Unreadable) else EXIT_REFUSED
    for warning in [*config.warnings, *doubts(config), *preload_warnings(config)]:
        print(f"warning: {warning}", file=sys.stderr)
    print("\n".join(summary(config)))
    return 0


@contextmanager
def _printed() -> Iterator[None]:
    """What is logged meanwhile is printed as the other warnings are."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("warning: %(message)s"))
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)


def doubts(config: Config) -> list[str]:
    """What can hardly be meant, or cannot work on this machine as it is."""
    found: list[tuple[str, str]] = []
    for id, model in config.models.items():
        path = join_path("models", id)
        program = fill(model.argv[0], {name: str(value) for name, value in model.options.items()})
        if "=" in program.partition("/")[0]:
            found.append((f"{path}.cmd", "no shell runs: variables belong into `env`"))
        elif "${" not in program and shutil.which(program) is None:
            found.append((f"{path}.cmd", f"there is no program {program!r} here"))
        for device, size in model.memory_bytes.items():
            budgets = [b for name, b in config.devices.items() if device in ("", name) and b is not None]
            if budgets and size > max(budgets) - config.headroom_bytes:
                room = f"the budget is {show_size(max(budgets))}{of_which(config.headroom_bytes)}"
                found.append((f"{path}.memory", f"{show_size(size)} can never fit: {room}"))
            elif size < LEAST_MODEL_BYTES:
                found.append((f"{path}.memory", f"{show_size(size)} is little: is the unit missing?"))
        swaps = any(id in group.members and group.swap for group in config.groups.values())
        if swaps and model.instances_max > 1:
            found.append((f"{path}.instances", "its group has `swap`: one runner at a time"))
    return [config.problem(path, text).show(config.file) for path, text in found]


def preload_warnings(config: Config) -> list[str]:
    """Why what is to be preloaded cannot be loaded together, as far as the file says what there is."""
    view = config.view(b"")
    if not view.max_loaded:  # how many there may be depends on the machine's GPUs
        view = msgspec.structs.replace(view, max_loaded=CONFIG_MODELS)
    state = State()
    apply(state, Event(1, 0, 0, "", ConfigChanged(view, "check")))
    where = "hooks.on_startup.preload"
    return [config.problem(where, text).show(config.file) for text in obstacles(state, config.preload)]


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
    if config.preload:
        lines.append(f"loaded at start: {', '.join(config.preload)}")
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
    stays = "stays loaded"
    if model.keep_alive_ns != NEVER:
        stays = f"unloaded when idle for {show_duration(model.keep_alive_ns)}"
    if not memory and model.estimate is not None:
        memory = f"about {show_size(total_bytes(model.estimate, model.options))} by its file"
    if model.shards:
        where += f" and {len(model.shards)} shard{'' if len(model.shards) == 1 else 's'}"
    slots = f"slots {model.slots}"
    tokens = context_tokens(model.estimate, model.options) if model.estimate is not None else 0
    if tokens and model.slots > 1:
        slots += f", which share {tokens} tokens of context ({tokens // model.slots} for a request)"
    parts = [where, f"memory {memory or 'unknown'}", slots, stays]
    if model.aliases:
        parts.append(f"also {', '.join(model.aliases)}")
    return "; ".join(parts)
