"""Who holds leases on daemons that are killed: uses runners past them, lets go, vanishes, comes back or not.

What he was told, and for how long he took a slot for his own, is written down, to be compared with the log
and with what the runners have noted.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import math
import random
import select
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from daemon.control.client import INTERFACE, CallFailed, Client, Unreachable
from tests.crash.daemons import PATIENCE_S, Daemon

DIRECT = "lease-"
"""The names of requests that go to a runner past the daemon begin with this."""

GONE = (OSError, http.client.HTTPException, Unreachable)
"""What talking to a daemon that dies can raise."""

STAYS_S = (0.0, 0.02, 0.1, 30.0)
"""How long a lease is held; the last: until it is revoked, or the daemon dies."""

BREATH_S = 0.05
"""Between two requests to a runner that is leased, at most."""

Replies = Iterator[dict[str, Any]]


class Hold:
    """A lease, as its holder knows it, and when it was his."""

    def __init__(self, reply: dict[str, Any]) -> None:
        lease = reply["lease"]
        self.request: str = reply["request"]
        self.model: str = reply["model"]
        self.runner: str = lease["runner"]
        self.url: str = lease["url"]
        self.token: str = lease["token"]
        self.began, self.ended = time.monotonic(), math.inf
        self.let_go = False
        """He has closed his connection, and not the daemon."""

    @property
    def digest(self) -> str:
        """What the log knows of the token."""
        return hashlib.sha256(self.token.encode()).hexdigest()

    def over(self) -> None:
        """From now on he takes the slot for another's."""
        self.ended = min(self.ended, time.monotonic())

    def had(self, moment: float) -> bool:
        """Whether the slot was his then."""
        return self.began < moment < self.ended


class Leases:
    """What the holders of leases on all daemons of one log were told."""

    def __init__(self) -> None:
        self.holds: list[Hold] = []
        """Every lease that was granted."""
        self.waiting: dict[int, Hold] = {}
        """Leases for which their holders come back to the next daemon, by the holder's number."""
        self.resumed: Counter[str] = Counter()
        """How often a holder has come back, and has the lease still, by its request."""
        self.refused: dict[str, int] = {}
        """Leases that a daemon did not know any more, with an event that it had by then, which is durable."""
        self.direct: dict[str, str] = {}
        """The runner that each request past the daemon was answered by while the lease was held, by name."""
        self.wrong: list[str] = []
        """What must not have been answered."""


