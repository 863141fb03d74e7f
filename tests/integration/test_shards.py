"""Runners of several processes, and loads that stand still: by a supervisor alone, by the whole daemon."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue

import msgspec
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from daemon.config.commands import Command, ShardCommand
from daemon.ports import Launch
from daemon.processes import identity
from daemon.processes.supervisor import Supervisor
from events import catalogue as c
from events.catalogue import (
    LeaseRefused,
    LoadProgressed,
    ProbeAnswered,
    Process,
    ProcessExited,
    ProcessSpawned,
    SpawnFailed,
)
from events.limits import S
from tests.integration.live import PATIENCE_S, ROOT, Live, daemon, ngram
from tests.integration.yard import BOOT, SERVER, Yard, free_port, gone, is_alive

PYTHON = (sys.executable, "-ISc")


# --- by a supervisor alone -------------------------------------------------------------------------------

LATE_SERVER = (
    "import os, sys, time\ngo = sys.argv.pop()\nwhile not os.path.exists(go): time.sleep(0.01)\n" + SERVER
)
"""One that listens once a file is there."""


def sharded(*shards: ShardCommand, **more: object) -> Callable[[Launch, str], Command]:
    """A first process on its leased socket, with shards."""

    def make(launch: Launch, path: str) -> Command:
        argv = (*PYTHON, SERVER, path)
        made = Command(argv, {}, f"unix:{path}", check_path="/health", shards=shards)
        return msgspec.structs.replace(made, **more)

    return make


def listening(port: int, *how: str, script: str = SERVER) -> ShardCommand:
    return ShardCommand((*PYTHON, script, str(port), *how), {}, f"http://127.0.0.1:{port}", "")


SLEEPS = ShardCommand(("sleep", "1000"))


def launch(*ports: int, stall_ns: int = 0) -> Launch:
    return Launch("r7", "m", "d", {}, 0, True, ports, stall_ns)


async def spawn(yard: Yard, supervisor: Supervisor, asked: Launch) -> list[Process]:
    """Start a runner's gates, and let them run."""
    supervisor.ensure(asked)
    processes = [(await yard.fact(ProcessSpawned)).process for _ in range(len(asked.shard_ports) + 1)]
    for process in processes:
        supervisor.release(process)
    return processes


async def exits(yard: Yard, count: int) -> dict[int, int | None]:
    """The next facts, which must be exits: shard to status."""
    ended = [await yard.fact(ProcessExited) for _ in range(count)]
    return {fact.shard: fact.status for fact in ended}


async def test_the_first_process_starts_when_the_shards_that_are_asked_are_up(
    yard: Yard, tmp_path: Path
) -> None:
    one, two = free_port(), free_port()
    go, proof = tmp_path / "go", tmp_path / "it-ran"
    late = ShardCommand((*PYTHON, LATE_SERVER, str(one), str(go)), {}, f"http://127.0.0.1:{one}", "/health")
    script = f"open({str(proof)!r}, 'w')\n" + SERVER
    yard.make = lambda asked, path: msgspec.structs.replace(
        sharded(late, SLEEPS)(asked, path), argv=(*PYTHON, script, path)
    )
    async with yard.supervise() as supervisor:
        processes = await spawn(yard, supervisor, launch(one, two))
        assert [process.shard for process in processes] == [1, 2, 0]
        for process in processes:
            supervisor.release(process)  # the same again changes nothing
        await wait_all_tasks_blocked()
        assert not proof.exists()
        go.touch()
        assert await yard.fact(ProbeAnswered) == ProbeAnswered("r7", True)
        assert proof.exists()
        assert supervisor.tail("r7", 1) == ["shard 1: serving", "serving"]
        supervisor.stop("r7")
        assert await exits(yard, 3) == dict.fromkeys(range(3), -signal.SIGTERM)
        assert not any(is_alive(process.pid) for process in processes)
        supervisor.forget("r7")
        assert yard.files() == ["ended-r7.log", "go", "it-ran"]
    assert len(yard.facts) == 7


async def test_a_stop_reaches_a_first_process_that_still_waits_for_its_shards(
    yard: Yard, tmp_path: Path
) -> None:
    port = free_port()
    late = ShardCommand(
        (*PYTHON, LATE_SERVER, str(port), str(tmp_path / "go")), {}, f"http://127.0.0.1:{port}", ""
    )
    yard.make = sharded(late)
    async with yard.supervise() as supervisor:
        await spawn(yard, supervisor, launch(port))
        supervisor.stop("r7")
        ended = await exits(yard, 2)
        assert ended[0] == 1  # the gate, which never opened
        assert ended[1] == -signal.SIGTERM


