"""Loading what the configuration names (`hooks.on_startup.preload`) before anybody may ask for anything.

The loads are an operator's, so that all that holds for loads holds for them; one thing more does: none of
them evicts another. In their order, and at the same time where they fit.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import trio

from daemon.cli.describe import duration
from daemon.driver import Driver, Operation
from daemon.journal import about
from events import catalogue as c
from events.limits import PRELOAD_REPORT_S
from statemachines.memcheck import obstacles

log = logging.getLogger("runnerd")


class StartRefused(Exception):
    """The models to preload cannot be loaded together: nothing was started. Change the configuration."""


class PreloadFailed(Exception):
    """A model to preload could not be loaded: whatever was started has been ended."""


def refusal(driver: Driver, models: Sequence[str], *, lazy: bool) -> StartRefused | None:
    """Whether the models to preload cannot be loaded together. With `lazy` that is a warning."""
    found = obstacles(driver.state, models)
    if lazy:
        for each in found:
            log.warning("preload: %s", each)
    if lazy or not found:
        return None
    return StartRefused("the models to preload cannot be loaded together:\n  " + "\n  ".join(found))


async def preload(driver: Driver, models: Sequence[str], *, lazy: bool) -> PreloadFailed | None:
    """Load them, and say so in the journal. Returns at the first failure; with `lazy`, failures are warnings.
    None: done, or the daemon is stopping."""
    failures: list[str] = []
    began = driver.now()
    if models:
        log.info("preload: %s", ", ".join(models))
    # Each is asked for before the first is waited for: what fits together is loaded at the same time.
    waiting = {model: driver.operate(c.LoadRequested(model, by="preload", preload=True)) for model in models}

    async def wait(model: str, operation: Operation) -> None:
        await operation.done.wait()
        del waiting[model]
        taken, done = duration(driver.now() - began), len(models) - len(waiting)
        if operation.answer is None:
            extra = about(model=model)
            log.info("preload: %s is ready after %s (%d of %d)", model, taken, done, len(models), extra=extra)
        elif lazy and not driver.state.stopping:
            log.warning("preload: %s", operation.answer.message, extra=about(model=model))
        elif not driver.state.stopping:
            failures.append(operation.answer.message)
        if failures or not waiting:
            nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        for model, operation in list(waiting.items()):
            nursery.start_soon(wait, model, operation)
        while waiting:
            await trio.sleep(PRELOAD_REPORT_S)
            log.info("preload: %s", _progress(driver, list(waiting), driver.now() - began))
    return PreloadFailed(f"preload: {failures[0]}") if failures else None


def _progress(driver: Driver, waiting: Sequence[str], taken_ns: int) -> str:
    """Who is not ready yet, and how long it usually takes."""
    usual = {model: driver.state.load_cost_ns.get(model) for model in waiting}
    each = [f"{model} (usually {duration(ns)})" if ns else model for model, ns in usual.items()]
    return f"{', '.join(each)} not ready after {duration(taken_ns)}"
