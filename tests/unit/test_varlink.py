"""The wire of the control socket: messages whole and in pieces, calls good and bad, parameters checked."""

from __future__ import annotations

import json
import random
import time
from typing import Any

import pytest

from daemon.control.methods import LoadParameters, Nothing, StopParameters, UnloadParameters, WatchParameters
from daemon.control.varlink import (
    Call,
    NotVarlink,
    Parameters,
    Splitter,
    VarlinkError,
    error_reply,
    parameters_as,
    parse,
    reply,
)
from daemon.limits import CONTROL_MESSAGE_BYTES

INVALID = "org.varlink.service.InvalidParameter"


def refused(message: bytes) -> Any:
    """The parameter that a message is refused for."""
    with pytest.raises(VarlinkError) as caught:
        parse(message)
    assert caught.value.name == INVALID
    return caught.value.parameters["parameter"]


# --- messages --------------------------------------------------------------------------------------------


def test_messages_are_the_same_however_they_are_cut() -> None:
    messages = [b'{"method":"a.b"}', b"", "ü".encode(), b"x" * 1000]
    stream = b"".join(message + b"\0" for message in messages)
    chance = random.Random(1)
    for size in (1, 2, 7, len(stream)):
        splitter = Splitter()
        assert [
            m for i in range(0, len(stream), size) for m in splitter.feed(stream[i : i + size])
        ] == messages
    for _ in range(100):
        splitter, rest, found = Splitter(), stream, list[bytes]()
        while rest:
            cut = chance.randint(1, len(rest))
            found += splitter.feed(rest[:cut])
            rest = rest[cut:]
        assert found == messages


def test_a_message_of_exactly_the_limit_passes_and_one_more_byte_does_not() -> None:
    splitter = Splitter()
    assert [len(m) for m in splitter.feed(b"x" * CONTROL_MESSAGE_BYTES + b"\0")] == [CONTROL_MESSAGE_BYTES]
    with pytest.raises(NotVarlink, match="more than"):
        list(splitter.feed(b"x" * (CONTROL_MESSAGE_BYTES + 1)))


def test_what_came_before_a_message_that_is_too_long_is_not_lost() -> None:
    found = []
    with pytest.raises(NotVarlink):
        for message in Splitter().feed(b"one\0two\0" + b"x" * (CONTROL_MESSAGE_BYTES + 1)):
            found.append(message)
    assert found == [b"one", b"two"]


def test_a_message_in_single_bytes_is_not_looked_at_again_and_again() -> None:
    """Quadratic, this would be minutes, all of them the daemon's."""
    splitter, byte = Splitter(), b"x"
    began = time.process_time()
    for _ in range(CONTROL_MESSAGE_BYTES):
        assert list(splitter.feed(byte)) == []
    assert time.process_time() - began < 20


# --- calls -----------------------------------------------------------------------------------------------


def test_a_call_is_read_with_its_flags() -> None:
    assert parse(b'{"method":"a.B"}') == Call("a.B")
    message = b'{"method":"a.B","parameters":{"x":[1,null]},"more":true,"oneway":true,"upgrade":true}'
    assert parse(message) == Call("a.B", {"x": [1, None]}, True, True, True)
    assert parse(b'{"method":"a.B","parameters":null}').parameters is None


@pytest.mark.parametrize(
    "message",
    [b"", b"nonsense", b"{", b'{"method":"a.B"', b'{"method":"a.B"}}', b"\xff\xfe", b'{"method":"\xff"}',
     b'{"method":"\\ud800"}', b"{'method':'a.B'}", b'{"method":"a.B","parameters":{"x":NaN}}'],
)  # fmt: skip
def test_what_is_not_json_ends_the_connection(message: bytes) -> None:
    with pytest.raises(NotVarlink):
        parse(message)


@pytest.mark.parametrize("message", [b"[]", b"3", b"null", b'"text"', b"true", b"1e5"])
def test_json_that_is_no_object_is_refused(message: bytes) -> None:
    assert refused(message) == "message"


@pytest.mark.parametrize(
    ("message", "parameter"),
    [
        (b"{}", "method"),
        (b'{"method":3}', "method"),
        (b'{"method":null}', "method"),
        (b'{"method":"a.B","parameters":[]}', "parameters"),
        (b'{"method":"a.B","parameters":"x"}', "parameters"),
        (b'{"method":"a.B","more":1}', "more"),
        (b'{"method":"a.B","oneway":"yes"}', "oneway"),
        (b'{"method":"a.B","upgrade":null}', "upgrade"),
        (b'{"method":"a.B","params":{}}', "params"),
        (b'{"method":"a.B","a `b` c":{}}', "a `b` c"),
    ],
)
def test_a_call_with_a_bad_part_is_refused_by_its_name(message: bytes, parameter: str) -> None:
    assert refused(message) == parameter


@pytest.mark.parametrize("depth", [1_000, 100_000, 400_000])
@pytest.mark.parametrize("shape", [(b"[", b"]"), (b'{"a":', b"}")])
def test_deep_nesting_is_refused(depth: int, shape: tuple[bytes, bytes]) -> None:
    opening, closing = shape
    value = opening * depth + b"1" + closing * depth
    with pytest.raises((NotVarlink, VarlinkError)):
        parse(value)
    with pytest.raises((NotVarlink, VarlinkError)):  # a newer Python may take it, but no method does
        parameters_as(Nothing, parse(b'{"method":"a.B","parameters":{"x":' + value + b"}}").parameters)


# --- parameters ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "given", "parameter"),
    [
        (Nothing, {"x": 1}, "x"),
        (LoadParameters, {}, "model"),
        (LoadParameters, {"model": None}, "model"),
        (LoadParameters, {"model": 3}, "model"),
        (LoadParameters, {"model": "m", "option": {}}, "option"),
        (LoadParameters, {"model": "m", "options": []}, "options"),
        (LoadParameters, {"model": "m", "options": {"num_ctx": 4096}}, "options"),
        (UnloadParameters, {"now": 1}, "now"),
        (UnloadParameters, {"cancel": "yes"}, "cancel"),
        (StopParameters, {"how": "gently"}, "how"),
        (WatchParameters, {"after": "1"}, "after"),
        (WatchParameters, {"after": 1.5}, "after"),
        (WatchParameters, {"after": True}, "after"),
        (WatchParameters, {"after": -1}, "after"),
        (WatchParameters, {"after": 2**63}, "after"),
        (WatchParameters, {"after": 10**40}, "after"),
    ],
)
def test_bad_parameters_are_named(kind: type[Parameters], given: dict[str, Any], parameter: str) -> None:
    with pytest.raises(VarlinkError) as caught:
        parameters_as(kind, given)
    assert (caught.value.name, caught.value.parameters) == (INVALID, {"parameter": parameter})


def test_parameters_that_are_left_out_or_null_have_their_defaults() -> None:
    assert parameters_as(UnloadParameters, None) == UnloadParameters()
    assert parameters_as(UnloadParameters, {"model": None, "now": True}) == UnloadParameters(now=True)
    assert parameters_as(WatchParameters, {"after": 2**63 - 1}) == WatchParameters(2**63 - 1)


# --- replies ---------------------------------------------------------------------------------------------


def test_replies_end_with_nul_and_continue_only_where_they_do() -> None:
    assert reply({"a": 1}) == b'{"parameters":{"a":1}}\0'
    assert json.loads(reply({}, continues=True)[:-1]) == {"parameters": {}, "continues": True}
    error = VarlinkError("a.b.C", why="text\0")
    assert error_reply(error) == b'{"error":"a.b.C","parameters":{"why":"text\\u0000"}}\0'
