"""The state that the log folds to: runners, requests, queues, memory, deadlines. Plain data, no behaviour
but its own bookkeeping; only `statemachines.fold` changes it.

Everything is keyed by id and kept in insertion order, so that two folds of one log are equal byte for byte
(`canonical`). Times are scheduler time in ns, sizes are bytes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

import msgspec

from events.catalogue import NEVER, ConfigView, ModelDismissed, ModelView, Option, Reading
from events.limits import LOOK_RUNNERS
from statemachines.agenda import Agenda
from statemachines.parts import Claim, Cooling, Demand, Operation, Request, Runner
from statemachines.tables import Ages, Table, as_dict, number

FIELDS = (
    "alone", "boot_id", "claims", "coming", "config", "cooling", "counts", "crowded", "deadlines",
    "demands", "dismissing", "drain_cost_ns", "footprints", "gone_t", "group_of", "held", "idle",
    "leased", "leaving", "load_cost_ns", "loading", "measure_t", "measured_t", "measuring", "models",
    "next_port", "node", "only_loads", "operations", "pinned", "policy", "preloads", "profile",
    "quarantine", "queued", "readings", "refused_ports", "requests", "resting", "rules", "runners",
    "scaled", "seq", "starving", "stopping", "t", "think_ns", "wanted",
)  # fmt: skip


class State:
    """Everything that a decision may depend on."""

    __slots__ = FIELDS

    def __init__(self) -> None:  # noqa: PLR0915 (a field each)
        self.seq = self.t = self.rules = self.queued = self.next_port = 0
        self.node = self.boot_id = self.policy = self.profile = self.stopping = ""
        # profile: the one in use. stopping: "", or how the daemon is to stop: "drain", "now", "leave".
        self.config = ConfigView()
        self.group_of: dict[str, str] = {}
        """The group of each model that the configuration puts into one."""
        self.scaled: dict[str, None] = {}
        """Models that may have several instances of one launch spec."""
        self.pinned, self.preloads = dict[str, None](), dict[str, None]()
        """Models whose runners are neither evicted nor expire; models that this start preloads, none of which
        makes room for another."""
        self.runners: dict[str, Runner] = {}
        """Runners that are not terminal."""
        self.models: dict[str, dict[str, Runner]] = {}
        """The same by model; a model without one has no entry."""
        self.loading: dict[str, Runner] = {}
        """Those of them that load."""
        self.resting: dict[str, Runner] = {}
        """Those that are ready and have nothing to do, in no order."""
        self.leaving: dict[str, Runner] = {}
        """Those that neither load nor are ready, in no order."""
        self.leased: dict[int, str] = {}
        """Who holds each port."""
        self.alone: dict[str, None] = {}
        """Those of them beside which nothing may be loaded."""
        self.held: dict[str, int] = {}
        """Bytes that they hold on each device."""
        self.coming: dict[str, int] = {}
        """Bytes of these that runners that load have yet to take."""
        self.requests: Table[Request] = Table()
        """Requests that have not ended, or whose slot is not back."""
        self.demands: dict[str, Demand] = {}
        """Demands with somebody waiting."""
        self.wanted: dict[str, OrderedDict[str, Demand]] = {}
        """The same by model; a model that nobody waits for has no entry."""
        self.starving: dict[tuple[int, tuple[str, ...]], Ages] = {}
        """Demands that no live runner satisfies, by priority and configured devices (`Demand.where`), each
        with the age of its head (`head_seq`)."""
        self.dismissing: dict[str, ModelDismissed] = {}
        """Dismissals whose waiters are being failed, a few each step, by `dismissal_key`."""
        self.operations: dict[str, Operation] = {}
        self.claims: dict[str, Claim] = {}
        """By demand, oldest first: no two on one device."""
        self.cooling: dict[str, Cooling] = {}
        self.crowded: dict[str, None] = {}
        """Models whose last load ran out of memory beside others: the next one is to be alone."""
        self.quarantine: dict[str, int] = {}
        """Models whose requests breached an invariant at an earlier start, refused until then."""
        self.footprints: dict[str, dict[str, int]] = {}
        """What an incarnation of a launch spec used at its peak, by `spec_key`; what was learned longest ago
        comes first, and is the first to be forgotten (FOOTPRINTS)."""
        self.load_cost_ns: dict[str, int] = {}
        """How long the model's last load took."""
        self.idle: dict[str, tuple[int, dict[str, Option]]] = {}
        """When a runner of the model last became idle, and its launch options; until somebody asks again."""
        self.think_ns: dict[str, int] = {}
        """How long it then took until somebody asked for such a runner again."""
        self.drain_cost_ns: dict[str, int] = {}
        """How long the model's last drain took."""
        self.readings: dict[str, Reading] = {}
        self.measured_t = self.measure_t = self.gone_t = NEVER
        # When devices were measured (NEVER: not since the last exit), when that was asked for; the last exit.
        self.measuring = self.only_loads = False
        # only_loads: whether the step that goes on has only loads, and ends of runners, left to decide.
        self.refused_ports: dict[int, None] = {}
        self.deadlines: Agenda[tuple[str, str]] = Agenda()
        """Every wait's end, by (kind, id)."""
        self.counts: dict[str, int] = {}
        """How many events of each type there have been."""

    def model(self, name: str) -> ModelView | None:
        """The model's configuration, or None where there is none."""
        return self.config.models.get(name)


