"""Leases on a whole daemon: a slot that a client holds and uses by itself, and every way in which it ends."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import varlink

from daemon.control.methods import INTERFACE
from events.catalogue import LeaseResumed, RequestArrived, RequestCompleted
from tests.integration.live import PATIENCE_S, ROOT, Live, daemon, ngram
from tests.integration.test_control import Raw
from tests.unit.test_interface import DECLARED, check

CONFIG = f"""
devices: {{host: {{budget: 300MiB}}}}
memoryHeadroom: 0
models:
  red: {{cmd: "{ngram("--slots 2")}", memory: 200MiB, slots: 2}}
  blue: {{cmd: "{sys.executable} {ROOT}/examples/ngram_runner.py --socket ${{SOCKET}}", memory: 50MiB}}
  brief: {{cmd: "{ngram()}", memory: 20MiB, maxLease: 200ms}}
  hasty: {{cmd: "{ngram()}", memory: 20MiB, maxLease: 200ms, unloadTimeout: 200ms}}
"""


@pytest.fixture
def live(tmp_path: Path) -> Iterator[Live]:
    with daemon(tmp_path, CONFIG) as live:
        yield live


class Holder(Raw):
    """Who asks for a lease, and holds it."""

    def acquire(self, **parameters: Any) -> dict[str, Any]:
        """The lease, once it is there."""
        self.call("Acquire", parameters, more=True)
        while (reply := self.told())["state"] == "queued":
            pass
        assert reply["state"] == "held"
        self.request: str = reply["request"]
        lease: dict[str, Any] = reply["lease"]
        return lease

    def told(self) -> dict[str, Any]:
        """What comes next."""
        reply = self.reply()
        assert "error" not in reply, reply
        assert reply["continues"]
        told: dict[str, Any] = reply["parameters"]
        assert list(told) == list(DECLARED["Acquire"][1])
        for field, type in DECLARED["Acquire"][1].items():
            check(told[field], type, field)
        return told

    def ended(self) -> str:
        """Why the lease has ended."""
        reply = self.reply()
        assert reply["error"] == f"{INTERFACE}.OperationFailed", reply
        reason: str = reply["parameters"]["reason"]
        return reason


def ask(live: Live, method: str, **parameters: Any) -> Any:
    with Raw(live) as raw:
        raw.call(method, parameters)
        return raw.reply()["parameters"]


def chat_at(url: str) -> int:
    """One request to a runner, past the daemon."""
    host = url.removeprefix("http://")
    connection = http.client.HTTPConnection(host, timeout=PATIENCE_S)
    body = json.dumps({"messages": [{"role": "user", "content": "Tell me."}], "max_tokens": 2})
    connection.request("POST", "/v1/chat/completions", body)
    status = connection.getresponse().status
    connection.close()
    return status


def over(live: Live, request: str) -> list[str]:
    """What the log says of a lease, once that is over."""
    live.until(lambda: not any(r["id"] == request for r in ask(live, "ListRequests")["requests"]))
    return [tag for tag in live.tags(request) if not tag.startswith("deadline.")]


def test_a_slot_is_held_for_as_long_as_the_connection(live: Live) -> None:
    with Holder(live) as holder:
        lease = holder.acquire(model="red")
        assert chat_at(lease["url"]) == 200
        assert (lease["prefix"], lease["model_name"]) == ("", "")
        (runner,) = ask(live, "ListRunners")["runners"]
        assert (runner["id"], runner["slots_used"], runner["leases"]) == (lease["runner"], 1, 1)
        (request,) = ask(live, "ListRequests")["requests"]
        assert (request["kind"], request["caller"]) == ("lease", f"uid {os.getuid()} pid {os.getpid()}")
        assert live.chat("red")[0] == 200, "the other slot is anybody's"
    assert over(live, holder.request) == [
        "request.arrived", "request.queued", "request.dispatched", "upstream.ended", "request.completed"
    ]  # fmt: skip
    assert lease["token"].encode() not in b"".join(
        path.read_bytes() for path in live.log.parent.iterdir() if path.is_file()
    )


def test_a_lease_waits_for_its_turn_and_leaves_the_queue_by_leaving(live: Live) -> None:
    with Holder(live) as one, Holder(live) as two, Holder(live) as three, Holder(live) as four:
        runner = one.acquire(model="red")["runner"]
        two.acquire(model="red")
        four.call("Acquire", {"model": "red"}, more=True)
        given_up = four.told()["request"]
        three.call("Acquire", {"model": "red"}, more=True)
        told = three.told()
        assert (told["state"], told["reason"], told["lease"]) == ("queued", f"{runner} is busy", None)
        four.send(b'{"method":"org.varlink.service.GetInfo"}\0')  # what is sent ahead hides no going
        four.socket.close()
        assert over(live, given_up)[-1] == "request.cancelled"
        two.socket.close()
        while (told := three.told())["state"] == "queued":
            pass
        assert told["lease"]["runner"] == runner


def test_a_runner_on_a_socket(live: Live) -> None:
    with Holder(live) as holder:
        url = holder.acquire(model="blue")["url"]
        assert url.startswith("unix:/")
        assert Path(url.removeprefix("unix:")).is_socket()


@pytest.mark.parametrize("how", ["killed", "leave"])
def test_a_lease_outlives_the_daemon(tmp_path: Path, how: str) -> None:
    with daemon(tmp_path, CONFIG) as live:
        with Holder(live) as holder, Holder(live) as lost:
            lease = holder.acquire(model="red")
            lost.acquire(model="red")
            if how == "killed":
                live.kill()
            else:
                ask(live, "Stop", how=how)
                assert live.wait() == 0
            assert holder.reply() is None
            assert chat_at(lease["url"]) == 200, "nobody has to stop for that"
        live.start()
        rows = [(r["state"], r["reason"]) for r in ask(live, "ListRequests")["requests"]]
        assert rows == [("dispatched", "its holder, to come back")] * 2
        with Holder(live) as again:
            resumed = again.acquire(token=lease["token"])
            assert (again.request, resumed) == (holder.request, lease)
            assert chat_at(resumed["url"]) == 200
        tags = over(live, holder.request)
        assert tags[-3:] == ["lease.resumed", "upstream.ended", "request.completed"]
        ask(live, "Cancel", request=lost.request)
        assert over(live, lost.request)[-3:] == ["lease.revoked", "request.cancelled", "upstream.ended"]
    (resumption,) = [e.body for e in live.events() if isinstance(e.body, LeaseResumed)]
    assert resumption.by == f"uid {os.getuid()} pid {os.getpid()}"
    assert sum("listening" in line for line in live.journal) == 2


def test_who_shows_the_token_has_the_lease(live: Live) -> None:
    with Holder(live) as first:
        lease = first.acquire(model="red")
        with Holder(live) as second:
            assert second.acquire(token=lease["token"]) == lease
            assert first.ended() == "taken_over"
            first.socket.close()
            (request,) = ask(live, "ListRequests")["requests"]
            assert (request["id"], request["state"]) == (first.request, "dispatched")
        assert "request.completed" in over(live, first.request)
    with Raw(live) as raw:
        for token in (lease["token"], "x", "é" * 1000):
            raw.call("Acquire", {"token": token}, more=True)
            assert raw.reply() == {"error": f"{INTERFACE}.LeaseNotFound", "parameters": {}}
    assert live.tags().count("lease.resumed") == 1


def test_a_lease_that_is_let_go_in_time_leaves_its_runner(live: Live) -> None:
    with Holder(live) as holder:
        runner = holder.acquire(model="brief")["runner"]
        told = holder.told()
        assert (told["state"], told["reason"]) == ("revoked", "max_lease")
        (request,) = ask(live, "ListRequests")["requests"]
        assert request["reason"] == "its holder, to let go"
        assert 20_000_000_000 < told["left_ns"] <= 30_000_000_000
    assert over(live, holder.request)[-3:] == ["lease.revoked", "upstream.ended", "request.completed"]
    assert [r["state"] for r in ask(live, "ListRunners")["runners"] if r["id"] == runner] == ["ready"]


def test_a_lease_that_is_not_let_go_takes_its_runner(live: Live) -> None:
    with Holder(live) as holder:
        runner = holder.acquire(model="hasty")["runner"]
        assert holder.told()["state"] == "revoked"
        assert holder.ended() == "revoked"
        live.until(lambda: not ask(live, "ListRunners")["runners"])
        holder.call("Status")
        assert holder.reply()["parameters"]["runners"] == 0, "the connection is good for more"
    assert "runner.drain" in live.tags(runner)
    assert live.tags(holder.request).count("upstream.ended") == 1


def test_a_lease_ends_with_its_runner(live: Live) -> None:
    with Holder(live) as holder:
        holder.acquire(model="red")
        (runner,) = ask(live, "ListRunners")["runners"]
        os.kill(runner["pid"], signal.SIGKILL)
        assert holder.ended() == "upstream_failed"
    assert over(live, holder.request)[-2:] == ["request.failed", "upstream.ended"]


def test_unloading_gives_notice(live: Live) -> None:
    with Holder(live) as holder, Raw(live) as operator:
        holder.acquire(model="red")
        operator.call("Unload", {"model": "red"})
        assert holder.told()["reason"] == "operator"
        holder.socket.close()
        assert operator.reply() == {"parameters": {}}
    completed = [event.body for event in live.events() if isinstance(event.body, RequestCompleted)]
    assert [body.request for body in completed] == [holder.request]


def test_what_is_wrong_with_an_acquire(live: Live) -> None:
    with Raw(live) as raw:
        for parameters, name in (
            ({}, "org.varlink.service.InvalidParameter"),
            ({"model": "red", "token": "x"}, "org.varlink.service.InvalidParameter"),
            ({"model": "rad"}, f"{INTERFACE}.ModelNotFound"),
            ({"model": "red", "options": {"x": "1"}}, "org.varlink.service.InvalidParameter"),
        ):
            raw.call("Acquire", parameters, more=True)
            assert raw.reply()["error"] == name
        raw.call("Acquire", {"model": "red"})
        assert raw.reply()["error"] == "org.varlink.service.ExpectedMore"
    assert not [event for event in live.events() if isinstance(event.body, RequestArrived)]


def test_the_stock_client_holds_a_lease(live: Live) -> None:
    with varlink.Client(f"unix:{live.socket}") as client, client.open(INTERFACE) as control:
        for reply in control.Acquire(model="red", _more=True):
            if reply["state"] == "held":
                break
        assert chat_at(reply["lease"]["url"]) == 200
    assert over(live, reply["request"])[-1] == "request.completed"


def test_the_example(live: Live) -> None:
    example = [sys.executable, str(ROOT / "examples/lease.py"), "red"]
    done = subprocess.run(
        example, env={**os.environ, "RUNNERD_SOCKET": str(live.socket)},
        capture_output=True, text=True, timeout=PATIENCE_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) >= 2
    assert "red: held" in done.stderr


def test_a_restart_keeps_the_promise_that_was_given_with_a_notice(live: Live) -> None:
    """A start stops what drains: who was told when he must have let go is waited for until then."""
    with Holder(live) as holder:
        lease = holder.acquire(model="red")
        live.config.write_text(live.config.read_text().replace("  red:", "  green:"))
        assert live.runnerctl("reload").returncode == 0
        assert holder.told()["state"] == "revoked"
        restart = threading.Thread(target=lambda: live.runnerctl("restart"))
        restart.start()
        assert live.read_until("requests that run may end first: 1")
        assert chat_at(lease["url"]) == 200
    restart.join(PATIENCE_S)
    assert over(live, holder.request)[-1] == "request.completed"
    assert live.tags().count("daemon.started") == 2
