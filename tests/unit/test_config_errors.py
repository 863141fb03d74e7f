"""What is said of a wrong configuration: every problem, where it is, what would be right; no traceback."""

from __future__ import annotations

import random
from pathlib import Path
from textwrap import dedent

import pytest

from daemon.config.check import check_main
from daemon.config.errors import ConfigError
from daemon.config.file import load
from events.limits import CONFIG_MAX_BYTES, CONFIG_PROBLEMS, CONFIG_PROBLEMS_SHOWN

ROOT = Path(__file__).parents[2]


def problems(directory: Path, text: str | bytes, environ: dict[str, str] | None = None) -> list[str]:
    """The lines of the ConfigError, without the file's name."""
    path = directory / "c.yaml"
    path.write_bytes(dedent(text).encode() if isinstance(text, str) else text)
    with pytest.raises(ConfigError) as caught:
        load(path, environ or {})
    return [
        line.removeprefix(str(path)).removeprefix(":").removeprefix(" ")
        for line in str(caught.value).split("\n")
    ]


def test_all_problems_are_told_together_with_line_and_path(tmp_path: Path) -> None:
    text = """\
        listen: nowhere
        globalTtl: 5
        models:
          qwen:
            cmd: s ${PORT}
            ttl: soon
            tll: 5
          "two.5": {cmd: 's ${PORT} ${modl}', slots: 0}
          y: [1]
    """
    assert problems(tmp_path, text) == [
        '1: listen: expected HOST:PORT, found "nowhere"',
        '2: globalTtl: unknown key "globalTtl"; the nearest is "globalTTL"',
        '6: models.qwen.ttl: expected a number of seconds or a duration ("90s", "1h30m"), found "soon"',
        '7: models.qwen.tll: unknown key "tll"; the nearest is "ttl"',
        '8: models."two.5".cmd: expected a macro that is defined, found ${modl}; the nearest is "MODEL_ID"',
        '8: models."two.5".slots: expected a whole number from 1 to 1024, found 0',
        "9: models.y: expected a mapping with the key `cmd`, found a list",
    ]


