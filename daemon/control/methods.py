"""The methods of io.runnerd.Control: one function each, whose parameters are a struct of its own.

A method returns its reply, or raises VarlinkError. One that answers more than once is an async generator; the
last of its replies is the one that does not continue.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import secrets
from codecs import getincrementaldecoder
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Annotated, Any, Literal

import msgspec
import trio

from daemon.catalog import Catalog
from daemon.config.errors import ConfigError
from daemon.control import views
from daemon.control.explaining import Explainer, Unexplained
from daemon.control.varlink import Parameters, VarlinkError, invalid
from daemon.driver import Driver
from daemon.leaving import Leaver, Unfit, served
from daemon.limits import EXPLAIN_DURABLE_S, LEASE_TOKEN_BYTES, LOAD_PROGRESS_S
from daemon.logs import PROXY, UPSTREAM, Logs
from daemon.nearest import nearest
from daemon.ports import Dispatched, Ended, Revoked
from daemon.reload import Refused, Reloader
from daemon.tickets import LeaseTicket
from daemon.version import VERSION
from events import catalogue as c
from events.limits import CONFIG_NAME_CHARS, CONFIG_PROBLEMS_SHOWN, PRIORITY_MAX
from events.reader import CursorPruned
from statemachines.request import RequestState

log = logging.getLogger("runnerd")

INTERFACE = "io.runnerd.Control"
INT64_MAX = 2**63 - 1  # SQLite's integers, and those of most JSON readers
Reply = dict[str, Any]


class Nothing(Parameters, frozen=True):
    """No parameters."""


class LoadParameters(Parameters, frozen=True):
    """Of Load. Options come as text, and are read as their defaults' types."""

    model: str
    options: dict[str, str] = {}
    priority: Annotated[int, msgspec.Meta(ge=-PRIORITY_MAX, le=PRIORITY_MAX)] = 0


class PinParameters(Parameters, frozen=True):
    """Of Pin."""

    model: str
    pinned: bool = True


class UnloadParameters(Parameters, frozen=True):
    """Of Unload."""

    model: str = ""
    runner: str = ""
    cancel: bool = False
    now: bool = False


class CancelParameters(Parameters, frozen=True):
    """Of Cancel."""

    request: str


class WatchParameters(Parameters, frozen=True):
    """Of Watch."""

    after: Annotated[int, msgspec.Meta(ge=0, le=INT64_MAX)] | None = None


class LogsParameters(Parameters, frozen=True):
    """Of Logs."""

    source: str = ""


class FollowLogsParameters(Parameters, frozen=True):
    """Of FollowLogs."""

    source: str = ""
    history: bool = True


class ProfileParameters(Parameters, frozen=True):
    """Of UseProfile."""

    name: str | None = None


class ExplainParameters(Parameters, frozen=True):
    """Of Explain."""

    subject: Annotated[str, msgspec.Meta(min_length=1, max_length=CONFIG_NAME_CHARS)]


class WhyNotParameters(Parameters, frozen=True):
    """Of WhyNot."""

    model: str


class StopParameters(Parameters, frozen=True):
    """Of Stop."""

    how: Literal["drain", "now", "leave"] = "drain"


class AcquireParameters(Parameters, frozen=True):
    """Of Acquire."""

    model: str = ""
    options: dict[str, str] = {}
    priority: Annotated[int, msgspec.Meta(ge=-PRIORITY_MAX, le=PRIORITY_MAX)] = 0
    token: str = ""


class Caller:
    """Who calls, as the log names it, and what he holds while the call runs."""

    __slots__ = ("by", "over")

    def __init__(self, by: str) -> None:
        self.by = by
        self.over: Callable[[], None] = lambda: None
        """Called when the call is over, however it ended."""


class RestartParameters(Parameters, frozen=True):
    """Of Restart."""

    now: bool = False


