"""The two machines: every state and trigger is in the table, or refused with the state unchanged."""

from __future__ import annotations

from enum import StrEnum
from types import ModuleType
from typing import Any

import pytest
from transitions import MachineError

from statemachines import machine, request, runner
from statemachines.request import RequestState
from statemachines.runner import RunnerState

MACHINES: list[tuple[ModuleType, type[StrEnum], StrEnum]] = [
    (runner, RunnerState, RunnerState.loading),
    (request, RequestState, RequestState.arrived),
]
both = pytest.mark.parametrize(("module", "states", "initial"), MACHINES, ids=["runner", "request"])


class Subject:
    """What a machine moves, no larger than the state itself."""

    __slots__ = ("state",)

    def __init__(self, state: StrEnum) -> None:
        self.state = state


def combinations() -> list[Any]:
    """Every state and trigger of both machines."""
    return [
        pytest.param(module, state, trigger, id=f"{states.__name__}-{state}-{trigger}")
        for module, states, _ in MACHINES
        for state in states
        for trigger in module.MACHINE.events
    ]


@pytest.mark.parametrize(("module", "state", "trigger"), combinations())
def test_every_state_and_trigger_is_in_the_table_or_refused(
    module: ModuleType, state: StrEnum, trigger: str
) -> None:
    subject = Subject(state)
    dest = module.TABLE.get((state, trigger))
    if dest is not None:
        assert module.MACHINE.events[trigger].trigger(subject)
        assert subject.state is dest
    else:
        with pytest.raises(MachineError):
            module.MACHINE.events[trigger].trigger(subject)
        assert subject.state is state


@both
def test_the_machine_has_no_trigger_beside_its_table(
    module: ModuleType, states: type[StrEnum], initial: StrEnum
) -> None:
    declared = dict.fromkeys(trigger for _, trigger in module.TABLE)
    assert list(module.MACHINE.events) == list(declared)
    assert module.MACHINE.initial == initial.name
    assert module.MACHINE.models == []


@both
def test_terminal_states_have_no_rows_and_all_others_have_some(
    module: ModuleType, states: type[StrEnum], initial: StrEnum
) -> None:
    sources = {source for source, _ in module.TABLE}
    assert sources == set(states) - set(module.TERMINAL)


@both
def test_every_state_is_reached_and_every_state_can_end(
    module: ModuleType, states: type[StrEnum], initial: StrEnum
) -> None:
    def reachable(start: StrEnum) -> set[StrEnum]:
        seen, edge = {start}, [start]
        while edge:
            here = edge.pop()
            new = {dest for (source, _), dest in module.TABLE.items() if source is here} - seen
            seen |= new
            edge += new
        return seen

    assert reachable(initial) == set(states)
    for state in states:
        assert reachable(state) & set(module.TERMINAL), f"{state} never ends"


@both
def test_the_diagram_shows_every_edge(module: ModuleType, states: type[StrEnum], initial: StrEnum) -> None:
    diagram = machine.mermaid(states, initial, module.TABLE, module.TERMINAL)
    for (source, trigger), dest in module.TABLE.items():
        edge = next(line for line in diagram.splitlines() if f"{source.name} --> {dest.name}:" in line)
        assert trigger in edge.split(": ")[1].split(", ")


def test_a_draining_runner_is_never_revived() -> None:
    left = {RunnerState.draining, RunnerState.stopping, RunnerState.reclaiming, *runner.TERMINAL}
    assert all(dest in left for (source, _), dest in runner.TABLE.items() if source in left)


def test_a_kill_neither_frees_nor_ends_a_runner() -> None:
    assert runner.TABLE[RunnerState.stopping, "kill"] is RunnerState.stopping
    assert runner.TABLE[RunnerState.stopping, "stuck"] is RunnerState.stopping


def test_a_machine_that_is_more_than_a_table_is_refused() -> None:
    loaded = machine.declare(
        RunnerState, RunnerState.loading, [([RunnerState.loading], "healthy", RunnerState.ready)]
    )
    loaded.add_transition("healthy", RunnerState.loading, RunnerState.failed)
    with pytest.raises(AssertionError, match="not exactly one"):
        machine.compile_table(loaded, RunnerState)


def test_a_condition_is_refused() -> None:
    loaded = machine.declare(RunnerState, RunnerState.loading, [])
    loaded.add_transition("healthy", RunnerState.loading, RunnerState.ready, conditions="is_lucky")
    with pytest.raises(AssertionError, match="unconditional"):
        machine.compile_table(loaded, RunnerState)
