"""The front door: where it listens, who may come in, and how much may be sent.

    listen: 0.0.0.0:8080
    apiKeys: ["${env.API_KEY}"]
    allowedHosts: [gpu.example.org]
    cors: {origins: ["https://chat.example.org"]}
    maxBody: 64MiB

Whoever may ask a model may use the machine, so listening beyond this machine takes keys, or a word that none
are wanted. Keys are in no message and no representation.
"""

from __future__ import annotations

import re
import warnings
from ipaddress import ip_address
from typing import Any

import msgspec

from daemon.config.errors import Problems, shown
from daemon.config.fields import Section
from events.limits import (
    API_KEY_CHARS,
    API_KEY_FEW_CHARS,
    API_KEYS,
    CONFIG_NAME_CHARS,
    HTTP_BODIES_HELD_BYTES,
    HTTP_BODY_BYTES,
    HTTP_BODY_LEAST_BYTES,
    LISTEN,
)

IGNORED_PATHS = (r".*\.(js|json|css|png|gif|jpg|jpeg|ico|txt)$",)
"""llama-swap's: what a page's parts end with."""

_LISTEN = re.compile(r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]*):([0-9]{1,5})")
_KEY = re.compile(r"[!-~]+")
_HOST = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*")
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^\s/?#@\\]+")


class Secret(str):
    """Text that its representation does not show."""

    def __repr__(self) -> str:
        return "'(not shown)'"


class Door(msgspec.Struct, frozen=True, kw_only=True):
    """What a Config has of it."""

    listen: str = LISTEN
    insecure_listen: bool = False
    """Listening beyond this machine without keys is meant."""
    api_keys: tuple[str, ...] = ()
    """One of these must come with a request; none: nobody is asked."""
    hosts: tuple[str, ...] = ()
    """Names that a Host header may have beside loopback's, in lower case, without ports."""
    cors_origins: tuple[str, ...] = ()
    """Origins whose pages may read answers; "*": any, and within one any characters but "/"."""
    body_bytes: int = HTTP_BODY_BYTES
    """The largest body of a request."""
    ignore_paths: tuple[str, ...] = IGNORED_PATHS
    """Regular expressions to be searched for in a path under /upstream/MODEL: such requests load nothing."""


def read_door(section: Section, problems: Problems) -> dict[str, Any]:
    """The fields of a Config that are Door's."""
    door = Door(
        listen=_listen(section),
        insecure_listen=section.flag("insecureListen"),
        api_keys=_api_keys(section, problems),
        hosts=_hosts(section, problems),
        cors_origins=_cors_origins(section, problems),
        body_bytes=_body_bytes(section),
        ignore_paths=_ignore_paths(section, problems) or IGNORED_PATHS,
    )
    return msgspec.structs.asdict(door)


def exposure(host: str, api_keys: tuple[str, ...]) -> str:
    """Why the front door must not listen at a host; "" where it may."""
    if api_keys or is_loopback(host):
        return ""
    return (
        f"{host} can be reached from other machines, and without apiKeys anybody there may use this one: "
        "expected apiKeys, a loopback address, or insecureListen: true (serve --insecure-listen)"
    )


def is_loopback(host: str) -> bool:
    """Whether a host to listen at is this machine only. "" is the default, which is."""
    if host.lower() in ("", "localhost"):
        return True
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _listen(section: Section) -> str:
    listen = section.text("listen", LISTEN)
    match = _LISTEN.fullmatch(listen)
    if match is None or int(match[2]) > 65535:
        section.wrong("listen", "HOST:PORT", section.node("listen"))
    return listen


def _api_keys(section: Section, problems: Problems) -> tuple[str, ...]:
    given = section.texts("apiKeys")
    keys: dict[str, None] = {}
    if len(given) > API_KEYS:
        section.report("apiKeys", f"expected at most {API_KEYS} keys, found {len(given)}")
    for item, path in given[:API_KEYS]:
        if not _KEY.fullmatch(item.text) or len(item.text) > API_KEY_CHARS:
            text = f"expected a key of 1 to {API_KEY_CHARS} letters, digits and signs, without blanks"
            problems.add(item.line, path, text)
        elif len(item.text) < API_KEY_FEW_CHARS:
            problems.warn(
                item.line, path, f"a key of fewer than {API_KEY_FEW_CHARS} characters can be guessed"
            )
        keys[Secret(item.text)] = None
    return tuple(keys)


def _hosts(section: Section, problems: Problems) -> tuple[str, ...]:
    hosts: dict[str, None] = {}
    for item, path in section.texts("allowedHosts"):
        host = item.text.lower().removesuffix(".").strip("[]")
        if len(host) > CONFIG_NAME_CHARS or not (_HOST.fullmatch(host) or _is_address(host)):
            text = f"expected a host's name or address, without a port, found {shown(item.text)}"
            problems.add(item.line, path, text)
        hosts[host] = None
    return tuple(hosts)


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def _cors_origins(section: Section, problems: Problems) -> tuple[str, ...]:
    cors = section.below("cors")
    if cors is None:
        return ()
    origins: dict[str, None] = {}
    for item, path in cors.texts("origins"):
        origin = item.text.lower()
        if origin != "*" and not _ORIGIN.fullmatch(origin):
            text = f'expected an origin such as "https://chat.example.org", or "*", found {shown(item.text)}'
            problems.add(item.line, path, text)
        origins[origin] = None
    cors.finish()
    return tuple(origins)


def _body_bytes(section: Section) -> int:
    size = section.size_bytes("maxBody", HTTP_BODY_BYTES)
    if not HTTP_BODY_LEAST_BYTES <= size <= HTTP_BODIES_HELD_BYTES:
        section.wrong("maxBody", "a size from 1KiB to 1GiB", section.node("maxBody"))
    return size


def _ignore_paths(section: Section, problems: Problems) -> tuple[str, ...]:
    upstream = section.below("upstream")
    if upstream is None:
        return ()
    patterns = []
    for item, path in upstream.texts("ignorePaths"):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")  # of [[:alpha:]] and its like Python only warns
                re.compile(item.text)
        except (re.error, OverflowError, RecursionError, Warning) as error:
            problems.add(item.line, path, f"expected a regular expression, found {shown(item.text)}: {error}")
        patterns.append(item.text)
    upstream.finish()
    return tuple(patterns)
