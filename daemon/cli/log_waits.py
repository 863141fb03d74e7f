"""`runnerlog waits`: what each request waited for, from its arrival to its end."""

from __future__ import annotations

import heapq
import re
from array import array
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import click

from daemon.cli.log_window import Seconds, Walked, count, say, share, since_and_until, window_of
from daemon.cli.logfile import Settings
from daemon.cli.moments import Past
from daemon.cli.output import Column, Number, Output, day_and_time, duration
from daemon.cli.select import meant
from daemon.history.figures import spread
from daemon.history.parts import PARTS
from daemon.history.waits import Wait, Waits
from events.reader import Reader

REQUEST = re.compile(r"q[0-9]{1,18}")
LIMIT = 20
"""Requests that a person is shown, unless asked otherwise: a screen."""
MODELS = 12
"""Models whose percentiles a person is shown, unless asked otherwise."""
LEGEND = (
    "The parts of a request's time add up: queued (for a slot of a ready runner), turn (others come first), "
    "drain and unload (of what makes room for it), memory (others hold it, or it is measured), load, pause "
    "(after a failure), retry (in a slot of a runner that failed it), down (the daemon died in it), served."
)
SORTS = ("total", "arrived", "model", *PARTS)


class Summary:
    """The parts of the requests of one model that have ended, for percentiles."""

    def __init__(self, model: str) -> None:
        self.model = model
        self.parts = [array("q") for _ in PARTS]
        self.totals = array("q")

    def add(self, wait: Wait) -> None:
        """Take one."""
        self.totals.append(wait.total_ns)
        for values, ns in zip(self.parts, wait.parts, strict=True):
            values.append(ns)

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        parts = {name: _brief(values) for name, values in zip(PARTS, self.parts, strict=True)}
        return {
            "model": self.model,
            "requests": len(self.totals),
            "total_ns": _brief(self.totals),
            "parts_ns": parts,
        }


def _brief(values: Sequence[int]) -> dict[str, int | None]:
    figures = spread(values)
    del figures["count"]
    return figures


@click.command(epilog=LEGEND)
@since_and_until
@click.option("--model", "models", multiple=True, metavar="MODEL", help="Only requests for this model.")
@click.option(
    "--sort", type=click.Choice(SORTS), help="Which come first: those with the longest total, or part."
)
@click.option("--limit", type=Number(1), metavar="N", help=f"At most so many (a person: {LIMIT}).")
@click.argument("requests", nargs=-1, metavar="[REQUEST]...")
@click.pass_obj
def waits(
    settings: Settings,
    since: int | Past | None,
    until: int | Past | None,
    models: tuple[str, ...],
    sort: str | None,
    limit: int | None,
    requests: tuple[str, ...],
) -> None:
    """What each request's time was spent on, from its arrival to its end; with REQUESTs (q12) only theirs."""
    output = settings.output
    summaries: dict[str, Summary] = {}
    named = _numbers(requests)
    with settings.open() as reader, output.progress("reading the log") as tell:
        found = _waits(reader, (since, until), named, tell)
        wanted = (
            w for w in found if (not models or w.model in models) and (not requests or w.request in requests)
        )
        counted = _counted(wanted, summaries)
        if output.machine and sort is None and limit is None:
            seen = _told(output, counted)
        else:
            seen = _first(counted, sort or "total", (limit or LIMIT) if not output.machine or limit else None)
        if missing := [id for id in requests if id not in seen.ids]:
            raise click.UsageError(f"no request {', '.join(missing)} arrived in this part of the log")
        if models and not seen.ids:
            raise click.UsageError(f"no request for {', '.join(models)} arrived then{meant(reader, models)}")
    if output.machine:
        for wait in seen.shown:
            output.line(plain(wait))
        for summary in summaries.values() if not requests else ():
            output.line(summary.plain())
    else:
        _show(output, seen, list(summaries.values()), bool(requests))


class Seen(NamedTuple):
    """What was asked for: the first of the requests, and how many there are in all."""

    shown: list[Wait]
    number: int
    open: int
    ids: set[str]


