"""What must always hold. The cheap checks run in production, on every decision that they concern, before
anything is appended; `check_all` walks the whole state and runs after every simulated step.

Invariants bind decisions, not the world: a measurement may find a device over-committed; then nothing new
is loaded there.
"""

from __future__ import annotations

from events.catalogue import LEASE, ClaimMade, RunnerLoad
from statemachines.claims import apart, devices_of, vacant
from statemachines.groups import in_the_way, kept_from, members_of
from statemachines.ledger import budget_bytes, held_bytes
from statemachines.parts import Claim, Demand, Request, Runner
from statemachines.request import RequestState
from statemachines.room import max_loaded
from statemachines.runner import RunnerState
from statemachines.state import State, being_dismissed, head_seq, instances, satisfies, where_of


class Breach(Exception):
    """A decision, or the state after one, breaks an invariant. The program is wrong: append nothing, stop."""


def require(holds: bool, what: str) -> None:
    """Raise Breach unless it holds; unlike `assert`, also under `python -O`. Not for the checks of
    production: to make the sentence takes longer than most of them, so that there only a breach has one."""
    if not holds:
        raise Breach(what)


def check_dispatch(state: State, request: Request, runner: Runner) -> None:
    """A slot of a ready, unsuspected runner with a free one, which is no claim's victim; a request that holds
    none."""
    if runner.state is not RunnerState.ready or runner.suspect:
        raise Breach(
            f"{request.id} dispatched to {runner.id}, which is {runner.state} (suspect: {runner.suspect})"
        )
    if len(runner.held) >= runner.slots:
        raise Breach(f"{request.id} dispatched to {runner.id}, whose {runner.slots} slots are in use")
    if request.slot:
        raise Breach(f"{request.id} dispatched while it holds a slot of {request.runner}")
    for claim in state.claims.values():
        if runner.id in claim.victims:
            raise Breach(f"{request.id} dispatched to {runner.id}, a claim's victim")


def check_stop(runner: Runner, verdict: str, t: int) -> None:
    """No stop under a request, unless its runner failed or the drain's deadline has passed."""
    if runner.held and verdict != "failed" and not 0 < runner.drain_due <= t:
        raise Breach(f"{runner.id} stopped with {len(runner.held)} slots in use")


def check_load(state: State, load: RunnerLoad) -> None:
    """The ledger, the port and the instances of a launch spec allow the load."""
    for device, need in load.reserved_bytes.items():
        budget = budget_bytes(state, device)
        if budget is not None and held_bytes(state, device) + need > budget:
            raise Breach(f"load of {load.model} exceeds the budget of {device}")
    if state.claims:
        _check_spoken_for(state, load)
    check_lease(state, (load.port, *load.shard_ports))
    others = instances(state, load.model, load.digest, load.options)
    view = state.model(load.model)
    if len(others) >= (view.instances_max if view else 1):
        raise Breach(f"{', '.join(others)} already serve the launch spec of {load.model}")
    excluded = in_the_way(state, load.model)
    if excluded:
        raise Breach(f"{load.model} loaded beside {', '.join(excluded)}, which its group or set excludes")
    if state.alone or (load.alone and state.runners):
        raise Breach(
            f"{load.model} loaded beside {next(iter(state.alone or state.runners))}, one to be alone"
        )


def check_lease(state: State, ports: tuple[int, ...], lessee: Runner | None = None) -> None:
    """No port is another runner's, nor given twice; 0 is none."""
    for i, port in enumerate(ports):
        if not port:
            continue
        holder = state.leased.get(port)
        if holder is not None and (lessee is None or holder != lessee.id):
            raise Breach(f"port {port} is {holder}'s")
        if port in ports[:i]:
            raise Breach(f"ports {ports}: one twice")


def check_claim(state: State, claim: ClaimMade) -> None:
    """No victim is pinned, nor of a persistent group that is not the claimant's own, nor preloaded as it. No
    device is another claim's, and each claim will have its place."""
    demand = state.demands[claim.demand]
    for victim in claim.victims:
        runner = state.runners[victim]
        if why := kept_from(state, runner, demand):
            raise Breach(f"{victim} is {why}, and a victim of {claim.demand}")
        for device in devices_of(runner) if not claim.whole else ():
            if device not in claim.devices:
                raise Breach(
                    f"{victim} is a victim of {claim.demand}, and {claim.devices} is not all that it uses"
                )
    for other in state.claims.values():
        _check_apart(claim, other)
        rival = state.demands.get(other.demand)
        if rival is not None and (rival.model == demand.model or apart(state, rival.model, demand.model)):
            raise Breach(f"claims for {rival.key} and {demand.key}, which exclude each other")
    stay = len(state.runners)
    for runner in state.leaving.values():
        stay -= not runner.stuck
    for victim in claim.victims:
        stay -= state.runners[victim].live or state.runners[victim].stuck
    if stay + len(state.claims) >= max_loaded(state):
        raise Breach(f"no place for {claim.demand} beside {len(state.claims)} claims")


