"""`runnerlog`: the event-log tool. Works on a log file, with or without a daemon; only `prune` changes it."""

from __future__ import annotations

import difflib
import os
import sys
from collections import deque
from collections.abc import Iterable
from itertools import chain, islice
from pathlib import Path

import click
import msgspec

from daemon.cli.describe import printable
from daemon.cli.lazy import Commands
from daemon.cli.logfile import Facts, Settings
from daemon.cli.moments import BEGIN, END, Moment, Past, between, last_by
from daemon.cli.output import ANY_PATH, Column, Number, Output, age, as_json, failing, memory, run, wrapped
from daemon.cli.runnerd import EXIT_REFUSED, default_log
from daemon.cli.select import fields_of, meant, selected, unseen
from daemon.past import nearest
from daemon.version import VERSION
from events.envelope import Record
from events.upcast import CLASSES
from statemachines.replay import UNFOLDABLE
from statemachines.replay import verify as rederive
from statemachines.request import RequestState
from statemachines.state import State, canonical

RUNNER_STORY = (
    "runner.", "process.", "spawn.", "lease.", "probe.", "model.", "claim.", "turn.", "daemon.", "operat"
)  # fmt: skip
"""The types that tell what became of the runners, without each request."""


ELSEWHERE = {
    "diff": ("daemon.cli.log_diff", "diff"),
    "export": ("daemon.cli.log_export", "export"),
    "prune": ("daemon.cli.upkeep", "prune"),
    "replay": ("daemon.cli.log_replay", "replay"),
    "salvage": ("daemon.cli.upkeep", "salvage"),
    "stats": ("daemon.cli.log_stats", "stats"),
    "timeline": ("daemon.cli.log_timeline", "timeline"),
    "waits": ("daemon.cli.log_waits", "waits"),
    "what-if": ("daemon.cli.log_whatif", "what_if"),
    "why": ("daemon.cli.log_why", "why"),
    "why-not": ("daemon.cli.log_why", "why_not"),
}
"""Further commands, with where they are."""