def _waits(
    reader: Reader,
    moments: tuple[Any, Any],
    named: list[int],
    tell: Callable[[str], None],
) -> Iterator[Wait]:
    """The requests that arrived in the window, as they end; at last those that have not. What lies before the
    first that is named, or after the end of the last, is not looked at."""
    waits = Waits()
    window = window_of(reader, *moments)
    if named:
        window = window._replace(first=max(window.first, min(named)))
    walked = Walked(reader, window, tell)
    state, left = walked.walk.state, {f"q{number}" for number in named}
    for events, at_ns in walked:
        for event in events:
            ended = waits.note(state, event, at_ns)
            if ended is not None:
                left.discard(ended.request)
                yield ended
        if named and not left:
            return
    yield from waits.until(state)


def _counted(waits: Iterator[Wait], summaries: dict[str, Summary]) -> Iterator[Wait]:
    for wait in waits:
        if wait.outcome:
            summary = summaries.get(wait.model)
            if summary is None:
                summary = summaries[wait.model] = Summary(wait.model)
            summary.add(wait)
        yield wait


def _told(output: Output, waits: Iterator[Wait]) -> Seen:
    """A line for each as it comes; nothing is kept."""
    number, ids = 0, set[str]()
    for wait in waits:
        output.line(plain(wait))
        number += 1
        ids.add(wait.request)
    return Seen([], number, 0, ids)


def _first(waits: Iterator[Wait], sort: str, limit: int | None) -> Seen:
    """The first of them in an order."""
    number = unended = 0
    ids = set[str]()

    def passing() -> Iterator[Wait]:
        nonlocal number, unended
        for wait in waits:
            number += 1
            unended += not wait.outcome
            ids.add(wait.request)
            yield wait

    key = _order(sort)
    shown = sorted(passing(), key=key) if limit is None else heapq.nsmallest(limit, passing(), key=key)
    return Seen(shown, number, unended, ids)


def _order(sort: str) -> Callable[[Wait], tuple[Any, ...]]:
    if sort == "arrived":
        return lambda wait: (wait.arrived_t, int(wait.request[1:]))
    if sort == "model":
        return lambda wait: (wait.model, -wait.total_ns, int(wait.request[1:]))
    if sort == "total":
        return lambda wait: (-wait.total_ns, int(wait.request[1:]))
    part = PARTS.index(sort)
    return lambda wait: (-wait.parts[part], -wait.total_ns, int(wait.request[1:]))


def _numbers(requests: Sequence[str]) -> list[int]:
    """The numbers of the events that requests are named for. Raises UsageError."""
    wrong = [id for id in requests if not REQUEST.fullmatch(id)]
    if wrong:
        raise click.UsageError(f"{wrong[0]!r} is no request; they are called q12")
    return [int(id[1:]) for id in requests]


def plain(wait: Wait) -> dict[str, Any]:
    """A request for JSON. Its parts add up to its total."""
    return {
        "request": wait.request,
        "model": wait.model,
        "kind": wait.kind,
        "caller": wait.caller,
        "at_ns": wait.at_ns,
        "outcome": wait.outcome or None,
        "reason": wait.reason,
        "runner": wait.runner or None,
        "total_ns": wait.total_ns,
        **{f"{name}_ns": ns for name, ns in zip(PARTS, wait.parts, strict=True)},
    }


# --- for people ------------------------------------------------------------------------------------------


def _show(output: Output, seen: Seen, summaries: list[Summary], named: bool) -> None:
    if not seen.number:
        output.text("no request arrived in this part of the log", dim=True)
        return
    totals = [sum(sum(summary.parts[i]) for summary in summaries) for i in range(len(PARTS))]
    ended = seen.number - seen.open
    say(output, f"{count(seen.number, 'request')}{_unended(seen.open)}: {_mostly(totals)}")
    output.text("")
    output.table(_columns(output.width, seen.shown), seen.shown)
    if seen.number > len(seen.shown):
        output.text(f"… and {seen.number - len(seen.shown):,} more (--limit, --sort)", dim=True)
    if ended > 1 and not named:
        output.text("")
        _show_models(output, summaries)


def _unended(open: int) -> str:
    return f", {open:,} of which {'has' if open == 1 else 'have'} not ended" if open else ""


