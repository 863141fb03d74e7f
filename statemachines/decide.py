"""Deciding: what follows from each fact. Pure, total, never waiting; one handler per fact.

A handler runs after its fact was folded. It reads the state and concludes through `Scheduler.emit`, which
folds each decision at once, so that the next line of the handler sees it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from events import catalogue as c
from events.catalogue import NEVER
from events.limits import (
    COOL_FIRST_NS,
    COOL_MAX_NS,
    CRASH_WINDOW_NS,
    RECLAIM_POLL_NS,
    RESPONSE_NS,
)
from statemachines.groups import kept_from, protected
from statemachines.leases import cut, end_all
from statemachines.ledger import back, footprint_of
from statemachines.loading import grow, place
from statemachines.parts import Demand, Request, Runner
from statemachines.policy import first_of
from statemachines.request import RequestState
from statemachines.room import next_ports
from statemachines.runner import RunnerState, last_words
from statemachines.state import dismissed, fits, head_seq, is_many, satisfies, unload_due, waiting_for
from statemachines.tables import number

if TYPE_CHECKING:
    from statemachines.scheduler import Scheduler


# --- requests --------------------------------------------------------------------------------------------


def arrived(s: Scheduler, f: c.RequestArrived, id: str) -> None:
    """Reject, dispatch or queue; a queued request may cause a load."""
    state = s.state
    if state.stopping or state.quarantine or f.model not in state.config.models or f.options:
        refusal = _refusal(s, f, id)
        if refusal is not None:
            s.emit(refusal)
            return
    view = state.config.models[f.model]
    runners = state.models.get(f.model)
    if view.concurrency_limit and _in_flight(s, f.model) >= view.concurrency_limit:
        s.emit(c.RequestRejected(id, "concurrency_limit", 1_000_000_000))
        return
    if runners:
        runner = _free_runner(s, f, runners)
        if runner is not None:
            s.emit(c.RequestDispatched(id, runner.id))
            return
    if state.cooling and (pause := _cooling_ns(s, f)):
        s.emit(c.RequestRejected(id, "cooling_down", pause))
        return
    if state.queued >= state.config.max_queue:
        s.emit(c.RequestRejected(id, "queue_full", _turnover_ns(s)))
        return
    s.emit(c.RequestQueued(id, _reason_to_wait(s, f)))
    if state.starving:
        demand = state.demands[state.requests[id].demand]
        if not demand.servers and len(demand.waiting) == 1:
            place(s, demand)
    elif f.model in state.scaled:
        grow(s, f.model, f.options, queue=True)


def _refusal(s: Scheduler, f: c.RequestArrived, id: str) -> c.RequestRejected | None:
    """Why a request cannot even be queued, if so."""
    state = s.state
    if state.stopping:
        return c.RequestRejected(id, "stopping")
    view = state.model(f.model)
    if view is None:
        return c.RequestRejected(id, "unknown_model")
    unknown = [name for name in f.options if name not in view.options]
    if unknown:
        return c.RequestRejected(id, "unknown_option", detail=", ".join(unknown))
    if f.model in state.quarantine:
        return c.RequestRejected(id, "quarantined", state.quarantine[f.model] - state.t)
    return None


def _cooling_ns(s: Scheduler, f: c.RequestArrived) -> int:
    """How long the model is not loaded again; 0: a runner serves these options, or it does not cool."""
    cooling = s.state.cooling.get(f.model)
    if cooling is None or any(
        runner.live and fits(runner, f.options) for runner in s.state.models.get(f.model, {}).values()
    ):
        return 0
    return max(0, cooling.until_t - s.state.t)


def _in_flight(s: Scheduler, model: str) -> int:
    """How many of a model's requests there are, beside one that has just arrived."""
    queued = sum(len(demand.waiting) for demand in waiting_for(s.state, model))
    return queued + sum(len(runner.held) for runner in s.state.models.get(model, {}).values())


def _turnover_ns(s: Scheduler) -> int:
    """When it may be worth trying again after a full queue: about one load from now."""
    costs = s.state.load_cost_ns
    return max(1_000_000_000, max(costs.values(), default=0))


