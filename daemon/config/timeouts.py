"""llama-swap's `timeouts` of a model or a peer: of its transport's, those that have a meaning here."""

from __future__ import annotations

import msgspec

from daemon.config.fields import Section
from events.limits import S

KEYS = ("connect", "keepalive", "responseHeader", "tlsHandshake", "expectContinue", "idleConn")


class Timeouts(msgspec.Struct, frozen=True):
    """Of an exchange, in nanoseconds; 0: no limit."""

    connect_ns: int = 30 * S
    first_byte_ns: int = 0
    """Until the head of an answer has come (`responseHeader`)."""


def read_timeouts(section: Section, default: Timeouts, used: tuple[str, ...], why: str) -> Timeouts:
    """`timeouts` of a section. Those that are not `used` are warned of, with `why` they mean nothing."""
    found = section.below("timeouts")
    if found is None:
        return default
    values = {key: found.duration_ns(key, 0) for key in KEYS}
    idle = [key for key in KEYS if key not in used and found.node(key) is not None]
    if idle:
        section.warn("timeouts", f"{', '.join(idle)} has no effect: {why}")
    found.finish()
    return Timeouts(
        connect_ns=values["connect"] if found.node("connect") else default.connect_ns,
        first_byte_ns=values["responseHeader"] if found.node("responseHeader") else default.first_byte_ns,
    )