async def test_a_shard_that_ends_is_reported_with_its_words_and_the_others_stay(yard: Yard) -> None:
    port = free_port()
    yard.make = sharded(ShardCommand(("sh", "-c", "echo no such device; exit 3")), SLEEPS)
    async with yard.supervise() as supervisor:
        processes = await spawn(yard, supervisor, launch(port, port + 1))
        fact = await yard.until(ProcessExited)  # the first process may have been ready before
        assert (fact.shard, fact.status) == (1, 3)
        assert fact.output in ("no such device", "")
        assert is_alive(processes[1].pid)
        assert is_alive(processes[2].pid)
        supervisor.kill("r7")
        assert await exits(yard, 2) == {0: -signal.SIGKILL, 2: -signal.SIGKILL}


async def test_no_gate_is_left_where_one_cannot_be_made_or_a_port_is_taken(yard: Yard) -> None:
    port = free_port()
    yard.make = sharded(SLEEPS, ShardCommand(("true\0",)))
    async with yard.supervise() as supervisor:
        supervisor.ensure(launch(port, port + 1))
        assert (await yard.fact(SpawnFailed)).runner == "r7"
        with trio.fail_after(30):
            while identity.marked(yard.log_id):
                await trio.lowlevel.checkpoint()
        yard.make = sharded(SLEEPS)
        with socket.create_server(("127.0.0.1", 0)) as other:
            taken = other.getsockname()[1]
            supervisor.ensure(launch(taken))
            assert await yard.fact(LeaseRefused) == LeaseRefused("r7", taken)
        supervisor.ensure(launch(port))
        await yard.fact(ProcessSpawned)
        await yard.fact(ProcessSpawned)
        supervisor.stop("r7")  # the gates are shut
        assert await exits(yard, 2) == {0: 1, 1: 1}


async def test_a_stop_command_is_for_the_first_process_then_a_signal_for_the_shards(yard: Yard) -> None:
    port = free_port()
    yard.make = sharded(listening(port, "child"), stop_template=("kill", "-INT", "${PID}"))
    async with yard.supervise() as supervisor:
        await spawn(yard, supervisor, launch(port))
        await yard.fact(ProbeAnswered)
        supervisor.stop("r7")
        assert list((await exits(yard, 2)).items()) == [(0, -signal.SIGINT), (1, -signal.SIGTERM)]


async def test_a_whole_runner_is_adopted_and_of_a_broken_one_what_is_left(yard: Yard) -> None:
    port = free_port()
    asked = launch(port)
    yard.make = sharded(listening(port))
    async with yard.supervise() as first:
        processes = await spawn(yard, first, asked)
        await yard.fact(ProbeAnswered)
    recorded = [(process, asked) for process in processes]
    async with yard.supervise() as second:
        assert await second.identify(recorded) == processes
        assert await yard.fact(ProbeAnswered) == ProbeAnswered("r7", True)
        assert second.tail("r7", 1) == ["shard 1: serving", "serving"]
    shard, first_process = processes
    os.kill(shard.pid, signal.SIGKILL)
    gone(shard.pid)
    async with yard.supervise() as third:
        assert await third.identify(recorded) == [first_process]
        third.stop("r7")
        assert await exits(yard, 1) == {0: None}
        third.forget("r7")
        assert yard.files() == ["ended-r7.log"]
    assert first_process.boot_id == BOOT


PRINTS = "import sys, time\nwhile True: print('.', flush=True); time.sleep(0.01)"


async def test_progress_is_reported_a_few_times_within_its_limit_and_only_then(yard: Yard) -> None:
    yard.make = yard.running(*PYTHON, PRINTS)
    async with yard.supervise() as supervisor:
        began = trio.current_time()
        await spawn(yard, supervisor, launch(stall_ns=S))
        for _ in range(3):
            assert await yard.fact(LoadProgressed) == LoadProgressed("r7", "output")
        assert trio.current_time() - began >= 0.7
        supervisor.stop("r7")
        await yard.until(ProcessExited)


# --- by the whole daemon ---------------------------------------------------------------------------------

LEADER = f"""
import os, socket, sys
for port in sys.argv[2:]:
    socket.create_connection(("127.0.0.1", int(port))).close()
script = {str(ROOT / "examples/ngram_runner.py")!r}
os.execv(sys.executable, [sys.executable, script, "--port", sys.argv[1], "--slow-first-byte", "0.5"])
"""
"""Ends at once if a worker does not listen yet, as llama-server does with `--rpc`."""


def write_config(folder: Path, worker: str = SERVER) -> str:
    (folder / "leader.py").write_text(LEADER)
    (folder / "worker.py").write_text(worker)
    return f"""
models:
  big:
    cmd: {sys.executable} {folder}/leader.py ${{PORT}} ${{SHARD_PORT_1}} ${{SHARD_PORT_2}}
    memory: 1MiB
    env: [WHO=everybody]
    shards:
      - {sys.executable} {folder}/worker.py ${{PORT}}
      - {{cmd: "{sys.executable} {folder}/worker.py ${{PORT}}", env: [WHO=two], checkEndpoint: /up}}
"""