def _free_runner(s: Scheduler, f: c.RequestArrived, runners: dict[str, Runner]) -> Runner | None:
    """The least busy runner with a free slot that serves these options, unless others wait for it."""
    if s.state.queued and ("resume", "") in s.state.deadlines:
        return None
    best: Runner | None = None
    for runner in runners.values():
        if runner.state is not RunnerState.ready or runner.suspect or len(runner.held) >= runner.slots:
            continue
        if (f.options or runner.less) and not fits(runner, f.options):
            continue
        if best is None or len(runner.held) < len(best.held):
            best = runner
    return best


def _reason_to_wait(s: Scheduler, f: c.RequestArrived) -> str:
    """What a request waits for, for people: the state with the deadline is the runner's or the claim's."""
    for runner in s.state.models.get(f.model, {}).values():
        if runner.live and fits(runner, f.options):
            if runner.state is RunnerState.loading:
                return f"{runner.id} loads"
            return f"{runner.id} is suspect" if runner.suspect else f"{runner.id} is busy"
    return "no runner"


def upstream_ended(s: Scheduler, f: c.UpstreamEnded, id: str) -> None:
    """The exchange has ended: so does its request, unless it may be tried again; the slot is free."""
    state = s.state
    request = state.requests.get(f.request)
    if request is not None and request.state is RequestState.dispatched and not request.slot:
        if f.complete:
            cooled = bool(state.cooling) and request.model in state.cooling
            s.emit(c.RequestCompleted(request.id))
            if cooled:  # no longer: those who waited for that may have their load
                place(s)
        else:
            _failed_exchange(s, request, f)
    runner = state.runners.get(f.runner)
    if runner is not None:
        slot_freed(s, runner)


def _failed_exchange(s: Scheduler, request: Request, f: c.UpstreamEnded) -> None:
    if f.error == c.FIRST_BYTE_LATE:
        s.emit(c.RequestTimedOut(request.id, "first_byte_timeout"))
        return
    again = f.bytes_to_client == 0 and request.attempt == 1 and not s.state.stopping
    again = again and request.kind != c.LEASE  # its holder knows that runner's address
    runner = s.state.runners.get(f.runner)
    if again and not (runner is not None and runner.cancelled):
        s.emit(c.RequestRequeued(request.id, f.runner, f.error or "ended early"))
        for other in s.state.models.get(request.model, {}).values():
            if other.state is RunnerState.ready and not other.suspect:
                dispatch_waiting(s, other)
        place(s)
    else:
        reason = "cut_off" if f.error == c.CUT_OFF else "upstream_failed"
        s.emit(c.RequestFailed(request.id, reason, f.runner, f.error))


def slot_freed(s: Scheduler, runner: Runner) -> None:
    """A runner has a slot more: suspect it, stop it, end it, or give it its next request."""
    if runner.state is RunnerState.ready:
        if runner.suspect:
            _suspect(s, runner)
        elif s.state.queued:
            dispatch_waiting(s, runner)
        if not runner.held and s.state.starving:
            place(s)
    elif runner.state is RunnerState.draining:
        if not runner.held:
            s.emit(c.RunnerStop(runner.id, "unloaded", runner.reason))
        elif runner.suspect:
            _suspect(s, runner)
    elif runner.state is RunnerState.reclaiming:
        finish(s, runner)


def _suspect(s: Scheduler, runner: Runner) -> None:
    """Ask a newly suspected runner for its health, now."""
    due = s.state.deadlines
    if ("probe", runner.id) not in due and ("reprobe", runner.id) not in due:
        s.emit(c.RunnerProbe(runner.id, "suspect"))


def dispatch_waiting(s: Scheduler, runner: Runner) -> None:
    """Fill a ready runner's free slots from the queues that it satisfies, best rank first."""
    state = s.state
    while len(runner.held) < runner.slots:
        demand = _next_demand(s, runner)
        if demand is None:
            return
        s.left -= 1
        if s.left < 0:
            return
        request = state.requests[demand.waiting.first()]
        s.emit(c.RequestDispatched(request.id, runner.id, request.attempt + 1))


