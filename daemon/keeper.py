"""The keeper: a process that folds what has come into the log, checks it, and says what the state is then.

    python -I -m daemon.keeper '{"log": …, "every": …, …}'       (Order)

A daemon runs one now and then (`daemon.keeping`). What it prints, a JSON line each, is for the daemon to do:
`state.carried` facts to be put into the log, and cuts, up to which the log may be pruned: what lies there has
been archived, and read back. It works beside the daemon rather than in it, so that no request waits for a
state of megabytes to be encoded; and by the durable bytes alone, so that a log that is damaged under its
daemon is found out. It writes to nothing but the archive. Exit codes: 0 done, 1 the log is damaged, or the
archive cannot be written.
"""

from __future__ import annotations

import sqlite3
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from daemon.limits import KEEPER_PAGE_ROWS
from daemon.past import fold_one, nearest
from events import segment
from events.catalogue import StateCarried
from events.envelope import LogError, Record, decode
from events.reader import Base, Head, Reader, Snapshot
from events.words import refused
from statemachines.carried import LAYOUT, Unreadable, carry, pieces, restore, text_of
from statemachines.scheduler import RULES
from statemachines.state import State


class Order(msgspec.Struct, frozen=True):
    """What a keeper is to do. 0: no limit."""

    log: str
    every: int
    """Events between two snapshots."""
    whole: bool = False
    """Make one of the log as it is now, too."""
    size_bytes: int = 0
    age_ns: int = 0
    before: int = 0
    """Prune what lies before this event."""
    archive: str = ""
    """The directory of the segments; "": what is pruned is gone."""
    archive_bytes: int = 0


class ArchiveFailed(LogError):
    """What is to be pruned cannot be archived; the message says where and why."""


class Cut(msgspec.Struct, frozen=True, tag_field="type", tag="cut"):
    """The log may be pruned up to event `upto`, whose hash this is."""

    upto: int
    hash: str


def snapshots(reader: Reader, every: int, *, whole: bool = False) -> Iterator[StateCarried]:
    """A snapshot for each `every` events since the last one; with `whole`, one of the head as well.
    Raises LogError where the chain breaks or the events cannot be folded."""
    state, head = nearest(reader)
    due = head.seq + every
    previous = head
    for record in reader.verified(head):
        event = decode(record)
        if not event.cause and state.seq >= due:  # the step before is whole
            yield from pieces(carry(state), previous.seq, previous.hash)
            due = state.seq + every
        fold_one(state, event)
        previous = Head(record.seq, record.hash)
    if state.seq >= due or (whole and state.seq > head.seq):  # a transaction ends with a step
        yield from pieces(carry(state), previous.seq, previous.hash)


def cuts(reader: Reader, order: Order, now_ns: int) -> Iterator[Cut]:
    """Where to prune so that the log keeps to its size and age, the oldest first. Each is archived first."""
    used, base = reader.used_bytes(), Head(reader.base.seq - 1, reader.base.hash)
    begin: list[StateCarried] = []
    state, _ = nearest(reader, base.seq)
    each = used // max(1, reader.head().seq - base.seq)
    for snapshot in reversed(list(reader.snapshots())):
        if snapshot.upto == base.seq:
            begin = reader.pieces(snapshot)
        if snapshot.upto <= base.seq:
            continue
        (last,) = reader.records(snapshot.upto - 1, snapshot.upto)
        old = snapshot.upto < order.before or (order.age_ns and last.at < now_ns - order.age_ns)
        if not old and (not order.size_bytes or used <= order.size_bytes):
            return
        records, state = check(reader, state, base, snapshot)
        if order.archive:
            archive(reader.base, Path(order.archive), base, begin, records)
            begin = reader.pieces(snapshot)
        yield Cut(snapshot.upto, snapshot.hash.hex())
        used -= each * (snapshot.upto - base.seq)
        base = Head(snapshot.upto, snapshot.hash)


def check(reader: Reader, state: State, base: Head, snapshot: Snapshot) -> tuple[list[Record], State]:
    """The events after `base`, whose state is given, up to a snapshot's that may stand for them, and its
    state: their chain holds, and it is what they add up to. Raises LogError.

    By other rules than this program's, or in another form, they may add up to something else here: then the
    chain alone says that it is what was written, as in `verify`."""
    records = list(reader.verified(base, snapshot.upto))
    parts = reader.pieces(snapshot)
    try:
        restored = restore(text_of(parts), parts[0].layout)
    except Unreadable as error:
        raise LogError(f"the snapshot in event {snapshot.seq} cannot be read: {error}") from error
    same = snapshot.hash == records[-1].hash
    if same and (restored.rules or RULES) == RULES and parts[0].layout == LAYOUT:
        for record in records:
            fold_one(state, decode(record))
        same = carry(restored) == carry(state)
    if not same:
        raise LogError(f"the snapshot in event {snapshot.seq} is not what the events before it add up to")
    return records, restored


def archive(
    log: Base, directory: Path, base: Head, begin: Sequence[StateCarried], records: Sequence[Record]
) -> None:
    """Write the events after `base`, whose snapshot is `begin`, into a segment, and read it back. Raises
    LogError."""
    last = records[-1]
    path = directory / segment.name_of(base.seq + 1, last.seq)
    first, hash = base.seq + 1, base.hash.hex()
    header = segment.Header(segment.FORMAT, log.log_id, log.created_at, first, hash, tuple(begin))
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        written = segment.write(path, header, records)
    except OSError as error:
        raise ArchiveFailed(f"cannot write {path}: {error.strerror or error}") from error
    if written != segment.digest(path):
        raise LogError(f"{path} does not say what was written into it")


def thin(directory: Path, most_bytes: int) -> None:
    """Remove the oldest segments of an archive that is too large. Raises ArchiveFailed."""
    kept = 0
    try:
        for path in sorted(directory.glob(f"*{segment.SUFFIX}"), reverse=True):
            kept += path.stat().st_size
            if kept > most_bytes:
                path.unlink()
    except OSError as error:
        raise ArchiveFailed(f"cannot remove {refused(error)}") from error


def main(order: Order) -> int:
    """See the module."""
    write = sys.stdout.buffer.write
    try:
        with Reader(order.log, KEEPER_PAGE_ROWS) as reader:
            for piece in snapshots(reader, order.every, whole=order.whole):
                write(msgspec.json.encode(piece) + b"\n")
            for cut in cuts(reader, order, time.time_ns()):
                write(msgspec.json.encode(cut) + b"\n")
                sys.stdout.buffer.flush()  # while many lay in a buffer, the log would grow
        if order.archive:
            thin(Path(order.archive), order.archive_bytes)
    except ArchiveFailed as error:
        print(f"{error}; make room there, or archive nothing (retention: archive: 0)", file=sys.stderr)
        return 1
    except (LogError, OSError, sqlite3.Error) as error:
        print(refused(error) if isinstance(error, OSError) else error, file=sys.stderr)
        return 1
    finally:
        sys.stdout.buffer.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main(msgspec.json.decode(sys.argv[1], type=Order)))
