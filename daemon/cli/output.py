"""What the command lines print: tables and colours for a person, stable JSON lines for a script.

A person is who has a terminal, or says --no-json. rich is imported only for tables, colours and progress.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, NoReturn

import click

from daemon.cli.describe import describe, duration, named, size
from daemon.cli.runnerd import EXIT_INTERRUPTED, legible

EXIT_FAILED = 1
EXIT_PIPE = 141  # the same of SIGPIPE: nobody reads what is printed

GAP = 2
LEAST_COLUMN = 8
LONG_COLUMN = 28  # what is longer (names of models) is cut before a column is left out
SECONDS = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))

LEAST_TEXT = 20
"""Text is not made narrower than this."""
_MEASURE = re.compile(r"\d (?:[KMGT]iB|B|ms|s|min|h|d|%)(?!\w)(?: \d+ (?:s|min|h)(?!\w))?")
"""The end of a size, a duration or a share."""
NO_BREAK = "\u00a0"

Row = Mapping[str, Any]


class Column(NamedTuple):
    """A column of a table. On a narrow terminal those with the highest `drop` go first; 0 stays."""

    heading: str
    cell: Callable[[Any], str]
    right: bool = False
    drop: int = 0
    style: Callable[[Any], str] = lambda row: ""


class Output:
    """Where a command's words go. `as_json` None: JSON lines where nobody is looking."""

    def __init__(self, as_json: bool | None = None) -> None:
        self.terminal = sys.stdout.isatty()
        self.machine = not self.terminal if as_json is None else as_json
        """JSON lines, rather than what a person reads."""
        self.width = shutil.get_terminal_size().columns
        self._plain = not self.terminal or bool(os.environ.get("NO_COLOR"))
        self._day = ""

    def line(self, fields: Row) -> None:
        """One JSON line, which is JSON under any locale."""
        ascii = (sys.stdout.encoding or "").lower() != "utf-8"
        self.raw(json.dumps(fields, separators=(",", ":"), ensure_ascii=ascii))

    def raw(self, text: str) -> None:
        """Text as it is. Exits silently where nobody reads it any more."""
        try:
            sys.stdout.write(text + "\n")
            sys.stdout.flush()
        except OSError as error:
            _unwritten(error)

    @contextmanager
    def stream(self) -> Iterator[BinaryIO]:
        """Standard output for bytes, with what goes wrong as in `raw`."""
        try:
            yield sys.stdout.buffer
            sys.stdout.buffer.flush()
        except OSError as error:
            _unwritten(error)

    def text(self, text: str, *, style: str = "", dim: bool = False) -> None:
        """A line for a person. `style` is rich's (`red`, `bold green`)."""
        if (style or dim) and not self._plain:
            self.console().print(text, style=style or "dim", markup=False, highlight=False, soft_wrap=True)
        else:
            self.raw(text)

    def event(self, at_ns: int, seq: int, subject: str, payload: dict[str, Any], *, decided: bool) -> None:
        """One event for a person: when, its number, what happened. `payload` has its type. What was decided
        is set in below the fact that it follows from."""
        type = payload.pop("type")
        what = named(describe(type, subject, payload))
        dim = type in ("deadline.passed", "memory.measured")
        self.moment(at_ns, seq, what, mark="└ " if decided else "", dim=dim)

    def moment(self, at_ns: int, seq: int, text: str, *, mark: str = "", dim: bool = False) -> None:
        """What happened at a time, beside it and its number; a new day has a line of its own."""
        day, clock = day_and_time(at_ns)
        if day != self._day:
            self._day = day
            self.text(day, dim=True)
        head = f"{clock} {seq:>6}  {mark}"
        lines = wrapped(text, self.width, head, " " * len(head))
        self.text("\n".join(lines) or head, dim=dim)

    def table(self, columns: Sequence[Column], rows: Sequence[Any]) -> None:
        """A table that fits the terminal; nothing where it has no rows."""
        if not rows:
            return
        from rich.table import Table
        from rich.text import Text

        fit = fitting(columns, rows, self.width)
        table = Table(box=None, pad_edge=False, padding=(0, fit.gap, 0, 0), header_style="bold")
        for column in fit.columns:
            table.add_column(
                fit.headings.get(column.heading, column.heading),
                justify="right" if column.right else "left",
                vertical="bottom",
                no_wrap=True,
                max_width=fit.cut.get(column.heading),
            )
        for row in rows:
            table.add_row(*(Text(column.cell(row), style=column.style(row)) for column in fit.columns))
        console = self.console()
        with console.capture() as capture:
            console.print(table)
        for line in capture.get().splitlines():
            self.raw(line.rstrip())

    @contextmanager
    def progress(self, label: str) -> Iterator[Callable[[str], None]]:
        """A spinner while something takes its time; call what it gives to change the words."""
        if self.machine or not self.terminal:
            yield lambda text: None
            return
        from rich.text import Text

        with self.console().status(Text(label)) as status:
            yield lambda text: status.update(Text(text))

    def console(self) -> Any:
        """rich's, as wide as the terminal, without a single escape where colours are not wanted."""
        from rich.console import Console

        if self._plain:
            return Console(highlight=False, width=self.width, color_system=None)
        return Console(highlight=False, width=self.width)


