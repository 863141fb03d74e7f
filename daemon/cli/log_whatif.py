"""`runnerlog what-if`: what would have come of the same requests under another configuration."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from daemon.cli.log_window import Walked, count, say, since_and_until, window_of
from daemon.cli.logfile import Settings
from daemon.cli.moments import Past
from daemon.cli.output import Number
from daemon.cli.whatif_table import headlines, show
from daemon.config.units import duration_ns, size_bytes
from daemon.history.changes import EVERY, Changes, with_digests_of
from daemon.history.compare import Column, fidelity
from daemon.history.observed import Recorder
from daemon.history.recording import Recording
from daemon.history.rerun import Rerun
from daemon.history.whatif_notes import notes
from daemon.nearest import by_id
from events.catalogue import NEVER, ConfigChanged, ConfigView
from statemachines.policy import POLICIES

KEY_BYTES = 32
DEVICE = re.compile(r"host|gpu[0-9]{1,3}")


class Assignment(click.ParamType[Any]):
    """`NAME=VALUE`; the value is what `parse` makes of its text (None: it is none)."""

    def __init__(self, form: str, parse: Callable[[str], int | None], wanted: str) -> None:
        self.name = form
        self._parse = parse
        self._wanted = wanted

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, int]:
        """Raises BadParameter, which says what is wanted."""
        if isinstance(value, tuple):
            return value
        name, sign, text = str(value).rpartition("=")
        parsed = self._parse(text.strip())
        if not sign or not name:
            self.fail(f"{value!r} is not {self.name}", param, ctx)
        if parsed is None:
            self.fail(f"{text!r} is not {self._wanted}", param, ctx)
        return name.strip(), parsed


def _slots(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and 0 < int(text) < 100_000 else None


def _keep_alive(text: str) -> int | None:
    return NEVER if text == "never" else duration_ns(int(text) if text.isascii() and text.isdigit() else text)


def _size(text: str) -> int | None:
    return size_bytes(text) or None


MEMORY = Assignment("DEVICE=SIZE", _size, "a size: 24GiB, 512MiB")
SLOTS = Assignment("MODEL=N", _slots, "a number of slots: 1, 4")
KEEP_ALIVE = Assignment("MODEL=TIME", _keep_alive, "a duration (10m, 90s) or `never`")


@click.command("what-if")
@since_and_until
@click.option(
    "--policy",
    "policies",
    multiple=True,
    type=click.Choice(list(POLICIES)),
    help="Another policy; given several times, a column for each.",
)
@click.option(
    "--memory", multiple=True, type=MEMORY, help="Another budget; a GPU that is not there is added."
)
@click.option("--slots", multiple=True, type=SLOTS, help="Other slots; `*` is every model.")
@click.option("--keep-alive", multiple=True, type=KEEP_ALIVE, help="Another keep-alive; `*` is every model.")
@click.option("--max-loaded", type=Number(0), metavar="N", help="At most so many runners; 0: automatic.")
@click.option(
    "--config",
    "file",
    type=click.Path(path_type=Path),
    help="Another configuration file altogether; the other options change that.",
)
@click.pass_obj
def what_if(
    settings: Settings,
    since: int | Past | None,
    until: int | Past | None,
    policies: tuple[str, ...],
    memory: tuple[tuple[str, int], ...],
    slots: tuple[tuple[str, int], ...],
    keep_alive: tuple[tuple[str, int], ...],
    max_loaded: int | None,
    file: Path | None,
) -> None:
    """Play the recorded requests again under another policy, memory budget or configuration, and compare.

    The same arrivals, service times and load times go through the real scheduler: once as it was configured
    (the baseline), and once for each --policy, with every other change.
    """
    output = settings.output
    view = _view(settings, file) if file is not None else None
    with settings.open() as reader, output.progress("reading the log") as tell:
        walked = Walked(reader, window_of(reader, since, until), tell)
        recording, really, offset_ns = _record(walked)
        recorded = _configurations(recording)
        if view is not None and not _key(settings):
            view = with_digests_of(view, recorded[-1] if recorded else ConfigView())
        changes = Changes(view, "", dict(memory), dict(slots), dict(keep_alive), max_loaded)
        _check(changes, [view] if view is not None else recorded, recorded)
        columns = [really]
        for name, change in [("baseline", None), *_variants(changes, policies)]:
            columns.append(_play(recording, name, change, offset_ns, tell))
    if not recording.arrivals:
        raise click.UsageError("no request arrived in this part of the log")
    trust = fidelity(really, columns[1])
    said, crowding = notes(recording, changes, recorded), _crowding(columns[1:])
    if output.machine:
        for column in columns:
            output.line(column.plain())
        plain = {name: getattr(trust, name) for name in trust.__struct_fields__}
        substitutes = {
            name: getattr(recording.substitutes, name) for name in recording.substitutes.__struct_fields__
        }
        output.line({"fidelity": plain, "substitutes": substitutes, "notes": [*crowding, *said]})
    else:
        for text in [*headlines(columns, _described(changes, file)), *crowding]:
            say(output, text)
        show(output, columns, trust, said)


def _record(walked: Walked) -> tuple[Recording, Column, int]:
    """What the window says of the world, and what came of it."""
    state = walked.walk.state
    start = copy.deepcopy(state)
    recorder, really = Recorder(start), Column("recorded", state)
    offset_ns: int | None = None
    for events, at_ns in walked:
        if offset_ns is None:
            offset_ns = at_ns - events[0].t
        for event in events:
            recorder.note(state, event)
            really.note(state, event, at_ns)
    really.finish(state)
    return Recording(recorder, start), really, offset_ns or 0


def _play(
    recording: Recording, name: str, changes: Changes | None, offset_ns: int, tell: Callable[[str], None]
) -> Column:
    """One column."""
    column = Column(name, recording.start)
    budgets = changes.budgets_bytes if changes is not None else {}
    again = Rerun(
        recording, changes or _same, [column], sizes_bytes={**budgets, **_new_devices(recording, changes)},
        offset_ns=offset_ns,
    )  # fmt: skip
    again.play(lambda percent: tell(f"{name}: {percent} %"))
    column.finish(again.state)
    return column


def _same(view: ConfigView) -> ConfigView:
    return view


def _crowding(columns: Sequence[Column]) -> list[str]:
    """Where it is not memory that is short."""
    names = [
        f"{column.name} ({column.limit})" for column in columns if column.crowded * 2 > column.claims > 0
    ]
    if not names:
        return []
    return [f"Most swaps are for want of a place, not of memory (--max-loaded): {', '.join(names)}"]


def _new_devices(recording: Recording, changes: Changes | None) -> dict[str, int]:
    """Devices that only the other file has, with the budget that it gives them."""
    if changes is None or changes.view is None:
        return {}
    known = {name for memory in recording.readings for name in memory.total_bytes}
    budgets = {name: device.budget_bytes for name, device in changes.view.devices.items()}
    return {name: size for name, size in budgets.items() if size is not None and name not in known}


def _variants(changes: Changes, policies: Sequence[str]) -> list[tuple[str, Changes]]:
    """The columns beside the baseline; none where nothing is to be different."""
    if policies:
        from msgspec.structs import replace

        return [(policy, replace(changes, policy=policy)) for policy in policies]
    return [("what if", changes)] if changes != Changes() else []


# --- what is asked for -----------------------------------------------------------------------------------


def _configurations(recording: Recording) -> list[ConfigView]:
    """Every configuration of the window, the last one last."""
    views = [recording.start.config] if recording.start.config.models else []
    return views + [each.fact.view for each in recording.inputs if isinstance(each.fact, ConfigChanged)]


def _check(changes: Changes, views: Sequence[ConfigView], recorded: Sequence[ConfigView]) -> None:
    """Raises UsageError for a model that there is not, or a device that cannot be meant."""
    models = dict.fromkeys(name for view in views for name in view.models)
    for option, given in (("--slots", changes.slots), ("--keep-alive", changes.keep_alive_ns)):
        for name in given:
            if name != EVERY and name not in models:
                raise click.UsageError(f"{option}: no model {name!r}; {by_id(name, models)}")
    devices = dict.fromkeys(name for view in (*views, *recorded) for name in view.devices)
    for name in changes.budgets_bytes:
        if name not in devices and not DEVICE.fullmatch(name):
            raise click.UsageError(f"--memory: {name!r} is no device; they are called host, gpu0, gpu1 …")


def _key(settings: Settings) -> bytes:
    """The key of the digests of the log's launch specs; empty where this user cannot read it."""
    try:
        key = (settings.path.parent / "digest.key").read_bytes()
    except OSError:
        return b""
    return key if len(key) == KEY_BYTES else b""


