"""`runnerlog diff`: the state between two moments."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import click
import msgspec

from daemon.cli.logfile import Settings
from daemon.cli.moments import FORMS, Moment, Past, last_by
from daemon.cli.output import Column, Output, day_and_time, duration, size
from daemon.cli.told import heading, paragraph
from daemon.explain.changes import Diff, RunnerChange
from daemon.explain.changes import Moment as Point
from daemon.explain.changes import diff as difference
from daemon.explain.memory import Device
from daemon.explain.words import count, listed


@click.command(context_settings={"ignore_unknown_options": True})  # -1h is a moment
@click.argument("a", type=Moment())
@click.argument("b", type=Moment())
@click.pass_obj
def diff(settings: Settings, a: int | Past, b: int | Past) -> None:
    """What changed between two moments, A and B."""
    output = settings.output
    with settings.open() as reader, output.progress("reading the log"):
        first, last = sorted((last_by(reader, a), last_by(reader, b)))
        found = difference(reader, first, last)
    if output.machine:
        output.raw(msgspec.json.encode(found).decode())
    else:
        print_diff(output, found)


diff.help = f"{diff.help}\n\nA moment is one of: {FORMS}."


def print_diff(output: Output, found: Diff) -> None:
    """For a person: only what is different."""
    before, after = found.before, found.after
    events, ns = after.seq - before.seq, after.t_ns - before.t_ns
    paragraph(
        output,
        f"From event {_point(before)} to event {_point(after)}: {count(events, 'event')} in {duration(ns)}.",
        style="bold",
    )
    if found.runners:
        output.text("")
        output.table(RUNNERS, found.runners)
    if found.passed:
        output.text(f"{count(found.passed, 'runner')} came and went between.", dim=True)
    for title, words in (
        ("Requests", list(_requests(found))),
        ("Configuration", list(_configuration(found))),
        ("Else", list(_else(found))),
    ):
        if words:
            heading(output, title)
        for text in words:
            paragraph(output, text, indent="  ")
    rows = _memory(before.memory, after.memory)
    if rows:
        heading(output, "Memory")
        output.table(MEMORY, rows)
    if not (found.runners or found.arrived or rows or any(found.ended.values())):
        output.text("Nothing that is shown here has changed.", dim=True)


def _point(moment: Point) -> str:
    if not moment.seq:
        return "0 (the beginning)"
    day, clock = day_and_time(moment.at_ns)
    return f"{moment.seq} ({day} {clock[:8]})"


def _requests(found: Diff) -> Iterator[str]:
    before, after = found.before, found.after
    if (before.queued, before.running) != (after.queued, after.running):
        yield (
            f"{before.queued} queued and {before.running} running before,"
            f" {after.queued} queued and {after.running} running after"
        )
    ended = [f"{n} {how.replace('_', ' ')}" for how, n in found.ended.items()]
    if found.arrived or ended:
        yield f"{found.arrived} arrived between" + (f"; ended: {', '.join(ended)}" if ended else "")
    if found.requests_gone:
        each = [f"{id} {how.replace('_', ' ')}".strip() for id, how in found.requests_gone.items()]
        yield f"of those there before: {_some(each, before.queued + before.running)}"
    if found.requests_new:
        yield f"new: {_some(found.requests_new, after.queued + after.running)}"


def _some(each: Iterable[str], of: int) -> str:
    """Names; that these are not all, where they may not be."""
    names = list(each)
    return ", ".join(names) + (" …" if len(names) < of and len(names) >= 20 else "")


def _configuration(found: Diff) -> Iterator[str]:
    for model in found.models:
        what = f" ({', '.join(model.fields)})" if model.fields else ""
        yield f"{model.what}: {model.model}{what}"
    if found.settings:
        yield f"settings changed: {', '.join(found.settings)}"


def _else(found: Diff) -> Iterator[str]:
    for words, names in (
        ("pinned", found.pinned),
        ("not pinned any more", found.unpinned),
        ("makes room now", found.claims_made),
        ("makes no room any more", found.claims_ended),
        ("not tried again for a while, after a failed load", found.cooling),
        ("may be tried again", found.cooled),
    ):
        if names:
            yield f"{listed([name.partition('?')[0] for name in names])}: {words}"
    if found.starts:
        yield f"the daemon was started {'again' if found.starts == 1 else f'{found.starts} times'}"
    was, now = found.stopping
    if was != now:
        yield f"the daemon stops ({now})" if now else "the daemon does not stop any more"


def _memory(
    before: tuple[Device, ...], after: tuple[Device, ...]
) -> list[tuple[str, Device | None, Device | None]]:
    """The devices of which something is different."""
    was, now = {d.name: d for d in before}, {d.name: d for d in after}
    names = dict.fromkeys([*was, *now])
    rows = [(name, was.get(name), now.get(name)) for name in names]
    return [row for row in rows if _figures(row[1]) != _figures(row[2])]


def _figures(device: Device | None) -> tuple[int | None, ...]:
    if device is None:
        return ()
    return device.budget_bytes, device.held_bytes, device.free_bytes


def _change(was: int | None, now: int | None) -> str:
    return _size(now) if was == now else f"{_size(was)} → {_size(now)}"


def _size(count: int | None) -> str:
    return "unknown" if count is None else size(count)


MEMORY = (
    Column("DEVICE", lambda r: r[0]),
    Column(
        "BUDGET",
        lambda r: _change(r[1] and r[1].budget_bytes, r[2] and r[2].budget_bytes),
        right=True,
        drop=1,
    ),
    Column("HELD", lambda r: _change(r[1] and r[1].held_bytes, r[2] and r[2].held_bytes), right=True),
    Column(
        "FREE FOR A LOAD", lambda r: _change(r[1] and r[1].free_bytes, r[2] and r[2].free_bytes), right=True
    ),
)


def _after(change: RunnerChange) -> str:
    if change.after:
        return change.after
    reason = change.reason.replace("_", " ")
    return f"gone ({reason})" if reason else "gone"


RUNNERS = (
    Column("RUNNER", lambda r: r.runner),
    Column("MODEL", lambda r: r.model),
    Column("BEFORE", lambda r: r.before or "-"),
    Column("AFTER", _after),
)
