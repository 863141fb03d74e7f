"""`runnerlog timeline`: what happened, to look at: as a page for a browser, or as a trace for Perfetto."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from pathlib import Path

import click

from daemon.cli.files import new_file
from daemon.cli.logfile import Settings
from daemon.cli.moments import BEGIN, END, Moment, Past, between
from daemon.cli.output import failing, size
from daemon.history.lives import Timeline
from daemon.history.page import Origin, page
from daemon.history.perfetto import trace
from daemon.history.recorder import Recorder
from daemon.limits import TIMELINE_WIDE_REQUESTS
from daemon.nearest import by_id
from daemon.version import VERSION
from events.reader import Reader
from statemachines.replay import UNFOLDABLE

SAY_EVERY = 5000
"""Events between two signs of progress."""


@click.command()
@click.option("--html", type=click.Path(path_type=Path), metavar="FILE", help="One page, for any browser.")
@click.option("--perfetto", type=click.Path(path_type=Path), metavar="FILE", help="For ui.perfetto.dev.")
@click.option("--since", type=Moment(), help=BEGIN)
@click.option("--until", type=Moment(end=True), help=END)
@click.option("--force", is_flag=True, help="Replace the file if it is there.")
@click.argument("models", nargs=-1)
@click.pass_obj
def timeline(
    settings: Settings,
    html: Path | None,
    perfetto: Path | None,
    since: int | Past | None,
    until: int | Past | None,
    force: bool,
    models: tuple[str, ...],
) -> None:
    """Draw runners, requests, memory and the queue along time; with MODELS only theirs."""
    wanted = [path for path in (html, perfetto) if path is not None]
    if not wanted:
        raise click.UsageError("say where to: --html FILE or --perfetto FILE")
    if html is not None and html == perfetto:
        raise click.UsageError("--html and --perfetto are two files")
    with settings.open() as reader:
        line = record(settings, reader, *between(reader, since, until), frozenset(models) or None)
        _check_models(line, models)
        origin = Origin(str(settings.path), reader.log_id, VERSION, _command(settings))
    if html is not None:
        _write(settings, html, force, [page(line, origin)], line)
    if perfetto is not None:
        _write(settings, perfetto, force, trace(line, origin), line)


def record(
    settings: Settings, reader: Reader, after: int, upto: int, models: frozenset[str] | None
) -> Timeline:
    """The timeline of the events after number `after`, up to `upto`. Exits with 1 if they cannot follow."""
    after = after or reader.base.seq - 1
    with settings.output.progress("folding what was before") as say:
        state = settings.fold(reader, after)
        first = next((record.t for record in reader.records(after, after + 1)), state.t)
        recorder = Recorder(state, first, models)
        for event in reader.records(after, upto):
            try:
                recorder.take(event)
            except UNFOLDABLE as error:
                failing(settings.output, seq=event.seq, error=f"event {event.seq} cannot follow: {error}")
            if event.seq % SAY_EVERY == 0:
                say(f"reading: event {event.seq:,} of {upto:,}")
    return recorder.finish()


def _check_models(line: Timeline, models: tuple[str, ...]) -> None:
    """Raises UsageError for a model of which the log says nothing in this time."""
    known = {life.model for life in line.runners.values()} | {life.model for life in line.requests}
    for model in models:
        if model not in known:
            raise click.UsageError(f"nothing of a model {model!r} in this time; {by_id(model, known)}")


def _command(settings: Settings) -> str:
    """What to put before a subject to have it explained."""
    context = click.get_current_context().parent
    named = context is not None and context.get_parameter_source("path") is not None
    given = named and context is not None and context.params.get("path") is not None
    where = ["--log", str(settings.path.absolute())] if given else []
    return shlex.join(["runnerlog", *where, "why"])


def _write(settings: Settings, path: Path, force: bool, parts: Iterable[bytes], line: Timeline) -> None:
    output = settings.output
    with output.progress(f"writing {path}"), new_file(path, force=force, log=settings.path) as file:
        for part in parts:
            file.write(part)
    written, requests = path.stat().st_size, len(line.requests)
    if output.machine:
        counts = {"runners": len(line.runners), "requests": requests, "first": line.first_seq}
        output.line({"ok": True, "path": str(path), "bytes": written, **counts, "last": line.last_seq})
        return
    output.text(f"{len(line.runners):,} runners, {requests:,} requests, {size(written)}: {path}")
    if requests > TIMELINE_WIDE_REQUESTS:
        output.text("that is much to look at: --since, --until and MODEL make it smaller", dim=True)


__all__ = ["timeline"]
