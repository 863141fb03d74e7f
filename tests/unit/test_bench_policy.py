"""The policy benchmark itself: its workloads, what it measures, and the pieces of its exact bound."""

from __future__ import annotations

import sys
from math import exp

import pytest

from benchmarks import bench_policy, bound, workloads
from benchmarks.bench_policy import Cell, compare, figures, lines, measure, summary
from benchmarks.bound import NO_SCIPY, NoScipy, Window, least_wait_s, total_wait
from benchmarks.play import POLICIES, Result, p99, play
from benchmarks.workloads import CVS, LENGTHS, UNIT_NS, ZIPFS, Call, Workload, shapes, window
from events.limits import S


def named(name: str) -> workloads.Shape:
    return next(shape for shape in shapes(0.5) if shape.name == name)


def two_models(*calls: Call) -> Workload:
    return Workload("two", (6 * S, 9 * S), calls, slots=1)


def waits_s(result: Result) -> dict[int, list[int]]:
    """In whole seconds: measuring memory takes some nanoseconds."""
    return {model: [round(wait / S) for wait in waits] for model, waits in result.waits.items()}


# --- workloads -------------------------------------------------------------------------------------------


def test_the_grid_and_the_stories_are_all_there() -> None:
    names = [shape.name for shape in shapes(0.5)]
    assert len(names) == len(set(names)) == len(LENGTHS) * len(CVS) * len(ZIPFS) + 4


@pytest.mark.parametrize("shape", shapes(0.5), ids=lambda shape: shape.name)
def test_a_seed_is_a_workload(shape: workloads.Shape) -> None:
    one, again, other = shape.workload(120, 1), shape.workload(120, 1), shape.workload(120, 2)
    assert one == again
    assert one.calls != other.calls or shape.name == "two in turn"
    assert all(call.service_ns > 0 and call.model < len(one.load_ns) for call in one.calls)
    assert all(call.after < i for i, call in enumerate(one.calls))


def test_lengths_have_the_published_means() -> None:
    tokens = {kind: [exp(mu + s * s / 2) for mu, s in both] for kind, both in LENGTHS.items()}
    assert tokens["long"] == [pytest.approx(12_035, rel=0.03), pytest.approx(343, rel=0.03)]
    (mu, sigma), _ = LENGTHS["long"]
    assert exp(mu + 2.326 * sigma) == pytest.approx(85_400, rel=0.03)


def test_bursts_have_the_same_load_as_a_steady_stream() -> None:
    for cv in CVS:
        calls = named(f"code cv{cv} zipf1.4").workload(600, 1).calls
        assert len(calls) == len(named("code cv1 zipf1.4").workload(600, 1).calls)
        assert 0 <= calls[0].at_ns <= calls[-1].at_ns <= 600 * S


# --- what is measured ------------------------------------------------------------------------------------


def test_a_swap_costs_what_it_should() -> None:
    """Memory for one. The second model waits for the first one's request, then for its own load."""
    workload = two_models(Call(0, 0, 5 * S), Call(1, 8 * S, S))
    result = play(workload, "collate", 1)
    assert waits_s(result) == {0: [6], 1: [3 + 9]}
    assert (result.swaps, result.hungers, result.beyond) == (1, 2, 0)
    both = play(workload, "collate", 2)
    assert (waits_s(both), both.swaps) == ({0: [6], 1: [9]}, 0)


def test_calls_that_follow_others_wait_for_their_end() -> None:
    workload = two_models(Call(0, S, 5 * S), Call(1, 2 * S, S, after=0))
    assert waits_s(play(workload, "balanced", 2)) == {0: [6], 1: [9]}


def test_a_model_that_collation_starves_is_found_beyond_its_bound() -> None:
    """The hot one is never idle: only `balanced` and `fifo` ever let the other have its room."""
    hot = [Call(0, i * 2 * S, 3 * S) for i in range(200)]
    workload = Workload("hot", (6 * S, 9 * S), (*hot, Call(1, 30 * S, S)), slots=4)
    results = {policy: play(workload, policy, 1) for policy in POLICIES}
    assert [result.beyond for result in results.values()] == [0, 0, 1]
    assert results["balanced"].waits[1][0] < 60 * S < 300 * S < results["collate"].waits[1][0]


def test_no_drain_is_begun_where_another_runner_will_soon_be_idle() -> None:
    """Room for two, one of them with a long request: the short ones swap beside it."""
    workload = named("one long").workload(600, 1)
    balanced, collate = (play(workload, policy, 2) for policy in ("balanced", "collate"))
    assert balanced.mean_ns <= 1.1 * collate.mean_ns
    assert balanced.beyond == 0