def test_unknown_keys_may_be_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    text = """\
        unknownKeys: %s
        validation: {smoke: "${no_macro}"}
        cors: {origin: []}
        models:
          m:
            cmd: s ${PORT}
            tll: 5
            headers: [a]
        groups: {none: {}, g: {members: [m], description: "both ${PORT}"}}
    """
    path.write_text(dedent(text % "warn"))
    config = load(path, {})
    assert list(config.models) == ["m"] and config.groups["none"].members == ()
    assert [warning.removeprefix(f"{path}:") for warning in config.warnings] == [
        '2: validation: unknown key "validation"',
        '3: cors.origin: unknown key "origin"; the nearest is "origins"',
        '7: models.m.tll: unknown key "tll"; the nearest is "ttl"',
        '8: models.m.headers: unknown key "headers"',
        "9: groups.none.members: a group of no models has no effect",
        '9: groups.g.description: unknown key "description"',
    ]
    assert len(problems(tmp_path, text % "error")) == 5 + 1
    assert "unknownKeys: expected" in problems(tmp_path, text % "pass")[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1]", "expected a mapping with the key `models`, found a list"),
        ("hello", "expected a mapping"),
        ("{}", "models: expected a mapping"),
        ("models: 3", "models: expected a mapping, found 3"),
        ("hooks: [preload]", "hooks: expected a mapping, found a list"),
        ("hooks: {on_startup: {preload: rad}}", "hooks.on_startup.preload: expected a list of text"),
        ("hooks: {on_startup: {preload: [[x]]}}", "hooks.on_startup.preload[0]: expected text"),
        ("hooks: {on_startup: {profile: day}}", "hooks.on_startup.profile: expected the name of one of `pro"),
        ("hooks: {on_startup: {preloads: []}}", 'unknown key "preloads"; the nearest is "preload"'),
        ("hooks: {on_stop: {}}", 'hooks.on_stop: unknown key "on_stop"'),
        ("maxQueue: 0", "maxQueue: expected a whole number from 1"),
        ("maxQueue: -5", "found -5"),
        ("maxQueue: 1.5", "found 1.5"),
        ("maxQueue: .nan", 'found ".nan"'),
        ("maxQueue: true", "found True"),
        ("maxQueue: [1]", "found a list"),
        ("maxQueue: '5'", 'found "5"'),
        ("startPort: 70000", "startPort"),
        ("globalTTL: -1", "globalTTL"),
        ("unloadTimeout: -1", "unloadTimeout"),
        ("memoryHeadroom: 6G", "memoryHeadroom: expected a size"),
        ("durability: disk", 'durability: expected "process" or "machine", found "disk"'),
        ("retention: 1GiB", "retention: expected a mapping"),
        (
            "retention: {size: 1MiB}",
            "retention.size: expected a size from 16MiB, or 0 for no limit",
        ),
        ("retention: {sizes: 1GiB}", 'unknown key "sizes"; the nearest is "size"'),
        ("retention: {age: old}", "retention.age: expected a number of seconds or a duration"),
        ("listen: 127.0.0.1:99999", "listen"),
        ("controlSocket: ~/x.sock", "controlSocket: expected a path"),
        (f"controlSocket: /{'x' * 120}", "at most 107 bytes"),
        ("devices: {cpu: {budget: 1GiB}}", 'devices.cpu: expected "host", "gpu0"'),
        ("devices: {host: 12GiB}", "devices.host: expected a mapping"),
        ("devices: {host: {budgett: 1}}", 'the nearest is "budget"'),
        ("devices: {host: {budget: -1}}", "devices.host.budget: expected a size"),
        ("includeAliasesInList: perhaps", "expected true or false"),
        ("macros: [a]", "macros: expected a mapping"),
        ("macros: {PORT: 1}", "PORT is reserved"),
        ("macros: {SOCKET: 1}", "SOCKET is reserved"),
        ("macros: {'a b': 1}", "expected a macro name"),
        ("macros: {a: [1]}", "macros.a: expected text, a number or a boolean"),
        ("macros: {a: 'x ${a}'}", "does not use the macro itself"),
        ("listen: ${env.NOTHERE}", "expected the environment variable NOTHERE, which is not set"),
        ('listen: "${env.NOT\\there}"', 'expected the environment variable "NOT\\there", which is not set'),
        ("listen: ${PORT}", "expected a macro that has a value here, found ${PORT}"),
    ],
)
def test_the_top(tmp_path: Path, text: str, message: str) -> None:
    found = "\n".join(problems(tmp_path, text + "\n"))
    assert message in found


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("{}", "cmd: expected the command that starts the runner, found nothing"),
        ("{cmd: ''}", "cmd: expected a command, found none"),
        ("{cmd: '# only a comment'}", "cmd: expected a command, found none"),
        ("{cmd: [a, b]}", "cmd: expected a command, found a list"),
        ('{cmd: "s ${PORT} \\"x"}', "No closing quotation"),
        ("{cmd: s}", "proxy: expected ${PORT} in `cmd`"),
        (r'{cmd: "s ${PORT} a\0b"}', "cmd: expected a command without NUL characters"),
        (r'{cmd: "s ${PORT}", cmdStop: "s \0"}', "cmdStop: expected a command without NUL characters"),
        ("{cmd: 's ${PORT}', proxy: 'http://10.0.0.7:9'}", "proxy: expected ${PORT} here"),
        ("{cmd: 's ${PORT}', proxy: 'https://localhost:${PORT}'}", "https is not supported"),
        ("{cmd: s, proxy: 'http://127.0.0.1:0'}", "proxy: expected http://HOST:PORT"),
        ("{cmd: s, proxy: 'http://u:p@127.0.0.1:9'}", "proxy: expected http://HOST:PORT"),
        ("{cmd: s, proxy: 'unix:x.sock'}", "proxy: expected http://HOST:PORT"),
        ("{cmd: 's ${SOCKET}', proxy: 'http://127.0.0.1:9'}", "${SOCKET} both here and in `cmd`"),
        ("{cmd: 's ${SOCKET} ${PORT}'}", "cmd: expected either ${PORT} or ${SOCKET}, found both"),
        ("{cmd: 's ${PORT} ${PID}'}", "cmd: expected a macro that has a value here, found ${PID}"),
        (
            "{cmd: 's ${PORT} ${later}', macros: {later: '${last}', last: 1}}",
            "${last} used before its definition",
        ),
        ("{cmd: 's ${PORT}', checkEndpoint: health}", "checkEndpoint: expected a path"),
        ("{cmd: 's ${PORT}', env: {A: b}}", "env: expected a list of text, found a mapping"),
        ("{cmd: 's ${PORT}', env: [x y]}", "env[0]: expected NAME=value"),
        ("{cmd: 's ${PORT}', env: [=x]}", "env[0]: expected NAME=value"),
        (r'{cmd: "s ${PORT}", env: ["A=\0"]}', "env[0]: expected NAME=value"),
        ("{cmd: 's ${PORT}', env: [RUNNERD_RUNNER=x]}", "RUNNERD_* is runnerd's own"),
        ("{cmd: 's ${PORT}', ttl: -2}", "ttl: expected"),
        ("{cmd: 's ${PORT}', memory: lots}", "memory: expected a size"),
        ("{cmd: 's ${PORT}', memory: [1]}", "memory: expected a size"),
        ("{cmd: 's ${PORT}', memory: {gpu: 1}}", 'memory.gpu: expected "host", "gpu0"'),
        ("{cmd: 's ${PORT}', options: {n: 1}}", "options.n: expected ${n} in `cmd` or `env`"),
        ("{cmd: 's ${PORT} ${n}', options: {n: 1.5}}", "options.n: expected a default"),
        ("{cmd: 's ${PORT} ${n}', options: {n: }}", "options.n: expected a default"),
        ("{cmd: 's ${PORT} ${n}', options: {n: 99999999999999999}}", "options.n: expected a whole number"),
        ("{cmd: 's ${PORT}', options: {PORT: 1}}", "options.PORT: expected an option's name"),
        ("{cmd: 's ${PORT} ${n}', options: {n: 1}, macros: {n: 2}}", "not also a macro's"),
        ("{cmd: 's ${PORT}', aliases: [m2]}", 'expected a name of its own, found "m2"'),
        ("{cmd: 's ${PORT}', aliases: ['']}", "aliases[0]: expected a name"),
        ("{cmd: 's ${PORT}', aliases: [[x]]}", "aliases[0]: expected text, found a list"),
        ("{cmd: 's ${PORT}', priority: 5000}", "priority: expected a whole number"),
        ("{cmd: 's ${PORT}', instances: 0}", "instances: expected a whole number from 1 to 64"),
        (
            "{cmd: 's ${PORT}', instances: {min: 3, max: 2}}",
            "instances.max: expected a whole number from 3 to",
        ),
        ("{cmd: 's ${PORT}', instances: {most: 2}}", 'instances.most: unknown key "most"'),
        ("{cmd: s, proxy: 'http://127.0.0.1:9', instances: 2}", "instances: expected 1, for all would have"),
        (
            "{cmd: 's ${PORT}', acceptLargerContext: true}",
            "acceptLargerContext: expected num_ctx among `options`",
        ),
        ("{cmd: 's ${PORT}', firstByteTimeout: x}", "firstByteTimeout: expected a number of seconds"),
        ("{cmd: 's ${PORT}', cmd: again}", "cmd: expected each key once"),
    ],
)
def test_models(tmp_path: Path, model: str, message: str) -> None:
    found = problems(tmp_path, f"models:\n  m2: {{cmd: 's ${{PORT}}'}}\n  m: {model}\n")
    assert message in "\n".join(found)
    assert all(line.startswith(("3: models.m", "`unknownKeys: warn`")) for line in found)


