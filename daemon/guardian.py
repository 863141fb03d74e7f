"""The guardian: a small process that ends a log's runners when no daemon has held the log for a while.

    python -I -S guardian.py LOG LOG_ID GRACE_S

It bounds the crash that nobody restarts. Standard library only, and as little of that as possible: it is
there for as long as the daemon is. One per log: it locks `<log>.guardian`, whose text is its pid.
"""

import fcntl
import os
import signal
import struct
import subprocess
import sys
import time

FLOCK = struct.Struct("hhqqi4x")  # Linux, 64 bits: type, whence, start, length, pid
POLL_S = 1.0
TERM_S = 10.0
"""From SIGTERM to SIGKILL, as for any runner."""


def is_held(path: str) -> bool:
    """Whether somebody holds the lock on a file's first byte. Takes nothing."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        asked = FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 1, 0)
        return bool(FLOCK.unpack(fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, asked))[0] != fcntl.F_UNLCK)
    finally:
        os.close(descriptor)


def is_marked(pid: int, log_id: str) -> bool:
    """Whether a process carries this log's marker."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return any(e.startswith(f"RUNNERD_RUNNER={log_id}/".encode()) for e in file.read().split(b"\0"))
    except OSError:
        return False


def marked(log_id: str) -> list[int]:
    """The live processes that carry this log's marker."""
    names = (name for name in os.listdir("/proc") if name.isdigit())
    return [pid for pid in map(int, names) if pid != os.getpid() and is_marked(pid, log_id)]


def send(pid: int, number: int, log_id: str) -> None:
    """Signal a marked process, and never one that has got its number since it was found."""
    try:
        descriptor = os.pidfd_open(pid)
    except OSError:
        return
    try:
        if is_marked(pid, log_id):
            signal.pidfd_send_signal(descriptor, number)
    except OSError:
        return
    finally:
        os.close(descriptor)


def end_all(log: str, log_id: str) -> None:
    """SIGTERM, then SIGKILL; unless a daemon comes back meanwhile, which then does as it sees fit."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if is_held(f"{log}.lock"):
            return
        for pid in marked(log_id):
            send(pid, number, log_id)
        give_up = time.monotonic() + TERM_S
        while marked(log_id) and time.monotonic() < give_up:
            if is_held(f"{log}.lock"):
                return
            time.sleep(POLL_S / 10)


def watch(log: str, log_id: str, grace_s: float) -> int:
    """Until nobody holds the log and nothing is left to guard, or another guardian is there.

    A process that cannot be ended is tried again after another `grace_s`.
    """
    own = os.open(f"{log}.guardian", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.fcntl(own, fcntl.F_OFD_SETLK, FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 1, 0))
    except OSError:
        return 0
    os.ftruncate(own, 0)
    os.pwrite(own, str(os.getpid()).encode(), 0)
    last_held = time.monotonic()
    while True:
        if is_held(f"{log}.lock"):
            last_held = time.monotonic()
        elif not marked(log_id) and not is_held(f"{log}.lock"):
            return 0
        elif time.monotonic() - last_held >= grace_s:
            end_all(log, log_id)
            last_held = time.monotonic()
        time.sleep(min(POLL_S, grace_s / 4))


def start(log: str, log_id: str, grace_s: float) -> None:
    """Start a guardian for a log, which outlives us; if there is one, the new one ends at once."""
    subprocess.Popen(
        [sys.executable, "-I", "-S", __file__, os.path.abspath(log), log_id, str(grace_s)],
        cwd="/",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def stop(log: str) -> None:
    """After a clean stop there is nothing to guard: end the guardian, if there is one."""
    path = f"{log}.guardian"
    if is_held(path):
        try:
            with open(path, encoding="ascii") as file:
                os.kill(int(file.read()), signal.SIGTERM)
        except (OSError, ValueError):
            return


if __name__ == "__main__":
    sys.exit(watch(sys.argv[1], sys.argv[2], float(sys.argv[3])))
