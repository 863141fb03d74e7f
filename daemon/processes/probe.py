"""Asking a runner for its health: one small HTTP GET, and whether it is really that runner which answers."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import trio

from events.limits import PROBE_REPLY_BYTES

LISTEN = "0A"
"""A listening socket, in /proc/net/tcp."""


async def healthy(url: str, path: str, timeout_s: float) -> tuple[bool, str]:
    """Whether `url` (`http://host:port` or `unix:/path`) answers `path` with 200, and what it said instead.

    With `path` "" it is enough that it accepts a connection. Never raises for what the runner does.
    """
    with trio.move_on_after(timeout_s) as scope:
        try:
            stream = await _connect(url)
            async with stream:
                return await _ask(stream, url, path) if path else (True, "accepts")
        except (OSError, trio.BrokenResourceError, trio.ClosedResourceError, ValueError) as error:
            return False, _words(error)
    return False, f"no answer within {timeout_s:g} s" if scope.cancelled_caught else "no answer"


def _words(error: BaseException) -> str:
    """`connection refused`: without numbers, and without the address, which trio adds in its own way."""
    cause = error if isinstance(error, OSError) else error.__cause__
    if isinstance(cause, socket.gaierror) and cause.strerror:  # its numbers are not the system's
        return cause.strerror.lower()
    if isinstance(cause, OSError) and cause.errno:
        return os.strerror(cause.errno).lower()
    return str(error) or type(error).__name__


async def _connect(url: str) -> trio.SocketStream:
    if url.startswith("unix:"):
        return await trio.open_unix_socket(url.removeprefix("unix:"))
    parts = urlsplit(url)
    host = parts.hostname or "127.0.0.1"
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = trio.socket.socket(family, socket.SOCK_STREAM)
    try:
        await sock.connect(("127.0.0.1" if host == "localhost" else host, parts.port or 80))
    except BaseException:
        sock.close()
        raise
    return trio.SocketStream(sock)


async def _ask(stream: trio.SocketStream, url: str, path: str) -> tuple[bool, str]:
    host = "localhost" if url.startswith("unix:") else urlsplit(url).netloc
    await stream.send_all(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
    reply = b""
    while b"\r\n" not in reply and len(reply) < PROBE_REPLY_BYTES:
        data = await stream.receive_some(PROBE_REPLY_BYTES)
        if not data:
            return False, "closed the connection"
        reply += data
    line = reply.partition(b"\r\n")[0].decode("latin-1")
    words = line.split(maxsplit=2)
    shown = "".join(char for char in line[:100] if char.isprintable())  # it is shown on terminals
    return len(words) > 1 and words[0].startswith("HTTP/1.") and words[1] == "200", shown


def listens(url: str, pids: Iterable[int]) -> bool:
    """Whether one of these processes listens on the socket at `url`. A Unix socket is ours by its path."""
    if url.startswith("unix:"):
        return True
    inodes = _listening(urlsplit(url).port or 80)
    for pid in pids:
        with suppress(OSError):
            for name in os.listdir(f"/proc/{pid}/fd"):
                with suppress(OSError):
                    if os.readlink(f"/proc/{pid}/fd/{name}") in inodes:
                        return True
    return False


def _listening(port: int) -> set[str]:
    """The sockets that listen on a TCP port, as /proc/PID/fd shows them."""
    found = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with suppress(OSError):
            for line in Path(table).read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == LISTEN and int(fields[1].rpartition(":")[2], 16) == port:
                    found.add(f"socket:[{fields[9]}]")
    return found
