"""What daemons that are about to be killed are given to do, and what their clients were told.

Where one is to start again in place now and then, that may cost clients their connections, and not more:
nobody is refused.

Everything that a client was promised is written down here, to be compared with the log afterwards.
"""

from __future__ import annotations

import http.client
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from daemon.control.client import CallFailed, Client, Unreachable
from tests.crash.daemons import PATIENCE_S, Daemon
from tests.crash.lessee import GONE, Leases, Lessee

MODELS = ("red", "blue", "green", "pair")
"""Any two of them fit."""

CLIENTS, LESSEES = 5, 2
OPERATIONS = ("pin", "unpin", "unpin", "unpin", "load", "unload", "now", "cancel", "cancel", "reload")
"""What the operator does: he mostly takes his pins back, or nothing would find room."""

LEAST_BREATH_S, BREATH_S = 0.001, 0.02
"""Between two operations of the operator."""

REFUSED = "no daemon answers"
"""What nobody may be told while one is about to start again in place."""


class Told:
    """What clients were told by all lives of the daemons of one log."""

    def __init__(self) -> None:
        self.events: dict[int, dict[str, Any]] = {}
        """Events that a watcher was sent, by number."""
        self.requests: dict[str, str] = {}
        """The id in the log of each request whose answer has begun, by its client's name."""
        self.whole: dict[str, None] = {}
        """Those of which the whole answer came."""
        self.done: Counter[tuple[str, ...]] = Counter()
        """Operations whose success an operator was told: their type, and what they were about."""
        self.statuses: Counter[int] = Counter()
        self.wrong: list[str] = []
        """What must not have been answered."""
        self.asked = 0
        self.leases = Leases()
        self.restarts = 0
        """How often a daemon was asked to start again in place."""
        self.restarted_s: list[float] = []
        """How long each took that came to its end, from the call to the first answer."""
        self.killed: dict[tuple[int, int], None] = {}
        """Runners' processes that nobody but the harness has ended: their numbers and start times."""


