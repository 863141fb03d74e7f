"""A terminal that is read key by key and drawn as a whole: entered, and left as it was, whatever happens."""

from __future__ import annotations

import os
import select
import shutil
import signal
import sys
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

ENTER, LEAVE = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"
"""The other screen, without a cursor; and back."""

HOME, TO_END, TO_LINE_END = "\x1b[H", "\x1b[J", "\x1b[K"

ESCAPE_S = 0.05
"""How long what follows an escape may take: a terminal sends it at once, a person does not."""

NAMED = {
    "\x1b[A": "up", "\x1b[B": "down", "\x1b[C": "right", "\x1b[D": "left", "\x1b[H": "home", "\x1b[F": "end",
    "\x1b[5~": "pageup", "\x1b[6~": "pagedown", "\x1b[1~": "home", "\x1b[4~": "end", "\x1bOA": "up",
    "\x1bOB": "down", "\x1bOC": "right", "\x1bOD": "left", "\r": "enter", "\n": "enter", "\x7f": "back",
    "\x08": "back", " ": "space", "\x1b": "escape", "\x04": "q",
}  # fmt: skip
"""Keys that are not what they print."""


class Left(Exception):
    """A signal asks the program to end: the terminal is put back first. `number` is the signal."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Terminal:
    """Standard input and output, in the hands of a program."""

    def __init__(self) -> None:
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_write, False)
        self._rest = b""

    @property
    def size(self) -> tuple[int, int]:
        """(columns, lines), now."""
        return shutil.get_terminal_size()

    @contextmanager
    def entered(self) -> Iterator[Terminal]:
        """Take the terminal, and give it back as it was."""
        fd = sys.stdin.fileno()
        before = termios.tcgetattr(fd)
        signals = {number: signal.getsignal(number) for number in (*ENDING, signal.SIGWINCH)}
        # a signal that comes just before the wait for a key ends that wait, too
        wakes = signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        try:
            for number in ENDING:
                signal.signal(number, _leave)
            signal.signal(signal.SIGWINCH, self._resized)
            tty.setcbreak(fd)
            mode = termios.tcgetattr(fd)
            mode[6][termios.VSUSP] = b"\0"  # stopped, it would leave the shell a terminal that it cannot use
            termios.tcsetattr(fd, termios.TCSANOW, mode)
            _write(ENTER)
            yield self
        finally:
            _write(LEAVE)
            termios.tcsetattr(fd, termios.TCSANOW, before)
            for number, handler in signals.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(wakes)
            os.close(self._wake_read)
            os.close(self._wake_write)

    def _resized(self, number: int, frame: FrameType | None) -> None:
        os.write(self._wake_write, b"\0")

    def key(self) -> str:
        """The next key, by its name or what it prints; `resize` when the size has changed, `q` at the end."""
        if not self._rest:
            ready, _, _ = select.select([sys.stdin.fileno(), self._wake_read], [], [])
            if self._wake_read in ready:
                os.read(self._wake_read, 4096)
                return "resize"
            self._rest = os.read(sys.stdin.fileno(), 1024)
            if self._rest == b"\x1b" and select.select([sys.stdin.fileno()], [], [], ESCAPE_S)[0]:
                self._rest += os.read(sys.stdin.fileno(), 1024)
        if not self._rest:
            return "q"
        return self._first()

    def _first(self) -> str:
        """Cut the first key off what has been read."""
        text = self._rest.decode("utf-8", "replace")
        known = max((name for name in NAMED if text.startswith(name)), key=len, default=text[0])
        self._rest = text[len(known) :].encode()
        return NAMED.get(known, known)

    def draw(self, lines: list[str]) -> None:
        """Show these lines, from the top; what was there is gone."""
        rows = self.size[1]
        body = "\r\n".join(line + TO_LINE_END for line in lines[:rows])
        _write(HOME + body + TO_END)


ENDING = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT)
"""What ends a program at a terminal."""


def _leave(number: int, frame: FrameType | None) -> None:
    raise Left(number)


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
