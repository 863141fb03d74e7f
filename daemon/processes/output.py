"""What runners print: a file for each, which the runner appends to and the daemon reads and bounds.

Never a pipe: a runner that outlives its daemon would die at its next line.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path

from events.limits import OUTPUT_MAX_BYTES, RUNNER_LOG_MAX_BYTES

TAIL_BYTES = 64 * 1024
"""How much of a file's end is read for its last lines, and is kept when it is truncated."""


GATE_WORDS = re.compile(r"^gate: (?:line )?\d+: (?:exec: )?")
"""How the gate's shell begins when it cannot run a command."""


def last_lines(path: Path, lines: int) -> list[str]:
    """The last lines of a runner's output, cleaned: valid text, no control characters."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL_BYTES))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return []
    clean = ["".join(c for c in line if c.isprintable() or c == "\t") for line in text.splitlines()[-lines:]]
    return [GATE_WORDS.sub("the program cannot be started: ", line) for line in clean]


def last_words(path: Path, max_bytes: int = OUTPUT_MAX_BYTES) -> str:
    """The end of a failed runner's output, at most `max_bytes`, whole lines where that is possible."""
    text = "\n".join(line for line in last_lines(path, 20) if line.strip())
    data = text.encode()
    if len(data) <= max_bytes:
        return text
    return data[-max_bytes:].decode("utf-8", "ignore").partition("\n")[2] or text[-max_bytes // 4 :]


def bound(path: Path) -> None:
    """Once the file is too large, cut it in place to its end: the runner, which appends, does not notice.

    What the runner writes in the microseconds between may be lost or come before the older lines.
    """
    with suppress(OSError):
        if path.stat().st_size > RUNNER_LOG_MAX_BYTES:
            with path.open("rb") as file:
                file.seek(-TAIL_BYTES, os.SEEK_END)
                end = file.read(TAIL_BYTES)
                kept = end.partition(b"\n")[2] or end  # a progress bar may be one endless line
            os.truncate(path, 0)
            with path.open("ab") as file:
                file.write(kept)
