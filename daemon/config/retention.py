"""How much of the event log is kept: the `retention` section."""

from __future__ import annotations

import msgspec

from daemon.config.fields import Section
from daemon.limits import ARCHIVE_BYTES, RETAIN_BYTES, RETAIN_LEAST_BYTES


class Retention(msgspec.Struct, frozen=True):
    """How much of the log is kept. 0: no limit."""

    size_bytes: int = RETAIN_BYTES
    age_ns: int = 0
    archive_bytes: int = ARCHIVE_BYTES
    """Of what is pruned, compressed; 0: nothing."""


def read_retention(top: Section) -> Retention:
    """The section of the file's top; its defaults where it is not there."""
    section = top.below("retention")
    if section is None:
        return Retention()
    size_bytes = section.size_bytes("size", RETAIN_BYTES)
    if 0 < size_bytes < RETAIN_LEAST_BYTES:
        section.wrong("size", "a size from 16MiB, or 0 for no limit", section.node("size"))
    found = Retention(size_bytes, section.duration_ns("age", 0), section.size_bytes("archive", ARCHIVE_BYTES))
    section.finish()
    return found
