"""What a snapshot holds: the whole state, in a form that is frozen (tests/golden/carried.json)."""

from __future__ import annotations

import json
import os
from collections import OrderedDict
from pathlib import Path
from typing import Any, get_origin

import msgspec
import pytest

from events import catalogue as c
from events.limits import CARRIED_PART_CHARS
from statemachines import carried
from statemachines.carried import LAYOUT, Carried, Unreadable, carry, pieces, restore, text_of
from statemachines.fold import apply
from statemachines.scheduler import Scheduler
from statemachines.state import FIELDS, State, canonical
from statemachines.tables import Line

GOLDEN = Path(__file__).parent.parent / "golden" / "carried.json"


@pytest.mark.interpreted
def test_every_field_of_the_state_is_carried_or_follows_from_what_is() -> None:
    fields = set(FIELDS)
    assert fields - set(Carried.__struct_fields__) == set(carried.DERIVED), "a field of State is not carried"
    assert set(Carried.__struct_fields__) <= fields
    assert set(vars(Scheduler)["__slots__"]) - {"state"} == {"cause", "events", "left", "more"}, (
        "what a Scheduler keeps between two steps must be in its State"
    )


def schema() -> dict[str, Any]:
    """The form of the text: every field of everything in it, with its type and default."""

    def of_custom(kind: type) -> dict[str, Any]:
        assert (get_origin(kind) or kind) in (OrderedDict, Line)
        return {"type": "object", "additionalProperties": {"type": "null"}}

    form: dict[str, Any] = without_words(msgspec.json.schema(Carried, schema_hook=of_custom))
    return form


def without_words(node: Any) -> Any:
    """A schema without its descriptions."""
    if isinstance(node, dict):
        return {
            key: without_words(value)
            for key, value in node.items()
            if key != "description" or not isinstance(value, str)
        }
    return [without_words(each) for each in node] if isinstance(node, list) else node


def test_the_form_is_frozen() -> None:
    """Whoever changes it raises LAYOUT and brings an upcast, unless no release has written it yet; then
    RUNNERD_REWRITE=1 renews the file, to be reviewed as a diff."""
    found = {"layout": LAYOUT, "schema": schema()}
    if os.environ.get("RUNNERD_REWRITE"):
        GOLDEN.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n", "utf-8")
    assert json.loads(json.dumps(found)) == json.loads(GOLDEN.read_text("utf-8"))


def large(requests: int) -> State:
    """A state with so many queued."""
    state = Scheduler()
    state.step(c.DaemonStarted(1, "balanced", "boot", "0"), 1)
    state.step(c.ConfigChanged(c.ConfigView({"m": c.ModelView("d")}, max_queue=requests)), 2)
    for i in range(requests):
        state.step(c.RequestArrived("m", "chat", caller=f"127.0.0.{i % 250}"), 3 + i)
    return state.state


def test_a_large_state_comes_in_parts_and_back() -> None:
    state = large(10_000)
    assert state.queued == 10_000
    text = carry(state)
    parts = list(pieces(text, state.seq, b"\1" * 32))
    assert len(parts) > 3
    assert all(len(part.data) <= CARRIED_PART_CHARS for part in parts)
    assert [(part.part, part.parts) for part in parts] == [(i + 1, len(parts)) for i in range(len(parts))]
    assert text_of(parts) == text
    assert canonical(restore(text)) == canonical(state)


def test_what_is_no_snapshot_is_refused() -> None:
    (piece,) = pieces(carry(State()), 7, b"\1" * 32)

    def data(text: str) -> c.StateCarried:
        return c.StateCarried(7, piece.hash, LAYOUT, 1, 1, text)

    (other,) = pieces('{"seq":1}', 7, b"\1" * 32)
    (not_json,) = pieces("[", 7, b"\1" * 32)
    (late,) = pieces(
        carry(State()).replace('"starving":[]', f'"starving":[[0,[],{{"m":{1 << 63}}}]]'), 7, b"\1" * 32
    )
    (deep,) = pieces("[" * 100_000, 7, b"\1" * 32)
    for bad in (data(""), data("====="), data(piece.data[:-8]), data("AAAA"), other, not_json, deep, late):
        with pytest.raises(Unreadable):
            restore(text_of([bad]))
    with pytest.raises(Unreadable, match=f"layout 77 is not known here .{LAYOUT} is"):
        restore(carry(State()), 77)
    assert canonical(restore(text_of([piece]))) == canonical(State())


def test_a_text_that_never_ends_is_not_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(carried, "CARRIED_TEXT_BYTES", 1000)
    with pytest.raises(Unreadable, match="does not end"):
        text_of(list(pieces("x" * 100_000, 7, b"\1" * 32)))


def test_an_older_form_is_lifted(monkeypatch: pytest.MonkeyPatch) -> None:
    def without_counts(fields: dict[str, Any]) -> dict[str, Any]:
        lifted = fields.pop("lifted")
        return {**fields, "counts": {"lifted": lifted}}

    fields = msgspec.json.decode(carry(State()), type=dict[str, Any])
    del fields["counts"]
    monkeypatch.setitem(carried.UPCASTS, LAYOUT - 1, without_counts)
    state = restore(msgspec.json.encode({**fields, "lifted": 5}).decode(), LAYOUT - 1)
    assert state.counts == {"lifted": 5}


def test_a_snapshot_changes_nothing() -> None:
    state = large(3)
    before = msgspec.json.decode(canonical(state), type=dict[str, Any])
    (piece,) = pieces(carry(state), state.seq, b"\1" * 32)
    apply(state, c.Event(state.seq + 1, state.t, 0, "state", piece))
    after = msgspec.json.decode(canonical(state), type=dict[str, Any])
    assert {**after, "seq": before["seq"]} == before
