"""The daemon as a whole: what is opened in which order, and how it ends.

Start: the address is taken, but nobody can connect yet; signals are noted; the log (and its lock), the fold,
the survivors, the first facts; what is to be preloaded; then the sockets listen, or, if they did already, are
accepted from. End: stop requested (a fact like any other), runners drained and gone, or left for the next
start; the last fact, the log closed.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Literal

import msgspec
import trio

from daemon import guardian, unit
from daemon.beside import running
from daemon.catalog import Catalog
from daemon.config.commands import Command
from daemon.config.config import Config, SpecChanged
from daemon.control.server import ControlServer
from daemon.doors import Doors
from daemon.driver import Driver
from daemon.estimates import with_estimates
from daemon.http.server import FrontDoor
from daemon.keeping import Keeping
from daemon.leaving import Leaver
from daemon.logs import Logs, Ring
from daemon.meter import MachineMeter
from daemon.notify import Notifier, Pulse
from daemon.ports import Launch
from daemon.prefetch import Prefetcher, files_of
from daemon.preload import preload, refusal
from daemon.processes.supervisor import CommandOf, Supervisor
from daemon.recovery import begin, digest_key, fold_log, serving
from daemon.reload import Reloader
from events import catalogue as c
from events.failpoints import reach
from events.limits import GUARDIAN_LOOK_S, MS, ORPHAN_GRACE_S, STOP_LOG_MS, WATCHERS_S
from events.store import EventStore, open_store
from events.witness import boot_id
from events.words import refused
from statemachines.scheduler import Scheduler
from statemachines.state import State

log = logging.getLogger("runnerd")


class Places(msgspec.Struct, frozen=True):
    """Where a daemon lives: its log, its state directory, its sockets."""

    log: Path
    control: Path
    host: str
    port: int
    group: str = ""
    """Whose members may use the control socket; "": the daemon's own."""

    @property
    def state_dir(self) -> Path:
        """Beside the log: runners' output, their sockets, the digest key."""
        return self.log.parent


class StopFailed(Exception):
    """The stop could not be logged; the runners were ended all the same, unless they were to stay."""


class Options(msgspec.Struct, frozen=True):
    """How to start."""

    lazy: bool = False
    """Open the doors at once; preloads go on behind them, and one that fails is a warning."""
    memcheck: bool = True
    """Refuse to start where what is to be preloaded cannot be loaded together."""
    ring: Ring = msgspec.field(default_factory=Ring)
    """The daemon's own messages, for those who ask for them."""
    insecure: bool = False
    """Listen beyond this machine although there are no keys."""


async def serve(config: Config, places: Places, options: Options, doors: Doors) -> None:
    """Run until stopped; `doors.kept` then: to be started again in place. Raises LogError and its kin,
    StepFailed, OSError (a socket that cannot be bound), StartRefused, PreloadFailed."""
    places.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    if doors.again:
        reach("again.after")
    with doors:
        doors.open_front(places.host, places.port)
        config = await with_estimates(config)
        mortal = _ends_with_terminal()
        with trio.open_signal_receiver(*SIGNALS) as signals:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)  # what came while a restart went on
            await _recover_and_run(config, places, options, doors, _heard(signals, mortal))
            if doors.kept:
                _keep_signals()


async def _recover_and_run(
    config: Config, places: Places, options: Options, doors: Doors, signals: AsyncIterator[int]
) -> None:
    notifier = Notifier(os.environ)
    lock, doors.lock = doors.lock, None
    async with open_store(places.log, durability=config.durability, lock=lock) as store:
        notifier.status(f"reading the log {places.log}")
        recovered = await trio.to_thread.run_sync(fold_log, places.log)
        notifier.restarted()
        driver = Driver(store, Scheduler(recovered.state), recovered.clock, places.log)
        catalog, key = Catalog(config, recovered.state), digest_key(places.state_dir)
        async with _machinery(driver, partial(command, catalog, key), places, store):
            notifier.status("looking for the runners of the last start")
            await begin(driver, store, config.view(key), places.log, config.profile)
            reloader = Reloader(driver, catalog, key, host=places.host, insecure=options.insecure)
            reloader.around = notifier.reloading
            keeping = Keeping(
                driver, store, places.log, recovered.carried_seq, lambda: catalog.config.retention
            )
            async with running(driver.run, keeping.run):
                run = _Run(driver, catalog, reloader, places, options)
                await run.run(doors, signals, store.log_id, notifier)
                doors.lock = store.keep_lock() if doors.kept else None


