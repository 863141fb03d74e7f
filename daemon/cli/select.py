"""Which events of a log somebody asks for: those of a request, a runner, an operation, or a model."""

from __future__ import annotations

import re
from collections.abc import Iterator
from heapq import merge
from operator import attrgetter

import msgspec

from events.envelope import EventUnreadable, Record
from events.reader import Reader

_ID = re.compile(r"[qro][0-9]+")


class _About(msgspec.Struct):
    """What of a payload tells which model it is about."""

    model: str = ""
    demand: str = ""


_about = msgspec.json.Decoder(_About).decode


def selected(reader: Reader, subjects: tuple[str, ...], after: int, upto: int | None) -> Iterator[Record]:
    """The events after number `after`, up to number `upto`, of any of the subjects; of all, where there are
    none."""
    if not subjects:
        yield from reader.records(after, upto)
        return
    known: dict[int, Record] = {}
    models = set()
    for subject in subjects:
        theirs = {record.seq: record for record in reader.of(subject)} if _ID.fullmatch(subject) else {}
        known |= theirs
        if not theirs:  # a model can have any name
            models.add(subject)
    of_models = _of_models(reader, models, upto) if models else ()
    last = after
    for record in merge((known[seq] for seq in sorted(known)), of_models, key=attrgetter("seq")):
        if record.seq > last and (upto is None or record.seq <= upto):
            last = record.seq
            yield record


def _of_models(reader: Reader, models: set[str], upto: int | None) -> Iterator[Record]:
    """A model's events: its own, and those of its runners, its requests, and what operators asked of it. No
    index has them: the whole log is read."""
    theirs = set(models)
    for record in reader.records(0, upto):
        try:
            about = _about(record.payload)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise EventUnreadable(record.seq, "its payload is damaged") from None
        if about.model in models and record.subject:
            theirs.add(record.subject)
        if record.subject in theirs or {about.model, about.demand.partition("?")[0]} & models:
            yield record