def _mostly(totals: list[int]) -> str:
    """On what most of the time went."""
    all_ns = sum(totals)
    if not all_ns:
        return "none took any time"
    spent = sorted(zip(totals, PARTS, strict=True), reverse=True)
    return f"{duration(all_ns)} in all, " + ", ".join(
        f"{name} {share(ns / all_ns)}" for ns, name in spent if ns
    )


SMALL = ("unload", "memory", "pause", "retry", "down")
"""Parts that have one column together where there is little room."""
WIDE = 110
"""Columns of a terminal in which every part has its own."""


class Group(NamedTuple):
    """A column of some parts."""

    heading: str
    indexes: tuple[int, ...]

    def ns(self, parts_ns: Sequence[int]) -> int:
        """What it shows."""
        return sum(parts_ns[i] for i in self.indexes)


def _groups(width: int, rows: Sequence[Sequence[int]]) -> list[Group]:
    """The columns of the parts: every one that took time has its place in one, so that they add up."""
    small = tuple(PARTS.index(name) for name in SMALL)
    apart = range(len(PARTS)) if width >= WIDE else [i for i in range(len(PARTS)) if i not in small]
    groups = [Group(PARTS[i].upper(), (i,)) for i in apart]
    if width < WIDE:
        groups.insert(-1, Group("OTHER", small))
    return [group for group in groups if any(group.ns(row) for row in rows)]


def _part_columns(seconds: Seconds, groups: list[Group], parts: Callable[[Any], list[int]]) -> list[Column]:
    def cell(group: Group) -> Callable[[Any], str]:
        return lambda row: seconds(group.ns(parts(row)))

    return [Column(group.heading, cell(group), right=True) for group in groups]


def _columns(width: int, shown: list[Wait]) -> list[Column]:
    seconds = Seconds(max((wait.total_ns for wait in shown), default=0))
    groups = _groups(width, [wait.parts for wait in shown])
    return [
        Column("REQUEST", lambda w: w.request),
        Column("ARRIVED", lambda w: " ".join(day_and_time(w.at_ns))[5:-4], drop=3),
        Column("MODEL", lambda w: w.model),
        Column("SECONDS", lambda w: seconds(w.total_ns), right=True),
        *_part_columns(seconds, groups, lambda w: w.parts),
        Column("END", _end, drop=2, style=lambda w: "red" if w.outcome else ""),
        Column("FROM", lambda w: w.caller, drop=4),
    ]


def _end(wait: Wait) -> str:
    """How it ended, if not as it should."""
    if wait.outcome == "completed":
        return ""
    return wait.reason.replace("_", " ") or wait.outcome or ("runs" if wait.parts[-1] else "waits")


class Line(NamedTuple):
    """A model's figures of one kind: the mean, a percentile."""

    model: str
    requests: str
    name: str
    total_ns: int
    parts_ns: list[int]


def _show_models(output: Output, summaries: list[Summary]) -> None:
    """Percentiles by model, the slowest first."""
    summaries.sort(key=lambda summary: -(spread(summary.totals)["p95"] or 0))
    lines = []
    for summary in summaries[:MODELS]:
        totals, parts = _brief(summary.totals), [_brief(values) for values in summary.parts]
        for i, name in enumerate(totals):
            labels = (summary.model, f"{len(summary.totals):,}") if not i else ("", "")
            lines.append(Line(*labels, name, totals[name] or 0, [part[name] or 0 for part in parts]))
    seconds = Seconds(max(line.total_ns for line in lines))
    groups = _groups(output.width, [line.parts_ns for line in lines])
    columns = [
        Column("MODEL", lambda line: line.model),
        Column("REQUESTS", lambda line: line.requests, right=True, drop=1),
        Column("", lambda line: line.name),
        Column("SECONDS", lambda line: seconds(line.total_ns), right=True),
        *_part_columns(seconds, groups, lambda line: line.parts_ns),
    ]
    output.table(columns, lines)
    if len(summaries) > MODELS:
        output.text(f"… and {count(len(summaries) - MODELS, 'more model')} (--model)", dim=True)
