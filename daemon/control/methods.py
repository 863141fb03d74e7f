"""The methods of io.runnerd.Control: one function each, whose parameters are a struct of its own.

A method returns its reply, or raises VarlinkError. One that answers more than once is an async generator; the
last of its replies is the one that does not continue.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any, Literal

import msgspec
import trio

from daemon.catalog import Catalog
from daemon.control import views
from daemon.control.varlink import SERVICE, VarlinkError
from daemon.driver import Driver
from daemon.ports import Ended
from daemon.version import VERSION
from events import catalogue as c
from events.limits import LOAD_PROGRESS_S
from events.reader import CursorPruned
from statemachines.request import RequestState

INTERFACE = "io.runnerd.Control"
Reply = dict[str, Any]


class Nothing(msgspec.Struct, frozen=True):
    """No parameters."""


class LoadParameters(msgspec.Struct, frozen=True):
    """Of Load. Options come as text, and are read as their defaults' types."""

    model: str
    options: dict[str, str] = {}


class UnloadParameters(msgspec.Struct, frozen=True):
    """Of Unload."""

    model: str = ""
    runner: str = ""
    cancel: bool = False
    now: bool = False


class CancelParameters(msgspec.Struct, frozen=True):
    """Of Cancel."""

    request: str


class WatchParameters(msgspec.Struct, frozen=True):
    """Of Watch."""

    after: int | None = None


class StopParameters(msgspec.Struct, frozen=True):
    """Of Stop."""

    how: Literal["drain", "now", "leave"] = "drain"


class Service:
    """What the methods work on."""

    def __init__(self, driver: Driver, catalog: Catalog) -> None:
        self.driver = driver
        self.catalog = catalog
        self.started_t = driver.now()

    def status(self) -> Reply:
        """The daemon at a glance."""
        driver, state = self.driver, self.driver.state
        running = sum(request.state is RequestState.dispatched for request in state.requests.values())
        return {
            "version": VERSION,
            "pid": os.getpid(),
            "uptime_ns": driver.now() - self.started_t,
            "stopping": state.stopping,
            "log": str(driver.path),
            "log_id": driver.log_id,
            "seq": state.seq,
            "log_blocked": driver.log_blocked,
            "runners": len(state.runners),
            "queued": state.queued,
            "running": running,
            "max_queue": state.config.max_queue,
            "counts": state.counts,
            "devices": views.devices(state),
        }

    def model_id(self, name: str) -> str:
        """The model's id for an id or alias. Raises VarlinkError."""
        id = self.catalog.resolve(name)
        if id is None:
            near = difflib.get_close_matches(name, self.catalog.config.models, n=3)
            raise VarlinkError(f"{INTERFACE}.ModelNotFound", model=name, nearest=near)
        return id

    def options_of(self, model: str, given: dict[str, str]) -> dict[str, c.Option]:
        """Launch options from text, by the types of their defaults. Raises VarlinkError."""
        defaults = self.catalog.config.models[model].options
        options: dict[str, c.Option] = {}
        for name, text in given.items():
            if name not in defaults:
                raise VarlinkError(f"{SERVICE}.InvalidParameter", parameter=f"options.{name}")
            default = defaults[name]
            try:
                options[name] = (
                    text if default is None else msgspec.convert(text, type(default), strict=False)
                )
            except msgspec.ValidationError:
                raise VarlinkError(f"{SERVICE}.InvalidParameter", parameter=f"options.{name}") from None
        return options


async def status(s: Service, p: Nothing, by: str) -> Reply:
    """Status."""
    return s.status()


async def list_models(s: Service, p: Nothing, by: str) -> Reply:
    """ListModels."""
    return {"models": views.models(s.driver.state, s.catalog, s.driver.now())}


async def list_runners(s: Service, p: Nothing, by: str) -> Reply:
    """ListRunners."""
    return {"runners": views.runners(s.driver.state, s.driver.now())}


async def list_requests(s: Service, p: Nothing, by: str) -> Reply:
    """ListRequests."""
    return {"requests": views.requests(s.driver.state, s.driver.now())}


