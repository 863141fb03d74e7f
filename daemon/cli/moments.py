"""A moment as a person names it: an event's number, a time of day, a date, or how long ago."""

from __future__ import annotations

import re
import time
from datetime import datetime, timedelta
from typing import Any

import click

from daemon.cli.output import day_and_time
from events.reader import CursorPruned, Reader

NS = 1_000_000_000
UNITS_S = {"s": 1, "sec": 1, "min": 60, "m": 60, "h": 3600, "d": 86400}

_AGO = re.compile(r"-\s*(\d{1,9})\s*([a-z]+)")
_CLOCK = re.compile(r"(\d\d?):(\d\d)(?::(\d\d)(\.\d{1,6})?)?")

FORMS = "an event's number, 03:12, 2026-11-20 03:12:05, -10min, yesterday 03:12"
BEGIN = f"Begin at this moment: {FORMS}. A time of day is the last one that was."
END = "End at this moment. A time of day is today's, though yet to come; yesterday's if both are yet to come."
"""The help of two options that go together."""


class Moment(click.ParamType[Any]):
    """`SEQ|TIME`: an int is the number of an event; a `Past`, a time in UTC ns. `end`: up to which something
    is asked for, which may be yet to come."""

    name = "SEQ|TIME"

    def __init__(self, *, end: bool = False) -> None:
        self._end = end

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int | Past:
        """Raises BadParameter, which names the forms."""
        if isinstance(value, int | Past):
            return value
        text = str(value).strip()
        if text.isascii() and text.isdigit() and len(text) < 19:
            return int(text)
        at_ns = parsed(text, time.time_ns(), end=self._end)
        if at_ns is None:
            self.fail(f"{text!r} is none of: {FORMS}", param, ctx)
        return Past(at_ns, clock=_CLOCK.fullmatch(text) is not None)


class Past:
    """A time, UTC ns. `clock`: it was given as a time of day alone."""

    def __init__(self, at_ns: int, *, clock: bool = False) -> None:
        self.at_ns = at_ns
        self.clock = clock

    def __str__(self) -> str:
        day, clock = day_and_time(self.at_ns)
        return f"{day} {clock}"


def parsed(text: str, now_ns: int, *, end: bool = False) -> int | None:
    """A time in words, local, as UTC ns; None for what is none. A time of day alone is the last one; as an
    `end` it is today's."""
    if text == "now":
        return now_ns
    if found := _AGO.fullmatch(text):
        unit = UNITS_S.get(found[2])
        return None if unit is None else max(0, now_ns - int(found[1]) * unit * NS)
    now = datetime.fromtimestamp(now_ns // NS)
    day, _, rest = text.partition(" ")
    if day in ("today", "yesterday"):
        midnight = now.replace(hour=0, minute=0, second=0, microsecond=0) - timedelta(day == "yesterday")
        return _ns(midnight) if not rest else _ns(_at(midnight, rest.strip()))
    if _CLOCK.fullmatch(text):
        at = _at(now, text)
        return _ns(at - timedelta(days=1) if at is not None and at > now and not end else at)
    try:
        return _ns(datetime.fromisoformat(text))
    except ValueError:
        return None


def _at(day: datetime, text: str) -> datetime | None:
    """That time of that day."""
    found = _CLOCK.fullmatch(text)
    if found is None:
        return None
    hour, minute, second = (int(part or 0) for part in found.groups()[:3])
    if hour > 23 or minute > 59 or second > 59:
        return None
    return day.replace(
        hour=hour, minute=minute, second=second, microsecond=int(float(found[4] or 0) * 1_000_000)
    )


def _ns(at: datetime | None) -> int | None:
    """Local where it says nothing else."""
    if at is None:
        return None
    try:
        return max(0, round(at.timestamp() * 1_000_000) * 1000)
    except (OverflowError, ValueError, OSError):
        return None


def last_by(reader: Reader, moment: int | Past) -> int:
    """The number of the last event up to a moment; 0 where there was none yet. Raises BadParameter for a
    number that the log has not come to."""
    first = reader.base.seq
    found = reader.last_at(moment.at_ns) if isinstance(moment, Past) else moment
    if found < first - 1:
        raise CursorPruned(f"the log begins with event {first}, and what was before has been pruned")
    if isinstance(moment, Past):
        return found
    head = reader.head().seq
    if moment > head:
        raise click.BadParameter(f"the log ends at event {head}")
    return moment


def first_by(reader: Reader, moment: int | Past) -> int:
    """The number of the first event from a moment on; one more than the last, where none is as late."""
    return moment if isinstance(moment, int) else reader.first_at(moment.at_ns)


def end_of(since: int | Past | None, until: int | Past | None) -> int | Past | None:
    """The end of what begins `since`: of two times of day that are both yet to come, both are yesterday's."""
    if not (isinstance(since, Past) and isinstance(until, Past) and since.clock and until.clock):
        return until
    before = datetime.fromtimestamp(until.at_ns / NS) - timedelta(days=1)
    before_ns = _ns(before)
    return until if before_ns is None or before_ns < since.at_ns else Past(before_ns)


def between(reader: Reader, since: int | Past | None, until: int | Past | None) -> tuple[int, int]:
    """The number of the event before the first, and of the last, of those between two moments."""
    until = end_of(since, until)
    after = 0 if since is None else max(0, first_by(reader, since) - 1)
    head = reader.head().seq
    return after, head if until is None else min(head, last_by(reader, until))
