"""One log and the daemons that live on it, one after the other, each until it is killed.

world = World(folder, seed)
world.live(after_s=0.1)               # killed at a moment
world.live("spawn.forked:2")          # killed at a failpoint
world.end()                           # a proper stop, and every proof that nothing went wrong
"""

from __future__ import annotations

import http.client
import json
import random
import signal
import sqlite3
import sys
import threading
import time
from collections import Counter
from pathlib import Path

from daemon import guardian
from daemon.control.client import Client
from daemon.past import state_at
from daemon.processes import identity
from events import catalogue as c
from events.catalogue import Event
from events.limits import LEASE_GRACE_NS, S
from events.reader import Reader
from events.schema import NotALog
from statemachines.request import RequestState
from statemachines.runner import RunnerState
from statemachines.state import State
from tests.crash.daemons import PATIENCE_S, Daemon
from tests.crash.evidence import Evidence
from tests.crash.lessee import Lessee
from tests.crash.workload import Told, Workload
from tests.ports import some_ports

RUNNER = Path(__file__).with_name("runner.py")

REACHED_S = 20.0
"""How long a workload may take to come to a failpoint, on a machine that is busy with other things."""

LONG_NS = 60 * S
"""Longer than a look at a daemon takes."""

USUAL_S = 0.1
"""From the launch of a daemon until it listens, on a machine that has nothing else to do."""

LONGEST_RESTART_S = 6.0
"""How long a restart in place is expected to take at most."""


def _lives(stat: identity.Stat) -> bool:
    """Whether a process that was found is still there."""
    now = identity.stat_of(stat.pid)
    return now is not None and now.alive and now.start_time == stat.start_time


