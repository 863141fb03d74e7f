"""The endpoints of other servers: forms, queries, paths below a model, WebSockets, logs, operations."""

from __future__ import annotations

import hashlib
import logging
from base64 import b64encode
from pathlib import Path

import pytest

from daemon.catalog import Catalog
from daemon.config.file import load
from daemon.http import routes
from daemon.ports import Address, Ended, ModelRow, Output
from events.catalogue import CancelRequested, ProfileRequested, UnloadRequested
from statemachines.parts import Request
from statemachines.request import RequestState
from statemachines.runner import RunnerState
from tests.integration.front_door_world import Client, World, echo, once, read_request, request, world

BOUNDARY = "----x9"
KIND = f"Content-Type: multipart/form-data; boundary={BOUNDARY}"


def form(**fields: str) -> bytes:
    """A form with a file before its fields."""
    parts = [
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="model.wav"\r\n\r\nRIFF\r\n'
    ]
    for name, value in fields.items():
        parts.append(f'--{BOUNDARY}\r\ncontent-disposition: form-data; name="{name}"\r\n\r\n{value}\r\n')
    return "".join((*parts, f"--{BOUNDARY}--\r\n")).encode()


async def echoing(here: World, **more: str) -> Client:
    """A client, and a runner that answers with what it was asked."""
    runner = await here.runner("r1", echo())
    here.desk.dispatch_to(Address(runner.runner, runner.url, **more))
    return await here.client()


# --- where the model is named -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path", [path.decode() for path, route in routes.ROUTES.items() if route.kind and route.names == "body"]
)
async def test_every_endpoint_of_a_json_body(tmp_path: Path, path: str) -> None:
    async with world(tmp_path) as here:
        client = await echoing(here)
        answer = await client.ask("POST", path, b'{"model": "mini"}')
        assert answer.status == 200
        target = path.removeprefix("/v") if path.startswith("/v/") else path
        assert answer.body.startswith(b"POST %b HTTP/1.1\r\n" % target.encode())
        arrival = here.desk.tickets[0].arrival
        assert (arrival.model, arrival.kind) == ("small", routes.ROUTES[path.encode()].kind)


@pytest.mark.parametrize("path", ["/v1/audio/transcriptions", "/v1/images/edits"])
async def test_a_form_names_its_model(tmp_path: Path, path: str) -> None:
    async with world(tmp_path) as here:
        client = await echoing(here)
        sent = form(language="en", model="mini", prompt="")
        answer = await client.ask("POST", path, sent, KIND)
        assert answer.body.endswith(b"\r\n\r\n" + sent)
        assert here.desk.tickets[0].arrival.model == "small"


