"""Who may come in: the Host and Origin that browsers tell, the keys that clients have, and what CORS says.

A web page cannot choose the Host and Origin that its visitor's browser sends. So both together keep pages
from a server that only their visitor reaches: by a name of their own (DNS rebinding), or by its address.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import socket
from base64 import b64decode
from collections.abc import Iterable, Sequence
from ipaddress import ip_address

from daemon.http.head import CREDENTIALS, Page, RequestReader, without
from daemon.http.refusals import Refused
from daemon.ports import Access

OWN_NAMES = ("localhost", "host.docker.internal", "host.containers.internal")
"""Names of this machine that no public DNS can give to a stranger; the last two are for its containers."""

ANY = "*"
"""As an origin: whichever. Within one: any run of characters that can be in an origin behind `://`."""

BEYOND = re.compile(rb"[/?#@\\\s]")
"""What no origin has behind its `://`: with one of these a name before it could pass for the host's."""

REMEMBERED = 64
"""Host headers that were found good, remembered as they were written; clients use two or three."""

PREFLIGHT_METHODS = b"GET, HEAD, POST, PUT, PATCH, DELETE"
PREFLIGHT_S = 7200
"""How long a browser may remember a preflight's answer: the most that Chrome does."""

SHOWN = b"X-Runnerd-Request, X-Runnerd-Queue-Position, Retry-After, X-Should-Retry"
"""Headers that a page may read: OpenAI's client heeds the last two in a browser, too."""

EXPOSED = b"Access-Control-Expose-Headers: %b\r\n" % SHOWN

CHALLENGE = {"WWW-Authenticate": 'Bearer realm="runnerd", Basic realm="runnerd"'}

SAME = (b"same-origin", b"none")
"""What Sec-Fetch-Site says of a page of ours, and of an address that the user has typed."""


class Guard:
    """Judges each request's head by the configuration as it is now."""

    __slots__ = ("_access", "_any_origin", "_good", "_hosts", "_keys", "_machine", "_origins", "_patterns")

    def __init__(self, access: Access, machine: str = "") -> None:
        self._machine = machine or socket.gethostname()
        self._take(access)

    def _take(self, access: Access) -> None:
        """Prepare what the configuration says."""
        self._access = access
        self._hosts = own_names(self._machine) | {name.lower().rstrip(".") for name in access.hosts}
        self._good: set[bytes] = set()
        self._any_origin = ANY in access.origins
        origins = {origin.lower().rstrip("/").encode() for origin in access.origins}
        self._patterns = [origin.split(b"*") for origin in origins if b"*" in origin]
        self._origins = {origin for origin in origins if b"*" not in origin}
        self._keys = [digest(key.encode()) for key in access.api_keys]

    def admit(self, request: RequestReader, access: Access, *, any_host: bool, public: bool) -> None:
        """Let a request in, and note what its answer has to say to its browser. Raises Refused.

        `access`: what holds now. `any_host`: it came through a Unix socket, which no browser reaches.
        `public`: it needs no key.
        """
        if access is not self._access:
            self._take(access)
        if request.host and request.host not in self._good and not any_host:
            self._check_host(request.host)
        if request.page is not None:
            self._check_origin(request, request.page)
            if request.preflight and request.cors:
                request.cors += preflight_lines(request.page)
        if self._keys and not public and not request.preflight:
            self._check_key(request.credentials)
            request.lines = without(request.lines, CREDENTIALS)

    def _check_host(self, host: bytes) -> None:
        name = host_name(host)
        if name not in self._hosts and not is_address(name):
            shown = name.encode("ascii", "backslashreplace").decode()[:64]
            text = f"This server does not answer to the name '{shown}'."
            raise Refused(403, "host_not_allowed", f"{text} Add it to `allowedHosts`, or use an address.")
        if len(self._good) < REMEMBERED:
            self._good.add(host)

    def _check_origin(self, request: RequestReader, page: Page) -> None:
        """Refuse what a page of somebody else asks for. Without an Origin it can only be told where it cannot
        read the answer: an image, a link."""
        origin = page.origin
        if self._any_origin:
            request.cors = b"Access-Control-Allow-Origin: *\r\n" + EXPOSED
        elif not origin:
            if page.fetch_site and page.fetch_site not in SAME:
                text = (
                    "Pages of other sites may not ask for this. Open the address itself, or configure `cors`."
                )
                raise Refused(403, "origin_not_allowed", text)
        elif origin.lower() in self._origins or (self._patterns and self._is_like(origin.lower())):
            request.cors = b"Access-Control-Allow-Origin: %b\r\nVary: Origin\r\n%b" % (origin, EXPOSED)
        elif not request.host or origin.partition(b"://")[2].lower() != request.host.lower():
            shown = origin[:128].decode("ascii", "backslashreplace")
            allow = f'cors: {{origins: ["{shown}"]}}'
            text = f"Pages of {shown} may not use this server. To let them, configure `{allow}`."
            raise Refused(403, "origin_not_allowed", text)

    def _is_like(self, origin: bytes) -> bool:
        return any(is_like(pattern, origin) for pattern in self._patterns)

    def _check_key(self, credentials: Iterable[tuple[bytes, bytes]]) -> None:
        """Compare every key with every configured one, always all of them: time tells nothing."""
        good = given_any = False
        for name, value in credentials:
            given_any = True
            given = digest(key_of(name, value))
            for key in self._keys:
                good |= hmac.compare_digest(given, key)
        if not good:
            text = "This server needs an API key (`Authorization: Bearer …` or `X-Api-Key: …`)."
            if given_any:
                text = "The API key is none of this server's."
            raise Refused(401, "invalid_api_key", text, CHALLENGE)


