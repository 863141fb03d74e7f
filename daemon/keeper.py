"""The keeper: a process that folds what has come into the log, checks it, and says what the state is then.

    python -I -m daemon.keeper LOG EVERY [--whole]

A daemon runs one now and then (`daemon.keeping`), and puts what it prints into the log: snapshots, each as
`state.carried` facts, a JSON line each. It works beside the daemon rather than in it, so that no request
waits for a state of megabytes to be encoded; and by the durable bytes alone, so that a log that is damaged
under its daemon is found out. It writes to nothing. Exit codes: 0 done, 1 the log is damaged.
"""

from __future__ import annotations

import os
import sqlite3
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec

from daemon.past import nearest
from events.catalogue import StateCarried
from events.envelope import LogError, decode
from events.reader import Head, Reader
from statemachines.carried import carry, pieces
from statemachines.fold import apply
from statemachines.replay import UNFOLDABLE

NICE = 10
"""It is in no hurry; requests are."""


def snapshots(reader: Reader, every: int, *, whole: bool = False) -> Iterator[StateCarried]:
    """A snapshot for each `every` events since the last one; with `whole`, one of the head as well.
    Raises LogError where the chain breaks or the events cannot be folded."""
    state, head = nearest(reader)
    last = reader.head()
    reader.verify_from(head)
    due = head.seq + every
    previous = head
    for record in reader.records(head.seq, last.seq):
        event = decode(record)
        if not event.cause and state.seq >= due:  # the step before is whole
            yield from pieces(carry(state), previous.seq, previous.hash)
            due = state.seq + every
        try:
            apply(state, event)
        except UNFOLDABLE as error:
            raise LogError(f"event {record.seq} cannot follow: {error}") from error
        previous = Head(record.seq, record.hash)
    if state.seq >= due or (whole and state.seq > head.seq):  # a transaction ends with a step
        yield from pieces(carry(state), previous.seq, previous.hash)


def main(log: str, every: str, *options: str) -> int:
    """See the module."""
    os.nice(NICE)
    try:
        with Reader(Path(log)) as reader:
            for piece in snapshots(reader, int(every), whole="--whole" in options):
                sys.stdout.buffer.write(msgspec.json.encode(piece) + b"\n")
    except (LogError, OSError, sqlite3.Error) as error:
        print(error, file=sys.stderr)
        return 1
    sys.stdout.buffer.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
