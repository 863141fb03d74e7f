"""The window of a log that an analysing `runnerlog` command is asked for, walked with its progress shown."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import click

from daemon.cli.moments import BEGIN, END, Moment, Past, end_of, first_by, last_by
from daemon.cli.output import Output, wrapped
from daemon.history.walk import Step, Walk, Window
from daemon.past import nearest
from events.reader import Reader

F = TypeVar("F", bound=Callable[..., Any])

NARROW = 40
"""Sentences are not made narrower than this."""
LOOK = 5_000
"""Steps between two words about how far it has come."""


def since_and_until(command: F) -> F:
    """The two options of a window."""
    command = click.option("--until", type=Moment(end=True), help=END)(command)
    return click.option("--since", type=Moment(), help=BEGIN)(command)


def window_of(reader: Reader, since: int | Past | None, until: int | Past | None) -> Window:
    """The events' numbers. Raises BadParameter or UsageError for what the log does not hold."""
    until = end_of(since, until)
    last = reader.head().seq if until is None else last_by(reader, until)
    first = reader.base.seq if since is None else max(reader.base.seq, first_by(reader, since))
    if since is not None and first > reader.head().seq:
        raise click.UsageError(f"the log ends before {since}")
    if until is not None and last < reader.base.seq:
        raise click.UsageError(f"the log begins after {until}")
    if last < first and reader.head().seq >= reader.base.seq:
        raise click.UsageError(f"{until} is before {since}")
    return Window(first, last)


class Walked:
    """A walk over a window, told to who waits. Raises EventUnfoldable."""

    def __init__(self, reader: Reader, window: Window, tell: Callable[[str], None]) -> None:
        state, head = nearest(reader, window.first - 1)
        self.walk = Walk(state, reader.records(head.seq), window)
        self._window = window
        self._tell = tell
        self.walk.begin()

    def __iter__(self) -> Iterator[Step]:
        first, last = self._window
        for taken, step in enumerate(self.walk, 1):
            yield step
            if taken % LOOK == 0:
                share = (step.events[0].seq - first) * 100 // max(1, last - first)
                self._tell(f"reading the log: {share} %")


def say(output: Output, text: str, *, indent: str = "  ", dim: bool = False) -> None:
    """A sentence for a person, on as many lines as it needs."""
    for line in wrapped(text, max(NARROW, output.width), rest=indent):
        output.text(line, dim=dim)


def count(number: int, noun: str) -> str:
    """`1 request`, `1,204 requests`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def share(part: float | None) -> str:
    """A share for people: `61 %`; "" for None."""
    if part is None:
        return ""
    percent = part * 100
    return "<1 %" if 0 < percent < 0.5 else f"{percent:.0f} %"


class Seconds:
    """Durations of one table in seconds, with as many decimals as the longest of them needs. What took no
    time at all is left empty."""

    def __init__(self, longest_ns: int) -> None:
        self._digits = 3 if longest_ns < 10**9 else 2 if longest_ns < 10 * 10**9 else 1

    def __call__(self, ns: int | None) -> str:
        return f"{ns / 1e9:,.{self._digits}f}" if ns else ""
