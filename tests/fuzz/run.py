"""Fuzz the front door, the control socket and the reader of configurations:
`python -m tests.fuzz.run [--seed N] [--count N] [http|control|config]`; a failure names the batch or the
file, and `--first` repeats a batch."""

from __future__ import annotations

import argparse
import logging
import sys
import time

import trio

from tests.fuzz import config_fuzz, control_fuzz, http_fuzz

COUNT = 200_000


def main() -> int:
    logging.getLogger("runnerd").addHandler(logging.NullHandler())  # what it says of each is of no use here
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", nargs="?", choices=("http", "control", "config"))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=COUNT, help="inputs of each kind")
    parser.add_argument(
        "--first", type=int, default=0, metavar="BATCH", help="begin with this batch (http, control)"
    )
    options = parser.parse_args()
    if options.what in (None, "config"):
        began = time.monotonic()
        loaded, refused = config_fuzz.fuzz(options.seed, options.count)
        took = time.monotonic() - began
        print(
            f"config: {options.count:,} files, {loaded:,} loaded, {refused:,} refused; {took:.0f} s",
            flush=True,
        )
    if options.what in (None, "http"):
        began = time.monotonic()
        dispatched = trio.run(http_fuzz.fuzz, options.seed, options.count, options.first)
        took = time.monotonic() - began
        print(
            f"http: {options.count:,} requests, {dispatched:,} dispatches, nothing left of any; {took:.0f} s"
        )
    if options.what in (None, "control"):
        began = time.monotonic()
        leases = trio.run(control_fuzz.fuzz, options.seed, options.count, options.first)
        took = time.monotonic() - began
        print(f"control: {options.count:,} messages, {leases:,} leases, nothing left of any; {took:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