def _check_apart(one: ClaimMade | Claim, other: Claim) -> None:
    """Two claims gather room on different devices, and neither has everything to itself."""
    both = [device for device in one.devices if device in other.devices]
    if both or one.whole or other.whole:
        where = ", ".join(both) or "everything"
        raise Breach(f"claims for {one.demand} and {other.demand} at once, both on {where}")


def _check_spoken_for(state: State, load: RunnerLoad) -> None:
    """A load takes nothing that a claim has: its devices, the bytes that it booked elsewhere, its place."""
    booked: dict[str, int] = {}
    vacancies = 0
    for claim in state.claims.values():
        taken = [device for device in load.reserved_bytes if device in claim.devices]
        if claim.whole or taken:
            raise Breach(f"{load.model} loaded on {taken}, where {claim.demand} has a claim")
        vacancies += vacant(state, claim)
        for device, size in claim.need_bytes.items():
            if device not in claim.devices:
                booked[device] = booked.get(device, 0) + size
    for device, size in booked.items():
        budget = budget_bytes(state, device)
        need = load.reserved_bytes.get(device, 0)
        if need and budget is not None and held_bytes(state, device) + need + size > budget:
            raise Breach(f"load of {load.model} takes what claims have booked of {device}")
    if len(state.runners) + vacancies >= max_loaded(state):
        raise Breach(f"load of {load.model} takes the place of a claim")


def check_ended(runner: Runner) -> None:
    """A terminal runner has no process and no slot in use."""
    if not runner.exited:
        raise Breach(f"{runner.id} ended with a process left")
    if runner.held:
        raise Breach(f"{runner.id} ended with slots in use")


def check_all(state: State) -> None:
    """Every invariant, over the whole state. O(state): for simulation and tests."""
    _check_slots(state)
    _check_queues(state)
    _check_waiters(state)
    _check_memory(state)
    _check_claims(state)
    _check_instances(state)
    ports = [port for runner in state.runners.values() for port in runner.ports]
    require(len(ports) == len(dict.fromkeys(ports)), "two runners lease one port")
    leased = {port: runner.id for runner in state.runners.values() for port in runner.ports}
    require(state.leased == leased, "the list of leased ports is wrong")
    config = state.config
    require(state.group_of == members_of(config), "the models' groups are wrong")
    scaled = [name for name, view in config.models.items() if view.instances_max > 1]
    require(list(state.scaled) == scaled, "the models with several instances are wrong")


def _check_instances(state: State) -> None:
    """No more runners of a launch spec serve, or will, than its configuration has."""
    for model, view in state.config.models.items():
        for runner in state.models.get(model, {}).values():
            same = instances(state, model, view.digest, runner.options).values()
            live = [other.id for other in same if other.live]
            require(len(live) <= view.instances_max, f"{', '.join(live)} are too many of {model}")


def _check_claims(state: State) -> None:
    """Claims stand apart, and their victims admit nothing, once all have been told."""
    victims: dict[str, str] = {}
    telling = ("resume", "") in state.deadlines
    claims = list(state.claims.values())
    for i, claim in enumerate(claims):
        for other in claims[:i]:
            _check_apart(claim, other)
        for victim in claim.victims:
            runner = state.runners.get(victim)
            told = runner is None or not runner.live or telling
            require(told, f"{victim} serves, and is a victim of {claim.demand}")
            require(victim not in victims, f"{victim} is a victim of {claim.demand}, and another's")
            victims[victim] = claim.demand


def _check_memory(state: State) -> None:
    held: dict[str, int] = {}
    for runner in state.runners.values():
        for device in runner.reserved_bytes | runner.peak_bytes:
            held[device] = held.get(device, 0) + runner.hold_bytes(device)
    require({k: v for k, v in state.held.items() if v} == {k: v for k, v in held.items() if v}, "held bytes")
    loading = {r.id: r for r in state.runners.values() if r.state is RunnerState.loading}
    require(state.loading == loading, "the list of loading runners is wrong")
    resting = {id: r for id, r in state.runners.items() if r.state is RunnerState.ready and not r.held}
    require(state.resting == resting, "the list of idle runners is wrong")
    leaving = {id: r for id, r in state.runners.items() if not r.live}
    require(state.leaving == leaving, "the list of leaving runners is wrong")
    coming: dict[str, int] = {}
    for runner in loading.values():
        for device in runner.reserved_bytes | runner.peak_bytes:
            coming[device] = coming.get(device, 0) + runner.coming_bytes(device)
    require({k: v for k, v in state.coming.items() if v} == {k: v for k, v in coming.items() if v}, "coming")
    require(list(state.alone) == [r.id for r in state.runners.values() if r.alone], "alone is wrong")


