"""Commands: splitting what the file says into arguments, and filling in what a runner gets when it starts.

A command is split before ports, paths and options are filled in, and no shell ever sees it: an option's
value is part of one argument, whatever it contains.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from urllib.parse import quote

import msgspec

from daemon.config.macros import fill
from daemon.ports import Address
from events.catalogue import Option

_PARALLEL_FLAGS = ("--parallel", "-np", "--max-num-seqs")
_ENGINES = ("docker", "podman", "nerdctl", "docker-compose", "podman-compose")
_BEFORE_ENGINES = ("sudo", "doas", "env")
_SHELLS = ("sh", "bash", "dash", "zsh")
_STARTS = ("run", "start", "exec", "up")
_KINDS = ("container", "compose")
LLAMA_SLOTS = 4
"""llama-server's own choice where nothing is said of `--parallel`: one cache that all slots share."""
BATCHING_SLOTS = 10
"""For servers that batch whatever comes, up to hundreds: as many as llama-swap passes on to any server."""
_LLAMA = ("llama-server", "llama.cpp")
_BATCHING = ("vllm", "sglang")
_EMBEDDING_FLAGS = {"--embedding", "--embeddings", "--rerank", "--reranking"}


class ShardCommand(msgspec.Struct, frozen=True):
    """What starts a further process of a runner, and where it is asked whether it is up.

    `url` "": it is up when it runs. `check_path` "": when it listens at `url`.
    """

    argv: tuple[str, ...]
    env: Mapping[str, str] = {}
    url: str = ""
    check_path: str = ""


class Command(msgspec.Struct, frozen=True):
    """Everything that starts, checks, reaches and stops one runner; every macro but `${PID}` filled in.

    `env` goes over the daemon's own environment. `url`: `http://127.0.0.1:5800` or `unix:/path`.
    `prefix`: put before each request's path. `check_path`: what to GET for its health; "": ready when it
    listens. `model_name`: replaces a request's "model" ("": does not). `trust_probe`: its listening socket
    belongs to no process of ours (a container's).
    """

    argv: tuple[str, ...]
    env: Mapping[str, str]
    url: str
    prefix: str = ""
    check_path: str = ""
    model_name: str = ""
    trust_probe: bool = False
    stop_template: tuple[str, ...] = ()
    shards: tuple[ShardCommand, ...] = ()

    def stop_argv(self, pid: int) -> tuple[str, ...] | None:
        """The command that stops the runner whose first process is `pid`; None: a signal does."""
        if not self.stop_template:
            return None
        return tuple(fill(word, {"PID": str(pid)}) for word in self.stop_template)

    def address(self, runner: str) -> Address:
        """Where requests for this runner go."""
        return Address(runner, self.url, self.prefix, self.model_name)


def strip_comments(text: str) -> str:
    """A command without its lines that begin with `#`."""
    return "\n".join(line for line in text.split("\n") if not line.lstrip().startswith("#"))


def split(text: str) -> tuple[str, ...]:
    """The arguments of a command: a shell's quoting rules, lines joined with or without a `\\` at their end.

    Raises ValueError for a quotation that does not end.
    """
    lines = []
    for line in strip_comments(text).split("\n"):
        bare = line.rstrip()
        lines.append(bare[:-1] if bare.endswith("\\") else line)
    return tuple(shlex.split("\n".join(lines)))


def parallel_flag(argv: Sequence[str]) -> int:
    """How many requests the command says that it serves at once (the last such flag); 0: it does not say."""
    found = 0
    words = _script(argv) or argv
    for i, word in enumerate(words):
        flag, equals, value = word.partition("=")
        if flag in _PARALLEL_FLAGS:
            number = value if equals else words[i + 1] if i + 1 < len(words) else ""
            if re.fullmatch(r"[1-9][0-9]{0,3}", number):
                found = int(number)
    return found


def usual_slots(argv: Sequence[str]) -> int:
    """How many requests a server of this kind takes at once unless it is told otherwise."""
    if any(name in word for word in argv for name in _LLAMA):
        return LLAMA_SLOTS
    return BATCHING_SLOTS if any(name in word for word in argv for name in _BATCHING) else 1


def embeds_only(argv: Sequence[str]) -> bool:
    """Whether the command says, as llama-server has it, that it generates no text."""
    return not _EMBEDDING_FLAGS.isdisjoint(_script(argv) or argv)


def starts_container(argv: Sequence[str]) -> bool:
    """Whether the command, or the script that it gives a shell, has a container engine run something, which
    is then no child of the command's."""
    script = _script(argv)
    words = argv if script is None else script
    names = [word.rpartition("/")[2] for word in words]
    engines = [i for i, name in enumerate(names) if name in _ENGINES]
    if script is None:
        engines = engines[:1] if engines and (not engines[0] or names[0] in _BEFORE_ENGINES) else []
    return any(_starts(words[i + 1 :]) for i in engines)


def _script(argv: Sequence[str]) -> list[str] | None:
    """The words of the script in `sh -c SCRIPT`; None: the command is another."""
    if len(argv) < 3 or argv[0].rpartition("/")[2] not in _SHELLS or not re.fullmatch(r"-\w*c", argv[1]):
        return None
    try:
        return list(shlex.shlex(argv[2], posix=True, punctuation_chars=True))
    except ValueError:
        return []


def _starts(words: Sequence[str]) -> bool:
    """Whether these words make a container engine, which is named before them, run something."""
    may_be_value = False
    for word in words:
        if word in _STARTS:
            return True
        option = word.startswith("-")
        if not (option or may_be_value or word in _KINDS):
            return False
        may_be_value = option and "=" not in word
    return False


def option_text(value: Option) -> str:
    """A launch option as a command has it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def fill_path(template: str, values: Mapping[str, str]) -> str:
    """As `fill`, for the path of a URL: values are percent-encoded, so that they cannot end the path."""
    return fill(template, {name: quote(value, safe="/") for name, value in values.items()})
