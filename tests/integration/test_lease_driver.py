"""Leases between the driver and a real log, in the orders that a whole daemon cannot be made to show."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import trio

from daemon.beside import running
from daemon.clock import Clock
from daemon.driver import Driver
from daemon.ports import Dispatched, Ended, Revoked
from daemon.tickets import LeaseTicket
from events import catalogue as c
from events.envelope import decode
from events.limits import S
from events.reader import Reader
from events.store import open_store
from statemachines.replay import verify
from statemachines.scheduler import RULES, Scheduler
from tests.integration.test_driver import LIMIT_S, VIEW, FakeMachinery, FakeMeter, Here, logged

MAX_LEASE_NS = 60 * S


class Hand(Clock):
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.t = 0

    def __call__(self) -> int:
        return self.t


@asynccontextmanager
async def driving(tmp_path: Path) -> AsyncIterator[tuple[Here, Hand]]:
    """A running driver, whose model `a` lends a slot for a minute; at its end its log is derived again."""
    log, clock = tmp_path / "events.db", Hand()
    models = {**VIEW.models, "a": msgspec.structs.replace(VIEW.models["a"], max_lease_ns=MAX_LEASE_NS)}
    async with open_store(log) as store:
        driver = Driver(store, Scheduler(), clock, log)
        machine = FakeMachinery()
        driver.machinery, driver.meter = machine, FakeMeter()
        driver.submit(c.DaemonStarted(RULES, "balanced", "boot", "test"))
        driver.submit(c.ConfigChanged(msgspec.structs.replace(VIEW, models=models)))
        async with running(driver.run):
            yield Here(driver, store, machine), clock
    with Reader(log) as reader:
        reader.verify_chain()
        verify(list(map(decode, reader.records())))


def ask(here: Here) -> LeaseTicket:
    return here.driver.lease(c.RequestArrived("a", c.LEASE, caller="uid 1 pid 2", token_digest="t"))


async def told(ticket: LeaseTicket) -> Dispatched | Revoked | Ended:
    with trio.fail_after(LIMIT_S):
        return await ticket.turn()


async def ends(here: Here, ticket: LeaseTicket) -> list[c.UpstreamEnded]:
    """The ends of a lease's exchange that are in the log."""
    events = [event.body for event in await logged(here)]
    return [b for b in events if isinstance(b, c.UpstreamEnded) and b.request == ticket.request]


async def test_who_leaves_before_he_was_told_never_had_it(tmp_path: Path) -> None:
    async with driving(tmp_path) as (here, _):
        runner = await here.loaded("a")
        ticket = ask(here)
        assert here.driver.state.requests[ticket.request].slot, "decided, and not durable yet"
        here.driver.let_go(ticket, granted=False)
        (end,) = await ends(here, ticket)
        assert (end.runner, end.complete, end.sent) == (runner, False, False)
        assert not here.driver.state.runners[runner].held


async def test_what_a_busy_holder_is_told_waits_for_him(tmp_path: Path) -> None:
    async with driving(tmp_path) as (here, clock):
        runner = await here.loaded("a")
        ticket = ask(here)
        for t in (0, MAX_LEASE_NS, MAX_LEASE_NS + 31 * S):
            clock.t = t
            here.driver.submit(c.ProbeAnswered(runner, True))
            await here.driver.durable(here.driver.state.seq)
        assert [type(await told(ticket)) for _ in range(3)] == [Dispatched, Revoked, Ended]
        here.driver.let_go(ticket, granted=True)
        (end,) = await ends(here, ticket)
        assert (end.complete, end.sent) == (False, True)
        await here.done(f"stop {runner}")


async def test_a_lease_whose_time_is_over_is_not_resumed(tmp_path: Path) -> None:
    """The step that takes the resumption first fires what is due."""
    async with driving(tmp_path) as (here, clock):
        runner = await here.loaded("a")
        ticket = ask(here)
        assert isinstance(await told(ticket), Dispatched)
        clock.t = MAX_LEASE_NS
        here.driver.submit(c.ProbeAnswered(runner, True))
        assert isinstance(await told(ticket), Revoked)
        clock.t += 30 * S
        assert here.driver.resume(ticket.request, "uid 1 pid 3") is None
        ended = await told(ticket)
        assert isinstance(ended, Ended) and ended.reason == "revoked"
        assert len(await ends(here, ticket)) == 1


async def test_who_takes_over_a_revoked_lease_is_told_so(tmp_path: Path) -> None:
    async with driving(tmp_path) as (here, clock):
        runner = await here.loaded("a")
        ticket = ask(here)
        clock.t = MAX_LEASE_NS
        here.driver.submit(c.ProbeAnswered(runner, True))
        second = here.driver.resume(ticket.request, "uid 1 pid 3")
        assert second is not None
        assert isinstance(await told(second), Dispatched)
        revoked = await told(second)
        assert isinstance(revoked, Revoked) and revoked.until_t == MAX_LEASE_NS + 30 * S
        here.driver.let_go(ticket, granted=True)
        assert here.driver.state.requests[ticket.request].caller == "uid 1 pid 3"
        here.driver.let_go(second, granted=True)
        (end,) = await ends(here, ticket)
        assert end.complete


async def test_a_daemon_that_ends_lets_go_of_nothing(tmp_path: Path) -> None:
    async with driving(tmp_path) as (here, _):
        runner = await here.loaded("a")
        ticket = ask(here)
        assert isinstance(await told(ticket), Dispatched)
        with trio.CancelScope() as scope:
            scope.cancel()
            here.driver.let_go(ticket, granted=True)
        assert list(here.driver.state.runners[runner].held) == [ticket.request]
        here.driver.let_go(ticket, granted=True)
        assert len(await ends(here, ticket)) == 1