def pids(live: Live) -> dict[int, int]:
    """The processes of the last runner, by shard."""
    spawned = [event.body.process for event in live.events() if isinstance(event.body, ProcessSpawned)]
    return {process.shard: process.pid for process in spawned}


def who(pid: int) -> str:
    words = Path(f"/proc/{pid}/environ").read_text().split("\0")
    return next(word for word in words if word.startswith("WHO="))


def test_several_processes_serve_as_one_runner(tmp_path: Path) -> None:
    with daemon(tmp_path, write_config(tmp_path)) as live:
        assert live.chat("big")[0] == 200
        mine = pids(live)
        assert sorted(mine) == [0, 1, 2]
        assert [who(mine[shard]) for shard in range(3)] == ["WHO=everybody", "WHO=everybody", "WHO=two"]
        assert live.runnerctl("unload", "big").returncode == 0
        for pid in mine.values():
            gone(pid)
        assert live.chat("big")[0] == 200
    loads = [event.body for event in live.events() if isinstance(event.body, c.RunnerLoad)]
    assert [len({load.port, *load.shard_ports}) for load in loads] == [3, 3]
    assert live.tags().count("runner.unloaded") == 2


def test_a_worker_that_dies_takes_its_runner_along_and_who_waits_is_answered(tmp_path: Path) -> None:
    answers: SimpleQueue[int] = SimpleQueue()
    with daemon(tmp_path, write_config(tmp_path)) as live:
        assert live.chat("big")[0] == 200
        first = pids(live)
        threading.Thread(target=lambda: answers.put(live.chat("big")[0]), daemon=True).start()
        os.kill(first[2], signal.SIGKILL)
        for pid in first.values():
            gone(pid)
        assert answers.get(timeout=PATIENCE_S) in (200, 502, 503)  # so soon after it was ready it cools down
        assert settled(live) == 200
        assert set(pids(live).values()).isdisjoint(first.values())
    stops = [event.body for event in live.events() if isinstance(event.body, c.RunnerStop)]
    assert (stops[0].verdict, stops[0].reason) == ("failed", "shard_exited")
    assert live.tags().count("runner.failed") == 1


def settled(live: Live) -> int:
    """The status of a chat, once the model has cooled down."""
    status, _, headers = live.chat("big")
    while status in (502, 503):
        threading.Event().wait(int(headers.get("Retry-After", 0)))
        status, _, headers = live.chat("big")
    return status


def test_a_worker_that_does_not_start_says_why(tmp_path: Path) -> None:
    worker = "import sys; sys.exit('no such device: ' + sys.argv[1])"
    with daemon(tmp_path, write_config(tmp_path, worker)) as live:
        status, body, _ = live.chat("big")
        assert status == 502
        assert "no such device" in body["error"]["message"]


@pytest.mark.parametrize("whole", [True, False])
def test_after_a_crash_of_the_daemon_a_whole_runner_is_adopted_and_a_broken_one_ended(
    tmp_path: Path, whole: bool
) -> None:
    with daemon(tmp_path, write_config(tmp_path)) as live:
        assert live.chat("big")[0] == 200
        first = pids(live)
        live.kill()
        if not whole:
            os.kill(first[1], signal.SIGKILL)
            gone(first[1])
        live.start()
        assert settled(live) == 200
        assert whole == (pids(live) == first)
    assert live.tags().count("runner.failed") == (not whole)


def test_a_load_that_stands_still_is_given_up_long_before_the_limit_of_all_loads(tmp_path: Path) -> None:
    hangs = f"{{cmd: '{ngram('--hang-load')}', memory: 1MiB}}"
    prints = tmp_path / "prints.py"
    prints.write_text(
        "import sys, time\n"
        "for _ in range(25): print('.', flush=True); time.sleep(0.1)\n"
        f"import runpy; sys.argv[0] = {str(ROOT / 'examples/ngram_runner.py')!r}\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    slow = f"{{cmd: '{sys.executable} {prints} --port ${{PORT}}', memory: 1MiB}}"
    config = f"loadStallTimeout: 1\nhealthCheckTimeout: 100\nmodels: {{hangs: {hangs}, slow: {slow}}}"
    with daemon(tmp_path, config) as live:
        status, body, _ = live.chat("hangs")
        assert status == 502, body
        assert live.chat("slow")[0] == 200
    stops = [event.body for event in live.events() if isinstance(event.body, c.RunnerStop)]
    assert stops[0].reason == "load_stalled"
    signs = [event for event in live.events() if isinstance(event.body, LoadProgressed)]
    assert 4 <= len(signs) <= 14
