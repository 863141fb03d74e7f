"""The daemon as a whole: what is opened in which order, and how it ends.

Start: the log (and its lock), the fold, the survivors, the first facts, then the sockets. End: stop requested
(a fact like any other), runners drained and gone, the last fact, the log closed.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Literal

import msgspec
import trio

from daemon import guardian
from daemon.catalog import Catalog
from daemon.config.commands import Command
from daemon.config.config import Config, SpecChanged
from daemon.control.server import ControlServer, listen
from daemon.driver import Driver
from daemon.http.server import FrontDoor
from daemon.meter import MachineMeter
from daemon.ports import Launch
from daemon.processes.supervisor import CommandOf, Supervisor
from daemon.recovery import begin, digest_key, fold_log
from events import catalogue as c
from events.limits import HTTP_BACKLOG, ORPHAN_GRACE_S, STOP_LOG_MS
from events.store import EventStore, open_store
from events.witness import boot_id
from statemachines.scheduler import Scheduler

log = logging.getLogger("runnerd")


class Places(msgspec.Struct, frozen=True):
    """Where a daemon lives: its log, its state directory, its sockets."""

    log: Path
    control: Path
    host: str
    port: int

    @property
    def state_dir(self) -> Path:
        """Beside the log: runners' output, their sockets, the digest key."""
        return self.log.parent


class StopFailed(Exception):
    """The stop could not be logged; the runners were ended all the same."""


async def serve(config: Config, places: Places) -> None:
    """Run until stopped. Raises LogError and its kin, StepFailed, OSError (a socket that cannot be bound)."""
    places.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    listener = open_listener(places.host, places.port)
    async with open_store(places.log, durability=config.durability) as store:
        state, clock = await trio.to_thread.run_sync(fold_log, places.log)
        driver = Driver(store, Scheduler(state), clock, places.log)
        view = config.view(digest_key(places.state_dir))
        async with _machinery(driver, partial(command, config, view), places, store):
            await begin(driver, store, view, places.log)
            async with driver.run():
                await _serve_until_stopped(driver, config, places, store, listener)


async def _serve_until_stopped(
    driver: Driver, config: Config, places: Places, store: EventStore, listener: socket.socket
) -> None:
    guardian.start(str(places.log), store.log_id, ORPHAN_GRACE_S)
    control = listen(places.control)
    await _open_doors(driver, Catalog(config), places, listener, control)
    if driver.state.stopping != "leave":
        guardian.stop(str(places.log))


async def _open_doors(
    driver: Driver, catalog: Catalog, places: Places, listener: socket.socket, control: socket.socket
) -> None:
    """Serve HTTP and the control socket until a stop is done."""
    front = FrontDoor(driver, catalog)
    driver.moved, driver.leave = front.moved, front.leave
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_until_stopped, driver, nursery.cancel_scope)
        nursery.start_soon(_signals, driver)
        nursery.start_soon(front.serve, [listener])
        nursery.start_soon(ControlServer(driver, catalog).serve, control)
        host, port = listener.getsockname()[:2]
        log.info("listening on http://%s:%d, control socket %s", host, port, places.control)
    places.control.unlink(missing_ok=True)
    listener.close()
    control.close()


def open_listener(host: str, port: int) -> socket.socket:
    """The front door's listening socket. Raises OSError, saying where."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=HTTP_BACKLOG)
    except OSError as error:
        raise OSError(error.errno, f"cannot listen on {host}:{port}: {error.strerror}") from None


@asynccontextmanager
async def _machinery(
    driver: Driver, command_of: CommandOf, places: Places, store: EventStore
) -> AsyncIterator[None]:
    """Processes and meters, wired to the driver."""
    driver.meter = MachineMeter()
    supervisor = Supervisor(driver.report, command_of, places.state_dir, store.log_id, boot_id())
    async with supervisor:
        driver.machinery = supervisor
        yield


def command(config: Config, view: c.ConfigView, model: str, launch: Launch, socket_path: str) -> Command:
    """What starts a runner. Raises SpecChanged where the file says another thing than when it was decided."""
    known = view.models.get(model)
    if known is None or known.digest != launch.digest:
        raise SpecChanged(f"the configuration of {model} has changed since this load was decided")
    return config.command(model, launch, socket_path)


async def _signals(driver: Driver) -> None:
    """SIGTERM and SIGINT drain; a second one, or SIGQUIT, stops at once. The guardian's work is not ours."""
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGQUIT) as received:
        async for number in received:
            again = driver.state.stopping in ("drain", "now")
            how: Literal["drain", "now"] = "now" if again or number == signal.SIGQUIT else "drain"
            name = signal.Signals(number).name
            log.info("%s: stopping (%s)", name, "at once" if how == "now" else "draining")
            driver.submit(c.StopRequested(how, f"{name}, pid {os.getpid()}"))


async def _until_stopped(driver: Driver, scope: trio.CancelScope) -> None:
    """Wait for a requested stop to be done, log the last fact, and end the rest."""
    await driver.until(lambda: bool(driver.state.stopping))
    with trio.move_on_after(STOP_LOG_MS / 1000) as late:
        await driver.durable(driver.state.seq)
    if late.cancelled_caught:
        for runner in list(driver.state.runners):
            driver.machinery.kill(runner)
        raise StopFailed("the stop could not be logged: the runners were ended without it")
    leave = driver.state.stopping == "leave"
    await driver.until(lambda: leave or not (driver.state.runners or driver.state.requests))
    driver.submit(c.DaemonStopped())
    await driver.durable(driver.state.seq)
    scope.cancel()
