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
    """Whether somebody holds the lock on a file's first byte, or that cannot be told. Takes nothing."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:  # no descriptor left on the machine, for instance: no reason to end anything
        return True
    try:
        asked = FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 1, 0)
        return bool(FLOCK.unpack(fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, asked))[0] != fcntl.F_UNLCK)
    finally:
        os.close(descriptor)


def is_held_for(log: str, log_id: str) -> bool:
    """Whether a daemon holds the log, and no other log has been put in its place."""
    if not is_held(f"{log}.lock"):
        return False
    try:
        with open(f"{log}.lock", encoding="ascii", errors="replace") as file:
            _, _, held = file.read().strip().partition("\n")
    except OSError:
        return True
    return held in ("", log_id)


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


def group_of(pid: int) -> int:
    """A process's group; 0 where it is gone, or a zombie, which is as good as gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            state, _, group = file.read().rpartition(b")")[2].split()[:3]
    except (OSError, ValueError):
        return 0
    return 0 if state in b"ZX" else int(group)


def guarded(log_id: str) -> list[int]:
    """What is to be ended: the live processes with the marker, and the groups that one of them leads, whose
    others may have lost it (a process can write its title over its environment)."""
    found = marked(log_id)
    if not found:
        return []
    names = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    return found + [pid for pid in names if pid not in found and group_of(pid) in found]


def send(pid: int, number: int, log_id: str) -> None:
    """Signal a process, and never one that has got its number since it was found."""
    try:
        descriptor = os.pidfd_open(pid)
    except OSError:
        return
    try:
        if is_marked(pid, log_id) or is_marked(group_of(pid), log_id):
            signal.pidfd_send_signal(descriptor, number)
    except OSError:
        return
    finally:
        os.close(descriptor)


def end_all(log: str, log_id: str) -> None:
    """SIGTERM, then SIGKILL; unless a daemon comes back meanwhile, which then does as it sees fit."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if is_held_for(log, log_id):
            return
        for pid in reversed(guarded(log_id)):  # leaders last: their groups are known by them
            send(pid, number, log_id)
        give_up = time.monotonic() + TERM_S
        while guarded(log_id) and time.monotonic() < give_up:
            time.sleep(POLL_S / 10)


def take(path: str) -> int:
    """Take the guardian's lock, and say who has it: its descriptor, or -1 where another has it."""
    own = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.fcntl(own, fcntl.F_OFD_SETLK, FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 1, 0))
    except OSError:
        os.close(own)
        return -1
    os.ftruncate(own, 0)
    os.pwrite(own, str(os.getpid()).encode(), 0)
    return own


def guard(log: str, log_id: str, grace_s: float) -> None:
    """Until nobody holds the log and nothing is left to guard.

    A process that cannot be ended is tried again after another `grace_s`.
    """
    last_held = time.monotonic()
    while True:
        if is_held_for(log, log_id):
            last_held = time.monotonic()
        elif not guarded(log_id):
            return
        elif time.monotonic() - last_held >= grace_s:
            end_all(log, log_id)
            last_held = time.monotonic()
        time.sleep(min(POLL_S, grace_s / 4))


def watch(log: str, log_id: str, grace_s: float) -> int:
    """Guard, unless another guardian of this log does; that of a log which was there before is waited for. A
    daemon that came while this one was leaving, and whose own guardian therefore left, is found by a last
    look after the lock was given back."""
    path = f"{log}.guardian"
    while True:
        own = take(path)
        if own >= 0:
            guard(log, log_id, grace_s)
            os.close(own)
            if not is_held_for(log, log_id):
                return 0
        elif is_of_another(path, log, log_id):
            time.sleep(POLL_S)
        else:
            return 0


def guardian_of(path: str, log: str) -> tuple[int, list[bytes]]:
    """The guardian that a file names: its pidfd, and its command's words. Raises OSError or ValueError where
    it names none, or a number that now is another process's."""
    with open(path, encoding="ascii") as file:
        pid = int(file.read())
    descriptor = os.pidfd_open(pid)
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            words = file.read().split(b"\0")
        if os.fsencode(__file__) not in words or os.fsencode(os.path.abspath(log)) not in words:
            raise ValueError(f"process {pid} is no guardian of {log}")
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor, words


def is_of_another(path: str, log: str, log_id: str) -> bool:
    """Whether the guardian is one of another log, which lay there before."""
    try:
        descriptor, words = guardian_of(path, log)
    except (OSError, ValueError):
        return False
    os.close(descriptor)
    return log_id.encode() not in words


def start(log: str, log_id: str, grace_s: float) -> None:
    """Start a guardian for a log, which outlives us; if there is one, the new one ends at once."""
    subprocess.Popen(
        [sys.executable, "-I", "-S", __file__, os.path.abspath(log), log_id, str(grace_s)],
        cwd="/",
        env={k: v for k, v in os.environ.items() if not k.startswith(("NOTIFY_", "LISTEN_", "WATCHDOG_"))},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def stop(log: str) -> None:
    """After a clean stop there is nothing to guard: end the guardian, if there is one; it would go by itself.

    A number in its file that now is another process's is left alone.
    """
    path = f"{log}.guardian"
    if not is_held(path):
        return
    try:
        descriptor, _ = guardian_of(path, log)
    except (OSError, ValueError):
        return
    try:
        signal.pidfd_send_signal(descriptor, signal.SIGTERM)
    except OSError:
        return
    finally:
        os.close(descriptor)


if __name__ == "__main__":
    sys.exit(watch(sys.argv[1], sys.argv[2], float(sys.argv[3])))
