"""How much the relay costs, against a direct connection to the same backend in the same run.

usage: python benchmarks/bench_relay.py [--seconds 3] [--json]
           the front door alone, before a desk that dispatches everything at once
       python benchmarks/bench_relay.py --url http://127.0.0.1:8080 --pid PID --backend PORT [--model m]
           a whole daemon whose model `m` proxies to `benchmarks/backend.py PORT`

The relay has the first core, the backend and the load share the second.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import cast
from urllib.parse import urlsplit

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent))

from benchmarks import load  # noqa: E402

STREAMS = 32
STREAM_CHUNKS_PER_S = 200
ROUNDS = 6
"""A shared machine is fast and slow by turns: who is compared takes turns, too."""


# --- the front door alone ----------------------------------------------------------------------------------


def serve_front(backend_port: int) -> None:
    """A front door whose desk dispatches everything at once to the backend."""
    import trio

    from daemon.catalog import Catalog
    from daemon.config.file import load as load_config
    from daemon.http.server import FrontDoor
    from daemon.logs import Logs, Ring
    from daemon.ports import Address, Control, Dispatched, Ended
    from events.catalogue import RequestArrived, UpstreamEnded
    from statemachines.state import State

    turn = Dispatched(Address("r1", f"http://127.0.0.1:{backend_port}"), 1)

    class Ticket:
        __slots__ = ("on_cut", "on_end", "request")

        def __init__(self, request: str) -> None:
            self.request = request
            self.on_end: Callable[[Ended], None] | None = None
            self.on_cut: Callable[[str], None] | None = None

        async def turn(self) -> Dispatched | Ended:
            return turn

    class Desk:
        """As much of it as a relayed request needs."""

        def __init__(self) -> None:
            self.state = State()
            self.state.runners["r1"] = None  # type: ignore[assignment]  # only its name is looked at
            self.arrived = 0

        def arrive(self, arrival: RequestArrived) -> Ticket:
            self.arrived += 1
            return Ticket(f"q{self.arrived}")

        def gone(self, ticket: object) -> None: ...

        def ended(self, fact: UpstreamEnded) -> None: ...

    async def main() -> None:
        listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        print("listening on", listener.getsockname()[1], flush=True)
        with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
            file.write("models: {m: {cmd: 'server ${PORT}'}}")
            file.flush()
            catalog = Catalog(load_config(Path(file.name)))
        await FrontDoor(cast("Control", Desk()), catalog, Logs(Ring(), lambda: [])).serve([listener])

    trio.run(main)


@contextmanager
def started(arguments: Sequence[str], core: int) -> Iterator[tuple[int, int]]:
    """A server on one core: its port and its process."""
    command = ["taskset", "-c", str(core), sys.executable, *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield int(process.stdout.readline().split()[-1]), process.pid
    finally:
        process.kill()
        process.wait()


# --- what is measured --------------------------------------------------------------------------------------


def cpu_s(pid: int) -> float:
    """The processor time that the threads of a process have used, in seconds, by the scheduler's clock."""
    threads = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((thread / "schedstat").read_text().split()[0]) for thread in threads) / 1e9


def resident_mib(pid: int) -> float:
    """A process's resident memory."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


def by_turns(
    asked: dict[load.Target, bytes], pid: int, connections: int, seconds: float
) -> tuple[dict[load.Target, load.Load], float]:
    """Each target under load for so long, in turns; and the process's time meanwhile, in seconds."""
    seen = {target: load.Load() for target in asked}
    used = cpu_s(pid)
    for _ in range(ROUNDS):
        for target, request in asked.items():
            run = load.closed_loop(target, request, connections=connections, seconds=seconds / ROUNDS)
            seen[target].add(run)
    return seen, cpu_s(pid) - used


def measure(
    direct: load.Target, relay: load.Target, pid: int, model: str, seconds: float
) -> dict[str, float]:
    """Every figure; what is measured is, for `seconds` each."""
    asked = {target: load.request_bytes(target, model) for target in (direct, relay)}
    figures = {"idle_mib": resident_mib(pid)}
    load.closed_loop(relay, asked[relay], connections=32, seconds=0.5)  # pools and caches are filled

    one, _ = by_turns(asked, pid, 1, seconds)
    for percent in (50, 99):
        plain, relayed = one[direct].percentile_us(percent), one[relay].percentile_us(percent)
        figures[f"p{percent}_direct_us"] = plain
        figures[f"p{percent}_us"] = relayed
        figures[f"p{percent}_added_us"] = relayed - plain

    many, used = by_turns(asked, pid, 32, seconds)
    figures["direct_per_s"] = many[direct].per_s
    figures["relayed_per_s"] = many[relay].per_s
    figures["ratio"] = many[relay].per_s / many[direct].per_s
    figures["cpu_us_per_request"] = used / many[relay].requests * 1e6
    figures["relay_core_percent"] = used / many[relay].seconds * 100

    chunks = int(seconds * STREAM_CHUNKS_PER_S)
    used = cpu_s(pid)
    stream = load.streams(
        relay, load.request_bytes(relay, model, chunks=chunks), connections=STREAMS, seconds=seconds
    )
    figures["stream_core_percent"] = (cpu_s(pid) - used) / stream.seconds * 100
    figures["stream_chunks_per_s"] = stream.chunks / stream.seconds
    figures["after_mib"] = resident_mib(pid)
    return figures


def report(figures: dict[str, float], as_json: bool) -> None:
    """Print them."""
    if as_json:
        print(json.dumps({name: round(value, 2) for name, value in figures.items()}))
        return
    for name, value in figures.items():
        print(f"{name:22} {value:12,.2f}")


def main() -> None:
    """Parse, start what is needed, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--url", help="a running daemon")
    parser.add_argument("--pid", type=int, help="its process")
    parser.add_argument("--backend", type=int, help="the port of the backend behind it")
    parser.add_argument("--model", default="m")
    parser.add_argument("--front", type=int, metavar="PORT", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.front:
        return serve_front(options.front)
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[-1]})
    if options.url:
        url = urlsplit(options.url)
        relay = (url.hostname or "127.0.0.1", url.port or 80)
        direct = ("127.0.0.1", options.backend)
        return report(measure(direct, relay, options.pid, options.model, options.seconds), options.json)
    with (
        started([str(HERE / "backend.py"), "0"], cores[-1]) as (port, _),
        started([str(HERE / "bench_relay.py"), "--front", str(port)], cores[0]) as (front, pid),
    ):
        relay, direct = ("127.0.0.1", front), ("127.0.0.1", port)
        return report(measure(direct, relay, pid, options.model, options.seconds), options.json)


if __name__ == "__main__":
    main()