def _check_slots(state: State) -> None:
    for runner in state.runners.values():
        require(len(runner.held) <= runner.slots, f"{runner.id} has more slots in use than it has")
        serving = runner.state is RunnerState.ready or runner.state is RunnerState.draining
        require(not serving or runner.whole, f"{runner.id} is {runner.state}, and a process of it is missing")
        require(
            not runner.held or runner.state is not RunnerState.loading, f"{runner.id} is loading, with slots"
        )
        for id in runner.held:
            request = state.requests.get(id)
            require(request is not None and request.slot and request.runner == runner.id, f"slot of {id}")
    for request in state.requests.values():
        holder = state.runners.get(request.runner) if request.slot else None
        require(
            not request.slot or (holder is not None and request.id in holder.held), f"{request.id}'s slot"
        )
        require(
            request.slot or request.state is RequestState.queued, f"{request.id} is {request.state}, kept"
        )
        require(request.state is not RequestState.dispatched or request.slot, f"{request.id} has no slot")
        if request.kind == LEASE and holder is not None:
            _check_lease(state, request, holder)


def _check_lease(state: State, request: Request, holder: Runner) -> None:
    """A lease that is held will be looked at; the slot of one that was cut is nobody else's any more."""
    due, id = state.deadlines, request.id
    if request.state is RequestState.failed:
        require(not request.revoked or not holder.live, f"{holder.id} serves on, though {id} was cut")
    elif request.state is RequestState.dispatched:
        looked_at = ("revoke" if request.revoked else "lease", id) in due
        require(looked_at, f"the lease {id} has no deadline")
        told = bool(request.revoked) or holder.state is not RunnerState.draining
        require(told, f"{holder.id} drains, and nobody has told the holder of {id}")


def _check_queues(state: State) -> None:
    waiting = 0
    keys = [key for ages in state.starving.values() for _, key in ages]
    require(all(key in state.demands for key in keys), "a demand starves that is not there")
    wanted = {key: demand for mine in state.wanted.values() for key, demand in mine.items()}
    require(wanted == state.demands and all(state.wanted.values()), "demands by model are wrong")
    for key, demand in state.demands.items():
        waiting += len(demand.waiting)
        require(bool(demand.waiting or demand.operations), f"demand {key} is empty")
        servers = sum(runner.live and satisfies(runner, demand) for runner in state.runners.values())
        require(servers == demand.servers, f"demand {key}: {demand.servers} servers counted, {servers} there")
        require(demand.where == where_of(state.model(demand.model)), f"demand {key}: {demand.where}")
        starving = state.starving.get((demand.priority, demand.where))
        rank = starving.get(key) if starving else None
        require(rank == (None if servers else head_seq(demand)), f"demand {key}: starving is wrong")
        for id in demand.waiting:
            require(state.requests[id].state is RequestState.queued, f"{id} waits but is not queued")
    require(waiting == state.queued, f"{state.queued} queued counted, {waiting} there")
    # Requests that were requeued, or were queued before a limit was lowered, may stand above the limit.


def _check_waiters(state: State) -> None:
    """No waiter without a pending cause, itself a state with a deadline; no claim without a waiter."""
    due = state.deadlines
    for claim in state.claims if ("resume", "") not in due else ():
        require(claim in state.demands, f"a claim for {claim}, which nobody wants")
    for demand in state.demands.values():
        if state.stopping or ("resume", "") in due or being_dismissed(state, demand):
            continue
        if demand.servers:
            require(
                _served_cause(state, demand), f"{demand.key} waits for its runner, which waits for nothing"
            )
            continue
        leaving = any(not runner.live and not runner.stuck for runner in state.runners.values())
        loading = any(
            runner.suspect or runner.state is RunnerState.loading for runner in state.runners.values()
        )
        turn = demand.turn_due != -1 or any(d.turn_due != -1 for d in state.demands.values())
        cooling = demand.model in state.cooling and ("cool", demand.model) in due
        lingers = any(("linger", runner.id) in due for runner in state.runners.values())
        cause = state.measuring or leaving or loading or turn or cooling or lingers or state.claims
        require(bool(cause), f"{demand.key} starves, and nothing is pending that could end it")


def _served_cause(state: State, demand: Demand) -> bool:
    due = state.deadlines
    for runner in state.runners.values():
        if not runner.live or not satisfies(runner, demand):
            continue
        if runner.state is RunnerState.loading and ("load", runner.id) in due:
            return True
        if runner.suspect and ("probe", runner.id) in due:
            return True
        if len(runner.held) >= runner.slots:
            return True
    return False
