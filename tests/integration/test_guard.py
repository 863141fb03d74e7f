"""Who may come in: keys, Host, Origin, and what a browser is told."""

from __future__ import annotations

import hmac
from base64 import b64encode
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from daemon.http import guard, routes
from daemon.http.answers import Stream
from daemon.http.calls import Call
from daemon.http.routes import Route
from daemon.ports import Access
from tests.integration.front_door_world import FAILED, Client, chat, echo, request, world

KEYS = Access(api_keys=("alpha", "schlüssel:mit"))
PAGE = "https://chat.example"
PAGES = Access(origins=(PAGE + "/", "app://Obsidian.md"))


def basic(text: str) -> str:
    return "Authorization: Basic " + b64encode(text.encode()).decode()


GOOD = [
    "Authorization: Bearer alpha",
    "authorization: bearer  alpha ",
    "X-Api-Key: alpha",
    "x-api-key: schlüssel:mit",
    basic("anyone:alpha"),
    basic(":schlüssel:mit"),
]
BAD = [
    "X-Nothing: 1",
    "Authorization: Bearer",
    "Authorization: Bearer ",
    "Authorization: alpha",
    "Authorization: Bearer alph",
    "Authorization: Bearer alphaa",
    "Authorization: Bearer Alpha",
    "Authorization: Basic alpha",
    "Authorization: Basic ====",
    basic("alpha:"),
    basic("alpha"),
    "X-Api-Key:",
    "Proxy-Authorization: Bearer alpha",
]


async def test_keys(tmp_path: Path) -> None:
    async with world(tmp_path, access=KEYS) as here:
        here.desk.dispatch_to(await here.runner("r1", echo()))
        client = await here.client()
        for line in GOOD:
            answer = await client.chat(line, "X-Other: 1")
            assert answer.status == 200, line
            passed = answer.body.lower()
            assert b"authorization" not in passed and b"api-key" not in passed and b"x-other: 1" in passed
        tickets = len(here.desk.tickets)
        for line in BAD:
            answer = await client.chat(line)
            assert answer.status == 401 and answer.json()["error"]["code"] == "invalid_api_key", line
            assert answer.headers["www-authenticate"].startswith("Bearer ")
        assert len(here.desk.tickets) == tickets
        assert (await client.chat("X-Api-Key: wrong", "Authorization: Bearer alpha")).status == 200


async def test_what_needs_no_key(tmp_path: Path) -> None:
    async with world(tmp_path, access=KEYS) as here:
        client = await here.client()
        assert (await client.ask("GET", "/health")).status == 200
        for path in ("/v1/models", "/running", "/nothing", "/health/x"):
            assert (await client.ask("GET", path)).status == 401, path
        ollama = await client.ask("GET", "/api/nothing")
        assert isinstance(ollama.json()["error"], str)
        anthropic = await client.ask("POST", "/v1/messages/nothing", b"{}")
        assert anthropic.json()["error"]["type"] == "authentication_error"


async def test_every_key_is_compared_in_constant_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[int] = []
    real = hmac.compare_digest

    def compare(left: bytes, right: bytes) -> bool:
        compared.append(len(left))
        assert len(left) == len(right)
        return real(left, right)

    monkeypatch.setattr(hmac, "compare_digest", compare)
    async with world(tmp_path, access=Access(api_keys=("a", "bb", "c" * 500))) as here:
        client = await here.client()
        for key in ("a", "c" * 500, "x"):
            compared.clear()
            await client.ask("GET", "/v1/models", None, f"X-Api-Key: {key}")
            assert compared == [32, 32, 32]


