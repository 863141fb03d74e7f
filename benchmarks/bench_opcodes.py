"""What a relayed request costs in Python: instructions and calls, counted by function rather than timed. They
are the same on a busy machine as on a quiet one, and show what a change has cost to a hundredth.

usage: python benchmarks/bench_opcodes.py [--connections 32] [--streams] [--seconds 10] [--top 30]
           [--save FILE] [--against FILE]

With `--streams` each connection is a stream, and a chunk of it what is counted: as few a second as a daemon
that counts can keep up with.

An instruction of Python 3.11 is some 30 of the processor's here, and what it calls in C comes on top of that.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent))

from benchmarks import load  # noqa: E402
from benchmarks.bench_daemon import daemon  # noqa: E402

Counts = dict[str, tuple[float, float]]
"""Instructions and calls of each request, by function."""

OURS = ("daemon/", "events/", "statemachines/")

SLOW_CHUNKS_PER_S = 10
"""Of each stream: with each instruction traced a daemon does about a thirtieth of what it does else."""

WRITTEN_S = 60.0
"""A daemon that counts has long written its file by then."""


# --- the daemon that is counted ----------------------------------------------------------------------------


def serve_counted(file: Path, arguments: Sequence[str]) -> None:
    """`runnerd ARGUMENTS`. SIGUSR1: begin to count anew. SIGUSR2: write the counts into `file`."""
    from daemon.cli.runnerd import main as runnerd

    instructions: Counter[CodeType] = Counter()
    calls: Counter[CodeType] = Counter()

    def within(frame: FrameType, event: str, _: object) -> Any:
        if event == "opcode":
            instructions[frame.f_code] += 1
        return within

    def called(frame: FrameType, event: str, _: object) -> Any:
        calls[frame.f_code] += 1
        frame.f_trace_lines, frame.f_trace_opcodes = False, True
        return within

    def begin(*_: object) -> None:
        instructions.clear()
        calls.clear()

    def write(*_: object) -> None:
        found: Counter[str] = Counter()
        entered: Counter[str] = Counter()
        for code, count in list(instructions.items()):
            found[name_of(code)] += count
            entered[name_of(code)] += calls[code]
        ready = file.with_suffix(".new")
        ready.write_text(json.dumps({name: (found[name], entered[name]) for name in found}))
        ready.rename(file)

    signal.signal(signal.SIGUSR1, begin)
    signal.signal(signal.SIGUSR2, write)
    sys.settrace(called)
    sys.argv = ["runnerd", *arguments]
    runnerd()


def name_of(code: CodeType) -> str:
    """A function by its file, below the package that it is of, and its name."""
    path = Path(code.co_filename)
    parts = path.relative_to(HERE.parent).parts if path.is_relative_to(HERE.parent) else path.parts[-3:]
    if "site-packages" in parts:
        parts = parts[parts.index("site-packages") + 1 :]
    return f"{'/'.join(parts)}:{code.co_qualname}"


# --- what is measured --------------------------------------------------------------------------------------


def measure(connections: int, seconds: float, *, streams: bool = False) -> Counts:
    """What a request costs at so many connections, or a chunk of so many streams."""
    cores = sorted(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory(prefix="runnerd-bench-") as name:
        directory = Path(name)
        counted = directory / "counted.json"
        program = (sys.executable, str(HERE / "bench_opcodes.py"), "--counted", str(counted))
        rate = SLOW_CHUNKS_PER_S
        with daemon(directory, cores[0], cores[-1], rate=rate, program=program) as (process, port):
            return _counts(process, ("127.0.0.1", port), counted, connections, seconds, streams=streams)


def _counts(
    process: subprocess.Popen[str],
    front: load.Target,
    counted: Path,
    connections: int,
    seconds: float,
    *,
    streams: bool,
) -> Counts:
    request = load.request_bytes(front, "m")
    load.closed_loop(front, request, connections=connections, seconds=3.0)  # it is loaded, pools are filled
    process.send_signal(signal.SIGUSR1)
    if streams:
        endless = load.request_bytes(front, "m", chunks=int(2 * seconds * SLOW_CHUNKS_PER_S))
        done = load.streams(front, endless, connections=connections, seconds=seconds).chunks
    else:
        done = load.closed_loop(front, request, connections=connections, seconds=seconds).requests
    process.send_signal(signal.SIGUSR2)
    late = time.monotonic() + WRITTEN_S
    while not counted.exists():
        if process.poll() is not None or time.monotonic() > late:
            raise SystemExit("the daemon did not count")
        time.sleep(0.1)
    found = json.loads(counted.read_text())
    return {name: (count / done, calls / done) for name, (count, calls) in found.items()}


def total(counts: Counts, *, ours: bool = False) -> tuple[float, float]:
    """Of all functions, or of the project's own."""
    kept = [value for name, value in counts.items() if name.startswith(OURS) or not ours]
    return sum(count for count, _ in kept), sum(calls for _, calls in kept)


def report(counts: Counts, before: Mapping[str, Sequence[float]], top: int) -> None:
    """Print the functions that cost the most, or that have changed the most."""
    rows = []
    for name in counts.keys() | before.keys():
        now, was = counts.get(name, (0.0, 0.0)), before.get(name, (0.0, 0.0))
        rows.append((now[0] - was[0] if before else now[0], now, was, name))
    rows.sort(key=lambda row: -abs(row[0]))
    print(f"{'instructions':>14}{'calls':>8}" + (f"{'before':>10}{'calls':>8}" if before else ""))
    for _, now, was, name in rows[:top]:
        past = f"{was[0]:>10.1f}{was[1]:>8.2f}" if before else ""
        print(f"{now[0]:>14.1f}{now[1]:>8.2f}{past}  {name}")
    print(f"{total(counts)[0]:>14.0f}{total(counts)[1]:>8.0f}  all")
    print(f"{total(counts, ours=True)[0]:>14.0f}{total(counts, ours=True)[1]:>8.0f}  the project's own")


def main() -> None:
    """Count, print, save."""
    if sys.argv[1:2] == ["--counted"]:
        serve_counted(Path(sys.argv[2]), sys.argv[3:])
        return
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--streams", action="store_true", help="count a chunk of a stream")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--top", type=int, default=30)
    parser.add_argument("--save", type=Path)
    parser.add_argument("--against", type=Path)
    options = parser.parse_args()
    counts = measure(options.connections, options.seconds, streams=options.streams)
    before = json.loads(options.against.read_text()) if options.against else {}
    report(counts, before, options.top)
    if options.save:
        options.save.write_text(json.dumps(counts))


if __name__ == "__main__":
    main()