@pytest.mark.parametrize("name", ["''", "'a\\tb '", "'${env.X}'", "x" * 300])
def test_model_ids_that_cannot_be(tmp_path: Path, name: str) -> None:
    assert "expected a name of at most" in problems(tmp_path, f"models: {{? {name} : {{cmd: s}}}}")[0]


def test_what_came_from_the_environment_is_not_shown(tmp_path: Path) -> None:
    text = """\
        macros: {hidden: '${env.TOKEN}'}
        maxQueue: ${env.TOKEN}
        models:
          m: {cmd: 's ${PORT}', ttl: '${hidden}', proxy: '${hidden}', durability: x}
    """
    assert "s3cret" not in "\n".join(problems(tmp_path, text, {"TOKEN": "s3cret"}))


def test_macros_that_double_each_other_are_refused(tmp_path: Path) -> None:
    macros = "\n".join(f"  m{i}: '{f'${{m{i - 1}}}' * 10}'" for i in range(1, 100))
    text = f"macros:\n  m0: xxxxxxxxxx\n{macros}\nmodels: {{m: {{cmd: '${{m99}}'}}}}\n"
    assert "characters in all" in problems(tmp_path, text)[-1]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"models:\n  m: \xff\xfe\n", "2: expected UTF-8"),
        (b"#" * (CONFIG_MAX_BYTES + 1), f"expected at most {CONFIG_MAX_BYTES} bytes"),
        (b"", "empty"),
        (b"\x00", "expected YAML"),
        (b"models:\n\tm: 1\n", "2: expected YAML, found: a tab, where it takes spaces"),
        ("models:\n  ä: 1\n\tm: 1\n".encode(), "3: expected YAML, found: a tab, where it takes spaces"),
        ("﻿models: 1\n".encode(), "models: expected a mapping"),
    ],
)
def test_files_that_are_not_text(tmp_path: Path, data: bytes, message: str) -> None:
    assert message in problems(tmp_path, data)[0]


