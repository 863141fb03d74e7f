"""Reading the configuration again while the daemon runs: checked as a whole first, then applied in one go.

    ask ─▶ read, check, read the models' files ─▶ config.changed ─▶ what requests meet is the new one
                     (anything wrong: nothing has changed)

The fact and the exchange of the configuration happen between two of trio's checkpoints, so nobody meets the
one without the other. What was decided before and is carried out afterwards is caught by the launch spec's
digest (SpecChanged); its runner has been told to go already.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import msgspec
import trio

from daemon.catalog import Catalog
from daemon.config.config import SETTINGS, Config
from daemon.config.errors import ConfigError
from daemon.config.file import load
from daemon.driver import Driver
from daemon.estimates import with_estimates
from daemon.recovery import unlimited, use_profile
from events import catalogue as c
from events.failpoints import reach
from statemachines.parts import Runner
from statemachines.state import State

log = logging.getLogger("runnerd")

AT_START = ("listen", "control_socket", "control_group", "event_log", "durability", "preload")
"""What only a start can change: sockets and the log are open, and a reload loads nothing."""


class Going(msgspec.Struct, frozen=True):
    """A runner that goes, for its model is not what it was."""

    runner: str
    model: str


class Reloaded(msgspec.Struct, frozen=True):
    """What a reload did. Models by their ids, `settings` by their keys at the top of the file.

    `seq`: the event that has to be durable before it may be told to an operator.
    """

    added: tuple[str, ...]
    changed: tuple[str, ...]
    removed: tuple[str, ...]
    settings: tuple[str, ...]
    going: tuple[Going, ...]
    warnings: tuple[str, ...]
    seq: int


class Refused(msgspec.Struct, frozen=True):
    """Nothing was changed, though the file may be right. `reason`: log_blocked, stopping or internal."""

    reason: str
    message: str


Outcome = Reloaded | Refused | ConfigError


class Asked:
    """A reload that somebody waits for."""

    def __init__(self, by: str) -> None:
        self.by = by
        self.done = trio.Event()
        self.outcome: Outcome = Refused("internal", "it was never begun")


class Reloader:
    """Reads the file of a configuration again, one time after the other, and applies what it says."""

    def __init__(
        self, driver: Driver, catalog: Catalog, key: bytes, *, host: str = "", insecure: bool = False
    ) -> None:
        """`host`: where the daemon listens, which a new configuration must allow; `insecure`: it does."""
        self._host, self._insecure = host, insecure
        self._driver = driver
        self._catalog = catalog
        self._key = key
        self._started_with = catalog.config
        self._next: Asked | None = None
        self._wake = trio.Event()
        self.around: Callable[[], AbstractContextManager[None]] = nullcontext
        """What is told that one goes on."""

    def ask(self, by: str) -> Asked:
        """Ask for a reload. One that waits to be begun is everybody's who asks before it is: it will read
        what the file says then, and it is one at a time."""
        if self._next is None:
            self._next = Asked(by)
            self._wake.set()
        return self._next

    async def run(self) -> None:
        """Reload whenever it is asked for, until cancelled."""
        while True:
            await self._wake.wait()
            self._wake = trio.Event()
            asked, self._next = self._next, None
            if asked is not None:
                with self.around():
                    asked.outcome = await self._reload(asked.by)
                _report(asked)
                asked.done.set()

    async def _reload(self, by: str) -> Outcome:
        try:
            read = partial(load, self._catalog.config.file)
            config = await trio.to_thread.run_sync(read, abandon_on_cancel=True)
            config.check_exposure(self._host, insecure=self._insecure)
            config = await with_estimates(config)
        except ConfigError as error:
            return error
        except Exception as error:  # a mistake in the reading of a file must not end what runs well
            log.exception("the configuration could not be read")
            return Refused("internal", f"{type(error).__name__}: {error}")
        return self._apply(config, by)

    def _apply(self, config: Config, by: str) -> Outcome:
        """Submit the fact, and exchange the configuration. Raises StepFailed, with which the daemon ends."""
        driver, old = self._driver, self._catalog.config
        if driver.state.stopping:
            return Refused("stopping", "the daemon is stopping")
        if driver.log_blocked:
            return Refused("log_blocked", f"the event log cannot be written: {driver.log_blocked}")
        view, before = config.view(self._key), driver.state.config
        kept = self._kept(before, view)
        reach("reload.before")
        events = driver.submit(c.ConfigChanged(view, by)) if view != before else ()
        self._catalog.config = config
        use_profile(driver, config.profile, by)
        driver.forget_addresses()
        reach("reload.after")
        both = [id for id in config.models if id in old.models]
        return Reloaded(
            added=tuple(id for id in config.models if id not in old.models),
            changed=tuple(id for id in both if old.models[id] != config.models[id]),
            removed=tuple(id for id in old.models if id not in config.models),
            settings=tuple(
                dict.fromkeys(key for name, key in SETTINGS.items() if _differ(old, config, name))
            ),
            going=_going(driver.state, events),
            warnings=(*config.warnings, *unlimited(driver.state), *self._at_start(config), *kept),
            seq=driver.state.seq,
        )

    def _at_start(self, config: Config) -> list[str]:
        """What differs from what this daemon was started with, and stays as it is until the next start."""
        return [
            config.problem(SETTINGS[name], "takes effect at the next start").show(config.file)
            for name in AT_START
            if _differ(config, self._started_with, name)
        ]

    def _kept(self, before: c.ConfigView, view: c.ConfigView) -> list[str]:
        """Runners that stay with what a load would not get any more: options' defaults and slots are no part
        of the launch spec, and such a runner serves as it did."""
        kept = []
        for runner in self._driver.state.runners.values():
            old, new = before.models.get(runner.model), view.models.get(runner.model)
            if old is None or new is None or not runner.live or new.digest != runner.digest:
                continue
            defaults = _loaded_with(runner, old)
            differ = [f"{name}={value}" for name, value in defaults if new.options.get(name) != value]
            if runner.slots == old.slots != new.slots:
                differ.append(f"slots={runner.slots}")
            if differ:
                kept.append(f"{runner.id} of {runner.model} stays as it was loaded: {', '.join(differ)}")
        return kept


def _differ(one: Config, other: Config, name: str) -> bool:
    """Whether two configurations say something else of one setting."""
    return bool(getattr(one, name) != getattr(other, name))


def _going(state: State, events: Sequence[c.Event]) -> tuple[Going, ...]:
    """The runners that are told to go, in a step that took a configuration."""
    ids: dict[str, None] = {}  # an idle one is drained and stopped
    for event in events:
        if isinstance(event.body, c.RunnerDrain | c.RunnerStop) and event.body.reason == "configuration":
            ids[event.body.runner] = None
    return tuple(Going(id, state.runners[id].model) for id in ids)


def _loaded_with(runner: Runner, view: c.ModelView) -> list[tuple[str, c.Option]]:
    """The launch options that a runner got because they were the defaults."""
    return [(name, value) for name, value in runner.options.items() if view.options.get(name) == value]


def _report(asked: Asked) -> None:
    """Tell the journal."""
    outcome = asked.outcome
    if isinstance(outcome, ConfigError):
        log.error("reload (%s): the configuration stays as it was:\n%s", asked.by, outcome)
    elif isinstance(outcome, Refused):
        log.error("reload (%s): the configuration stays as it was: %s", asked.by, outcome.message)
    else:
        for warning in outcome.warnings:
            log.warning("%s", warning)
        log.info(
            "reload (%s): models: %d added, %d changed, %d removed; runners that go: %d",
            asked.by, len(outcome.added), len(outcome.changed), len(outcome.removed), len(outcome.going),
        )  # fmt: skip


__all__ = ["Asked", "Going", "Outcome", "Refused", "Reloaded", "Reloader"]
