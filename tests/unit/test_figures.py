"""Percentiles, shares, and what devices held over time."""

from __future__ import annotations

from daemon.cli.log_window import Seconds, share
from daemon.history.figures import Figures, percentile, spread
from daemon.history.stats import Held


def test_percentiles_are_values_that_were_there() -> None:
    values = list(range(1, 101))
    assert [percentile(values, share) for share in (500, 950, 990, 1000)] == [50, 95, 99, 100]
    assert [percentile([7], share) for share in (1, 500, 1000)] == [7, 7, 7]
    assert spread([4, 1, 3]) == {"count": 3, "mean": 2, "p50": 3, "p95": 4, "p99": 4, "max": 4}
    assert spread([]) == {"count": 0, "mean": None, "p50": None, "p95": None, "p99": None, "max": None}


def test_nothing_has_no_share() -> None:
    figures = Figures()
    assert (figures.hit_rate, figures.busy_share, figures.swaps) == (None, None, 0)
    assert figures.plain()["busy_share"] is None


def test_what_is_held_is_weighed_by_time() -> None:
    held = Held()
    held.at_ns.extend([10, 20, 40])
    held.bytes.extend([100, 300, 0])
    assert held.peak_bytes == 300
    assert held.mean_bytes(10, 20) == 100
    assert held.mean_bytes(0, 20) == 50
    assert held.mean_bytes(10, 50) == (10 * 100 + 20 * 300) // 40
    assert held.mean_bytes(45, 60) == 0
    assert held.mean_bytes(30, 30) == 0


def test_seconds_have_the_decimals_that_the_longest_needs() -> None:
    second = 10**9
    assert Seconds(second // 2)(second // 4) == "0.250"
    assert Seconds(5 * second)(second // 4) == "0.25"
    assert Seconds(2000 * second)(1234 * second) == "1,234.0"
    assert (Seconds(second)(0), Seconds(second)(None)) == ("", "")
    assert [share(part) for part in (None, 0.0, 0.001, 0.5, 1.0)] == ["", "0 %", "<1 %", "50 %", "100 %"]