class Lessee:
    """One connection of the holder with this number, who may have a lease of an earlier daemon."""

    def __init__(self, number: int, daemon: Daemon, control: Path, leases: Leases) -> None:
        self._number = number
        self._daemon = daemon
        self._leases = leases
        self._client = Client([control])

    def close(self) -> None:
        """Whatever was held: let go."""
        self._client._socket.close()

    def act(self, chance: random.Random, model: str) -> None:
        """One lease: the one that was kept, or another; then it is let go, or was lost. Raises GONE."""
        hold = self._leases.waiting.get(self._number)
        if hold is None:
            replies = self._client.calls("Acquire", model=model)
            hold = self._acquire(replies, chance, model)
        else:
            replies = self.come_back()
        if hold is not None and hold.ended == math.inf:
            try:
                self._use_it(hold, replies, chance)
            except CallFailed as failure:
                self._lost(hold, failure)
            except GONE:
                if chance.random() < 0.3:
                    self.forget(hold)
                raise

    def acquire(self, model: str) -> Hold:
        """A lease, whatever it takes. Raises CallFailed, GONE."""
        for reply in self._client.calls("Acquire", model=model):
            if reply["state"] == "held":
                return self._note(reply)
        raise AssertionError("the replies end without a lease")

    def _note(self, reply: dict[str, Any]) -> Hold:
        """He has a lease; unless he says otherwise, he comes back for it."""
        hold = self._leases.waiting[self._number] = Hold(reply)
        self._leases.holds.append(hold)
        return hold

    def _acquire(self, replies: Replies, chance: random.Random, model: str) -> Hold | None:
        """A lease, unless there is none, or he gives up waiting for it."""
        if chance.random() < 0.1:
            call = {"method": f"{INTERFACE}.Acquire", "parameters": {"model": model}, "more": True}
            self._client._socket.sendall(json.dumps(call).encode() + b"\0")
            return None
        try:
            for reply in replies:
                if reply["state"] == "held":
                    return self._note(reply)
                if chance.random() < 0.3:
                    return None
        except CallFailed as failure:
            if failure.short not in ("OperationFailed", "LogBlocked"):
                self._leases.wrong.append(f"who wanted a lease got {failure.name} {failure.parameters}")
        return None

    def come_back(self) -> Replies:
        """Show the token: what comes next, of which the first says that he holds the lease again. Raises
        CallFailed, where it is over, GONE."""
        hold = self._leases.waiting[self._number]
        replies = self._client.calls("Acquire", token=hold.token)
        try:
            reply = next(replies)
        except CallFailed as failure:
            self._lost(hold, failure)
            if failure.short == "LeaseNotFound":
                self._leases.refused[hold.request] = self._durable()
            return iter(())
        lease = reply["lease"] or {}
        same = (reply["state"], reply["request"]) == ("held", hold.request)
        same = same and (lease["runner"], lease["token"]) == (hold.runner, hold.token)
        # of a runner that another configuration has started, and that is about to go, it knows no address
        if not same or lease["url"] not in (hold.url, "" if hold.model == "green" else hold.url):
            self._leases.wrong.append(f"{hold.request} on {hold.runner} at {hold.url} is now {reply}")
        self._leases.resumed[hold.request] += 1
        return replies

    def _durable(self) -> int:
        """An event that the daemon has, once it is durable."""
        seq: int = self._client.call("Status")["seq"]
        try:
            next(self._client.calls("Watch", after=seq - 1))
        except CallFailed as failure:  # it has been pruned already
            assert failure.short == "CursorPruned", failure
        return seq

    def _use_it(self, hold: Hold, replies: Replies, chance: random.Random) -> None:
        """Use the slot for a while, and let go. Raises CallFailed where the lease is over, GONE."""
        stays = chance.choice(STAYS_S if hold.model != "blue" else STAYS_S[:-1])  # nobody else would get it
        until, heeds = time.monotonic() + stays, chance.random() < 0.7
        while True:
            if not self._ask(hold, chance):
                while True:  # its runner goes, and he will be told so
                    self._heed(next(replies), hold)
            left_s = until - time.monotonic()
            if self._heard(min(max(0.0, left_s), chance.uniform(0, BREATH_S))):
                self._heed(next(replies), hold)
                if heeds:
                    break
            if left_s <= 0:
                break
        hold.let_go = True
        self.forget(hold)

    def _heed(self, reply: dict[str, Any], hold: Hold) -> None:
        if (reply["state"], reply["request"]) != ("revoked", hold.request):
            self._leases.wrong.append(f"who holds {hold.request} is told {reply}")

    def _heard(self, within_s: float) -> bool:
        """Whether there is something to be read from the daemon, if only its end."""
        if b"\0" in self._client._buffer:
            return True
        return bool(select.select([self._client._socket], [], [], within_s)[0])

    def _ask(self, hold: Hold, chance: random.Random) -> bool:
        """One request to the runner itself. Returns whether it was answered."""
        host = hold.url.removeprefix("http://")
        connection = http.client.HTTPConnection(host, timeout=PATIENCE_S)
        name = f"{DIRECT}{hold.request}-{chance.getrandbits(32)}"
        body = {"user": name, "pieces": chance.choice((1, 1, 5)), "pause_ms": chance.choice((0, 5))}
        try:
            connection.request("POST", "/v1/chat/completions", json.dumps(body))
            whole = connection.getresponse().read().endswith(b"[DONE]\n\n")
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()
        if whole and not self._heard(0):
            self._leases.direct[name] = hold.runner
        return whole

    def _lost(self, hold: Hold, failure: CallFailed) -> None:
        """The lease is over, and he was told so."""
        self.forget(hold)
        words = failure.parameters.get("reason", "")
        if failure.short not in ("OperationFailed", "LeaseNotFound", "LogBlocked") or words == "taken_over":
            self._leases.wrong.append(f"{hold.request} ended with {failure.name} {failure.parameters}")

    def forget(self, hold: Hold) -> None:
        """He does not come back."""
        hold.over()
        self._leases.waiting.pop(self._number, None)
