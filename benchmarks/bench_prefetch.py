"""What reading a model's file ahead is worth: how long a load reads it cold, warm, and read ahead.

usage: python benchmarks/bench_prefetch.py [--gib 2] [--drain 2.0] [--dir DIRECTORY] [--json]

`--drain` is how long the victims of the swap drain: the time that reading ahead has.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import threading
import time
from pathlib import Path

from daemon.prefetch import read_ahead

PIECE = 1 << 20


def make(path: Path, size: int) -> None:
    """A file of that size, on the disk."""
    data = os.urandom(PIECE)
    with path.open("wb") as file:
        for _ in range(size // PIECE):
            file.write(data)
        file.flush()
        os.fsync(file.fileno())


def drop(path: Path) -> None:
    """Take the file out of the page cache."""
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_s(path: Path) -> float:
    """How long a server takes to read it, with large reads one after the other."""
    began = time.perf_counter()
    with path.open("rb", buffering=0) as file:
        while file.read(8 * PIECE):
            pass
    return time.perf_counter() - began


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gib", type=float, default=2.0)
    parser.add_argument("--drain", type=float, default=2.0)
    parser.add_argument("--dir", type=Path, default=None)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.dir) as directory:
        path = Path(directory) / "model.gguf"
        make(path, int(options.gib * (1 << 30)))
        drop(path)
        figures = {
            "gib": options.gib,
            "drain_s": options.drain,
            "cold_s": read_s(path),
            "warm_s": read_s(path),
        }
        drop(path)
        began = time.perf_counter()
        read_ahead([path], threading.Event())
        figures["asking_s"] = time.perf_counter() - began
        time.sleep(max(0.0, options.drain - figures["asking_s"]))
        figures["ahead_s"] = read_s(path)
    if options.json:
        print(json.dumps(figures))
        return
    print(
        f"{options.gib:g} GiB read by a load: cold {figures['cold_s']:.2f} s, warm {figures['warm_s']:.2f} s;"
    )
    print(f"read ahead during a drain of {options.drain:g} s: {figures['ahead_s']:.2f} s")


if __name__ == "__main__":
    main()
