"""Reading requests: any fragmentation gives the same request; the reader is reusable; bodies are counted."""

from __future__ import annotations

import errno
import random
import tempfile

import pytest

from daemon.http.body import Body, Held
from daemon.http.head import RequestReader
from daemon.http.limits import Limits

REQUESTS = [
    b"POST /v1/x?y=1 HTTP/1.1\r\nHost: a\r\nX: 1\r\nx-empty:\r\nContent-Length: 5\r\n\r\nhello",
    b"POST /v1/x?y=1 HTTP/1.1\r\nX: 1\r\nHost: a\r\nx-empty:\r\nTransfer-Encoding: Chunked\r\n\r\n"
    b"2\r\nhe\r\n3;e=1\r\nllo\r\n0\r\nTrailer: t\r\n\r\n",
    b"\r\nPOST /v1/x?y=1 HTTP/1.1\r\nHost: a\r\nConnection: Y, keep-alive\r\nX: 1\r\nY: 2\r\nx-empty:\r\n"
    b"Expect: nothing\r\nKeep-Alive: 5\r\nContent-Length: 5\r\n\r\nhello",
    b"POST /v1/x?y=1 HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: h2c\r\nX: 1\r\nx-empty:\r\n"
    b"Content-Length: 5\r\n\r\nhello",
    b"POST /v1/x?y=1 HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: h2c\r\nX: 1\r\nx-empty:\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
]


def reader(**limits: int) -> tuple[RequestReader, Body, Held]:
    held = Held(1 << 20)
    body = Body(held, memory_bytes=limits.get("body_memory_bytes", 1000))
    body_bytes = limits.pop("body_bytes", 1 << 20)
    request = RequestReader(Limits(**limits), body)
    request.body_bytes = body_bytes
    return request, body, held


def feed(request: RequestReader, data: bytes, rng: random.Random | None = None) -> None:
    while data:
        size = rng.randint(1, len(data)) if rng else 1
        request.feed(data[:size])
        data = data[size:]


@pytest.mark.parametrize("seed", range(20))
def test_fragmentation_does_not_matter(seed: int) -> None:
    request, body, held = reader()
    rng = random.Random(seed) if seed else None
    for data in REQUESTS * 2:
        feed(request, data, rng)
        assert request.headed and request.done and request.keep_alive
        assert request.refusal is None and not request.excess
        assert (request.method, request.url, request.host) == (b"POST", b"/v1/x?y=1", b"a")
        assert request.lines == [b"X: 1\r\n", b"x-empty: \r\n"]
        assert body.view() == b"hello" and held.bytes == 5
        body.close()
        request.reset()
        assert held.bytes == 0


@pytest.mark.parametrize("version,connection,keeps", [
    ("1.1", "", True), ("1.1", "Connection: close\r\n", False), ("1.1", "Connection: x, CLOSE\r\n", False),
    ("1.0", "", False), ("1.0", "Connection: Keep-Alive\r\n", True),
])  # fmt: skip
def test_persistence(version: str, connection: str, keeps: bool) -> None:
    request, _, _ = reader()
    request.feed(f"GET / HTTP/{version}\r\nHost: a\r\n{connection}\r\n".encode())
    assert request.done and request.keep_alive is keeps and request.version == version


WORDS = (
    "", "Connection: close\r\n", "Connection: keep-alive\r\n", "Proxy-Connection: keep-alive\r\n",
    "Keep-Alive: 5\r\n", "Connection: Upgrade\r\nUpgrade: h2c\r\n",
)  # fmt: skip


@pytest.mark.parametrize("version", ["0.9", "1.0", "1.1", "2.0"])
@pytest.mark.parametrize("words", WORDS)
def test_no_word_about_the_connection_changes_the_version(version: str, words: str) -> None:
    request, _, _ = reader()
    request.feed(f"GET / HTTP/{version}\r\nHost: a\r\n{words}\r\n".encode())
    assert request.version == version
    assert (request.refusal is None) is (version in ("1.0", "1.1"))


def test_what_follows_is_excess() -> None:
    for behind in (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b"\0", b"nonsense"):
        request, body, _ = reader()
        request.feed(REQUESTS[0] + behind)
        assert request.done and request.excess and request.refusal is None
        assert request.url == b"/v1/x?y=1" and body.view() == b"hello"


def test_the_first_refusal_stands() -> None:
    request, _, _ = reader(url_bytes=3)
    request.feed(b"GET /long HTTP/1.1\r\nHost: a\r\n\r\nnonsense")
    assert request.refusal is not None and request.refusal.status == 414


def test_a_head_just_within_its_limit_is_read() -> None:
    request, body, _ = reader(head_bytes=100, body_bytes=5000)
    request.feed(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4000\r\n\r\n" + b"a" * 4000)
    assert request.done and request.refusal is None and body.size == 4000
    body.close()


def test_a_full_disk_refuses_the_body(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(**_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    request, body, held = reader(body_memory_bytes=10)
    request.feed(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 40\r\n\r\n" + b"a" * 40)
    assert request.refusal is not None and request.refusal.status == 503
    body.close()
    assert held.bytes == 0


def test_bodies_spill_and_are_given_back() -> None:
    held = Held(10_000)
    body = Body(held, memory_bytes=1000)
    for _ in range(2):
        assert body.reserve(3000)
        for _ in range(30):
            body.add(b"x" * 100)
        assert body.in_file and len(body.view()) == body.size == 3000
        assert bytes(body.view()) == b"x" * 3000 and held.bytes == 3000
        other = Body(held, memory_bytes=1000)
        assert not other.reserve(7001) and other.reserve(7000)
        other.close()
        body.replace([b"sho", memoryview(b"rt")])
        assert not body.in_file and body.view() == b"short" and held.bytes == 3000
        body.replace([b"long" * 500, b"!"])
        assert body.in_file and bytes(body.view()) == b"long" * 500 + b"!" and body.size == 2001
        body.replace([memoryview(body.view())[:2000], b"?" * 2])
        assert body.in_file and bytes(body.view()) == b"long" * 500 + b"??" and held.bytes == 3000
        body.close()
        body.close()
        assert held.bytes == 0 and body.view() == b""
