"""A state as a text and back: what snapshots (`state.carried`) carry.

`carry` and `restore` keep everything that a decision may depend on, the order within each dict too: whoever
goes on from a restored state comes to what he would have come to. What merely indexes the rest is made anew.

For the log the text is compressed and cut into pieces. `LAYOUT` is the number of its form: whatever changes
that (a test knows) raises it, and brings an upcast from the form before, so that old snapshots stay readable.
"""

from __future__ import annotations

import binascii
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import Any, get_origin

import msgspec

from events.catalogue import ConfigView, ModelDismissed, Option, Reading, StateCarried
from events.limits import CARRIED_PART_CHARS, CARRIED_TEXT_BYTES
from statemachines.groups import members_of
from statemachines.parts import Claim, Cooling, Demand, Operation, Request, Runner
from statemachines.runner import RunnerState
from statemachines.state import State
from statemachines.tables import Ages, Line, as_dict

LAYOUT = 1
"""The form of the text."""

UPCASTS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}
"""A layout to what makes the next one of its fields."""


class Unreadable(Exception):
    """A snapshot that this program cannot read: a newer one's, or no runnerd's."""


class Carried(msgspec.Struct, forbid_unknown_fields=True):
    """What a snapshot holds: the fields of State, in their order; indexes as the ids in theirs."""

    seq: int
    t: int
    rules: int
    queued: int
    next_port: int
    node: str
    boot_id: str
    policy: str
    profile: str
    stopping: str
    config: ConfigView
    pinned: dict[str, None]
    preloads: dict[str, None]
    runners: dict[str, Runner]
    models: dict[str, list[str]]
    loading: list[str]
    leased: dict[int, str]
    alone: dict[str, None]
    held: dict[str, int]
    coming: dict[str, int]
    requests: dict[str, Request]
    demands: dict[str, Demand]
    wanted: dict[str, list[str]]
    starving: list[tuple[int, tuple[str, ...], dict[str, int]]]
    dismissing: dict[str, ModelDismissed]
    operations: dict[str, Operation]
    claims: dict[str, Claim]
    cooling: dict[str, Cooling]
    crowded: dict[str, None]
    quarantine: dict[str, int]
    footprints: dict[str, dict[str, int]]
    load_cost_ns: dict[str, int]
    idle: dict[str, tuple[int, dict[str, Option]]]
    think_ns: dict[str, int]
    drain_cost_ns: dict[str, int]
    readings: dict[str, Reading]
    measured_t: int
    measure_t: int
    gone_t: int
    measuring: bool
    only_loads: bool
    refused_ports: dict[int, None]
    deadlines: list[tuple[str, str, int]]
    counts: dict[str, int]


DERIVED = ("group_of", "leaving", "resting", "scaled")
"""Fields of State that follow from its configuration, or its runners."""

INDEXES = ("models", "loading", "wanted", "starving", "deadlines", "requests")
"""Those that are carried as something else than what they are."""

PLAIN = tuple(name for name in Carried.__struct_fields__ if name not in INDEXES)


def carry(state: State) -> str:
    """The state as JSON: equal states, equal texts."""
    carried = Carried(
        **{name: getattr(state, name) for name in PLAIN},
        models={model: list(runners) for model, runners in state.models.items()},
        loading=list(state.loading),
        requests=as_dict(state.requests),
        wanted={model: list(demands) for model, demands in state.wanted.items()},
        starving=[(*place, {key: age for age, key in ages}) for place, ages in state.starving.items()],
        deadlines=[(kind, id, due) for due, (kind, id) in state.deadlines],
    )
    return msgspec.json.encode(carried, enc_hook=as_dict).decode()


def _ordered(kind: type, value: Any) -> Any:
    """msgspec knows no OrderedDict, nor ours."""
    if kind is Line:
        return Line(value)
    if get_origin(kind) is OrderedDict:
        return OrderedDict(value)
    raise NotImplementedError


_DECODER = msgspec.json.Decoder(Carried, dec_hook=_ordered)


def restore(text: str, layout: int = LAYOUT) -> State:
    """The state that `carry` made a text of. Raises Unreadable."""
    try:
        carried = _DECODER.decode(text if layout == LAYOUT else _lifted(text, layout))
        return _state_of(carried)
    except RecursionError:
        raise Unreadable("nested too deep") from None
    except (msgspec.MsgspecError, LookupError, ValueError, OverflowError) as error:
        raise Unreadable(str(error)) from error


def _lifted(text: str, layout: int) -> bytes:
    fields = msgspec.json.decode(text, type=dict[str, Any])
    while layout != LAYOUT:
        upcast = UPCASTS.get(layout)
        if upcast is None:
            raise Unreadable(f"its layout {layout} is not known here ({LAYOUT} is)")
        fields = upcast(fields)
        layout += 1
    return msgspec.json.encode(fields)


def _state_of(carried: Carried) -> State:
    state = State()
    for name in PLAIN:
        setattr(state, name, getattr(carried, name))
    state.group_of = members_of(state.config)
    state.scaled = {name: None for name, view in state.config.models.items() if view.instances_max > 1}
    for id, request in carried.requests.items():
        state.requests[id] = request
    runners, demands = state.runners, state.demands
    state.models = {model: {id: runners[id] for id in ids} for model, ids in carried.models.items()}
    state.loading = {id: runners[id] for id in carried.loading}
    state.resting = {id: r for id, r in runners.items() if r.state is RunnerState.ready and not r.held}
    state.leaving = {id: r for id, r in runners.items() if not r.live}
    state.wanted = {
        model: OrderedDict((key, demands[key]) for key in keys) for model, keys in carried.wanted.items()
    }
    for priority, where, given in carried.starving:
        ages = state.starving[priority, where] = Ages()
        for key, age in given.items():
            ages.put(key, age)
    for kind, id, at in carried.deadlines:
        state.deadlines.arm((kind, id), at)
    return state


def pieces(text: str, upto: int, hash: bytes) -> Iterator[StateCarried]:
    """The facts that carry the state after event `upto`, whose hash is `hash`."""
    data = binascii.b2a_base64(zlib.compress(text.encode()), newline=False).decode()
    starts = range(0, len(data), CARRIED_PART_CHARS)
    for part, start in enumerate(starts, 1):
        piece = data[start : start + CARRIED_PART_CHARS]
        yield StateCarried(upto, hash.hex(), LAYOUT, part, len(starts), piece)


def text_of(pieces: Sequence[StateCarried]) -> str:
    """The text that all pieces of a snapshot make. Raises Unreadable."""
    inflater = zlib.decompressobj()
    try:
        data = binascii.a2b_base64("".join(piece.data for piece in pieces), strict_mode=True)
        text = inflater.decompress(data, CARRIED_TEXT_BYTES)
        if not inflater.eof:
            raise Unreadable("its text does not end")
        return text.decode()
    except (ValueError, zlib.error) as error:  # binascii's and the decoder's errors are ValueErrors
        raise Unreadable(str(error)) from error


__all__ = ["LAYOUT", "Carried", "Unreadable", "carry", "pieces", "restore", "text_of"]
