"""A timeline as one HTML page that needs nothing else: no network, no other file.

Everything that comes from the log is in one block of JSON, in which no character can end that block; the
page's script shows it as text. The policy in its head lets nothing run or load but its own script and style,
by their hashes.
"""

from __future__ import annotations

import re
from base64 import b64encode
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec

from daemon.history.lives import Level, Mark, Part, RequestLife, RunnerLife, Timeline
from daemon.tally import OUTCOMES
from events.catalogue import NEVER

FORMAT = 1
"""Of the data in the page."""

STATES = ("loading", "idle", "busy", "draining", "stopping", "reclaiming")
ENDS = ("", *OUTCOMES)
"""By which the data names a runner's states and a request's end; "": it has not ended."""

SCRIPTS = ("data.js", "layout.js", "draw.js", "page.js")
UNSAFE = re.compile("[<>&\x7f-\U0010ffff]")
"""What HTML might take for something, or who reads the page's source. In JSON it is only in strings."""


class Origin(msgspec.Struct, frozen=True):
    """Where a timeline is from. `command` is what to put before a subject to have it explained."""

    path: str
    log_id: str
    version: str
    command: str


def page(line: Timeline, origin: Origin) -> bytes:
    """The page."""
    script = "\n".join(_asset(name) for name in SCRIPTS)
    style = _asset("page.css")
    data = UNSAFE.sub(_escaped, msgspec.json.encode(Columns(line, origin).data()).decode())
    parts = {"SCRIPT": script, "STYLE": style, "SCRIPT-HASH": _hash(script), "STYLE-HASH": _hash(style)}
    html = _asset("page.html")
    for name, text in parts.items():
        html = html.replace(f"%{name}%", text)
    before, _, after = html.partition("%DATA%")
    return (before + data + after).encode()


def _escaped(found: re.Match[str]) -> str:
    """A character as JSON can write it in ASCII."""
    units = found[0].encode("utf-16-be")
    return "".join(f"\\u{units[i]:02x}{units[i + 1]:02x}" for i in range(0, len(units), 2))


def _asset(name: str) -> str:
    return Path(__file__).with_name(name).read_text("utf-8").strip("\n")


def _hash(text: str) -> str:
    """As a Content-Security-Policy names a text."""
    return "sha256-" + b64encode(sha256(text.encode()).digest()).decode()


