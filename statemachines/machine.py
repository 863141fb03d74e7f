"""Compiling a declared machine into the table that the fold looks up.

`transitions` declares and checks the machines; firing a transition through it costs 7 µs, looking it up in
the compiled table 0.07 µs. A test fires every state × trigger through both and compares.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum
from typing import TypeVar

from transitions import Machine

S = TypeVar("S", bound=Enum)
Table = Mapping[tuple[S, str], S]


class IllegalTransition(Exception):
    """A decision asked for a transition that the machine does not have. The program is wrong: stop."""


def declare(states: type[S], initial: S, rows: Sequence[tuple[Sequence[S], str, S]]) -> Machine:
    """A machine without a model, callbacks or automatic transitions; rows: (sources, trigger, target)."""
    machine = Machine(model=None, states=states, initial=initial, auto_transitions=False)
    for sources, trigger, dest in rows:
        machine.add_transition(trigger, list(sources), dest)
    return machine


def compile_table(machine: Machine, states: type[S]) -> dict[tuple[S, str], S]:
    """{(source, trigger): destination}. Raises AssertionError if the machine is more than a table."""
    table: dict[tuple[S, str], S] = {}
    for trigger, event in machine.events.items():
        for source, transitions in event.transitions.items():
            dest = transitions[0].dest
            if len(transitions) != 1 or transitions[0].conditions or dest is None:
                raise AssertionError(f"{source} on {trigger}: not exactly one unconditional transition")
            table[states[source], trigger] = states[dest]
    return table


def mermaid(states: type[S], initial: S, table: Mapping[tuple[S, str], S], final: Sequence[S]) -> str:
    """The machine as a Mermaid state diagram, its triggers grouped by edge."""
    edges: dict[tuple[S, S], list[str]] = {}
    for (source, trigger), dest in table.items():
        edges.setdefault((source, dest), []).append(trigger)
    lines = ["stateDiagram-v2", f"    [*] --> {initial.name}"]
    for (source, dest), triggers in edges.items():
        lines.append(f"    {source.name} --> {dest.name}: {', '.join(triggers)}")
    lines += [f"    {state.name} --> [*]" for state in final]
    return "\n".join(lines) + "\n"