class _Run:
    """A daemon that has recovered, until it is stopped."""

    def __init__(
        self, driver: Driver, catalog: Catalog, reloader: Reloader, places: Places, options: Options
    ) -> None:
        self._driver = driver
        self._catalog = catalog
        self._reloader = reloader
        self._places = places
        self._options = options
        self._leaver = Leaver(driver, catalog.config.file, insecure=options.insecure)
        self._failure: Exception | None = None
        """Why it does not start."""
        self._lazy = options.lazy or serving(driver.state)
        """Whether the doors open before the preloads: who has survived has clients, who wait."""
        self._control: ControlServer | None = None

    async def run(self, doors: Doors, signals: AsyncIterator[int], log_id: str, notifier: Notifier) -> None:
        """Everything, from the first signal that is heeded to the last fact. Raises what `serve` does."""
        driver, leaver, path = self._driver, self._leaver, str(self._places.log)
        async with trio.open_nursery() as nursery:
            pulse = Pulse(notifier, driver)
            nursery.start_soon(pulse.run)
            nursery.start_soon(_signals, driver, self._reloader, leaver, signals)
            nursery.start_soon(leaver.run)
            nursery.start_soon(self._until_stopped, nursery.cancel_scope, doors)
            if self._options.memcheck:
                self._failure = refusal(driver, self._catalog.config.preload, lazy=self._lazy)
            if self._failure is not None:
                driver.submit(c.StopRequested("leave", "memory check"))
                await trio.sleep_forever()
            with doors.control(self._places.control, self._places.group):
                guardian.start(path, log_id, ORPHAN_GRACE_S)
                nursery.start_soon(stay_guarded, path, log_id)
                await self._load_and_open(doors, nursery, pulse)
        if driver.state.stopping != "leave":
            guardian.stop(path)
        if self._failure is not None:
            raise self._failure
        if doors.kept:
            notifier.restarting()

    async def _until_stopped(self, scope: trio.CancelScope, doors: Doors) -> None:
        """Wait for a requested stop to be done, log the last fact, and end the rest."""
        state = self._driver.state
        while await self._stop() and state.stopping != "leave":
            log.info("the runners are not left after all")  # another stop came while the last fact was told
        doors.kept = self._leaver.again and state.stopping == "leave"
        scope.cancel()

    async def _stop(self) -> bool:
        """What is said above, once. Returns whether the runners are left."""
        driver = self._driver
        async with trio.open_nursery() as nursery:
            nursery.start_soon(give_up, driver)
            left = await stop_done(driver)
            reach("stop.done")
            driver.submit(c.DaemonStopped())
            await driver.durable(driver.state.seq)
            reach("stop.after")
            nursery.cancel_scope.cancel()
        if self._control is not None:
            with trio.move_on_after(WATCHERS_S):
                await self._control.all_told(driver.state.seq)
        return left

    async def _load_and_open(self, doors: Doors, nursery: trio.Nursery, pulse: Pulse) -> None:
        """Preload, then let clients in, until it is stopped; or behind their backs, if it is to be lazy."""
        driver, models = self._driver, self._catalog.config.preload
        if self._lazy:
            nursery.start_soon(self._load_behind, models, pulse)
        else:
            self._failure = await preload(driver, models, lazy=False)
        if self._failure is not None:
            driver.submit(c.StopRequested("now", "preload"))
        elif not (driver.state.stopping or self._leaver.leaving):
            await self._open_doors(doors, pulse)
        await trio.sleep_forever()

    async def _load_behind(self, models: Sequence[str], pulse: Pulse) -> None:
        """Preload while clients are served. That ends the start; `--lazy` does not wait for it."""
        await preload(self._driver, models, lazy=True)
        if not (self._options.lazy or self._driver.state.stopping):
            pulse.ready()

    async def _open_doors(self, doors: Doors, pulse: Pulse) -> None:
        """Serve HTTP and the control socket, and reload; what asked for that before is heard now."""
        driver, catalog = self._driver, self._catalog
        logs = Logs(self._options.ring, driver.outputs)
        self._control = ControlServer(driver, catalog, self._reloader, logs, self._leaver)
        door = FrontDoor(driver, catalog, logs)
        driver.moved, driver.leave = door.moved, door.leave
        driver.connections = partial(connections, door, self._control)
        driver.mistakes = partial(mistakes, door, self._control)
        self._leaver.pause, self._leaver.expecting = door.pause, lambda: door.expecting
        doors.listen()
        log.info("listening on %s, control socket %s", doors.where(), self._places.control)
        if self._options.lazy or not self._lazy:
            pulse.ready()
        async with trio.open_nursery() as nursery:
            ahead = Prefetcher(lambda model: files_of(catalog.config.models, model))
            driver.prefetch = lambda model: ahead.begin(model) if catalog.config.prefetch else None
            nursery.start_soon(ahead.run)
            nursery.start_soon(self._reloader.run)
            nursery.start_soon(door.serve, doors.fronts)
            nursery.start_soon(self._control.serve, doors.control_socket)


def connections(door: FrontDoor, control: ControlServer) -> dict[str, int]:
    """Clients connected now, by the door that they came in by."""
    return {"http": door.connections, "control": control.connections}


def mistakes(door: FrontDoor, control: ControlServer) -> dict[str, int]:
    """Connections that a mistake in runnerd has ended, by the door that they came in by."""
    return {"http": door.mistakes, "control": control.mistakes}


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


