"""The reader of configurations against files that are nearly right: each loads, or is refused with a line."""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from daemon.config import fields
from daemon.config.config import Config
from daemon.config.errors import ConfigError
from daemon.config.file import load
from tests.fuzz.mutations import mutated

ROOT = Path(__file__).parents[2]

MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None
"""The files are written there: a disk would be what takes most of the time."""

LONGEST_S = 5.0
"""One file may take so long, on a machine that does other things, too; a whole example takes 10 ms."""

BASES = tuple(
    text.encode()
    for text in (
        """\
models:
  m: {cmd: 's ${PORT}'}
""",
        """\
models:
  m:
    cmd: s --port ${PORT} -c ${num_ctx}
    options: {num_ctx: 8192}
    memory: {gpu0: 1GiB}
    aliases: [a, b]
    env: ['A=b']
    metadata: {x: ['${PORT}']}
    ttl: 5m
""",
        """\
macros: {a: x, b: '${a} ${a}'}
models:
  m: {cmd: 's ${b} ${PORT}', cmdStop: 'k ${PID}', macros: {c: 1}}
  n: {cmd: 't', proxy: 'http://127.0.0.1:5000', checkEndpoint: none}
""",
        """\
models:
  m: {cmd: 's ${PORT}'}
  n: {cmd: 't ${PORT}'}
groups:
  g: {swap: true, members: [m, n]}
hooks: {on_startup: {preload: [m]}}
devices: {gpu0: {budget: 8GiB}, host: }
listen: 127.0.0.1:1
""",
        """\
models: &x
  m: &m {cmd: 's ${PORT}', shards: [{cmd: 'w ${PORT}'}]}
  n:
    <<: *m
    ttl: 5
""",
    )
)

TOKENS = [
    *(
        word + b" "
        for word in b"*a &a *m <<: !!x !!binary [ { } ] - : ' \" | ~ % ? ${ ${PORT} ${env.X} ${a}".split()
    ),
    *(
        word + b" "
        for word in b"-1 0 .nan .inf 1e999 0x10 1_0 0o7 yes null 2026-11-21 12:30:45 5m -5s 99999GiB".split()
    ),
    b"\t",
    b"\n",
    b"\n---\n",
    b"\xff",
    b"\x00",
    b"\xef\xbb\xbf",
    b"9" * 40,
    b"\n  ",
    b"[" * 40,
    b"{a: " * 40,
    b"\xe2\x80\xae",
    b"../../etc",
    b"; rm -rf /",
    b"$(id)",
    b"`id`",
    b"'\"",
    b"\xc2\x85",
    b"\xe2\x80\xa8",
]

VALUES = [
    b"",
    b"1",
    b"-1",
    b"0",
    b"1.5",
    b"true",
    b"x",
    b"''",
    b"[]",
    b"{}",
    b"[a, b]",
    b"[1, {a: b}]",
    b"{a: 1}",
    b"{m: {}}",
    b"[[[]]]",
    b"~",
    b"5m",
    b"6GiB",
    b"'s ${PORT}'",
    b"'${PORT}'",
    b"'${env.HOME}'",
    b"'${nope}'",
    b"'${a}'",
    b"[m]",
    b"m",
    b"99999999999999999999",
    b"'*'",
    b"http://127.0.0.1:80",
    b"'\\0'",
    b'"\\0"',
    b'"\\ud800"',
    b"0.0.0.0:80",
    b"{swap: true, members: [m, n]}",
]


def known_keys(directory: Path) -> list[bytes]:
    """Every key that the reader asks for, at any level, as it says itself while it reads the examples."""
    found: set[str] = set()
    asked: Callable[[fields.Section, str], object] = fields.Section.node

    def node(self: fields.Section, key: str) -> object:
        found.add(key)
        return asked(self, key)

    fields.Section.node = node  # type: ignore[method-assign,assignment]
    try:
        for number, base in enumerate(bases()):
            path = directory / f"{number}.yaml"
            path.write_bytes(base)
            with suppress(ConfigError):
                load(path, {})
    finally:
        fields.Section.node = asked  # type: ignore[method-assign,assignment]
    return sorted(key.encode() for key in found)


def bases() -> list[bytes]:
    """The files that are changed: small ones, and the example without its comments."""
    lines = (ROOT / "examples/config.yaml").read_bytes().split(b"\n")
    return [*BASES, b"\n".join(line for line in lines if not line.lstrip().startswith(b"#"))]


def fuzzed(rng: random.Random, base: bytes, keys: list[bytes]) -> bytes:
    """One file: with keys that the reader knows, somewhere and with any value; or with other changes."""
    if rng.random() < 0.6:
        lines = base.split(b"\n")
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(len(lines) + 1)
            beside = lines[at - 1] if at else b""
            indent = beside[: len(beside) - len(beside.lstrip(b" "))] + b"  " * (rng.random() < 0.3)
            lines.insert(at, indent + rng.choice(keys) + b": " + rng.choice(VALUES))
        base = b"\n".join(lines)
    return base if rng.random() < 0.4 else mutated(rng, base, TOKENS)


def fuzz(seed: int, count: int) -> tuple[int, int]:
    """Read `count` files. Returns how many of them loaded and were refused. Raises AssertionError, or what
    the reader raises, with a note that holds the file."""
    rng = random.Random(seed)
    loaded = refused = 0
    with tempfile.TemporaryDirectory(prefix="runnerd-fuzz-", dir=MEMORY) as directory:
        path = Path(directory) / "c.yaml"
        keys, files = known_keys(Path(directory)), bases()
        small = files[:-1]
        for number in range(count):
            data = fuzzed(rng, rng.choice(small) if rng.random() < 0.98 else files[-1], keys)
            path.write_bytes(data)
            began = time.perf_counter()
            try:
                good = check(path)
                assert time.perf_counter() - began < LONGEST_S, "it took too long"
            except BaseException as error:
                error.add_note(f"file {number} of seed {seed}: {data!r}")
                raise
            loaded += good
            refused += not good
    return loaded, refused


def check(path: Path) -> bool:
    """Whether a file loads; raises where it is neither a configuration nor refused as one should be."""
    try:
        config = load(path, {"X": "from the environment"})
    except ConfigError as error:
        assert error.problems, "it is refused for nothing"
        for problem in error.problems:
            assert problem.line >= 0 and problem.text and "\n" not in problem.text, problem
        for line in str(error).split("\n")[: len(error.problems)]:
            assert line.startswith((f"{path}:", "and ")) and line.isprintable(), line
        return False
    assert isinstance(config, Config)
    config.view(b"")
    return True
