"""The front door's limits as one value, so that a test can have smaller ones."""

from __future__ import annotations

import msgspec

from events import limits


class Limits(msgspec.Struct, frozen=True):
    """`events.limits` gives the reasons. Sizes in bytes, durations in seconds."""

    connections: int = limits.HTTP_CONNECTIONS
    head_bytes: int = limits.HTTP_HEAD_BYTES
    headers: int = limits.HTTP_HEADERS
    url_bytes: int = limits.HTTP_URL_BYTES
    body_memory_bytes: int = limits.HTTP_BODY_MEMORY_BYTES
    bodies_held_bytes: int = limits.HTTP_BODIES_HELD_BYTES
    tick_s: float = limits.HTTP_TICK_S
    head_s: float = limits.HTTP_HEAD_S
    body_s: float = limits.HTTP_BODY_S
    body_total_s: float = limits.HTTP_BODY_TOTAL_S
    idle_s: float = limits.HTTP_IDLE_S
    stall_s: float = limits.HTTP_STALL_S
    linger_s: float = limits.HTTP_LINGER_S
    upstream_idle_s: float = limits.UPSTREAM_IDLE_S
