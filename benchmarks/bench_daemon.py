"""The whole daemon (front door, scheduler, log, effects) against a direct connection to the same backend.

usage: python benchmarks/bench_daemon.py [--seconds 3] [--soak REQUESTS] [--json]

`runnerd serve` runs on the first core with its log on; the backend is its runner, and shares the second core
with the load. `--soak` then sends so many requests more, and shows what the daemon's memory did meanwhile,
and its log, which is to keep to 64 MiB.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent))

from benchmarks import load  # noqa: E402
from benchmarks.backend import CHUNKS_PER_S  # noqa: E402
from benchmarks.bench_relay import measure, report, resident_mib  # noqa: E402

RUNNERD = (str(Path(sys.executable).parent / "runnerd"),)

SOAK_PARTS = 5

CONFIG = """\
listen: 127.0.0.1:0
retention: {{size: 64MiB}}
models:
  m:
    cmd: taskset -c {core} {python} {backend} ${{PORT}} {rate}
    memory: {{host: 64MiB}}
    slots: {slots}
"""


@contextmanager
def daemon(
    directory: Path,
    core: int,
    backend_core: int,
    *,
    slots: int = 64,
    rate: int = CHUNKS_PER_S,
    program: Sequence[str] = RUNNERD,
) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A daemon on a core of its own: its process and its port. Its runner has so many slots, and streams so
    many chunks a second on each. `program`: what is run, with the arguments of `runnerd`."""
    config = directory / "config.yaml"
    config.write_text(
        CONFIG.format(
            core=backend_core, python=sys.executable, backend=HERE / "backend.py", slots=slots, rate=rate
        )
    )
    command = ["taskset", "-c", str(core), *program, "serve"]
    command += ["--config", str(config), "--log", str(directory / "events.db")]
    command += ["--socket", str(directory / "control.sock")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        yield process, port_of(process)
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate()


def port_of(process: subprocess.Popen[str]) -> int:
    """Where it listens, as its journal says."""
    assert process.stderr is not None
    for line in process.stderr:
        found = re.search(r"listening on http://[^:]+:(\d+)", line)
        if found:
            return int(found[1])
    raise SystemExit("the daemon did not start")


def backend_port(directory: Path, front: load.Target) -> int:
    """Have the model loaded; the port of its runner."""
    with load.connect(front) as sock:
        sock.sendall(load.request_bytes(front, "m"))
        if not sock.recv(65536).startswith(b"HTTP/1.1 200"):
            raise SystemExit("the backend was not loaded")
    runnerctl = [str(Path(sys.executable).parent / "runnerctl"), "--socket", str(directory / "control.sock")]
    printed = subprocess.run([*runnerctl, "--json", "ps"], capture_output=True, text=True, check=True).stdout
    port: int = json.loads(printed)["port"]
    return port


def soak(front: load.Target, pid: int, requests: int, log: Path) -> None:
    """Send so many requests, and print the daemon's memory and the size of its log as they go."""
    print(f"{'requests':>12}{'resident MiB':>16}{'log MiB':>12}{'its WAL':>12}")
    done = 0
    while done < requests:
        part = 0
        while part < requests / SOAK_PARTS:
            run = load.closed_loop(front, load.request_bytes(front, "m"), connections=32, seconds=2)
            part += run.requests
        done += part
        size, wal = (Path(f"{log}{suffix}").stat().st_size / (1 << 20) for suffix in ("", "-wal"))
        print(f"{done:>12,}{resident_mib(pid):>16.1f}{size:>12.1f}{wal:>12.1f}", flush=True)


def main() -> None:
    """Start, measure, print, stop."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--soak", type=int, default=0, metavar="REQUESTS")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[-1]})
    with (
        tempfile.TemporaryDirectory(prefix="runnerd-bench-") as directory,
        daemon(Path(directory), cores[0], cores[-1]) as (process, port),
    ):
        front = ("127.0.0.1", port)
        direct = ("127.0.0.1", backend_port(Path(directory), front))
        report(measure(direct, front, process.pid, "m", options.seconds), options.json)
        if options.soak:
            soak(front, process.pid, options.soak, Path(directory) / "events.db")


if __name__ == "__main__":
    main()
