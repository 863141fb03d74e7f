"""What systemd is about when it sends SIGTERM: a stop of our unit, or a restart of it.

SIGTERM is the same for both; systemd's queue of jobs tells them apart. `systemctl` is asked rather than
D-Bus: it is there wherever systemd is, finds the right bus of system and user managers by itself, and an
implementation of D-Bus's encoding here would serve this one question.
"""

from __future__ import annotations

import logging
import os
import subprocess
from pathlib import Path

import trio

from daemon.limits import UNIT_ASK_S

log = logging.getLogger("runnerd")


async def restarts() -> bool:
    """Whether systemd's job is to start us again when we have ended. False also where that cannot be told."""
    if not os.environ.get("INVOCATION_ID"):
        return False
    try:
        unit, user = own_unit(Path("/proc/self/cgroup").read_text("utf-8"))
    except (OSError, ValueError):
        return False
    if not unit:
        return False
    command = ["systemctl", *(["--user"] if user else []), "--no-pager", "--no-legend", "list-jobs", unit]
    with trio.move_on_after(UNIT_ASK_S) as late:
        try:
            done = await trio.run_process(
                command, capture_stdout=True, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL, check=False
            )
        except OSError as error:
            log.warning("systemd cannot be asked whether this is a restart: %s", error)
            return False
        return job_of(unit, done.stdout.decode("utf-8", "replace")) == "restart"
    if late.cancelled_caught:
        log.warning("systemd does not say within %g s whether this is a restart", UNIT_ASK_S)
    return False


def own_unit(cgroup: str) -> tuple[str, bool]:
    """The service that a process is of, by its /proc/PID/cgroup, and whether a user's manager has it; "":
    it is of none."""
    for line in cgroup.splitlines():
        number, controllers, path = line.split(":", 2)
        if controllers in ("", "name=systemd") and (number == "0" or controllers):
            units = [part for part in path.split("/") if part.endswith((".service", ".scope"))]
            if units and units[-1].endswith(".service"):
                return units[-1], len(units) > 1 and units[0].startswith("user@")
    return "", False


def job_of(unit: str, jobs: str) -> str:
    """The type of a unit's job, by `systemctl list-jobs`: `1234 runnerd.service restart running`."""
    for line in jobs.splitlines():
        words = line.split()
        if len(words) >= 3 and words[1] == unit:
            return words[2]
    return ""


__all__ = ["job_of", "own_unit", "restarts"]
