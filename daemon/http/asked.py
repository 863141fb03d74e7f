"""What a request's JSON body asks for: its model and launch options. Nothing else of it is looked at."""

from __future__ import annotations

import mmap
from collections.abc import Mapping

import msgspec

from daemon.http.answers import Refused, error
from events.catalogue import Option
from events.limits import HTTP_OPTION_BYTES

Buffer = bytes | mmap.mmap


class _Model(msgspec.Struct, gc=False):
    model: str | None = None


_MODEL = msgspec.json.Decoder(_Model)
_MEMBERS = msgspec.json.Decoder(dict[str, msgspec.Raw])
_VALUE: msgspec.json.Decoder[Option | None] = msgspec.json.Decoder(Option | None)

_TYPES = {bool: "true or false", int: "an integer", str: "a text"}

_INVALID = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""Deep nesting and bad UTF-8 raise errors that are not msgspec's."""


def model_name(body: Buffer) -> str:
    """The "model" of the body. Raises Refused."""
    try:
        name = _MODEL.decode(body).model
    except msgspec.ValidationError as invalid:
        raise _refused("invalid_body", f"The request body is not as expected: {invalid}.") from None
    except _INVALID as invalid:
        raise _refused("invalid_json", f"The request body is not valid JSON: {invalid}.") from None
    if not name:
        raise _refused("missing_model", 'The request body has no "model".')
    return name


def launch_options(body: Buffer, declared: Mapping[str, Option]) -> dict[str, Option]:
    """The declared launch options that the body fixes, at its top level or under "options" (as Ollama's
    clients do), which goes first. Raises Refused. `body` has passed `model_name`."""
    try:
        members = _MEMBERS.decode(body)
        inner = members.get("options")
        if inner is not None and memoryview(inner)[:1].tobytes() == b"{":
            members.update(_MEMBERS.decode(inner))
    except _INVALID as invalid:
        raise _refused("invalid_json", f"The request body is not valid JSON: {invalid}.") from None
    found = {
        name: _option(name, members[name], default) for name, default in declared.items() if name in members
    }
    return {name: value for name, value in found.items() if value is not None}


def _option(name: str, raw: msgspec.Raw, default: Option) -> Option | None:
    """A launch option's value, of its default's type; None (null) leaves it open."""
    expected = _TYPES[type(default)]
    try:
        value = _VALUE.decode(raw)
    except _INVALID:
        raise _refused("invalid_option", f'The option "{name}" must be {expected}.') from None
    if value is not None and type(value) is not type(default):
        raise _refused("invalid_option", f'The option "{name}" must be {expected}, not {value!r}.')
    if isinstance(value, str) and "\0" in value:
        raise _refused("invalid_option", f'The option "{name}" contains a NUL character.')
    if isinstance(value, int) and abs(value) >= 1 << 63:
        raise _refused("invalid_option", f'The option "{name}" does not fit into 64 bits.')
    if len(memoryview(raw)) > HTTP_OPTION_BYTES:
        raise _refused("invalid_option", f'The option "{name}" is longer than {HTTP_OPTION_BYTES} bytes.')
    return value


def renamed(body: Buffer, name: str) -> bytes:
    """The body with another "model". The other members keep their order and their bytes."""
    members = _MEMBERS.decode(body)
    members["model"] = msgspec.Raw(msgspec.json.encode(name))
    return msgspec.json.encode(members)


def _refused(code: str, message: str) -> Refused:
    return Refused(error(400, code, message))
