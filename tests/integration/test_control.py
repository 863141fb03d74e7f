"""The control socket of a whole daemon: the stock client, every kind of bad input, watchers, credentials."""

from __future__ import annotations

import itertools
import json
import os
import random
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import pytest
import varlink

from daemon.control.methods import INTERFACE
from daemon.limits import CONTROL_MESSAGE_BYTES
from events.catalogue import CancelRequested, LoadRequested, UnloadRequested
from tests.integration.live import PATIENCE_S, Live, daemon, gone, ngram
from tests.unit.test_interface import DECLARED, check

SERVICE = "org.varlink.service"
CONFIG = f"""
devices: {{host: {{budget: 300MiB}}}}
memoryHeadroom: 0
models:
  red:
    cmd: "{ngram("--slots 2 --load-seconds 0.6 --ctx ${num_ctx}")}"
    memory: 200MiB
    slots: 2
    aliases: [rouge]
    options: {{num_ctx: 4096}}
  blue: {{cmd: "{ngram("--slots 2")}", memory: 50MiB, slots: 2}}
  slow: {{cmd: "{ngram("--tokens-per-second 20")}", memory: 50MiB}}
  bad: {{cmd: "{ngram("--fail-load", "no-luck-today")}", memory: 1MiB}}
"""


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """One daemon for all that it must survive; at the end its log must verify."""
    with daemon(tmp_path_factory.mktemp("control"), CONFIG) as live:
        yield live


class Raw:
    """A connection on which anything can be said."""

    def __init__(self, live: Live) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(str(live.socket))  # waits while others are before it in the backlog
        self.socket.settimeout(PATIENCE_S)
        self._buffer = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        """Bytes, as far as the daemon takes them."""
        with suppress(BrokenPipeError, ConnectionResetError):
            self.socket.sendall(data)

    def call(self, method: str, parameters: object = None, **flags: bool) -> None:
        """A well-formed call of ours."""
        self.send(call(method, parameters, **flags))

    def reply(self) -> Any:
        """The next message; None at the end of the connection."""
        while b"\0" not in self._buffer:
            try:
                data = self.socket.recv(1 << 16)
            except ConnectionResetError:
                data = b""
            if not data:
                assert self._buffer == b"", "the connection ended within a message"
                return None
            self._buffer += data
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)

    def rest(self) -> bytes:
        """Everything up to the end of the connection."""
        parts = []
        with suppress(ConnectionResetError):
            while part := self.socket.recv(1 << 16):
                parts.append(part)
        return b"".join(parts)


def call(method: str, parameters: object = None, **flags: bool) -> bytes:
    message = {"method": method if "." in method else f"{INTERFACE}.{method}", **flags}
    if parameters is not None:
        message["parameters"] = parameters
    return json.dumps(message).encode() + b"\0"


def serves(live: Live) -> None:
    """The daemon answers a new client."""
    with Raw(live) as raw:
        raw.call("Status")
        assert raw.reply()["parameters"]["pid"] == live.process.pid


def error(name: str, **parameters: object) -> dict[str, object]:
    return {"error": name if "." in name else f"{INTERFACE}.{name}", "parameters": parameters}


def invalid(parameter: str) -> dict[str, object]:
    return error(f"{SERVICE}.InvalidParameter", parameter=parameter)


# --- the stock client ------------------------------------------------------------------------------------


