"""The core's promises about room: devices, victims, footprints, ports, how many runners there may be."""

from __future__ import annotations

import pytest

from events import catalogue as c
from events.catalogue import Reading
from events.limits import (
    GIB,
    S,
)
from statemachines.ledger import back, needs
from statemachines.policy import costs_to_lose
from statemachines.room import max_loaded, next_ports
from tests.unit.test_scheduler import Core, model, of, only


def test_what_leaves_but_is_not_enough_does_not_hold_up_the_choice_of_victims() -> None:
    core = Core({"a": model(size=2), "b": model(size=7), "c": model(size=9)})
    small, large = core.load("a"), core.load("b")
    core.passes(10 * S)
    core.take(c.UnloadRequested(runner=small))
    core.measure()
    assert of(core.take(c.RequestArrived("c", "chat")), c.ClaimMade)[0].victims == (large,)


def test_the_victim_is_the_one_whose_load_others_use_has_paid_off() -> None:
    core = Core({"a": model(), "b": model()})
    dear, cheap = core.state.runners[core.load("a")], core.state.runners[core.load("b")]
    core.state.load_cost_ns.update(a=20 * S, b=5 * S)
    core.passes(30 * S)
    core.measure()
    cheap.idle_t = core.state.t - S
    assert [cost[3] for cost in costs_to_lose(core.state, [cheap, dear], [])] == [dear.id, cheap.id]


def test_nobody_is_evicted_for_memory_that_other_programs_hold() -> None:
    """A runner gives back what it uses, not what is reserved for it."""
    core = Core({"a": model(size=8), "b": model(size=9)})
    runner = core.load("a")
    core.passes(10 * S)
    core.free["host"] = (10 * GIB, 4 * GIB)
    core.measure(**{runner: {"host": 2 * GIB}})
    events = core.take(c.RequestArrived("b", "chat"))
    assert not of(events, c.ClaimMade)
    assert of(events, c.TurnWaits)[0].reason == "memory"


def test_what_a_loading_runner_has_yet_to_take_is_not_free() -> None:
    core = Core({"a": model(size=6), "b": model(size=4)})
    core.free["host"] = (10 * GIB, 7 * GIB)
    core.measure()
    assert of(core.take(c.RequestArrived("a", "chat")), c.RunnerLoad)
    assert not of(core.take(c.RequestArrived("b", "chat")), c.RunnerLoad)


def gpus(core: Core, *sizes: int, reliable: bool = True) -> None:
    """GPUs of so many GiB, all free."""
    devices = {f"gpu{i}": Reading(size * GIB, size * GIB, reliable) for i, size in enumerate(sizes)}
    core.take(c.MemoryMeasured({"host": Reading(10 * GIB, 10 * GIB), **devices}))


def test_an_idle_runner_goes_rather_than_a_busy_one_on_the_gpu_with_more_room() -> None:
    """The device is chosen with the victims in mind: gpu1 has more room, and nothing there may go soon."""
    on = {
        name: c.ModelView(digest=name, memory_bytes={name: size * GIB})
        for name, size in (("gpu0", 20), ("gpu1", 12))
    }
    core = Core({**on, "b": c.ModelView(digest="b", memory_bytes={"": 14 * GIB})})
    gpus(core, 24, 24)
    idle, busy = core.load("gpu0"), core.load("gpu1")
    core.arrive("gpu1")
    core.passes(10 * S)
    gpus(core, 24, 24)
    claimed = core.take(c.RequestArrived("b", "chat"))
    assert of(claimed, c.ClaimMade)[0].victims == (idle,)
    assert core.state.runners[busy].held


def test_a_model_that_only_the_larger_gpu_can_hold_waits_for_it() -> None:
    """The smaller one may have more room just now; what can never fit there is not refused for that."""
    any_gpu = c.ModelView(digest="d", memory_bytes={"": 20 * GIB})
    core = Core({"a": any_gpu, "b": any_gpu})
    gpus(core, 24, 8)
    assert of(core.take(c.RequestArrived("a", "chat")), c.RunnerLoad)[0].reserved_bytes == {"gpu0": 20 * GIB}
    events = core.take(c.RequestArrived("b", "chat"))
    assert not of(events, c.ModelDismissed)
    assert not of(events, c.RequestFailed)


