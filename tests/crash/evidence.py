"""What must be true of a log whose daemons were killed again and again, and of the runners that they had.

The log is compared with itself (chain, decisions, invariants, what survives a start), with what clients were
told, and with what the runners wrote down.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from daemon.keeping import archive_path
from events import catalogue as c
from events.catalogue import NEVER, Event
from events.envelope import Record, chain_hash, decode, first_hash
from events.reader import Reader
from statemachines import replay
from statemachines.fold import apply
from statemachines.invariants import check_all
from statemachines.parts import Request, Runner
from statemachines.request import RequestState
from statemachines.runner import RunnerState
from statemachines.state import State
from tests.crash.lessee import DIRECT
from tests.crash.workload import Told

TERMINAL = (
    c.RequestCompleted, c.RequestFailed, c.RequestCancelled, c.RequestTimedOut, c.RequestRejected,
    c.RequestInterrupted,
)  # fmt: skip

TELLING = (c.PinRequested, c.LoadRequested, c.UnloadRequested, c.CancelRequested)
"""What an operator asks for whose success he is told."""


def kept(state: State) -> dict[str, Any]:
    """What a start must take over as it was."""
    cooling = {model: (found.failures, found.until_t) for model, found in state.cooling.items()}
    resident = {
        r.id: (r.model, r.port, r.reserved_bytes, [p.pid for p in r.processes.values()])
        for r in state.runners.values()
    }
    serving = {
        (r.id, p.shard): (p.pid, p.start_time)
        for r in state.runners.values() if r.state in (RunnerState.ready, RunnerState.draining)
        for p in r.processes.values()
    }  # fmt: skip
    return {
        "pinned": dict(state.pinned), "cooling": cooling, "footprints": dict(state.footprints),
        "load_cost_ns": dict(state.load_cost_ns), "resident": resident, "keep_alive": keep_alive(state),
        "serving": serving, "leases": leases(state),
    }  # fmt: skip


def keep_alive(state: State) -> dict[str, int]:
    """When idle runners expire."""
    due = state.deadlines
    return {
        runner.id: due["keep_alive", runner.id]
        for runner in state.runners.values()
        if runner.state is RunnerState.ready and runner.idle_t != NEVER and ("keep_alive", runner.id) in due
    }


def leases(state: State) -> dict[str, str]:
    """Those that are held of runners that serve: what a start keeps, if such a runner has survived whole."""

    def lasts(request: Request, runner: Runner) -> bool:
        held = request.kind == c.LEASE and request.state is RequestState.dispatched
        return held and runner.state is RunnerState.ready and not runner.ended

    return {
        id: runner.id
        for runner in state.runners.values()
        for id in runner.held
        if lasts(state.requests[id], runner)
    }


def whole(log: Path) -> list[Record]:
    """Everything that was ever in a log: what has been archived and pruned, and what is there. Some of it may
    be in both. The chain goes through all of it."""
    records = dict[int, Record]()
    for path in (*sorted(archive_path(log).glob("*")), log):
        if path.suffix == ".new":
            continue  # a segment that was being written
        with Reader(path) as reader:
            reader.verify_chain()
            for record in reader.records():
                assert records.setdefault(record.seq, record) == record, record
    with Reader(log) as reader:
        previous = first_hash(reader.log_id)
    for seq, record in enumerate(records.values(), 1):
        texts = record.type.encode(), record.version, record.cause, record.subject.encode()
        previous = chain_hash(previous, seq, record.at, record.t, *texts, record.payload.encode())
        assert (record.seq, record.hash) == (seq, previous), f"event {seq} is missing, or another"
    return list(records.values())


class Evidence:
    """A log, read once; `examine` it when its last daemon has stopped properly."""

    def __init__(self, log: Path, ledger: Path, told: Told) -> None:
        self.records = whole(log)
        self.events = [decode(record) for record in self.records]
        with Reader(log) as reader:
            self.pruned = reader.base.seq - 1
            """Events that only the archive has."""
        lines = ledger.read_text().splitlines() if ledger.exists() else []
        self.ledger: list[dict[str, Any]] = [json.loads(line) for line in lines]
        self.told = told
        self.starts = 0
        self.adopted = 0
        """Runners, counted at each start that found them alive."""
        self.restarts = 0
        """Starts after a stop that has left the runners: in place, mostly."""
        self.held = 0
        """Leases, counted at each start that kept them."""

    def examine(self) -> None:
        """Raises AssertionError."""
        self._decisions_follow()
        self._starts_lose_nothing()
        ends = self._every_request_ends_once()
        self._what_was_told_is_there(ends)
        self._leases_are_as_told(ends)
        self._no_slot_has_two_holders()
        self._nothing_happened_twice(ends)

    def _decisions_follow(self) -> None:
        """Every decision, once more; and at the end nothing is left."""
        _, state = replay.verify(self.events)
        check_all(state)
        left = (state.runners, state.requests, state.leased, state.operations, state.claims, state.demands)
        assert not any(left), left
        assert not any(state.held.values()), state.held

    def _starts_lose_nothing(self) -> None:
        state, before = State(), kept(State())
        for step in replay.steps(self.events):
            started = isinstance(step[0].body, c.DaemonStarted)
            if started:
                before = kept(state)
                self.restarts += state.stopping == "leave"
            elif isinstance(step[0].body, c.ProcessExited):
                self._was_to_end(state, step[0].body)
            for event in step:
                apply(state, event)
            check_all(state)
            if started:
                self.starts += 1
                self._start_lost_nothing(before, state, step)

    def _was_to_end(self, state: State, exited: c.ProcessExited) -> None:
        """A runner that serves does not end by itself, nor by a daemon that goes."""
        process = kept(state)["serving"].get((exited.runner, exited.shard))
        assert process is None or process in self.told.killed, exited

    def _start_lost_nothing(self, before: dict[str, Any], state: State, step: list[Event]) -> None:
        seq, after = step[0].seq, kept(state)
        finished = {type(event.body) for event in step} & {c.RunnerUnloaded, c.RunnerFailed}
        for what in ("pinned", "load_cost_ns", *(() if finished else ("footprints", "cooling"))):
            assert after[what] == before[what], (seq, what, before[what], after[what])
        assert before["cooling"].keys() <= after["cooling"].keys(), seq
        assert before["footprints"].keys() <= after["footprints"].keys(), seq
        assert not state.operations and not state.claims, seq
        assert isinstance(step[0].body, c.DaemonStarted)
        alive = {process.runner: process.pid for process in step[0].body.survivors}
        self.adopted += len(alive)
        self._processes_lived_on(before["serving"], step[0].body, seq)
        self._leases_lasted(before, state, step[0].body, seq)
        for runner in alive:
            model, port, reserved, pids = before["resident"][runner]
            now = after["resident"][runner]
            assert now[:3] == (model, port, reserved) and set(now[3]) <= set(pids), (seq, now)
        for runner, due in before["keep_alive"].items():
            if runner in alive and state.runners[runner].state is RunnerState.ready:  # else it lost a shard
                assert state.deadlines.get(("keep_alive", runner)) == due, (seq, runner)

    def _processes_lived_on(
        self, serving: dict[tuple[str, int], tuple[int, int]], start: c.DaemonStarted, seq: int
    ) -> None:
        """Whatever ended the daemon, or let it start again: no runner that served has ended with it."""
        found = {(p.runner, p.shard): (p.pid, p.start_time) for p in start.survivors}
        for shard, process in serving.items():
            if process not in self.told.killed:
                assert found.get(shard) == process, (seq, shard, process, found.get(shard))

    def _leases_lasted(self, before: dict[str, Any], state: State, start: c.DaemonStarted, seq: int) -> None:
        """Exactly those leases are left whose runners live on; their slots are theirs, for a while."""
        found = {(process.runner, process.shard) for process in start.survivors}
        lost = {runner for runner, shard in before["serving"] if (runner, shard) not in found}
        last = {id: runner for id, runner in before["leases"].items() if runner not in lost}
        assert {*state.requests} == {*last}, (seq, state.requests.keys(), last)
        self.held += len(last)
        for id, runner in last.items():
            request = state.requests[id]
            assert (request.runner, request.slot) == (runner, True), (seq, request)
            assert id in state.runners[runner].held and ("grace", id) in state.deadlines, (seq, request)

    def _every_request_ends_once(self) -> dict[str, Event]:
        arrived, ends = dict[str, None](), dict[str, Event]()
        for event in self.events:
            if isinstance(event.body, c.RequestArrived):
                arrived[event.subject] = None
            elif isinstance(event.body, TERMINAL):
                assert event.subject not in ends, f"{event.subject} ends twice"
                ends[event.subject] = event
        assert arrived.keys() == ends.keys(), arrived.keys() ^ ends.keys()
        return ends

    def _what_was_told_is_there(self, ends: dict[str, Event]) -> None:
        records = {record.seq: record for record in self.records}
        for seq, seen in self.told.events.items():
            record = records[seq]
            mine = {
                "seq": seq, "at_ns": record.at, "t_ns": record.t, "type": record.type, "cause": record.cause,
                "version": record.version, "subject": record.subject, "payload": json.loads(record.payload),
            }  # fmt: skip
            assert mine == seen, (mine, seen)
        dispatched = {e.subject for e in self.events if isinstance(e.body, c.RequestDispatched)}
        for name, request in self.told.requests.items():
            assert request in dispatched, f"{name} was answered as {request}, which was never dispatched"
        for name in self.told.whole:
            end = ends[self.told.requests[name]].body
            whole = isinstance(end, c.RequestCompleted | c.RequestInterrupted)
            assert whole, f"{name} has its whole answer, and ended as {end}"
        done = self._operations_done()
        for operation, times in self.told.done.items():
            assert done[operation] >= times, (operation, times, done[operation])

    def _leases_are_as_told(self, ends: dict[str, Event]) -> None:
        """Whoever was told that he has a lease has it, for as long as he was told so."""
        digests, runners, resumed = dict[str, str](), dict[str, str](), Counter[str]()
        for event in self.events:
            if isinstance(event.body, c.RequestArrived):
                digests[event.subject] = event.body.token_digest
            elif isinstance(event.body, c.RequestDispatched):
                runners[event.subject] = event.body.runner
            elif isinstance(event.body, c.LeaseResumed):
                resumed[event.body.request] += 1
        told = self.told.leases
        for hold in told.holds:
            mine = digests.get(hold.request), runners.get(hold.request)
            assert mine == (hold.digest, hold.runner), (hold.request, mine)
            completed = isinstance(ends[hold.request].body, c.RequestCompleted)
            assert hold.let_go or not completed, f"{hold.request} has ended, and nobody has let go of it"
        for request, times in told.resumed.items():
            assert resumed[request] >= times, (request, times, resumed[request])
        for request, seq in told.refused.items():
            assert ends[request].seq <= seq, (
                f"{request} was unknown at event {seq}, and ended as {ends[request]}"
            )

    def _no_slot_has_two_holders(self) -> None:
        """While leases are held, whoever else was served whole was served in a slot beside theirs."""
        slots = {e.subject: e.body.slots for e in self.events if isinstance(e.body, c.RunnerLoad)}
        holds = self.told.leases.holds
        served = {n["request"]: n for n in self.ledger if "request" in n}
        moments = [(hold.runner, hold.began, hold.request) for hold in holds]
        moments += [(served[n]["of"].partition("/")[0], served[n]["at"], n) for n in self.told.whole]
        for runner, moment, who in moments:
            held = sum(hold.runner == runner and hold.had(moment) for hold in holds)
            assert held < slots[runner], (
                f"{who} was served by {runner}, whose {slots[runner]} slots were leased"
            )
        for name, runner in self.told.leases.direct.items():
            assert served[name]["of"].partition("/")[0] == runner, (name, served[name], runner)

    def _operations_done(self) -> Counter[tuple[str, ...]]:
        """Operations that ended well, by type and what they were about."""
        asked, done = dict[str, tuple[str, ...]](), Counter[tuple[str, ...]]()
        for event in self.events:
            body: Any = event.body
            if isinstance(body, TELLING):
                about = body.request if isinstance(body, c.CancelRequested) else body.model
                pinned = (str(body.pinned),) if isinstance(body, c.PinRequested) else ()
                asked[event.subject] = (str(body.__struct_config__.tag), about, *pinned)
            elif isinstance(body, c.OperationEnded) and body.ok:
                done[asked[body.operation]] += 1
        return done

    def _nothing_happened_twice(self, ends: dict[str, Event]) -> None:
        spawned = {
            (f"{p.runner}/{p.shard}", p.pid, p.start_time)
            for p in (e.body.process for e in self.events if isinstance(e.body, c.ProcessSpawned))
        }
        started = [(n["of"], n["start"], n["start_time"]) for n in self.ledger if "start" in n]
        unknown = [start for start in started if start not in spawned]
        assert not unknown, f"commands that the log does not know: {unknown}"
        twice = [of for of, times in Counter(of for of, *_ in started).items() if times > 1]
        assert not twice, f"commands that ran twice: {twice}"
        dispatches = Counter(e.body.runner for e in self.events if isinstance(e.body, c.RequestDispatched))
        requeued = Counter(e.subject for e in self.events if isinstance(e.body, c.RequestRequeued))
        relayed = [n for n in self.ledger if "request" in n and not n["request"].startswith(DIRECT)]
        taken = Counter(n["of"].partition("/")[0] for n in relayed)
        for runner, times in taken.items():
            assert times <= dispatches[runner], f"{runner} got {times} of {dispatches[runner]} dispatches"
        names = Counter(n["request"] for n in relayed)
        again = {name: times for name, times in names.items() if times > 1}
        assert sum(again.values()) - len(again) <= requeued.total(), again
        for name, times in again.items():
            request = self.told.requests.get(name)
            assert request is None or times <= 1 + requeued[request], f"{name} was sent {times} times"
        ids = {request: name for name, request in self.told.requests.items()}
        for request, end in ends.items():
            if isinstance(end.body, c.RequestCompleted) and request in ids:
                assert names[ids[request]], f"{request} completed, and no runner had it"