def stock(live: Live, *arguments: str) -> subprocess.CompletedProcess[str]:
    """python-varlink's own command line."""
    command = [sys.executable, "-m", "varlink.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)


def test_the_stock_command_line(live: Live) -> None:
    address = f"unix:{live.socket}"
    info = stock(live, "info", address).stdout
    assert "Product: runnerd" in info
    assert INTERFACE in info
    assert "method Watch(after: ?int)" in stock(live, "help", f"{address}/{INTERFACE}").stdout
    status = json.loads(stock(live, "call", f"{address}/{INTERFACE}.Status").stdout)
    assert status["pid"] == live.process.pid
    refused = stock(live, "call", f"{address}/{INTERFACE}.Load", '{"model": "rad"}').stderr
    assert "io.runnerd.Control.ModelNotFound" in refused
    assert "'nearest': ['red'" in refused
    assert "ExpectedMore" in stock(live, "call", f"{address}/{INTERFACE}.Watch").stderr


def test_the_stock_library_calls_streams_and_gets_typed_errors(live: Live) -> None:
    with varlink.Client(f"unix:{live.socket}") as client, client.open(INTERFACE) as control:
        assert [model["id"] for model in control.ListModels()["models"]] == ["red", "blue", "slow", "bad"]
        control.Unload(model="red")
        progress = list(control.Load(model="rouge", options={"num_ctx": "2048"}, _more=True))
        assert [reply["done"] for reply in progress[:-1]] == [False] * (len(progress) - 1)
        assert len(progress) > 1
        assert (progress[-1]["done"], progress[-1]["state"]) == (True, "ready")
        (runner,) = [r for r in control.ListRunners()["runners"] if r["model"] == "red"]
        assert runner["id"] == progress[-1]["runner"]
        assert runner["options"] == {"num_ctx": "2048"}
        with pytest.raises(varlink.VarlinkError) as caught:
            control.Cancel(request="q1")
        assert caught.value.error() == "io.runnerd.Control.RequestNotFound"
        assert dict(caught.value.parameters()) == {"request": "q1"}
        with pytest.raises(varlink.InvalidParameter):
            control.Stop(how="gently")
        head = control.Status()["seq"]
        events = control.Watch(after=0, _more=True)
        seen = [reply["event"]["seq"] for reply in itertools.islice(events, head)]
        assert seen == list(range(1, head + 1))


# --- calls and their replies -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["Status", "ListModels", "ListRunners", "ListRequests", "ListDevices", "Load"]
)
def test_replies_have_the_declared_fields(live: Live, name: str) -> None:
    with live.stream("slow"), Raw(live) as raw:
        raw.call("Load", {"model": "blue"})
        assert raw.reply()["parameters"]["done"]
        raw.call(name, {"model": "blue"} if name == "Load" else None)
        reply = raw.reply()["parameters"]
        assert list(reply) == list(DECLARED[name][1])
        for field, type in DECLARED[name][1].items():
            check(reply[field], type, f"{name}.{field}")


def test_devices_and_runners_say_what_memory_there_is(live: Live) -> None:
    with Raw(live) as raw:
        raw.call("Unload")
        raw.reply()
        raw.call("Load", {"model": "blue"})
        raw.reply()
        raw.call("ListDevices")
        (host,) = raw.reply()["parameters"]["devices"]
    assert host["budget_bytes"] == 300 << 20
    assert host["held_bytes"] == 50 << 20
    assert host["free_bytes"] == 250 << 20
    assert host["total_bytes"] > host["reported_free_bytes"] > 0


ERRORS: list[tuple[bytes, dict[str, object]]] = [
    (call("Nope"), error(f"{SERVICE}.MethodNotFound", method=f"{INTERFACE}.Nope")),
    (call(f"{SERVICE}.Nope"), error(f"{SERVICE}.MethodNotFound", method=f"{SERVICE}.Nope")),
    (call("io.other.Status"), error(f"{SERVICE}.InterfaceNotFound", interface="io.other")),
    (b'{"method":"Status"}\0', invalid("method")),
    (b'{"method":""}\0', invalid("method")),
    (call(f"{SERVICE}.GetInterfaceDescription"), invalid("interface")),
    (call(f"{SERVICE}.GetInterfaceDescription", {"interface": 3}), invalid("interface")),
    (call(f"{SERVICE}.GetInterfaceDescription", {"interface": "io.other"}),
     error(f"{SERVICE}.InterfaceNotFound", interface="io.other")),
    (call(f"{SERVICE}.GetInfo", {"x": 1}), invalid("x")),
    (call("Status", upgrade=True), error(f"{SERVICE}.MethodNotImplemented", method=f"{INTERFACE}.Status")),
    (call("Watch"), error(f"{SERVICE}.ExpectedMore")),
    (call("Watch", {"after": -1}, more=True), invalid("after")),
    (call("Watch", {"after": 10**30}, more=True), invalid("after")),
    (call("Watch", {"after": 1.5}, more=True), invalid("after")),
    (call("Load"), invalid("model")),
    (call("Load", {"model": 3}), invalid("model")),
    (call("Load", {"model": "red", "option": {}}), invalid("option")),
    (call("Load", {"model": "red", "options": {"num_ctx": 3}}), invalid("options")),
    (call("Load", {"model": "red", "options": {"num_ctx": "many"}}), invalid("options.num_ctx")),
    (call("Load", {"model": "red", "options": {"num_ctx": "9" * 30}}), invalid("options.num_ctx")),
    (call("Load", {"model": "red", "options": {"seed": "3"}}), invalid("options.seed")),
    (call("Load", {"model": "rad"}), error("ModelNotFound", model="rad", nearest=["red", "bad"])),
    (call("Load", {"model": "ROUGE "}), error("ModelNotFound", model="ROUGE ", nearest=["rouge"])),
    (call("Load", {"model": "zzzzz"}), error("ModelNotFound", model="zzzzz", nearest=[])),
    (call("Unload", {"model": "zzzzz"}), error("ModelNotFound", model="zzzzz", nearest=[])),
    (call("Unload", {"runner": "r999999"}), error("RunnerNotFound", runner="r999999")),
    (call("Unload", {"model": "red", "runner": "r1"}), invalid("runner")),
    (call("Unload", {"now": "yes"}), invalid("now")),
    (call("Cancel", {"request": "q999999"}), error("RequestNotFound", request="q999999")),
    (call("Cancel", {"request": "\0"}), error("RequestNotFound", request="\0")),
    (call("Cancel", {"request": ["q1"]}), invalid("request")),
    (call("Stop", {"how": "gently"}), invalid("how")),
    (b"[]\0", invalid("message")),
    (b"3\0", invalid("message")),
    (b"null\0", invalid("message")),
    (b"[" * 1_000 + b"]" * 1_000 + b"\0", invalid("message")),
    (b"[" * 100_000 + b"]" * 100_000 + b"\0", invalid("message")),
    (b"{}\0", invalid("method")),
    (b'{"method":{}}\0', invalid("method")),
    (b'{"method":"a.B","parameters":[]}\0', invalid("parameters")),
    (b'{"method":"a.B","more":3}\0', invalid("more")),
    (b'{"method":"a.B","extra":3}\0', invalid("extra")),
]  # fmt: skip


