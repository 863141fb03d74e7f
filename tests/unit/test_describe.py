"""Every event has a sentence, and one that a person can read."""

from __future__ import annotations

import json
import re

import msgspec
import pytest

from daemon.cli.describe import DEADLINES, SENTENCES, describe, duration, named, size
from daemon.cli.output import age, memory
from events.catalogue import DECISIONS, FACTS, Payload
from events.upcast import CLASSES
from statemachines import deadlines
from tests.unit.test_catalogue import full, minimal

EVENTS = [*FACTS, *DECISIONS]
HOUR = 3600 * 10**9


def sentence(cls: type[Payload], fields: dict[str, object]) -> str:
    """What is said of an event that the catalogue can write and read."""
    stored = json.loads(msgspec.json.encode(msgspec.convert(fields, cls)))
    return describe(stored.pop("type"), "q12", stored)


def test_every_type_of_the_catalogue_has_its_sentence_and_the_reverse() -> None:
    assert set(SENTENCES) == set(CLASSES)


def test_every_kind_of_deadline_has_its_words_and_the_reverse() -> None:
    assert set(DEADLINES) == set(deadlines.DEADLINES)


@pytest.mark.parametrize("cls", EVENTS, ids=lambda cls: str(cls.__struct_config__.tag))
def test_a_sentence_is_for_people(cls: type[Payload]) -> None:
    """With every field and with only those that must be there: never a Python value, a type or a raw name."""
    for fields in (minimal(cls), full(cls)):
        words = sentence(cls, fields)
        assert words == words.strip()
        assert 5 < len(words) < 200
        assert "\n" not in words
        assert not re.search(r"None|True|False|[{}]|\b_|_ns|_bytes|lambda", words), words
        assert str(cls.__struct_config__.tag) not in words


@pytest.mark.parametrize(
    ("type", "subject", "payload", "words"),
    [
        ("runner.load", "r17",
         {"model": "qwen", "options": {"num_ctx": 8192}, "reserved_bytes": {"gpu0": 6 << 30}, "port": 5801,
          "reason": "request q12"},
         "r17 loads qwen with num_ctx=8192: 6.0 GiB on gpu0, port 5801 (request q12)"),
        ("request.arrived", "q12", {"model": "qwen", "kind": "chat"}, "q12 wants qwen (chat)"),
        ("process.exited", "r1", {"status": -9}, "r1 exited by signal 9"),
        ("process.exited", "r1", {"status": None}, "r1 exited"),
        ("process.exited", "r1", {"status": 1, "output": "a\nout of memory\n"},
         "r1 exited with status 1: out of memory"),
        ("process.exited", "r1", {"shard": 2, "status": 3}, "r1 shard 2 exited with status 3"),
        ("runner.leased", "r1", {"port": 5800, "shard_ports": [5802]}, "r1 gets ports 5800, 5802 instead"),
        ("load.progressed", "r1", {"sign": "read"}, "r1 gets on with its load: it reads"),
        ("claim.made", "m",
         {"demand": "m?num_ctx=4096!0!r9", "need_bytes": {"gpu0": 1 << 30}, "victims": ["r3"]},
         "m with num_ctx=4096 claims room (1.0 GiB on gpu0): r3 must go"),
        ("model.cooling", "m", {"model": "m", "failures": 1, "message": ""},
         "m cools down after 1 failure"),
        ("deadline.passed", "r3", {"kind": "keep_alive", "id": "r3"}, "r3 has been idle for its keep-alive"),
        ("deadline.passed", "", {"kind": "resume", "id": ""}, "what did not fit into the last step goes on"),
        ("operator.unload", "o9", {"now": True, "cancel": True, "by": "uid 0 pid 7"},
         "o9: unload everything now and cancel who waits, asked by uid 0 pid 7"),
        ("request.arrived", "q3", {"model": "m", "kind": "lease", "caller": "uid 5 pid 7"},
         "q3 wants a lease of m, asked by uid 5 pid 7"),
        ("lease.revoked", "q3", {"request": "q3", "runner": "r5", "reason": "others_wait", "until_ns": 5},
         "q3: its holder is told to let go of r5 (others wait)"),
        ("upstream.ended", "q3", {"request": "q3", "runner": "r5", "complete": True},
         "q3: r5 has been let go of"),
        ("upstream.ended", "q3", {"request": "q3", "runner": "r5", "error": "the lease is over"},
         "q3 broken off (the lease is over) by r5: status 0, 0 B"),
        ("lease.resumed", "q3", {"request": "q3", "by": "uid 5 pid 8"},
         "q3: its lease is held by uid 5 pid 8 now"),
        ("operator.unload", "o9", {"runner": "r5", "gently": True, "by": "http 127.0.0.1"},
         "o9: unload r5 gently, asked by http 127.0.0.1"),
        ("request.rejected", "q1", {"reason": "queue_full", "retry_after_ns": 5 * 10**9},
         "q1 rejected: queue full, again in 5.0 s"),
        ("daemon.started", "", {"version": "1", "survivors": [{}]},
         "runnerd 1 started, 1 runner process of the last start found alive"),
    ],
)  # fmt: skip
def test_what_is_said(type: str, subject: str, payload: dict[str, object], words: str) -> None:
    assert describe(type, subject, payload) == words


