"""Multipart forms (RFC 7578), of which only one field is ours: the model. The others are not looked at."""

from __future__ import annotations

import re
from email.message import Message

from daemon.http.asked import Buffer
from daemon.http.refusals import Refused
from daemon.limits import FORM_NAME_BYTES, FORM_PARTS

_NAME = re.compile(rb'(?:^|;)\s*name\s*=\s*(?:"([^"]*)"|([^\s;]+))', re.IGNORECASE)
_DISPOSITION = re.compile(rb"^content-disposition\s*:\s*form-data(.*)$", re.IGNORECASE | re.MULTILINE)


def model(body: Buffer, content_type: str) -> str:
    """The form's field "model". Raises Refused."""
    begin, end = _model_span(body, content_type)
    name = body[begin:end].decode("utf-8", "replace").strip()
    if not name:
        raise Refused(400, "missing_model", 'The form\'s field "model" is empty.')
    return name


def renamed_in(content_type: str, body: Buffer, name: str) -> list[bytes | memoryview]:
    """The form with another "model", in pieces; every other byte as it was."""
    begin, end = _model_span(body, content_type)
    whole = memoryview(body)
    return [whole[:begin], name.encode(), whole[end:]]


def _model_span(body: Buffer, content_type: str) -> tuple[int, int]:
    """Where the field's value is. Raises Refused."""
    delimiter = b"\r\n--" + _boundary(content_type)
    # The first delimiter has no line end before it where there is no preamble.
    at = 0 if body[: len(delimiter) - 2] == delimiter[2:] else body.find(delimiter) + 2
    if at < 2 and body[: len(delimiter) - 2] != delimiter[2:]:
        raise _malformed("its boundary is not in the body")
    for _ in range(FORM_PARTS):
        head = at + len(delimiter) - 2
        if body[head : head + 2] == b"--":
            raise Refused(400, "missing_model", 'The form has no field "model".')
        value = body.find(b"\r\n\r\n", head) + 4
        end = body.find(delimiter, value - 2)  # a value may be empty
        if value < 4 or end < 0:
            raise _malformed("a part has no end")
        if _is_model(body[head : min(value, head + 4096)]):
            if end - value > FORM_NAME_BYTES:
                raise Refused(400, "invalid_model", 'The form\'s field "model" is too long.')
            return value, max(value, end)
        at = end + 2
    raise Refused(400, "missing_model", f'The form has no field "model" among its first {FORM_PARTS} parts.')


def _is_model(head: bytes) -> bool:
    disposition = _DISPOSITION.search(head.replace(b"\r\n", b"\n"))
    name = _NAME.search(disposition[1]) if disposition else None
    return name is not None and (name[1] if name[1] is not None else name[2]) == b"model"


def _boundary(content_type: str) -> bytes:
    message = Message()
    message["Content-Type"] = content_type
    boundary = message.get_boundary("")
    if message.get_content_type() != "multipart/form-data" or not boundary:
        text = 'The request body must be multipart/form-data with a boundary, and have a field "model".'
        raise Refused(400, "invalid_body", text)
    return boundary.encode("latin-1", "replace")


def _malformed(what: str) -> Refused:
    return Refused(400, "invalid_body", f"The form is malformed: {what}.")
