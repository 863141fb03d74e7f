"""Filters: which names they make, what is done to a body, and what they may not touch."""

from __future__ import annotations

import json
import random
from pathlib import Path
from textwrap import dedent, indent
from typing import Any

import pytest

from daemon.catalog import Catalog
from daemon.config.config import Config
from daemon.config.errors import ConfigError
from daemon.config.file import load
from daemon.config.filters import Filters, apply
from daemon.config.values import Json


def filtered(directory: Path, filters: str, top: str = "") -> Config:
    """A configuration with a model `m` (alias `n`) that has these filters."""
    path = directory / "config.yaml"
    start = "m:\n  cmd: s --port ${PORT}\n  aliases: [n]\n  macros: {temp: 0.7}\n"
    model = start + indent(dedent(filters), "  ")
    path.write_text(f"{top}\nmodels:\n  other: {{cmd: 's ${{PORT}}'}}\n{indent(model, '  ')}\n")
    return load(path, {"SECRET": "hush"})


DOCUMENTED = """
    filters:
      stripParams: "temperature, top_p,, top_k , temperature"
      setParams:
        temperature: ${temp}
        stop: [a, {b: null}]
      setParamsByID:
        "${MODEL_ID}": {chat_template_kwargs: {reasoning_effort: medium}}
        "${MODEL_ID}:high": {chat_template_kwargs: {reasoning_effort: high}, temperature: 1}
        n: {}
"""


def test_the_documented_form(tmp_path: Path) -> None:
    config = filtered(tmp_path, DOCUMENTED)
    assert config.warnings == ()
    assert config.models["m"].aliases == ("n", "m:high")
    assert config.resolve("m:high") == "m"
    strip = ("temperature", "top_k", "top_p")
    both: dict[str, Json] = {"temperature": 0.7, "stop": ["a", {"b": None}]}
    kwargs = "chat_template_kwargs"
    assert config.filters("n") == Filters(strip, both)
    assert config.filters("m") == Filters(strip, both, {kwargs: {"reasoning_effort": "medium"}})
    high: dict[str, Json] = {"temperature": 1, kwargs: {"reasoning_effort": "high"}}
    assert Catalog(config).filters("m:high") == Filters(strip, both, high)
    assert config.filters("other") is None
    assert config.filters("nobody") is None


def test_a_list_the_older_name_and_an_empty_one(tmp_path: Path) -> None:
    config = filtered(tmp_path, "filters: {stripParams: [top_p, min_p]}")
    assert config.filters("m") == Filters(("min_p", "top_p"))
    assert filtered(tmp_path, "filters: {strip_params: top_p}").filters("m") == Filters(("top_p",))
    assert filtered(tmp_path, "filters: {}").filters("m") is None
    assert (
        filtered(tmp_path, "filters: {stripParams: '', setParams: , setParamsByID: {}}").filters("m") is None
    )


def test_the_model_is_never_touched(tmp_path: Path) -> None:
    config = filtered(
        tmp_path, "filters: {stripParams: 'model, seed', setParams: {model: x, model.y: z, seed: 1}}"
    )
    assert config.filters("m") == Filters(("seed",), {"seed": 1})
    assert [w.partition(": models.m.")[2] for w in config.warnings] == [
        'filters.stripParams: has no effect: "model" is never stripped or set',
        'filters.setParams.model: has no effect: "model" is never stripped or set',
        'filters.setParams."model.y": has no effect: "model" is never stripped or set',
    ]