def test_a_person_sees_the_names_of_users() -> None:
    said = "o9: load m, asked by uid 0 pid 7"
    assert named(said) == "o9: load m, asked by root (uid 0, pid 7)"
    assert named("uid 3999999999 pid 7") == "uid 3999999999 pid 7", "nobody has it"
    assert named("uid 9999999999 pid 7") == "uid 9999999999 pid 7", "nobody can have it"
    assert named("http 127.0.0.1") == "http 127.0.0.1"


def test_what_nobody_knows_is_shown_as_it_is() -> None:
    assert describe("moon.rose", "x1", {"phase": 3}) == "x1 moon.rose {'phase': 3}"
    assert describe("runner.load", "r1", {}) == "r1 runner.load {}"
    assert describe("process.spawned", "r1", {"process": 3}) == "r1 process.spawned {'process': 3}"


def test_a_runners_last_words_cannot_drive_the_terminal() -> None:
    words = describe("process.exited", "r1", {"status": 1, "output": "\x1b[2J\x07oops\x9b31m\u202e"})
    assert words.isprintable()
    assert "oops" in words


def test_sizes_durations_and_ages() -> None:
    assert [size(n) for n in (0, 1023, 1024, 5 << 20, 6 << 30, 3 << 40, 5 << 50)] == [
        "0 B", "1023 B", "1 KiB", "5 MiB", "6.0 GiB", "3.0 TiB", "5120.0 TiB"
    ]  # fmt: skip
    spans = (1_200_000, 3_400_000_000, 310 * 10**9, 2 * HOUR + 300 * 10**9, 76 * HOUR)
    assert [duration(ns) for ns in spans] == ["1.2 ms", "3.4 s", "5 min 10 s", "2 h 5 min", "3 d 4 h"]
    assert [age(ns) for ns in (0, -5, 7 * 10**9, 119 * 10**9, 300 * 10**9, 3 * HOUR, 100 * HOUR)] == [
        "0 s", "0 s", "7 s", "119 s", "5 min", "3 h", "4 d"
    ]  # fmt: skip
    assert (age(None), age(None, "ever")) == ("", "ever")
    assert [age(ns, up=True) for ns in (0, 1, 599 * 10**9, 119 * 10**9, 100 * HOUR)] == [
        "0 s", "1 s", "10 min", "119 s", "5 d"
    ]  # fmt: skip
    assert memory({"gpu0": 6 << 30, "host": 1 << 20, "": 2 << 20}) == "6.0 GiB gpu0, 1 MiB, 2 MiB"
    assert memory({}) == "unknown"
