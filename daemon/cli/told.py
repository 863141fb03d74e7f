"""Explanations on a terminal, for `runnerlog why` and `runnerctl why`: they print the same data."""

from __future__ import annotations

import msgspec

from daemon.cli.describe import named, printable
from daemon.cli.output import Column, Output, day_and_time, duration, memory, size, wrapped
from daemon.explain.memory import Alternative, Device
from daemon.explain.obstacle import InTheWay, WhyNot
from daemon.explain.told import Explanation, Phase
from daemon.explain.words import short, sizes

VERDICTS = {
    "victim": "had to go",
    "kept": "stayed",
    "pinned": "stayed: pinned",
    "persistent": "stayed: persistent group",
    "preloaded": "stayed: preloaded, too",
    "suspect": "stayed: health in question",
    "loading": "stayed: still loading",
    "leaving": "was leaving already",
    "stuck": "cannot be ended",
    "no_help": "stayed: not in the way",
}


def print_explanation(output: Output, told: Explanation) -> None:
    """For a person: the answer, the chain of causes, and what it was decided on."""
    if output.machine:
        output.raw(msgspec.json.encode(told).decode())
        return
    paragraph(output, told.summary, style="bold")
    if told.lines:
        output.text("")
    for line in told.lines:
        output.moment(line.at_ns, line.seq, named(printable(line.text)))
    if told.phases:
        total = sum(phase.ns for phase in told.phases)
        heading(output, f"Where its {duration(total)} went")
        output.table(PHASES, told.phases)
    if told.considered:
        heading(
            output,
            f"Who might have gone (event {told.decided_seq}): idle before busy, then who costs least to lose",
        )
        output.table(ALTERNATIVES, told.considered)
        if any(each.cost_ns is not None and not each.recorded for each in told.considered):
            output.text(
                "* reckoned again from the state at that moment: the log has only what was chosen", dim=True
            )
    if told.absent is not None:
        now = told.absent.seq >= told.upto_seq
        heading(
            output,
            f"If somebody asked for {told.model} now" if now else f"Had somebody asked for {told.model} then",
        )
        print_obstacle(output, told.absent)
    if told.memory:
        then = told.absent is not None and told.absent.seq == told.decided_seq
        when = "then" if then else "just before that"
        print_memory(output, told.memory, f"Memory {when} (event {told.decided_seq})")
    if told.output:
        heading(output, "Its last lines")
        for text in told.output.splitlines():
            output.text("  " + printable(text))


def paragraph(output: Output, text: str, *, style: str = "", indent: str = "") -> None:
    """Text that fits the terminal."""
    output.text("\n".join(wrapped(named(printable(text)), output.width, indent, indent)), style=style)


def print_why_not(output: Output, told: WhyNot) -> None:
    """For a person: what is in the way, when it can clear, and the memory at that moment."""
    if output.machine:
        output.raw(msgspec.json.encode(told).decode())
        return
    paragraph(output, told.sentence, style="bold")
    if told.when:
        paragraph(output, "Clears: " + told.when[:1].lower() + told.when[1:])
    if told.earliest_ns:
        output.text(f"That is not before {day_and_time(told.at_ns + told.earliest_ns)[1][:8]}.")
    elif told.latest_ns:
        output.text(f"This is over by {day_and_time(told.at_ns + told.latest_ns)[1][:8]} at the latest.")
    if told.need_bytes:
        paragraph(output, f"{told.model} needs {sizes(told.need_bytes)} ({SOURCES[told.need_source]}).")
    _print_way(output, told)
    if told.memory:
        print_memory(output, told.memory, f"Memory then (event {told.seq})")


def print_obstacle(output: Output, told: WhyNot) -> None:
    """The same in short, as a part of another explanation."""
    paragraph(output, " ".join([told.sentence, told.when]).strip())
    _print_way(output, told)