@pytest.mark.parametrize(("message", "expected"), ERRORS, ids=[repr(m[:60]) for m, _ in ERRORS])
def test_a_bad_call_gets_its_error_and_the_connection_serves_on(
    live: Live, message: bytes, expected: dict[str, object]
) -> None:
    with Raw(live) as raw:
        raw.send(message)
        assert raw.reply() == expected
        raw.call("Status")
        assert raw.reply()["parameters"]["pid"] == live.process.pid


def nested(depth: int, opening: str = "[", closing: str = "]") -> bytes:
    deep = opening * depth + "1" + closing * depth
    return f'{{"method":"{INTERFACE}.Status","parameters":{{"x":{deep}}}}}'.encode() + b"\0"


CLOSING = {
    "not JSON": b"GET / HTTP/1.1\r\n\r\n\0",
    "nothing": b"\0",
    "a NUL storm": b"\0" * 300_000,
    "not UTF-8": b'{"method":"\xff\xfe"}\0',
    "half a character": b'{"method":"\\ud800.B"}\0',
    "cut short": b'{"method":"a.B"\0',
    "two in one": b'{"method":"a.B"}{"method":"a.B"}\0',
    "nested 100,000 deep": nested(100_000),
    "objects nested 100,000 deep": nested(100_000, '{"a":', "}"),
    "too long": b'{"method":"' + b"x" * CONTROL_MESSAGE_BYTES + b'"}\0',
    "too long, without an end": b"x" * (3 * CONTROL_MESSAGE_BYTES),
}


@pytest.mark.parametrize("message", CLOSING.values(), ids=CLOSING.keys())
def test_what_is_no_call_ends_its_connection_and_no_other(live: Live, message: bytes) -> None:
    with Raw(live) as other, Raw(live) as raw:
        raw.call("Status")
        raw.send(message)
        assert raw.reply()["parameters"]["pid"] == live.process.pid, "what came before is answered"
        assert raw.reply() is None
        other.call("Status")
        assert other.reply()["parameters"]["pid"] == live.process.pid
    serves(live)


def test_what_only_some_interpreters_can_read_is_refused_by_all(live: Live) -> None:
    """Nested a thousand deep: an older Python's parser refuses it, a newer one's method does."""
    with Raw(live) as raw:
        raw.send(nested(1_000))
        assert raw.reply() in (None, error(f"{SERVICE}.InvalidParameter", parameter="x"))
    serves(live)


def test_a_long_call_within_the_limit_is_read(live: Live) -> None:
    with Raw(live) as raw:
        name = "x" * (CONTROL_MESSAGE_BYTES - 200)
        raw.call("Cancel", {"request": name})
        assert raw.reply() == error("RequestNotFound", request=name)
    assert live.log.stat().st_size < CONTROL_MESSAGE_BYTES, "what names nothing is not logged"


def test_a_call_may_be_split_at_every_byte(live: Live) -> None:
    message = call("Load", {"model": "räd"})
    with Raw(live) as raw:
        for cut in range(1, len(message)):
            raw.send(message[:cut])
            raw.send(message[cut:])
            assert raw.reply()["parameters"]["model"] == "räd"
        for byte in message:
            raw.send(bytes([byte]))
        assert raw.reply()["parameters"]["model"] == "räd"


