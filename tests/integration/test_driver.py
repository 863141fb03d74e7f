"""The driver between a real log and faked effects: what the pure core cannot show, in the orders that hurt.

Nothing here takes time: the world's facts are the test's, and whatever is awaited is an event of the log.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
import trio
import trio.testing

from daemon.beside import running
from daemon.clock import Clock
from daemon.driver import Driver, StepFailed
from daemon.past import nearest
from daemon.ports import Address, Dispatched, Ended, Launch, Output
from daemon.tickets import Ticket
from events import catalogue as c
from events.envelope import decode
from events.limits import GIB, STOP_NS
from events.reader import Reader
from events.store import EventStore, open_store
from statemachines import decide
from statemachines.replay import verify
from statemachines.request import RequestState
from statemachines.runner import RunnerState
from statemachines.scheduler import RULES, Scheduler

LIMIT_S = 10
"""Every test ends within this, or fails."""

VIEW = c.ConfigView(
    models={
        "a": c.ModelView("digest-a", slots=2, memory_bytes={"host": 6 * GIB}),
        "b": c.ModelView("digest-b", memory_bytes={"host": 6 * GIB}),
    },
    devices={"host": c.DeviceView(8 * GIB)},
)


class FakeMachinery:
    """Notes what it is told to do; does nothing."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def ensure(self, launch: Launch) -> None:
        self.calls.append(f"ensure {launch.runner}")

    def release(self, process: c.Process) -> None:
        self.calls.append(f"release {process.runner}")

    def stop(self, runner: str) -> None:
        self.calls.append(f"stop {runner}")

    def kill(self, runner: str) -> None:
        self.calls.append(f"kill {runner}")

    def probe(self, runner: str, reason: str) -> None:
        self.calls.append(f"probe {runner}")

    def address(self, runner: str) -> Address:
        return Address(runner, f"http://127.0.0.1/{runner}")

    def forget(self, runner: str) -> None:
        self.calls.append(f"forget {runner}")

    async def identify(self, recorded: Sequence[tuple[c.Process, Launch]]) -> Sequence[c.Process]:
        return ()

    def tail(self, runner: str, lines: int) -> list[str]:
        return []

    def outputs(self) -> Sequence[Output]:
        return ()


class FakeMeter:
    """A machine with plenty of memory; the budget is the limit."""

    async def measure(self, processes: Mapping[str, Sequence[int]]) -> c.MemoryMeasured:
        await trio.lowlevel.checkpoint()
        return c.MemoryMeasured({"host": c.Reading(64 * GIB, 60 * GIB)})


class SlowMeter:
    """One that is read, and then held up until it may say so; what it says to later ones, at once."""

    def __init__(self) -> None:
        self.begun, self.go = trio.Event(), trio.Event()

    async def measure(self, processes: Mapping[str, Sequence[int]]) -> c.MemoryMeasured:
        free = 60 * GIB if self.begun.is_set() else GIB
        self.begun.set()
        await self.go.wait()
        return c.MemoryMeasured({"host": c.Reading(64 * GIB, free)})


class Ahead(Clock):
    """A clock that can be put forward."""

    ahead_ns = 0

    def __call__(self) -> int:
        return super().__call__() + self.ahead_ns


class Here:
    """A driver, and what the tests do to it."""

    def __init__(self, driver: Driver, store: EventStore, machine: FakeMachinery) -> None:
        self.driver = driver
        self.store = store
        self.machine = machine

    def arrive(self, model: str) -> Ticket:
        return self.driver.arrive(c.RequestArrived(model, "chat"))

    async def until(self, condition: Callable[[], object]) -> None:
        with trio.fail_after(LIMIT_S):
            await self.driver.until(lambda: bool(condition()))

    async def done(self, call: str) -> None:
        """Wait until the machinery has been told to do something."""
        await self.until(lambda: call in self.machine.calls)

    async def starts(self, model: str) -> str:
        """Wait for the load of a model, and let its runner become ready; its id."""
        live = self.driver.state.models
        await self.until(lambda: any(r.state is RunnerState.loading for r in live.get(model, {}).values()))
        runner = next(r.id for r in live[model].values() if r.state is RunnerState.loading)
        await self.done(f"ensure {runner}")
        self.driver.report(c.ProcessSpawned(c.Process(runner, 0, "boot", 1, 1)))
        await self.done(f"release {runner}")
        self.driver.report(c.ProbeAnswered(runner, True))
        return runner

    async def exits(self, runner: str) -> None:
        """Wait until a runner is told to stop, and let it."""
        await self.done(f"stop {runner}")
        self.driver.report(c.ProcessExited(runner, 0, 0))

    def answers(self, ticket: Ticket, runner: str) -> None:
        self.driver.ended(c.UpstreamEnded(ticket.request, runner, True, 10, 200))

    async def loaded(self, model: str) -> str:
        """A ready, idle runner of a model."""
        ticket = self.arrive(model)
        runner = await self.starts(model)
        await dispatched(ticket, runner)
        self.answers(ticket, runner)
        return runner