def command(catalog: Catalog, key: bytes, model: str, launch: Launch, socket_path: str) -> Command:
    """What starts a runner. Raises SpecChanged where the file says another thing than when it was decided."""
    spec = catalog.config.models.get(model)
    if spec is None or spec.digest(key) != launch.digest:
        raise SpecChanged(f"the configuration of {model} has changed since this load was decided")
    return catalog.config.command(model, launch, socket_path)


SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP)


async def stay_guarded(path: str, log_id: str) -> None:
    """Start another guardian where there is none any more."""
    while True:
        await trio.sleep(GUARDIAN_LOOK_S)
        if not guardian.is_held(f"{path}.guardian"):
            log.warning("the guardian of the runners has gone; another is started")
            try:
                guardian.start(path, log_id, ORPHAN_GRACE_S)
            except OSError as error:  # what killed the last one, a lack of memory, is no end of the daemon
                log.warning("no guardian could be started: %s", refused(error))


async def _signals(driver: Driver, reloader: Reloader, leaver: Leaver, received: AsyncIterator[int]) -> None:
    """SIGTERM and SIGINT drain; a second one, or SIGQUIT, stops at once. A SIGTERM by which systemd restarts
    the daemon leaves the runners. SIGHUP reloads the configuration. The guardian's work is not ours."""
    async for number in received:
        if number == signal.SIGHUP:
            log.info("SIGHUP: reading the configuration again")
            reloader.ask("SIGHUP")
            continue
        again = driver.state.stopping in ("drain", "now")
        if number == signal.SIGTERM and not again and await _restarts(leaver):
            log.info("SIGTERM: systemd restarts the daemon; the runners stay")
            leaver.ask("SIGTERM, to restart")
            continue
        how: Literal["drain", "now"] = "now" if again or number == signal.SIGQUIT else "drain"
        name = signal.Signals(number).name
        log.info("%s: stopping (%s)", name, "at once" if how == "now" else "draining")
        driver.submit(c.StopRequested(how, name))


def _keep_signals() -> None:
    """Leave the signals that come from now on to the next program in this process: they are pending while
    every thread blocks them. So do this one and each that trio keeps idle; new ones have it from this one."""
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    others = threading.active_count()
    everybody = threading.Barrier(1 + others)  # none ends before all have begun: so none is given it twice

    def block() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        everybody.wait()

    for _ in range(others):
        trio.lowlevel.start_thread_soon(block, lambda _: None)
    everybody.wait()


async def _restarts(leaver: Leaver) -> bool:
    """Whether a SIGTERM is systemd's, to restart the daemon. One that comes too late, because the program
    starts again in place meanwhile, is for the next one."""
    try:
        return await unit.restarts()
    except trio.Cancelled:
        if leaver.again:
            signal.raise_signal(signal.SIGTERM)
        raise


async def _heard(received: AsyncIterator[int], mortal: bool) -> AsyncIterator[int]:
    """Signals; for the SIGHUP that a terminal sends when it is closed, where that is to end the daemon,
    SIGTERM, once: the terminal's shell may send another."""
    async for number in received:
        if number == signal.SIGHUP and mortal and not _has_terminal():
            log.info("the terminal has been closed")
            mortal = False
            yield signal.SIGTERM
        else:
            yield number


def _ends_with_terminal() -> bool:
    """Whether closing the terminal is to end the daemon: it has one, and was not started by nohup."""
    return _has_terminal() and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN


def _has_terminal() -> bool:
    """Whether this process has a controlling terminal, which closing its window takes away."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY))
    except OSError:
        return False
    return True


def _all_gone(state: State) -> bool:
    """Nothing is left, but for processes that cannot be ended: to wait for these would be for ever."""
    return not state.requests and all(runner.stuck for runner in state.runners.values())


async def stop_done(driver: Driver) -> bool:
    """Wait until a stop has been asked for, and everything has ended that is to. Returns whether that is
    nothing: the runners are left."""
    await driver.stopping()
    reach("stop.before")
    await driver.durable(driver.state.seq)
    leave = driver.state.stopping == "leave"
    await driver.until(lambda: leave or _all_gone(driver.state))
    return leave


async def give_up(driver: Driver) -> None:
    """A stop waits for the log for STOP_LOG_MS, then the runners are ended without it, unless they are to
    stay. Raises StopFailed."""
    await driver.stopping()
    while (left_ms := STOP_LOG_MS - driver.log_blocked_ns // MS) > 0:
        await trio.sleep(left_ms / 1000)
    failure = f"the stop could not be logged: {driver.log_blocked}. The runners were"
    driver.abandon_log()
    if driver.state.stopping == "leave":
        raise StopFailed(f"{failure} left, and the next start adopts them")
    for runner in list(driver.state.runners):
        driver.machinery.kill(runner)
    raise StopFailed(f"{failure} ended all the same")
