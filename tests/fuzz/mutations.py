"""Small changes to bytes, as they happen by accident and by malice."""

from __future__ import annotations

import random
from collections.abc import Sequence


def mutated(rng: random.Random, data: bytes, tokens: Sequence[bytes], changes: int = 4) -> bytes:
    """A few changes: bytes, tokens that mean something here, parts that are cut, doubled or moved."""
    for _ in range(rng.randint(1, changes)):
        at = rng.randrange(len(data) + 1)
        to = min(len(data), at + rng.randint(1, 24))
        match rng.randrange(6):
            case 0:
                data = data[:at] + rng.choice(tokens) + data[at:]
            case 1:
                data = data[:at] + data[to:]
            case 2:
                data = data[:at] + bytes([rng.randrange(256)]) + data[at + 1 :]
            case 3:
                data = data[:to] + data[at:]
            case 4:
                lines = data.split(b"\n")
                lines.insert(rng.randrange(len(lines) + 1), rng.choice(lines))
                data = b"\n".join(lines)
            case _:
                other = rng.randrange(len(data) + 1)
                data = data[:other] + data[at:to] + data[other:]
    return data