def _next_demand(s: Scheduler, runner: Runner) -> Demand | None:
    state = s.state
    # The common case: no options, no priority.
    own = None if runner.less else state.demands.get(runner.model)
    best: Demand | None = None
    for demand in waiting_for(state, runner.model):
        if demand.servers and demand.waiting and (demand is own or satisfies(runner, demand)):
            best = demand if best is None else first_of(state, best, demand)
    return best


def client_gone(s: Scheduler, f: c.ClientGone, id: str) -> None:
    """The request ends at once; its exchange, if it has one, still holds the slot."""
    request = s.state.requests.get(f.request)
    if request is not None and request.state in (RequestState.queued, RequestState.dispatched):
        s.emit(c.RequestCancelled(request.id, "client_gone"))
        left(s, request)


def cancel_requested(s: Scheduler, f: c.CancelRequested, id: str) -> None:
    """An operator's cancel, answered whether or not there was anything to cancel."""
    request = s.state.requests.get(f.request)
    if request is not None and request.state in (RequestState.queued, RequestState.dispatched):
        if request.kind == c.LEASE and request.slot:
            cut(s, request, "operator")
        s.emit(c.RequestCancelled(request.id, "operator"))
        s.emit(c.OperationEnded(id, True))
        left(s, request)
    else:
        s.emit(c.OperationEnded(id, False, "request_not_found"))


def left(s: Scheduler, request: Request) -> None:
    """A request has left before its turn. If it was the last of its demand: stop a load that nobody waits
    for any more, let go of a claim. Look at those who waited behind it, also if it was only the first."""
    state = s.state
    if request.slot:
        return
    demand = state.demands.get(request.demand)
    if demand is not None:
        if not demand.servers and request.seq < head_seq(demand):
            place(s)  # it gave its demand the rank that it had
        return
    for runner in list(state.models.get(request.model, {}).values()):
        if runner.state is not RunnerState.loading or runner.wanted:
            continue
        if not any(satisfies(runner, demand) for demand in waiting_for(state, runner.model)):
            s.emit(c.RunnerStop(runner.id, "unloaded", "nobody_waits"))
    if request.demand in state.claims:
        s.emit(c.ClaimEnded(request.demand, "nobody_waits"))
    place(s)


def dismiss_waiting(s: Scheduler, key: str) -> None:
    """Fail the waiters that a dismissal concerns, as many as this step may."""
    state = s.state
    why = state.dismissing.get(key)
    while why is not None and key in state.dismissing and (demand := dismissed(state, why)) is not None:
        s.left -= 1
        if s.left < 0:
            return
        if demand.operations:
            operation = next(iter(demand.operations))
            s.emit(c.OperationEnded(operation, False, why.reason, why.runner, why.detail))
        else:
            s.emit(c.RequestFailed(demand.waiting.first(), why.reason, why.runner, why.detail))


# --- runners ---------------------------------------------------------------------------------------------


def process_gone(s: Scheduler, f: c.ProcessExited | c.SpawnFailed, id: str) -> None:
    """A runner without a process: reclaim its memory, then end it. One that has lost a process of several is
    of no use any more: the others go, too."""
    runner = s.state.runners.get(f.runner)
    if runner is None:
        return
    if runner.state is RunnerState.reclaiming:
        end_all(s, runner)
        finish(s, runner)
    elif runner.ended:
        stop_broken(s, runner)


def stop_broken(s: Scheduler, runner: Runner) -> None:
    """End what is left of a runner that has lost a process, unless it is to end already."""
    if runner.state in (RunnerState.loading, RunnerState.ready, RunnerState.draining):
        s.emit(c.RunnerStop(runner.id, "failed", "shard_exited"))


def lease_refused(s: Scheduler, f: c.LeaseRefused, id: str) -> None:
    """The next port, unless the fold found that there is none to try."""
    runner = s.state.runners.get(f.runner)
    if runner is None or f.port not in runner.ports or runner.processes:
        return
    if runner.state is RunnerState.loading:
        (other,) = next_ports(s.state, 1)
        shards = tuple(other if port == f.port else port for port in runner.shard_ports)
        s.emit(c.RunnerLeased(runner.id, other if runner.port == f.port else runner.port, shards))
    elif runner.state is RunnerState.reclaiming:
        finish(s, runner)


