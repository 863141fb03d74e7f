"""What systemd is told of the daemon, if it wants to know: sd_notify's protocol, a datagram for each message.

    READY=1      requests are served           STATUS=…     what it does, for `systemctl status`
    RELOADING=1  until the next READY=1        WATCHDOG=1   it makes progress
    STOPPING=1   it ends                       EXTEND_TIMEOUT_USEC=…  it is ending, and needs that much longer

The protocol is four lines of code; a library would bring no more than these.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress

import trio

from daemon.driver import Driver
from daemon.limits import BEAT_S, RESTART_WATCHDOG_S, STOP_EXTENSION_S
from daemon.readiness import Unready
from statemachines.request import RequestState
from statemachines.runner import RunnerState
from statemachines.state import State

US = 1_000_000
"""Microseconds in a second."""


class Notifier:
    """Tells systemd; nobody, where there is no $NOTIFY_SOCKET. A message that cannot be sent is dropped: none
    of them is worth waiting for."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        path = environ.get("NOTIFY_SOCKET", "")
        self._address = "\0" + path[1:] if path.startswith("@") else path
        self._status = ""
        self.watchdog_us = _watchdog_us(environ)
        """Without a sign of progress for this long, systemd kills the daemon; 0: it does not."""

    @property
    def wanted(self) -> bool:
        """Somebody listens."""
        return bool(self._address)

    def tell(self, **fields: str | int) -> None:
        """One message."""
        if self._address:
            text = "\n".join(f"{name}={value}" for name, value in fields.items())
            with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                sock.setblocking(False)
                sock.sendto(text.encode("utf-8", "replace"), self._address)

    def status(self, text: str) -> None:
        """What the daemon does, in a line; told again only when it has changed."""
        if text != self._status:
            self._status = text
            self.tell(STATUS=" ".join(text.split()))

    @contextmanager
    def reloading(self) -> Iterator[None]:
        """While the configuration is read again."""
        self.tell(RELOADING=1, MONOTONIC_USEC=time.monotonic_ns() // 1000)
        try:
            yield
        finally:
            self.tell(READY=1)

    def restarting(self) -> None:
        """The program is about to be started again in place: until it has read its log, nobody feeds the
        watchdog."""
        self.tell(RELOADING=1, MONOTONIC_USEC=time.monotonic_ns() // 1000, STATUS="starting again in place")
        if self.watchdog_us:
            self.tell(WATCHDOG=1, WATCHDOG_USEC=int(RESTART_WATCHDOG_S * US))

    def restarted(self) -> None:
        """The log has been read: the watchdog is what the unit says, from now on."""
        if self.watchdog_us:
            self.tell(WATCHDOG=1, WATCHDOG_USEC=self.watchdog_us)


def _watchdog_us(environ: Mapping[str, str]) -> int:
    """What the unit's WatchdogSec= is, if it is meant for this process."""
    if environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return 0
    text = environ.get("WATCHDOG_USEC", "")
    return int(text) if text.isascii() and text.isdigit() else 0


class Pulse:
    """Tells systemd now and then how the daemon is, and feeds its watchdog while core and log make progress.

    The core does if this task gets its turn, no step has failed and no deadline is overdue. The log does if
    it has nothing to write, or has tried since the last beat: on a full disk its tries fail, one after the
    other, and killing the daemon would make no room. A write that hangs, or whose end nobody has noticed, is
    no try.
    """

    def __init__(self, notifier: Notifier, driver: Driver) -> None:
        self._notifier = notifier
        self._driver = driver
        self._tries = -1
        self._stopping = False
        self.stalled = ""
        """What makes no progress, as of the last beat."""

    async def run(self) -> None:
        """Beat until cancelled."""
        watchdog_s = self._notifier.watchdog_us / US
        pause_s = min(BEAT_S, watchdog_s / 3) if watchdog_s else BEAT_S
        while self._notifier.wanted:
            self.beat()
            await trio.sleep(pause_s)

    def ready(self) -> None:
        """Clients are let in."""
        self.beat()
        self._notifier.tell(READY=1)

    def beat(self) -> None:
        """Look once, and tell."""
        notifier, state, unready = self._notifier, self._driver.state, self._driver.unready()
        self.stalled = self._what_stalls(unready)
        notifier.status(f"{unready[0].message}; {summary(state)}" if unready else summary(state))
        if state.stopping and not self._stopping:
            self._stopping = True
            notifier.tell(STOPPING=1)
        if not self.stalled:
            notifier.tell(WATCHDOG=1)
            if state.stopping:
                notifier.tell(EXTEND_TIMEOUT_USEC=int(STOP_EXTENSION_S * US))

    def _what_stalls(self, unready: list[Unready]) -> str:
        tries, owed = self._driver.log_tries, self._driver.log_owed
        moved, self._tries = tries != self._tries, tries
        if owed and not moved:
            return "the event log"
        late = any(reason.reason.startswith("scheduler") for reason in unready)
        return "the scheduler" if late else ""


def summary(state: State) -> str:
    """What the daemon does, in a line: `2 runners loaded, 1 loading, 3 requests running, 1 queued`."""
    runners = state.runners.values()
    loaded = sum(runner.state in (RunnerState.ready, RunnerState.draining) for runner in runners)
    loading = sum(runner.state is RunnerState.loading for runner in runners)
    ending = len(state.runners) - loaded - loading
    running = sum(request.state is RequestState.dispatched for request in state.requests.values())
    parts = [f"{loaded} runner{'' if loaded == 1 else 's'} loaded"]
    parts += [f"{loading} loading"] if loading else []
    parts += [f"{ending} ending"] if ending else []
    parts += [f"{running} request{'' if running == 1 else 's'} running", f"{state.queued} queued"]
    return ", ".join(parts)


__all__ = ["Notifier", "Pulse", "summary"]
