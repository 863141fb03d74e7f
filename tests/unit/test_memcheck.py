"""Whether models can be preloaded together, and what is said where they cannot."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from events import catalogue as c
from events.catalogue import ConfigView, DeviceView, Event, GroupView, MatrixView, ModelView, Reading
from events.limits import GIB, MIB
from statemachines.fold import apply
from statemachines.memcheck import obstacles
from statemachines.state import State, canonical, spec_key


def model(size: int = 0, device: str = "", **more: Any) -> ModelView:
    return ModelView(f"digest of {size} {device}", memory_bytes={device: size} if size else {}, **more)


def machine(models: dict[str, ModelView], readings: dict[str, Reading] | None = None, **more: Any) -> State:
    """A state after its configuration and a measurement: 8 GiB of host, 1 GiB kept."""
    given: dict[str, Any] = {"devices": {"host": DeviceView(8 * GIB)}, "headroom_bytes": GIB, **more}
    state = State()
    apply(state, Event(1, 1, 0, "", c.ConfigChanged(ConfigView(models, **given), "start")))
    if readings is not None:
        apply(state, Event(2, 2, 0, "", c.MemoryMeasured(readings)))
    return state


def test_what_fits_together_fits() -> None:
    state = machine({"a": model(3 * GIB), "b": model(4 * GIB)}, {"host": Reading(64 * GIB, 0)})
    before = canonical(state)
    assert obstacles(state, []) == []
    assert obstacles(state, ["a", "b"]) == []  # what is free now does not count
    assert canonical(state) == before


def test_too_much_is_told_with_each_need_and_its_source() -> None:
    views = {"a": model(3 * GIB), "b": model(), "d": model(GIB)}
    state = machine(views, {"host": Reading(64 * GIB, 64 * GIB)})
    state.footprints[spec_key(views["b"].digest, {})] = {"host": 4 * GIB + 1}
    assert obstacles(state, ["a", "b", "d"]) == [
        "together they need 8193 MiB on host: a 3 GiB (as configured), b 4097 MiB (as measured), "
        "d 1 GiB (as configured); the budget of host is 8 GiB, of which 1 GiB are headroom: preload fewer, "
        "give them less (a smaller context, `memory` if a figure is wrong), or raise the budget to 9217 MiB"
    ]


def test_a_machine_that_is_too_small_has_no_budget_to_raise() -> None:
    views = {"a": model(3 * GIB), "b": model(3 * GIB)}
    (only,) = obstacles(machine(views, {"host": Reading(6 * GIB, 6 * GIB)}), ["a", "b"])
    assert "host has 6 GiB, of which 1 GiB are headroom: preload fewer" in only
    assert "raise" not in only


def test_the_least_number_of_instances_counts() -> None:
    views = {"a": model(3 * GIB, instances_min=2, instances_max=3), "b": model(2 * GIB)}
    assert obstacles(machine(views), ["a"]) == []
    (only,) = obstacles(machine(views), ["a", "b"])
    assert only.startswith("together they need 8 GiB on host: a 2 × 3 GiB (as configured), b 2 GiB")
    assert "preload fewer or keep fewer `instances`, give" in only
    (only,) = obstacles(machine(views, max_loaded=1), ["a"])
    assert only.startswith("a is one too many: `maxLoadedModels`")


def test_an_instance_that_there_never_can_be_does_not_count() -> None:
    views = {"a": model(5 * GIB, instances_min=2, instances_max=2)}
    assert obstacles(machine(views, groups={"g": GroupView(("a",))}), ["a"]) == []
    assert obstacles(machine({"b": model(instances_min=2, instances_max=2)}), ["b"]) == []


def test_one_that_can_never_fit_is_told_alone() -> None:
    (only,) = obstacles(machine({"a": model(3 * GIB), "b": model(30 * GIB)}), ["a", "b"])
    assert only.startswith(
        "b can never fit: it needs 30 GiB on host, as configured; the budget of host is 8 GiB"
    )


def test_an_estimate_says_that_it_is_one() -> None:
    estimate = c.Estimate(weights_bytes=4 * GIB, layers=1)
    views = {
        "a": model(estimate=estimate),
        "b": msgspec.structs.replace(model(estimate=estimate), digest="b"),
    }
    (only,) = obstacles(machine(views), ["a", "b"])
    assert "(as estimated from its file), b " in only


@pytest.mark.parametrize("order", [["a", "b"], ["b", "a"]])
def test_unknown_memory_is_loaded_alone(order: list[str]) -> None:
    (only,) = obstacles(machine({"a": model(GIB), "b": model()}), order)
    assert only == (
        "b is loaded alone, since it needs an unknown amount, and so not together with a: "
        "give it `memory`, or preload nothing else"
    )
    assert obstacles(machine({"b": model()}), ["b"]) == []


def test_unknown_memory_may_be_shared_by_a_group() -> None:
    groups = {"g": GroupView(("a", "b"), swap=False)}
    assert obstacles(machine({"a": model(), "b": model()}, groups=groups), ["a", "b"]) == []


def test_what_ran_out_of_memory_beside_others_is_loaded_alone() -> None:
    state = machine({"a": model(GIB), "b": model(GIB)})
    state.crowded["b"] = None
    (only,) = obstacles(state, ["a", "b"])
    assert only.startswith("b is loaded alone, since it ran out of memory beside others")


def test_groups_and_the_matrix_exclude() -> None:
    views = {"a": model(MIB), "b": model(MIB)}
    swap = machine(views, groups={"g": GroupView(("a", "b"))})
    assert obstacles(swap, ["a", "b"]) == ["b cannot be loaded beside a: their groups exclude each other"]
    either = machine(views, matrix=MatrixView({"s": (".a", ".b", "|")}))
    assert obstacles(either, ["a", "b"]) == ["b cannot be loaded beside a: no set of the matrix has them all"]
    both = machine(views, matrix=MatrixView({"s": (".a", ".b", "&")}))
    assert obstacles(both, ["a", "b"]) == []


def test_fixed_ports_and_the_number_of_models_exclude() -> None:
    views = {name: model(MIB, lease="", fixed_port=8000) for name in "ab"}
    assert obstacles(machine(views), ["a", "b"]) == ["b and a both use port 8000: give one of them another"]
    (only,) = obstacles(machine({"a": model(MIB), "b": model(MIB)}, max_loaded=1), ["a", "b"])
    assert only.startswith("b is one too many: `maxLoadedModels`") and only.endswith("is 1")


def test_each_goes_where_there_is_room() -> None:
    devices = {"gpu0": DeviceView(8 * GIB, True), "gpu1": DeviceView(8 * GIB, True)}
    views = {name: model(6 * GIB) for name in "abc"}
    state = machine(views, devices=devices)
    assert obstacles(state, ["a", "b"]) == []
    (only,) = obstacles(state, ["a", "b", "c"])
    assert only.startswith("together they need 12 GiB on gpu")


def test_what_is_unknown_about_a_device_refuses_nothing() -> None:
    state = machine({"a": model(30 * GIB), "b": model(30 * GIB)}, devices={"host": DeviceView(None)})
    assert obstacles(state, ["a", "b"]) == []
