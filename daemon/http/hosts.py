"""Which Host headers are ours: a page in a browser must not reach a loopback server by a name of its own
(DNS rebinding)."""

from __future__ import annotations

import socket
from collections.abc import Iterable
from ipaddress import ip_address

LOOPBACK = ("localhost", "127.0.0.1", "::1")

REMEMBERED = 64
"""Host headers that were found good, remembered as they were written; clients use two or three."""


class Hosts:
    """The allow-list of one listener. One that is not bound to loopback takes any name: it is meant to be
    reached from elsewhere, by names that we cannot know."""

    def __init__(self, listener: socket.socket, configured: Iterable[str]) -> None:
        self.checked = is_loopback(listener)
        self._names = {name.lower() for name in (*LOOPBACK, *configured)}
        self._good: set[bytes] = set()

    def allow(self, host: bytes) -> bool:
        """Whether a request with this Host header may be served. HTTP/1.0 sends none."""
        if not self.checked or not host or host in self._good:
            return True
        if host_name(host) not in self._names:
            return False
        if len(self._good) < REMEMBERED:
            self._good.add(host)
        return True


def is_loopback(listener: socket.socket) -> bool:
    """Bound to a loopback address (a Unix socket is not: no browser reaches it)."""
    if listener.family not in (socket.AF_INET, socket.AF_INET6):
        return False
    return ip_address(listener.getsockname()[0].partition("%")[0]).is_loopback


def host_name(host: bytes) -> str:
    """The name or address in a Host header: without its port, brackets and final dot, in lower case."""
    text = host.decode("latin-1").strip().lower()
    if text.startswith("["):
        return text[1:].partition("]")[0]
    name, _, port = text.partition(":")
    return name.removesuffix(".") if not port or port.isdigit() else text