def finish(s: Scheduler, runner: Runner) -> None:
    """End a runner whose processes are gone, once its slots are back and its memory is, or should be."""
    state = s.state
    if runner.held:
        return
    if ("memory", runner.id) in state.deadlines and not back(state, runner):
        if not state.measuring and ("poll", runner.id) not in state.deadlines:
            s.emit(c.MemoryMeasure(f"reclaim {runner.id}"))
        return
    footprint = footprint_of(state, runner)
    if runner.verdict == "unloaded":
        s.emit(c.RunnerUnloaded(runner.id, runner.reason, footprint))
    else:
        s.emit(c.RunnerFailed(runner.id, runner.reason, footprint))
        _after_failure(s, runner)
    answer_unloads(s)
    place(s)


def answer_unloads(s: Scheduler) -> None:
    """Answer the unloads whose runners are gone, or of which only what cannot be ended is left."""
    state = s.state
    for operation in list(state.operations.values()):
        if operation.kind == "unload" and all(state.runners[id].stuck for id in operation.runners):
            left = ", ".join(operation.runners)
            s.emit(c.OperationEnded(operation.id, not left, "stuck" if left else "", detail=left))


def _after_failure(s: Scheduler, runner: Runner) -> None:
    """A failure to load, or one that looks like it, cools the model down and answers its waiters. The first
    time that one dies which was ready, its model is loaded again at once for who waits."""
    state = s.state
    was_ready = runner.ready_t != NEVER
    if state.stopping or (was_ready and runner.served and runner.exit_t - runner.ready_t >= CRASH_WINDOW_NS):
        return
    before = state.cooling.get(runner.model)
    crowded = runner.short and not runner.alone and runner.model not in state.crowded and before is None
    if crowded and _may_be_alone(s, runner):
        s.emit(c.ModelCrowded(runner.model, runner.id, runner.output))
        return
    failures = before.failures + 1 if before else 1
    again = was_ready and failures == 1
    pause = 0 if again else min(COOL_FIRST_NS << min(failures - 1, 20), COOL_MAX_NS)
    s.emit(c.ModelCooling(runner.model, runner.id, failures, state.t + pause, last_words(runner), again))
    if not again and any(not demand.servers for demand in waiting_for(state, runner.model)):
        s.dismiss(runner.model, "load_failed", runner.id)


def _may_be_alone(s: Scheduler, runner: Runner) -> bool:
    """Whether there is something beside this runner's model, and all of it can make room for that."""
    state = s.state
    demands = list(waiting_for(state, runner.model))
    for other in state.runners.values():
        if other.stuck or protected(state, other, runner.model):
            return False
        if any(kept_from(state, other, demand) for demand in demands):
            return False
    return bool(state.runners)


def probe_answered(s: Scheduler, f: c.ProbeAnswered, id: str) -> None:
    """Ready, cleared of suspicion, or silent for too long."""
    runner = s.state.runners.get(f.runner)
    if runner is None:
        return
    if runner.state is RunnerState.ready and f.healthy:
        answer_operators(s, runner)
        dispatch_waiting(s, runner)
        place(s)
        if runner.model in s.state.scaled:
            grow_all(s, runner.model, runner)
    elif not f.healthy:
        silent(s, runner)


def answer_operators(s: Scheduler, runner: Runner) -> None:
    """A runner is what operators wanted loaded."""
    demands = waiting_for(s.state, runner.model)
    for demand in [d for d in demands if d.operations and satisfies(runner, d)]:
        for operation in list(demand.operations):
            s.emit(c.OperationEnded(operation, True, runner=runner.id))


def grow_all(s: Scheduler, model: str, like: Runner | None = None) -> None:
    """More instances of a model, for those who wait, or as many as `like` (else the oldest) is to have beside
    it at least."""
    like = like or next(iter(s.state.models.get(model, {}).values()), None)
    for demand in list(waiting_for(s.state, model)):
        if demand.servers and demand.waiting:
            grow(s, model, demand.options, queue=True)
    if like is not None:
        grow(s, model, like.options, queue=False)


