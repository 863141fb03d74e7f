"""The envelope: an event as the log stores it, and the hash chain that binds each one to all before it.

hash = SHA-256(previous hash ‖ u64 seq ‖ i64 at ‖ i64 t ‖ u32 version ‖ u64 cause ‖ type, subject and
payload, each as u32 length and UTF-8 bytes), big-endian; the first previous hash is SHA-256(log id).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from hashlib import sha256
from struct import Struct

import msgspec

from events.catalogue import Event, Payload
from events.upcast import CLASSES, decode_body

Row = tuple[int, int, int, str, int, int, str, str, bytes]
"""An event as the database takes it: the fields of Record, in order."""


class LogError(Exception):
    """Something is wrong with the event log; the message says what."""


class OutOfOrder(LogError):
    """Events were to be appended out of order: a fault of the caller's."""


class EventUnreadable(LogError):
    """An event's bytes are not what this program can read: damaged, forged, or written by a newer program.

    Verify the chain: if it holds, the bytes are as written, and a newer program is what reads them.
    """

    def __init__(self, seq: int, what: str) -> None:
        super().__init__(f"event {seq}: {what}")
        self.seq = seq
        self.what = what


class Record(msgspec.Struct, frozen=True, gc=False):
    """An event as stored. `at`: UTC ns, for people. `t`: scheduler time, ns. `payload`: JSON text."""

    seq: int
    at: int
    t: int
    type: str
    version: int
    cause: int
    subject: str
    payload: str
    hash: bytes


_NUMBERS = Struct(">QqqIQ").pack
_LENGTH = Struct(">I").pack


def _sized(data: bytes) -> bytes:
    return _LENGTH(len(data)) + data


def first_hash(log_id: str) -> bytes:
    """What the first event of a log is chained to."""
    return sha256(log_id.encode()).digest()


def chain_hash(
    previous: bytes,
    seq: int,
    at: int,
    t: int,
    type: bytes,
    version: int,
    cause: int,
    subject: bytes,
    payload: bytes,
) -> bytes:
    """The hash of an event, whose texts are given as UTF-8. Raises struct.error for a number out of range."""
    numbers = _NUMBERS(seq, at, t, version, cause)
    return sha256(previous + numbers + _sized(type) + _sized(subject) + _sized(payload)).digest()


_encode_body = msgspec.json.Encoder().encode

_HEADS: dict[type[Payload], tuple[str, int, bytes, Callable[..., bytes]]] = {
    cls: (name, cls.VERSION, head, Struct(f">QqqIQ{len(head)}sI").pack)
    for name, cls in CLASSES.items()
    for head in [_sized(name.encode())]
}
"""By type: its name, version and sized name; what packs the numbers, that and the length of a subject."""


def encode(event: Event, at: int, previous: bytes) -> Row:
    """The row of an event that follows the one whose hash is `previous`. Raises as `encode_step` does."""
    return encode_step((event,), at, event.seq - 1, previous)[0]


def encode_step(events: Iterable[Event], at: int, seq: int, previous: bytes) -> list[Row]:
    """The rows of events that follow the one numbered `seq`, whose hash is `previous`.

    Raises OutOfOrder, UnicodeEncodeError for text that is not Unicode (a lone surrogate), OverflowError or
    struct.error for an integer beyond 64 bits. Written out rather than calling chain_hash for each: it is on
    every step's path.
    """
    rows = []
    for event in events:
        seq += 1
        if event.seq != seq:
            raise OutOfOrder(f"event {event.seq} was appended where {seq} is next")
        body, subject = event.body, event.subject
        t, cause = event.t, event.cause
        name, version, head, pack = _HEADS[type(body)]
        about, payload = subject.encode(), _encode_body(body)
        numbers = pack(seq, at, t, version, cause, head, len(about))
        previous = sha256(b"".join((previous, numbers, about, _LENGTH(len(payload)), payload))).digest()
        rows.append((seq, at, t, name, version, cause, subject, payload.decode(), previous))
    return rows


def decode(record: Record) -> Event:
    """The event in a record, lifted to this program's version of its type. Raises EventUnreadable."""
    try:
        body = decode_body(record.type, record.version, record.payload)
    except RecursionError:
        raise EventUnreadable(record.seq, "nested too deep") from None
    except (LookupError, msgspec.MsgspecError, UnicodeError, ValueError, TypeError) as error:
        raise EventUnreadable(record.seq, str(error)) from error
    return Event(record.seq, record.t, record.cause, record.subject, body)


__all__ = [
    "EventUnreadable",
    "LogError",
    "OutOfOrder",
    "Record",
    "Row",
    "chain_hash",
    "decode",
    "encode",
    "encode_step",
    "first_hash",
]
