"""`runnerlog stats`: what a stretch of a log adds up to, by model, hour, caller or runner, and in all."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import click

from daemon.cli.log_window import Seconds, Walked, count, say, share, since_and_until, window_of
from daemon.cli.logfile import Settings
from daemon.cli.moments import Past
from daemon.cli.output import Column, Number, Output, day_and_time, duration, size
from daemon.history.figures import BUSY, LOADING, OUTCOMES, Figures, rounded, spread
from daemon.history.stats import HOUR_NS, Key, Stats
from statemachines.ledger import budget_bytes
from statemachines.state import State

LIMIT = 40
"""Rows that a person is shown, unless asked otherwise."""
BARS = "▁▂▃▄▅▆▇█"
POINTS = 40
"""Columns of the course of memory, where there is room for them."""
BESIDE = 44
"""Columns of what is beside it: the figures of a device."""
THRASH_LOADS = 3
"""Fewer loads are no thrashing, however long they take."""

KEYS: dict[str, Key] = {
    "model": lambda model, caller, runner, at_ns: model,
    "hour": lambda model, caller, runner, at_ns: str(at_ns // HOUR_NS * HOUR_NS),
    "caller": lambda model, caller, runner, at_ns: caller,
    "runner": lambda model, caller, runner, at_ns: runner or None,
}


@click.command()
@since_and_until
@click.option("--by", type=click.Choice(list(KEYS)), default="model", help="A row for each (default: model).")
@click.option("--limit", type=Number(1), metavar="N", help=f"At most so many rows (a person: {LIMIT}).")
@click.pass_obj
def stats(
    settings: Settings, since: int | Past | None, until: int | Past | None, by: str, limit: int | None
) -> None:
    """Requests, waits, loads, evictions and memory, added up."""
    output = settings.output
    with settings.open() as reader, output.progress("reading the log") as tell:
        window = window_of(reader, since, until)
        walked = Walked(reader, window, tell)
        state = walked.walk.state
        found = Stats(state, KEYS[by])
        for events, at_ns in walked:
            for event in events:
                found.note(state, event, at_ns)
        found.finish()
    rows = _rows(found, by)
    if output.machine:
        for row in rows[:limit]:
            output.line({by: _name(by, row.key), **row.figures.plain()})
        output.line(_total(found, state, by))
    else:
        _show(output, found, state, by, rows, limit or LIMIT)


class Row(NamedTuple):
    """One line of the table."""

    key: str
    figures: Figures


def _rows(found: Stats, by: str) -> list[Row]:
    """Most requests first; hours and runners in their order."""
    rows = [Row(key, figures) for key, figures in found.by.items()]
    if by == "hour":
        return sorted(rows, key=lambda row: int(row.key))
    if by == "runner":
        return sorted(rows, key=lambda row: int(row.key[1:] or 0))
    return sorted(rows, key=lambda row: (-row.figures.arrived, -row.figures.loads["decided"], row.key))


def _name(by: str, key: str) -> Any:
    return int(key) if by == "hour" else key


def _total(found: Stats, state: State, by: str) -> dict[str, Any]:
    """The last line for a script: everything together."""
    devices = {
        name: {
            "held_mean_bytes": held.mean_bytes(found.begin_ns, found.end_ns),
            "held_peak_bytes": held.peak_bytes,
            "budget_bytes": budget_bytes(state, name),
        }
        for name, held in found.held.items()
    }
    return {
        "total": True,
        "begin_ns": found.begin_ns,
        "end_ns": found.end_ns,
        "span_ns": found.span_ns,
        **found.total.plain(),
        "swaps": found.total.swaps,
        "swaps_per_hour": rounded(found.swaps_per_hour),
        "devices": devices,
    }


# --- for people ------------------------------------------------------------------------------------------


def _show(output: Output, found: Stats, state: State, by: str, rows: list[Row], limit: int) -> None:
    total = found.total
    if not found.end_ns:
        output.text("nothing happened in this part of the log", dim=True)
        return
    begin, end = (" ".join(day_and_time(ns))[:-4] for ns in (found.begin_ns, found.end_ns))
    output.text(f"{begin} to {end}: {duration(found.span_ns)}")
    say(output, _summary(found))
    output.text("")
    shown = [*rows[:limit], *([Row("all", total)] if len(rows) > 1 else [])]
    output.table(_columns(by, shown), shown)
    if len(rows) > limit:
        output.text(f"… and {len(rows) - limit:,} more (--limit)", dim=True)
    _show_devices(output, found, state)
    for lines in (_ends(total), _thrashing(rows) if by == "model" else []):
        if lines:
            output.text("")
        for text in lines:
            say(output, text)


def _summary(found: Stats) -> str:
    total = found.total
    hits = f", of those served {share(total.hit_rate)} at once" if total.dispatched else ""
    rate = found.swaps_per_hour
    swaps = f"{count(total.swaps, 'swap')}" + (f" ({rate:.1f} an hour)" if rate is not None else "")
    return f"{count(total.arrived, 'request')}{hits}; {count(total.loads['decided'], 'load')}, {swaps}"


def _columns(by: str, rows: list[Row]) -> list[Column]:
    seconds = Seconds(max((max(row.figures.waits_ns, default=0) for row in rows), default=0))
    waits = {id(row.figures): spread(row.figures.waits_ns) for row in rows}
    loads = {id(row.figures): spread(row.figures.load_ns) for row in rows}

    def requests(figures: Figures) -> int:
        """None arrives at a runner: what has got its first slot there counts."""
        return figures.dispatched if by == "runner" else figures.arrived

    def wait(name: str) -> Callable[[Any], str]:
        return lambda row: seconds(waits[id(row.figures)][name])

    def figure(get: Callable[[Figures], int]) -> Callable[[Any], str]:
        return lambda row: f"{number:,}" if (number := get(row.figures)) else ""

    return [
        Column(by.upper(), lambda row: _label(by, row.key)),
        Column("REQUESTS", figure(requests), right=True, drop=1),
        Column("NOT DONE", figure(_not_done), right=True, drop=7, style=lambda row: "red"),
        Column("AT ONCE", lambda row: share(row.figures.hit_rate), right=True, drop=5),
        Column("WAIT p50", wait("p50"), right=True, drop=9),
        Column("WAIT p95", wait("p95"), right=True, drop=2),
        Column("WAIT p99", wait("p99"), right=True, drop=12),
        Column("LONGEST", wait("max"), right=True, drop=8),
        Column("LOADS", figure(lambda f: f.loads["decided"]), right=True, drop=3),
        Column("LOAD TIME", lambda row: _seconds_each(loads[id(row.figures)]["mean"]), right=True, drop=11),
        Column("EVICTED", figure(lambda f: f.swaps), right=True, drop=4),
        Column("LOADING", lambda row: _phase(row.figures, LOADING), right=True, drop=10),
        Column("BUSY", lambda row: _phase(row.figures, BUSY), right=True, drop=6),
    ]


def _not_done(figures: Figures) -> int:
    """Requests that ended otherwise than by being completed."""
    return sum(figures.outcomes[name] for name in OUTCOMES if name != "completed")


def _label(by: str, key: str) -> str:
    if by == "hour" and key != "all":
        return time.strftime("%Y-%m-%d %H:%M", time.localtime(int(key) // 1_000_000_000))
    return key or "(nobody)"


def _seconds_each(ns: int | None) -> str:
    return "" if ns is None else duration(ns)


def _phase(figures: Figures, phase: int) -> str:
    """A share of the lives of its runners."""
    return share(figures.phases_ns[phase] / figures.life_ns) if figures.life_ns else ""


def _show_devices(output: Output, found: Stats, state: State) -> None:
    """What was held of each device, and how that went."""
    rows = [name for name, held in found.held.items() if held.peak_bytes]
    if not rows:
        return
    begin, end = found.begin_ns, found.end_ns
    points = max(1, min(POINTS, output.width - BESIDE))
    output.text("")
    columns = [
        Column("DEVICE", lambda name: name),
        Column("HELD mean", lambda name: size(found.held[name].mean_bytes(begin, end)), right=True),
        Column("most", lambda name: size(found.held[name].peak_bytes), right=True),
        Column("BUDGET", lambda name: _bytes(budget_bytes(state, name)), right=True),
        Column("COURSE", lambda name: course(found, name, budget_bytes(state, name), points), drop=1),
    ]
    output.table(columns, rows)


def _bytes(count: int | None) -> str:
    return "" if count is None else size(count)


def course(found: Stats, device: str, budget: int | None, points: int) -> str:
    """What was held of a device from the first moment to the last, as so many bars of its budget."""
    held = found.held[device]
    whole, step = max(1, budget or 0, held.peak_bytes), max(1, (found.end_ns - found.begin_ns) // points)
    sizes = [
        held.mean_bytes(at, at + step) for at in range(found.begin_ns, found.begin_ns + points * step, step)
    ]
    return "".join(BARS[min(len(BARS) - 1, size * len(BARS) // whole)] for size in sizes)


def _ends(total: Figures) -> list[str]:
    """How those requests ended that were not completed."""
    why = sorted(total.reasons.items(), key=lambda item: (-item[1], item[0]))
    words = [f"{number:,} {_why(reason)}" for reason, number in why]
    if total.outcomes["interrupted"]:
        words.append(f"{total.outcomes['interrupted']:,} interrupted")
    return [f"not done: {', '.join(words)}"] if words else []


def _why(text: str) -> str:
    outcome, _, reason = text.partition(" ")
    return f"{outcome.replace('_', ' ')} ({reason.replace('_', ' ')})"


def _thrashing(rows: list[Row]) -> list[str]:
    """Models whose runners load for longer than they serve."""
    found = []
    for key, figures in rows:
        loading, busy = figures.phases_ns[LOADING], figures.phases_ns[BUSY]
        if figures.loads["decided"] >= THRASH_LOADS and figures.swaps and loading > busy:
            each = figures.dispatched / figures.loads["decided"]
            took = f"{duration(loading)} of loading for {duration(busy)} of serving"
            found.append(f"{key or '(nobody)'} thrashes: {took}, {each:.1f} requests a load")
    return found
