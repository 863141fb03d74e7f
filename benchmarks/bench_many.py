"""Very many clients of the whole daemon: streams at once, and connections that do nothing.

usage: python benchmarks/bench_many.py [--streams 1000] [--seconds 60] [--idle 10000] [--json]

The daemon has the first core, its runner and this load share the second. Each stream gets ten chunks a
second, about what a person reads. Memory is what the daemon's resident memory grows by, divided; the kernel's
buffers for sockets are not in it. Where the limit of open files allows fewer connections, as many are made.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import select
import socket
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent))

from benchmarks import load  # noqa: E402
from benchmarks.bench_daemon import backend_port, daemon  # noqa: E402
from benchmarks.bench_relay import cpu_s, resident_mib  # noqa: E402

CHUNKS_PER_S = 10
TOGETHER = 200
"""Connections that are made before the first of them is asked something."""

SPARE_FILES = 200
"""Open files that are for something else than these connections."""


def raise_limit() -> int:
    """Have as many open files as allowed, here and in what is started from here; how many that is."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


class Streams:
    """So many streams at once, each asked for once and read to its end."""

    def __init__(self, front: load.Target, count: int, seconds: float) -> None:
        self.front = front
        self.request = load.request_bytes(front, "m", chunks=int(seconds * CHUNKS_PER_S))
        self.count = count
        self.chunks = self.ended = self.errors = 0
        self.said = ""
        """The first error."""
        self.peers: dict[int, socket.socket] = {}
        self.epoll = select.epoll()

    def run(self, pid: int) -> dict[str, float]:
        """From the first to the last; the figures."""
        before_mib, most_mib = resident_mib(pid), 0.0
        began = time.perf_counter()
        for _ in range(self.count):
            sock = load.connect(self.front)
            sock.sendall(self.request)
            self.peers[sock.fileno()] = sock
            self.epoll.register(sock.fileno(), select.EPOLLIN)
        began_all, cpu = time.perf_counter(), cpu_s(pid)
        while self.peers:
            for fd, _ in self.epoll.poll(10):
                self._read(fd)
            most_mib = max(most_mib, resident_mib(pid))
        took = time.perf_counter() - began_all
        return {
            "streams": self.count,
            "seconds": time.perf_counter() - began,
            "errors": self.errors,
            "whole": self.ended,
            "chunks_per_s": self.chunks / took,
            "core_percent": 100 * (cpu_s(pid) - cpu) / took,
            "before_mib": before_mib,
            "most_mib": most_mib,
            "kib_per_stream": (most_mib - before_mib) * 1024 / self.count,
        }

    def _read(self, fd: int) -> None:
        sock = self.peers[fd]
        try:
            data = sock.recv(65536)
        except OSError:
            data = b""
        self.chunks += data.count(b"data: ")
        whole = data.endswith(b"\r\n0\r\n\r\n") or data == b"0\r\n\r\n"
        refused = data.startswith(b"HTTP/1.1") and not data.startswith(b"HTTP/1.1 200")
        if data and not whole and not refused:
            return
        if not whole:
            self.errors += 1
            self.said = self.said or data.decode("latin-1")
        self.ended += whole
        self.epoll.unregister(fd)
        del self.peers[fd]
        sock.close()


def asked(peers: list[socket.socket]) -> int:
    """Ask on each connection; how many do not answer as they should."""
    for sock in peers:
        sock.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
    return sum(not sock.recv(4096).startswith(b"HTTP/1.1 200") for sock in peers)


def idle(front: load.Target, pid: int, count: int) -> dict[str, float]:
    """Connections that have each been answered once, and then say nothing."""
    before = resident_mib(pid)
    peers: list[socket.socket] = []
    errors = 0
    began = time.perf_counter()
    for at in range(0, count, TOGETHER):
        some = [load.connect(front) for _ in range(min(TOGETHER, count - at))]
        errors += asked(some)
        peers += some
    took = time.perf_counter() - began
    after, cpu = resident_mib(pid), cpu_s(pid)
    time.sleep(5)
    percent = 100 * (cpu_s(pid) - cpu) / 5
    errors += asked(peers)  # all of them still serve
    for sock in peers:
        sock.close()
    return {
        "idle": count,
        "idle_errors": errors,
        "idle_opened_per_s": count / took,
        "idle_core_percent": percent,
        "idle_mib": after,
        "kib_per_idle": (after - before) * 1024 / count,
    }


def main() -> None:
    """Start, measure, print, stop."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--idle", type=int, default=10_000)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    files = raise_limit()
    count = min(options.idle, files - SPARE_FILES)
    if count < options.idle:
        print(f"only {count} idle connections: the limit of open files is {files}", file=sys.stderr)
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[-1]})
    with (
        tempfile.TemporaryDirectory(prefix="runnerd-bench-") as directory,
        daemon(Path(directory), cores[0], cores[-1], slots=options.streams, rate=CHUNKS_PER_S) as (
            process,
            port,
        ),
    ):
        front = ("127.0.0.1", port)
        backend_port(Path(directory), front)
        streams = Streams(front, options.streams, options.seconds)
        figures = streams.run(process.pid)
        if streams.said:
            print(f"an error: {streams.said}", file=sys.stderr)
        if count:
            figures |= idle(front, process.pid, count)
        if options.json:
            print(json.dumps({name: round(value, 2) for name, value in figures.items()}))
        else:
            for name, value in figures.items():
                print(f"{name:>20}{value:>14,.1f}")


if __name__ == "__main__":
    main()
