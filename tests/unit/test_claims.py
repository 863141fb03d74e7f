"""What claims keep from each other, and from who comes after them: devices, places, ports, host memory."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from events import catalogue as c
from events.limits import GIB, S
from statemachines.fold import apply
from statemachines.invariants import Breach
from statemachines.runner import RunnerState
from statemachines.waiting import cause
from tests.unit.test_scheduler import Core, of


def on(gib: dict[str, int], **fields: Any) -> c.ModelView:
    """A model that needs so many GiB of each device."""
    return c.ModelView(digest="d", memory_bytes={name: n * GIB for name, n in gib.items()}, **fields)


class Gpus(Core):
    """A core on a machine with 10 GiB of host memory and GPUs of 10 GiB, on which all memory that is not held
    is free; with a model `a0` … that is ready and busy on each GPU."""

    def __init__(self, models: dict[str, c.ModelView], count: int = 2, host: int = 0, **config: Any) -> None:
        busy = {f"a{i}": on({f"gpu{i}": 6} | ({"host": host} if host else {})) for i in range(count)}
        self.config = {"policy": "fifo", **config}
        super().__init__({**busy, **models}, **self.config)
        self.free |= {f"gpu{i}": (10 * GIB, 10 * GIB) for i in range(count)}
        self.busy = {name: self.load(name) for name in busy}
        self.asked = {name: self.arrive(name) for name in busy}
        self.measure()

    def measure(self, **runners: dict[str, int]) -> list[c.Event]:
        self.t += 1  # what is measured in the moment of an exit does not count
        return super().measure(**runners)

    def claimants(self) -> list[str]:
        return list(self.state.claims)

    def leave(self, name: str) -> list[c.Event]:
        """A busy model is done, and its runner gone."""
        before = len(self.log)
        self.ended(self.asked[name])
        self.leaves(self.busy[name])
        self.measure()
        self.passes(2 * S)
        return self.log[before:]


def test_claims_on_two_gpus_stand_side_by_side() -> None:
    core = Gpus({"b0": on({"gpu0": 6}), "b1": on({"gpu1": 6})})
    core.arrive("b0")
    core.arrive("b1")
    assert core.claimants() == ["b0", "b1"]
    assert [claim.devices for claim in core.state.claims.values()] == [("gpu0",), ("gpu1",)]
    assert [load.model for load in of(core.leave("a1"), c.RunnerLoad)] == ["b1"]
    assert core.claimants() == ["b0"]


def test_a_claim_covers_all_gpus_of_its_victims() -> None:
    core = Gpus({"wide": on({"gpu0": 4, "gpu1": 4}), "b0": on({"gpu0": 9}), "b1": on({"gpu1": 9})})
    core.take(c.UnloadRequested())
    core.leave("a0")
    core.leave("a1")
    wide = core.load("wide")
    core.arrive("wide")
    core.measure()
    core.arrive("b0")
    assert core.state.claims["b0"].victims == (wide,)
    assert core.state.claims["b0"].devices == ("gpu0", "gpu1")
    behind = core.arrive("b1")
    assert core.claimants() == ["b0"]
    assert cause(core.state, core.state.demands[core.state.requests[behind].demand]) == "b0, which is next"


def test_the_host_is_shared_while_there_is_enough_of_it() -> None:
    core = Gpus({"b0": on({"gpu0": 6, "host": 2}), "b1": on({"gpu1": 6, "host": 2})}, host=1)
    core.arrive("b0")
    core.arrive("b1")
    assert core.claimants() == ["b0", "b1"]


def test_what_a_claim_has_booked_of_the_host_is_not_given_away() -> None:
    core = Gpus({"b0": on({"gpu0": 6, "host": 5}), "h": on({"host": 6}), "small": on({"host": 5})})
    core.arrive("b0")
    core.arrive("h")
    assert not core.state.models.get("h")
    core.arrive("small")
    assert not core.state.models.get("small"), "it is behind h, which waits for host memory"
    core.leave("a0")
    assert [runner.model for runner in core.state.loading.values()] == ["b0"]


def test_who_lacks_host_memory_has_the_host_to_itself() -> None:
    core = Gpus({"h": on({"gpu0": 1, "host": 6}), "b2": on({"gpu2": 6, "host": 1})}, count=3, host=2)
    core.arrive("h")
    assert "host" in core.state.claims["h"].devices
    core.arrive("b2")
    assert core.claimants() == ["h"]


def test_a_place_that_a_claim_waits_for_is_its_own() -> None:
    """Of two places one is its victim's, who is gone, the other one another claim's."""
    core = Gpus({"b0": on({"gpu0": 6}), "e": on({"gpu2": 2}), "b1": on({"gpu1": 6})}, count=3)
    core.take(c.UnloadRequested(runner=core.busy["a2"]))
    core.leave("a2")
    view = msgspec.structs.replace(core.state.config, max_loaded=2)
    core.take(c.ConfigChanged(view))
    core.arrive("b0")
    core.arrive("b1")
    core.ended(core.asked["a0"])
    core.leaves(core.busy["a0"])
    core.measure()
    assert [runner.model for runner in core.state.loading.values()] == ["b0"]
    core.arrive("e")
    assert "e" not in core.state.models


def test_ports_that_claims_need_are_left_to_them() -> None:
    """Of three ports two are in use; the third is for the claim, whose victims have none."""
    models = {
        "a": on({"gpu0": 6}, lease="socket"),
        "b0": on({"gpu0": 6}),
        "e": on({"gpu1": 2}),
        "f": on({"gpu1": 2}, lease="socket"),
    }
    core = Gpus(models, count=2, port_first=5800, port_last=5802)
    core.take(c.UnloadRequested(runner=core.busy["a0"]))
    core.leave("a0")
    core.load("a")
    core.arrive("a")
    core.measure()
    core.take(c.ConfigChanged(msgspec.structs.replace(core.state.config, port_last=5801)))
    core.arrive("b0")
    assert core.claimants() == ["b0"]
    core.arrive("e")
    assert "e" not in core.state.models
    core.arrive("f")
    assert "f" not in core.state.models, "it is behind e"


def test_an_open_model_keeps_the_gpu_for_whose_runner_it_waits() -> None:
    """Else the free room of the other would draw it there and back, and its wait would begin anew."""
    core = Gpus({"open": on({"": 8}), "small": on({"gpu0": 1})}, policy="balanced")
    core.arrive("open")
    waits = of(core.log, c.TurnWaits)[-1]
    (gpu,) = core.state.runners[waits.runner].reserved_bytes
    other = {"gpu0": "gpu1", "gpu1": "gpu0"}[gpu]
    core.free[gpu] = (10 * GIB, 5 * GIB // 2)  # now the other one has more room
    core.measure()
    core.passes(waits.until_ns - core.t)
    core.measure()
    (claim,) = core.state.claims.values()
    assert claim.devices == (gpu,) != (other,)


def test_a_claim_ends_when_what_it_is_for_has_moved_elsewhere() -> None:
    core = Gpus({"b": on({"gpu0": 6})})
    core.arrive("b")
    models = {**core.state.config.models, "b": on({"gpu1": 2})}
    events = core.take(c.ConfigChanged(msgspec.structs.replace(core.state.config, models=models)))
    events += core.passes(0)
    assert of(events, c.ClaimEnded) == [c.ClaimEnded("b", "changed")]
    assert [runner.model for runner in core.state.loading.values()] == ["b"]


def test_who_is_loaded_alone_waits_for_all_claims() -> None:
    core = Gpus({"b0": on({"gpu0": 6}), "unknown": c.ModelView(digest="d"), "b1": on({"gpu1": 6})})
    core.arrive("b0")
    core.arrive("unknown")
    core.arrive("b1")
    assert core.claimants() == ["b0"], "nobody goes before the one that needs everything"


def test_models_whose_groups_exclude_each_other_claim_one_after_the_other() -> None:
    groups = {"g": c.GroupView(("b0",), True, True, False), "h": c.GroupView(("b1",), True, False, False)}
    rest = {"r": c.GroupView(("a0", "a1"), False, False, True)}
    core = Gpus({"b0": on({"gpu0": 6}), "b1": on({"gpu1": 6})}, groups={**groups, **rest})
    core.arrive("b1")
    assert not core.claimants(), "only what is persistent could make room"


@pytest.mark.parametrize(
    ("exclusive", "claimants"), [(False, ["b0", "b1"]), (True, ["b0"])], ids=["apart", "together"]
)
def test_swaps_of_two_groups(exclusive: bool, claimants: list[str]) -> None:
    groups = {
        "g0": c.GroupView(("a0", "b0"), True, False, False),
        "g1": c.GroupView(("a1", "b1"), True, exclusive, False),
    }
    core = Gpus({"b0": on({"gpu0": 2}), "b1": on({"gpu1": 2})}, groups={})
    core.take(c.ConfigChanged(msgspec.structs.replace(core.state.config, groups=groups)))
    core.arrive("b0")
    core.arrive("b1")
    assert core.claimants() == claimants


# --- what must never be decided --------------------------------------------------------------------------


@pytest.fixture
def claimed() -> Gpus:
    """`b0` has a claim on gpu0."""
    core = Gpus({"b0": on({"gpu0": 6, "host": 4}), "x": on({}), "b1": on({"gpu1": 6})})
    core.arrive("b0")
    assert core.state.runners[core.busy["a0"]].state is RunnerState.draining
    return core


def decide(core: Gpus, decision: c.Decision) -> None:
    apply(core.state, c.Event(core.state.seq + 1, core.t, 0, "r999", decision))


def load(gib: dict[str, int]) -> c.RunnerLoad:
    size_bytes = {name: n * GIB for name, n in gib.items()}
    return c.RunnerLoad("x", "d", {}, size_bytes, 1, 0, S, "test", 0, False, False)


def test_no_load_on_a_claims_device(claimed: Gpus) -> None:
    with pytest.raises(Breach, match="where b0 has a claim"):
        decide(claimed, load({"gpu0": 1}))


def test_no_load_of_what_a_claim_has_booked(claimed: Gpus) -> None:
    decide(claimed, load({"host": 6}))
    with pytest.raises(Breach, match="booked of host"):
        decide(claimed, load({"host": 1, "gpu1": 1}))


def test_no_second_claim_on_a_device(claimed: Gpus) -> None:
    claimed.arrive("b1")
    claimed.state.claims.pop("b1")
    with pytest.raises(Breach, match="b1 and b0 at once, both on gpu0"):
        decide(claimed, c.ClaimMade("b1", {}, ("gpu0", "gpu1"), ()))
    with pytest.raises(Breach, match="both on everything"):
        decide(claimed, c.ClaimMade("b1", {}, ("gpu1",), (), whole=True))
    with pytest.raises(Breach, match="is not all that it uses"):
        decide(claimed, c.ClaimMade("b1", {}, ("host",), (claimed.busy["a1"],)))
