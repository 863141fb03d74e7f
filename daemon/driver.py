"""The driver: the one owner of the state. Facts go in, durable events come out, effects follow.

    submit(fact) ─▶ Scheduler.step ─▶ store.append ─▶ (durable) ─▶ opening effects
                                          └─▶ closing effects, at once

`submit` is synchronous: it runs in the task that met the fact, between two of trio's checkpoints, so nothing
else sees the state half-way. Opening effects (spawn, dispatch, a success to an operator) run when the store
says that their events are durable; closing ones (an error answer, SIGKILL) need not wait for that.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import msgspec
import trio

from daemon import endings, ports
from daemon.clock import Clock
from daemon.figures import Figures
from daemon.journal import LEVELS, Journal, about
from daemon.ports import Address, Dispatched, Ended, Launch, LogBlocked, Machinery, Meter, Revoked
from daemon.readiness import Signs, Unready, reasons
from daemon.tally import Tally
from daemon.tickets import LeaseTicket, Ticket
from events import catalogue as c
from events.catalogue import Event, Fact
from events.commit import StoreBroken
from events.envelope import Record
from events.failpoints import reach
from events.limits import SAMPLE_NS, SAMPLE_STEP_BYTES, S
from events.store import following
from events.writing import SLOW, EventStore
from statemachines.parts import Runner
from statemachines.request import RequestState
from statemachines.runner import RunnerState, why_cut
from statemachines.scheduler import Scheduler
from statemachines.state import State

log = logging.getLogger("runnerd")


class StepFailed(Exception):
    """A step broke an invariant or raised: nothing of it was appended, and the state is void. The fact is in
    `<log>.breach`; exit, leave the runners, and start again."""


class Operation:
    """What an operator waits for."""

    __slots__ = ("about", "answer", "done")

    def __init__(self, about: str) -> None:
        self.about = about
        """The model or request that it is about, for the words of its answer."""
        self.answer: Ended | None = None
        self.done = trio.Event()


class Driver:
    """See the module. `machinery` and `meter` carry out effects; their facts come back by `submit`."""

    def __init__(self, store: EventStore, scheduler: Scheduler, clock: Clock, path: Path) -> None:
        self._store = store
        self._scheduler = scheduler
        self._clock = clock
        self._path = path
        self._tickets: dict[str, Ticket] = {}
        self._leases: dict[str, LeaseTicket] = {}
        self._addresses: dict[str, Address] = {}
        self._operations: dict[str, Operation] = {}
        self._moved_bytes: dict[str, int] = {}
        self._refused = self._refused_ever = 0
        self._failed: StepFailed | None = None
        self._failed_t = 0
        self._tally = Tally(scheduler.state, endings.STATUS)
        self._journal = Journal(scheduler.state)
        self._wake = trio.Event()
        self._wake_t = 0
        self._measure = trio.Event()
        self._changed = trio.Event()
        self._stopping = trio.Event()
        self.machinery: Machinery
        self.meter: Meter
        self.moved: Callable[[str], int] = lambda runner: 0
        """Bytes that a runner has sent in answers so far."""
        self.leave: Callable[[str], None] = lambda runner: None
        """Close idle connections to a runner that is about to be stopped."""
        self.prefetch: Callable[[str], None] = lambda model: None
        """Read ahead what a model will load, while its victims drain."""
        self.connections: Callable[[], Mapping[str, int]] = dict
        """Clients connected now, by the door that they came in by."""
        self.mistakes: Callable[[], Mapping[str, int]] = dict
        """Connections that a mistake in runnerd has ended, likewise."""
        store.on_durable = self._durable
        store.on_resumed = self._log_resumed
        store.on_blocked = self._log_blocked

    @property
    def state(self) -> State:
        """The folded state, to read."""
        return self._scheduler.state

    @property
    def path(self) -> Path:
        """The log."""
        return self._path

    @property
    def log_id(self) -> str:
        """The log's identity."""
        return self._store.log_id

    @property
    def log_blocked(self) -> str:
        """Why the log cannot be written now; "" while it can."""
        return self._store.blocked_error

    @property
    def log_tries(self) -> int:
        """Transactions that the log has ended, whether they failed or not: what a living one moves."""
        return self._store.tries

    @property
    def log_owed(self) -> int:
        """Events that are not durable yet."""
        return self._store.owed

    @property
    def log_blocked_ns(self) -> int:
        """For how long the log could not be written by now; 0 while it can."""
        since_ns = self._store.blocked_since
        return 0 if since_ns is None else time.monotonic_ns() - since_ns

    def abandon_log(self) -> None:
        """Do not wait for a log that cannot be written any longer. The daemon ends."""
        self._store.give_up()

    def outputs(self) -> Sequence[ports.Output]:
        """The files that runners' processes write to."""
        return self.machinery.outputs()

    def now(self) -> int:
        """Scheduler time, ns."""
        return self._clock()

    def unready(self) -> list[Unready]:
        """Why requests are not served as promised now; empty: they are."""
        t, since_ns, asked_t = self._clock(), self._store.blocked_since, self._tally.stopping_t
        signs = Signs(
            failed=str(self._failed or ""),
            failed_ns=None if self._failed is None else t - self._failed_t,
            log_error=self._store.blocked_error,
            log_blocked_ns=None if since_ns is None else time.monotonic_ns() - since_ns,
            stopping_ns=0 if asked_t == c.NEVER else t - asked_t,
        )
        return reasons(self.state, t, signs)

    def figures(self) -> Figures:
        """What metrics are made of."""
        return Figures(
            t=self._clock(),
            tally=self._tally,
            state=self.state,
            log=self._store.stats,
            append_ns=self._store.append_ns,
            refused=self._refused_ever,
            unready=self.unready(),
            connections=self.connections(),
            mistakes=self.mistakes(),
        )

    # --- facts in ----------------------------------------------------------------------------------------

    def submit(self, fact: Fact) -> Sequence[Event]:
        """Number, fold and append a fact; its step's events are not durable yet. Raises StepFailed."""
        events = self._step(fact)
        self._close(events)
        if type(fact) is c.StopRequested:  # who ends the daemon must hear of it though it cannot be logged
            self._stopping.set()
            self._changed.set()
        return events

    def report(self, fact: Fact) -> None:
        """Submit what the machinery saw. A probe of a busy runner also says whether its answers moved."""
        if type(fact) is c.ProbeAnswered:
            total = self.moved(fact.runner)
            moved = total > self._moved_bytes.get(fact.runner, 0)
            self._moved_bytes[fact.runner] = total
            fact = msgspec.structs.replace(fact, moved=moved)
        elif type(fact) is c.LoadProgressed and fact.runner not in self.state.loading:
            return  # it is ready, or told to stop: that it gets on says nothing any more
        with suppress(StepFailed):
            self.submit(fact)

    def _step(self, fact: Fact | None) -> list[Event]:
        """Take a fact, or (None) fire the deadlines that are due, and append what follows."""
        if self._failed is not None:
            raise self._failed
        scheduler, t = self._scheduler, self._clock()
        try:
            events = scheduler.step(fact, t) if fact is not None else scheduler.advance(t)
            if events:
                urgent = len(events) != 2 or type(events[1].body) is not c.RequestCompleted
                self._store.append(events, time.time_ns(), urgent=urgent)
        except StoreBroken:
            raise  # the store ends the daemon, and the fact is not to blame
        except Exception as error:
            self._fail(fact, error)
        if events and scheduler.is_due_before(self._wake_t):
            self._wake.set()
        return events

    def _fail(self, fact: Fact | None, error: Exception) -> NoReturn:
        """The state is void from here on."""
        self._failed = StepFailed(f"{type(error).__name__}: {error}")
        self._failed_t = self._clock()
        self._record_breach(fact, error)
        self._wake.set()
        raise self._failed from error

    def _record_breach(self, fact: Fact | None, error: Exception) -> None:
        """Keep the offending fact beside the log; it must not be met again at every start."""
        model = getattr(fact, "model", "")
        extra = about(seq=self.state.seq, model=model)
        log.critical("a step failed after event %d: %s", self.state.seq, error, exc_info=error, extra=extra)
        kept = {
            "fact": fact,
            "model": model,
            "detail": f"{type(error).__name__}: {error}",
            "seq": self.state.seq,
        }
        try:
            try:
                text = msgspec.json.encode(kept)
            except UnicodeEncodeError:  # what cannot be written down may be what is wrong with it
                kept |= {"fact": {"type": fact.__struct_config__.tag}} if fact is not None else {}
                kept |= {"model": "", "detail": type(error).__name__}
                text = msgspec.json.encode(kept)
            Path(f"{self._path}.breach").write_bytes(text)
        except OSError as failure:
            log.critical("it cannot be kept beside the log: %s", failure)

    # --- the front door's side ---------------------------------------------------------------------------

    def arrive(self, arrival: c.RequestArrived) -> Ticket:
        """Submit an arrival. Raises LogBlocked; then nothing became a fact."""
        self._check_log()
        events = self._step(arrival)
        for event in events:
            if event.body is arrival:
                ticket = self._tickets[event.subject] = Ticket(event.subject, arrival.model, arrival.caller)
                break
        self._close(events)
        return ticket

    def _check_log(self) -> None:
        """Raises LogBlocked, and counts, where an arrival would have to wait for the log, or for a start."""
        if self._store.broken is not None:
            raise LogBlocked("the event log cannot be written any more: the daemon ends")
        if self._store.blocked_since is not None:
            self._refused += 1
            self._refused_ever += 1
            raise LogBlocked(f"the event log cannot be written: {self._store.blocked_error}")

    def gone(self, ticket: ports.Ticket) -> None:
        """The client went away; unless it is we who go: then the request is for the next start to end."""
        if ticket.request in self._tickets and not _cancelled():
            with suppress(StoreBroken):  # the daemon ends, and the next start with who was there
                self.submit(c.ClientGone(ticket.request))

    def ended(self, fact: c.UpstreamEnded) -> None:
        """An upstream exchange has ended."""
        if fact.complete or not _cancelled():
            with suppress(StoreBroken):
                self.submit(fact)

    def forget_addresses(self) -> None:
        """Ask the machinery again where runners answer, and by what name: the configuration has changed."""
        self._addresses.clear()

    # --- leases ------------------------------------------------------------------------------------------

    def lease(self, arrival: c.RequestArrived) -> LeaseTicket:
        """Submit the arrival of who wants a lease. Raises LogBlocked."""
        self._check_log()
        events = self._step(arrival)
        id = next(event.subject for event in events if event.body is arrival)
        ticket = self._leases[id] = LeaseTicket(id, arrival.model, arrival.caller)
        self._close(events)
        return ticket

    def resume(self, request: str, by: str) -> LeaseTicket | None:
        """Who has shown a lease's token holds it from now on; whoever held it before is told so. None: it has
        ended just now, for a deadline of its was due."""
        self.submit(c.LeaseResumed(request, by))
        held = self.state.requests.get(request)
        if held is None or held.state is not RequestState.dispatched:
            return None
        before = self._leases.get(request)
        ticket = self._leases[request] = LeaseTicket(request, held.model, by)
        if before is not None:
            before.tell(endings.describe(self.state, "lease.resumed", "taken_over", held.model))
        try:
            address = self.address(held.runner)
        except KeyError:  # the configuration has another command for it by now; its holder knows where it is
            address = Address(held.runner, "")
        ticket.tell(Dispatched(address, held.attempt))
        if held.revoked:
            ticket.tell(Revoked(held.revoked, self.state.deadlines["revoke", request]))
        return ticket

    def let_go(self, ticket: LeaseTicket, *, granted: bool) -> None:
        """A lease's holder, or who waits for one, has closed his connection; unless it is we who close it:
        then the next start keeps what he holds."""
        if self._leases.get(ticket.request) is not ticket or _cancelled():
            return
        del self._leases[ticket.request]
        request = self.state.requests[ticket.request]
        self.submit(
            c.UpstreamEnded(request.id, request.runner, True) if granted else c.ClientGone(request.id)
        )

    def _end_lease(self, event: Event) -> None:
        """A lease has ended, whoever holds it: there is no exchange of ours to be closed first."""
        ticket, body = self._leases.pop(event.subject, None), event.body
        if ticket is not None and isinstance(body, endings.Ending):
            ticket.tell(endings.ending(self.state, body, ticket.model, ticket.caller))
        request = self.state.requests.get(event.subject)
        if request is not None and request.slot and request.kind == c.LEASE:
            told, over = ticket is not None, "the lease is over"
            self.submit(c.UpstreamEnded(request.id, request.runner, False, sent=told, error=over))

    def _revoke(self, event: Event, body: c.LeaseRevoked) -> None:
        ticket = self._leases.get(body.request)
        if ticket is not None:
            ticket.tell(Revoked(body.reason, body.until_ns))

    # --- effects -----------------------------------------------------------------------------------------

    def _close(self, events: Sequence[Event]) -> None:
        """Closing effects, which need not wait for the log: error answers, letting go of tickets, and SIGKILL
        for who had time to stop (while a log is blocked, its deadline would find that it cannot be ended)."""
        for event in events:
            effect = CLOSING.get(type(event.body))
            if effect is not None:
                effect(self, event)

    def _end(self, event: Event) -> None:
        ticket = self._tickets.pop(event.subject, None)
        if ticket is None:
            self._end_lease(event)
        else:
            body: Any = event.body
            unsent = ticket.tell(endings.ending(self.state, body, ticket.model, ticket.caller))
            if unsent is not None:  # told to go, ended before it went: its exchange never was
                runner = unsent.address.runner
                self.submit(c.UpstreamEnded(event.subject, runner, False, sent=False))

    def _durable(self, events: Sequence[Event]) -> None:
        """Opening effects, in sequence order. A step that fails under them ends the driver, not the store."""
        with suppress(StepFailed):
            self._open(events)
        self._tally.note(events)
        self._changed.set()

    def _open(self, events: Sequence[Event]) -> None:
        for event in events:
            kind = type(event.body)
            if kind is c.RequestDispatched:
                self._dispatch(event)
            elif kind in EFFECTIVE:
                effect = OPENING.get(kind)
                if effect is not None:
                    effect(self, event, event.body)
                if kind in LEVELS:
                    self._journal.write(event)

    def _dispatch(self, event: Event) -> None:
        body: Any = event.body
        id, state = body.request, self._scheduler.state
        ticket = self._tickets.get(id) or self._leases.get(id)
        request = state.requests.get(id)
        if ticket is None or request is None or request.state is not RequestState.dispatched:
            if request is not None and request.slot and request.runner == body.runner:
                self.submit(c.UpstreamEnded(id, body.runner, False, sent=False))
            return
        address = self.address(body.runner)
        view = state.config.models.get(ticket.model)
        first_byte_ns = view.first_byte_ns if view is not None else 0
        reach("dispatch.before")
        ticket.tell(Dispatched(address, body.attempt, first_byte_ns / S))
        reach("dispatch.after")

    def address(self, runner: str) -> Address:
        """Where the runner answers. Raises KeyError for one that is not looked after."""
        address = self._addresses.get(runner)
        if address is None:
            address = self._addresses[runner] = self.machinery.address(runner)
        return address

    def _ensure(self, event: Event, body: Any) -> None:
        runner = self.state.runners.get(event.subject)
        if runner is not None:
            self.machinery.ensure(launch_of(runner))

    def _stop(self, event: Event, body: c.RunnerStop) -> None:
        self.leave(body.runner)
        self._cut_off(body)
        self.machinery.stop(body.runner)

    def _cut_off(self, body: c.RunnerStop) -> None:
        """End the exchanges with a runner that stops, however long its processes take: what was not answered
        yet goes to another."""
        runner = self.state.runners.get(body.runner)
        for id in list(runner.held) if runner is not None else ():
            ticket = self._tickets.get(id)
            if ticket is not None and ticket.on_cut is not None:
                ticket.on_cut(why_cut(body))

    def _claim(self, event: Event, body: c.ClaimMade) -> None:
        demand = self.state.demands.get(body.demand)
        if demand is not None:
            self.prefetch(demand.model)

    def _forget(self, event: Event, body: Any) -> None:
        self._addresses.pop(body.runner, None)
        self._moved_bytes.pop(body.runner, None)
        self.machinery.forget(body.runner)

    def _operation_ended(self, event: Event, body: c.OperationEnded) -> None:
        operation = self._operations.pop(body.operation, None)
        if operation is not None:
            reach("reply.before")
            if not body.ok:
                operation.answer = endings.describe(
                    self.state, "operation.ended", body.reason, operation.about, detail=body.detail
                )
            operation.done.set()

    # --- the control socket's side -----------------------------------------------------------------------

    async def durable(self, seq: int) -> None:
        """Wait until the event `seq` is durable."""
        await self._store.wait(seq)

    def operate(self, fact: Fact) -> Operation:
        """Submit an operator's fact; its answer comes when it is durable."""
        events = self._step(fact)
        id = next(event.subject for event in events if event.body is fact)
        about = getattr(fact, "model", "") or getattr(fact, "request", "")
        operation = self._operations[id] = Operation(about)
        self._close(events)
        return operation

    async def operation(self, fact: Fact) -> Ended | None:
        """Submit an operator's fact and wait for its durable answer; None: done as asked."""
        operation = self.operate(fact)
        await operation.done.wait()
        return operation.answer

    def watch(self, after_seq: int, *, follow: bool) -> AsyncIterator[Record]:
        """Every durable event after `after_seq`, in order and without a gap."""
        return following(self._store, after_seq, forever=follow)

    # --- tasks -------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """The driver's own tasks: deadlines, measurements, the log's health. Until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._deadlines)
            nursery.start_soon(self._meter_task)

    async def _deadlines(self) -> None:
        """Fire deadlines when they come due; woken early when one is armed that comes sooner."""
        while True:
            due = self._scheduler.next_due()
            self._wake = trio.Event()
            self._wake_t = due if due is not None else self._clock() + 3600 * S
            if self._failed is not None:
                raise self._failed
            pause_s = max(0, self._wake_t - self._clock()) / S
            if pause_s:
                with trio.move_on_after(pause_s):
                    await self._wake.wait()
            else:
                await trio.lowlevel.checkpoint()
            self._close(self._step(None))

    async def _meter_task(self) -> None:
        """Measure when a decision asks for it; otherwise sample now and then, and report what moved."""
        while True:
            with trio.move_on_after(SAMPLE_NS / S):
                await self._measure.wait()
            asked = self._measure.is_set()
            self._measure = trio.Event()
            if asked or any(runner.state is RunnerState.ready for runner in self.state.runners.values()):
                fact = await self.meter.measure(self._pids())
                # A sample that was begun before a decision asked for a measurement is no answer to that.
                if asked or (self._moved(fact) and not self.state.measuring):
                    self.submit(fact)

    def _pids(self) -> dict[str, list[int]]:
        runners = self.state.runners.values()
        return {r.id: [process.pid for process in r.processes.values()] for r in runners if r.processes}

    def _moved(self, fact: c.MemoryMeasured) -> bool:
        """Whether a sample says something new: free memory, or what a runner uses, moved."""
        last = self.state.readings
        for device, reading in fact.devices.items():
            if device not in last or abs(last[device].free_bytes - reading.free_bytes) >= SAMPLE_STEP_BYTES:
                return True
        for id, used in fact.runners.items():
            runner = self.state.runners.get(id)
            if runner is not None and not runner.used_bytes and used:
                return True
        return False

    async def stopping(self) -> None:
        """Wait until a stop has been asked for. (`until` would wake who waits with each transaction.)"""
        if not self.state.stopping:
            await self._stopping.wait()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until a condition on the state holds. It is looked at after each transaction of the log."""
        while not condition():
            if self._changed.is_set():
                self._changed = trio.Event()
            await self._changed.wait()

    def _log_blocked(self, error: str) -> None:
        log.error("the event log cannot be written: %s. Until it can, requests are refused", error)

    def _log_resumed(self, blocked_ns: int, error: str) -> None:
        """The store writes again: say so in it, and how many were refused meanwhile. Of a disk that is slow,
        only where somebody was: what is said of it is written slowly, too."""
        refused, self._refused = self._refused, 0
        if refused or error != SLOW:
            with suppress(StepFailed):
                self.submit(c.LogResumed(refused, blocked_ns, error))


def _cancelled() -> bool:
    """Whether the running task is being cancelled, which happens to connections only when the daemon ends."""
    return trio.current_effective_deadline() == -math.inf


def launch_of(runner: Runner) -> Launch:
    """What the log decided about a runner's start."""
    return Launch(
        runner.id, runner.model, runner.digest, runner.options, runner.port, runner.socket,
        runner.shard_ports, runner.stall_ns, runner.ready_t != c.NEVER,
    )  # fmt: skip


