"""What a request's JSON body asks for: its model and launch options. Nothing else of it is looked at."""

from __future__ import annotations

from collections.abc import Collection

import msgspec

from daemon.http.head import Refusal
from events.catalogue import Option
from events.limits import HTTP_OPTION_BYTES

Buffer = bytes  # or any object with the buffer protocol, such as a map of a file


class Refused(Exception):
    """The body cannot be served; `refusal` says why."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.refusal = Refusal(400, code, message)


class _Model(msgspec.Struct, gc=False):
    model: str | None = None


_MODEL = msgspec.json.Decoder(_Model)
_MEMBERS = msgspec.json.Decoder(dict[str, msgspec.Raw])
_VALUE = msgspec.json.Decoder(Option | None)

_INVALID = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""Deep nesting and bad UTF-8 raise errors that are not msgspec's."""


def model_name(body: Buffer) -> str:
    """The "model" of the body. Raises Refused."""
    try:
        name = _MODEL.decode(body).model
    except msgspec.ValidationError as error:
        raise Refused("invalid_body", f"The request body is not as expected: {error}.") from None
    except _INVALID as error:
        raise Refused("invalid_json", f"The request body is not valid JSON: {error}.") from None
    if not name:
        raise Refused("missing_model", 'The request body has no "model".')
    return name


def launch_options(body: Buffer, declared: Collection[str]) -> dict[str, Option]:
    """The declared launch options that the body fixes, at its top level or under "options" (as Ollama's
    clients do), which goes first. Raises Refused. `body` has passed `model_name`."""
    try:
        members = _MEMBERS.decode(body)
        inner = members.get("options")
        if inner is not None and bytes(inner[:1] if isinstance(inner, bytes) else inner)[:1] == b"{":
            members.update(_MEMBERS.decode(inner))
    except _INVALID as error:
        raise Refused("invalid_json", f"The request body is not valid JSON: {error}.") from None
    found = {name: _option(name, members[name]) for name in declared if name in members}
    return {name: value for name, value in found.items() if value is not None}


def _option(name: str, raw: msgspec.Raw) -> Option | None:
    """A launch option's value; None (null) leaves it open."""
    try:
        value = _VALUE.decode(raw)
    except _INVALID:
        raise Refused("invalid_option", f'The option "{name}" must be an integer, text or boolean.') from None
    if len(memoryview(raw)) > HTTP_OPTION_BYTES:
        raise Refused("invalid_option", f'The option "{name}" is longer than {HTTP_OPTION_BYTES} bytes.')
    return value


def renamed(body: Buffer, name: str) -> bytes:
    """The body with another "model". The other members keep their order and their bytes."""
    members = _MEMBERS.decode(body)
    members["model"] = msgspec.Raw(msgspec.json.encode(name))
    return msgspec.json.encode(members)