async def list_devices(s: Service, p: Nothing, by: str) -> Reply:
    """ListDevices."""
    return {"devices": views.devices(s.driver.state)}


async def unload(s: Service, p: UnloadParameters, by: str) -> Reply:
    """Unload."""
    model = s.model_id(p.model) if p.model else ""
    ended = await s.driver.operation(c.UnloadRequested(model, p.runner, p.cancel, p.now, by))
    if ended is not None and ended.reason == "unknown_runner":
        raise VarlinkError(f"{INTERFACE}.RunnerNotFound", runner=p.runner)
    _check(ended)
    return {}


async def cancel(s: Service, p: CancelParameters, by: str) -> Reply:
    """Cancel."""
    ended = await s.driver.operation(c.CancelRequested(p.request, by))
    if ended is not None and ended.reason == "request_not_found":
        raise VarlinkError(f"{INTERFACE}.RequestNotFound", request=p.request)
    _check(ended)
    return {}


async def stop(s: Service, p: StopParameters, by: str) -> Reply:
    """Stop. Answers once the request for it is durable."""
    events = s.driver.submit(c.StopRequested(p.how, by))
    await s.driver.durable(events[-1].seq)
    return {}


def _check(ended: Ended | None) -> None:
    if ended is not None:
        raise VarlinkError(f"{INTERFACE}.OperationFailed", reason=ended.reason, message=ended.message)


async def load(s: Service, p: LoadParameters, by: str) -> AsyncGenerator[Reply, None]:
    """Load: replies now and then, until the runner is ready."""
    model = s.model_id(p.model)
    options = s.options_of(model, p.options)
    began = s.driver.now()
    operation = s.driver.operate(c.LoadRequested(model, options, by))
    while not operation.done.is_set():
        with trio.move_on_after(LOAD_PROGRESS_S):
            await operation.done.wait()
        if not operation.done.is_set():
            yield _progress(s, model, began, done=False)
    _check(operation.answer)
    yield _progress(s, model, began, done=True)


def _progress(s: Service, model: str, began: int, *, done: bool) -> Reply:
    runner = next((r for r in s.driver.state.models.get(model, {}).values() if r.live), None)
    return {
        "done": done,
        "state": runner.state.value if runner is not None else "queued",
        "runner": runner.id if runner is not None else None,
        "elapsed_ns": s.driver.now() - began,
        "load_estimate_ns": s.driver.state.load_cost_ns.get(model),
    }


async def watch(s: Service, p: WatchParameters, by: str) -> AsyncGenerator[Reply, None]:
    """Watch: one reply an event, without end."""
    after = s.driver.state.seq if p.after is None else p.after
    try:
        async for record in s.driver.watch(after, follow=True):
            yield {
                "event": {
                    "seq": record.seq,
                    "at_ns": record.at,
                    "t_ns": record.t,
                    "type": record.type,
                    "version": record.version,
                    "cause": record.cause,
                    "subject": record.subject,
                    "payload": msgspec.Raw(record.payload.encode()),
                }
            }
    except CursorPruned as error:
        raise VarlinkError(f"{INTERFACE}.CursorPruned", message=str(error)) from None


ONCE: dict[str, tuple[type[msgspec.Struct], Callable[[Service, Any, str], Awaitable[Reply]]]] = {
    "Status": (Nothing, status),
    "ListModels": (Nothing, list_models),
    "ListRunners": (Nothing, list_runners),
    "ListRequests": (Nothing, list_requests),
    "ListDevices": (Nothing, list_devices),
    "Unload": (UnloadParameters, unload),
    "Cancel": (CancelParameters, cancel),
    "Stop": (StopParameters, stop),
}
"""Methods that answer once."""

MANY: dict[str, tuple[type[msgspec.Struct], Callable[[Service, Any, str], AsyncGenerator[Reply, None]]]] = {
    "Load": (LoadParameters, load),
    "Watch": (WatchParameters, watch),
}
"""Methods that may answer more than once."""

ENDLESS = ("Watch",)
"""Those of them that must be called with `more`."""
