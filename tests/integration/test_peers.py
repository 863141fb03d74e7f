"""What the configuration adds to a request: filters, selectors, and models that other servers have."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
import trio.testing

from daemon.config.filters import Filters
from daemon.http import tls
from daemon.ports import PeerModel
from statemachines.runner import RunnerState
from tests.integration.front_door_world import Client, World, chat, echo, read_request, request, world


def said(body: bytes) -> tuple[bytes, dict[str, object]]:
    """The head and the JSON that an echoing runner got."""
    head, _, rest = body.partition(b"\r\n\r\n")
    return head, msgspec.json.decode(rest)


# --- filters and selectors ----------------------------------------------------------------------------------


async def test_filters_change_what_the_runner_gets(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        here.catalog.filtered = {"tiny": Filters(("temperature",), {"num_ctx": 8192, "keep_alive": "5m"})}
        here.desk.dispatch_to(await here.runner("r1", echo()))
        client = await here.client()
        _, got = said((await client.chat(temperature=1, top_p=0.5)).body)
        assert got == {"model": "tiny", "top_p": 0.5, "num_ctx": 8192, "keep_alive": "5m"}
        arrival = here.desk.tickets[0].arrival
        assert (arrival.options, arrival.keep_alive_ns) == ({"num_ctx": 8192}, 300 * 10**9)
        _, got = said((await client.chat(model="mini", temperature=1)).body)
        assert got == {"model": "mini", "temperature": 1}


async def test_a_plain_request_is_relayed_as_it_comes(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        here.catalog.options = {}
        here.desk.dispatch_to(await here.runner("r1", echo()))
        client = await here.client()
        _, got = said((await client.chat("X-Priority: 3", model="mini", keep_alive="5m", num_ctx=1)).body)
        assert got == {"model": "mini", "keep_alive": "5m", "num_ctx": 1}
        arrival = here.desk.tickets[0].arrival
        assert (arrival.model, arrival.kind, arrival.priority) == ("small", "chat", 3)
        assert (arrival.options, arrival.keep_alive_ns) == ({}, 300 * 10**9)
        assert (await client.chat(model="none")).status == 404
        assert (await client.ask("POST", "/v1/chat/completions", b"{")).json()["error"][
            "code"
        ] == "invalid_json"


async def test_whoever_leaves_at_once_is_missed(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        clients = [await here.client() for _ in range(100)]
        for client in clients:
            await client.ask("GET", "/health")
        for client in clients:
            await client.send(chat())
            client.stream.socket.close()
        while here.door.connections:
            await trio.testing.wait_all_tasks_blocked()
        assert len(here.desk.gones) == len(here.desk.tickets)


async def test_a_selectors_target_is_served(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        here.catalog.filtered = {"mini": Filters((), {"a": 1})}
        here.desk.dispatch_to(await here.runner("r1", echo()))
        _, got = said((await (await here.client()).chat(model="any")).body)
        assert here.desk.tickets[0].arrival.model == "small" and got["a"] == 1
        assert got["model"] == "mini"  # the target: its own server knows no selector


async def test_a_body_that_cannot_be_written_anew_is_the_clients_mistake(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        here.desk.dispatch_to(await here.runner("r1", echo()))
        answer = await (await here.client()).ask(
            "POST", "/v1/chat/completions", b'{"model":"any","\xff":1}', "Content-Type: application/json"
        )
        assert answer.status == 400 and answer.json()["error"]["code"] == "invalid_json"


async def test_a_selectors_target_is_named_in_a_form_and_in_a_query(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        here.desk.dispatch_to(await here.runner("r1", echo()))
        client = await here.client()
        form = b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\n%b\r\n--b--\r\n'
        kind = "Content-Type: multipart/form-data; boundary=b"
        answer = await client.ask("POST", "/v1/audio/transcriptions", form % b"any", kind)
        assert answer.body.endswith(form % b"mini")
        assert (await client.ask("GET", "/props?a=1&model=any&b=%20")).body.startswith(
            b"GET /props?a=1&model=mini&b=%20 "
        )


async def test_a_models_own_names_stay_as_they_were_sent(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        here.catalog.options = {}
        here.desk.dispatch_to(await here.runner("r1", echo()))
        client = await here.client()
        for name in (b"small", b"mini"):
            body = b'{ "n" : 1.50,"model":   "%b" }' % name
            assert (await client.ask("POST", "/v1/chat/completions", body)).body.endswith(body)


async def test_some_paths_load_nothing(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        runner = await here.runner("r1", echo())
        here.desk.dispatch_to(runner)
        client = await here.client()
        answer = await client.ask("GET", "/upstream/tiny/favicon.ico")
        assert (answer.status, answer.json()["error"]["code"]) == (409, "not_loaded")
        here.desk.state.models["tiny"] = {"r1": here.desk.state.runners["r1"]}
        here.desk.state.runners["r1"].state = RunnerState.ready
        assert (await client.ask("GET", "/upstream/tiny/favicon.ico")).status == 200


# --- peers --------------------------------------------------------------------------------------------------


async def peer(here: World, url: str, **more: Any) -> Client:
    """A client, and a peer that has the model `far`."""
    here.catalog.peers = {"far": PeerModel("hub", url, "org/far", "their-key", **more)}
    return await here.client()


async def test_a_peer_is_asked_with_its_own_key_and_name(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        there = await here.runner("hub", echo("201 Made", "X-Peer: yes"))
        client = await peer(here, there.url + "/api")
        for _ in range(2):
            answer = await client.chat("Authorization: Bearer mine", "X-Api-Key: mine", model="far", n=1)
            assert answer.status == 201 and answer.headers["x-peer"] == "yes"
            assert "x-runnerd-request" not in answer.headers
            head, got = said(answer.body)
            assert head.startswith(b"POST /api/v1/chat/completions HTTP/1.1\r\n")
            assert b"Authorization: Bearer their-key\r\n" in head and b"mine" not in head
            assert b"X-Api-Key: their-key\r\n" in head  # as Anthropic's API has it
            assert got == {"model": "org/far", "n": 1}
        assert not here.desk.tickets and not here.desk.facts


async def test_a_peers_failure_is_told(tmp_path: Path) -> None:
    async def cut(there: Client) -> None:
        await read_request(there)

    async with world(tmp_path) as here:
        there = await here.runner("hub", cut)
        client = await peer(here, there.url)
        answer = await client.chat(model="far")
        assert (answer.status, answer.json()["error"]["code"]) == (502, "peer_failed")
        assert (await client.ask("GET", "/health")).status == 200
        client = await peer(here, "http://127.0.0.1:9")
        assert "cannot be connected to" in (await client.chat(model="far")).json()["error"]["message"]


async def test_a_client_that_leaves_a_peers_stream(tmp_path: Path) -> None:
    left = trio.Event()

    async def stream(there: Client) -> None:
        await read_request(there)
        await there.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
        await there.to_the_end()
        left.set()

    async with world(tmp_path) as here:
        there = await here.runner("hub", stream)
        client = await peer(here, there.url)
        await client.send(chat(model="far"))
        await client.until(b"abc")
        assert here.catalog.at_peers["org/far"] == 1
        await client.stream.aclose()
        await left.wait()
        while here.door.connections:
            await trio.testing.wait_all_tasks_blocked()
        assert here.catalog.at_peers["org/far"] == 0


CERTIFICATE = Path(__file__).resolve().parents[1] / "golden/localhost.pem"
"""For localhost and a hundred years, with its key: `openssl req -x509 -newkey rsa:2048 -nodes -days 36500
-subj /CN=localhost -addext subjectAltName=DNS:localhost`. It protects nothing."""


async def secure(here: World) -> int:
    """A peer that speaks TLS and streams; its port."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(CERTIFICATE)

    async def handle(stream: trio.SSLStream[trio.SocketStream]) -> None:
        try:
            await stream.receive_some(65536)
            await stream.send_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
            await stream.send_all(b"0\r\n\r\n")
            await stream.receive_some(1)
        except (trio.BrokenResourceError, ssl.SSLError):
            return

    listeners = await trio.open_ssl_over_tcp_listeners(0, context, host="127.0.0.1", https_compatible=True)
    here.nursery.start_soon(trio.serve_listeners, handle, listeners)
    listener = listeners[0].transport_listener
    assert isinstance(listener, trio.SocketListener)
    port: int = listener.socket.getsockname()[1]
    return port


async def test_a_peer_over_tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with world(tmp_path) as here:
        port = await secure(here)
        client = await peer(here, f"https://localhost:{port}")
        tls.trusted.cache_clear()
        distrusted = await client.chat(model="far")
        assert distrusted.status == 502 and "self-signed" in distrusted.json()["error"]["message"]
        monkeypatch.setenv("SSL_CERT_FILE", str(CERTIFICATE))
        tls.trusted.cache_clear()
        try:
            assert (await client.chat(model="far")).body == b"hello"
        finally:
            tls.trusted.cache_clear()


async def test_a_query_for_a_peer(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        there = await here.runner("hub", echo())
        client = await peer(here, there.url)
        answer = await client.ask("GET", "/props?%6dodel=far&a=1")
        assert answer.body.startswith(b"GET /props?model=org%2Ffar&a=1 ")  # as it is called there
        here.catalog.peers = {"org/far": here.catalog.peers["far"]}
        answer = await client.ask("GET", "/props?model=org/far")
        assert answer.body.startswith(b"GET /props?model=org/far ")
        await client.send(request("GET", "/props?model=none"))
        assert (await client.answer()).status == 404
