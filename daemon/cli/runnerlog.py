"""`runnerlog`: the event-log tool. Works on a log file, with or without a daemon, and never writes to it."""

from __future__ import annotations

import json
import os
import sqlite3
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import msgspec

from daemon.cli.describe import describe
from daemon.cli.output import Output, clock_time, duration, failing, size
from daemon.cli.runnerd import EXIT_REFUSED, EXIT_UNREACHABLE, default_log
from daemon.version import VERSION
from events.envelope import LogError, Record, decode
from events.reader import ChainBroken, Reader
from statemachines.fold import apply
from statemachines.replay import Divergence
from statemachines.replay import verify as rederive
from statemachines.state import State, canonical

RUNNER_STORY = ("runner.", "process.", "spawn.", "lease.", "model.", "claim.", "turn.", "daemon.", "operat")
"""The types that tell what became of the runners, without each request."""


class Settings:
    """What the options before the command say."""

    def __init__(self, path: Path, as_json: bool) -> None:
        self.path = path
        self.output = Output(as_json=as_json)

    def open(self) -> Reader:
        """The log, open for reading; exits with 3 where that is impossible."""
        try:
            return Reader(self.path)
        except (LogError, OSError, sqlite3.Error) as error:
            hint = "" if self.path.exists() else " (which log? --log PATH, or $STATE_DIRECTORY)"
            click.echo(f"runnerlog: cannot open {self.path}: {error}{hint}", err=True)
            raise SystemExit(EXIT_UNREACHABLE) from None


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--log", "path", type=click.Path(path_type=Path), help="The log (default: the daemon's).")
@click.option("--json", "as_json", is_flag=True, help="Stable JSON lines, also on a terminal.")
@click.version_option(VERSION, prog_name="runnerlog")
@click.pass_context
def cli(context: click.Context, path: Path | None, as_json: bool) -> None:
    """Read a runnerd event log: what happened, whether it is intact, what it adds up to."""
    context.obj = Settings(path or default_log(os.environ), as_json)


@cli.command()
@click.option("--after", default=0, metavar="SEQ", help="Begin after this event.")
@click.option("--upto", type=int, metavar="SEQ", help="End with this event.")
@click.option(
    "--type", "types", multiple=True, metavar="TYPE", help="Only this type, or `runner.` for all such."
)
@click.option("--runners", is_flag=True, help="Only what became of the runners, without each request.")
@click.argument("subjects", nargs=-1)
@click.pass_obj
def show(
    settings: Settings,
    after: int,
    upto: int | None,
    types: tuple[str, ...],
    runners: bool,
    subjects: tuple[str, ...],
) -> None:
    """Print events, oldest first; with SUBJECTS (q12, r17, a model's name) only theirs."""
    wanted = types + (RUNNER_STORY if runners else ())
    with settings.open() as reader:
        for record in _records(reader, subjects, after, upto):
            if not wanted or record.type.startswith(wanted):
                _print_event(settings.output, record)


def _records(reader: Reader, subjects: tuple[str, ...], after: int, upto: int | None) -> Iterator[Record]:
    if not subjects:
        yield from reader.records(after, upto)
        return
    seen = {record.seq: record for subject in subjects for record in reader.of(subject)}
    for seq in sorted(seen):
        if seq > after and (upto is None or seq <= upto):
            yield seen[seq]


def _print_event(output: Output, record: Record) -> None:
    payload: dict[str, Any] = json.loads(record.payload)
    payload.pop("type", None)
    if output.machine:
        numbers = {"seq": record.seq, "at": record.at, "t": record.t, "cause": record.cause}
        output.line({**numbers, "type": record.type, "subject": record.subject, "payload": payload})
        return
    mark = "  └ " if record.cause else ""
    what = describe(record.type, record.subject, payload)
    output.text(f"{clock_time(record.at)}  {record.seq:>6}  {mark}{what}", dim=not record.cause)


@cli.command()
@click.pass_obj
def verify(settings: Settings) -> None:
    """Check the chain, then run every fact through the scheduler again and compare each decision."""
    output = settings.output
    with settings.open() as reader:
        try:
            with output.progress("chain"):
                count = reader.verify_chain()
            with output.progress("decisions"):
                report, _ = rederive(reader.events())
        except (ChainBroken, LogError) as error:
            failing(output, seq=getattr(error, "seq", 0), error=str(error))
        except Divergence as error:
            failing(output, seq=error.seq, error=str(error))
    if output.machine:
        output.line({"ok": True, "events": count, **msgspec.to_builtins(report)})
        return
    output.text(f"chain intact: {count} events")
    output.text(f"decisions reproduced: {report.decisions} of {report.decisions}, in {report.steps} steps")
    for rules, steps in report.not_rederived.items():
        output.text(f"not re-derived (rules {rules}): {steps} steps")


@cli.command()
@click.option("--at", "upto", type=int, metavar="SEQ", help="The state after this event (default: the last).")
@click.pass_obj
def state(settings: Settings, upto: int | None) -> None:
    """What the log folds to: runners, requests, memory."""
    folded = State()
    with settings.open() as reader:
        try:
            for record in reader.records(0, upto):
                apply(folded, decode(record))
        except LogError as error:
            failing(settings.output, seq=getattr(error, "seq", folded.seq + 1), error=str(error))
    if settings.output.machine:
        settings.output.raw(canonical(folded).decode())
    else:
        _print_state(settings.output, folded)


def _print_state(output: Output, folded: State) -> None:
    output.text(f"after event {folded.seq}: {len(folded.runners)} runners, {folded.queued} queued, "
                f"{len(folded.requests) - folded.queued} running")  # fmt: skip
    rows = [
        [r.id, r.model, r.state.value, f"{len(r.held)}/{r.slots}", _memory(r.reserved_bytes),
         duration(folded.t - r.load_t), str(r.port or "")]
        for r in folded.runners.values()
    ]  # fmt: skip
    output.table(["runner", "model", "state", "slots", "memory", "age", "port"], rows)
    requests = folded.requests.values()
    waiting = [[q.id, q.model, q.state.value, duration(folded.t - q.arrived_t), q.runner] for q in requests]
    output.table(["request", "model", "state", "age", "runner"], waiting)


def _memory(reserved: dict[str, int]) -> str:
    return ", ".join(f"{size(n)} {device}" for device, n in reserved.items()) or "unknown"


def main() -> int:
    """Exit codes: 0 done, 1 the log is damaged, 2 usage, 3 it cannot be opened."""
    try:
        cli(standalone_mode=True)
    except BrokenPipeError:
        sys.stderr.close()
        return EXIT_REFUSED
    return 0


if __name__ == "__main__":
    sys.exit(main())