async def test_keys_are_the_runners_where_none_is_configured(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        here.desk.dispatch_to(await here.runner("r1", echo()))
        answer = await (await here.client()).chat("Authorization: Bearer k", "X-Api-Key: l")
        assert b"Authorization: Bearer k\r\nX-Api-Key: l\r\n" in answer.body


def test_what_shows_a_struct_does_not_show_its_keys() -> None:
    assert "alpha" not in repr(KEYS) and "alpha" not in str(KEYS)


async def test_a_reload_takes_effect_at_once(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        client = await here.client()
        assert (await client.ask("GET", "/v1/models")).status == 200
        here.catalog.access = KEYS
        assert (await client.ask("GET", "/v1/models")).status == 401
        assert (await client.ask("GET", "/v1/models", None, "Host: chat.example", GOOD[0])).status == 403
        here.catalog.access = Access(hosts=("Chat.Example.",), body_bytes=10)
        assert (await client.ask("GET", "/v1/models", None, "Host: chat.example:1")).status == 200
        assert (await client.chat()).json()["error"]["code"] == "body_too_large"


# --- origins ------------------------------------------------------------------------------------------------

FOREIGN = [
    ("Origin: https://evil.example",),
    ("Origin: null",),
    ("Origin:  ", "Sec-Fetch-Site: cross-site"),
    ("Origin: https://chat.example.evil",),
    ("Origin: http://chat.example",),
    ("Origin: https://chat.example:444",),
    ("Origin: localhost",),
    ("Origin: http://localhost:1",),
    ("Origin: null", "Connection: origin"),
    ("Sec-Fetch-Site: cross-site",),
    ("Sec-Fetch-Site: same-site",),
    ("Sec-Fetch-Site: nonsense",),
    ("Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: navigate"),
]


async def test_pages_of_others(tmp_path: Path) -> None:
    async with world(tmp_path, access=PAGES) as here:
        client = await here.client()
        for lines in FOREIGN:
            answer = await client.ask("GET", "/v1/models", None, *lines)
            assert answer.status == 403 and answer.json()["error"]["code"] == "origin_not_allowed", lines
            assert "access-control-allow-origin" not in answer.headers
            assert (await client.ask("OPTIONS", "/v1/models", None, *lines, ASKS)).status == 403, lines
        assert (await client.chat("Origin: https://evil.example")).status == 403
        await client.send(b"GET /health HTTP/1.0\r\nOrigin: null\r\nConnection: keep-alive\r\n\r\n")
        assert (await client.answer()).status == 403


ASKS = "Access-Control-Request-Method: POST"


async def test_pages_of_our_own(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        here.desk.dispatch_to(await here.runner("r1", echo()))
        client = await here.client()
        for lines in (
            ("Origin: http://localhost",),
            ("Origin: HTTPS://LOCALHOST",),
            ("Sec-Fetch-Site: same-origin",),
            ("Sec-Fetch-Site: none", "Sec-Fetch-Mode: navigate"),
        ):
            answer = await client.chat(*lines)
            assert answer.status == 200, lines
            assert "access-control-allow-origin" not in answer.headers
            assert b"Origin" not in answer.body and b"Sec-Fetch-Site" not in answer.body


@pytest.mark.parametrize("star", [False, True])
async def test_pages_that_are_configured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, star: bool) -> None:
    async def pieces(call: Call) -> Stream:
        async def one() -> AsyncIterator[bytes]:
            yield b"one"

        return Stream(one())

    monkeypatch.setitem(routes.ROUTES, b"/stream", Route(routes.GET, pieces))
    access = (
        Access(origins=("*",), api_keys=("k",)) if star else Access(origins=PAGES.origins, api_keys=("k",))
    )
    own = [
        "Access-Control-Allow-Origin: https://runner.example", "Access-Control-Allow-Credentials: true",
        "ACCESS-CONTROL-EXPOSE-HEADERS: *",
    ]  # fmt: skip

    def told(headers: dict[str, str]) -> None:
        assert headers["access-control-allow-origin"] == ("*" if star else PAGE)
        exposed = "X-Runnerd-Request, X-Runnerd-Queue-Position, Retry-After, X-Should-Retry"
        assert headers["access-control-expose-headers"] == exposed
        assert star or headers["vary"] == "Origin"
        assert "access-control-allow-credentials" not in headers

    page, key = f"Origin: {PAGE}", "X-Api-Key: k"
    async with world(tmp_path, access=access) as here:
        here.desk.dispatch_to(await here.runner("r1", echo("200 OK", *own)))
        client = await here.client()
        answer = await client.chat(page, key, "Sec-Fetch-Site: cross-site")
        assert answer.status == 200
        told(answer.headers)
        for asked in (
            request("GET", "/v1/models", None, page, key),
            request("GET", "/v1/models", None, page),
            request("GET", "/nothing", None, page, key),
            request("GET", "/stream", None, page, key),
            chat(page, key, model="unknown"),
            chat(page, key, "X-Priority: high"),
            request("POST", "/v1/embeddings", None, page, key, "Content-Length: 99999999999"),
        ):
            client = await here.client()
            await client.send(asked)
            told((await client.answer()).headers)
        client = await here.client()
        here.desk.on_arrive = lambda ticket: ticket.give(FAILED)
        told((await client.chat(page, key)).headers)
        answer = await client.ask("GET", "/v1/models", None, key)
        assert ("access-control-allow-origin" in answer.headers) is False


PATTERNS = Access(
    origins=(
        "http://localhost:*", "chrome-extension://*", "https://*.Example.org", "https://a*.b*c*.test",
        "http://x.y:1*", "app://*",
    )
)  # fmt: skip


async def test_origins_with_stars(tmp_path: Path) -> None:
    async with world(tmp_path, access=PATTERNS) as here:
        client = await here.client()
        for origin in (
            "http://localhost:3000", "HTTP://LocalHost:1", "chrome-extension://abcdefghijklmnop",
            "https://chat.example.org", "https://a.b.example.ORG", "https://a.bc.test", "https://ab.bbcc.test",
            "http://x.y:1", "http://x.y:1234", "app://obsidian.md",
        ):  # fmt: skip
            answer = await client.ask("GET", "/v1/models", None, f"Origin: {origin}")
            assert (answer.status, answer.headers["access-control-allow-origin"]) == (200, origin)
            assert answer.headers["vary"] == "Origin"
            asked = await client.ask("OPTIONS", "/v1/chat/completions", None, f"Origin: {origin}", ASKS)
            assert (asked.status, asked.headers["access-control-allow-origin"]) == (204, origin)


async def test_origins_that_are_only_like_those_with_stars(tmp_path: Path) -> None:
    async with world(tmp_path, access=PATTERNS) as here:
        client = await here.client()
        for origin in (
            "null", "http://localhost.evil.com:80", "http://localhost.evil.com", "https://localhost:3000",
            "http://localhost:1@evil.com", "http://localhost:1/", "http://localhost:1/evil.com",
            "http://localhost:1?x", "http://localhost:1#x", "http://localhost:1\\evil.com",
            "http://localhost:1 http://evil.com", "http://evil.com:1/http://localhost:1",
            "x-http://localhost:1", "chrome-extension:/abc", "moz-extension://abc", "https://example.org",
            "https://evilexample.org", "https://chat.example.org.evil.com", "https://chatxexample.org",
            "https://evil.com/.example.org", "https://evil.com@x.example.org", "https://evil.com#.example.org",
            "https://a.cb.test", "https://a.bc.testy", "https://a.b.test", "http://xzy:1", "http://x.y:2",
            "app:/", "app",
        ):  # fmt: skip
            answer = await client.ask("GET", "/v1/models", None, f"Origin: {origin}")
            assert answer.status == 403, origin
            assert (await client.ask("OPTIONS", "/", None, f"Origin: {origin}", ASKS)).status == 403, origin


def test_an_origin_is_compared_with_stars_in_little_time() -> None:
    pattern = [b"http://", *[b"a"] * 40, b"b"]
    assert not guard.is_like(pattern, b"http://" + b"a" * 30000)
    assert guard.is_like(pattern, b"http://" + b"a" * 30000 + b"b")
    assert not guard.is_like([b"http://a", b"a"], b"http://a")  # one letter is not both


async def test_preflights(tmp_path: Path) -> None:
    access = Access(origins=PAGES.origins, api_keys=("k",))
    async with world(tmp_path, access=access) as here:
        client = await here.client()
        headers = "Access-Control-Request-Headers: authorization,content-type,x-stainless-lang"
        for path in ("/v1/chat/completions", "/nothing", "*"):
            answer = await client.ask("OPTIONS", path, None, f"Origin: {PAGE}", ASKS, headers)
            assert answer.status == 204 and "content-length" not in answer.headers
            assert answer.headers["access-control-allow-origin"] == PAGE
            assert "POST" in answer.headers["access-control-allow-methods"]
            assert answer.headers["access-control-allow-headers"] == headers.partition(": ")[2]
            assert int(answer.headers["access-control-max-age"]) > 0
        answer = await client.ask("OPTIONS", "/health", None, "Origin: app://obsidian.md", ASKS)
        assert answer.status == 204 and "access-control-allow-headers" not in answer.headers
        answer = await client.ask("OPTIONS", "/v1/models", None, "Origin: https://evil.example", ASKS)
        assert answer.status == 403
        assert (await client.ask("OPTIONS", "/v1/models", None, f"Origin: {PAGE}")).status == 401


async def test_keys_and_origins_behind_an_offered_upgrade(tmp_path: Path) -> None:
    """The head is read twice then."""
    access = Access(origins=PAGES.origins, api_keys=("k",))
    offer = ("Connection: Upgrade, X-Api-Key", "Upgrade: h2c")
    async with world(tmp_path, access=access) as here:
        here.desk.dispatch_to(await here.runner("r1", echo()))
        client = await here.client()
        answer = await client.chat(*offer, "X-Api-Key: k", f"Origin: {PAGE}")
        assert answer.status == 200 and answer.headers["access-control-allow-origin"] == PAGE
        assert (await client.chat(*offer, "X-Api-Key: k", "Origin: null")).status == 403
        assert (await client.chat(*offer)).status == 401


# --- names --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "name"),
    [
        (b"a", "a"), (b"A.b:80", "a.b"), (b"a.:80", "a"), (b"a:", "a"), (b"[::1]:80", "::1"),
        (b"[::1]", "::1"), (b"[::1]x", "[::1]x"), (b"::1]", "::1]"), (b"a:b", "a:b"),
        (b"a:\xb2", "a:²"), (b"a:1:2", "a:1:2"),
    ],
)  # fmt: skip
def test_names_in_host_headers(header: bytes, name: str) -> None:
    assert guard.host_name(header) == name


def test_names_of_the_machine() -> None:
    assert guard.own_names("Box.lan.") >= {"localhost", "box.lan", "box", "box.local"}
    assert guard.own_names("") == set(guard.OWN_NAMES)


async def test_a_unix_socket_needs_keys_too(tmp_path: Path) -> None:
    async with world(tmp_path, unix=True, access=KEYS) as here:
        here.desk.dispatch_to(await here.runner("r1", echo()))
        client = Client(await trio.open_unix_socket(tmp_path / "front.sock"))
        assert (await client.chat("Host: whatever")).status == 401
        assert (await client.chat("Host: whatever", GOOD[0])).status == 200
        await client.stream.aclose()
