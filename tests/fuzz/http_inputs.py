"""What the HTTP fuzzer sends: requests and runners' answers by a grammar of valid, odd and wrong parts."""

from __future__ import annotations

import random

from daemon.http import routes

TOKENS = [
    b"\r\n",
    b"\n",
    b"\r",
    b"\0",
    b" ",
    b"\t",
    b":",
    b",",
    b";",
    b"0\r\n\r\n",
    b"chunked",
    b"HTTP/1.1",
    b"\r\n ",
    b"#",
    b"Content-Length: 5\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Connection: upgrade\r\nUpgrade: websocket\r\n",
    b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
    b"ffffffffffffffff\r\n",
    b"\xff\xfe",
    b"A" * 300,
    b"{",
    b'"',
    b"[" * 50,
]

STREAMS = (b"/logs/stream", b"/logs/stream/", b"/api/events")
"""They end with their client only, which would cost the fuzzer its time: some of them are enough."""

PATHS = [path for path in (*routes.ROUTES, *routes.BELOW) if path not in STREAMS]
RELAYED = [path for path, route in routes.ROUTES.items() if route.handle is None]
JSON = [path for path in RELAYED if routes.ROUTES[path].names == "body"]

ODD_PATHS = [
    b"*",
    b"/",
    b"//",
    b"/upstream/tiny/x?y#z",
    b"/upstream/tiny",
    b"/upstream/../../etc/passwd",
    b"/health?a=%00",
    b"http://localhost/health",
    b"localhost:1",
    b"/v1/models/%2e%2e%2f",
    b"/" + b"a" * 9000,
    b"/%",
    b"/v1/models?model=tiny",
    b"/props?model=tiny",
    b"/api/inflight/q1/cancel",
    b"/logs/stream/none",
    b"/unload",
    *STREAMS,
]

METHODS = [b"GET", b"HEAD", b"OPTIONS", b"PUT", b"DELETE", b"BREW", b"CONNECT", b"PATCH", b"get"]

HEADERS = [
    b"Accept: */*",
    b"User-Agent: x",
    b"Connection: close",
    b"Connection: keep-alive",
    b"Connection: x, content-length",
    b"Connection: upgrade",
    b"Upgrade: h2c",
    b"Upgrade: websocket",
    b"Expect: 100-continue",
    b"X-Priority: 5",
    b"X-Priority: x",
    b"Authorization: Bearer key",
    b"Authorization: Basic OmtleQ==",
    b"Authorization: Basic %%%",
    b"X-Api-Key: key",
    b"X-Api-Key: \xe9",
    b"Origin: https://page.example",
    b"Origin: null",
    b"Origin: http://localhost",
    b"Sec-Fetch-Site: cross-site",
    b"Sec-Fetch-Site: none",
    b"Access-Control-Request-Method: POST",
    b"Access-Control-Request-Headers: a, b",
    b"TE: trailers",
    b"Trailer: x",
    b"Transfer_Encoding: chunked",
    b"X: " + b"a" * 3000,
    b"Content-Type: multipart/form-data; boundary=B",
    b"Content-Type: multipart/form-data; boundary=",
    b"Last-Event-ID: 5",
    b"Proxy-Connection: close",
    b"Keep-Alive: timeout=5",
    b"Accept-Encoding: gzip",
]

HOSTS = [b"evil.example", b"[::1]:8080", b"192.168.1.1", b"localhost:x", b"", b"\xff", b"a, b"]

BODIES = [
    b"",
    b"{}",
    b"[]",
    b'{"model": 5}',
    b'{"model": "none"}',
    b'{"model": "tiny\\u0000; rm -rf /"}',
    b"[" * 3000,
    b"\xff",
    b'{"model": "tiny", "model": "small"}',
    b'{"model": "small", "stream": true}',
    b'{"model": "tiny", "num_ctx": 1e99}',
    b'{"model": "tiny", "num_ctx": 4096, "options": {"adapter": "../../x"}}',
    b'{"model": "tiny", "keep_alive": "5m"}',
    b'{"model": "tiny", "keep_alive": -1e400}',
    b'{"model": "tiny", "x": "' + b"a" * 2000 + b'"}',
    b'--B\r\nContent-Disposition: form-data; name="model"\r\n\r\ntiny\r\n--B--\r\n',
    b"--B\r\n\r\n--B",
    b"--B--",
]

ANSWERS = [
    b"ok",
    b"",
    b'{"a": 1}',
    b"data: x\n\n",
    b"a" * 20_000,
    b'{"choices": [{"message": {"role": "assistant", "content": "x"}, "finish_reason": "stop"}]}',
    b'data: {"choices": [{"delta": {"content": "x"}}]}\n\ndata: {"choices": []}\n\ndata: [DONE]\n\n',
    b'{"data": [{"embedding": [0.5, 1e9], "index": 0}], "usage": {"prompt_tokens": 1}}',
    b'{"error": {"message": "x", "type": "y", "code": 500}}',
    b'{"choices": [{"text": 5}], "usage": null}',
]
"""Bodies of runners: plain ones, and what translations look for, right and wrong."""

