"""Running a command as a person would: on a terminal of a given width."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time
from collections.abc import Callable

from tests.integration.live import PATIENCE_S, Command

ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Screen:
    """What a command has shown: its exit code, the text with escapes, and the lines that a person reads."""

    def __init__(self, code: int, text: str) -> None:
        self.code = code
        self.text = text
        plain = ESCAPE.sub("", text)
        self.lines = [line.rpartition("\r")[2].rstrip() for line in plain.split("\n")]

    @property
    def plain(self) -> str:
        """The lines."""
        return "\n".join(self.lines)


def shown(
    command: Command,
    *,
    columns: int = 80,
    env: dict[str, str] | None = None,
    lines: int = 24,
    react: Callable[[str, int], str | None] = lambda text, pid: None,
) -> Screen:
    """Run a command on a terminal of its own. `react` is called with what was shown so far, and its pid;
    what it returns is typed."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
    environ = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES", "NO_COLOR")}
    environ |= {"TERM": "xterm-256color", **(env or {})}
    process = subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, env=environ, start_new_session=True
    )
    os.close(theirs)
    data, deadline = b"", time.monotonic() + PATIENCE_S
    try:
        while time.monotonic() < deadline:
            if not select.select([ours], [], [], PATIENCE_S)[0]:
                break
            try:
                part = os.read(ours, 65536)
            except OSError:  # EIO: its last holder has closed it
                part = b""
            if not part:
                return Screen(process.wait(PATIENCE_S), data.decode().replace("\r\n", "\n"))
            data += part
            typed = react(data.decode(errors="replace"), process.pid)
            if typed:
                os.write(ours, typed.encode())
        raise AssertionError(f"{command} does not end:\n{data.decode(errors='replace')}")
    finally:
        os.close(ours)
        if process.poll() is None:
            process.kill()
            process.wait()