def _view(settings: Settings, file: Path) -> ConfigView:
    """What the scheduler would know of another file. Exits as `runnerd check` does where that is wrong."""
    import trio

    from daemon.cli.runnerd import EXIT_REFUSED, EXIT_USAGE
    from daemon.config.errors import ConfigError, Unreadable
    from daemon.config.file import load
    from daemon.estimates import with_estimates

    try:
        config = trio.run(with_estimates, load(file))
    except ConfigError as error:
        click.echo(str(error), err=True)
        raise SystemExit(EXIT_USAGE if isinstance(error, Unreadable) else EXIT_REFUSED) from None
    for warning in config.warnings:
        click.echo(f"warning: {warning}", err=True)
    return config.view(_key(settings))


def _described(changes: Changes, file: Path | None) -> str:
    """What is different, but for the policy."""
    parts = [f"configuration {file}"] if file is not None else []
    parts += [f"{name} {_shown_size(size)}" for name, size in changes.budgets_bytes.items()]
    parts += [f"{_whose(name)} {count(number, 'slot')}" for name, number in changes.slots.items()]
    parts += [f"{_whose(name)} keep-alive {_shown_time(ns)}" for name, ns in changes.keep_alive_ns.items()]
    if changes.max_loaded is not None:
        parts.append(f"at most {changes.max_loaded or 'automatic'} loaded")
    return ", ".join(parts)


def _whose(name: str) -> str:
    return "every model" if name == EVERY else name


def _shown_size(size: int) -> str:
    from daemon.config.units import show_size

    return show_size(size)


def _shown_time(ns: int) -> str:
    from daemon.config.units import show_duration

    return "never ends" if ns == NEVER else show_duration(ns)