def test_a_configured_footprint_goes_before_a_learned_one() -> None:
    core = Core({"a": model(size=6)})
    view = core.state.config.models["a"]
    core.state.footprints["d?"] = {"host": GIB}
    assert needs(core.state, view, {})[0] == {"host": 6 * GIB}


@pytest.mark.parametrize(("port", "goes_ahead"), [(9000, False), (9001, True)])
def test_who_goes_ahead_on_another_device_does_not_take_the_port_of_the_first(
    port: int, goes_ahead: bool
) -> None:
    small = {"host": GIB}
    core = Core(
        {
            "a": c.ModelView(digest="d", memory_bytes={"gpu0": 8 * GIB}),
            "b": c.ModelView(digest="d", memory_bytes={"gpu0": 8 * GIB}, fixed_port=9000),
            "c": c.ModelView(digest="d", memory_bytes=small, fixed_port=port),
        }
    )
    core.free["gpu0"] = (8 * GIB, 8 * GIB)
    core.load("a")
    core.arrive("a")
    core.measure()
    core.arrive("b")
    assert bool(of(core.take(c.RequestArrived("c", "chat")), c.RunnerLoad)) == goes_ahead


def on_gpu0(name: str, size: int) -> c.ModelView:
    return c.ModelView(digest=name, memory_bytes={"gpu0": size * GIB})


def unread(core: Core, *sizes: int) -> list[c.Event]:
    """The GPUs are there, but cannot be read."""
    gone = {f"gpu{i}": Reading(size * GIB, 0, reliable=False) for i, size in enumerate(sizes)}
    return core.take(c.MemoryMeasured({"host": Reading(10 * GIB, 10 * GIB), **gone}))


def test_nobody_goes_for_a_gpu_that_cannot_be_read() -> None:
    core = Core({"a": on_gpu0("a", 6), "b": on_gpu0("b", 20)})
    gpus(core, 24)
    idle = core.load("a")
    core.passes(10 * S)
    unread(core, 24)
    events = core.take(c.RequestArrived("b", "chat"))
    assert not of(events, c.ClaimMade)
    assert of(events, c.TurnWaits)[0].reason == "memory"
    core.passes(2 * S)
    gpus(core, 24)
    assert core.state.runners[idle].reason == "evicted"


def test_what_waits_for_a_gpu_that_stays_unreadable_is_told_so() -> None:
    core = Core({"a": on_gpu0("a", 6)})
    unread(core, 24)
    core.arrive("a")
    told: list[c.ModelDismissed] = []
    for _ in range(40):
        told += of(core.passes(S), c.ModelDismissed)
        told += of(unread(core, 24), c.ModelDismissed)
    assert [(each.reason, each.detail) for each in told] == [
        ("no_memory", "needs 6 GiB on gpu0, which cannot be read")
    ]


def test_an_open_device_is_one_that_can_be_read() -> None:
    """Of two, one of which is busy: the other is no way out while it cannot be read."""
    core = Core({"a": on_gpu0("a", 20), "b": c.ModelView(digest="b", memory_bytes={"": 14 * GIB})})
    gpus(core, 24, 24)
    core.load("a")
    core.passes(10 * S)
    core.take(
        c.MemoryMeasured(
            {"host": Reading(10 * GIB, 10 * GIB), "gpu0": Reading(24 * GIB, 4 * GIB),
             "gpu1": Reading(24 * GIB, 0, reliable=False)}
        )
    )  # fmt: skip
    claims = of(core.take(c.RequestArrived("b", "chat")), c.ClaimMade)
    assert [claim.devices for claim in claims] == [("gpu0",)]


def test_a_gpu_that_cannot_be_read_lowers_no_limit() -> None:
    core = Core({})
    core.take(c.ConfigChanged(c.ConfigView()))
    gpus(core, 8, 8)
    assert max_loaded(core.state) == 6
    unread(core, 8, 8)
    assert max_loaded(core.state) == 6


