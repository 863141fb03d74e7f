"""Moments as a person names them: what they are, which events they choose, and what is none."""

from __future__ import annotations

import time
from datetime import datetime
from pathlib import Path

import pytest
import trio

from daemon.cli.moments import Past, end_of, parsed
from events.catalogue import Event
from events.store import open_store
from tests.integration import test_runnerlog
from tests.integration.test_runnerlog import AT, rows, run, seqs
from tests.integration.test_verify import story

log = test_runnerlog.log
"""The fixture: a log of two models that take turns."""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-11-20 03:12:05", "2026-11-20 03:12:05"),
        ("2026-11-20T03:12", "2026-11-20 03:12:00"),
        ("2026-11-20", "2026-11-20 00:00:00"),
        ("03:12", "2026-11-21 03:12:00"),
        ("14:00:01.5", "2026-11-20 14:00:01.500"),  # today it is yet to come
        ("yesterday", "2026-11-20 00:00:00"),
        ("yesterday 3:12", "2026-11-20 03:12:00"),
        ("-10min", "2026-11-21 11:50:00"),
        ("-2 h", "2026-11-21 10:00:00"),
        ("now", "2026-11-21 12:00:00"),
    ],
)
def test_a_moment_in_words(text: str, expected: str) -> None:
    def ns(words: str) -> int:
        return round(datetime.fromisoformat(words).timestamp() * 1000) * 1_000_000

    assert parsed(text, ns("2026-11-21 12:00:00")) == ns(expected)


@pytest.mark.parametrize(
    ("since", "until", "expected"),
    [
        (None, "14:00", "2026-11-21 14:00:00"),  # no end yet
        ("10:00", "14:00", "2026-11-21 14:00:00"),
        ("22:00", "03:00", "2026-11-21 03:00:00"),
        ("13:00", "14:00", "2026-11-20 14:00:00"),  # both are yet to come
        ("-2 h", "14:00", "2026-11-21 14:00:00"),
        ("10:00", "yesterday 11:00", "2026-11-20 11:00:00"),
        ("10:00", "09:00", "2026-11-21 09:00:00"),  # a mistake, and to be told as one
    ],
)
def test_an_end_may_be_yet_to_come(since: str | None, until: str, expected: str) -> None:
    now_ns = round(datetime.fromisoformat("2026-11-21 12:00:00").timestamp()) * 10**9

    def moment(text: str, *, end: bool) -> Past:
        return Past(parsed(text, now_ns, end=end) or 0, clock=text[:2].isdigit())

    found = end_of(moment(since, end=False) if since else None, moment(until, end=True))
    assert isinstance(found, Past)
    assert datetime.fromtimestamp(found.at_ns // 10**9).isoformat(" ") == expected


def test_today_has_no_end_before_it_ends(tmp_path: Path) -> None:
    """What has happened just now is before a time that is yet to come."""
    recent, shift_ns = tmp_path / "recent.db", time.time_ns() - 10**9 - story()[-1].t

    async def write() -> None:
        async with open_store(recent) as store:
            for event in story():
                store.append([event], shift_ns + event.t)

    trio.run(write)
    assert seqs(recent, "--until", "23:59:59.999999")[-1:] == [len(story())]


@pytest.mark.parametrize(
    "text", ["", "soon", "25:00", "03:60", "-10 fortnights", "today 3", "2026-13-01", "٣"]
)
def test_what_is_no_moment_is_refused_with_the_forms(log: Path, text: str) -> None:
    assert parsed(text, AT) is None
    done = run(log, "state", "--at", text)
    assert (done.returncode, "an event's number, 03:12" in done.stderr) == (2, True)


def test_moments_choose_events(log: Path) -> None:
    """Between two times of day, which each event has, local."""
    story_ = story()
    first, last = story_[9], story_[19]

    def time_of(event: Event) -> str:
        at = AT + event.t
        return f"{datetime.fromtimestamp(at // 10**9).isoformat(' ')}.{at % 10**9 // 1000:06d}"

    expected = [
        e.seq for e in story_ if first.t // 1000 * 1000 <= e.t <= last.t // 1000 * 1000
    ]  # a time has microseconds
    assert expected
    assert seqs(log, "--since", time_of(first), "--until", time_of(last)) == expected
    assert seqs(log, "--since", "10", "--until", "20") == list(range(10, 21))
    assert seqs(log, "--since", "now") == []
    (state,) = rows(log, "state", "--at", time_of(last))
    assert state["seq"] == expected[-1]
    assert run(log, "state", "--at", "999999").returncode == 2
