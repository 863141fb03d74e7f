"""Explanations for a daemon that must not be held up: `python -m daemon.explain.child LOG SEQ T KIND WHAT`.

A process of its own reads the log, through a connection of its own, up to event SEQ, and prints one JSON
object: {"told": …}, {"unknown": …, "nearest": […]}, or {"error": …}. KIND is `why` or `why_not`; T is now, in
scheduler time.
"""

from __future__ import annotations

import os
import resource
import sqlite3
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from daemon.explain.unknown import UnknownSubject
from daemon.explain.why import explain, explain_absence
from daemon.limits import EXPLAIN_MEMORY_BYTES, EXPLAIN_NICE
from events.envelope import LogError
from events.reader import Reader


def answer(log: Path, seq: int, t: int, kind: str, subject: str) -> dict[str, Any]:
    """What is to be printed."""
    try:
        with Reader(log) as reader:
            if kind == "why":
                return {"told": explain(reader, subject, seq, now=True, t=t)}
            return {"told": explain_absence(reader, subject, seq, t)}
    except UnknownSubject as error:
        return {"unknown": error.subject, "nearest": error.nearest}
    except (LogError, OSError, sqlite3.Error) as error:
        return {"error": str(error)}
    except MemoryError:
        return {"error": "it takes too much memory"}


def main(arguments: Sequence[str]) -> int:
    """The command line. Makes itself small first."""
    os.nice(EXPLAIN_NICE)
    resource.setrlimit(resource.RLIMIT_AS, (EXPLAIN_MEMORY_BYTES, EXPLAIN_MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    log, seq, t, kind, subject = arguments
    sys.stdout.buffer.write(msgspec.json.encode(answer(Path(log), int(seq), int(t), kind, subject)))
    sys.stdout.buffer.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