def test_calls_in_one_write_are_answered_in_order(live: Live) -> None:
    with Raw(live) as raw:
        names = [f"q{n}" for n in range(900_000, 900_500)]
        raw.send(b"".join(call("Cancel", {"request": name}) for name in names))
        assert [raw.reply()["parameters"]["request"] for _ in names] == names


def test_one_way_calls_get_no_reply(live: Live) -> None:
    with Raw(live) as raw:
        raw.send(call("Status", oneway=True) * 2000 + call("Nope", oneway=True))
        raw.send(call("Watch", oneway=True, more=True))
        raw.call("Cancel", {"request": "q0"})
        assert raw.reply() == error("RequestNotFound", request="q0")


def test_a_call_without_its_end_is_never_answered_and_hurts_nobody(live: Live) -> None:
    with Raw(live) as raw:
        raw.send(call("Status")[:-1])
        serves(live)
        raw.socket.shutdown(socket.SHUT_WR)
        assert raw.reply() is None


def test_random_input_never_ends_the_daemon(live: Live) -> None:
    """Seeded: valid calls with bytes flipped, cut, doubled and swapped, and noise."""
    chance = random.Random(20)
    seeds = [m for m, _ in ERRORS if len(m) < 1000 and b"Stop" not in m] + [
        call("ListModels"), call("ListRunners"), call("Watch", {"after": 0}, more=True), b"\0", b"{", b'"'
    ]  # fmt: skip
    for _ in range(2000):
        data = bytearray(b"".join(chance.choices(seeds, k=chance.randint(1, 5))))
        for _ in range(chance.randint(0, 6)):
            at = chance.randrange(len(data))
            match chance.randrange(4):
                case 0:
                    data[at] = chance.randrange(256)
                case 1:
                    del data[at : at + chance.randint(1, 20)]
                    data = data or bytearray(b"\0")
                case 2:
                    data[at:at] = data[at : at + chance.randint(1, 40)]
                case 3:
                    data[at:at] = chance.randbytes(chance.randint(1, 30))
        with Raw(live) as raw:
            raw.send(bytes(data))
            if chance.random() < 0.5:
                raw.socket.shutdown(socket.SHUT_WR)
                *replies, cut = raw.rest().split(b"\0")
                for reply in map(json.loads, replies):
                    assert reply.keys() & {"parameters", "error"}
                assert cut == b"" or b"io.runnerd.Control.Watch" in data
    serves(live)


# --- what operators do -----------------------------------------------------------------------------------


def test_who_asked_is_in_the_log(live: Live) -> None:
    with live.stream("slow", tokens=100_000), Raw(live) as raw:
        raw.call("ListRequests")
        (request,) = [r for r in raw.reply()["parameters"]["requests"] if r["model"] == "slow"]
        for method, parameters in (
            ("Load", {"model": "blue"}),
            ("Unload", {"model": "blue"}),
            ("Cancel", {"request": request["id"]}),
        ):
            raw.call(method, parameters)
            assert "error" not in raw.reply()
    asked = [
        e.body for e in live.events() if isinstance(e.body, LoadRequested | UnloadRequested | CancelRequested)
    ]
    assert {fact.by for fact in asked[-3:]} == {f"uid {os.getuid()} pid {os.getpid()}"}


def test_a_failed_load_says_why(live: Live) -> None:
    with Raw(live) as raw:
        raw.call("Load", {"model": "bad"})
        reply = raw.reply()
    assert (reply["error"], reply["parameters"]["reason"]) == (f"{INTERFACE}.OperationFailed", "load_failed")
    assert "no-luck-today" in reply["parameters"]["message"]


def test_a_client_that_leaves_during_a_load_ends_nothing(live: Live) -> None:
    with Raw(live) as raw:
        raw.call("Unload")
        raw.reply()
        raw.call("Load", {"model": "red"}, more=True)
        assert raw.reply()["continues"]
    with Raw(live) as raw:
        raw.call("Load", {"model": "red"})
        assert raw.reply()["parameters"]["state"] == "ready"
        raw.call("ListRunners")
        assert [r["model"] for r in raw.reply()["parameters"]["runners"]] == ["red"]


