"""The wire: JSON objects that end with NUL, calls and replies, and errors by name.

Written from varlink.org's description of the protocol. A message that is no call gets an error where there is
one for it, and the connection is closed where there is none: what follows could not be told apart.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, TypeVar

import msgspec

from daemon.limits import CONTROL_MESSAGE_BYTES

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
    parameters: dict[str, Any] | None = None
    more: bool = False
    oneway: bool = False
    upgrade: bool = False


class Parameters(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A method's parameters: what all of their structs share."""


P = TypeVar("P", bound=Parameters)


class Splitter:
    """Bytes in, whole messages out. Each byte is looked at once, however they are cut."""

    __slots__ = ("_buffer",)

    def __init__(self) -> None:
        self._buffer = bytearray()

    @property
    def within(self) -> bool:
        """Whether a message has come in part."""
        return bool(self._buffer)

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The messages that are whole now; after them, raises NotVarlink for one that is too long."""
        *ends, rest = data.split(b"\0")
        for end in ends:
            self._add(end)
            message, self._buffer = bytes(self._buffer), bytearray()
            yield message
        self._add(rest)

    def _add(self, part: bytes) -> None:
        if len(self._buffer) + len(part) > CONTROL_MESSAGE_BYTES:
            raise NotVarlink(f"a message of more than {CONTROL_MESSAGE_BYTES} bytes")
        self._buffer += part


_decode = msgspec.json.Decoder(Call).decode


def parse(message: bytes) -> Call:
    """A call. Raises NotVarlink; VarlinkError (InvalidParameter) for a JSON value that is no call."""
    try:
        return _decode(message)
    except msgspec.ValidationError as error:
        raise invalid(culprit(error) or "message") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise NotVarlink(str(error)) from None
    except RecursionError:
        raise NotVarlink("nested too deep") from None


def culprit(error: msgspec.ValidationError) -> str:
    """The outermost field that msgspec complains of; "" where it is the value as a whole."""
    found = re.search(r"at `\$\.(\w+)", text := str(error)) or re.search(r"field `(.*?)`?$", text)
    return found[1] if found else ""


def invalid(parameter: str) -> VarlinkError:
    """The error for a parameter that is missing, unknown, or of a bad type or value."""
    return VarlinkError(f"{SERVICE}.InvalidParameter", parameter=parameter)


def reply(parameters: Any, *, continues: bool = False) -> bytes:
    """A reply, as bytes."""
    message: dict[str, Any] = {"parameters": parameters}
    if continues:
        message["continues"] = True
    return msgspec.json.encode(message) + b"\0"


def error_reply(error: VarlinkError) -> bytes:
    """An error reply, as bytes."""
    return msgspec.json.encode({"error": error.name, "parameters": error.parameters}) + b"\0"


def parameters_as(kind: type[P], parameters: dict[str, Any] | None) -> P:
    """A call's parameters, checked; a null counts as left out. Raises VarlinkError (InvalidParameter)."""
    present = {name: value for name, value in (parameters or {}).items() if value is not None}
    try:
        return msgspec.convert(present, kind)
    except msgspec.ValidationError as error:
        raise invalid(culprit(error)) from None
