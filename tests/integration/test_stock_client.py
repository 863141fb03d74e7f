"""Every method of the control socket, driven by the stock client (python-varlink): by its library, and by its
command line; and who asked, in the log."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import varlink

from daemon.control.methods import ENDLESS, INTERFACE
from events import catalogue as c
from events.catalogue import Fact
from tests.integration.live import PATIENCE_S, Live, daemon, ngram
from tests.unit.test_interface import DECLARED

CONFIG = f"""
devices: {{host: {{budget: 300MiB}}}}
memoryHeadroom: 0
profiles: {{calm: {{pins: {{any: red}}}}}}
models:
  red: {{cmd: "{ngram("--slots 2")}", memory: 50MiB, slots: 2}}
  slow: {{cmd: "{ngram("--tokens-per-second 20")}", memory: 50MiB}}
"""

Parameters = dict[str, Any]


def running(live: Live) -> str:
    """The id of a request that runs."""
    requests = live.runnerctl("--json", "queue").stdout.splitlines()
    id: str = next(row["id"] for row in map(json.loads, requests) if row["model"] == "slow")
    return id


def changed(live: Live) -> Parameters:
    """There is something to be read again."""
    live.config.write_text(live.config.read_text() + "maxQueue: 7\n")
    return {}


DRIVEN: dict[str, Callable[[Live], Parameters]] = {
    "Status": lambda live: {},
    "ListModels": lambda live: {},
    "ListRunners": lambda live: {},
    "ListRequests": lambda live: {},
    "ListDevices": lambda live: {},
    "Load": lambda live: {"model": "red"},
    "Pin": lambda live: {"model": "red", "pinned": True},
    "Acquire": lambda live: {"model": "red"},
    "Cancel": lambda live: {"request": running(live)},
    "UseProfile": lambda live: {"name": "calm"},
    "Reload": changed,
    "Explain": lambda live: {"subject": "red"},
    "WhyNot": lambda live: {"model": "red"},
    "Watch": lambda live: {"after": 0},
    "Logs": lambda live: {"source": "proxy"},
    "FollowLogs": lambda live: {"source": "proxy"},
    "Unload": lambda live: {"model": "red"},
    "Restart": lambda live: {"now": True},
    "Stop": lambda live: {"how": "drain"},
}
"""Each method, in the order in which they are called, with its parameters."""

RECORDED: dict[str, type[Fact]] = {
    "Load": c.LoadRequested,
    "Pin": c.PinRequested,
    "Acquire": c.RequestArrived,
    "Cancel": c.CancelRequested,
    "UseProfile": c.ProfileRequested,
    "Reload": c.ConfigChanged,
    "Unload": c.UnloadRequested,
    "Restart": c.StopRequested,
    "Stop": c.StopRequested,
}
"""The methods that ask for something, and the fact that this is."""


@pytest.fixture
def live(tmp_path: Path) -> Iterator[Live]:
    with daemon(tmp_path, CONFIG) as live:
        yield live


def test_every_method_is_driven() -> None:
    assert set(DRIVEN) == set(DECLARED)


def test_the_library_drives_every_method(live: Live) -> None:
    with live.stream("slow", tokens=100_000), varlink.Client(f"unix:{live.socket}") as client:
        for name, parameters in DRIVEN.items():
            with client.open(INTERFACE) as control:
                method, given = getattr(control, name), parameters(live)
                replies = iter(method(**given, _more=True)) if name in ENDLESS else iter([method(**given)])
                complete(name, next(replies))
                if name == "Restart":  # over when the connection is: the next start takes the next one
                    with suppress(varlink.BrokenPipeError, ConnectionError):
                        list(replies)
    assert live.wait() == 0
    mine = f"uid {os.getuid()} pid {os.getpid()}"
    assert asked_by(live) == {name: {mine} for name in RECORDED}


def test_the_command_line_drives_every_method(live: Live) -> None:
    pids = {}
    unbuffered = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with live.stream("slow", tokens=100_000):
        for name, parameters in DRIVEN.items():
            words = ["-m"] if name in ENDLESS else []
            call = ["call", *words, f"unix:{live.socket}/{INTERFACE}.{name}", json.dumps(parameters(live))]
            with subprocess.Popen(
                [sys.executable, "-m", "varlink.cli", *call],
                env=unbuffered,
                stdout=subprocess.PIPE,
                text=True,
            ) as client:
                assert client.stdout is not None
                reply = document(client.stdout)
                complete(name, reply)
                if name == "Restart":
                    assert "Connection closed" in client.stdout.read()
                elif name in ENDLESS:
                    client.terminate()
                assert client.wait(PATIENCE_S) == (
                    0 if name not in ENDLESS else 1 if name == "Restart" else -15
                )
            pids[name] = client.pid
    assert live.wait() == 0
    assert asked_by(live) == {name: {f"uid {os.getuid()} pid {pids[name]}"} for name in RECORDED}


def complete(name: str, reply: Parameters) -> None:
    """A reply has the declared fields; the stock client leaves out those that are null."""
    declared = DECLARED[name][1]
    assert set(reply) <= set(declared)
    assert {field for field, kind in declared.items() if not kind.startswith("?")} <= set(reply)


def document(lines: Iterator[str]) -> dict[str, Any]:
    """The first JSON document that is printed, over several lines; nothing is printed of an empty one."""
    text = ""
    for line in lines:
        text += line
        if line.rstrip() in ("}", "{}"):
            found: dict[str, Any] = json.loads(text)
            return found
    assert not text
    return {}


def asked_by(live: Live) -> dict[str, set[str]]:
    """Who has asked for what, by method."""
    found: dict[str, set[str]] = {name: set() for name in RECORDED}
    names = {kind: name for name, kind in RECORDED.items() if name != "Restart"}
    for event in live.events():
        body: Any = event.body
        if type(body) not in names or getattr(body, "by", "") == "start":
            continue
        if isinstance(body, c.RequestArrived):
            if body.kind == c.LEASE:
                found["Acquire"].add(body.caller)
        else:  # a restart is a stop that says so
            who, restarts, _ = body.by.partition(", to restart")
            found["Restart" if restarts else names[type(body)]].add(who)
    return found