def test_unloading_answers_when_it_is_gone(live: Live) -> None:
    with Raw(live) as raw:
        raw.call("Load", {"model": "blue"})
        raw.reply()
        raw.call("ListRunners")
        (runner,) = [r for r in raw.reply()["parameters"]["runners"] if r["model"] == "blue"]
        raw.call("Unload", {"runner": runner["id"]})
        assert raw.reply() == {"parameters": {}}
        gone(runner["pid"])
        raw.call("Unload", {"model": "blue"})
        assert "parameters" in raw.reply(), "what is not loaded is no error"


# --- watching --------------------------------------------------------------------------------------------


def watched(live: Live, after: int, upto: threading.Event, found: list[dict[str, Any]]) -> None:
    """Collect events until `upto` is set and the log's head, as it is then, has come."""
    with Raw(live) as raw, Raw(live) as asking:
        raw.call("Watch", {"after": after}, more=True)
        last = None
        while last is None or found[-1]["seq"] < last:
            found.append(raw.reply()["parameters"]["event"])
            if last is None and upto.is_set():
                asking.call("Status")
                last = asking.reply()["parameters"]["seq"]


def test_watching_is_gapless_from_any_event_under_load(live: Live) -> None:
    upto = threading.Event()
    with Raw(live) as raw:
        raw.call("Status")
        head = raw.reply()["parameters"]["seq"]
    starts = [0, 1, head // 2, head - 1, head]
    seen: list[list[dict[str, Any]]] = [[] for _ in starts]
    watchers = [
        threading.Thread(target=watched, args=(live, after, upto, found))
        for after, found in zip(starts, seen, strict=True)
    ]
    clients = [threading.Thread(target=ask_often, args=(live,)) for _ in range(4)]
    for thread in [*watchers, *clients]:
        thread.start()
    for thread in clients:
        thread.join(PATIENCE_S)
    upto.set()
    assert live.chat("blue", max_tokens=1)[0] == 200  # one more event for everybody
    for thread in watchers:
        thread.join(PATIENCE_S)
    stored = {event.seq: event for event in live.events()}
    for after, found in zip(starts, seen, strict=True):
        assert [event["seq"] for event in found] == list(range(after + 1, after + 1 + len(found)))
        assert len(found) > 100
        for event in found[-50:]:
            kept = stored[event["seq"]]
            assert (event["type"], event["cause"]) == (kept.body.__struct_config__.tag, kept.cause)
            assert (event["subject"], event["t_ns"]) == (kept.subject, kept.t)
            assert event["payload"]["type"] == event["type"]


def ask_often(live: Live) -> None:
    for _ in range(30):
        assert live.chat("blue", max_tokens=1)[0] == 200


def test_watching_from_now_begins_with_what_comes_next(live: Live) -> None:
    with Raw(live) as raw, Raw(live) as other:
        other.call("Status")
        head = other.reply()["parameters"]["seq"]
        raw.call("Watch", {"after": head}, more=True)
        other.call("Load", {"model": "blue"})
        other.reply()
        reply = raw.reply()
        assert reply["continues"]
        check(reply["parameters"]["event"], "Event", "Event")
        assert reply["parameters"]["event"]["seq"] == head + 1


def test_a_number_that_the_log_has_not_reached_is_refused(live: Live) -> None:
    with Raw(live) as raw:
        raw.call("Watch", {"after": 10**9}, more=True)
        assert raw.reply()["error"] == f"{INTERFACE}.CursorLost"


def test_a_watcher_that_never_reads_stops_nobody_and_may_leave(live: Live) -> None:
    """It leaves with all of it unread, which its end of the socket reports as a reset."""
    stuck = [Raw(live) for _ in range(20)]
    for raw in stuck:
        raw.call("Watch", {"after": 0}, more=True)
        raw.send(call("Status") * 100)
    for _ in range(20):
        assert live.chat("blue", max_tokens=1)[0] == 200
    for raw in stuck:
        raw.socket.close()
    serves(live)
    for after in (0, 0, 0):
        with Raw(live) as raw:
            raw.call("Watch", {"after": after}, more=True)
            assert raw.reply()["continues"]
    serves(live)


# --- the socket ------------------------------------------------------------------------------------------


def test_the_socket_is_its_owners_and_groups(live: Live) -> None:
    mode = live.socket.stat().st_mode
    assert stat.S_ISSOCK(mode)
    assert stat.S_IMODE(mode) == 0o660


def test_a_stale_socket_is_replaced_and_stopping_removes_it(tmp_path: Path) -> None:
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(tmp_path / "control.sock"))
    stale.close()
    with daemon(tmp_path, CONFIG) as live:
        with Raw(live) as raw:
            raw.call("Stop")
            assert raw.reply() == {"parameters": {}}
        assert live.wait() == 0
        assert not live.socket.exists()
    assert "daemon.stopped" in live.tags()
