"""The wire: JSON objects that end with NUL, calls and replies, and errors by name.

Written from varlink.org's description of the protocol. A message that is no call gets an error where there is
one for it, and the connection is closed where there is none: what follows could not be told apart.
"""

from __future__ import annotations

from typing import Any

import msgspec

from events.limits import CONTROL_MESSAGE_BYTES

SERVICE = "org.varlink.service"


class VarlinkError(Exception):
    """An error reply: its full name and its parameters."""

    def __init__(self, name: str, **parameters: Any) -> None:
        super().__init__(name)
        self.name = name
        self.parameters = parameters


class NotVarlink(Exception):
    """What came is no call. The connection is closed."""


class Call(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A method call."""

    method: str
    parameters: dict[str, Any] = {}
    more: bool = False
    oneway: bool = False
    upgrade: bool = False


class Splitter:
    """Bytes in, whole messages out. Raises NotVarlink for one that is too long."""

    __slots__ = ("_buffer",)

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """The messages that are whole now."""
        self._buffer += data
        *messages, rest = self._buffer.split(b"\0")
        if any(len(message) > CONTROL_MESSAGE_BYTES for message in (*messages, rest)):
            raise NotVarlink("message too long")
        self._buffer = bytearray(rest)
        return [bytes(message) for message in messages]


_decode = msgspec.json.Decoder(Call).decode


def parse(message: bytes) -> Call:
    """A call. Raises NotVarlink; VarlinkError for a call with a bad part."""
    try:
        return _decode(message)
    except msgspec.ValidationError as error:
        where = str(error).rpartition("`$")[2].strip("`.")
        raise VarlinkError(f"{SERVICE}.InvalidParameter", parameter=where or "message") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise NotVarlink(str(error)) from None


def reply(parameters: Any, *, continues: bool = False) -> bytes:
    """A reply, as bytes."""
    message: dict[str, Any] = {"parameters": parameters}
    if continues:
        message["continues"] = True
    return msgspec.json.encode(message) + b"\0"


def error_reply(error: VarlinkError) -> bytes:
    """An error reply, as bytes."""
    return msgspec.json.encode({"error": error.name, "parameters": error.parameters}) + b"\0"


def parameters_as(kind: type[msgspec.Struct], parameters: dict[str, Any]) -> Any:
    """A call's parameters, checked. Raises VarlinkError (InvalidParameter), naming the first bad one."""
    unknown = [name for name in parameters if name not in kind.__struct_fields__]
    if unknown:
        raise VarlinkError(f"{SERVICE}.InvalidParameter", parameter=unknown[0])
    present = {name: value for name, value in parameters.items() if value is not None}
    for name in kind.__struct_fields__:
        field = next(f for f in msgspec.structs.fields(kind) if f.name == name)
        if name not in present:
            if field.required:
                raise VarlinkError(f"{SERVICE}.InvalidParameter", parameter=name)
            continue
        try:
            msgspec.convert(present[name], field.type)
        except (msgspec.ValidationError, RecursionError):
            raise VarlinkError(f"{SERVICE}.InvalidParameter", parameter=name) from None
    return kind(**present)