class Service:
    """What the methods work on."""

    def __init__(
        self, driver: Driver, catalog: Catalog, reloader: Reloader, logs: Logs, leaver: Leaver
    ) -> None:
        self.driver = driver
        self.leaver = leaver
        self.catalog = catalog
        self.reloader = reloader
        self.logs = logs
        self.explainer = Explainer()
        self.started_t = driver.now()
        self.watching: dict[object, int] = {}
        """The last event that each watcher has been sent."""
        self.told = trio.Event()

    async def all_told(self, seq: int) -> None:
        """Wait until every watcher has been sent the events up to a number."""
        while any(last < seq for last in self.watching.values()):
            self.told = trio.Event()
            await self.told.wait()

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
            "unready": [msgspec.structs.asdict(reason) for reason in driver.unready()],
        }

    def model_id(self, name: str) -> str:
        """The model's id for an id or alias. Raises VarlinkError."""
        id = self.catalog.resolve(name)
        if id is None:
            raise VarlinkError(f"{INTERFACE}.ModelNotFound", model=name, nearest=self.nearest(name))
        return id

    def source(self, name: str) -> str:
        """What logs are meant: a model's id for an id or alias. Raises VarlinkError."""
        return name if name in ("", PROXY, UPSTREAM) else self.model_id(name)

    def nearest(self, name: str) -> list[str]:
        """The ids and aliases that a mistyped name may have meant, the likeliest first."""
        config = self.catalog.config
        known = [*config.models, *(alias for model in config.models.values() for alias in model.aliases)]
        lower = {each.lower(): each for each in reversed(known)}
        typed = name.lower()[:CONFIG_NAME_CHARS]
        return [lower[each] for each in nearest(typed, lower, 3)]

    def check_log(self) -> None:
        """Raises VarlinkError while the log cannot be written: nothing may become a fact then."""
        if self.driver.log_blocked:
            raise _log_blocked(f"the event log cannot be written: {self.driver.log_blocked}")

    def resumed(self, digest: str, by: str) -> LeaseTicket:
        """The lease that a token is of, by its digest; it is his who has shown it. Raises VarlinkError."""
        known = (r for r in self.driver.state.requests.values() if r.token_digest == digest)
        request = next((r for r in known if r.state is RequestState.dispatched), None)
        if request is not None:
            self.check_log()
        ticket = self.driver.resume(request.id, by) if request is not None else None
        if ticket is None:
            raise VarlinkError(f"{INTERFACE}.LeaseNotFound")
        return ticket

    def options_of(self, model: str, given: dict[str, str]) -> dict[str, c.Option]:
        """Launch options from text, by the types of their defaults. Raises VarlinkError."""
        defaults = self.catalog.config.models[model].options
        options: dict[str, c.Option] = {}
        for name, text in given.items():
            if name not in defaults:
                raise invalid(f"options.{name}")
            try:
                value = msgspec.convert(text, type(defaults[name]), strict=False)
            except msgspec.ValidationError:
                raise invalid(f"options.{name}") from None
            if isinstance(value, int) and abs(value) > INT64_MAX:
                raise invalid(f"options.{name}")
            options[name] = value
        return self.catalog.bounded(model, options)


async def status(s: Service, p: Nothing, caller: Caller) -> Reply:
    """Status."""
    return s.status()


async def list_models(s: Service, p: Nothing, caller: Caller) -> Reply:
    """ListModels."""
    return {"models": views.models(s.driver.state, s.catalog, s.driver.now())}


async def list_runners(s: Service, p: Nothing, caller: Caller) -> Reply:
    """ListRunners."""
    return {"runners": views.runners(s.driver.state, s.driver.now())}


async def list_requests(s: Service, p: Nothing, caller: Caller) -> Reply:
    """ListRequests."""
    return {"requests": views.requests(s.driver.state, s.driver.now())}


async def list_devices(s: Service, p: Nothing, caller: Caller) -> Reply:
    """ListDevices."""
    return {"devices": views.devices(s.driver.state)}


