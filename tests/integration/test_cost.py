"""What a relayed request and a chunk of a stream cost, in instructions of Python: counted, so that it is the
same on any machine."""

from __future__ import annotations

import sys

import pytest

from benchmarks.bench_opcodes import measure, total

INSTRUCTIONS = 5_700
CALLS = 182
"""Of the project's own functions, a request at 32 connections, in Python 3.11: a tenth more than it is (how
many share a transaction varies), so that what makes every request dearer is chosen, not found out later."""

CHUNK = 720
"""Of everything, trio included, a chunk of one of 32 streams, with its share of their beginning. Where each
chunk wakes a task it is 1,040."""

ELSEWHERE = 1.3
"""Other versions of Python have other instructions."""


pytestmark = pytest.mark.interpreted


def test_a_relayed_request_costs_no_more_than_it_did() -> None:
    instructions, calls = total(measure(connections=32, seconds=3.0), ours=True)
    most = 1.0 if sys.version_info[:2] == (3, 11) else ELSEWHERE
    assert INSTRUCTIONS / 2 < instructions < INSTRUCTIONS * most
    assert CALLS / 2 < calls < CALLS * most


def test_a_chunk_of_a_stream_wakes_no_task() -> None:
    instructions, _ = total(measure(connections=32, seconds=3.0, streams=True))
    most = 1.0 if sys.version_info[:2] == (3, 11) else ELSEWHERE
    assert CHUNK / 2 < instructions < CHUNK * most