def silent(s: Scheduler, runner: Runner) -> None:
    """A runner that has answered nothing and failed its probes for too long is hung."""
    if runner.state not in (RunnerState.ready, RunnerState.draining) or runner.silent_t == NEVER:
        return
    if s.state.t - runner.silent_t >= RESPONSE_NS:
        s.emit(c.RunnerStop(runner.id, "failed", "hung"))


# --- memory ----------------------------------------------------------------------------------------------


def measured(s: Scheduler, f: c.MemoryMeasured, id: str) -> None:
    """What waited for a measurement: runners to be reclaimed, demands to be placed."""
    settle(s, apart=is_many(s.state))


def settle(s: Scheduler, *, apart: bool = False) -> None:
    """End the runners whose memory is back, then see who may have it. Among many runners each is ended in a
    step of its own, and none in this one if it is to be `apart`."""
    state, many = s.state, is_many(s.state)
    for runner in sorted(state.leaving.values(), key=lambda runner: number(runner.id)):
        if runner.state is RunnerState.reclaiming and not runner.held:
            if apart:
                s.more = True
                return
            _reclaim(s, runner)
            apart = many and runner.id not in state.runners
    place(s, apart=apart)
    for model in state.scaled:
        grow_all(s, model)


def _reclaim(s: Scheduler, runner: Runner) -> None:
    if back(s.state, runner):
        finish(s, runner)
    elif ("poll", runner.id) not in s.state.deadlines:
        s.emit(c.ReclaimWaits(runner.id, s.state.t + RECLAIM_POLL_NS))


# --- operators -------------------------------------------------------------------------------------------


def load_requested(s: Scheduler, f: c.LoadRequested, id: str) -> None:
    """Answer at once where a runner is ready, or nothing can be done; else place the demand."""
    state = s.state
    operation = state.operations[id]
    view = state.model(f.model)
    if view is None or state.stopping:
        s.emit(c.OperationEnded(id, False, "stopping" if state.stopping else "unknown_model"))
        return
    if unknown := [name for name in f.options if name not in view.options]:
        s.emit(c.OperationEnded(id, False, "unknown_option", detail=", ".join(unknown)))
        return
    demand = state.demands[operation.demand]
    for runner in state.models.get(f.model, {}).values():
        if runner.state is RunnerState.ready and satisfies(runner, demand):
            s.emit(c.OperationEnded(id, True, runner=runner.id))
            return
    place(s)


def unload_requested(s: Scheduler, f: c.UnloadRequested, id: str) -> None:
    """Drain or stop the runners meant; with `cancel`, fail who waits for them."""
    state = s.state
    targets = [state.runners[runner] for runner in state.operations[id].runners]
    for runner in targets:
        due = state.t if f.now else unload_due(state, runner)
        s.retire(runner, "operator", 0 if f.gently else due)
    if f.cancel:
        models = [f.model] if f.model else [r.model for r in targets] if f.runner else state.wanted
        for model in dict.fromkeys(models):
            s.dismiss(model, "unloaded")
    if not targets:
        known = not f.runner and (not f.model or state.model(f.model) is not None)
        why = "not_loaded" if known else "unknown_runner" if f.runner else "unknown_model"
        s.emit(c.OperationEnded(id, known, why))
    answer_unloads(s)
    place(s)


def pin_requested(s: Scheduler, f: c.PinRequested, id: str) -> None:
    """Done by the fold; without the pin something may fit that did not."""
    known = s.state.model(f.model) is not None
    s.emit(c.OperationEnded(id, known, "" if known else "unknown_model"))
    place(s)


def profile_requested(s: Scheduler, f: c.ProfileRequested, id: str) -> None:
    """Done by the fold."""
    s.emit(c.OperationEnded(id, True, ""))


# --- the daemon ------------------------------------------------------------------------------------------


