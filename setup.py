"""The build: plain Python, or with RUNNERD_COMPILE=1 the hot modules compiled to C by mypyc.

Compiled or not, it is the same source, and does the same. docs/decisions/0128 says what that gains and costs.
"""

from __future__ import annotations

import os
import sys

from setuptools import Extension, setup

COMPILED = (
    "daemon/driver.py",
    "daemon/http/arrivals.py",
    "daemon/http/body.py",
    "daemon/http/connection.py",
    "daemon/http/guard.py",
    "daemon/http/head.py",
    "daemon/http/reaper.py",
    "daemon/http/relay.py",
    "daemon/http/reply.py",
    "daemon/http/sockets.py",
    "daemon/http/tls.py",
    "daemon/http/upstream.py",
    "daemon/http/wire.py",
    "daemon/tally.py",
    "daemon/tickets.py",
    "events/envelope.py",
    "events/histogram.py",
    "events/writing.py",
    "statemachines/agenda.py",
    "statemachines/bound.py",
    "statemachines/claims.py",
    "statemachines/deadlines.py",
    "statemachines/decide.py",
    "statemachines/estimate.py",
    "statemachines/fold.py",
    "statemachines/fold_daemon.py",
    "statemachines/fold_requests.py",
    "statemachines/fold_runners.py",
    "statemachines/groups.py",
    "statemachines/invariants.py",
    "statemachines/leases.py",
    "statemachines/ledger.py",
    "statemachines/loading.py",
    "statemachines/memcheck.py",
    "statemachines/moves.py",
    "statemachines/policy.py",
    "statemachines/replay.py",
    "statemachines/room.py",
    "statemachines/scheduler.py",
    "statemachines/state.py",
    "statemachines/tables.py",
    "statemachines/waiting.py",
)
"""What each request and each step runs through."""

OWN_CALLS = ["-fno-semantic-interposition", "-fvisibility=hidden", "-fno-plt"]
"""Nobody replaces one of our functions from without: one calls, or takes in, another as it stands."""


def compiled() -> list[Extension]:
    """The modules that are compiled: none, unless that is asked for, and a wheel is built (for what else
    setuptools is asked, mypyc may not be there)."""
    if not os.environ.get("RUNNERD_COMPILE") or "bdist_wheel" not in sys.argv:
        return []
    from mypyc.build import mypycify

    extensions: list[Extension] = mypycify([*COMPILED], opt_level="3", debug_level="0")
    for extension in extensions:
        extension.extra_compile_args += OWN_CALLS
    return extensions


setup(ext_modules=compiled())