class Columns:
    """The data of a page: what there is much of in columns of small integers. Times are whole microseconds
    from the beginning; of a request, from its arrival. Texts are numbers of `strings`."""

    def __init__(self, line: Timeline, origin: Origin) -> None:
        self._line = line
        self._origin = origin
        self._strings: dict[str, int] = {"": 0}
        self._models: dict[str, int] = {}
        self._runners = {id: i for i, id in enumerate(line.runners)}

    def data(self) -> dict[str, Any]:
        """Everything."""
        line, us = self._line, self._us
        tracks = tracks_of(line)
        data = {
            "format": FORMAT,
            "origin": msgspec.to_builtins(self._origin),
            "first": line.first_seq,
            "last": line.last_seq,
            "length": us(line.end_t),
            "states": STATES,
            "ends": ENDS,
            "clock": [[us(t), at // 1000] for t, at in line.clock] or [[0, 0]],
            "downs": [[us(a), us(b), int(stopped)] for a, b, stopped in line.downs],
            "marks": [self._mark(mark) for mark in line.marks],
            "devices": [
                {
                    "name": name,
                    "budget": self._level(device.budget_bytes),
                    "used": self._level(device.used_bytes),
                }
                for name, device in line.devices.items()
            ],
            "runners": [self._runner(life, tracks[life.id]) for life in line.runners.values()],
            "leases": [i for i, life in enumerate(line.requests) if life.lease],
            **self._requests(),
        }
        return {
            **data,
            "models": list(self._models),
            "shown": [line.shows(name) for name in self._models],
            "strings": list(self._strings),
        }

    def _us(self, t: int) -> int:
        return (t - self._line.start_t) // 1000

    def _text(self, text: str) -> int:
        return self._strings.setdefault(text, len(self._strings))

    def _model(self, name: str) -> int:
        return self._models.setdefault(name, len(self._models))

    def _level(self, level: Level) -> list[int]:
        return [number for t, value in level.steps for number in (self._us(t), value)]

    def _mark(self, mark: Mark) -> list[int]:
        return [self._us(mark.t), mark.seq, self._text(mark.kind), self._text(mark.words)]

    def _runner(self, life: RunnerLife, track: int) -> dict[str, Any]:
        us, text = self._us, self._text
        held: dict[str, list[int]] = {}
        for t, sizes in life.held:
            for device in {**held, **sizes}:
                steps, size = held.setdefault(device, []), sizes.get(device, 0)
                if not steps or steps[-1] != size:
                    steps += (us(t), size)
        return {
            "id": life.id,
            "model": self._model(life.model),
            "slots": life.slots,
            "track": track,
            "load": us(life.load_t),
            "words": text(life.words),
            "options": text(", ".join(f"{name}={value}" for name, value in life.options.items())),
            "spans": [
                [STATES.index(s.state), us(s.start_t), us(s.end_t), s.seq, text(s.words)] for s in life.spans
            ],
            "held": held,
            "marks": [self._mark(mark) for mark in life.marks],
            "end": self._mark(life.end) if life.end is not None else None,
        }

    def _requests(self) -> dict[str, dict[str, list[int]]]:
        requests: dict[str, list[int]] = {
            name: [] for name in ("seq", "model", "arrived", "end", "ended", "last", "why")
        }
        queued: dict[str, list[int]] = {name: [] for name in ("request", "start", "length", "row", "why")}
        served: dict[str, list[int]] = {
            name: [] for name in ("request", "runner", "slot", "start", "length", "tail", "seq")
        }
        before = (0, 0)
        for i, life in enumerate(self._line.requests):
            seq, arrived, end = int(life.id[1:]), self._us(life.arrived_t), life.end
            row = (
                seq - before[0],
                self._model(life.model),
                arrived - before[1],
                ENDS.index(end.kind) if end is not None else 0,
                self._us(end.t) - arrived if end is not None else NEVER,
                end.seq - seq if end is not None else 0,
                0 if end is None or end.kind == "completed" else self._text(end.words),
            )
            before = (seq, arrived)
            _append(requests, row)
            for part in life.parts:
                start, length, tail = self._part(part, life)
                if part.runner:
                    where = (self._runners[part.runner], part.slot)
                    _append(served, (i, *where, start - arrived, length, tail, part.seq - seq))
                else:
                    _append(queued, (i, start - arrived, length, part.row, self._text(part.why)))
        for column in (queued["request"], served["request"]):
            column[:] = [n - m for n, m in zip(column, [0, *column], strict=False)]
        return {"requests": requests, "queued": queued, "served": served}

    def _part(self, part: Part, life: RequestLife) -> tuple[int, int, int]:
        """When a part began, how long it was (NEVER: it goes on), how much longer its slot was held."""
        start = self._us(part.start_t)
        if part.end_t == NEVER and life.end is None:
            return start, NEVER, 0
        last = self._us(self._line.end_t if part.end_t == NEVER else part.end_t)
        until = min(last, self._us(life.end.t)) if life.end is not None else last
        return start, until - start, last - until


def _append(columns: dict[str, list[int]], row: tuple[int, ...]) -> None:
    for column, number in zip(columns.values(), row, strict=True):
        column.append(number)


def tracks_of(line: Timeline) -> dict[str, int]:
    """Where each runner is drawn among those of its model: in the first track that is free again."""
    tracks: dict[str, int] = {}
    free: dict[str, list[int]] = {}
    for life in sorted(line.runners.values(), key=lambda life: (life.load_t, int(life.id[1:]))):
        mine = free.setdefault(life.model, [])
        end = life.end.t if life.end is not None else line.end_t + 1
        track = next((i for i, t in enumerate(mine) if t <= max(life.load_t, line.start_t)), len(mine))
        mine[track : track + 1] = [end]
        tracks[life.id] = track
    return tracks