async def test_a_form_is_given_another_models_name(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        client = await echoing(here, model_name="whisper-large")
        answer = await client.ask("POST", "/v1/audio/transcriptions", form(model="tiny", a="b"), KIND)
        assert answer.body.endswith(b"\r\n\r\n" + form(model="whisper-large", a="b"))


async def test_a_large_form(tmp_path: Path) -> None:
    async with world(tmp_path, body_memory_bytes=1000) as here:
        client = await echoing(here, model_name="other")
        big = "x" * 50_000
        answer = await client.ask("POST", "/v1/audio/transcriptions", form(a=big, model="tiny"), KIND)
        assert answer.body.endswith(b"\r\n\r\n" + form(a=big, model="other"))


@pytest.mark.parametrize(
    ("body", "kind", "code"),
    [
        (form(a="b"), KIND, "missing_model"),
        (form(model=""), KIND, "missing_model"),
        (form(model="x" * 5000), KIND, "invalid_model"),
        (form(model="none"), KIND, "model_not_found"),
        (b"", KIND, "invalid_body"),
        (form(model="tiny")[:-20], KIND, "invalid_body"),
        (b"--" + BOUNDARY.encode(), KIND, "invalid_body"),
        (form(model="tiny"), "Content-Type: multipart/form-data", "invalid_body"),
        (form(model="tiny"), "Content-Type: application/json; boundary=x", "invalid_body"),
        (b'{"model": "tiny"}', "X: y", "invalid_body"),
        (b"".join(form(a="b")[:-10] for _ in range(100)), KIND, "missing_model"),
    ],
)
async def test_bad_forms(tmp_path: Path, body: bytes, kind: str, code: str) -> None:
    async with world(tmp_path) as here:
        answer = await (await here.client()).ask("POST", "/v1/audio/transcriptions", body, kind)
        assert answer.status in (400, 404) and answer.json()["error"]["code"] == code
        assert not here.desk.tickets


async def test_a_query_names_its_model(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        client = await echoing(here, model_name="other")
        answer = await client.ask("GET", "/props?model=mini&x=1")
        assert answer.body.startswith(b"GET /props?model=mini&x=1 HTTP/1.1\r\n")
        assert b"content-length" not in answer.body.lower()
        assert here.desk.tickets[0].arrival.model == "small"
        assert (await client.ask("GET", "/props")).json()["error"]["code"] == "missing_model"


async def test_a_path_that_takes_a_query_and_a_body(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        client = await echoing(here, model_name="other")
        answer = await client.ask("POST", "/v1/audio/voices?x=1", b'{"model": "mini", "name": "me"}')
        assert answer.body.startswith(b"POST /v1/audio/voices?x=1 HTTP/1.1\r\n")
        assert answer.body.endswith(b'{"model":"other","name":"me"}')
        answer = await client.ask("GET", "/v1/audio/voices?model=mini")
        assert answer.body.startswith(b"GET /v1/audio/voices?model=mini HTTP/1.1\r\n")
        assert [ticket.arrival.model for ticket in here.desk.tickets] == ["small", "small"]


@pytest.mark.parametrize(
    "path",
    [
        "/v/reranking", "/v/messages/count_tokens", "/v1/responses/input_tokens",
        "/v1/chat/completions/input_tokens",
    ],
)  # fmt: skip
def test_these_endpoints_of_others_are_there(path: str) -> None:
    route = routes.find(f"{path}?beta=true".encode())
    assert route is not None and route.methods == (b"POST",) and route.names == "body"


# --- one model ----------------------------------------------------------------------------------------------


async def test_one_model(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        client = await here.client()
        await here.runner("r1", echo())
        here.desk.state.models["tiny"] = {"r1": here.desk.state.runners["r1"]}
        tiny = (await client.ask("GET", "/v1/models/tiny")).json()
        assert tiny["id"] == "tiny" and tiny["status"] == {"value": "loading"}
        assert tiny["meta"]["llamaswap"] == {"layers": 2, "type": "model"}
        here.desk.state.runners["r1"].state = RunnerState.ready
        assert (await client.ask("GET", "/v1/models/tiny")).json()["status"] == {"value": "loaded"}
        mini = (await client.ask("GET", "/v1/models/min%69")).json()
        assert mini["meta"]["llamaswap"]["modelID"] == "small"
        kind = {"type": "selector", "targets": ["small", "tiny"]}
        here.catalog.row = lambda name: ModelRow(  # type: ignore[method-assign]
            name, metadata={"type": "x", "a": 1}, kind=kind, behind=("small", "tiny")
        )
        found = (await client.ask("GET", "/v1/models/both")).json()
        assert found["status"] == {"value": "loaded"}
        assert found["meta"]["llamaswap"] == {"a": 1, **kind}
        del here.catalog.row
        missing = await client.ask("GET", "/v1/models/smal")
        assert missing.status == 404 and "Did you mean small" in missing.json()["error"]["message"]


LATEST = """
models:
  small: {cmd: 's ${PORT}', memory: 1GiB, aliases: [mini]}
  a/b: {cmd: 's ${PORT}', memory: 1GiB}
peers: {hub: {proxy: "http://127.0.0.1:9", models: [far]}}
"""


def configured(directory: Path) -> Catalog:
    """The catalog of a file, as the daemon has it."""
    path = directory / "config.yaml"
    path.write_text(LATEST)
    return Catalog(load(path, {}))


async def test_a_name_as_ollamas_lists_have_it(tmp_path: Path) -> None:
    async with world(tmp_path, catalog=configured(tmp_path)) as here:
        client = await echoing(here)
        answer = await client.chat(model="small:latest")
        assert answer.status == 200
        assert (await client.ask("GET", "/props?model=mini:latest")).status == 200
        below = await client.ask("GET", "/upstream/small:latest/a:latest?b")
        assert below.body.startswith(b"GET /a:latest?b HTTP/1.1\r\n")
        assert (await client.ask("GET", "/upstream/a/b%3Alatest/")).status == 200
        there = await client.ask("GET", "/upstream/small:latest")
        assert (there.status, there.headers["location"]) == (301, "/upstream/small:latest/")
        assert [ticket.arrival.model for ticket in here.desk.tickets] == ["small", "small", "small", "a/b"]
        assert (await client.ask("GET", "/v1/models/small:latest")).json()["id"] == "small"
        assert (await client.ask("POST", "/api/models/unload/small:latest")).status == 200
        assert here.desk.operations == [UnloadRequested("small", "", by="http 127.0.0.1")]
        assert (await client.chat(model="far:latest")).json()["error"]["code"] == "peer_failed"
        assert (await client.chat(model="none:latest")).status == 404


async def test_a_model_of_a_peer_is_listed(tmp_path: Path) -> None:
    async with world(tmp_path, catalog=configured(tmp_path)) as here:
        client = await here.client()
        rows = (await client.ask("GET", "/v1/models")).json()["data"]
        assert [row["id"] for row in rows] == ["small", "a/b", "far"]
        far = rows[-1]
        assert (far["object"], far["owned_by"], far["name"]) == ("model", "llama-swap", "hub: far")
        assert far["meta"] == {"llamaswap": {"type": "peer", "peerID": "hub"}} and "status" not in far
        assert (await client.ask("GET", "/v1/models/far")).json() == far
        assert (await client.ask("GET", "/v1/models/hub/far")).json() == {**far, "id": "hub/far"}
        tags = (await client.ask("GET", "/api/tags")).json()["models"]
        assert [row["name"] for row in tags] == ["small:latest", "a/b:latest"]


# --- below a model ------------------------------------------------------------------------------------------


async def test_any_path_and_method_below_a_model(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        client = await echoing(here, model_name="never")
        answer = await client.ask("PUT", "/upstream/mini/a%20b/c?d=%2F", b'{"model":"x"}', "X-A: 1")
        assert answer.body.startswith(b"PUT /a%20b/c?d=%2F HTTP/1.1\r\n")
        assert answer.body.endswith(b'\r\n\r\n{"model":"x"}') and b"\r\nX-A: 1\r\n" in answer.body
        assert (here.desk.tickets[0].arrival.model, here.desk.tickets[0].arrival.kind) == (
            "small",
            "upstream",
        )
        assert (await client.ask("DELETE", "/upstream/tiny/")).body.startswith(b"DELETE / HTTP/1.1\r\n")


async def test_head_below_a_model(tmp_path: Path) -> None:
    async def serve(peer: Client) -> None:
        head, _ = await read_request(peer)
        assert head.startswith(b"HEAD / ")
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n")
        await peer.to_the_end()

    async with world(tmp_path) as here:
        here.desk.dispatch_to(await here.runner("r1", serve))
        client = await here.client()
        for _ in range(2):
            answer = await client.ask("HEAD", "/upstream/tiny/")
            assert (answer.status, answer.headers["content-length"]) == (200, "5000")
        await here.desk.until(lambda: len(here.desk.facts) == 2)
        assert all(fact.complete for fact in here.desk.facts)


async def test_a_models_root_is_redirected_to(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        client = await here.client()
        answer = await client.ask("GET", "/upstream/tiny?a=1")
        assert (answer.status, answer.headers["location"]) == (301, "/upstream/tiny/?a=1")
        assert (await client.ask("POST", "/upstream/tiny", b"")).status == 308
        assert (await client.ask("GET", "/upstream/none/x")).status == 404
        assert (await client.ask("GET", "/upstream/")).status == 404


async def test_a_look_at_a_runner_takes_no_slot(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        client = await echoing(here)
        runner = here.desk.state.runners["r1"]
        here.desk.state.models["tiny"] = {"r1": runner}
        assert (await client.ask("GET", "/upstream/tiny/health")).status == 200
        assert len(here.desk.tickets) == 1, "it is not ready: it is waited for"
        runner.state = RunnerState.ready
        for path in ("health", "slots", "metrics", "props?a=1", "models", "v1/models"):
            answer = await client.ask("GET", f"/upstream/tiny/{path}", None, "X-A: 1")
            assert answer.body.startswith(f"GET /{path} HTTP/1.1\r\n".encode()) and b"X-A: 1" in answer.body
            assert "x-runnerd-request" not in answer.headers
        answer = await client.ask("GET", "/props?model=tiny")
        assert answer.body.startswith(b"GET /props?model=tiny HTTP/1.1\r\n")
        runner.state = RunnerState.draining  # a monitor must not load it again before it has gone
        assert (await client.ask("GET", "/upstream/tiny/slots")).status == 200
        assert len(here.desk.tickets) == len(here.desk.facts) == 1
        for method, path in (("POST", "props"), ("GET", "slots/0"), ("GET", "")):
            assert (await client.ask(method, f"/upstream/tiny/{path}", b"")).status == 200
        assert len(here.desk.tickets) == 4
        here.desk.addresses.clear()  # nobody looks after it any more
        assert (await client.ask("GET", "/upstream/tiny/health")).status == 200
        assert len(here.desk.tickets) == 5


async def test_a_look_that_fails(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        await here.runner("r1", once())
        runner = here.desk.state.runners["r1"]
        here.desk.state.models["tiny"] = {"r1": runner}
        runner.state = RunnerState.ready
        client = await here.client()
        answer = await client.ask("GET", "/upstream/tiny/slots")
        assert (answer.status, answer.json()["error"]["code"]) == (502, "upstream_failed")
        assert (await client.ask("GET", "/health")).status == 200
        assert not here.desk.tickets and not here.desk.facts


# --- WebSockets ---------------------------------------------------------------------------------------------

ASKED = (
    "Upgrade: websocket",
    "Connection: keep-alive, Upgrade",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
)


async def web_socket(peer: Client) -> None:
    """A runner that agrees, greets at once, and sends back what it gets."""
    head = (await peer.until(b"\r\n\r\n")).decode()
    lines = dict(line.split(": ", 1) for line in head.split("\r\n")[1:] if line)
    assert lines["Upgrade"] == "websocket" and lines["Connection"] == "Upgrade"
    magic = lines["Sec-WebSocket-Key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
    accept = b64encode(hashlib.sha1(magic.encode()).digest()).decode()
    answer = f"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {accept}\r\n\r\n"
    await peer.send(b"HTTP/1.1 101 Switching Protocols\r\n" + answer.encode() + b"\x81\x02hi")
    while data := await peer.more():
        await peer.send(data)


async def test_a_web_socket_passes_both_ways(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        here.desk.dispatch_to(await here.runner("r1", web_socket))
        client = await here.client()
        await client.send(request("GET", "/upstream/tiny/ws", None, *ASKED))
        head = await client.head()
        assert head.status == 101 and head.headers["upgrade"] == "websocket"
        assert head.headers["connection"] == "Upgrade"
        assert head.headers["sec-websocket-accept"] == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
        assert await client.exactly(4) == b"\x81\x02hi"
        await client.send(b"\x81\x00GET / HTTP/1.1\r\n\r\n")
        assert await client.exactly(20) == b"\x81\x00GET / HTTP/1.1\r\n\r\n"
        await client.stream.aclose()
        await here.desk.until(lambda: here.desk.facts)
        assert here.desk.facts[0].status == 101 and here.desk.facts[0].bytes_to_client > 24


async def test_a_web_socket_that_the_runner_ends_or_refuses(tmp_path: Path) -> None:
    async def ends(peer: Client) -> None:
        await peer.until(b"\r\n\r\n")
        await peer.send(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\nbye")

    async with world(tmp_path) as here:
        here.desk.dispatch_to(await here.runner("r1", ends))
        client = await here.client()
        await client.send(request("GET", "/upstream/tiny/ws", None, *ASKED))
        await client.head()
        assert await client.to_the_end() == b"bye"
        here.desk.dispatch_to(await here.runner("r2", echo("400 No")))
        client = await here.client()
        await client.send(request("GET", "/upstream/tiny/ws", None, *ASKED))
        assert (await client.answer()).status == 400


async def test_no_web_socket_elsewhere(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        assert (await (await here.client()).ask("GET", "/v1/models", None, *ASKED)).status == 200


# --- operations ---------------------------------------------------------------------------------------------


async def test_operations_become_facts(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        client = await here.client()
        answer = await client.ask("GET", "/unload")
        assert (answer.body, answer.headers["content-type"]) == (b"OK", "text/plain")
        assert here.desk.operations.pop() == UnloadRequested("", "", by="http 127.0.0.1")
        assert (await client.ask("POST", "/api/models/unload")).json() == {"msg": "ok"}
        assert here.desk.operations.pop() == UnloadRequested("", "", by="http 127.0.0.1")
        assert (await client.ask("POST", "/api/models/unload/mini")).body == b"OK"
        assert here.desk.operations.pop() == UnloadRequested("small", "", by="http 127.0.0.1")
        assert (await client.ask("POST", "/api/models/unload/none")).status == 404
        here.desk.state.requests["q7"] = Request(
            "q7", 7, "tiny", "", "chat", {}, 1, 0, None, "", RequestState.queued
        )
        assert (await client.ask("POST", "/api/inflight/q7/cancel")).json() == {"msg": "ok"}
        assert here.desk.operations.pop() == CancelRequested("q7", "http 127.0.0.1")
        assert (await client.ask("POST", "/api/inflight/q8/cancel")).json()["error"][
            "code"
        ] == "request_not_found"
        assert (await client.ask("POST", "/api/inflight/q7/other")).status == 404


async def test_operations_that_fail_say_why(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        client = await here.client()
        here.desk.operated = Ended("operation.ended", "not_loaded", "nothing was loaded", 200)
        assert (await client.ask("GET", "/unload")).status == 200
        here.desk.operated = Ended("operation.ended", "stopping", "the server is stopping", 503)
        assert (await client.ask("GET", "/unload")).json()["error"]["message"] == "the server is stopping"
        here.desk.log_blocked = "the disk is full"
        answer = await client.ask("GET", "/unload")
        assert (answer.status, answer.json()["error"]["code"]) == (503, "log_blocked")


# --- logs ---------------------------------------------------------------------------------------------------


def say(here: World, message: str) -> None:
    """Have the daemon say something."""
    here.ring.handle(logging.LogRecord("runnerd", logging.INFO, "", 0, message, None, None))


async def test_logs_of_the_past_and_the_future(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        output = tmp_path / "r1.log"
        output.write_text("loading tensors\n")
        here.outputs = [Output("tiny", "r1", output)]
        say(here, "listening")
        client = await here.client()
        said = (await client.ask("GET", "/logs")).body
        assert b" I listening\n" in said and b"\ntiny r1: loading tensors\n" in said
        for path, past, mark in (
            ("/logs/stream", b"loading tensors\n", b"tiny r1: "),
            ("/logs/stream/proxy", b"listening\n", b""),
            ("/logs/stream/upstream", b"loading tensors\n", b""),
            ("/logs/stream/tiny", b"loading tensors\n", b""),
            ("/logs/stream/tiny?no-history", b"", b""),
        ):
            follower = await here.client()
            await follower.send(request("GET", path))
            assert (await follower.head()).status == 200
            if past:
                await follower.until(mark + past)
            if "proxy" not in path:
                with output.open("a") as file:
                    file.write("re")
                with output.open("a") as file:
                    file.write("ady\n")
                came = await follower.until(mark + b"ready\n")
                assert b"loading" not in came
            else:
                say(here, "unloading")
                await follower.until(b"unloading\n")
        assert (await client.ask("GET", "/logs/stream/none")).status == 404


async def test_the_last_words_of_a_runner_that_has_ended(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        ended, output = tmp_path / "ended-r1.log", tmp_path / "r2.log"
        ended.write_text("out of memory\n")
        output.write_text("loading\n")
        here.outputs = [Output("tiny", "r1", ended, ended=True)]
        client, follower = await here.client(), await here.client()
        await follower.send(request("GET", "/logs/stream/tiny"))
        await follower.until(b"out of memory\n")
        here.outputs.append(Output("tiny", "r2", output))
        await follower.until(b"loading\n")
        assert b"tiny r1: out of memory\ntiny r2: loading\n" in (await client.ask("GET", "/logs")).body


async def test_a_file_that_was_cut_is_followed_from_its_beginning(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        output = tmp_path / "r1.log"
        output.write_text("x" * 1000)
        here.outputs = [Output("tiny", "r1", output)]
        follower = await here.client()
        await follower.send(request("GET", "/logs/stream/upstream?no-history"))
        await follower.head()
        output.write_text("cut\n")
        await follower.until(b"\r\ncut\n")  # a chunk begins with it
        output.write_text("y" * 5000)  # a line without an end
        await follower.until(b"yyy")


async def test_the_ring_forgets_the_oldest(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        for number in range(3000):
            say(here, f"{number} " + "x" * 200)
        kept = here.ring.since(0)
        assert len(kept) <= 256 * 1024 and b" I 2999 " in kept and b" I 0 " not in kept
        seen = here.ring.end
        assert here.ring.since(seen) == b""
        say(here, "more")
        assert here.ring.since(seen).endswith(b" I more\n")


# --- what is not here ---------------------------------------------------------------------------------------


async def test_what_llama_swap_s_clients_ask_for_in_vain(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        client = await here.client()
        found = await client.ask("GET", "/api/performance?after=2026-01-01T00:00:00Z")
        assert found.json() == {"enabled": False, "sys_stats": [], "gpu_stats": []}
        assert (await client.ask("HEAD", "/api/performance")).status == 200
        for path in ("/ui", "/ui/", "/ui/models"):
            answer = await client.ask("GET", path)
            assert answer.status == 404 and "no web interface" in answer.json()["error"]["message"]


# --- profiles -----------------------------------------------------------------------------------------------


async def test_profiles_as_llama_swap_has_them(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        client = await here.client()
        assert (await client.ask("GET", "/api/profiles")).json() == {
            "active": None,
            "profiles": [
                {"id": "day", "description": "by day", "pins": {"any": "tiny"}},
                {"id": "night", "description": "", "pins": {"any": ""}},
            ],
        }
        assert (await client.ask("PUT", "/api/profiles/active", b'{"name": "day"}')).status == 200
        assert here.desk.operations == [ProfileRequested("day", "http 127.0.0.1")]
        assert (await client.ask("PUT", "/api/profiles/active", b'{"name": null}')).json() == {"active": None}
        assert len(here.desk.operations) == 1  # none is in use as it is


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"{}", 400, "missing_profile"),
        (b'{"name": 1}', 400, "invalid_body"),
        (b"nonsense", 400, "invalid_json"),
        (b'{"name": "noon"}', 404, "profile_not_found"),
    ],
)
async def test_a_profile_that_cannot_be_used(tmp_path: Path, body: bytes, status: int, code: str) -> None:
    async with world(tmp_path) as here:
        client = await here.client()
        answer = await client.ask("PUT", "/api/profiles/active", body)
        assert (answer.status, answer.json()["error"]["code"]) == (status, code)
        assert here.desk.operations == []