def daemon_started(s: Scheduler, f: c.DaemonStarted, id: str) -> None:
    """What died with the last start is ended; what survived is probed before it gets work. A lease whose
    runner survived is kept for who held it."""
    state = s.state
    for request in list(state.requests.values()):
        if not request.slot:
            s.emit(c.RequestInterrupted(request.id))
    alive = {process.runner: None for process in f.survivors}
    for runner in list(state.runners.values()):
        if runner.id not in alive and not runner.exited:
            s.emit(c.RunnerLost(runner.id))
        elif not runner.exited and (runner.ended or not runner.whole):
            stop_broken(s, runner)
        elif runner.state is RunnerState.draining:
            s.emit(c.RunnerStop(runner.id, "unloaded", runner.reason))
        elif runner.state is RunnerState.ready:
            s.emit(c.RunnerProbe(runner.id, "adopted"))
        elif runner.state is RunnerState.reclaiming:
            finish(s, runner)


def config_changed(s: Scheduler, f: c.ConfigChanged, id: str) -> None:
    """Runners whose launch spec changed or vanished go; waiters of a removed model get an error."""
    state = s.state
    for runner in list(state.runners.values()):
        view = state.model(runner.model)
        if view is None or view.digest != runner.digest:
            s.retire(runner, "configuration", unload_due(state, runner))
    for model in list(state.models):
        _reduce(s, model)
    for model in [model for model in state.wanted if state.model(model) is None]:
        s.dismiss(model, "unknown_model")
    for runner in list(state.runners.values()):  # it may suit more than before
        if runner.state is RunnerState.ready and not runner.suspect and runner.model in state.wanted:
            answer_operators(s, runner)
            dispatch_waiting(s, runner)
    place(s)


def _reduce(s: Scheduler, model: str) -> None:
    """Let a model's surplus instances go, of each launch spec: what loads first, then what is idle, then the
    least busy, which end what they have; of equals the youngest."""
    state, view = s.state, s.state.config.models.get(model)
    mine = list(state.models.get(model, {}).values()) if view is not None else []
    while view is not None and mine:
        first = mine[0]
        same = [r for r in mine if r.live and r.digest == first.digest and r.options == first.options]
        mine = [r for r in mine if r.digest != first.digest or r.options != first.options]
        same.sort(key=lambda runner: (runner.ready_t != NEVER, len(runner.held), -number(runner.id)))
        for runner in same[: max(0, len(same) - view.instances_max)]:
            s.retire(runner, "configuration", 0)


def stop_requested(s: Scheduler, f: c.StopRequested, id: str) -> None:
    """Refuse who waits; drain the runners, or leave them to be adopted."""
    state = s.state
    for model in list(state.wanted):
        s.dismiss(model, "stopping")
    for claim in list(state.claims):
        s.emit(c.ClaimEnded(claim, "stopping"))
    if f.how == "leave":
        return
    for runner in list(state.runners.values()):
        s.retire(runner, "stopping", state.t if f.how == "now" else unload_due(state, runner))


def noted(s: Scheduler, f: c.Fact, id: str) -> None:
    """Nothing follows."""


HANDLERS: dict[type, Callable[[Scheduler, Any, str], None]] = {
    c.RequestArrived: arrived,
    c.UpstreamEnded: upstream_ended,
    c.ClientGone: client_gone,
    c.LeaseResumed: noted,
    c.CancelRequested: cancel_requested,
    c.ProcessSpawned: noted,
    c.ProcessExited: process_gone,
    c.SpawnFailed: process_gone,
    c.LeaseRefused: lease_refused,
    c.LoadProgressed: noted,
    c.ProbeAnswered: probe_answered,
    c.MemoryMeasured: measured,
    c.LoadRequested: load_requested,
    c.UnloadRequested: unload_requested,
    c.PinRequested: pin_requested,
    c.ProfileRequested: profile_requested,
    c.DaemonStarted: daemon_started,
    c.DaemonStopped: noted,
    c.ConfigChanged: config_changed,
    c.StopRequested: stop_requested,
    c.LogResumed: noted,
    c.LogTailLost: noted,
    c.LogSalvaged: noted,
    c.StateCarried: noted,
    c.BreachRecorded: noted,
}
