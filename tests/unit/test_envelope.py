"""The envelope: rows, the hash chain to the byte, and payloads that cannot be read."""

from __future__ import annotations

import hashlib
import struct
from typing import Any

import pytest

from events import upcast
from events.catalogue import Event, RequestArrived, RequestDispatched, RequestQueued
from events.envelope import EventUnreadable, Record, chain_hash, decode, encode, first_hash

ARRIVED = Event(5, 70, 0, "q5", RequestArrived(model="größer", kind="chat", options={"num_ctx": 8192}))


def record_of(payload: str, *, type: str = "request.queued", version: int = 1) -> Record:
    return Record(9, 1, 2, type, version, 5, "q5", payload, bytes(32))


def test_a_row_decodes_to_the_event_it_was_made_from() -> None:
    record = Record(*encode(ARRIVED, 1_000, first_hash("log")))
    assert (record.seq, record.at, record.t, record.type, record.version) == (
        5,
        1_000,
        70,
        "request.arrived",
        1,
    )
    assert (record.cause, record.subject) == (0, "q5")
    assert decode(record) == ARRIVED


def test_the_hash_is_the_documented_one_byte_by_byte() -> None:
    row = encode(ARRIVED, -3, first_hash("log"))
    payload = '{"type":"request.arrived","model":"größer","kind":"chat","options":{"num_ctx":8192}}'
    assert row[7] == payload
    data = hashlib.sha256(b"log").digest()
    data += (5).to_bytes(8, "big") + (-3).to_bytes(8, "big", signed=True) + (70).to_bytes(8, "big")
    data += (1).to_bytes(4, "big") + (0).to_bytes(8, "big")
    for text in ("request.arrived", "q5", payload):
        data += len(text.encode()).to_bytes(4, "big") + text.encode()
    assert row[8] == hashlib.sha256(data).digest()


@pytest.mark.parametrize("length", [0, 1, 1022, 1023, 1024, 1025, 70_000])
def test_both_implementations_of_the_hash_agree(length: int) -> None:
    event = Event(2**40, 2**62, 7, "s" * length, RequestQueued(request="q5", reason="é" * length))
    seq, at, t, type, version, cause, subject, payload, hash = encode(event, 2**60, b"p" * 32)
    expected = chain_hash(
        b"p" * 32, seq, at, t, type.encode(), version, cause, subject.encode(), payload.encode()
    )
    assert hash == expected


def test_every_field_and_the_previous_hash_count() -> None:
    fields: tuple[Any, ...] = (b"p" * 32, 1, 2, 3, b"type", 1, 0, b"subject", b"payload")
    changed = [
        (b"q" * 32, *fields[1:]),
        *(
            (*fields[:i], field + 1, *fields[i + 1 :])
            for i, field in enumerate(fields)
            if isinstance(field, int)
        ),
        *((*fields[:i], b"x", *fields[i + 1 :]) for i in (4, 7, 8)),
        (*fields[:7], b"subjectp", b"ayload"),
    ]
    hashes = {chain_hash(*case) for case in [fields, *changed]}
    assert len(hashes) == len(changed) + 1


def test_what_cannot_be_stored_is_refused() -> None:
    with pytest.raises(UnicodeEncodeError):
        encode(Event(1, 0, 0, "\ud800", RequestQueued(request="q1", reason="")), 0, b"")
    with pytest.raises(struct.error):
        encode(Event(2**64, 0, 0, "", RequestQueued(request="q1", reason="")), 0, b"")


@pytest.mark.parametrize(
    ("record", "what"),
    [
        (record_of("{"), "truncated"),
        (record_of(""), "truncated"),
        (record_of("[" * 100_000), "Expected `object`"),
        (
            record_of('{"type":"request.queued","request":"q5","reason":"x","more":' + "[" * 100_000),
            "unknown field",
        ),
        (record_of('{"type":"request.queued","request":5,"reason":"x"}'), "Expected `str`"),
        (record_of('{"type":"request.queued","request":"q5"}'), "missing required field `reason`"),
        (record_of('{"type":"request.queued","request":"q5","reason":"x","more":1}'), "unknown field `more`"),
        (record_of('{"type":"request.failed","request":"q5","reason":"x"}'), "Invalid value"),
        (record_of('{"request":"q5","reason":"\udcff"}'), "surrogates"),
        (record_of("{}", type="request.forged"), "unknown type 'request.forged'"),
        (record_of("{}", version=2), "version 2 of request.queued is not known here (1 is)"),
        (record_of("{}", version=0), "version 0"),
        (record_of('{"a":' * 100_000, version=2), "nested too deep"),
    ],
)
def test_every_hostile_payload_is_one_error_that_names_the_event(record: Record, what: str) -> None:
    with pytest.raises(EventUnreadable) as caught:
        decode(record)
    assert caught.value.seq == 9
    assert str(caught.value).startswith("event 9: ")
    assert what in str(caught.value)


def test_an_old_version_is_lifted_step_by_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RequestDispatched, "VERSION", 3)
    monkeypatch.delitem(upcast._DECODERS, ("request.dispatched", 1))
    monkeypatch.setitem(upcast.UPCASTS, ("request.dispatched", 1), lambda f: {"runner": f.pop("node"), **f})
    monkeypatch.setitem(upcast.UPCASTS, ("request.dispatched", 2), lambda f: {**f, "attempt": 2})
    old = record_of('{"type":"request.dispatched","request":"q5","node":"r1"}', type="request.dispatched")
    assert decode(old).body == RequestDispatched(request="q5", runner="r1", attempt=2)