async def unload(s: Service, p: UnloadParameters, caller: Caller) -> Reply:
    """Unload."""
    if p.model and p.runner:
        raise invalid("runner")
    model = s.model_id(p.model) if p.model else ""
    if p.runner and p.runner not in s.driver.state.runners:
        raise VarlinkError(f"{INTERFACE}.RunnerNotFound", runner=p.runner)
    s.check_log()
    ended = await s.driver.operation(c.UnloadRequested(model, p.runner, p.cancel, p.now, caller.by))
    _check(ended)
    return {}


async def pin(s: Service, p: PinParameters, caller: Caller) -> Reply:
    """Pin."""
    model = s.model_id(p.model)
    s.check_log()
    _check(await s.driver.operation(c.PinRequested(model, p.pinned, caller.by)))
    return {}


async def cancel(s: Service, p: CancelParameters, caller: Caller) -> Reply:
    """Cancel."""
    found = s.driver.state.requests.get(p.request)
    if found is None or found.state not in (RequestState.queued, RequestState.dispatched):
        raise VarlinkError(f"{INTERFACE}.RequestNotFound", request=p.request)
    s.check_log()
    ended = await s.driver.operation(c.CancelRequested(p.request, caller.by))
    _check(ended)
    return {}


async def reload(s: Service, p: Nothing, caller: Caller) -> Reply:
    """Reload. Answers once the change is durable."""
    s.check_log()
    asked = s.reloader.ask(caller.by)
    await asked.done.wait()
    outcome = asked.outcome
    if isinstance(outcome, ConfigError):
        raise _invalid_configuration(outcome)
    if isinstance(outcome, Refused):
        if outcome.reason == "log_blocked":
            raise _log_blocked(outcome.message)
        raise VarlinkError(f"{INTERFACE}.OperationFailed", reason=outcome.reason, message=outcome.message)
    await s.driver.durable(outcome.seq)
    reply: Reply = msgspec.to_builtins(outcome)
    return reply


def _log_blocked(message: str) -> VarlinkError:
    return VarlinkError(f"{INTERFACE}.LogBlocked", message=message)


def _invalid_configuration(error: ConfigError) -> VarlinkError:
    problems = error.problems[:CONFIG_PROBLEMS_SHOWN]
    return VarlinkError(
        f"{INTERFACE}.ConfigurationInvalid",
        message=str(error),
        file=str(error.file),
        problems=[{"line": p.line, "path": p.path, "text": p.text} for p in problems],
    )


async def use_profile(s: Service, p: ProfileParameters, caller: Caller) -> Reply:
    """UseProfile."""
    profiles = s.catalog.config.profiles
    if p.name and p.name not in profiles:
        raise VarlinkError(f"{INTERFACE}.ProfileNotFound", profile=p.name, known=list(profiles))
    if p.name is not None and p.name != s.catalog.profile:
        s.check_log()
        _check(await s.driver.operation(c.ProfileRequested(p.name, caller.by)))
    return {
        "active": s.catalog.profile,
        "profiles": {name: profile.description for name, profile in profiles.items()},
    }


async def explain(s: Service, p: ExplainParameters, caller: Caller) -> Reply:
    """Explain. An alias stands for its model."""
    subject = s.catalog.resolve(p.subject) or p.subject
    said = await _told(s, "why", subject)
    if "unknown" in said:
        nearest = s.nearest(subject)
        raise VarlinkError(f"{INTERFACE}.SubjectNotFound", subject=p.subject, nearest=nearest)
    told: Reply = said["told"]
    return told


async def why_not(s: Service, p: WhyNotParameters, caller: Caller) -> Reply:
    """WhyNot."""
    said = await _told(s, "why_not", s.model_id(p.model))
    if "unknown" in said:
        raise VarlinkError(f"{INTERFACE}.ModelNotFound", model=p.model, nearest=s.nearest(p.model))
    return {"told": said["told"]}


async def _told(s: Service, kind: str, subject: str) -> Reply:
    """What the log says up to what has happened by now, or, while it is blocked, up to what it has."""
    seq = s.driver.state.seq
    if not s.driver.log_blocked:
        with trio.move_on_after(EXPLAIN_DURABLE_S):
            await s.driver.durable(seq)
    try:
        return await s.explainer.ask(s.driver.path, seq, s.driver.now(), kind, subject)
    except Unexplained as error:
        raise VarlinkError(f"{INTERFACE}.OperationFailed", reason=error.reason, message=str(error)) from None