def test_what_was_seen_of_half_a_load_is_not_a_footprint() -> None:
    """Of two containers that load at once nobody knows what is whose: the first has what was reserved."""
    core = Core({"a": c.ModelView(digest="a"), "c": on_gpu0("c", 2)})
    core.state.footprints["a?"] = {"gpu0": 6 * GIB}
    core.free["gpu0"] = (24 * GIB, 24 * GIB)
    core.measure()
    first = only(core.take(c.LoadRequested("a")), c.RunnerLoad)
    core.spawn(first)
    core.free["gpu0"] = (24 * GIB, 22 * GIB)
    core.measure()
    second = only(core.take(c.LoadRequested("c")), c.RunnerLoad)
    core.take(c.ProbeAnswered(first, True), S)
    core.free["gpu0"] = (24 * GIB, 16 * GIB)
    core.measure()
    assert core.state.runners[first].holds == {"gpu0": 6 * GIB}
    core.take(c.UnloadRequested(runner=first))
    core.leaves(first)
    core.passes(S)
    core.free["gpu0"] = (24 * GIB, 22 * GIB)
    core.measure()
    assert list(core.state.runners) == [second]
    assert core.state.footprints["a?"] == {"gpu0": 6 * GIB}


def test_how_many_runners_there_may_be_follows_the_gpus() -> None:
    core = Core({})
    core.take(c.ConfigChanged(c.ConfigView()))
    assert max_loaded(core.state) == 3
    gpus(core, 8, 8)
    assert max_loaded(core.state) == 6
    gpus(core, 8, 8, reliable=False)
    assert max_loaded(core.state) == 2


def test_three_quarters_of_a_gpus_memory_are_back_and_less_is_not() -> None:
    core = Core({"a": c.ModelView(digest="d", memory_bytes={"gpu0": 4 * GIB})})
    core.free = {"gpu0": (10 * GIB, 2 * GIB)}
    core.free["gpu0"] = (10 * GIB, 6 * GIB)
    runner = core.state.runners[core.load("a")]
    core.free["gpu0"] = (10 * GIB, 2 * GIB)
    core.measure()
    core.take(c.UnloadRequested("a"))
    core.leaves(runner.id)
    core.free["gpu0"] = (10 * GIB, 5 * GIB - 1)
    core.passes(S)
    core.measure()
    assert not back(core.state, runner)
    core.free["gpu0"] = (10 * GIB, 5 * GIB)
    core.passes(S)
    core.measure()
    assert runner.id not in core.state.runners


def test_a_refused_port_is_not_tried_again_while_there_is_another() -> None:
    core = Core({"a": model()}, port_first=5800, port_last=5802)
    first = only(core.take(c.LoadRequested("a")), c.RunnerLoad)
    core.take(c.LeaseRefused(first, 5800))
    core.state.next_port = 5800
    assert next_ports(core.state, 2) == (5802,)


def test_a_load_gives_up_after_so_many_refused_ports() -> None:
    core = Core({"a": model()}, port_first=5800, port_last=5899)
    runner = only(core.take(c.LoadRequested("a")), c.RunnerLoad)
    for port in range(5800, 5815):
        assert of(core.take(c.LeaseRefused(runner, port)), c.RunnerLeased)
    assert of(core.take(c.LeaseRefused(runner, 5815)), c.RunnerFailed)


def test_what_was_learned_longest_ago_is_forgotten_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients choose the values of options: each is a launch spec of its own."""
    monkeypatch.setattr("statemachines.fold_runners.FOOTPRINTS", 2)
    core = Core({"a": model(options={"num_ctx": 4096})})
    for num_ctx in (1, 2, 1, 3):
        runner = core.load("a", num_ctx=num_ctx)
        core.measure(**{runner: {"host": num_ctx * GIB}})
        core.take(c.UnloadRequested(runner=runner))
        core.leaves(runner)
        core.passes(2 * S)
    assert list(core.state.footprints.values()) == [{"host": GIB}, {"host": 3 * GIB}]