def test_files_that_cannot_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in (tmp_path, tmp_path / "absent.yaml"):
        assert check_main(path) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith(f"{path}: cannot be read: ")


def test_very_many_problems_are_counted(tmp_path: Path) -> None:
    found = problems(tmp_path, "\n".join(f"key{i}: 1" for i in range(200)))
    assert len(found) == CONFIG_PROBLEMS_SHOWN + 2
    assert found[-2] == f"and {201 - CONFIG_PROBLEMS_SHOWN} more problems"
    assert found[-1].startswith("`unknownKeys: warn` has unknown keys passed over")


def test_a_thousand_names_and_as_many_typos_take_no_minutes(tmp_path: Path) -> None:
    names = [f"qwen2.5-coder-{i}b-instruct" for i in range(1000)]
    models = "".join(f"  {name}: {{cmd: 's ${{PORT}}'}}\n" for name in names)
    typos = ", ".join(f"qwen2.5-codar-{i}b-instruct" for i in range(1000))
    path = tmp_path / "c.yaml"
    path.write_text(f"models:\n{models}groups:\n  g: {{members: [{typos}]}}\n")
    with pytest.raises(ConfigError) as caught:
        load(path, {})
    assert len(caught.value.problems) == CONFIG_PROBLEMS
    assert 'the nearest is "qwen2.5-coder-7b-instruct"' in str(caught.value)


def mutated(rng: random.Random, data: bytes) -> bytes:
    """A few small changes: bytes, cut and doubled lines, tokens with a meaning to YAML or to macros."""
    words = b"*a &a <<: !!x [ { } - : ' \" | ~ % ${ ${PORT} ${env.X} -1 .nan 1e999".split()
    tokens = [*(word + b" " for word in words), b"\t", b"\n---\n", b"\xff", b"\x00", b"9" * 40]
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(data) + 1)
        match rng.randrange(4):
            case 0:
                data = data[:at] + rng.choice(tokens) + data[at:]
            case 1:
                data = data[:at] + data[at + rng.randint(1, 20) :]
            case 2:
                lines = data.split(b"\n")
                lines.insert(rng.randrange(len(lines)), rng.choice(lines))
                data = b"\n".join(lines)
            case _:
                data = data[:at] + bytes([rng.randrange(256)]) + data[at + 1 :]
    return data


def test_mutations_of_the_example_load_or_are_refused_clearly(tmp_path: Path) -> None:
    rng = random.Random(20)
    lines = (ROOT / "examples/config.yaml").read_bytes().split(b"\n")
    data = b"\n".join(line for line in lines if not line.startswith(b"#"))
    path = tmp_path / "c.yaml"
    refused = 0
    for _ in range(2000):
        path.write_bytes(mutated(rng, data))
        try:
            load(path, {}).view(b"")
        except ConfigError as error:
            refused += 1
            assert error.problems
            assert all(line.startswith(f"{path}:") for line in str(error).split("\n"))
    assert 500 < refused < 2000


def test_an_unknown_model_to_preload_is_told_with_its_line_and_the_nearest(tmp_path: Path) -> None:
    text = """\
        models:
          red: {cmd: 's ${PORT}', aliases: [rouge]}
        hooks:
          on_startup:
            preload:
              - red
              - rouje
    """
    assert problems(tmp_path, text) == [
        '7: hooks.on_startup.preload[1]: expected the id or alias of a model, found "rouje"; '
        'the nearest is "rouge"'
    ]


def test_what_is_below_an_unknown_key_is_no_problem_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("modells:\n  a: {cmd: 'sleep ${PORT}'}\nmodels: []\n", "utf-8")
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert str(caught.value).splitlines() == [
        f'{path}:1: modells: unknown key "modells"; the nearest is "models"',
        f"{path}:3: models: expected a mapping, found a list",
    ]