STATUSES = [b"200 OK", b"500 No", b"204 None", b"304 Same", b"200", b"999 What", b"000 X", b"101 Up"]

WRONG_FRAMING = [
    b"Content-Length: +5",
    b"Content-Length: 0x5",
    b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
    b"X: y",
]

OLLAMA = [
    b'{"model": "tiny", "messages": [{"role": "user", "content": "x"}], "stream": false}',
    b'{"model": "tiny", "messages": [{"role": "user", "content": "x", "images": ["%%%"]}], "format": 5}',
    b'{"model": "mini:latest", "prompt": "x", "options": {"num_ctx": 4096, "top_k": "x"}, "keep_alive": 0}',
    b'{"model": "tiny", "input": ["a", "b"], "truncate": 5}',
    b'{"name": "tiny"}',
    b'{"model": "tiny"}',
]

BODIES += OLLAMA * 2

CHAT = b'{"model": "tiny", "messages": []}'


def request(rng: random.Random, *, key: bool) -> bytes:
    """One request, mostly of a form that passes; with a `key` if there has to be one."""
    plain = rng.random() < 0.6
    path = rng.choice(JSON) if plain or rng.random() < 0.5 else rng.choice(PATHS)
    if rng.random() < 0.1:
        path = rng.choice(ODD_PATHS)
    route = routes.find(path)
    method = route.methods[0] if route is not None and route.methods else b"POST"
    if rng.random() < 0.07:
        method = rng.choice(METHODS)
    body = CHAT if plain else rng.choice(BODIES)
    lines = [b"%b %b HTTP/1.%d" % (method, path, rng.random() < 0.95)]
    lines.append(b"Host: " + (b"localhost" if rng.random() < 0.96 else rng.choice(HOSTS)))
    lines += [b"X-Api-Key: key"] * (key and rng.random() < 0.9)
    lines += rng.sample(HEADERS, rng.randrange(5) if not plain else rng.randrange(2))
    framing, framed = _framed(rng, body)
    return b"\r\n".join((*lines, *framing, b"", framed))


def _framed(rng: random.Random, body: bytes) -> tuple[list[bytes], bytes]:
    """The body in its framing, which is mostly right."""
    length = b"Content-Length: %d" % len(body)
    coded = b"Transfer-Encoding: chunked"
    draw = rng.random()
    if draw < 0.7:
        return [length], body
    if draw < 0.88:
        return [coded], chunked(rng, body)
    if draw < 0.92:
        return rng.sample([length, coded, b"Transfer-Encoding: gzip", length], 2), body
    if draw < 0.96:
        return [b"Content-Length: %d" % (len(body) + rng.randint(-5, 5))], body
    return [
        rng.choice((b"Content-Length: +5", b"Content-Length: 0x5", coded + b"\r\n" + coded, b"X: y"))
    ], body


def chunked(rng: random.Random, body: bytes) -> bytes:
    """In chunks, some of them with extensions and trailers."""
    out = b""
    while body:
        size = rng.randint(1, len(body))
        extension = rng.choice((b"", b"", b"", b";a=b", b';a="\\""'))
        out += b"%x%b\r\n%b\r\n" % (size, extension, body[:size])
        body = body[size:]
    return out + b"0\r\n" + rng.choice((b"", b"", b"T: x\r\n", b"Content-Length: 9\r\n")) + b"\r\n"


def answer(rng: random.Random) -> bytes:
    """What a runner says: mostly right, and often enough not."""
    body = rng.choice(ANSWERS)
    status = rng.choice(
        (b"200 OK", b"200 OK", b"500 No", b"204 None", b"304 Same", b"200", b"999 What", b"000 X", b"101 Up")
    )
    head = b"HTTP/1.%d " % (rng.random() < 0.9) + (b"200 OK" if rng.random() < 0.7 else status) + b"\r\n"
    if rng.random() < 0.1:
        head = b"HTTP/1.1 1%02d Wait\r\n\r\n" % rng.randrange(100) + head
    if rng.random() < 0.2:
        head += rng.choice(
            (
                b"Connection: close\r\n",
                b"Connection: content-length\r\n",
                b"Access-Control-Allow-Origin: *\r\n",
                b"Content-Type: text/event-stream\r\n",
                b"X: " + b"a" * 5000 + b"\r\n",
                b"Upgrade: websocket\r\n",
            )
        )
    draw = rng.random()
    if draw < 0.5:
        data = head + b"Content-Length: %d\r\n\r\n" % len(body) + body
    elif draw < 0.85:
        data = head + b"Transfer-Encoding: chunked\r\n\r\n" + chunked(rng, body)
    else:
        data = head + b"\r\n" + body
    if rng.random() < 0.05:
        data += rng.choice((data, b"\r\n", b"\0", b"HTTP/1.1"))
    return data


def split(rng: random.Random, data: bytes) -> list[bytes]:
    """In pieces: whole, in two, or many."""
    if not data or rng.random() < 0.5:
        return [data]
    cuts = sorted(rng.randrange(len(data)) for _ in range(rng.choice((1, 1, 2, 8))))
    return [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True) if a < b]
