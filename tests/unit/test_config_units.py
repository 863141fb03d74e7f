"""Durations and sizes."""

from __future__ import annotations

import pytest

from daemon.config.units import duration_ns, show_duration, show_size, size_bytes
from events.limits import GIB, MIB, MS, S


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0, 0), (60, 60 * S), ("90s", 90 * S), ("1h30m", 5400 * S), ("500ms", 500 * MS), ("1.5s", 1500 * MS),
        ("2d", 172_800 * S), (-1, None), (True, None), (1.5, None), ("", None), ("60", None), ("-5s", None),
        ("1 s", None), ("s", None), ("1h30", None), ("9999999d", None), (10**18, None),
        (None, None), ("1w", None),
    ],
)  # fmt: skip
def test_durations(value: object, expected: int | None) -> None:
    assert duration_ns(value) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("6GiB", 6 * GIB), ("512 MiB", 512 * MIB), ("1.5GiB", 3 * GIB // 2), ("6GB", 6 * 10**9), ("17B", 17),
        ("0B", 0), (1024, 1024), (0, 0), (-1, None), (True, None), (1.5, None), ("6", None), ("6G", None),
        ("6iB", None), ("6gib", None), ("-6GiB", None), ("", None), ("9999TiB", None), (None, None),
    ],
)  # fmt: skip
def test_sizes(value: object, expected: int | None) -> None:
    assert size_bytes(value) == expected


def test_both_are_shown_shortly() -> None:
    assert [show_size(size) for size in (17, 200 * MIB, 6 * GIB, 3 * GIB // 2)] == [
        "17 B",
        "200 MiB",
        "6 GiB",
        "1.5 GiB",
    ]
    times = (0, 500 * MS, 90 * S, 600 * S, 5400 * S, 7200 * S, 86400 * S)
    assert [show_duration(time) for time in times] == [
        "0 s",
        "500 ms",
        "90 s",
        "10 min",
        "90 min",
        "2 h",
        "1 d",
    ]