async def stop(s: Service, p: StopParameters, caller: Caller) -> Reply:
    """Stop. Answers once the request for it is durable."""
    events = s.driver.submit(c.StopRequested(p.how, caller.by))
    await s.driver.durable(events[-1].seq)
    return {}


async def restart(s: Service, p: RestartParameters, caller: Caller) -> AsyncGenerator[Reply, None]:
    """Restart: replies now and then, until the program starts again and closes the connection."""
    if s.driver.state.stopping or (s.leaver.leaving and not s.leaver.again):
        raise VarlinkError(
            f"{INTERFACE}.OperationFailed", reason="stopping", message="the daemon is stopping already"
        )
    s.check_log()
    try:
        await s.leaver.rehearse()
    except Unfit as unfit:
        message = f"nothing was restarted, for the program on the disk would not start again:\n{unfit}"
        raise VarlinkError(f"{INTERFACE}.OperationFailed", reason="unfit", message=message) from None
    s.leaver.ask(f"{caller.by}, to restart", again=True, now=p.now)
    while True:
        yield {
            "version": VERSION,
            "runners": list(s.driver.state.runners),
            "waiting_for": served(s.driver.state),
            "left_ns": max(0, s.leaver.due_t - s.driver.now()),
        }
        await trio.sleep(LOAD_PROGRESS_S)


def _check(ended: Ended | None) -> None:
    if ended is not None:
        raise VarlinkError(f"{INTERFACE}.OperationFailed", reason=ended.reason, message=ended.message)


async def load(s: Service, p: LoadParameters, caller: Caller) -> AsyncGenerator[Reply, None]:
    """Load: replies now and then, until the runner is ready."""
    model = s.model_id(p.model)
    options = s.options_of(model, p.options)
    s.check_log()
    began = s.driver.now()
    operation = s.driver.operate(c.LoadRequested(model, options, caller.by, p.priority))
    while not operation.done.is_set():
        with trio.move_on_after(LOAD_PROGRESS_S):
            await operation.done.wait()
        if not operation.done.is_set():
            yield _progress(s, model, options, began, done=False)
    _check(operation.answer)
    yield _progress(s, model, options, began, done=True)


async def acquire(s: Service, p: AcquireParameters, caller: Caller) -> AsyncGenerator[Reply, None]:
    """Acquire: how far it is, the lease, then what its holder has to know. It lasts as long as the call."""
    if bool(p.model) == bool(p.token):
        raise invalid("token" if p.model else "model")
    began, granted, token = s.driver.now(), bool(p.token), p.token
    if token:
        ticket = s.resumed(_digest(token), caller.by)
    else:
        model = s.model_id(p.model)
        options = s.options_of(model, p.options)
        s.check_log()
        token = secrets.token_urlsafe(LEASE_TOKEN_BYTES)
        arrival = c.RequestArrived(model, c.LEASE, options, p.priority, None, caller.by, _digest(token))
        ticket = s.driver.lease(arrival)
    caller.over = lambda: s.driver.let_go(ticket, granted=granted)
    await s.driver.durable(s.driver.state.seq)
    while True:
        turn = None
        with trio.move_on_after(math.inf if granted else LOAD_PROGRESS_S):
            turn = await ticket.turn()
        if isinstance(turn, Ended):
            _check(turn)
        granted = granted or isinstance(turn, Dispatched)
        yield _lease(s, ticket, turn, token) | {"elapsed_ns": s.driver.now() - began}


def _digest(token: str) -> str:
    """What the log, which holds no secrets, knows of a token."""
    return hashlib.sha256(token.encode()).hexdigest()