async def dispatched(ticket: Ticket, runner: str) -> None:
    """The ticket's next turn is a dispatch to that runner."""
    with trio.fail_after(LIMIT_S):
        turn = await ticket.turn()
    assert isinstance(turn, Dispatched), turn
    assert turn.address.runner == runner


async def ended(ticket: Ticket) -> Ended:
    """The ticket's next turn is its end."""
    with trio.fail_after(LIMIT_S):
        turn = await ticket.turn()
    assert isinstance(turn, Ended), turn
    return turn


@asynccontextmanager
async def driving(tmp_path: Path, clock: Clock | None = None) -> AsyncIterator[Here]:
    """A running driver; at its end the log is whole, and its decisions are derived again."""
    log = tmp_path / "events.db"
    async with open_store(log) as store:
        driver = Driver(store, Scheduler(), clock or Clock(), log)
        machine = FakeMachinery()
        driver.machinery, driver.meter = machine, FakeMeter()
        driver.submit(c.DaemonStarted(RULES, "balanced", "boot", "test"))
        driver.submit(c.ConfigChanged(VIEW))
        async with running(driver.run):
            yield Here(driver, store, machine)
    with Reader(log) as reader:
        reader.verify_chain()
        verify(list(map(decode, reader.records())), nearest(reader, reader.base.seq - 1)[0])


def seq_of(log: list[c.Event], kind: type, subject: str) -> int:
    return next(event.seq for event in log if isinstance(event.body, kind) and event.subject == subject)


async def logged(here: Here) -> list[c.Event]:
    """Everything that has become durable."""
    await here.driver.durable(here.driver.state.seq)
    return [decode(record) async for record in here.driver.watch(0, follow=False)]


# --- the swap race (llama-swap, processgroup.go) -----------------------------------------------------------


async def test_a_request_that_comes_first_is_served_before_the_swap(tmp_path: Path) -> None:
    """Both in one turn of the loop: the window in which a routed request met a process that was stopping."""
    async with driving(tmp_path) as here:
        ra = await here.loaded("a")
        first, other = here.arrive("a"), here.arrive("b")
        await dispatched(first, ra)
        await here.driver.durable(here.driver.state.seq)
        assert f"stop {ra}" not in here.machine.calls
        here.answers(first, ra)
        await here.exits(ra)
        rb = await here.starts("b")
        await dispatched(other, rb)
        here.answers(other, rb)
        log = await logged(here)
        assert seq_of(log, c.UpstreamEnded, first.request) < seq_of(log, c.RunnerStop, ra)


async def test_a_request_that_comes_second_waits_for_a_runner_of_its_own(tmp_path: Path) -> None:
    async with driving(tmp_path) as here:
        ra = await here.loaded("a")
        other = here.arrive("b")
        await here.until(lambda: here.driver.state.runners[ra].state is not RunnerState.ready)
        second = here.arrive("a")
        await here.exits(ra)
        rb = await here.starts("b")
        await dispatched(other, rb)
        here.answers(other, rb)
        await here.exits(rb)
        again = await here.starts("a")
        assert again != ra
        await dispatched(second, again)
        here.answers(second, again)


async def test_many_of_both_in_one_turn_of_the_loop(tmp_path: Path) -> None:
    """Nothing is dispatched to what is told to stop, whatever the order."""
    async with driving(tmp_path) as here:
        runner = await here.loaded("a")
        tickets = [here.arrive(model) for model in "abbabaab"]
        waiting = {ticket.request: ticket for ticket in tickets}
        model = "a"
        while waiting:
            mine = [ticket for ticket in waiting.values() if ticket.model == model]
            for ticket in mine:
                await dispatched(ticket, runner)
                assert f"stop {runner}" not in here.machine.calls
                here.answers(ticket, runner)
                del waiting[ticket.request]
            if waiting:
                await here.exits(runner)
                model = "b" if model == "a" else "a"
                runner = await here.starts(model)
        stops = [call for call in here.machine.calls if call.startswith("stop")]
        assert len(stops) == len(set(stops))