def test_results_of_seeds_are_pooled() -> None:
    one, other = Result({0: [1, 3]}, 2, 1, 0, (1, 2, 1)), Result({0: [5], 1: [7]}, 1, 1, 1, (9, 3, 2))
    one.add(other)
    assert one == Result({0: [1, 3, 5], 1: [7]}, 3, 2, 1, (9, 3, 2))
    assert (one.all_waits(), one.mean_ns, one.worst_p99_ns) == ([1, 3, 5, 7], 4, 7)
    assert (p99(list(range(1, 101))), p99(list(range(1, 202))), p99([4])) == (99, 199, 4)


# --- what is printed -------------------------------------------------------------------------------------


def cell(balanced_s: int, collate_s: int, beyond: int = 0) -> Cell:
    def result(wait_s: int, beyond: int = 0) -> Result:
        return Result({0: [wait_s * S]}, 1, 1, beyond, (wait_s * S, 10 * S, 1))

    return Cell(
        "w",
        0.5,
        1,
        {"balanced": result(balanced_s, beyond), "fifo": result(99), "collate": result(collate_s)},
    )


def test_the_goal_is_held_against_the_figures() -> None:
    assert cell(10, 10).misses == []
    assert cell(21, 20).misses == ["worst p99 x1.05"]
    assert cell(30, 20, beyond=2).misses == ["mean x1.50", "worst p99 x1.50", "2 beyond bound"]
    assert cell(1, 0).misses == [], "waits below a second are all the same"


def test_every_line_fits_into_100_columns() -> None:
    table = [measure(named("conversation cv13 zipf1.1"), 0.5, 1, 120, range(1, 2)), cell(30, 20, beyond=2)]
    printed = [bench_policy.HEAD, *(line for each in table for line in lines(each)), *summary(table)]
    assert max(len(line) for line in [*printed, *bench_policy.LEGEND.splitlines()]) <= 100
    assert set(figures(table[0].results["fifo"])) == set(table[1].plain()["policies"]["balanced"])


# --- the bound -------------------------------------------------------------------------------------------


def test_a_window_ends_after_whatever_may_be_sensible() -> None:
    u = UNIT_NS
    seen = Window.of(Workload("w", (2 * u, 3 * u), (Call(0, 0, u), Call(1, 4 * u, u), Call(1, 4 * u, u)), 1))
    assert seen == Window([2, 3], [{0: 1}, {4: 2}], busy=True, end=4 + 5 + 3 + 3 + 1)
    with pytest.raises(ValueError, match="whole units"):
        Window.of(two_models(Call(0, 1, u)))


def test_what_a_schedule_waits() -> None:
    arrivals = [{0: 2}, {1: 1}]
    there = [[False, False, True, True, False], [False, False, False, False, True]]
    assert total_wait(Window([2, 1], arrivals, busy=False, end=5), there) == 2 * 2 + 3
    assert total_wait(Window([2, 1], arrivals, busy=True, end=5), there) == 2 * 2 + 1 + 3


def test_the_core_is_seen_to_wait_as_long_in_a_window() -> None:
    """One model: the only schedule there is loads it when it is first wanted."""
    u = UNIT_NS
    workload = Workload("w", (2 * u,), (Call(0, u, u), Call(0, u, u)), slots=1)
    there = [[3 <= unit < 5 for unit in range(Window.of(workload).end)]]
    waits = waits_s(play(workload, "balanced", 1))[0]
    assert sum(waits) == total_wait(Window.of(workload), there) * u // S


def test_windows_are_in_whole_units() -> None:
    for which in (*bench_policy.WINDOWS, *bench_policy.MORE_WINDOWS):
        assert Window.of(window(*which)).end < 200


def test_without_scipy_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(NoScipy, match="make bench-policy"):
        least_wait_s(window(6, 2, True, 1))
    monkeypatch.setattr(sys, "argv", ["bench_policy", "--seconds", "20"])
    with pytest.raises(SystemExit, match="--no-bound"):
        bench_policy.main()
    assert "--no-bound" in NO_SCIPY


def test_a_window_without_a_proven_optimum_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def give_up(program: bound.Program) -> tuple[float, list[float]]:
        raise bound.NotSolved("time")

    monkeypatch.setattr(bound, "_solve", give_up)
    assert compare(window(6, 2, True, 1)).least_s is None
