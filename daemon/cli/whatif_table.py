"""What `runnerlog what-if` shows to a person: a row for each figure, a column for each configuration."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from daemon.cli.log_window import count, say, share
from daemon.cli.output import Column as Shown
from daemon.cli.output import Output, duration, size
from daemon.history.compare import UNFINISHED, Column, Fidelity
from daemon.history.parts import PARTS, SERVED

MODELS = 12
"""Models that have rows of their own."""
LEAST_NS = 50_000
"""Less is shown as nothing."""
GOOD, BAD = "green", "red"
DONE = "completed"
ENDS = (DONE, "rejected", "timed_out", "failed", "cancelled", "interrupted", UNFINISHED)
NOTICED = 0.02
"""A smaller change is none."""


class Row(NamedTuple):
    """A figure of every column. `better`: -1 where less is, 1 where more is, 0 where neither."""

    label: str
    values: list[float | None]
    text: Callable[[float], str]
    better: int = 0


def headlines(columns: Sequence[Column], changed: str) -> list[str]:
    """The answer, a line for each variant. `changed`: what is different beside the policy."""
    return [_headline(columns[1], variant, changed) for variant in columns[2:]]


def show(output: Output, columns: Sequence[Column], trust: Fidelity, said: list[str]) -> None:
    """The figures, how far they can be trusted, and what must be known of them."""
    baseline, variants = columns[1], columns[2:]
    if variants:
        output.text("")
    rows = _rows(columns)
    output.table(_columns(columns, "", compared=len(variants) == 1), rows)
    models = _models(columns)
    for heading, made in (("WAIT p95 OF", _model_waits), ("LOADS OF", _model_loads)):
        if len(models) > 1:
            output.text("")
            output.table(_columns(columns, heading, compared=len(variants) == 1), made(columns, models))
    output.text("")
    say(output, _trust(columns[0], baseline, trust), indent="")
    for text in said:
        say(output, f"- {text}", dim=True)


def _headline(baseline: Column, variant: Column, changed: str) -> str:
    """The answer in one line. Whether requests are completed at all comes before how long they wait."""
    name = variant.name if variant.name != "what if" else ""
    what = ", ".join(filter(None, [f"policy {name}" if name else "", changed]))
    done = baseline.count(DONE), variant.count(DONE)
    if not done[1]:
        return f"{what}: none of {_ends(variant)}; the baseline completes {done[0]:,}"
    before, after = baseline.waits(), variant.waits()
    words = [
        f"mean wait {_moved(before['mean'], after['mean'])}",
        f"p95 {_moved(before['p95'], after['p95'])}",
        f"swaps {baseline.stats.total.swaps:,} → {variant.stats.total.swaps:,}",
    ]
    lost = [_not_done(column) for column in (baseline, variant)]
    if any(lost):
        words.insert(0 if lost[1] > lost[0] else len(words), f"not done {lost[0]:,} → {lost[1]:,}")
    return f"{what}: {', '.join(words)}"


def _ends(column: Column) -> str:
    """`16 requests is completed (12 rejected, 4 failed)`."""
    ends = ", ".join(
        f"{column.count(end):,} {end.replace('_', ' ')}" for end in ENDS if column.count(end) and end != DONE
    )
    return f"{count(len(column.outcomes), 'request')} is completed ({ends})"


def _not_done(column: Column) -> int:
    return len(column.outcomes) - column.count(DONE)


def _moved(before: int | None, after: int | None) -> str:
    return f"{_time(before or 0)} → {_time(after or 0)}" + _percent(before, after, "({})")


def _percent(before: float | None, after: float | None, form: str = "{}") -> str:
    """By how much it changed; "" where that cannot be said."""
    if not before or after is None:
        return ""
    change = (after - before) / before
    if abs(change) < 0.005:
        return ""
    grown = abs(change) >= 9.95
    text = f"x{after / before:.0f}" if grown else f"{change * 100:+.0f} %".replace("-", "−")
    return (" " if form != "{}" else "") + form.format(text)


def _time(ns: float) -> str:
    return "0 s" if ns < LEAST_NS else duration(int(ns))


def _number(value: float) -> str:
    return f"{value:,.0f}"


def _rows(columns: Sequence[Column]) -> list[Row]:
    """Every figure that is not nothing everywhere."""

    def row(label: str, get: Callable[[Column], Any], text: Callable[[float], str], better: int = 0) -> Row:
        return Row(label, [get(column) for column in columns], text, better)

    rows = [row("requests", lambda c: len(c.outcomes), _number)]
    for outcome in ENDS:
        label = "  " + outcome.replace("_", " ")
        rows.append(row(label, _counted(outcome), _number, 1 if outcome == DONE else -1))
    rows.append(row("served at once", lambda c: c.stats.total.hit_rate, share, 1))
    rows.append(row("wait, mean", lambda c: c.waits()["mean"], _time, -1))
    for i, name in enumerate(PARTS):
        if i != SERVED:
            rows.append(row(f"  {name}", _part(i), _time, -1))
    for name, label in (("p50", "wait, p50"), ("p95", "  p95"), ("p99", "  p99"), ("max", "  longest")):
        rows.append(row(label, _wait(name), _time, -1))
    rows += [
        row("loads", lambda c: c.stats.total.loads["decided"], _number, -1),
        row("  time loading", lambda c: sum(c.stats.total.load_ns), _time, -1),
        row("swaps", lambda c: c.stats.total.swaps, _number, -1),
        row("  an hour", lambda c: c.stats.swaps_per_hour, lambda value: f"{value:.1f}", -1),
        row("unloaded when idle", lambda c: c.stats.total.evictions.get("keep_alive", 0), _number),
        row("runners busy", lambda c: c.stats.total.busy_share, share),
    ]
    for device in dict.fromkeys(name for column in columns for name in column.stats.held):
        rows.append(row(f"{device} held, mean", _held(device), lambda value: size(int(value))))
    return [row for row in rows if any(v and (row.text is not _time or v >= LEAST_NS) for v in row.values)]


def _counted(outcome: str) -> Callable[[Column], int]:
    return lambda column: column.count(outcome)


def _part(part: int) -> Callable[[Column], int]:
    return lambda column: column.mean_part_ns(part)


def _wait(name: str) -> Callable[[Column], int | None]:
    return lambda column: column.waits()[name]


def _held(device: str) -> Callable[[Column], int]:
    def mean(column: Column) -> int:
        held = column.stats.held.get(device)
        return held.mean_bytes(column.stats.begin_ns, column.stats.end_ns) if held is not None else 0

    return mean


def _columns(columns: Sequence[Column], heading: str, *, compared: bool) -> list[Shown]:
    """The label, a column for each configuration, and, beside one alone, the change."""
    shown = [Shown(heading, lambda row: row.label)]
    for i, column in enumerate(columns):
        shown.append(Shown(column.name.upper(), _cell(i), right=True, style=_style(i)))
    if compared:
        shown.append(
            Shown(
                "CHANGE",
                lambda row: _percent(row.values[1], row.values[2]),
                right=True,
                drop=1,
                style=_style(2),
            )
        )
    return shown


def _cell(i: int) -> Callable[[Any], str]:
    return lambda row: row.text(row.values[i]) if row.values[i] is not None else ""


def _style(i: int) -> Callable[[Any], str]:
    """Green where it is better than the baseline, red where it is worse."""

    def style(row: Row) -> str:
        before, after = row.values[1], row.values[i]
        if i < 2 or not row.better or before is None or after is None:
            return ""
        if abs(after - before) <= NOTICED * max(abs(before), abs(after)):
            return ""
        return GOOD if (after > before) == (row.better > 0) else BAD

    return style


def _models(columns: Sequence[Column]) -> list[str]:
    """Those with most requests first."""
    counts: dict[str, int] = {}
    for name in columns[0].models:
        counts[name] = counts.get(name, 0) + 1
    return sorted(counts, key=lambda name: (-counts[name], name))[:MODELS]


def _model_waits(columns: Sequence[Column], models: list[str]) -> list[Row]:
    return [Row(name, [column.waits(name)["p95"] for column in columns], _time, -1) for name in models]


def _model_loads(columns: Sequence[Column], models: list[str]) -> list[Row]:
    found = []
    for name in models:
        mine = [column.stats.by.get(name) for column in columns]
        loads: list[float | None] = [figures.loads["decided"] if figures else 0 for figures in mine]
        found.append(Row(name, loads, _number, -1))
    return found


def _trust(really: Column, baseline: Column, trust: Fidelity) -> str:
    """How far the baseline is from what happened."""
    outcomes = trust.same_outcome / trust.requests if trust.requests else 1.0
    was, again = really.waits()["mean"] or 0, baseline.waits()["mean"] or 0
    return (
        f"The baseline against what was recorded: {_exactly(trust.share)} of the requests wait as long"
        f" (within 0.1 s or 5 %), {_exactly(outcomes)} end alike;"
        f" mean wait {_time(again)}, recorded {_time(was)}."
    )


def _exactly(part: float) -> str:
    return "all" if part == 1 else f"{part * 100:.1f} %"
