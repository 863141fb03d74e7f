"""What a request's JSON body asks for: its model, keep-alive and launch options. The rest is the runner's."""

from __future__ import annotations

import mmap
from collections.abc import Mapping

import msgspec

from daemon.config.filters import in_pieces
from daemon.config.units import duration_ns
from daemon.http.refusals import Refused
from events.catalogue import NEVER, Option
from events.limits import CONFIG_DURATION_MAX_S, HTTP_OPTION_BYTES, S

Buffer = bytes | mmap.mmap


class _Streaming(msgspec.Struct, gc=False):
    stream: bool | None = None


class _Asked(msgspec.Struct, gc=False):
    model: str | None = None
    keep_alive: int | float | str | None = None


_ASKED = msgspec.json.Decoder(_Asked)
_STREAMING = msgspec.json.Decoder(_Streaming)
_MEMBERS = msgspec.json.Decoder(dict[str, msgspec.Raw])
_VALUE: msgspec.json.Decoder[Option | None] = msgspec.json.Decoder(Option | None)

_TYPES = {bool: "true or false", int: "an integer", str: "a text"}

INVALID_JSON = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""Deep nesting and bad UTF-8 raise errors that are not msgspec's."""


def model_and_keep_alive(body: Buffer) -> tuple[str, int | None]:
    """The "model" of the body, and its "keep_alive" in ns, which may be NEVER (None: it has none). Raises
    Refused."""
    try:
        asked = _ASKED.decode(body)
    except msgspec.ValidationError as invalid:
        raise _refused("invalid_body", f"The request body is not as expected: {invalid}.") from None
    except INVALID_JSON as invalid:
        raise no_json(invalid) from None
    if not asked.model:
        raise _refused("missing_model", 'The request body has no "model".')
    kept = asked.keep_alive
    return asked.model, None if kept is None else keep_alive_ns(kept)


def keep_alive_ns(value: float | str) -> int:
    """Ollama's keep-alive: seconds, or text such as "5m"; negative is NEVER. Raises Refused."""
    if isinstance(value, str):
        text = value.strip()
        ns = duration_ns(text.removeprefix("-")) if text not in ("0", "-0") else 0
        if ns is None:
            raise _refused(
                "invalid_keep_alive", f'"keep_alive" must be a duration such as "5m", not {value!r}.'
            )
        return NEVER if text.startswith("-") and ns else ns
    if value < 0 or value > CONFIG_DURATION_MAX_S:
        return NEVER
    return int(value * S)


def streams(body: Buffer) -> bool:
    """Whether the answer is to come as a stream, as far as that can be told."""
    try:
        return bool(_STREAMING.decode(body).stream)
    except INVALID_JSON:
        return False


def launch_options(body: Buffer, declared: Mapping[str, Option]) -> dict[str, Option]:
    """The declared launch options that the body fixes, at its top level or under "options" (as Ollama's
    clients do), which goes first. Raises Refused. `body` has passed `model_and_keep_alive`."""
    try:
        members = _MEMBERS.decode(body)
        inner = members.get("options")
        if inner is not None and memoryview(inner)[:1].tobytes() == b"{":
            members.update(_MEMBERS.decode(inner))
    except INVALID_JSON as invalid:
        raise no_json(invalid) from None
    found = {
        name: _option(name, members[name], default) for name, default in declared.items() if name in members
    }
    return {name: value for name, value in found.items() if value is not None}


def _option(name: str, raw: msgspec.Raw, default: Option) -> Option | None:
    """A launch option's value, of its default's type; None (null) leaves it open."""
    expected = _TYPES[type(default)]
    try:
        value = _VALUE.decode(raw)
    except INVALID_JSON:
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


def renamed(body: Buffer, name: str) -> list[bytes | memoryview]:
    """The body with another "model", in pieces. The other members keep their order and their bytes."""
    members = _MEMBERS.decode(body)
    members["model"] = msgspec.Raw(msgspec.json.encode(name))
    return in_pieces(members)


def no_json(invalid: Exception) -> Refused:
    """The answer to a body that is none."""
    return _refused("invalid_json", f"The request body is not valid JSON: {invalid}.")


def _refused(code: str, message: str) -> Refused:
    return Refused(400, code, message)
