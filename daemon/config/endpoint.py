"""Where a model's runner answers: its `proxy`, and what has to be leased for it."""

from __future__ import annotations

import re
from typing import Literal

import msgspec

from daemon.config.fields import Section
from daemon.config.yaml_source import Scalar

LEASED_PORT = "http://localhost:${PORT}"
LEASED_SOCKET = "unix:${SOCKET}"

Lease = Literal["port", "socket", "none"]

_HTTP = re.compile(
    r"http://(?P<host>\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]{1,253})"
    r"(?::(?P<port>\$\{PORT\}|[0-9]{1,5}))?(?P<prefix>/[!-~]*)?"
)
_LOCAL_HOSTS = ("localhost", "0.0.0.0", "[::]", "[::1]")
_EXPECTED = "http://HOST:PORT, with a path or none, or unix:/PATH (https is not supported by this version)"


class Endpoint(msgspec.Struct, frozen=True):
    """Where a runner answers, as far as the file can say.

    `socket`: the path of a Unix socket, with `${SOCKET}` for a leased one; "" for HTTP over TCP.
    `port` 0: leased. `prefix`: put before each request's path.
    """

    host: str = "127.0.0.1"
    port: int = 0
    prefix: str = ""
    socket: str = ""

    @property
    def lease(self) -> Lease:
        """What the scheduler has to lease: a fixed port of this machine too, so that nobody else gets it."""
        if self.socket:
            return "socket" if self.socket == "${SOCKET}" else "none"
        return "port" if not self.port or self.fixed_port else "none"

    @property
    def fixed_port(self) -> int:
        """The port of this machine that the file fixes; 0: leased from the range, or none."""
        return self.port if self.is_here and not self.socket else 0

    @property
    def is_here(self) -> bool:
        """It is this machine's, as far as its name says."""
        return self.host in _LOCAL_HOSTS or self.host.startswith("127.")


def parse_endpoint(text: str) -> Endpoint | None:
    """`http://host:port/prefix` or `unix:/path`, with `${PORT}` and `${SOCKET}`. None: neither."""
    if text.startswith("unix:"):
        path = text.removeprefix("unix:")
        return Endpoint(socket=path) if path == "${SOCKET}" or path.startswith("/") else None
    match = _HTTP.fullmatch(text)
    if match is None:
        return None
    host = "127.0.0.1" if match["host"].lower() == "localhost" else match["host"]
    prefix = (match["prefix"] or "").rstrip("/")
    if "${" in prefix:
        return None
    if match["port"] == "${PORT}":
        return Endpoint(host, 0, prefix)
    port = int(match["port"] or 80)
    return Endpoint(host, port, prefix) if 0 < port < 65536 else None


def read_endpoint(section: Section, used: set[str] | None) -> Endpoint:
    """A model's `proxy`, checked against the macros that its command uses (None: it cannot be read)."""
    found = section.scalar("proxy", _EXPECTED)
    default = LEASED_SOCKET if used and "SOCKET" in used else LEASED_PORT
    endpoint = parse_endpoint(found.text if found else default)
    if endpoint is None:
        section.wrong("proxy", _EXPECTED, found)
        return Endpoint()
    if used is None:
        return endpoint
    _check_port(section, endpoint, found, used)
    if "PORT" not in used and (endpoint.lease == "socket") != ("SOCKET" in used):
        section.wrong("proxy", "${SOCKET} both here and in `cmd`, or in neither", found)
    return endpoint


def _check_port(section: Section, endpoint: Endpoint, found: Scalar | None, used: set[str]) -> None:
    """A leased port is of use only where the command learns it, and the other way round."""
    leased = not endpoint.socket and not endpoint.port
    if "PORT" in used and "SOCKET" in used:
        section.report("cmd", "expected either ${PORT} or ${SOCKET}, found both")
    elif leased and "PORT" not in used:
        expected = "${PORT} in `cmd`, or here the port that the command listens on"
        section.wrong("proxy", expected, found)
    elif "PORT" in used and endpoint.fixed_port:
        section.warn("proxy", f"${{PORT}} in `cmd` is {endpoint.fixed_port}, then: no port is leased")
    elif "PORT" in used and not leased:
        section.wrong("proxy", "${PORT} here, as `cmd` uses it, or no `proxy` at all", found)
