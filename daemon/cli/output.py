"""What the command lines print: tables and colours for a person, stable JSON lines for a script.

A person is who has a terminal. rich is imported only for tables and colours on one.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

from daemon.cli.describe import duration, size

EXIT_FAILED = 1


class Output:
    """Where a command's words go."""

    def __init__(self, as_json: bool = False) -> None:
        self.terminal = sys.stdout.isatty()
        self.machine = as_json or not self.terminal
        """JSON lines: asked for, or nobody is looking."""

    def line(self, fields: Mapping[str, Any]) -> None:
        """One JSON line."""
        self.raw(json.dumps(fields, separators=(",", ":"), ensure_ascii=False))

    def raw(self, text: str) -> None:
        """Text as it is."""
        sys.stdout.write(text + "\n")
        sys.stdout.flush()

    def text(self, text: str, *, style: str = "", dim: bool = False) -> None:
        """A line for a person. `style` is rich's (`red`, `bold green`)."""
        if self.terminal and (style or dim) and "NO_COLOR" not in os.environ:
            self._console().print(text, style=style or "dim", markup=False, highlight=False, soft_wrap=True)
        else:
            self.raw(text)

    def table(self, headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A table; nothing where it has no rows."""
        if not rows:
            return
        if not self.terminal:
            for row in [headers, *rows]:
                self.raw("\t".join(row))
            return
        from rich.table import Table

        table = Table(box=None, pad_edge=False, header_style="bold")
        for header in headers:
            table.add_column(header, no_wrap=True)
        for row in rows:
            table.add_row(*row)
        self._console().print(table)

    @contextmanager
    def progress(self, label: str) -> Iterator[None]:
        """A spinner while something takes its time."""
        if self.machine:
            yield
            return
        with self._console().status(label):
            yield

    def _console(self) -> Any:
        from rich.console import Console

        return Console(highlight=False)


def clock_time(at_ns: int) -> str:
    """UTC nanoseconds as the local time of day, with milliseconds."""
    seconds, rest = divmod(at_ns, 1_000_000_000)
    return time.strftime("%H:%M:%S", time.localtime(seconds)) + f".{rest // 1_000_000:03d}"


def failing(output: Output, *, seq: int, error: str) -> NoReturn:
    """Say what is wrong, and where, and exit with 1."""
    if output.machine:
        output.line({"ok": False, "seq": seq, "error": error})
    else:
        output.text(error, style="bold red")
    raise SystemExit(EXIT_FAILED)


__all__ = ["Output", "clock_time", "duration", "failing", "size"]
