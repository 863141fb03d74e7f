"""Ports for runners that tests start: no two tests that run at once are given the same ones."""

from __future__ import annotations

import os
import random

FIRST, BEYOND = 12_000, 30_000
"""Below those that the machine gives to outgoing connections."""

RANGE = 100
"""More than one daemon of any test uses."""

WORKERS = 4
"""As many tests run at once (`make test`)."""

_EACH = (BEYOND - FIRST) // WORKERS


def some_ports() -> int:
    """The first of RANGE ports. Each worker of pytest-xdist has a part of its own, and takes from that by
    chance: others may run the tests on this machine, too."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % WORKERS
    return FIRST + worker * _EACH + random.randrange(0, _EACH, RANGE)