def _lease(s: Service, ticket: LeaseTicket, turn: Dispatched | Revoked | Ended | None, token: str) -> Reply:
    """One reply about a lease, or the waiting for it."""
    state, lease, reason, left_ns = "queued", None, "", None
    if isinstance(turn, Dispatched):
        at = turn.address
        lease = {
            "runner": at.runner,
            "url": at.url,
            "prefix": at.prefix,
            "model_name": at.model_name,
            "token": token,
        }
        state = "held"
    elif isinstance(turn, Revoked):
        state, reason, left_ns = "revoked", turn.reason, max(0, turn.until_t - s.driver.now())
    else:
        reason = views.waits_for(s.driver.state, ticket.request)
    return {
        "state": state,
        "request": ticket.request,
        "model": ticket.model,
        "reason": reason,
        "lease": lease,
        "left_ns": left_ns,
        "load_estimate_ns": s.driver.state.load_cost_ns.get(ticket.model),
    }


def _progress(s: Service, model: str, options: dict[str, c.Option], began: int, *, done: bool) -> Reply:
    live = [runner for runner in s.driver.state.models.get(model, {}).values() if runner.live]
    runner = next((r for r in live if options.items() <= r.options.items()), None)
    return {
        "done": done,
        "state": runner.state.value if runner is not None else "queued",
        "runner": runner.id if runner is not None else None,
        "elapsed_ns": s.driver.now() - began,
        "load_estimate_ns": s.driver.state.load_cost_ns.get(model),
    }


async def watch(s: Service, p: WatchParameters, caller: Caller) -> AsyncGenerator[Reply, None]:
    """Watch: one reply an event, without end."""
    head = s.driver.state.seq
    after = head if p.after is None else p.after
    if after > head:
        raise VarlinkError(f"{INTERFACE}.CursorLost", message=f"the log ends at event {head}")
    me = object()
    s.watching[me] = after
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
            s.watching[me] = record.seq
            s.told.set()
    except CursorPruned as error:
        raise VarlinkError(f"{INTERFACE}.CursorPruned", message=str(error)) from None
    finally:
        del s.watching[me]
        s.told.set()


async def logs(s: Service, p: LogsParameters, caller: Caller) -> Reply:
    """Logs."""
    return {"text": s.logs.history(s.source(p.source)).decode("utf-8", "replace")}


async def follow_logs(s: Service, p: FollowLogsParameters, caller: Caller) -> AsyncGenerator[Reply, None]:
    """FollowLogs: a reply whenever something was printed, without end."""
    decode = getincrementaldecoder("utf-8")("replace").decode
    async with aclosing(s.logs.follow(s.source(p.source), history=p.history)) as pieces:
        async for piece in pieces:
            yield {"text": decode(piece)}


ONCE: dict[str, tuple[type[Parameters], Callable[[Service, Any, Caller], Awaitable[Reply]]]] = {
    "Status": (Nothing, status),
    "ListModels": (Nothing, list_models),
    "ListRunners": (Nothing, list_runners),
    "ListRequests": (Nothing, list_requests),
    "ListDevices": (Nothing, list_devices),
    "Unload": (UnloadParameters, unload),
    "Pin": (PinParameters, pin),
    "Cancel": (CancelParameters, cancel),
    "Explain": (ExplainParameters, explain),
    "WhyNot": (WhyNotParameters, why_not),
    "Logs": (LogsParameters, logs),
    "Reload": (Nothing, reload),
    "UseProfile": (ProfileParameters, use_profile),
    "Stop": (StopParameters, stop),
}
"""Methods that answer once."""

MANY: dict[str, tuple[type[Parameters], Callable[[Service, Any, Caller], AsyncGenerator[Reply, None]]]] = {
    "Load": (LoadParameters, load),
    "Acquire": (AcquireParameters, acquire),
    "Watch": (WatchParameters, watch),
    "FollowLogs": (FollowLogsParameters, follow_logs),
    "Restart": (RestartParameters, restart),
}
"""Methods that may answer more than once."""

ENDLESS = ("Acquire", "Watch", "FollowLogs", "Restart")
"""Those of them that must be called with `more`."""
