"""The daemon's journal: one line for what a person wants to know of, as it becomes durable.

Requests are not in it (the log has them); loads, ends, failures, claims and alarms are.
"""

from __future__ import annotations

import logging

import msgspec

from daemon.cli.describe import describe
from events import catalogue as c
from events.catalogue import Event

log = logging.getLogger("runnerd")

LEVELS: dict[type, int] = {
    c.RunnerLoad: logging.INFO,
    c.RunnerDrain: logging.INFO,
    c.RunnerStop: logging.INFO,
    c.RunnerKill: logging.WARNING,
    c.RunnerStuck: logging.ERROR,
    c.RunnerUnloaded: logging.INFO,
    c.RunnerFailed: logging.WARNING,
    c.RunnerLost: logging.WARNING,
    c.ModelCooling: logging.WARNING,
    c.ModelCrowded: logging.WARNING,
    c.ModelDismissed: logging.WARNING,
    c.ClaimMade: logging.INFO,
    c.LeaseRefused: logging.WARNING,
    c.LeaseRevoked: logging.INFO,
    c.RunnerLeased: logging.INFO,
    c.ProbeAnswered: logging.INFO,
    c.LogResumed: logging.WARNING,
    c.LogTailLost: logging.WARNING,
    c.BreachRecorded: logging.ERROR,
    c.ConfigChanged: logging.INFO,
    c.StopRequested: logging.INFO,
    c.PinRequested: logging.INFO,
    c.ProfileRequested: logging.INFO,
}


def write(event: Event) -> None:
    """Write an event's line, if it deserves one."""
    level = LEVELS.get(type(event.body))
    if level is not None:
        body = msgspec.to_builtins(event.body)
        log.log(level, "#%d %s", event.seq, describe(body.pop("type"), event.subject, body))