# --- effects and the log -----------------------------------------------------------------------------------


async def test_nothing_opens_before_it_is_durable_and_errors_do_not_wait(tmp_path: Path) -> None:
    async with driving(tmp_path) as here:
        ra = await here.loaded("a")
        await here.driver.durable(here.driver.state.seq)
        await here.store.hold()
        ticket, refused = here.arrive("a"), here.arrive("unknown")
        assert here.driver.state.requests[ticket.request].state is RequestState.dispatched
        assert (await ended(refused)).status == 404
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert ticket._next is None
        here.store.release()
        await dispatched(ticket, ra)
        here.answers(ticket, ra)


async def test_who_had_time_to_stop_is_killed_though_the_log_is_blocked(tmp_path: Path) -> None:
    """Nothing of its stop was carried out: it must not be said to be one that cannot be ended."""
    clock = Ahead()
    async with driving(tmp_path, clock) as here:
        ra = await here.loaded("a")
        await here.driver.durable(here.driver.state.seq)
        await here.store.hold()
        operation = here.driver.operate(c.UnloadRequested("a"))
        assert here.driver.state.runners[ra].state is RunnerState.stopping
        clock.ahead_ns = STOP_NS
        here.driver.submit(c.ClientGone("q0"))  # the deadlines that are due come first
        assert f"kill {ra}" in here.machine.calls and f"stop {ra}" not in here.machine.calls
        here.driver.report(c.ProcessExited(ra, 0, -9))
        here.store.release()
        with trio.fail_after(LIMIT_S):
            await operation.done.wait()
        assert operation.answer is None


async def test_a_step_that_cannot_be_written_is_a_failed_one(tmp_path: Path) -> None:
    """It has been folded: to go on would be to decide by what nobody will find again."""
    log = tmp_path / "events.db"
    async with open_store(log) as store:
        driver = Driver(store, Scheduler(), Clock(), log)
        driver.machinery, driver.meter = FakeMachinery(), FakeMeter()
        driver.submit(c.DaemonStarted(RULES, "balanced", "boot", "test"))
        with pytest.RaisesGroup(StepFailed, flatten_subgroups=True):
            async with running(driver.run):
                with pytest.raises(StepFailed, match="UnicodeEncodeError"):
                    driver.submit(c.StopRequested("drain", by="\ud800"))
                with pytest.raises(StepFailed):
                    driver.arrive(c.RequestArrived("a", "chat"))
                await trio.sleep_forever()
    with Reader(log) as reader:
        assert reader.verify_chain() == 1
    kept = msgspec.json.decode((tmp_path / "events.db.breach").read_bytes())
    assert kept["fact"] == {"type": "daemon.stop_requested"}


# --- clients that vanish -----------------------------------------------------------------------------------


async def test_gone_before_the_dispatch_is_durable(tmp_path: Path) -> None:
    """The slot was taken by the decision; the effect is skipped, and gives it back."""
    async with driving(tmp_path) as here:
        ra = await here.loaded("a")
        await here.driver.durable(here.driver.state.seq)
        await here.store.hold()
        ticket = here.arrive("a")
        here.driver.gone(ticket)
        assert here.driver.state.runners[ra].held
        here.store.release()
        assert (await ended(ticket)).reason == "client_gone"
        await here.until(lambda: not here.driver.state.runners[ra].held)
        log = await logged(here)
        [fact] = [e.body for e in log if isinstance(e.body, c.UpstreamEnded) and e.subject == ticket.request]
        assert isinstance(fact, c.UpstreamEnded)
        assert not fact.sent


async def test_gone_when_told_to_go_before_its_task_has_run(tmp_path: Path) -> None:
    """Its turn lies ready, and nobody has taken it: the exchange never was, so the slot comes back."""
    async with driving(tmp_path) as here:
        ra = await here.loaded("a")
        ticket = here.arrive("a")
        await here.until(lambda: ticket._next is not None)
        here.driver.gone(ticket)
        assert (await ended(ticket)).reason == "client_gone"
        await here.until(lambda: not here.driver.state.runners[ra].held)


async def test_gone_while_it_runs_holds_its_slot_until_the_exchange_has_ended(tmp_path: Path) -> None:
    async with driving(tmp_path) as here:
        ra = await here.loaded("a")
        ticket, other = here.arrive("a"), here.arrive("b")
        await dispatched(ticket, ra)
        told: list[Ended] = []
        ticket.on_end = told.append
        here.driver.gone(ticket)
        assert [end.reason for end in told] == ["client_gone"]
        await here.driver.durable(here.driver.state.seq)
        assert f"stop {ra}" not in here.machine.calls, "its exchange still runs"
        here.driver.ended(c.UpstreamEnded(ticket.request, ra, False, error="the client went away"))
        await here.exits(ra)
        rb = await here.starts("b")
        await dispatched(other, rb)
        here.answers(other, rb)