@click.group(cls=Commands, elsewhere=ELSEWHERE, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--log", "path", type=ANY_PATH, help="The log (default: the daemon's).")
@as_json
@click.version_option(VERSION, prog_name="runnerlog")
@click.pass_context
def cli(context: click.Context, path: Path | None, as_json: bool | None) -> None:
    """Read a runnerd event log: what happened, whether it is intact, what it adds up to."""
    context.obj = Settings(path or default_log(os.environ), as_json)


@cli.result_callback()
@click.pass_obj
def _ended(settings: Settings, /, done: object, **_: object) -> object:
    """After a command that has not failed by itself."""
    if settings.damaged:
        raise SystemExit(EXIT_REFUSED)
    return done


def _types(context: click.Context, option: click.Parameter, given: tuple[str, ...]) -> tuple[str, ...]:
    for prefix in given:
        if not any(type.startswith(prefix) for type in CLASSES):
            near = difflib.get_close_matches(prefix, CLASSES, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise click.BadParameter(f"no event has a type that begins with {prefix!r}{hint}")
    return given


@cli.command()
@click.option("--after", type=Number(0), default=0, metavar="SEQ", help="Begin after this event.")
@click.option("--upto", type=Number(0), metavar="SEQ", help="End with this event.")
@click.option("--since", type=Moment(), help=BEGIN)
@click.option("--until", type=Moment(end=True), help=END)
@click.option("--follow", "-f", is_flag=True, help="Go on with what is appended, until interrupted.")
@click.option(
    "--type",
    "types",
    multiple=True,
    metavar="TYPE",
    callback=_types,
    help="Only this type, or `runner.` for all such.",
)
@click.option("--runners", is_flag=True, help="Only what became of the runners, without each request.")
@click.option("--limit", type=Number(1), metavar="N", help="At most so many, the first ones.")
@click.option("--last", type=Number(1), metavar="N", help="At most so many, the last ones.")
@click.argument("subjects", nargs=-1)
@click.pass_obj
def show(
    settings: Settings,
    after: int,
    upto: int | None,
    since: int | Past | None,
    until: int | Past | None,
    follow: bool,
    types: tuple[str, ...],
    runners: bool,
    limit: int | None,
    last: int | None,
    subjects: tuple[str, ...],
) -> None:
    """Print events, oldest first; with SUBJECTS (q12, r17, a model's name) only theirs."""
    wanted = types + (RUNNER_STORY if runners else ())
    if follow and (upto is not None or until is not None):
        raise click.UsageError("--follow has no end: leave out --upto and --until")
    with settings.open() as reader:
        begin, end = between(reader, since, until)
        after = max(after, begin)
        if until is not None:
            upto = end if upto is None else min(end, upto)
        head = reader.head().seq if upto is None else upto
        for words in unseen(reader, subjects) if follow else ():
            click.echo(f"runnerlog: {printable(words)}", err=True)

        def chosen(after: int, upto: int | None, follow: bool = False) -> Iterable[Record]:
            records = selected(reader, subjects, after, upto, follow)
            return (record for record in records if record.type.startswith(wanted or ("",)))

        records: Iterable[Record] = islice(chosen(after, upto, follow and last is None), limit)
        if last is not None:
            records = deque(chosen(after, head), last)
            records = chain(records, chosen(head, None, True)) if follow else records
        shown = 0
        for record in records:
            _print_event(settings.output, record)
            shown += 1
        if not shown and not settings.output.machine:
            first = reader.base.seq
            words = f"no such event among the {_count(reader.head().seq - first + 1, 'event')} of the log"
            words += f", which begins with event {first}" if first > 1 else ""
            lines = wrapped(words + meant(reader, subjects), settings.output.width)
            settings.output.text("\n".join(lines), dim=True)


def _print_event(output: Output, record: Record) -> None:
    fields = fields_of(record)
    if output.machine:
        output.line(fields)
    else:
        output.event(record.at, record.seq, record.subject, fields["payload"], decided=record.cause > 0)


@cli.command()
@click.argument("files", nargs=-1, type=click.Path(exists=True, path_type=Path))
@click.pass_obj
def verify(settings: Settings, files: tuple[Path, ...]) -> None:
    """Check the chain, then run every fact through the scheduler again and compare each decision.

    With FILES, logs or segments of one (what LOG.archive holds), those are checked, each alone.
    """
    for path in files or (settings.path,):
        settings.path = path
        if len(files) > 1 and not settings.output.machine:
            settings.output.text(str(path))
        _verify(settings)


def _verify(settings: Settings) -> None:
    output = settings.output
    with settings.open() as reader:
        with output.progress("the chain"):
            count = reader.verify_chain()
        with output.progress("the decisions"):
            begin, head = nearest(reader, reader.base.seq - 1)
            facts = Facts(reader.events(head.seq))
            try:
                report, _ = rederive(facts, begin, [snapshot.upto for snapshot in reader.snapshots()])
            except UNFOLDABLE as error:
                seq = facts.stepped
                failing(output, seq=seq, error=f"no runnerd has written the step of event {seq}: {error}")
    if output.machine:
        output.line({"ok": True, "events": count, **msgspec.to_builtins(report)})
        return
    output.text(f"chain intact: {_count(count, 'event')}")
    output.text(f"decisions reproduced: {report.decisions} of {report.decisions}, in {report.steps} steps")
    if report.snapshots:
        output.text(f"snapshots as they should be: {report.snapshots}")
    if report.snapshots_not_compared:
        output.text(f"not compared: {_count(report.snapshots_not_compared, 'snapshot')} of other versions")
    for rules, steps in report.not_rederived.items():
        output.text(f"not re-derived (rules {rules}): {steps} steps")


@cli.command()
@click.option("--at", type=Moment(), help="The state at this moment (default: now), after its last event.")
@click.pass_obj
def state(settings: Settings, at: int | Past | None) -> None:
    """What the log folds to: runners, requests, memory."""
    with settings.open() as reader:
        folded = settings.fold(reader, None if at is None else last_by(reader, at))
    if settings.output.machine:
        settings.output.raw(canonical(folded).decode())
    else:
        _print_state(settings.output, folded)


def _print_state(output: Output, folded: State) -> None:
    runners, running = _count(len(folded.runners), "runner"), _running(folded)
    output.text(f"after event {folded.seq}: {runners}, {folded.queued} queued, {running} running")
    for columns, rows in (
        (_runner_columns(folded.t), list(folded.runners.values())),
        (_request_columns(folded.t), list(folded.requests.values())),
    ):
        if rows:
            output.text("")
        output.table(columns, rows)


def _running(folded: State) -> int:
    return sum(request.state is RequestState.dispatched for request in folded.requests.values())


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _runner_columns(t: int) -> list[Column]:
    return [
        Column("RUNNER", lambda r: r.id),
        Column("MODEL", lambda r: r.model),
        Column("STATE", lambda r: r.state.value),
        Column("SLOTS", lambda r: f"{len(r.held)}/{r.slots}", right=True),
        Column("HELD", lambda r: memory(r.holds), right=True),
        Column("AGE", lambda r: age(t - r.load_t), right=True),
        Column("WHY", lambda r: r.reason, drop=1),
        Column("PORT", lambda r: str(r.port or ""), right=True, drop=2),
    ]


def _request_columns(t: int) -> list[Column]:
    return [
        Column("REQUEST", lambda q: q.id),
        Column("MODEL", lambda q: q.model),
        Column("STATE", lambda q: "running" if q.state is RequestState.dispatched else q.state.value),
        Column("AGE", lambda q: age(t - q.arrived_t), right=True),
        Column("RUNNER", lambda q: q.runner, drop=1),
        Column("FROM", lambda q: q.caller, drop=2),
    ]


def main() -> int:
    """Exit codes: 0 done, 1 the log is damaged, 2 usage, 3 it cannot be opened, 130 interrupted, 141 nobody
    reads what is printed."""
    return run(cli, "runnerlog")


if __name__ == "__main__":
    sys.exit(main())
