"""Durations and sizes as people write them, as integers; and back."""

from __future__ import annotations

import re
from decimal import Decimal

from events.limits import CONFIG_DURATION_MAX_S, CONFIG_SIZE_MAX_BYTES, S

_DURATION_UNITS = {"ns": 1, "us": 1_000, "ms": 1_000_000, "s": S, "m": 60 * S, "h": 3600 * S, "d": 86400 * S}
_DURATION_PART = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,9})?)(ns|us|ms|s|m|h|d)")
_SIZE_UNITS = {"B": 1} | {
    f"{letter}{suffix}": base**power
    for power, letter in enumerate("KMGT", start=1)
    for suffix, base in (("iB", 1024), ("B", 1000))
}
_SIZE = re.compile(r"([0-9]{1,18}(?:\.[0-9]{1,9})?) ?([KMGT]?i?B)")


def duration_ns(value: object) -> int | None:
    """Nanoseconds of a whole number of seconds (60) or of text with units ("90s", "1h30m", "500ms").

    None: not a duration, or one above CONFIG_DURATION_MAX_S.
    """
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        total = value * S
    elif isinstance(value, str) and value and re.fullmatch(f"(?:{_DURATION_PART.pattern})+", value):
        parts = _DURATION_PART.findall(value)
        total = sum(int(Decimal(amount) * _DURATION_UNITS[unit]) for amount, unit in parts)
    else:
        return None
    return total if 0 <= total <= CONFIG_DURATION_MAX_S * S else None


def size_bytes(value: object) -> int | None:
    """Bytes of a whole number or of text with a unit ("6GiB", "512MiB", "1.5GB").

    None: not a size, or one above CONFIG_SIZE_MAX_BYTES.
    """
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        total = value
    elif isinstance(value, str) and (match := _SIZE.fullmatch(value)) and match[2] in _SIZE_UNITS:
        total = int(Decimal(match[1]) * _SIZE_UNITS[match[2]])
    else:
        return None
    return total if 0 <= total <= CONFIG_SIZE_MAX_BYTES else None


def show_size(size: int) -> str:
    """`6 GiB`, `1.5 GiB`, `200 MiB`, `17 B`: at most one decimal."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        factor = _SIZE_UNITS[unit]
        if size >= factor:
            return f"{size / factor:.1f}".removesuffix(".0") + f" {unit}"
    return f"{size} B"


def show_duration(duration: int) -> str:
    """`90 s`, `500 ms`, `10 min`, `2 h`, `7 d`: in the largest unit of which it is a whole number."""
    for unit, factor in (("d", 86400 * S), ("h", 3600 * S), ("min", 60 * S)):
        if duration and duration % factor == 0:
            return f"{duration // factor} {unit}"
    return f"{duration // S} s" if duration % S == 0 else f"{duration // 1_000_000} ms"
