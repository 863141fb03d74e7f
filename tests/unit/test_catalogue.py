"""The frozen format of every event: names, versions, defaults and JSON, against tests/golden/catalogue.json.

A difference means that logs already written would read otherwise. If that is meant, the catalogue's rules
say how; then rewrite the file with RUNNERD_REWRITE=1 and review it as a diff.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec import inspect

from events.catalogue import DECISIONS, FACTS, Payload
from events.upcast import CLASSES, decode_body, type_of

GOLDEN = Path(__file__).parent.parent / "golden" / "catalogue.json"
EVENTS = (*FACTS, *DECISIONS)


def sample(kind: inspect.Type, default: object = None) -> Any:
    """A value of a type, other than `default`."""
    match kind:
        case inspect.BoolType():
            return not default
        case inspect.IntType():
            return default + 5 if isinstance(default, int) else 5
        case inspect.StrType():
            return "text"
        case inspect.LiteralType(values=values):
            return next(value for value in reversed(values) if value != default)
        case inspect.UnionType(types=types):
            return sample(
                next(each for each in types if not isinstance(each, inspect.NoneType | inspect.BoolType))
            )
        case inspect.DictType(value_type=value):
            return {"key": sample(value)}
        case inspect.VarTupleType(item_type=item):
            return [sample(item), sample(item)]
        case inspect.StructType(cls=cls):
            return full(cls)
    raise TypeError(f"no sample of {kind}")


def fields_of(cls: type[msgspec.Struct]) -> tuple[inspect.Field, ...]:
    info = inspect.type_info(cls)
    assert isinstance(info, inspect.StructType)
    return info.fields


def default_of(field: inspect.Field) -> object:
    return field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()


def minimal(cls: type[msgspec.Struct]) -> dict[str, Any]:
    """Only the fields that must be given."""
    return {field.encode_name: sample(field.type) for field in fields_of(cls) if field.required}


def full(cls: type[msgspec.Struct]) -> dict[str, Any]:
    """Every field, none with its default."""
    return {field.encode_name: sample(field.type, default_of(field)) for field in fields_of(cls)}


def described(cls: type[Payload]) -> dict[str, Any]:
    """What is frozen of a class of events."""
    small, large = msgspec.convert(minimal(cls), cls), msgspec.convert(full(cls), cls)
    defaults = {field.encode_name: default_of(field) for field in fields_of(cls) if not field.required}
    return {
        "version": cls.VERSION,
        "decision": cls in DECISIONS,
        "defaults": json.loads(msgspec.json.encode(defaults)),
        "minimal": msgspec.json.encode(small).decode(),
        "full": msgspec.json.encode(large).decode(),
    }


def test_the_format_of_every_event_is_frozen() -> None:
    found = {type_of(cls): described(cls) for cls in sorted(EVENTS, key=type_of)}
    if os.environ.get("RUNNERD_REWRITE"):
        GOLDEN.write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n", "utf-8")
    assert found == json.loads(GOLDEN.read_text("utf-8"))


@pytest.mark.parametrize("cls", EVENTS, ids=type_of)
def test_what_was_written_reads_back_equal(cls: type[Payload]) -> None:
    golden = json.loads(GOLDEN.read_text("utf-8"))[type_of(cls)]
    for form, fields in (("minimal", minimal(cls)), ("full", full(cls))):
        assert decode_body(type_of(cls), golden["version"], golden[form]) == msgspec.convert(fields, cls)


def test_each_tag_is_one_class_and_says_what_it_is_about() -> None:
    assert len(CLASSES) == len(EVENTS)
    assert all(name.count(".") == 1 for name in CLASSES)


def test_no_event_holds_a_float_or_a_set() -> None:
    def walk(kind: inspect.Type) -> None:
        assert not isinstance(
            kind, inspect.FloatType | inspect.SetType | inspect.FrozenSetType | inspect.AnyType
        )
        for part in ("types", "fields"):
            for each in getattr(kind, part, ()):
                walk(getattr(each, "type", each))
        for part in ("item_type", "key_type", "value_type"):
            if hasattr(kind, part):
                walk(getattr(kind, part))

    for cls in EVENTS:
        walk(inspect.type_info(cls))