def _print_way(output: Output, told: WhyNot) -> None:
    if told.in_the_way:
        output.text("")
        output.table(IN_THE_WAY, told.in_the_way)


SOURCES = {
    "configured": "as configured",
    "measured": "as measured when it was loaded last",
    "estimated": "as estimated from its file",
    "unknown": "not known",
}

WAYS = {
    "memory": "holds memory that it needs",
    "alone": "one of them must be alone",
    "group": "a group keeps them apart",
    "matrix": "the matrix keeps them apart",
    "port": "has the port that it needs",
    "instance": "no second one is allowed",
    "place": "no more may be loaded",
}


def heading(output: Output, text: str) -> None:
    """The title of what follows, behind a blank line."""
    output.text("")
    paragraph(output, text, style="bold")


def print_memory(output: Output, devices: tuple[Device, ...], title: str) -> None:
    """The ledger: a line a device, and below it who holds it."""
    heading(output, title)
    rows: list[tuple[str, ...]] = []
    for d in devices:
        rows.append(
            (
                d.name,
                _size(d.budget_bytes),
                size(d.held_bytes),
                size(d.headroom_bytes) if d.headroom_bytes else "",
                _free(d.free_bytes),
                _size(d.reported_free_bytes),
            )
        )
        rows += [(f"  {h.runner}", "", size(h.bytes), "", "", "", f"{h.model}, {h.state}") for h in d.holders]
    output.table(MEMORY, [row + ("",) * (7 - len(row)) for row in rows])


MEMORY = (
    Column("DEVICE", lambda r: r[0]),
    Column("BUDGET", lambda r: r[1], right=True),
    Column("HELD", lambda r: r[2], right=True),
    Column("HEADROOM", lambda r: r[3], right=True, drop=2),
    Column("FREE FOR A LOAD", lambda r: r[4], right=True),
    Column("REPORTED FREE", lambda r: r[5], right=True, drop=1),
    Column("BY", lambda r: r[6]),
)


def _took(phase: Phase) -> str:
    return duration(phase.ns)


def _was(a: Alternative) -> str:
    if a.idle_ns is not None:
        return f"idle for {short(a.idle_ns)}"
    return a.state


def _cost(a: Alternative) -> str:
    """What losing it was reckoned to cost; with a mark where the log does not have it."""
    if a.cost_ns is None:
        return ""
    return duration(a.cost_ns) + ("" if a.recorded else "*")


def _reckoned(a: Alternative) -> str:
    """`9.0 s to load again, 5.9 s of it paid off while idle`."""
    if a.cost_ns is None:
        return ""
    load = f"{duration(a.load_ns)} load"
    if a.idle_ns is None:
        return f"{load} + {duration(a.cost_ns - a.load_ns)} drain"
    return f"{load} - {duration(a.idle_ns)} idle" if a.idle_ns > 0 else load


def _size(count: int | None) -> str:
    return "unknown" if count is None else size(count)


def _free(count: int | None) -> str:
    return "unknown" if count is None else size(count) if count >= 0 else f"-{size(-count)}"


def _holds(way: InTheWay) -> str:
    return memory(way.holds_bytes, "")


IN_THE_WAY = (
    Column("IN THE WAY", lambda w: w.runner),
    Column("MODEL", lambda w: w.model),
    Column("IS", lambda w: w.state),
    Column("HOLDS", _holds, right=True, drop=1),
    Column("WHY", lambda w: WAYS[w.why]),
)

PHASES = (
    Column("TOOK", _took, right=True),
    Column("WHAT", lambda p: p.text),
)

ALTERNATIVES = (
    Column("RUNNER", lambda a: a.runner),
    Column("MODEL", lambda a: a.model),
    Column("WAS", _was),
    Column("COST", _cost, right=True),
    Column("VERDICT", lambda a: VERDICTS[a.verdict]),
    Column("THAT IS", _reckoned, drop=1),
)


__all__ = ["heading", "paragraph", "print_explanation", "print_memory", "print_why_not"]
