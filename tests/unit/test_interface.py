"""The interface of the control socket: frozen in tests/golden/, and kept by the code in both directions.

A difference means that programs already written may have to change. Adding an optional parameter, a field of
a reply, a method or an error is no breach. Then rewrite the file with RUNNERD_REWRITE=1 and review the diff.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
from varlink.scanner import Interface

from daemon.control import methods, server, views
from daemon.control.methods import MANY, ONCE
from daemon.control.varlink import SERVICE, VarlinkError
from events.catalogue import (
    ConfigChanged,
    ConfigView,
    DaemonStarted,
    DeviceView,
    Event,
    LoadRequested,
    MemoryMeasured,
    ModelView,
    Reading,
    RequestArrived,
)
from statemachines.scheduler import Scheduler
from tests.unit.test_scheduler import Core, model

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests/golden/io.runnerd.Control.varlink"
TEXT = server.description(methods.INTERFACE)
METHOD = re.compile(r"^method (\w+)\((.*?)\) -> \((.*?)\)$", re.MULTILINE | re.DOTALL)
TYPE = re.compile(r"^type (\w+) \((.*?)\)$", re.MULTILINE | re.DOTALL)
ERROR = re.compile(r"^error (\w+) \((.*?)\)$", re.MULTILINE)


def fields(text: str) -> dict[str, str]:
    """`a: int, b: ?string` by name."""
    return dict(field.strip().split(": ") for field in text.split(",") if field.strip())


DECLARED = {name: (fields(into), fields(out)) for name, into, out in METHOD.findall(TEXT)}
ERRORS = {name: fields(parts) for name, parts in ERROR.findall(TEXT)}
TYPES = {name: fields(parts) for name, parts in TYPE.findall(TEXT)}


def test_the_interface_is_the_frozen_one() -> None:
    if os.environ.get("RUNNERD_REWRITE"):
        GOLDEN.write_text(TEXT)
    assert GOLDEN.read_text() == TEXT, "see the top of this module"


def test_the_stock_implementation_reads_both_interfaces() -> None:
    members = Interface(TEXT).members
    assert set(members) == {*TYPES, *DECLARED, *ERRORS}
    assert {"GetInfo", "InvalidParameter"} <= set(Interface(server.description(SERVICE)).members)
    with pytest.raises(VarlinkError, match="InterfaceNotFound"):
        server.description("io.runnerd.Other")


def test_every_declared_method_is_implemented_and_the_reverse() -> None:
    assert set(DECLARED) == {*ONCE, *MANY}
    assert not set(ONCE) & set(MANY)
    assert set(methods.ENDLESS) <= set(MANY)


def test_every_declared_parameter_is_taken_and_the_reverse() -> None:
    for name, (kind, _) in {**ONCE, **MANY}.items():
        declared = DECLARED[name][0]
        taken = {field.name: field for field in msgspec.structs.fields(kind)}
        assert list(declared) == list(taken), name
        for parameter, type in declared.items():
            assert type.startswith("?") is not taken[parameter].required, f"{name}({parameter})"


def test_every_error_that_is_raised_is_declared_and_the_reverse() -> None:
    raised = set()
    for path in sorted((ROOT / "daemon/control").glob("*.py")):
        raised |= set(re.findall(r"INTERFACE\}\.(\w+)", path.read_text()))
    assert raised == set(ERRORS)
    service = server.description(SERVICE)
    of_service = set(re.findall(r"^error (\w+)", service, re.MULTILINE))
    for path in sorted((ROOT / "daemon/control").glob("*.py")):
        assert set(re.findall(r"\{SERVICE\}\.(\w+)", path.read_text())) <= of_service


# --- replies have the declared fields --------------------------------------------------------------------

KINDS: dict[str, type] = {"string": str, "int": int, "bool": bool, "object": dict}


def check(value: Any, declared: str, where: str) -> None:
    """A value against its declared type."""
    if declared.startswith("?"):
        if value is not None:
            check(value, declared[1:], where)
    elif declared.startswith("[]"):
        assert isinstance(value, list), where
        for each in value:
            check(each, declared[2:], where)
    elif declared.startswith("[string]"):
        assert isinstance(value, dict), where
        for key, each in value.items():
            check(each, declared[8:], f"{where}[{key}]")
    elif declared in TYPES:
        assert list(value) == list(TYPES[declared]), where
        for name, kind in TYPES[declared].items():
            check(value[name], kind, f"{where}.{name}")
    else:
        assert type(value) is KINDS[declared], where


def scheduler() -> Scheduler:
    """One runner that loads, one request that waits for it."""
    model = ModelView("digest", memory_bytes={"host": 1 << 30}, options={"num_ctx": 4096})
    made = Scheduler()
    made.step(DaemonStarted(1, "balanced", "boot", "0"), 1)
    made.step(ConfigChanged(ConfigView({"m": model}, {"host": DeviceView(8 << 30)})), 2)
    made.step(MemoryMeasured({"host": Reading(16 << 30, 12 << 30)}), 3)
    made.step(LoadRequested("m"), 4)
    made.step(RequestArrived("m", "chat", caller="127.0.0.1"), 5)
    return made


def test_the_views_have_the_declared_fields() -> None:
    state = scheduler().state
    assert state.runners
    assert state.requests
    for name, rows in (
        ("Device", views.devices(state)),
        ("Runner", views.runners(state, 10)),
        ("Request", views.requests(state, 10)),
    ):
        assert rows, name
        check(msgspec.to_builtins(rows), f"[]{name}", name)


def test_an_over_committed_device_has_nothing_free() -> None:
    made = scheduler()
    (host,) = views.devices(made.state)
    assert host["free_bytes"] == 7 << 30
    made.step(MemoryMeasured({"host": Reading(1 << 30, 1 << 20)}), 6)
    (host,) = views.devices(made.state)
    assert (host["free_bytes"], host["reported_free_bytes"]) == (0, 1 << 20)
    assert (host["budget_bytes"], host["held_bytes"]) == (1 << 30, 1 << 30)


def test_what_runners_hold_adds_up_to_what_is_held_of_their_device() -> None:
    """Also of one that has taken more than was reserved for it: `ps` and `status` show the same."""
    made = scheduler()
    (runner,) = made.state.runners
    made.step(MemoryMeasured({"host": Reading(16 << 30, 10 << 30)}, {runner: {"host": 3 << 30}}), 6)
    (row,), (host,) = views.runners(made.state, 10), views.devices(made.state)
    assert row["memory_bytes"] == {"host": 1 << 30}
    assert row["held_bytes"] == {"host": host["held_bytes"]} == {"host": 3 << 30}


def test_a_request_that_a_runner_failed_has_none_while_it_waits_again() -> None:
    core = Core({"a": model()})
    runner = core.load("a")
    request = core.arrive("a")
    assert [row["runner"] for row in views.requests(core.state, 10)] == [runner]
    core.ended(request, complete=False, sent_bytes=0)
    (row,) = views.requests(core.state, 10)
    assert (row["state"], row["runner"], row["reason"]) == (
        "queued",
        None,
        f"{runner} is asked for its health",
    )


def test_an_event_has_the_declared_fields() -> None:
    event = next(e for e in scheduler().step(RequestArrived("m", "chat"), 6) if isinstance(e, Event))
    assert {"seq", "t", "cause", "subject"} < set(event.__struct_fields__)
    assert list(TYPES["Event"]) == ["seq", "at_ns", "t_ns", "type", "version", "cause", "subject", "payload"]
