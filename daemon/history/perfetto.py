"""A timeline as a trace that ui.perfetto.dev opens: Chrome's trace event format, in JSON.

Processes are the daemon, its devices and its models; a model's threads are its runners and their slots, and
what is on one thread nests. A request is an asynchronous slice of its model from its arrival to its end, with
one inside for each time that it was queued, from which an arrow leads to the slice in the slot that it got.
Memory and queues are counters. Times are microseconds from the beginning, in order; sizes are bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from daemon.history.lives import Mark, Part, RequestLife, RunnerLife, Timeline
from daemon.history.page import Origin, tracks_of
from events.catalogue import NEVER

DAEMON = 1
FIRST_THREAD = 1_000_000
"""Above every process: the trace processor knows threads by their number alone."""

TRACK_PLACES = 100_000
"""Between the places of two tracks, among which are those of the slots of the first."""

NAMES = {"idle": "ready, idle", "busy": "ready, busy"}
CHUNK = 2000

Entry = dict[str, Any]
Order = tuple[int, int]
"""By time, then by kind. The rest stays as it was made: what contains another comes first."""

SLICE, ASYNC, COUNTER, INSTANT = range(4)


def trace(line: Timeline, origin: Origin) -> Iterator[bytes]:
    """The trace, in pieces."""
    made = _Trace(line)
    about = {
        "log": origin.log_id,
        "runnerd": origin.version,
        "first event": line.first_seq,
        "last event": line.last_seq,
        "begins at (UTC, ns)": line.at_ns(line.start_t),
    }
    yield b'{"displayTimeUnit":"ms","otherData":' + msgspec.json.encode(about) + b',"traceEvents":[\n'
    entries = made.names + [entry for _, entry in sorted(made.entries, key=lambda pair: pair[0])]
    for i in range(0, len(entries), CHUNK):
        chunk = b",\n".join(map(msgspec.json.encode, entries[i : i + CHUNK]))
        yield chunk + (b",\n" if i + CHUNK < len(entries) else b"\n")
    yield b"]}\n"


class _Trace:
    """The entries of a trace: those that name processes and threads, and those that have a time."""

    def __init__(self, line: Timeline) -> None:
        self.names: list[Entry] = []
        self.entries: list[tuple[Order, Entry]] = []
        self._line = line
        self._tracks = tracks_of(line)
        self._processes: dict[str, int] = {}
        self._threads: dict[tuple[int, int, int], int] = {}
        self._process("runnerd", DAEMON)
        for mark in line.marks:
            self._mark(mark, DAEMON, DAEMON, "p")
        self._memory()
        for life in line.runners.values():
            if line.shows(life.model):
                self._runner(life)
        for request in line.requests:
            self._request(request)
        for model, level in line.queued.items():
            for t, value in level.steps:
                self._add(
                    t,
                    COUNTER,
                    {"ph": "C", "name": "queued", "pid": self._model(model), "args": {"requests": value}},
                )

    # --- parts -------------------------------------------------------------------------------------------

    def _us(self, t: int) -> float | int:
        """Microseconds, exact to the nanosecond."""
        us, rest = divmod(max(t, self._line.start_t) - self._line.start_t, 1000)
        return us if not rest else us + rest / 1000

    def _add(self, t: int, rank: int, entry: Entry) -> None:
        at = max(t, self._line.start_t)
        entry["ts"] = self._us(t)
        self.entries.append(((at, rank), entry))

    def _process(self, name: str, pid: int) -> int:
        for kind, args in (("process_name", {"name": name}), ("process_sort_index", {"sort_index": pid})):
            self.names.append({"ph": "M", "name": kind, "pid": pid, "tid": 0, "ts": 0, "args": args})
        return pid

    def _device(self, name: str) -> int:
        return self._of("device " + name)

    def _model(self, name: str) -> int:
        return self._of("model " + name)

    def _of(self, name: str) -> int:
        if name not in self._processes:
            self._processes[name] = self._process(name, DAEMON + 1 + len(self._processes))
        return self._processes[name]

    def _thread(self, life: RunnerLife, slot: int) -> int:
        """A thread of a runner's track: -1 is the runner's own."""
        pid, track = self._model(life.model), self._tracks[life.id]
        tid = self._threads.get((pid, track, slot))
        if tid is None:
            tid = self._threads[pid, track, slot] = FIRST_THREAD + len(self._threads)
            where = "" if track == 0 else f" {track + 1}"
            name = (
                f"runner{where}" if slot < 0 else f"slot {slot + 1}" + (f" of runner{where}" if where else "")
            )
            place = track * TRACK_PLACES + slot + 1
            for kind, args in (("thread_name", {"name": name}), ("thread_sort_index", {"sort_index": place})):
                self.names.append({"ph": "M", "name": kind, "pid": pid, "tid": tid, "ts": 0, "args": args})
        return tid

    def _slice(self, t: int, end_t: int, pid: int, tid: int, name: str, entry: Entry) -> None:
        start, end = self._us(t), self._us(end_t)
        dur = round(end - start, 3)
        self._add(
            t,
            SLICE,
            {"ph": "X", "name": name, "pid": pid, "tid": tid, "dur": dur, **entry},
        )

    def _mark(self, mark: Mark, pid: int, tid: int, scope: str) -> None:
        entry = {"ph": "i", "s": scope, "name": mark.kind, "cat": "event", "pid": pid, "tid": tid}
        self._add(mark.t, INSTANT, {**entry, "args": {"words": mark.words, "seq": mark.seq}})

    # --- what there is -----------------------------------------------------------------------------------

    def _runner(self, life: RunnerLife) -> None:
        pid, tid, line = self._model(life.model), self._thread(life, -1), self._line
        end_t = line.end_t if life.end is None else life.end.t
        args: Entry = {"load": life.words, **life.options}
        if life.end is not None:
            args["end"] = life.end.words
        entry = {"cat": "runner", "args": args}
        self._slice(max(life.load_t, line.start_t), end_t, pid, tid, f"{life.id} {life.model}", entry)
        for span in life.spans:
            entry = {"cat": "state", "args": {"seq": span.seq, "words": span.words}}
            self._slice(span.start_t, span.end_t, pid, tid, NAMES.get(span.state, span.state), entry)
        for mark in life.marks:
            self._mark(mark, pid, tid, "t")

    def _request(self, life: RequestLife) -> None:
        pid, line, end = self._model(life.model), self._line, life.end
        stops = [line.end_t if part.end_t == NEVER else part.end_t for part in life.parts]
        end_t = end.t if end is not None else max(stops, default=life.arrived_t)
        base = {"cat": "request", "pid": pid, "tid": pid, "id2": {"local": hex(int(life.id[1:]))}}
        args = {"request": life.id, "end": end.words if end is not None else ""}
        self._add(life.arrived_t, ASYNC, {"ph": "b", "name": "request", **base, "args": args})
        waited: Entry | None = None
        for part, stop in zip(life.parts, stops, strict=True):
            if part.runner:
                self._served(life, part, stop, waited)
                waited = None
            else:
                waited = {"ph": "b", "name": "queued", **base, "args": {"seq": part.seq, "why": part.why}}
                self._add(part.start_t, ASYNC, waited)
                self._add(stop, ASYNC, {"ph": "e", "name": "queued", **base})
        self._add(end_t, ASYNC, {"ph": "e", "name": "request", **base})

    def _served(self, life: RequestLife, part: Part, end_t: int, waited: Entry | None) -> None:
        """A slice in a slot; an arrow leads to it from the entry that began the wait for it."""
        entry: Entry = {"cat": "served", "args": {"seq": part.seq, "end": life.end.words if life.end else ""}}
        if waited is not None:
            bind = hex(part.seq)
            waited.update(bind_id=bind, flow_out=True)
            entry.update(bind_id=bind, flow_in=True)
        tid = self._thread(self._line.runners[part.runner], part.slot)
        self._slice(part.start_t, end_t, self._model(life.model), tid, life.id, entry)

    def _memory(self) -> None:
        """Counters of each device: what its runners hold, its budget, what it reports."""
        held: dict[str, dict[str, int]] = {}
        changes = sorted((t, id, sizes) for id, life in self._line.runners.items() for t, sizes in life.held)
        for i, (t, id, sizes) in enumerate(changes):
            for device in {**sizes, **{d: 0 for d, mine in held.items() if id in mine}}:
                held.setdefault(device, {})[id] = sizes.get(device, 0)
            if i + 1 == len(changes) or changes[i + 1][0] > t:
                for device, mine in held.items():
                    self._level(device, "held", t, sum(mine.values()))
        for name, memory in self._line.devices.items():
            for what, level in (("budget", memory.budget_bytes), ("in use", memory.used_bytes)):
                for t, value in level.steps:
                    if value != NEVER:
                        self._level(name, what, t, value)

    def _level(self, device: str, what: str, t: int, value: int) -> None:
        self._add(
            t, COUNTER, {"ph": "C", "name": what, "pid": self._device(device), "args": {"bytes": value}}
        )
