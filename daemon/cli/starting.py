"""Why `runnerd serve` does not start, or has ended: in words that say what to do, with the exit code."""

from __future__ import annotations

import os
import shlex
import sqlite3
from contextlib import suppress
from pathlib import Path

from daemon.cli.runnerd import EXIT_REFUSED, EXIT_UNREACHABLE, EXIT_USAGE
from daemon.control.server import answers, group_id
from daemon.driver import StepFailed
from daemon.past import EventUnfoldable
from daemon.preload import PreloadFailed, StartRefused
from daemon.service import Places, StopFailed
from events.envelope import EventUnreadable, LogError
from events.limits import EXIT_LOG_FAILED, EXIT_STEP_FAILED, SOCKET_PATH_BYTES
from events.lock import LogInUse, is_held, lock_path
from events.reader import ChainBroken
from events.schema import NotALog, SchemaTooNew
from events.store import StoreBroken
from events.witness import TailLost, witness_path
from events.words import read_only

ANOTHER_LOG = "--log PATH, or `eventLog` in the configuration, names another"
ANOTHER_SOCKET = "--socket PATH, or `controlSocket` in the configuration, names another"
ANOTHER_ADDRESS = "--listen HOST:PORT, or `listen` in the configuration, names another"

FAILURES = (
    StepFailed, StopFailed, StoreBroken, LogError, StartRefused, PreloadFailed, sqlite3.Error, OSError,
)  # fmt: skip
"""What a daemon can end with that is explained here; anything else is a mistake in the program."""

Ending = tuple[int, str]
"""An exit code, and what to tell the person at the keyboard."""


def obstacle(places: Places, *, given: bool = False, again: bool = False) -> Ending | None:
    """What can be seen to be in the way of a daemon before anything is opened. What changes after this look
    is found when it is opened, too. `given`: the control socket is there, and somebody else's;
    `again`: the one that answers may be our own."""
    log, control = places.log, places.control
    if os.path.isdir(log):
        return EXIT_UNREACHABLE, f"the log cannot be {log}: that is a directory. {ANOTHER_LOG}"
    if reason := _unwritable(log.parent):
        return EXIT_UNREACHABLE, f"cannot write the log {log}: {reason}. {ANOTHER_LOG}"
    if given:
        return None
    if (length := len(os.fsencode(control))) > SOCKET_PATH_BYTES:
        limit = f"is {length} bytes long, and Linux takes {SOCKET_PATH_BYTES}"
        return EXIT_USAGE, f"the path of the control socket {limit}: {control}\n{ANOTHER_SOCKET}"
    if places.group and (reason := _no_group(places.group)):
        return EXIT_USAGE, reason
    if os.path.exists(control) and not control.is_socket():
        return EXIT_REFUSED, f"{control} is no socket, and is left alone. {ANOTHER_SOCKET}"
    if not again and not is_held(lock_path(log)) and _answers(control):
        words = f"another daemon listens on {control}"
        return EXIT_REFUSED, f"cannot open the control socket: {words}. {ANOTHER_SOCKET}"
    if reason := _unwritable(control.parent):
        return EXIT_REFUSED, f"cannot make the control socket {control}: {reason}. {ANOTHER_SOCKET}"
    return None


def _answers(control: Path) -> bool:
    """Whether somebody listens on a control socket, as far as that can be told already."""
    with suppress(OSError):
        return answers(control)
    return False


def _no_group(group: str) -> str:
    """Why a group cannot be the control socket's; "" where it can, as far as can be seen."""
    try:
        group_id(group)
    except KeyError:
        return f"there is no group {group!r} on this machine; `controlGroup` names it in the configuration"
    return ""


def _unwritable(directory: Path) -> str:
    """Why nothing can be made in a directory, which itself may have to be made; "" where it can."""
    place = directory.absolute()
    while not os.path.exists(place) and place != place.parent:
        place = place.parent
    if not os.path.isdir(place):
        return f"{place} is no directory"
    if os.access(place, os.W_OK | os.X_OK):
        return ""
    if read_only(place):
        return f"{place} is on a read-only file system"
    return f"this user may not write in {place}"


def explain(error: BaseException, places: Places) -> Ending:
    """What one of FAILURES means, and its exit code."""
    if isinstance(error, StepFailed):
        return EXIT_STEP_FAILED, (
            f"a step failed, and nothing of it was logged: {error}. The fact is in {places.log}.breach; the "
            "runners live on, and the next start adopts them. This is a mistake in runnerd: please report it"
        )
    if isinstance(error, StoreBroken):
        return EXIT_LOG_FAILED, str(error)
    if isinstance(error, StartRefused):
        advice = "--lazy starts all the same, with what fits; --no-memcheck leaves this check out"
        return EXIT_USAGE, f"{error}\n{advice}"
    if isinstance(error, PreloadFailed):
        return EXIT_REFUSED, f"{error}\nNothing is left running; --lazy starts without it"
    if isinstance(error, StopFailed):
        return EXIT_REFUSED, str(error)
    if isinstance(error, OSError):
        return _explain_system(error, places)
    return EXIT_UNREACHABLE, _explain_log(error, places.log)


def _explain_log(error: BaseException, log: Path) -> str:
    if isinstance(error, LogInUse):
        return f"{error}: stop that daemon (runnerctl stop), or start this one on another log (--log PATH)"
    if isinstance(error, NotALog):
        return f"cannot open the log {log}: {error}. It is left as it is. {ANOTHER_LOG}"
    if isinstance(error, TailLost):
        witness = witness_path(log)
        return f"{error}. Restore {log} from a backup; or remove {witness}, and go on with what is left"
    if isinstance(error, ChainBroken | EventUnreadable | EventUnfoldable) or _is_corrupt(error):
        fresh = log.with_name(f"{log.stem}-salvaged{log.suffix}")
        return (
            f"the log {log} has been damaged or altered: {error}. It is left as it is. Restore it from a "
            "backup, or keep what is intact in a new log; this says how to go on with that:\n"
            f"  runnerlog salvage {shlex.quote(str(log))} {shlex.quote(str(fresh))}"
        )
    words = f"cannot open the log {log}: {error}"
    return words if isinstance(error, SchemaTooNew) else f"{words}. {ANOTHER_LOG}"


def _is_corrupt(error: BaseException) -> bool:
    """Whether it is SQLite that finds a file damaged."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_CORRUPT


def _explain_system(error: OSError, places: Places) -> Ending:
    """What the operating system refused. Where a file is named, it tells of which part it is."""
    # create_server adds what it tried, which the message says already
    reason = (error.strerror or str(error)).partition(" (while attempting")[0]
    if file := str(error.filename or ""):
        reason = f"{reason}: {file}"
    if _concerns(file, places.log):
        return EXIT_UNREACHABLE, f"cannot open the log {places.log}: {reason}. {ANOTHER_LOG}"
    if _concerns(file, places.control) or str(places.control) in reason:
        return EXIT_REFUSED, f"cannot open the control socket: {reason}. {ANOTHER_SOCKET}"
    if reason.startswith("cannot listen"):
        return EXIT_REFUSED, f"{reason}. {ANOTHER_ADDRESS}"
    return EXIT_REFUSED, reason


def _concerns(file: str, path: Path) -> bool:
    """Whether an error's file is this one, one beside it with a longer name, or a folder that it is in."""
    found, whole = Path(file).absolute(), path.absolute()
    return bool(file) and (str(found).startswith(str(whole)) or whole.is_relative_to(found))
