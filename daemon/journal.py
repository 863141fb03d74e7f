"""The daemon's journal: one line for what a person wants to know of, as it becomes durable.

Requests are not in it (the log has them); loads, ends, failures, claims and alarms are. Where standard error
is systemd's journal, each line has fields to be found by: `journalctl -u runnerd RUNNERD_MODEL=llama`.
"""

from __future__ import annotations

import logging
import os
import socket
import struct
from collections.abc import Mapping

import msgspec

from daemon.cli.describe import describe
from daemon.limits import JOURNAL_LINE_BYTES
from events import catalogue as c
from events.catalogue import Event
from statemachines.state import State

log = logging.getLogger("runnerd")

LEVELS: dict[type, int] = {
    c.RunnerLoad: logging.INFO,
    c.RunnerDrain: logging.INFO,
    c.RunnerStop: logging.INFO,
    c.RunnerKill: logging.WARNING,
    c.RunnerStuck: logging.ERROR,
    c.RunnerUnloaded: logging.INFO,
    c.RunnerFailed: logging.WARNING,
    c.RunnerLost: logging.WARNING,
    c.ModelCooling: logging.WARNING,
    c.ModelCrowded: logging.WARNING,
    c.ModelDismissed: logging.WARNING,
    c.ClaimMade: logging.INFO,
    c.LeaseRefused: logging.WARNING,
    c.LeaseRevoked: logging.INFO,
    c.RunnerLeased: logging.INFO,
    c.ProbeAnswered: logging.INFO,
    c.LogResumed: logging.WARNING,
    c.LogTailLost: logging.WARNING,
    c.LogSalvaged: logging.WARNING,
    c.BreachRecorded: logging.ERROR,
    c.ConfigChanged: logging.INFO,
    c.StopRequested: logging.INFO,
    c.PinRequested: logging.INFO,
    c.ProfileRequested: logging.INFO,
}

SOCKET = "/run/systemd/journal/socket"
LEVEL_TO_PRIORITY = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))
"""Python's levels as syslog's priorities."""

FIELDS = "runnerd"
"""The attribute of a record that holds its fields."""


def about(*, model: str = "", runner: str = "", request: str = "", seq: int = 0) -> dict[str, object]:
    """What a line is about: `extra` of a call to a logger."""
    given = {"MODEL": model, "RUNNER": runner, "REQUEST": request, "SEQ": str(seq) if seq else ""}
    return {FIELDS: {name: value for name, value in given.items() if value}}


class Journal:
    """Writes events' lines, and knows of which model the runners were that they name."""

    def __init__(self, state: State) -> None:
        self._models = {runner.id: runner.model for runner in state.runners.values()}

    def write(self, event: Event) -> None:
        """Write an event's line, if it deserves one."""
        level = LEVELS.get(type(event.body))
        if level is None:
            return
        body = msgspec.to_builtins(event.body)
        if isinstance(event.body, c.RunnerLoad):
            self._models[event.subject] = event.body.model
        extra = about(seq=event.seq, **self._whom(event.subject, body))
        if isinstance(event.body, c.RunnerUnloaded | c.RunnerFailed | c.RunnerLost):
            self._models.pop(event.body.runner, None)
        text = describe(body.pop("type"), event.subject, body)
        log.log(level, "#%d %s", event.seq, text, extra=extra)

    def _whom(self, subject: str, body: Mapping[str, object]) -> dict[str, str]:
        """The model, runner and request that an event is about."""
        runner = subject if subject in self._models else str(body.get("runner") or "")
        model = str(body.get("model") or str(body.get("demand") or "").partition("?")[0])
        cause, _, request = str(body.get("reason") or "").partition(" ")
        return {
            "model": model or self._models.get(runner, ""),
            "runner": runner,
            "request": str(body.get("request") or (request if cause == "request" else "")),
        }


class JournalHandler(logging.Handler):
    """Sends records to systemd's journal, by its native protocol. Raises OSError where there is none."""

    def __init__(self, path: str = SOCKET) -> None:
        super().__init__()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._socket.connect(path)

    def emit(self, record: logging.LogRecord) -> None:
        """Send a record. What the journal does not take goes to standard error, its priority in front; what
        that does not take either is lost: who logs something is not to fail for it."""
        try:
            self._send(record)
        except Exception:
            self.handleError(record)

    def _send(self, record: logging.LogRecord) -> None:
        message = self.format(record)
        priority = next((p for level, p in LEVEL_TO_PRIORITY if record.levelno >= level), 7)
        fields = {"MESSAGE": message, "PRIORITY": str(priority), "SYSLOG_IDENTIFIER": "runnerd"}
        fields |= {f"RUNNERD_{name}": value for name, value in getattr(record, FIELDS, {}).items()}
        try:
            self._socket.send(encode(fields))
        except OSError:
            lines = "".join(f"<{priority}>{line}\n" for line in message.splitlines())
            os.write(2, lines.encode("utf-8", "replace"))


def encode(fields: Mapping[str, str]) -> bytes:
    """A datagram of the journal's protocol. What is longer than a line for people can be is cut."""
    parts = []
    for name, text in fields.items():
        value = text.encode("utf-8", "replace")[:JOURNAL_LINE_BYTES]
        if b"\n" in value:
            parts.append(b"%s\n%s%s\n" % (name.encode(), struct.pack("<Q", len(value)), value))
        else:
            parts.append(b"%s=%s\n" % (name.encode(), value))
    return b"".join(parts)


def is_journal(environ: Mapping[str, str]) -> bool:
    """Whether standard error is a stream of systemd's journal, and not what somebody has put in its place."""
    try:
        stat = os.fstat(2)
    except OSError:
        return False
    return environ.get("JOURNAL_STREAM") == f"{stat.st_dev}:{stat.st_ino}"


def set_up(environ: Mapping[str, str]) -> None:
    """Where the daemon's messages go: to the journal with their fields, else to standard error."""
    root = logging.getLogger()
    root.setLevel(logging.INFO)
    handler: logging.Handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(levelname).1s %(message)s"))
    if is_journal(environ):
        try:
            handler = JournalHandler()
        except OSError:
            handler.setFormatter(Prefixed())
    root.addHandler(handler)


class Prefixed(logging.Formatter):
    """Lines with their priorities in front, as the journal reads them from a stream."""

    def format(self, record: logging.LogRecord) -> str:
        """One record, each of its lines with the prefix."""
        priority = next((p for level, p in LEVEL_TO_PRIORITY if record.levelno >= level), 7)
        return "\n".join(f"<{priority}>{line}" for line in super().format(record).splitlines())


__all__ = ["Journal", "JournalHandler", "about", "encode", "is_journal", "set_up"]
