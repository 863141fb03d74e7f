"""A short run of the fuzzers; `make fuzz` is the long one."""

from __future__ import annotations

from tests.fuzz import config_fuzz, control_fuzz, http_fuzz

COUNT = 2000


async def test_requests_and_answers_by_chance() -> None:
    assert await http_fuzz.fuzz(7, COUNT) > COUNT / 10


async def test_calls_by_chance() -> None:
    assert await control_fuzz.fuzz(7, COUNT) > 0


def test_configurations_by_chance() -> None:
    loaded, refused = config_fuzz.fuzz(7, COUNT)
    assert loaded > COUNT / 20 and refused > COUNT / 20
