"""What a relayed request costs, in instructions of Python: counted, so that it is the same on any machine."""

from __future__ import annotations

from benchmarks.bench_opcodes import measure, total

INSTRUCTIONS = 5_050
CALLS = 148
"""Of the project's own functions, a request at 32 connections: some hundredths more than it is, so that what
makes every request dearer is chosen, and not found out later."""


def test_a_relayed_request_costs_no_more_than_it_did() -> None:
    instructions, calls = total(measure(connections=32, seconds=3.0), ours=True)
    assert INSTRUCTIONS / 2 < instructions < INSTRUCTIONS
    assert CALLS / 2 < calls < CALLS