def is_like(pattern: Sequence[bytes], origin: bytes) -> bool:
    """Whether an origin is one with stars in it; `pattern`: what is around them. Both in lower case."""
    first, *inner, last = pattern
    at, end = len(first), len(origin) - len(last)
    if at > end or not (origin.startswith(first) and origin.endswith(last)):
        return False
    if BEYOND.search(origin, origin.find(b"://") + 3):
        return False
    for part in inner:
        found = origin.find(part, at, end)
        if found < 0:
            return False
        at = found + len(part)
    return True


def preflight_lines(page: Page) -> bytes:
    """What the answer to a preflight says beside the origin: the headers that it asks for are allowed."""
    lines = b"Access-Control-Allow-Methods: %b\r\nAccess-Control-Max-Age: %d\r\n" % (
        PREFLIGHT_METHODS,
        PREFLIGHT_S,
    )
    if page.asks_headers:
        lines += b"Access-Control-Allow-Headers: %b\r\n" % page.asks_headers
    return lines


def digest(key: bytes) -> bytes:
    """Keys are compared by this, so that their lengths are equal."""
    return hashlib.sha256(key).digest()


def key_of(name: bytes, value: bytes) -> bytes:
    """The key in a header: after `Bearer`, as the password of `Basic`, or all of it."""
    if name != b"authorization":
        return value.strip()
    scheme, _, rest = value.strip().partition(b" ")
    if scheme.lower() == b"bearer":
        return rest.strip()
    if scheme.lower() == b"basic":
        try:
            return b64decode(rest.strip()).partition(b":")[2]
        except ValueError:
            return b""
    return b""


def own_names(machine: str) -> set[str]:
    """Those that a machine has without being told: it can be reached by its name, also as mDNS has it."""
    name = machine.lower().rstrip(".")
    short = name.partition(".")[0]
    return {*OWN_NAMES, *({name, short, f"{short}.local"} if short else ())}


def is_address(name: str) -> bool:
    """An IP address: no DNS can make it lead elsewhere."""
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


def host_name(host: bytes) -> str:
    """The name or address in a Host header: without its port, brackets and final dot, in lower case. What is
    no such thing stays as it is, and is no name of ours."""
    text = host.decode("latin-1").strip().lower()
    start, bracket, rest = text.partition("]")
    if bracket:
        return start[1:] if start[:1] == "[" and is_port(rest) else text
    name, colon, port = text.partition(":")
    return name.removesuffix(".") if is_port(colon + port) else text


def is_port(text: str) -> bool:
    """Nothing, or a colon and digits."""
    return not text or (text[0] == ":" and (text[1:].isdecimal() or len(text) == 1))
