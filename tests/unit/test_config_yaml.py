"""The YAML tree: lines, duplicate keys, merge keys, scalars, and what must be refused."""

from __future__ import annotations

import pytest

from daemon.config.errors import Problems, Unusable, nearest, shown
from daemon.config.yaml_source import Mapping, Node, Scalar, Sequence, parse, resolve_plain
from events.limits import CONFIG_DEPTH


def tree(text: str) -> Mapping:
    problems = Problems()
    node = parse(text, problems)
    assert not problems.errors
    assert isinstance(node, Mapping)
    return node


def plain(node: Node) -> object:
    if isinstance(node, Scalar):
        return node.value
    if isinstance(node, Sequence):
        return [plain(item) for item in node.items]
    return {key: plain(item) for key, item in node.items.items()}


def refused(text: str) -> str:
    problems = Problems()
    with pytest.raises(Unusable):
        parse(text, problems)
    return problems.errors[-1].text


def test_every_value_and_key_knows_its_line() -> None:
    root = tree("a: 1\nb:\n  - x\n  -\n    c: 2\n")
    assert root.key_lines == {"a": 1, "b": 2}
    b = root.items["b"]
    assert isinstance(b, Sequence)
    assert [item.line for item in b.items] == [3, 5]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("12", 12), ("-3", -3), ("0x1F", 31), ("0o17", 15), ("1.5", 1.5), ("1e3", 1000.0), ("true", True),
        ("~", None), ("", None), ("null", None), ("yes", "yes"), ("12:30", "12:30"), ("010", "010"),
        (".nan", ".nan"), (".inf", ".inf"), ("1e999", "1e999"), ("9" * 30, "9" * 30),
        ("2024-01-01", "2024-01-01"),
        ("1234567890123456789", 1234567890123456789), ("18446744073709551615", (1 << 64) - 1),
        ("18446744073709551616", "18446744073709551616"), ("0xFFFFFFFFFFFFFFFF", (1 << 64) - 1),
        ("-9223372036854775808", -(1 << 63)), ("-9223372036854775809", "-9223372036854775809"),
        ("0o1777777777777777777777", (1 << 64) - 1), ("0o2000000000000000000000", "0o2000000000000000000000"),
        ("+0", 0),
    ],
)  # fmt: skip
def test_plain_scalars(text: str, value: object) -> None:
    found = resolve_plain(text)
    assert (found, type(found)) == (value, type(value))


def test_quoted_scalars_are_text() -> None:
    assert plain(tree("a: '1'\nb: \"true\"\nc: !!str 3\nd: |\n  4\n")) == {
        "a": "1",
        "b": "true",
        "c": "3",
        "d": "4\n",
    }


def test_anchors_and_merge_keys() -> None:
    text = (
        "base: &b {x: 1, y: 2}\nmore: &m {y: 3, z: 4}\none: {<<: *b, y: 5}\ntwo: {<<: [*b, *m]}\nthree: *b\n"
    )
    root = plain(tree(text))
    assert isinstance(root, dict)
    assert root["one"] == {"x": 1, "y": 5}
    assert root["two"] == {"x": 1, "y": 2, "z": 4}
    assert root["three"] == {"x": 1, "y": 2}


def test_a_duplicate_key_is_reported_with_both_lines() -> None:
    problems = Problems()
    parse("models:\n  a: 1\n  b: 2\n  a: 3\n", problems)
    [problem] = problems.errors
    assert (problem.line, problem.path) == (4, "models.a")
    assert "first on line 2" in problem.text


def test_aliases_that_multiply_are_refused() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 20)]
    assert "aliases expanded" in refused("\n".join(lines))


@pytest.mark.parametrize("bracket", ["[", "{a: ", "- "])
def test_deep_nesting_is_refused(bracket: str) -> None:
    assert f"at most {CONFIG_DEPTH} levels" in refused(bracket * 100_000)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty"),
        ("# nothing\n", "empty"),
        ("a: *b\n", "anchor"),
        ("a: &a [*a]\n", "anchor"),
        ("a: 1\n---\nb: 2\n", "second one"),
        ("a:\n\tb: 1\n", "YAML"),
        ("a: [1\n", "YAML"),
        ("a: 'x\n", "YAML"),
        ("a: \x01\n", "YAML"),
        ("? [1, 2]\n: 3\n", "text as a key"),
    ],
)
def test_what_is_not_one_plain_document(text: str, message: str) -> None:
    assert message in refused(text)


@pytest.mark.parametrize(
    "text", ["a: !!python/object/apply:os.system [x]\n", "a: !x 1\n", "a: !!binary aGk=\n"]
)
def test_tags_are_refused(text: str) -> None:
    problems = Problems()
    parse(text, problems)
    assert [problem.path for problem in problems.errors] == ["a"]


def test_messages_stay_on_one_line() -> None:
    assert shown("a\nb") == '"a\\nb"'
    assert shown("\x1b[31m" + "x" * 500).endswith("…")
    assert "\x1b" not in shown("\x1b[31m")
    assert nearest("TLL", ["ttl", "cmd"]) == "ttl"
    assert nearest("x" * 1_000_000, ["ttl"]) == ""