CLOSING: dict[type, Callable[[Driver, Event], object]] = {
    c.RequestCompleted: lambda driver, event: driver._tickets.pop(event.subject, None),
    c.RequestRejected: Driver._end,
    c.RequestFailed: Driver._end,
    c.RequestCancelled: Driver._end,
    c.RequestTimedOut: Driver._end,
    c.RequestInterrupted: Driver._end_lease,
    c.RunnerKill: lambda driver, event: driver.machinery.kill(event.subject),
}

OPENING: dict[type, Callable[[Driver, Event, Any], object]] = {
    c.RunnerLoad: Driver._ensure,
    c.RunnerLeased: Driver._ensure,
    c.ProcessSpawned: lambda driver, event, body: driver.machinery.release(body.process),
    c.RunnerStop: Driver._stop,
    c.RunnerProbe: lambda driver, event, body: driver.machinery.probe(body.runner, body.reason),
    c.ClaimMade: Driver._claim,
    c.RunnerUnloaded: Driver._forget,
    c.RunnerFailed: Driver._forget,
    c.RunnerLost: Driver._forget,
    c.MemoryMeasure: lambda driver, event, body: driver._measure.set(),
    c.OperationEnded: Driver._operation_ended,
    c.LeaseRevoked: Driver._revoke,
}

EFFECTIVE = OPENING.keys() | LEVELS.keys()
"""What has an opening effect, or a line in the journal."""