def is_many(state: State) -> bool:
    """Whether there are so many runners that a look at all of them is most of what a step may take."""
    return len(state.runners) > LOOK_RUNNERS


def oldest(demand: Demand) -> str:
    """Who has waited longest in a demand: a request, or an operator's load."""
    request = demand.waiting.first() if demand.waiting else ""
    if not demand.operations:
        return request
    operation = next(iter(demand.operations))
    return request if request and number(request) < number(operation) else operation


def where_of(view: ModelView | None) -> tuple[str, ...]:
    """The devices that a model is configured for; none where they are open until it is loaded."""
    if view is None or "" in view.memory_bytes:
        return ()
    return tuple(sorted(view.memory_bytes))


def unload_due(state: State, runner: Runner) -> int:
    """Until when a drain for an unload, a reload or a stop may last that begins now (`unloadTimeout`)."""
    return state.t + (state.model(runner.model) or state.config).unload_ns


def head_seq(demand: Demand) -> int:
    """The age of a demand: the number of its oldest request or operator's load."""
    if not demand.operations:
        return demand.waiting.age()
    return number(oldest(demand))


def demand_key(model: str, options: dict[str, Option], priority: int, excluded: str = "") -> str:
    """What queues a request: its model, the launch options that it fixed (sorted), its priority, and the
    runner that it must not get again."""
    if not options and not priority and not excluded:
        return model
    fixed = ",".join(f"{name}={options[name]!r}" for name in sorted(options))
    return f"{model}?{fixed}!{priority}!{excluded}"


def fits(runner: Runner, options: dict[str, Option]) -> bool:
    """Whether a runner has the launch options that a request fixed; an open one accepts any value, but of the
    context no less than the default."""
    if runner.less and runner.less not in options:
        return False
    for name, value in options.items():
        mine = runner.options.get(name)
        if mine == value:
            continue
        if name != runner.larger or not isinstance(mine, int) or not isinstance(value, int) or mine < value:
            return False
    return True


def less_than_default(view: ModelView, options: dict[str, Option]) -> str:
    """The launch option of which these options have less than is promised to who leaves it open; "": they
    have not. 0 and less is a server's word for all that the model can do."""
    mine, default = options.get(view.at_least), view.options.get(view.at_least)
    if not isinstance(mine, int) or not isinstance(default, int) or mine <= 0:
        return ""
    return view.at_least if default <= 0 or mine < default else ""


def satisfies(runner: Runner, demand: Demand) -> bool:
    """Whether a runner can serve a demand."""
    if runner.model != demand.model or runner.id == demand.excluded:
        return False
    return fits(runner, demand.options)


def instances(state: State, model: str, digest: str, options: dict[str, Option]) -> dict[str, Runner]:
    """The runners of a launch spec, oldest first, those that are leaving among them."""
    mine = state.models.get(model, _NO_RUNNERS)
    return {id: r for id, r in mine.items() if r.digest == digest and r.options == options}


_NO_RUNNERS: dict[str, Runner] = {}


def waiting_for(state: State, model: str) -> Iterable[Demand]:
    """The demands for a model, oldest first."""
    return state.wanted.get(model, _NOBODY).values()


_NOBODY: OrderedDict[str, Demand] = OrderedDict()


def dismissal_key(model: str, demand: str = "") -> str:
    """What names a dismissal: of one demand, or of a whole model."""
    return f"{model}\n{demand}" if demand else model


def being_dismissed(state: State, demand: Demand) -> bool:
    """Whether those who wait in a demand are about to get an error."""
    if not state.dismissing:
        return False
    whole = state.dismissing.get(demand.model)
    if whole is not None and not (whole.runner and demand.servers):
        return True
    return dismissal_key(demand.model, demand.key) in state.dismissing


def dismissed(state: State, d: ModelDismissed) -> Demand | None:
    """The first demand that a dismissal still concerns."""
    if d.demand:
        return state.demands.get(d.demand)
    if d.runner:
        return next((demand for demand in waiting_for(state, d.model) if not demand.servers), None)
    return next(iter(waiting_for(state, d.model)), None)


def spec_key(digest: str, options: dict[str, Option]) -> str:
    """What identifies a launch spec's footprint: its digest and all of its launch options."""
    return digest + "?" + ",".join(f"{name}={options[name]!r}" for name in sorted(options))


INDEXES = (
    "deadlines", "group_of", "leased", "leaving", "loading", "models", "resting", "scaled", "starving",
    "wanted",
)  # fmt: skip
"""What `canonical` writes in its own way, or is a second view of what it writes."""


def canonical(state: State) -> bytes:
    """The state as canonical JSON: equal states, equal bytes."""
    plain = {name: getattr(state, name) for name in FIELDS if name not in INDEXES}
    plain["models"] = {model: list(runners) for model, runners in state.models.items()}
    plain["wanted"] = {model: list(demands) for model, demands in state.wanted.items()}
    plain["deadlines"] = [(due, kind, id) for due, (kind, id) in state.deadlines]
    plain["footprints"] = list(state.footprints.items())  # their order says which is forgotten
    plain["starving"] = [(*key, list(ages)) for key, ages in state.starving.items()]
    return msgspec.json.encode(
        msgspec.to_builtins(plain, str_keys=True, enc_hook=as_dict), order="deterministic"
    )
