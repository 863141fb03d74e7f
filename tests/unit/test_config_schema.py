"""The schema for editors: the same keys as the readers know, and what loads is valid by it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
import yaml

from daemon.cli import runnerd
from daemon.config.fields import Section
from daemon.config.file import load
from daemon.config.schema import schema

ROOT = Path(__file__).parents[2]

EVERYTHING = """
models:
  m:
    cmd: s --port ${PORT} ${num_ctx} ${SHARD_PORT_1}
    options: {num_ctx: 1}
    shards: [{cmd: 'r ${PORT}', env: [A=b], checkEndpoint: /x}]
    instances: {min: 1, max: 2}
    memory: {gpu0: 1GiB}
    filters: {}
    capabilities: {}
    timeouts: {}
  n: {cmd: 's ${PORT}'}
cors: {}
upstream: {}
devices: {host: {budget: 1GiB}}
hooks: {on_startup: {}}
routing:
  router: {use: matrix, settings: {groups: {}, matrix: {sets: {a: m}}}}
  scheduler: {settings: {fifo: {}}}
selectors: {s: {strategy: pin, targets: [m], settings: {}}}
profiles: {p: {pins: {x: m}}}
retention: {}
peers: {p: {proxy: 'http://x', models: [q], filters: {}, timeouts: {}}}
"""
GROUPS = "models: {m: {cmd: 's ${PORT}'}}\ngroups: {g: {members: [m]}}\nmacros: {a: b}\n"


def sections(found: dict[str, Any], path: str = "") -> dict[str, set[str]]:
    """Every mapping with fixed keys in a schema, by its path; `*` for a name that the user chooses."""
    out: dict[str, set[str]] = {}
    if "properties" in found:
        out[path] = set(found["properties"])
        for key, inner in found["properties"].items():
            out |= sections(inner, f"{path}.{key}")
    if isinstance(found.get("additionalProperties"), dict):
        out |= sections(found["additionalProperties"], f"{path}.*")
    if "items" in found:
        out |= sections(found["items"], f"{path}.*")
    for inner in found.get("anyOf", ()):
        out |= sections(inner, path)
    return out


def test_the_schema_has_the_keys_that_the_readers_ask_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, set[str]] = {}
    finish = Section.finish
    stars = r"(?<=models\.)[^.]+|(?<=peers\.)[^.]+|(?<=selectors\.)[^.]+|(?<=profiles\.)[^.]+"

    def note(section: Section, *, extensions: bool = False) -> None:
        path = re.sub(rf"{stars}|(?<=devices\.)[^.]+|(?<=groups\.)[^.]+", "*", section.path)
        path = "." + re.sub(r"\[\d+\]", ".*", path) if path else ""
        asked.setdefault(path, set()).update(section._known)
        finish(section, extensions=extensions)

    monkeypatch.setattr(Section, "finish", note)
    for text in (EVERYTHING, GROUPS):
        (tmp_path / "c.yaml").write_text(text)
        load(tmp_path / "c.yaml", {})
    stated = sections(schema())
    for path in list(stated):  # stated in both places, read in the one that is used
        if path.startswith(".routing.router.settings.groups"):
            assert stated.pop(path) == stated[".groups.*"]
        elif path.startswith(".routing.router.settings.matrix"):
            assert stated.pop(path) == stated[".matrix"]
    asked[".matrix"] = asked.pop(".routing.router.settings.matrix")
    assert asked == stated


def valid(value: Any, by: dict[str, Any], where: str = "") -> list[str]:
    """What is wrong with a value, by the part of JSON Schema that is used here."""
    unknown = set(by) - {
        "$schema", "title", "description", "type", "anyOf", "enum", "const", "pattern", "minimum", "maximum",
        "items", "maxItems", "maxProperties", "properties", "patternProperties", "additionalProperties",
        "propertyNames", "required",
    }  # fmt: skip
    assert not unknown, unknown
    kinds = {
        "string": str,
        "integer": int,
        "boolean": bool,
        "null": type(None),
        "array": list,
        "object": dict,
    }
    names = by.get("type", [])
    names = [names] if isinstance(names, str) else names
    kind = [name for name, t in kinds.items() if type(value) is t]
    kind += ["number"] if type(value) in (int, float) else []
    wrong = [] if not names or set(kind) & set(names) else [f"{where}: {value!r} is no {names}"]
    if "anyOf" in by and all(valid(value, each, where) for each in by["anyOf"]):
        wrong.append(f"{where}: {value!r} is none of several")
    if "enum" in by and value not in by["enum"]:
        wrong.append(f"{where}: {value!r}")
    if "const" in by and value != by["const"]:
        wrong.append(f"{where}: {value!r}")
    if isinstance(value, str) and not re.search(by.get("pattern", ""), value):
        wrong.append(f"{where}: {value!r}")
    if type(value) is int and not by.get("minimum", value) <= value <= by.get("maximum", value):
        wrong.append(f"{where}: {value!r}")
    if isinstance(value, list):
        wrong += [
            w for i, item in enumerate(value) for w in valid(item, by.get("items", {}), f"{where}[{i}]")
        ]
    if isinstance(value, dict):
        wrong += [f"{where}: {key} is missing" for key in by.get("required", ()) if key not in value]
        for key, item in value.items():
            wrong += valid(key, by.get("propertyNames", {}), f"{where}.{key}")
            if key in by.get("properties", {}):
                wrong += valid(item, by["properties"][key], f"{where}.{key}")
            elif not any(re.search(pattern, key) for pattern in by.get("patternProperties", {})):
                rest = by.get("additionalProperties", True)
                if rest is False:
                    wrong.append(f"{where}: {key} is unknown")
                elif rest is not True:
                    wrong += valid(item, rest, f"{where}.{key}")
    return wrong


def test_what_loads_is_valid() -> None:
    examples = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs/configuration.md").read_text(), re.DOTALL)
    texts = [(ROOT / "examples/config.yaml").read_text(), EVERYTHING, GROUPS, *examples]
    assert len(texts) > 6
    for text in texts:
        assert valid(yaml.safe_load(text), schema()) == [], text


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("listen: x", ": models is missing"),
        ("models: {m: {}}", ".models.m: cmd is missing"),
        ("models: {m: {cmd: s, tll: 5}}", ".models.m: tll is unknown"),
        ("models: {m: {cmd: s, ttl: soon}}", ".models.m.ttl"),
        ("models: {m: {cmd: s, memory: {cpu: 1}}}", ".models.m.memory"),
        ("models: {m: {cmd: s, capabilities: {in: [smell]}}}", ".models.m.capabilities.in[0]"),
        ("models: {}\npolicy: lifo", ".policy"),
        ("models: {}\nmaxQueue: 0", ".maxQueue"),
        ("models: {}\nmacros: {a: [1]}", ".macros.a"),
        ("models: {}\nselectors: {s: {strategy: hot, targets: []}}", ".selectors.s.strategy"),
        ("models: {m: {cmd: }}", ".models.m.cmd"),
        ("models: {m: }", ".models.m"),
        ("models:", ".models"),
        ("models: {m: {cmd: s, checkEndpoint: health}}", ".models.m.checkEndpoint"),
        ("models: {m: {cmd: s, env: [A]}}", ".models.m.env[0]"),
        ("models: {m: {cmd: s, env: [A=1, ]}, n: {cmd: s, aliases: [a, null]}}", ".models.n.aliases[1]"),
        ("models: {m: {cmd: s, proxy: 'https://x'}}", ".models.m.proxy"),
        ("models: {m: {cmd: s, memory: {gpu01: 1}}}", ".models.m.memory"),
        ("models: {m: {cmd: s, ttl: 4611686018427387904}}", ".models.m.ttl"),
        ("models: {}\nlisten: 8080", ".listen"),
        ("models: {}\ncors: {origins: [chat.example.org]}", ".cors.origins[0]"),
        ("models: {}\npeers: {p: {proxy: box, models: [m]}}", ".peers.p.proxy"),
        ("models: {}\ngroups: {g: }", ".groups.g"),
        ("models: {}\nselectors: {s: {strategy: pin, targets: }}", ".selectors.s.targets"),
    ],
)
def test_what_is_wrong_is_not(text: str, where: str) -> None:
    assert any(each.startswith(where) for each in valid(yaml.safe_load(text), schema()))


def test_macros_may_stand_for_what_is_no_text() -> None:
    text = """
        x-base: &base {anything: goes}
        models: {m: {cmd: s, ttl: "${t}", slots: "${n}", unlisted: "${f}", memory: "${m}", macros: {t: 1}}}
    """
    assert valid(yaml.safe_load(dedent(text)), schema()) == []


def test_the_command_prints_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert runnerd.main(["schema"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(schema()))


def test_every_key_has_a_sentence() -> None:
    for key, each in schema()["properties"].items():
        assert each["description"].endswith("."), key
    for key, each in schema()["properties"]["models"]["additionalProperties"]["properties"].items():
        assert each["description"].endswith("."), key
