"""From stored bytes to today's structs: finds an event's class by its type and lifts old versions to it.

Stored bytes are never rewritten, so an event of an old version is changed here each time that it is read.
An upcast turns the fields of one version into those of the next; several are applied in a row.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from events.catalogue import DECISIONS, FACTS, Payload

Upcast = Callable[[dict[str, Any]], dict[str, Any]]

UPCASTS: dict[tuple[str, int], Upcast] = {}
"""(type, version) to what makes version + 1 of it. The fields include the tag, `type`."""


def type_of(cls: type[Payload]) -> str:
    """The type column of a class of events: its tag."""
    return str(cls.__struct_config__.tag)


CLASSES: dict[str, type[Payload]] = {type_of(cls): cls for cls in (*FACTS, *DECISIONS)}

_DECODERS: dict[tuple[str, int], msgspec.json.Decoder[Payload]] = {
    (name, cls.VERSION): msgspec.json.Decoder(cls) for name, cls in CLASSES.items()
}


def decode_body(type: str, version: int, payload: str | bytes) -> Payload:
    """The fact or decision in `payload`.

    Raises LookupError for a type or version that this program does not know, and whatever msgspec raises
    for bad bytes: MsgspecError, but also RecursionError and UnicodeDecodeError.
    """
    decoder = _DECODERS.get((type, version))
    if decoder is not None:
        return decoder.decode(payload)
    cls = CLASSES.get(type)
    if cls is None:
        raise LookupError(f"unknown type {type!r}")
    fields = msgspec.json.decode(payload, type=dict[str, Any])
    while version != cls.VERSION:
        upcast = UPCASTS.get((type, version))
        if upcast is None:
            raise LookupError(f"version {version} of {type} is not known here ({cls.VERSION} is)")
        fields = upcast(fields)
        version += 1
    return msgspec.convert(fields, cls)
