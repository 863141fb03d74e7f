"""How fast the event log is: latency of an append, throughput and WAL at full rate, reading and verifying.

    python benchmarks/bench_store.py [SECONDS]     (10 by default; the full-rate part lasts that long)

Figures are of this machine; the ratios compare with bare sqlite3 in the same run.
"""

from __future__ import annotations

import argparse
import os
import resource
import socket
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import trio

from events.catalogue import Event, RequestArrived, RequestCompleted, RequestDispatched, UpstreamEnded
from events.envelope import Row, decode, encode, first_hash
from events.limits import MIB
from events.reader import Reader
from events.store import EventStore, open_store

APPENDERS = 32
BARE_ROWS = 50_000
BARE_SCHEMA = """PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;
CREATE TABLE e (seq INTEGER PRIMARY KEY, at INT, t INT, type TEXT, version INT, cause INT, subject TEXT,
                payload TEXT, hash BLOB) STRICT;"""


def steps(first: int) -> Iterator[list[Event]]:
    """What requests write, for ever: two events when one arrives, two when it ends."""
    seq = first
    while True:
        request = f"q{seq}"
        arrived = RequestArrived(
            model="qwen3-32b", kind="chat", options={"num_ctx": 8192}, caller="127.0.0.1"
        )
        dispatched = RequestDispatched(request=request, runner="r2")
        yield [Event(seq, seq, 0, request, arrived), Event(seq + 1, seq, seq, request, dispatched)]
        ended = UpstreamEnded(
            request=request,
            runner="r2",
            complete=True,
            bytes_to_client=1234,
            status=200,
            first_byte_ns=1_234_567,
        )
        completed = RequestCompleted(request=request)
        yield [Event(seq + 2, seq, 0, request, ended), Event(seq + 3, seq, seq + 2, request, completed)]
        seq += 4


def percentiles(seconds: list[float]) -> str:
    """The shape of a latency, in microseconds."""
    ordered = sorted(seconds)

    def at(share: float) -> str:
        return f"{ordered[min(len(ordered) - 1, int(share * len(ordered)))] * 1e6:,.0f}"

    return f"p50 {at(0.5)}  p99 {at(0.99)}  p99.9 {at(0.999)}  max {at(1)} µs  ({len(ordered):,} steps)"


async def appender(store: EventStore, source: Iterator[list[Event]], until: float, seen: list[float]) -> None:
    """Append a step, wait until it is durable, and again."""
    while (begin := time.perf_counter()) < until:
        step = next(source)
        store.append(step, time.time_ns())
        await store.wait(step[-1].seq)
        seen.append(time.perf_counter() - begin)


async def relay_like(until: float) -> None:
    """What keeps the trio thread busy in the daemon: small reads and writes with some work between."""
    near, far = socket.socketpair()
    near.setblocking(False)
    far.setblocking(False)
    with near, far:
        while time.perf_counter() < until:
            near.send(b"x" * 1000)
            await trio.lowlevel.wait_readable(far)
            far.recv(65536)
            sum(range(1500))  # about 20 µs


async def measure(store: EventStore, seconds: float, appenders: int, busy: int) -> list[float]:
    """The latencies of so many appenders beside so many busy tasks."""
    seen: list[float] = []
    source = steps(store.head.seq + 1)
    until = time.perf_counter() + seconds
    async with trio.open_nursery() as nursery:
        for _ in range(busy):
            nursery.start_soon(relay_like, until)
        for _ in range(appenders):
            nursery.start_soon(appender, store, source, until, seen)
    return seen


def line(name: str, text: str) -> None:
    """One line of the report."""
    print(f"{name:<26}{text}", flush=True)


async def write(log: Path, seconds: float) -> None:
    """The writing parts."""
    brief = max(1.0, seconds / 5)
    async with open_store(log) as store:
        await measure(store, 0.3, 1, 0)
        line("append, idle", percentiles(await measure(store, brief, 1, 0)))
        line("append, trio 100 % busy", percentiles(await measure(store, brief, 1, 2)))
        before, cpu, begin = store.stats, time.process_time(), time.perf_counter()
        seen = await measure(store, seconds, APPENDERS, 0)
        after, cpu, wall = store.stats, time.process_time() - cpu, time.perf_counter() - begin
    events, groups = after.events - before.events, after.groups - before.groups
    line(f"{APPENDERS} appenders, {seconds:g} s", percentiles(seen))
    line(
        "full rate",
        f"{events / wall:,.0f} events/s, {events / groups:.1f} a group, CPU {cpu / events * 1e6:.1f} µs each",
    )
    line("peak WAL", f"{after.wal_peak_bytes / MIB:.1f} MiB; {after.yields} yields, {after.paced} paced")
    bare = bare_rate(log.parent)
    line(
        "ratio to bare sqlite3",
        f"{events / wall / bare:.2f} of {bare:,.0f} rows/s (no chain, no index, no waiting)",
    )


def bare_rate(directory: Path) -> float:
    """Rows per second of sqlite3 alone, from one busy loop: the same rows, encoded beforehand."""
    source, hash = steps(1), first_hash("bench")
    rows: list[Row] = []
    while len(rows) < BARE_ROWS:
        for event in next(source):
            rows.append(encode(event, 0, hash))
            hash = rows[-1][8]
    connection = sqlite3.connect(directory / "bare.db", isolation_level=None)
    connection.executescript(BARE_SCHEMA)
    begin = time.perf_counter()
    for start in range(0, len(rows), 16):
        connection.execute("BEGIN IMMEDIATE")
        connection.executemany("INSERT INTO e VALUES (?,?,?,?,?,?,?,?,?)", rows[start : start + 16])
        connection.execute("COMMIT")
    rate = len(rows) / (time.perf_counter() - begin)
    connection.close()
    return rate


def read(log: Path) -> None:
    """The reading parts."""
    with Reader(log) as reader:
        begin = time.perf_counter()
        count = reader.verify_chain()
        verified = time.perf_counter() - begin
        begin = time.perf_counter()
        for record in reader.records():
            decode(record)
        decoded = time.perf_counter() - begin
        some = [next(reader.records(seq)).subject for seq in range(1, count, max(1, count // 100))]
        begin = time.perf_counter()
        found = sum(len(list(reader.of(subject))) for subject in some)
        lookup = (time.perf_counter() - begin) / len(some)
    line("verify the chain", f"{count / verified:,.0f} events/s")
    line("read and decode", f"{count / decoded:,.0f} events/s")
    line("both", f"{count / (verified + decoded):,.0f} events/s over {count:,}")
    line("one request's events", f"{lookup * 1e6:,.0f} µs ({found / len(some):.1f} events)")
    line("size", f"{log.stat().st_size / count:.0f} bytes an event")
    line("peak memory", f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")


def main() -> None:
    """Run all parts on a log in a temporary directory."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("seconds", type=float, nargs="?", default=10.0)
    with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_DIR")) as directory:
        log = Path(directory) / "bench.db"
        trio.run(write, log, parser.parse_args().seconds)
        read(log)


if __name__ == "__main__":
    main()
