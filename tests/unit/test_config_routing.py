"""Groups, the matrix and llama-swap's `routing`: what a file says, and what is wrong with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from daemon.config.config import Config
from daemon.config.errors import ConfigError
from daemon.config.file import load
from events.catalogue import GroupView

MODELS = """
models:
  a: {cmd: "s --port ${PORT}"}
  b: {cmd: "s --port ${PORT}"}
  c: {cmd: "s --port ${PORT}", priority: 3}
  d-1.5: {cmd: "s --port ${PORT}"}
"""


def read(tmp_path: Path, text: str) -> Config:
    path = tmp_path / "config.yaml"
    path.write_text(MODELS + text)
    return load(path, {})


def wrong(tmp_path: Path, text: str) -> str:
    with pytest.raises(ConfigError) as error:
        read(tmp_path, text)
    return str(error.value)


def test_groups_at_the_top_and_under_routing(tmp_path: Path) -> None:
    groups = "{g: {members: [a, b], swap: false}, h: {members: [c], exclusive: false, persistent: true}}"
    expected = {
        "g": GroupView(("a", "b"), swap=False),
        "h": GroupView(("c",), exclusive=False, persistent=True),
    }
    assert read(tmp_path, f"groups: {groups}").groups == expected
    below = f"routing: {{router: {{use: group, settings: {{groups: {groups}}}}}}}"
    assert read(tmp_path, below).groups == expected
    assert read(tmp_path, below.replace("use: group, ", "")).groups == expected
    assert read(tmp_path, f"groups: {groups}\nrouting: {{router: {{use: group}}}}").groups == expected
    assert read(tmp_path, "routing: {router: {use: group}}").groups == {}


def test_the_matrix(tmp_path: Path) -> None:
    matrix = """{vars: {x: a, b: d-1.5}, evict_costs: {x: 5, c: 2},
      sets: {one: "(x | b) & c", two: "x & b | c", three: "+one & d-1.5"}}"""
    found = read(tmp_path, f"matrix: {matrix}").matrix
    assert found is not None
    assert found.evict_costs == {"a": 5, "c": 2}
    assert found.sets == {
        "one": ("=a", "=d-1.5", "|", "=c", "&"),
        "two": ("=a", "=d-1.5", "&", "=c", "|"),
        "three": ("+one", "=d-1.5", "&"),
    }
    below = f"routing: {{router: {{use: matrix, settings: {{matrix: {matrix}}}}}}}"
    assert read(tmp_path, below).matrix == found


def test_priorities_under_routing(tmp_path: Path) -> None:
    text = "routing: {scheduler: {use: fifo, settings: {fifo: {priority: {a: 10, c: 5}}}}}"
    models = read(tmp_path, text).models
    assert [models[id].priority for id in "abc"] == [10, 0, 3]


def test_the_engine_that_is_not_used_is_named(tmp_path: Path) -> None:
    settings = '{groups: {g: {members: [a]}}, matrix: {sets: {s: "a & b"}}}'
    config = read(tmp_path, f"routing: {{router: {{use: matrix, settings: {settings}}}}}")
    assert config.groups == {}
    assert config.matrix is not None
    assert any("settings.groups" in warning and "no effect" in warning for warning in config.warnings)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("groups: {g: {members: [x]}}", 'groups.g.members[0]: expected the id of a model, found "x"'),
        ("routing: {router: {use: matrix}}", "routing.router.use: expected `settings.matrix` beside it"),
        ("routing: {router: {use: matrix, settings: {matrix: {}}}}", "use: expected `settings.matrix`"),
        ("routing: {router: {use: matrix, settings: {groups: {g: {members: [a]}}}}}", "use: expected `sett"),
        ("groups: {g: {members: [a]}}\nrouting: {router: {use: matrix}}", "use: expected `settings.matrix`"),
        ("matrix: {sets: {s: a}}\nrouting: {router: {use: group}}", "use: expected `settings.groups` besid"),
        ("groups: {g: {members: [a], swop: true}}", 'unknown key "swop"; the nearest is "swap"'),
        ("groups: {g: {members: [a]}, h: {members: [a]}}", 'expected a model of no other group, found "a"'),
        ("groups: [a]", "groups: expected a mapping"),
        ('groups: {g: {members: [a]}}\nmatrix: {sets: {s: "a"}}', "`groups` or `matrix`, not both"),
        ("matrix: {sets: {}, vars: {x: a}}", "matrix.sets: expected a mapping of names to expressions"),
        ('matrix: {sets: {s: "a &"}}', "it ends where a model is expected"),
        ('matrix: {sets: {s: "a b"}}', "where & or | is expected"),
        ('matrix: {sets: {s: "(a"}}', "a ( without its )"),
        ('matrix: {sets: {s: "a)"}}', "a ) without its ("),
        ('matrix: {sets: {s: "a ! b"}}', "'!' has no meaning here"),
        ('matrix: {sets: {s: "a & e"}}', "'e' is neither a variable nor the id of a model"),
        ('matrix: {sets: {s: "+t"}}', "there is no set 't'"),
        ('matrix: {sets: {s: "+t", t: "a | +s"}}', "expected a set that does not refer to itself"),
        ('matrix: {sets: {s: a}, evict_costs: {a: 0}}', "expected a whole number from 1 to"),
        ('matrix: {sets: {s: a}, evict_costs: {z: 1}}', "expected a variable or the id of a model"),
        ('matrix: {sets: {s: a}, vars: {"x y": a}}', "expected a name of 1 to 32 letters"),
        ("routing: {router: {use: magic}}", 'routing.router.use: expected "group" or "matrix"'),
        ("routing: {scheduler: {settings: {fifo: {priority: {a: x}}}}}", "a whole number from -1000"),
        ("routing: {scheduler: {settings: {lifo: {}}}}", "routing.scheduler.settings.lifo: unknown key"),
        (
            "groups: {g: {members: [a]}}\nrouting: {router: {settings: {groups: {h: {members: [b]}}}}}",
            "here or at the top level, not both",
        ),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(tmp_path: Path, text: str, said: str) -> None:
    assert said in wrong(tmp_path, text)