@pytest.mark.parametrize("answered_bytes", [0, 10])
async def test_a_runner_that_stops_cuts_its_exchanges_off(tmp_path: Path, answered_bytes: int) -> None:
    """Before its process has ended, which may take as long as it likes."""
    async with driving(tmp_path) as here:
        ra = await here.loaded("a")
        ticket = here.arrive("a")
        await dispatched(ticket, ra)
        why: list[str] = []
        ticket.on_cut = why.append
        here.driver.submit(c.UnloadRequested("a", now=True))
        await here.done(f"stop {ra}")
        assert why == [c.CUT_OFF]
        here.driver.ended(
            c.UpstreamEnded(ticket.request, ra, False, bytes_to_client=answered_bytes, error=c.CUT_OFF)
        )
        if answered_bytes:
            assert (await ended(ticket)).reason == "cut_off"
        else:
            assert here.driver.state.requests[ticket.request].state is RequestState.queued
        await here.exits(ra)


async def test_gone_while_its_model_loads_ends_the_load(tmp_path: Path) -> None:
    async with driving(tmp_path) as here:
        ticket = here.arrive("a")
        await here.until(lambda: here.driver.state.loading)
        [runner] = here.driver.state.loading
        await here.done(f"ensure {runner}")
        here.driver.report(c.ProcessSpawned(c.Process(runner, 0, "boot", 1, 1)))
        here.driver.gone(ticket)
        await here.exits(runner)
        await here.done(f"forget {runner}")
        assert not here.driver.state.runners


async def test_the_last_of_a_thousand_clients_turns_off_the_light(tmp_path: Path) -> None:
    """They all leave while they wait: no slot, no waiter and no load is left of them."""
    async with driving(tmp_path) as here:
        tickets = [here.arrive("a") for _ in range(400)]
        await here.until(lambda: here.driver.state.loading)
        [runner] = here.driver.state.loading
        await here.done(f"ensure {runner}")
        here.driver.report(c.ProcessSpawned(c.Process(runner, 0, "boot", 1, 1)))
        for ticket in tickets:
            here.driver.gone(ticket)
        await here.exits(runner)
        await here.done(f"forget {runner}")
        state = here.driver.state
        assert not (state.requests or state.demands or state.queued or state.runners)


# --- runners that vanish (exo, 1804) -----------------------------------------------------------------------


@pytest.mark.parametrize("answered", [False, True])
async def test_a_runner_that_dies_takes_no_work_from_that_step_on(
    tmp_path: Path, answered: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether or not bytes had been sent: one request is tried again elsewhere, the other is told."""
    monkeypatch.setattr(decide, "CRASH_WINDOW_NS", 0)  # it has served for long enough to be tried again
    async with driving(tmp_path) as here:
        ra = await here.loaded("a")
        ticket = here.arrive("a")
        await dispatched(ticket, ra)
        here.driver.report(c.ProcessExited(ra, 0, 1))
        late = here.arrive("a")
        here.driver.ended(c.UpstreamEnded(ticket.request, ra, False, 100 if answered else 0))
        again = await here.starts("a")
        await dispatched(late, again)
        if answered:
            assert (await ended(ticket)).status == 502
        else:
            await dispatched(ticket, again)
            here.answers(ticket, again)
        here.answers(late, again)


# --- memory ------------------------------------------------------------------------------------------------


async def test_a_sample_from_before_an_exit_does_not_answer_who_asks_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was read while the runner that has gone still held its memory."""
    monkeypatch.setattr("daemon.driver.SAMPLE_NS", 0)
    async with driving(tmp_path) as here:
        ra, meter = await here.loaded("a"), SlowMeter()
        here.driver.meter = meter
        with trio.fail_after(LIMIT_S):
            await meter.begun.wait()
        here.driver.report(c.ProcessExited(ra, 0, 1))
        here.arrive("b")
        assert here.driver.state.measuring
        meter.go.set()
        await here.until(lambda: "b" in here.driver.state.models)
        assert here.driver.state.readings["host"].free_bytes == 60 * GIB
        page = [record async for record in here.driver.watch(0, follow=False)]
        assert not any(f'"free_bytes":{GIB}' in record.payload for record in page)