class Workload:
    """Clients, lessees, an operator and a watcher of one daemon, each in a thread, until it is over."""

    def __init__(
        self,
        daemon: Daemon,
        control: Path,
        told: Told,
        seed: str,
        configure: Callable[[int], None],
        *,
        restarts: bool,
    ) -> None:
        self._daemon = daemon
        self._control = control
        self._told = told
        self._seed = seed
        self._configure = configure
        """Writes the n-th variant of the configuration."""
        self._passed_over = 0
        """What the watcher has missed, because it had been pruned before it came."""
        self.restarts = threading.Event()
        """It has been asked to start again in place, if it ever will be."""
        self._threads = [threading.Thread(target=self._client, args=(i,)) for i in range(CLIENTS)]
        self._threads += [threading.Thread(target=self._lessee, args=(i,)) for i in range(LESSEES)]
        self._threads += [threading.Thread(target=run) for run in (self._operator, self._watcher)]
        if restarts:
            self._threads.append(threading.Thread(target=self._restarter))
        for thread in self._threads:
            thread.start()

    def join(self) -> None:
        """Wait for all of them, after the daemon's end."""
        for thread in self._threads:
            thread.join(PATIENCE_S)
            assert not thread.is_alive(), "a client hangs although the daemon is gone"

    def _until_over(self, act: Callable[[random.Random], None], who: str) -> None:
        """Act again and again, from the moment that it listens until it is over."""
        chance = random.Random(f"{self._seed} {who}")
        assert self._daemon.listens.wait(PATIENCE_S), "it neither listens nor ends"
        while not self._daemon.over.is_set():
            try:
                act(chance)
            except GONE as error:
                self._lost(who, error)

    def _lost(self, who: str, error: Exception) -> None:
        """A connection was lost, or could not be made: because the daemon dies, or starts again in place."""
        moment = time.monotonic()
        refused = isinstance(error, ConnectionRefusedError | TimeoutError) or str(error).startswith(REFUSED)
        if (refused or not self._daemon.leaves) and self._daemon.lived_at(moment):
            self._told.wrong.append(f"{who}: {error!r}, and the daemon lives")

    # --- clients -----------------------------------------------------------------------------------------

    def _client(self, number: int) -> None:
        def ask(chance: random.Random) -> None:
            connection = http.client.HTTPConnection("127.0.0.1", self._daemon.port, timeout=PATIENCE_S)
            try:
                for _ in range(chance.randrange(1, 6)):
                    if not self._ask(connection, chance, f"{self._seed}-{number}-{chance.getrandbits(32)}"):
                        return
            finally:
                connection.close()

        self._until_over(ask, f"client {number}")

    def _ask(self, connection: http.client.HTTPConnection, chance: random.Random, name: str) -> bool:
        """One request. Returns whether the connection is to be used again."""
        told = self._told
        model = "bad" if chance.random() < 0.03 else chance.choice(MODELS)
        body = {
            "model": model, "user": name, "stream": True, "pieces": chance.choice((1, 1, 1, 5)),
            "pause_ms": chance.choice((0, 0, 5, 20)), "messages": [{"role": "user", "content": "?"}],
        }  # fmt: skip
        told.asked += 1
        connection.request("POST", "/v1/chat/completions", json.dumps(body))
        leaves = chance.random()
        if leaves < 0.04:
            return False
        response = connection.getresponse()
        told.statuses[response.status] += 1
        request = response.headers.get("X-Runnerd-Request", "")
        if response.status == 200:
            told.requests[name] = request
        elif response.status not in (502, 503, 504):
            told.wrong.append(f"{name} got {response.status}: {response.read(500)!r}")
        if leaves < 0.08:
            response.close()
            return False
        try:
            whole = response.read()
        except http.client.IncompleteRead:  # its runner was ended, if not the daemon
            return False
        if response.status == 200 and whole.endswith(b"[DONE]\n\n"):
            told.whole[name] = None
        return True

    def _lessee(self, number: int) -> None:
        def lease(chance: random.Random) -> None:
            lessee = Lessee(number, self._daemon, self._control, self._told.leases)
            try:
                lessee.act(chance, chance.choice(MODELS))
            finally:
                lessee.close()

        self._until_over(lease, f"lessee {number}")

    # --- operators and the watcher -----------------------------------------------------------------------

    def _operator(self) -> None:
        self._until_over(self._operate, "operator")

    def _operate(self, chance: random.Random) -> None:
        told = self._told
        self._daemon.ends(chance.uniform(LEAST_BREATH_S, BREATH_S))
        client, model = Client([self._control]), chance.choice(MODELS)
        try:
            match chance.choice(OPERATIONS):
                case "pin" | "unpin" as what:
                    client.call("Pin", model=model, pinned=what == "pin")
                    told.done["operator.pin", model, str(what == "pin")] += 1
                case "load":
                    for _ in client.calls("Load", model=model):
                        pass
                    told.done["operator.load", model] += 1
                case "unload" | "now" as what:
                    client.call("Unload", model=model, now=what == "now")
                    told.done["operator.unload", model] += 1
                case "cancel":
                    waiting = client.call("ListRequests")["requests"]
                    if waiting:
                        request = chance.choice(waiting)["id"]
                        client.call("Cancel", request=request)
                        told.done["operator.cancel", request] += 1
                case _:
                    self._configure(chance.randrange(4))
                    client.call("Reload")
        except CallFailed as failure:
            expected = ("OperationFailed", "RequestNotFound", "LogBlocked", "RunnerNotFound")
            if failure.short not in expected:
                told.wrong.append(f"the operator got {failure.name} {failure.parameters}")
        finally:
            client._socket.close()

    def _restarter(self) -> None:
        """Another operator, who has the daemon start again in place."""

        def restart(chance: random.Random) -> None:
            self._daemon.ends(chance.uniform(LEAST_BREATH_S, 10 * BREATH_S))
            self._daemon.leaves = True
            self._told.restarts += 1
            self.restarts.set()
            began = time.monotonic()
            client = Client([self._control])
            try:
                for _ in client.calls("Restart", now=chance.random() < 0.5):
                    pass
            except Unreachable:  # as it has to be
                again = Client([self._control])
                if again.call("Status")["pid"] != self._daemon.pid:
                    self._told.wrong.append("another process answers after a restart in place")
                self._told.restarted_s.append(time.monotonic() - began)
                again._socket.close()
            except CallFailed as failure:
                if (
                    failure.short not in ("OperationFailed", "LogBlocked")
                    or "unfit" in failure.parameters.values()
                ):
                    self._told.wrong.append(f"a restart was answered by {failure.name} {failure.parameters}")
            finally:
                client._socket.close()

        try:
            self._until_over(restart, "restarter")
        finally:
            self.restarts.set()

    def _watcher(self) -> None:
        def watch(_: random.Random) -> None:
            client = Client([self._control])
            try:
                after = max(self._told.events, default=0)
                for reply in client.calls("Watch", after=max(after, self._passed_over)):
                    event = reply["event"]
                    self._told.events[event["seq"]] = event
            except CallFailed as failure:
                assert failure.short == "CursorPruned", failure
                self._passed_over = client.call("Status")["seq"]
            finally:
                client._socket.close()

        self._until_over(watch, "watcher")
