"""Starting a runner's process in two stages, so that none ever runs that the log does not know.

A gate (`/bin/sh`) is started first: it has the pid, start time, session and marker that the runner will have,
and waits for a line on its standard input. Only when `process.spawned` is durable is that line written, and
the gate becomes the runner. If the daemon dies before, the gate reads end of file and exits.
"""

from __future__ import annotations

import os
import re
import resource
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from daemon.processes.identity import MARKER

GATE = ("/bin/sh", "-c", 'read g && exec "$@" </dev/null', "gate")
NOT_INHERITED = ("NOTIFY_", "LISTEN_", "WATCHDOG_")
"""What systemd tells the daemon is not meant for its runners."""
_SHELL_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
KEEP_ENVIRONMENT = {"SPT_NOENV": "1"}
"""Or setproctitle, which vLLM calls, writes its title over the environment, and so over the marker."""


def environment(overlay: Mapping[str, str], marker: str) -> dict[str, str]:
    """The daemon's environment without systemd's messages, the model's own variables, and the marker.

    The gate's shell passes on only variables whose names a shell can have; see `with_odd_names`.
    """
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(NOT_INHERITED)}
    return {**KEEP_ENVIRONMENT, **inherited, **overlay, MARKER: marker}


def with_odd_names(argv: Sequence[str], overlay: Mapping[str, str]) -> Sequence[str]:
    """A command that gets from env(1) those of its model's variables that no shell passes on (`a.b`)."""
    odd = [f"{name}={value}" for name, value in overlay.items() if not _SHELL_NAME.fullmatch(name)]
    return ["/usr/bin/env", "--", *odd, *argv] if odd else argv


def start(argv: Sequence[str], env: Mapping[str, str], output: Path) -> subprocess.Popen[bytes]:
    """Start the gate, in a session of its own, its output appended to a file made anew. Raises OSError.

    Takes one to two milliseconds (vfork). The main thread is the parent, which lives as long as the daemon.
    """
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_TRUNC, 0o600)
    try:
        process = subprocess.Popen(
            [*GATE, *argv],
            env=dict(env),
            stdin=subprocess.PIPE,
            stdout=descriptor,
            stderr=descriptor,
            start_new_session=True,
            bufsize=0,
        )
    finally:
        os.close(descriptor)
    _reset_oom(process.pid)
    with suppress(OSError):
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, _OPEN_FILES)
    return process


_OPEN_FILES = resource.getrlimit(resource.RLIMIT_NOFILE)
"""What the daemon was started with."""


def raise_open_files() -> None:
    """As many connections as the system allows. A runner gets the old limit: select() ends at 1024."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (_OPEN_FILES[1], _OPEN_FILES[1]))


def lower_open_files() -> None:
    """As it was, for the next program in this process, which then knows what its runners are to get."""
    resource.setrlimit(resource.RLIMIT_NOFILE, _OPEN_FILES)


def _reset_oom(pid: int) -> None:
    """The daemon may be protected from the out-of-memory killer; its runners are not."""
    with suppress(OSError, ValueError):
        if int(Path("/proc/self/oom_score_adj").read_text()) < 0:
            Path(f"/proc/{pid}/oom_score_adj").write_text("0")


def is_gate(pid: int) -> bool:
    """Whether a process is a gate that its command has not replaced yet."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return words[: len(GATE)] == [os.fsencode(word) for word in GATE]


def open_gate(process: subprocess.Popen[bytes]) -> None:
    """Let the runner run."""
    if process.stdin is not None and not process.stdin.closed:
        with suppress(BrokenPipeError):
            process.stdin.write(b"go\n")
        process.stdin.close()


def shut(process: subprocess.Popen[bytes]) -> bool:
    """Whether the gate is still shut."""
    return process.stdin is not None and not process.stdin.closed


def shut_for_good(process: subprocess.Popen[bytes]) -> None:
    """Its command will not run: the gate, if it is still shut, ends."""
    if process.stdin is not None:
        process.stdin.close()
