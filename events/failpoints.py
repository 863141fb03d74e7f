"""Failpoints: named places where the daemon can be made to die, as if it had crashed at that very moment.

`RUNNERD_FAILPOINT=commit.after:3` ends the process by SIGKILL when it comes to that place for the third time.
For tests only (`make crash`). A process that was started without it passes them for next to nothing.
"""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable, MutableMapping
from itertools import count

VARIABLE = "RUNNERD_FAILPOINT"

NAMES = (
    "migration.before", "migration.after",  # the last statement of one; it is committed
    "recovery.before", "recovery.after",  # survivors are known, nothing is logged; the first facts are in
    "append.before", "append.after",  # a step is folded, but not queued; it is queued
    "commit.before", "commit.after",  # a group of steps is taken; it is durable, and nobody knows yet
    "checkpoint.before", "checkpoint.after",
    "witness.before", "witness.after",  # it lies ready under another name; it is in its place
    "spawn.before",  # the load is durable
    "spawn.forked",  # the gate waits, and only we know of it
    "spawn.recorded",  # its identity is durable
    "spawn.after",  # the gate has been opened
    "signal.before", "signal.after",
    "dispatch.before", "dispatch.after",  # the decision is durable; its connection has been told
    "dispatch.sent",  # the runner has the request
    "answer.before", "answer.after",  # a runner's answer begins; the client has all of it, the log nothing
    "reply.before", "reply.after",  # an operator's answer is durable; he has it
    "reload.before", "reload.after",
    "snapshot.before", "snapshot.after",  # around each part of one
    "prune.before", "prune.after",  # the last statement of it; it is committed
    "leave.before",  # a restart has been asked for: nobody else is let in, and nothing of it is logged
    "stop.before",  # a stop has been asked for
    "stop.done",  # everything has ended that was to
    "stop.after",  # the last fact is durable
    "again.before",  # the log is closed, and the doors lie ready for the next program in this process
    "again.after",  # that has begun, and has opened nothing
)  # fmt: skip
"""All of them. A test compares this with the code, and another dies at each."""

_armed = ""
_passages = count(1)


class NoSuchFailpoint(ValueError):
    """The environment names a failpoint that there is not."""


def arm(environ: MutableMapping[str, str]) -> str:
    """Arm what the environment asks for, and take it out of there: no runner is to inherit it. Returns the
    name, "" for none. Raises NoSuchFailpoint."""
    global _armed, _passages
    given = environ.pop(VARIABLE, "")
    name, _, times = given.partition(":")
    if given and (name not in NAMES or not re.fullmatch("[1-9][0-9]*", times or "1")):
        known = ", ".join(NAMES)
        raise NoSuchFailpoint(f"{VARIABLE}: expected NAME or NAME:COUNT, where NAME is one of {known}")
    _armed, _passages = name, count(1 - int(times or "1"))
    return name


def rest() -> dict[str, str]:
    """What the next program in this process must find in its environment, to die where this one has not. Call
    it once."""
    return {VARIABLE: f"{_armed}:{1 - next(_passages)}"} if _armed else {}


def _reach(name: str) -> None:
    """The place is passed: die, if it is the one, and often enough."""
    if name == _armed and next(_passages) == 0:
        os.kill(os.getpid(), signal.SIGKILL)


reach: Callable[[str], object] = _reach if VARIABLE in os.environ else bool
"""Say that a place is passed. Nine are on each request's path: in a process that was started without the
variable this is a built-in that does nothing."""