def _unwritten(error: OSError) -> NoReturn:
    """Exit, silently where nobody reads what is printed."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if isinstance(error, BrokenPipeError):
        raise SystemExit(EXIT_PIPE) from None
    program = os.path.basename(sys.argv[0])
    click.echo(f"{program}: cannot write what it prints: {error.strerror}", err=True)
    raise SystemExit(EXIT_FAILED) from None


def wrapped(text: str, width: int, first: str = "", rest: str = "") -> list[str]:
    """Text in lines that fit, the first behind `first`, the others behind `rest`. No number is torn from its
    unit."""
    joined = _MEASURE.sub(lambda found: found[0].replace(" ", NO_BREAK), text)
    lines = textwrap.wrap(joined, max(LEAST_TEXT, width), initial_indent=first, subsequent_indent=rest)
    return [line.replace(NO_BREAK, " ") for line in lines]


class Fit(NamedTuple):
    """How a table fits: its columns, those of their headings that take several lines, the width of columns
    that must be cut, and the spaces between two."""

    columns: list[Column]
    headings: dict[str, str]
    cut: dict[str, int]
    gap: int


def fitting(columns: Sequence[Column], rows: Sequence[Any], width: int) -> Fit:
    """The columns that are worth showing and fit. Those that are empty in every row are left out. Where there
    is too little room headings take several lines, then a very long name is cut, then columns are dropped,
    and then all stand closer together."""
    from rich.cells import cell_len

    shown = [column for column in columns if not column.drop or any(column.cell(row) for row in rows)]
    cells = {column.heading: max(cell_len(column.cell(row)) for row in rows) for column in shown}
    wide = {heading: max(cell_len(heading), cells[heading]) for heading in cells}
    gap, headings = GAP, dict[str, str]()

    def excess() -> int:
        return sum(wide[column.heading] + gap for column in shown) - gap - width

    def longest() -> str:
        return max((column.heading for column in shown), key=lambda heading: wide[heading])

    for heading in cells if excess() > 0 else ():
        wide[heading] = max(cells[heading], *map(cell_len, heading.split() or [""]))
        headings[heading] = "\n".join(textwrap.wrap(heading, max(1, wide[heading])))
    name = longest()
    whole = wide[name]
    wide[name] -= min(max(0, excess()), max(0, whole - LONG_COLUMN))
    while excess() > 0 and any(column.drop for column in shown):
        shown.remove(max(shown, key=lambda column: column.drop))
    gap = GAP if excess() <= 0 else 1
    wide[name] = min(whole, wide[name] - min(0, excess()))
    cut = {name: wide[name]} if wide[name] < whole else {}
    if excess() > 0:
        name = longest()
        cut[name] = max(LEAST_COLUMN, wide[name] - excess())
    return Fit(shown, headings, cut, gap)


def day_and_time(at_ns: int) -> tuple[str, str]:
    """UTC nanoseconds as the local date and time of day, with milliseconds."""
    seconds, rest = divmod(at_ns, 1_000_000_000)
    local = time.localtime(seconds)
    return time.strftime("%Y-%m-%d", local), time.strftime("%H:%M:%S", local) + f".{rest // 1_000_000:03d}"


def age(ns: int | None, otherwise: str = "", *, up: bool = False) -> str:
    """A duration for a column, in one whole unit: `7 s`, `5 min`, `3 h`, `4 d`; `otherwise` for None. What is
    left of a time is rounded `up`, so that ten minutes do not begin as nine."""
    if ns is None:
        return otherwise
    seconds = _whole(max(0, ns), 1_000_000_000, up=up)
    unit, name = next(((unit, name) for unit, name in SECONDS if seconds >= 2 * unit), (1, "s"))
    return f"{_whole(seconds, unit, up=up)} {name}"


def _whole(number: int, unit: int, *, up: bool) -> int:
    return -(-number // unit) if up else number // unit


def memory(sizes: Mapping[str, int], unknown: str = "unknown") -> str:
    """Sizes for a column: `6.0 GiB gpu0`; the host's, and those whose device is open, without its name."""
    named = (f"{size(n)} {device if device != 'host' else ''}".rstrip() for device, n in sizes.items())
    return ", ".join(named) or unknown


def failing(output: Output, *, seq: int, error: str, advice: str = "") -> NoReturn:
    """Say what is wrong, and where, and what a person can do about it; exit with 1."""
    if output.machine:
        output.line({"ok": False, "seq": seq, "error": error})
    else:
        output.text(error + advice, style="bold red")
    raise SystemExit(EXIT_FAILED)


as_json = click.option(
    "--json/--no-json",
    "as_json",
    default=None,
    help="Stable JSON lines, or what a person reads (default: by whether there is a terminal).",
)
"""The option of runnerctl and runnerlog."""


ANY_PATH = click.Path(path_type=Path, readable=False)
"""A path that is looked at when it is used: what is wrong with it is then told in our words."""


class Number(click.IntRange):
    """A whole number, and called so where it is none."""

    name = "whole number"


def run(command: click.Group, program: str) -> int:
    """Run a command line; its exit code. Usage errors are 2, an interruption is 130 and says nothing."""
    legible()
    try:
        code = command.main(prog_name=program, standalone_mode=False)
        return code if isinstance(code, int) else 0
    except click.NoSuchOption as error:
        if any(error.option_name in (*each.opts, *each.secondary_opts) for each in command.params):
            words = f"{error.option_name} comes before the command: {program} {error.option_name} …"
            click.UsageError(words, error.ctx).show()
        else:
            error.show()
        return error.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except click.Abort:
        return EXIT_INTERRUPTED


__all__ = [
    "Column",
    "Number",
    "Output",
    "age",
    "as_json",
    "day_and_time",
    "duration",
    "failing",
    "fitting",
    "memory",
    "run",
    "size",
    "wrapped",
]
