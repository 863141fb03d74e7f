"""What is wrong with a configuration: each problem with its line and path, all of them together."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path

import msgspec

from daemon.nearest import nearest as likeliest
from events.limits import CONFIG_PROBLEMS, CONFIG_PROBLEMS_SHOWN, CONFIG_SHOWN_CHARS

ANY_KEYS = "`unknownKeys: warn` has unknown keys passed over, as llama-swap does; `metadata` takes any"
"""What they can do who have such keys for a reason: keys that are like no other, hardly typing errors."""

_SIMPLE_KEY = re.compile(r"[A-Za-z0-9_-]+")


class Problem(msgspec.Struct, frozen=True):
    """One thing that is wrong. `line` counts from 1; 0: the file as a whole. `path`: `models.qwen.ttl`."""

    line: int
    path: str
    text: str
    more: str = ""
    """What to do about all problems of its kind: told once, behind them."""

    def show(self, file: Path) -> str:
        """`FILE:LINE: PATH: TEXT`, without the parts that it has not."""
        where = f"{file}:{self.line}" if self.line else f"{file}"
        return f"{where}: {self.path}: {self.text}" if self.path else f"{where}: {self.text}"


class ConfigError(Exception):
    """The file cannot be used. Its text has one line for each problem; mend them all and try again."""

    def __init__(self, file: Path, problems: Iterable[Problem]) -> None:
        self.file = file
        self.problems = tuple(sorted(problems, key=lambda problem: problem.line))
        lines = [problem.show(file) for problem in self.problems[:CONFIG_PROBLEMS_SHOWN]]
        if len(self.problems) > CONFIG_PROBLEMS_SHOWN:
            lines.append(f"{file}: and {len(self.problems) - CONFIG_PROBLEMS_SHOWN} more problems")
        lines += [f"{file}: {more}" for more in dict.fromkeys(p.more for p in self.problems) if more]
        super().__init__("\n".join(lines))


class Unreadable(ConfigError):
    """There is no such file, or it may not be read."""


class Unusable(Exception):
    """Nothing more can be learned from this file; the problem that says why has been collected."""


class Problems:
    """Collects errors and warnings while a file is read."""

    def __init__(self) -> None:
        self.errors: list[Problem] = []
        self.warnings: list[Problem] = []
        self.any_keys = False
        """Unknown keys are passed over, with a warning."""

    def add(self, line: int, path: str, text: str, more: str = "") -> None:
        """An error; reading goes on, so that all of them are found at once. Raises Unusable where there are
        so many that it is another kind of file."""
        problem = Problem(line, path, text, more)
        if problem not in self.errors:
            self.errors.append(problem)
        if len(self.errors) >= CONFIG_PROBLEMS:
            raise Unusable("too many problems")

    def unknown(self, line: int, path: str, key: str, near: str) -> None:
        """A key that nobody knows, and so whatever is below it; `near`: which it may be meant to be."""
        self._forget(path)
        text = f"unknown key {shown(key)}{near}"
        if self.any_keys:
            self.warn(line, path, text)
        else:
            self.add(line, path, text, "" if near else ANY_KEYS)

    def _forget(self, path: str) -> None:
        """What a key has that means nothing here is no problem of its own."""
        below = (f"{path}.", f"{path}[")
        self.errors = [
            problem for problem in self.errors if problem.path != path and not problem.path.startswith(below)
        ]

    def warn(self, line: int, path: str, text: str) -> None:
        """Something that the user should know, and that does not prevent a start."""
        self.warnings.append(Problem(line, path, text))

    def sorted_warnings(self) -> tuple[Problem, ...]:
        """The warnings in the order of the file."""
        return tuple(sorted(self.warnings, key=lambda problem: problem.line))

    def give_up(self, line: int, path: str, text: str) -> Unusable:
        """An error after which there is nothing to read: raise what this returns."""
        self.add(line, path, text)
        return Unusable(text)


def join_path(path: str, key: str | int) -> str:
    """The path of a value inside another: `models.qwen`, `env[0]`, `models."qwen2.5"`."""
    if isinstance(key, int):
        return f"{path}[{key}]"
    name = key if _SIMPLE_KEY.fullmatch(key) else shown(key)
    return f"{path}.{name}" if path else name


def shown(value: object) -> str:
    """A value as a message shows it: on one line, quoted where it is text, and not too long."""
    text = json.dumps(value, ensure_ascii=False) if isinstance(value, str) else str(value)
    text = "".join(c if c.isprintable() else "�" for c in text[: CONFIG_SHOWN_CHARS + 1])
    return text if len(text) <= CONFIG_SHOWN_CHARS else text[:CONFIG_SHOWN_CHARS] + "…"


def nearest(word: str, choices: Iterable[str]) -> str:
    """The choice that looks most like `word`, whatever its case; "" where none does."""
    if len(word) > CONFIG_SHOWN_CHARS:
        return ""
    by_fold = {choice.casefold(): choice for choice in choices}
    found = likeliest(word.casefold(), by_fold, 1)
    return by_fold[found[0]] if found else ""


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """`; the nearest is "ttl"`, or nothing."""
    near = nearest(word, choices)
    return f"; the nearest is {shown(near)}" if near else ""
