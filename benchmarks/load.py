"""A load generator on raw sockets: closed loops over kept-alive connections, cheap enough to share a core
with the backend."""

from __future__ import annotations

import select
import socket
import time
from dataclasses import dataclass, field

Target = tuple[str, int]


@dataclass
class Load:
    """What a run saw. Latencies in seconds."""

    seconds: float = 0.0
    requests: int = 0
    errors: int = 0
    chunks: int = 0
    latencies: list[float] = field(default_factory=list)

    def add(self, other: Load) -> None:
        """Count another run with this one."""
        self.seconds += other.seconds
        self.requests += other.requests
        self.errors += other.errors
        self.chunks += other.chunks
        self.latencies += other.latencies

    @property
    def per_s(self) -> float:
        """Requests a second."""
        return self.requests / self.seconds

    def percentile_us(self, percent: float) -> float:
        """A percentile of the latencies, in microseconds."""
        ordered = sorted(self.latencies)
        return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))] * 1e6


def request_bytes(target: Target, model: str, *, chunks: int = 0, size_bytes: int = 1024) -> bytes:
    """A chat request; with `chunks` it asks for a stream of that many."""
    stream = f'"stream": true, "max_tokens": {chunks}, ' if chunks else ""
    start, end = f'{{"model": "{model}", {stream}"messages": [{{"role": "user", "content": "', '"}]}'
    body = start + "a" * max(0, size_bytes - len(start) - len(end)) + end
    return (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: {target[0]}:{target[1]}\r\nUser-Agent: load\r\n"
        f"Accept: application/json\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n{body}"
    ).encode()


def connect(target: Target) -> socket.socket:
    """A blocking connection without Nagle's delay."""
    sock = socket.create_connection(target)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def answer_length(data: bytes) -> int:
    """The length of a whole answer that begins with `data`; 0 while its head is not there. Errors raise."""
    end = data.find(b"\r\n\r\n")
    if end < 0:
        return 0
    if not data.startswith(b"HTTP/1.1 200"):
        raise RuntimeError(f"the server answered {data[:200]!r}")
    at = data.lower().index(b"content-length: ") + 16
    return end + 4 + int(data[at : data.index(b"\r", at)])


def closed_loop(target: Target, request: bytes, *, connections: int, seconds: float) -> Load:
    """Each connection sends its next request when it has its answer."""
    load = Load()
    epoll = select.epoll()
    peers = {sock.fileno(): sock for sock in (connect(target) for _ in range(connections))}
    read = dict.fromkeys(peers, b"")
    sent = dict.fromkeys(peers, 0.0)
    clock = time.perf_counter
    began = clock()
    for fd, sock in peers.items():
        epoll.register(fd, select.EPOLLIN)
        sent[fd] = clock()
        sock.send(request)
    while (now := clock()) - began < seconds:
        for fd, _ in epoll.poll(1):
            data = peers[fd].recv(65536)
            if not data:
                raise RuntimeError("the server closed a connection")
            data = read[fd] + data if read[fd] else data
            if len(data) < (answer_length(data) or len(data) + 1):
                read[fd] = data
                continue
            now = clock()
            load.latencies.append(now - sent[fd])
            read[fd] = b""
            sent[fd] = now
            peers[fd].send(request)
    load.seconds = now - began
    load.requests = len(load.latencies)
    epoll.close()
    for sock in peers.values():
        sock.close()
    return load


def streams(target: Target, request: bytes, *, connections: int, seconds: float) -> Load:
    """As many streams at once, begun again when they end; counts their events."""
    load = Load()
    epoll = select.epoll()
    peers = {sock.fileno(): sock for sock in (connect(target) for _ in range(connections))}
    began = time.perf_counter()
    for fd, sock in peers.items():
        epoll.register(fd, select.EPOLLIN)
        sock.send(request)
    while (now := time.perf_counter()) - began < seconds:
        for fd, _ in epoll.poll(1):
            data = peers[fd].recv(65536)
            if not data:
                raise RuntimeError("the server cut a stream")
            load.chunks += data.count(b"data: ")
            if data.endswith(b"0\r\n\r\n"):
                load.requests += 1
                peers[fd].send(request)
    load.seconds = now - began
    epoll.close()
    for sock in peers.values():
        sock.close()
    return load