@pytest.mark.parametrize(
    ("filters", "message"),
    [
        ("filters: [temperature]", "models.m.filters: expected a mapping, found a list"),
        ("filters: {stripParam: x}", 'unknown key "stripParam"; the nearest is "stripParams"'),
        ("filters: {stripParams: {a: b}}", "filters.stripParams: expected names with commas"),
        ("filters: {stripParams: 'messages.#.name'}", "filters.stripParams: expected a name of letters"),
        ("filters: {stripParams: [a, '']}", None),
        ("filters: {setParams: {a.0.role: x}}", 'filters.setParams."a.0.role": expected a name of letters'),
        ("filters: {setParams: {tools.-1: x}}", 'filters.setParams."tools.-1": expected a name of letters'),
        ("filters: {stripParams: 'tools.0'}", "with dots to reach into objects (not into lists), found"),
        (f"filters: {{setParams: {{a: {{b: [{1 << 64}]}}}}}}", "a.b[0]: expected a number of at most 64"),
        (f"filters: {{setParamsByID: {{n: {{a: {-(1 << 63) - 1}}}}}}}", "ByID.n.a: expected a number"),
        (f"filters: {{setParams: {{a: '{1 << 64}', b: {(1 << 64) - 1}, c: {-(1 << 63)}}}}}", None),
        ("filters: {setParams: {a.0b: x, a.1-0: y, '0': z}}", None),
        ("filters: {setParams: {'a*': 1}}", 'filters.setParams."a*": expected a name of letters'),
        ("filters: {setParams: 3}", "filters.setParams: expected a mapping, found 3"),
        ("filters: {setParamsByID: {m: 1}}", "filters.setParamsByID.m: expected a mapping of parameters"),
        ("filters: {setParamsByID: {'${MODEL_IDS}': {}}}", "expected a macro that is defined"),
        ("filters: {setParamsByID: {'${PORT}': {}}}", "expected a macro that has a value here"),
        ("filters: {setParamsByID: {'${MODEL_ID}': {}, m: {}}}", "expected each name once, found it again"),
        ("filters: {setParamsByID: {other: {}}}", 'filters.setParamsByID.other: expected a name of its own'),
        ("filters: {setParamsByID: {' ': {}}}", "expected a name of at most"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant(tmp_path: Path, filters: str, message: str | None) -> None:
    if message is None:
        filtered(tmp_path, filters)
        return
    with pytest.raises(ConfigError) as caught:
        filtered(tmp_path, filters)
    assert message in str(caught.value)


def changed(body: str, strip: str = "", **values: Any) -> str:
    names = tuple(strip.split())
    put = {k.replace("__", "."): v for k, v in values.items()}
    return b"".join(apply(Filters(names, put), body.encode())).decode()


def test_the_other_members_keep_their_order_and_their_bytes() -> None:
    body = '{"z": 1.50, "temperature":0.7, "a":"\\u00e9\\/", "n":1e400, "m": [ 1 , {"temperature":2} ]}'
    assert changed(body, "temperature absent") == (
        '{"z":1.50,"a":"\\u00e9\\/","n":1e400,"m":[ 1 , {"temperature":2} ]}'
    )
    assert changed(body, a=2) == body.replace('"\\u00e9\\/"', "2").replace('": ', '":').replace(', "', ',"')
    assert changed('{"a":1}', b={"c": [None, True, "ü"]}) == '{"a":1,"b":{"c":[null,true,"ü"]}}'


def test_names_that_are_written_otherwise_or_twice_are_found() -> None:
    assert changed('{"t\\u0065mp":1,"temp":2,"a":3,"temp":4}', "temp") == '{"a":3}'
    assert changed('{"temp":1,"temp":2}', temp=3) == '{"temp":3}'


def test_dots_reach_into_objects() -> None:
    assert changed('{"a":{"b":1, "c":2}}', "a.b") == '{"a":{"c":2}}'
    assert changed('{"a":{"b":1}}', "a.x.y a.b.c b.c") == '{"a":{"b":1}}'
    assert changed('{"a":[1]}', "a.b") == '{"a":[1]}'
    assert changed('{"a":{"b":1}}', a__c=2, d__e=True) == '{"a":{"b":1,"c":2},"d":{"e":true}}'
    assert changed('{"a":3}', a__b=1) == '{"a":{"b":1}}'
    assert changed('{"a":[1],"b":{"c":[2]}}', a__b=1, b__c__d=1) == '{"a":[1],"b":{"c":[2]}}'
    assert changed("{}", a__b=1, a={"c": 2}) == '{"a":{"c":2,"b":1}}'


def test_first_what_is_stripped_and_then_what_is_set() -> None:
    assert changed('{"temperature":2,"b":1}', "temperature", temperature=0.5) == '{"b":1,"temperature":0.5}'


def test_what_a_name_sets_goes_over_what_all_get() -> None:
    def both(all: dict[str, Json], name: dict[str, Json]) -> str:
        return b"".join(apply(Filters((), all, name), b"{}")).decode()

    assert both({"a.b": 1}, {"a": {"c": 2}}) == '{"a":{"c":2}}'  # and not into it
    assert both({"a": {"c": 2}}, {"a.b": 1}) == '{"a":{"c":2,"b":1}}'
    assert both({"a": 1}, {"a": 2}) == '{"a":2}'


def test_random_bodies_are_as_a_plain_implementation_has_them() -> None:
    chance = random.Random(7)

    def value(depth: int) -> Any:
        if depth and chance.random() < 0.5:
            return {chance.choice("abcd"): value(depth - 1) for _ in range(chance.randrange(4))}
        return chance.choice([None, True, 1, -2.5, "ü", [], [1, "x"]])

    for _ in range(500):
        body = {"model": "m", **{name: value(2) for name in "abcd" if chance.random() < 0.7}}
        strip = {chance.choice("abcd") for _ in range(chance.randrange(3))}
        put = {chance.choice("abcd"): value(2) for _ in range(chance.randrange(3))}
        expected = {k: v for k, v in body.items() if k not in strip} | put
        text = json.dumps(body, ensure_ascii=chance.random() < 0.5).encode()
        assert json.loads(b"".join(apply(Filters(tuple(strip), put), text))) == expected
