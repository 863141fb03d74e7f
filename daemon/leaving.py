"""Ending without the runners, because the daemon is to start again: by systemd, or in place.

Who is served may end first, for a while; nobody else is let in meanwhile: they wait in the listening sockets'
queues, for the next start to serve them. In place means in the same process, with the same sockets.
"""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import trio

from daemon.driver import Driver
from daemon.limits import REHEARSAL_S, RESTART_DRAIN_S, SETTLE_S
from events import catalogue as c
from events.failpoints import reach
from events.limits import S
from statemachines.parts import Request
from statemachines.request import RequestState
from statemachines.runner import RunnerState
from statemachines.state import State

log = logging.getLogger("runnerd")


class Unfit(Exception):
    """The program would not start again: it stays as it is."""


class Leaver:
    """Ends the daemon, and leaves its runners. `config`: the file that the next start is given."""

    def __init__(self, driver: Driver, config: Path, *, insecure: bool = False) -> None:
        self._driver = driver
        self._check = ["check", "--config", str(config), *(["--insecure-listen"] if insecure else [])]
        self._asked = trio.Event()
        self._now = False
        self._patience = trio.CancelScope()
        self._by = ""
        self.again = False
        """The program is to be started again in place."""
        self.due_t = 0
        """Until when (scheduler time) those who are served may go on."""
        self.pause: Callable[[], None] = lambda: None
        """Let nobody else in."""
        self.expecting: Callable[[], bool] = lambda: False
        """Whether somebody who was let in may be about to ask for something."""

    @property
    def leaving(self) -> bool:
        """It has been asked for."""
        return self._asked.is_set()

    def ask(self, by: str, *, again: bool = False, now: bool = False) -> None:
        """Leave; at once if it is to be `now`, or has been asked for before. In place only if nobody asks for
        anything else: systemd waits for the end of the process."""
        self.again = again and (self.again or not self.leaving)
        if now or self.leaving:
            self._now = True
            self._patience.cancel()
        if not self.leaving:
            self._by = by
            self.due_t = self._driver.now() + patience_ns(self._driver.state)
            self._asked.set()

    async def run(self) -> None:
        """Wait to be asked; then until nobody is served any more, or for long enough. Then stop."""
        await self._asked.wait()
        driver = self._driver
        self.pause()
        reach("leave.before")
        with trio.move_on_after(SETTLE_S):
            while self.expecting():
                await trio.sleep(SETTLE_S / 50)
        waiting = served(driver.state)
        if waiting:
            log.info("requests that run may end first: %d", waiting)
        with trio.move_on_after(max(0, self.due_t - driver.now()) / S) as self._patience:
            await driver.until(self._over)
        if driver.state.stopping:  # something else has been asked for meanwhile
            self.again = False
        else:
            driver.submit(c.StopRequested("leave", self._by))

    def _over(self) -> bool:
        return bool(self._driver.state.stopping) or self._now or not served(self._driver.state)

    async def rehearse(self) -> None:
        """Whether the program that is on the disk now starts, and likes the configuration. Raises Unfit."""
        argv = [*_program(), *self._check]
        with trio.move_on_after(REHEARSAL_S):
            done = await trio.run_process(
                argv, stdin=subprocess.DEVNULL, capture_stdout=True, capture_stderr=True, check=False
            )
            if done.returncode == 0:
                return
            raise Unfit(done.stderr.decode("utf-8", "replace").strip() or f"it exits with {done.returncode}")
        raise Unfit(f"it does not check its configuration within {REHEARSAL_S:.0f} s")


def served(state: State) -> int:
    """How many requests a restart would cut. Leases it would not, but for those that are waited for, or whose
    runner is on its way out: the others outlive the daemon, too."""
    return len(_served(state))


def patience_ns(state: State) -> int:
    """For how long a restart waits for those: the longest unloadTimeout of their models."""
    views = [state.config.models.get(request.model) for request in _served(state)]
    return max((view.unload_ns for view in views if view is not None), default=int(RESTART_DRAIN_S * S))


def _served(state: State) -> list[Request]:
    requests = state.requests.values()
    return [request for request in requests if request.kind != c.LEASE or _is_cut(state, request)]


def _is_cut(state: State, lease: Request) -> bool:
    """Whether a lease ends with the daemon: a start stops what drains, whatever its holder was promised."""
    if lease.state is RequestState.dispatched:
        return state.runners[lease.runner].state is not RunnerState.ready
    return lease.state is RequestState.queued


def _program() -> Sequence[str]:
    """How this program was started, up to its arguments."""
    rest = sys.orig_argv[1:]
    return [sys.executable, *rest[: len(rest) - len(sys.argv) + 1]]


__all__ = ["Leaver", "Unfit", "patience_ns", "served"]
