"""Which events of a log somebody asks for: those of a request, a runner, an operation, or a model."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from heapq import merge
from operator import attrgetter
from typing import Any

import msgspec

from daemon.nearest import by_id
from events.envelope import EventUnreadable, Record
from events.reader import Reader

_ID = re.compile(r"[qro][0-9]+")


class _Process(msgspec.Struct, frozen=True):
    """The process that a payload is about."""

    runner: str = ""


class _About(msgspec.Struct):
    """What of a payload tells which model it is about."""

    model: str = ""
    demand: str = ""
    request: str = ""
    runner: str = ""
    process: _Process = _Process()


_about = msgspec.json.Decoder(_About).decode


def selected(
    reader: Reader, subjects: tuple[str, ...], after: int, upto: int | None, follow: bool = False
) -> Iterator[Record]:
    """The events after number `after`, up to number `upto`, of any of the subjects; of all, where there are
    none. With `follow` they go on with what is appended, without end."""
    if not subjects:
        yield from reader.following(after) if follow else reader.records(after, upto)
        return
    known: dict[int, Record] = {}
    ids, names = set[str](), set[str]()
    for subject in subjects:
        theirs = {record.seq: record for record in reader.of(subject)} if _ID.fullmatch(subject) else {}
        known |= theirs
        if _ID.fullmatch(subject):
            ids.add(subject)
        if not theirs:
            names.add(subject)  # a model can have any name
    if follow:
        yield from (record for record in _of_models(reader.following(), names, ids) if record.seq > after)
        return
    of_models = _of_models(reader.records(0, upto), names, set()) if names else ()
    last = after
    for record in merge((known[seq] for seq in sorted(known)), of_models, key=attrgetter("seq")):
        if record.seq > last and (upto is None or record.seq <= upto):
            last = record.seq
            yield record


def meant(reader: Reader, subjects: tuple[str, ...]) -> str:
    """Words about the models that somebody may have meant who names another; "" where there is none such."""
    known, strangers = _strangers(reader, subjects)
    return f"; {by_id(strangers[0], known)}" if strangers else ""


def unseen(reader: Reader, subjects: tuple[str, ...]) -> Iterator[str]:
    """What is said of each subject of which the log has nothing, to who waits for it to come."""
    known, strangers = _strangers(reader, subjects)
    for subject in subjects:
        if subject in strangers:
            yield f"nothing of {subject} is in the log yet: waiting for it; {by_id(subject, known)}"
        elif _ID.fullmatch(subject) and not any(reader.of(subject)):
            yield f"nothing of {subject} is in the log yet: waiting for it"


def _strangers(reader: Reader, subjects: tuple[str, ...]) -> tuple[set[str], list[str]]:
    """The models that a log speaks of, and those of the subjects that are named like one and are none."""
    names = [subject for subject in subjects if not _ID.fullmatch(subject)]
    known = models(reader) if names else set()
    return known, [name for name in names if name not in known]


def models(reader: Reader) -> set[str]:
    """Every model that a log speaks of."""
    names = set()
    for record in reader.records():
        with suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            names.add(_about(record.payload).model)
    return names - {""}


def _of_models(records: Iterator[Record], models: set[str], ids: set[str]) -> Iterator[Record]:
    """Of these records, which begin with the log's first, those of the ids, and a model's: its own, those of
    its runners, its requests, and what operators asked of it. No index has them."""
    theirs = models | ids
    for record in records:
        try:
            about = _about(record.payload)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise EventUnreadable(record.seq, "its payload is damaged") from None
        if about.model in models and record.subject:
            theirs.add(record.subject)
        named = {about.request, about.runner or about.process.runner} & ids
        named |= {about.model, about.demand.partition("?")[0]} & models
        if named or record.subject in theirs:
            yield record


def fields_of(record: Record) -> dict[str, Any]:
    """A record as `show --json` and `export` have it. Raises EventUnreadable."""
    try:
        payload: dict[str, Any] = json.loads(record.payload)
        payload["type"]
    except (ValueError, LookupError, TypeError, RecursionError):
        raise EventUnreadable(record.seq, "its payload is damaged") from None
    numbers = {"seq": record.seq, "at_ns": record.at, "t_ns": record.t, "type": record.type}
    about = {"version": record.version, "cause": record.cause, "subject": record.subject}
    return {**numbers, **about, "payload": payload}