class World:
    """See the module."""

    restart_s = 1.0
    """How long a restart in place takes, as far as any world has seen."""

    def __init__(self, folder: Path, seed: str) -> None:
        self.folder, self.seed = folder, seed
        self.log = folder / "events.db"
        self.ledger = folder / "ledger"
        self.control = folder / "control.sock"
        self.config = folder / "config.yaml"
        self.told = Told()
        self.lives = 0
        self.died_at: Counter[str] = Counter()
        """Where: a failpoint, or "" for a moment."""
        self.first_ms: list[float] = []
        """From the launch of a daemon to the first answer of a runner that it adopted."""
        self._chance = random.Random(seed)
        self._listens_s = USUAL_S
        """How long the last one took until it listened, on a machine that may be busy."""
        self._port = some_ports()
        self._state = State()
        self.daemon: Daemon
        folder.mkdir(parents=True, exist_ok=True)
        self.configure(0)

    def configure(self, variant: int) -> None:
        """Write the configuration; of four variants, which differ in what a reload has to do."""
        command = f"{sys.executable} -I -S {RUNNER} --port ${{PORT}} --ledger {self.ledger}"
        green = f"{command} --again" if variant == 1 else command
        ttl = 1 if variant == 2 else 3600
        text = f"""
startPort: {self._port + 1}
devices: {{host: {{budget: 250MiB}}}}
memoryHeadroom: 0
healthCheckTimeout: 15
globalTTL: 3600
retention: {{age: 1ms}}
unloadTimeout: 1s
models:
  red: {{cmd: "{command}", memory: 100MiB, slots: 2}}
  blue: {{cmd: "{command} --stray", memory: 100MiB, slots: 1, ttl: {ttl}}}
  green: {{cmd: "{green}", memory: 100MiB, slots: 4}}
  pair: {{cmd: "{command}", memory: 100MiB, slots: 2, shards: [{{cmd: "{command}"}}]}}
  bad: {{cmd: "{command} --fail", memory: 1MiB}}
"""
        fresh = self.config.with_suffix(f".{threading.get_ident()}")
        fresh.write_text(text)
        fresh.replace(self.config)

    # --- one life ----------------------------------------------------------------------------------------

    def live(self, failpoint: str = "", after_s: float | None = None, *, restarts: bool = False) -> None:
        """Start a daemon, give it work, and kill it: where it comes to the failpoint, or after a time. Where
        it starts again in place, now and then, that is the time since it was first asked to."""
        self.lives += 1
        whole, longer = len(self.told.restarted_s), min(1.2 * World.restart_s, LONGEST_RESTART_S)
        self._launch(failpoint)
        workload = self._work(restarts=restarts)
        if restarts:
            workload.restarts.wait(PATIENCE_S)
        elif failpoint.startswith("stop.") and self.daemon.listens.wait(PATIENCE_S):
            self.daemon.ends(0.2)
            self.daemon.terminate()
        if not self.daemon.ends(REACHED_S if after_s is None else after_s):
            self.daemon.kill()
            failpoint = ""
        code = self.daemon.code()
        workload.join()
        if restarts:
            World.restart_s = self.told.restarted_s[-1] if len(self.told.restarted_s) > whole else longer
        self._listens_s = self.daemon.listens_s or self._listens_s
        assert code == -signal.SIGKILL, f"it ended by itself, with {code}:\n{self._journal()}"
        assert after_s is not None or failpoint, f"it never came to its failpoint:\n{self._journal()}"
        wrong = self.told.wrong + self.told.leases.wrong
        assert not wrong, "\n".join(wrong) + "\n" + self._journal()
        self.died_at[failpoint.partition(":")[0]] += 1

    def moment_s(self) -> float:
        """A moment in a life, in seconds from its launch: one of five lies in the recovery."""
        return self._chance.uniform(0, 5 * self._listens_s)

    def restart_moment_s(self) -> float:
        """A moment in a restart in place, in seconds from when it was asked for, or soon after it."""
        return self._chance.uniform(0, 1.5 * World.restart_s)

    def _launch(self, failpoint: str = "") -> None:
        arguments = [
            "--config", str(self.config), "--listen", "127.0.0.1:0", "--log", str(self.log),
            "--socket", str(self.control),
        ]  # fmt: skip
        self.daemon = Daemon(arguments, failpoint)

    def _work(self, *, restarts: bool) -> Workload:
        seed = f"{self.seed}-{self.lives}"
        return Workload(self.daemon, self.control, self.told, seed, self.configure, restarts=restarts)

    def _journal(self) -> str:
        return f"world {self.seed}, life {self.lives}, {self.folder}\n" + "".join(self.daemon.journal[-60:])

    # --- between two lives -------------------------------------------------------------------------------

    def lose_a_runner(self) -> None:
        """Kill a process of a runner, while no daemon is there or one that knows nothing of it yet."""
        found = self._processes()
        if found:
            _, stat = self._chance.choice(found)
            self.told.killed[stat.pid, stat.start_time] = None
            identity.kill(stat)

    def look(self) -> None:
        """Start a daemon and give it nothing to do: what it has adopted is there, serves at once, and nothing
        else of it is; leases are held again. Then kill it."""
        self._idle()
        self._no_orphan()
        self._visit()
        lessees = self._come_back()
        for runner in self._state.runners.values():
            if runner.state is not RunnerState.ready or runner.keep_alive_ns < LONG_NS:
                continue  # it may go at any moment
            if len(runner.held) < runner.slots:  # nobody else has what is leased
                self._serves_at_once(runner.id, runner.model)
        self._kill()
        for lessee in lessees:
            lessee.close()

    def _idle(self) -> None:
        """Start a daemon that is given nothing to do."""
        self.lives += 1
        self._launch()
        assert self.daemon.listens.wait(PATIENCE_S) and not self.daemon.over.is_set(), self._journal()

    def _kill(self) -> None:
        self.daemon.kill()
        self.daemon.code()
        self.died_at[""] += 1

    def outlast_a_grace(self) -> None:
        """Two leases, of which one holder does not come back: his slot is kept for the grace, which begins
        anew where the daemon is killed within it, and is anybody's then. The other's stays his."""
        self._idle()
        lessees = [Lessee(number, self.daemon, self.control, self.told.leases) for number in range(2)]
        stays, goes = [lessee.acquire("red") for lessee in lessees]
        assert stays.runner == goes.runner
        for _ in range(2):
            self._kill()
            lessees[1].forget(goes)
            self._idle()
            lessees[0].close()
            lessees[0] = Lessee(0, self.daemon, self.control, self.told.leases)
            lessees[0].come_back()
            assert goes.request in self._leased(), self._journal()
        client = Client([self.control])
        client._socket.settimeout(2 * LEASE_GRACE_NS / S)
        replies = client.calls("Watch", after=self._state.seq)
        assert any(reply["event"]["subject"] == goes.request for reply in replies)
        self._ask("red")
        assert self._leased() == [stays.request]
        self._kill()
        client._socket.close()
        for lessee in lessees:
            lessee.close()

    def _leased(self) -> list[str]:
        """The leases that are held, by the log."""
        self._read_on()
        return [request.id for request in self._state.requests.values() if request.kind == c.LEASE]

    def _come_back(self) -> list[Lessee]:
        """Have those who wait for their leases show their tokens; they hold them until the daemon is
        killed."""
        lessees, leases = list[Lessee](), self.told.leases
        for number, hold in list(leases.waiting.items()):
            request = self._state.requests.get(hold.request)
            ready = request is not None and self._state.runners[hold.runner].state is RunnerState.ready
            held = ready and request is not None and request.state is RequestState.dispatched
            lessees.append(Lessee(number, self.daemon, self.control, leases))
            lessees[-1].come_back()
            back = number in leases.waiting
            assert back if held else not back or request, (hold.request, request, self._journal())
        assert not leases.wrong, leases.wrong
        return lessees

    def _visit(self) -> None:
        """Look into the log as a person would: with a connection that could write, and is closed."""
        visitor = sqlite3.connect(self.log)
        assert visitor.execute("SELECT max(seq) FROM events").fetchone()[0] >= self._state.seq
        visitor.close()
        assert Path(f"{self.log}-wal").exists(), "the visitor was taken for the last one"

    def _serves_at_once(self, runner: str, model: str) -> None:
        """The first request is served by the runner that was there, without a load."""
        answered = self._ask(model)
        self.first_ms.append(1000 * (time.monotonic() - self.daemon.began))
        events = self._read_on()
        mine = [event.body for event in events if event.subject == answered]
        [dispatched] = [body for body in mine if isinstance(body, c.RequestDispatched)]
        assert dispatched.runner == runner, f"{answered} went to {dispatched.runner}, not {runner}"
        loads = [e for e in events if isinstance(e.body, c.RunnerLoad) and e.body.model == model]
        assert not loads, loads

    def _ask(self, model: str) -> str:
        """Ask for a model, and read the whole answer: its id in the log."""
        name = f"{self.seed}-{self.lives}-first-{model}"
        connection = http.client.HTTPConnection("127.0.0.1", self.daemon.port, timeout=PATIENCE_S)
        body = {"model": model, "user": name, "stream": True, "pieces": 1, "pause_ms": 0}
        connection.request("POST", "/v1/chat/completions", json.dumps(body))
        response = connection.getresponse()
        assert response.status == 200, (response.status, response.read(), self._journal())
        assert response.read().endswith(b"[DONE]\n\n")
        request = response.headers["X-Runnerd-Request"]
        self.told.requests[name], self.told.whole[name] = request, None
        connection.close()
        return request

    def _read_on(self) -> list[Event]:
        """Take the state from the log as it is now; what has come since the last time."""
        with Reader(self.log) as reader:
            events = list(reader.events(after=max(self._state.seq, reader.base.seq - 1)))
            self._state = state_at(reader, reader.head().seq)
        return events

    def _processes(self) -> list[tuple[str, identity.Stat]]:
        """The processes that carry this log's marker, each with its runner and shard."""
        try:
            with Reader(self.log) as reader:
                log_id = reader.log_id
        except (FileNotFoundError, NotALog):
            return []
        return [(marker.partition("/")[2], stat) for stat, marker in identity.marked(log_id)]

    def _no_orphan(self) -> None:
        """Every process with this log's marker is a runner's that the log knows, and that has not ended."""
        found = self._processes()
        self._read_on()
        runners = self._state.runners
        orphans = [of for of, stat in found if of.partition("/")[0] not in runners and _lives(stat)]
        assert not orphans, f"processes that no runner has: {orphans}\n{self._journal()}"

    # --- the end -----------------------------------------------------------------------------------------

    def end(self) -> Evidence:
        """Stop properly; nothing may be left, and the log must be what it should be."""
        self._launch()
        assert self.daemon.listens.wait(PATIENCE_S) and not self.daemon.over.is_set(), self._journal()
        self._no_orphan()
        self.daemon.terminate()
        assert self.daemon.code() == 0, self._journal()
        left = [of for of, _ in self._processes()]
        assert not left, f"left behind: {left}"
        evidence = Evidence(self.log, self.ledger, self.told)
        evidence.examine()
        assert evidence.starts <= self.lives + 1 + self.told.restarts
        assert evidence.restarts >= len(self.told.restarted_s)
        return evidence

    def clear(self) -> None:
        """Whatever happened: leave no process behind."""
        if hasattr(self, "daemon") and not self.daemon.over.is_set():
            self.daemon.kill()
            self.daemon.code()
        for _, stat in self._processes():
            identity.kill(stat)
        guardian.stop(str(self.log))
