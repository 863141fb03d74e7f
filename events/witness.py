"""The witness beside the log: `<log>.head` remembers how far the log had come, so that a lost tail shows.

It is rewritten at most once a second, after the events that it names are durable, and replaced as a whole.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from events.envelope import LogError
from events.failpoints import reach


class TailLost(LogError):
    """The log is shorter than its witness says, or its last events are others.

    Restore the log from a backup. To go on with what is left, and lose what came after it, remove the
    witness (`<log>.head`).
    """

    def __init__(self, expected_seq: int, found_seq: int, what: str) -> None:
        super().__init__(f"{what}: the witness names event {expected_seq}, the log ends at {found_seq}")
        self.expected_seq = expected_seq
        self.found_seq = found_seq


class Witness(msgspec.Struct, frozen=True):
    """The last durable event that was noted, and the boot of the machine in which that was."""

    seq: int
    hash: str
    boot_id: str


def witness_path(log: Path) -> Path:
    """The witness file of a log."""
    return Path(f"{log}.head")


def boot_id() -> str:
    """The identity of the machine's current boot."""
    return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()


def read_witness(log: Path) -> Witness | None:
    """The witness of a log. None where there is none, or where a crash of the machine left it empty."""
    try:
        return msgspec.json.decode(witness_path(log).read_bytes(), type=Witness)
    except (FileNotFoundError, msgspec.DecodeError, UnicodeDecodeError):
        return None


def write_witness(log: Path, seq: int, hash: bytes) -> None:
    """Replace the witness, atomically. Raises OSError (a full disk); the old one is then still there."""
    path = witness_path(log)
    text = msgspec.json.encode(Witness(seq, hash.hex(), boot_id()))
    fresh = path.with_name(path.name + ".new")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        os.write(descriptor, text)
    finally:
        os.close(descriptor)
    reach("witness.before")
    os.replace(fresh, path)
    reach("witness.after")
