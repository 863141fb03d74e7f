"""`runnerd`, with limits so small that a short life comes to them; also where it starts again in place."""

from __future__ import annotations

import sys

from daemon import keeping
from daemon.cli import runnerd
from daemon.leaving import Leaver
from events import checkpoint

SOFT_PAGES = 40
"""As WAL_SOFT_PAGES, but so few that a short life has checkpoints."""

CARRY_EVENTS = 300
"""As that of the daemon, but so few that a short life has snapshots, and prunes what lies before them."""


async def fit(self: Leaver) -> None:
    """No rehearsal of a restart: it changes nothing, and takes as long as the rest together."""


def main(arguments: list[str]) -> int:
    """Its exit code."""
    vars(checkpoint).update(WAL_SOFT_PAGES=SOFT_PAGES)
    keeping.Keeping.__init__.__defaults__ = (CARRY_EVENTS,)
    vars(keeping).update(CARRY_PAUSE_S=0.0)
    Leaver.rehearse = fit  # type: ignore[method-assign]
    return runnerd.main(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
