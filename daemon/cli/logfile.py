"""The log that a `runnerlog` command works on: opened for reading, folded up to a moment."""

from __future__ import annotations

import os
import shlex
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

import click

from daemon.cli.describe import printable
from daemon.cli.output import EXIT_FAILED, Output, day_and_time, failing
from daemon.cli.runnerd import EXIT_UNREACHABLE
from daemon.control.client import INTERFACE
from daemon.explain.unknown import UnknownSubject
from daemon.past import fold_one, nearest
from events.catalogue import Event, Fact
from events.envelope import LogError, decode
from events.reader import CursorPruned, Reader, is_damage
from statemachines.replay import Divergence
from statemachines.state import State

ANOTHER = "--log PATH names another; runnerctl status says where a running daemon has its own"


class Settings:
    """What the options before the command say."""

    def __init__(self, path: Path, as_json: bool | None) -> None:
        self.path = path
        self.output = Output(as_json)
        self.damaged = False
        """What has been read breaks off: a command that has said all that it could has failed then."""

    @contextmanager
    def open(self) -> Iterator[Reader]:
        """The log, open for reading; exits with 3 where that is impossible, with 1 where it has not what is
        asked about, or is damaged: of a segment that breaks off, once all is said of what comes before."""
        try:
            reader = Reader(self.path)
        except (LogError, OSError, sqlite3.Error) as error:
            self._say(f"{self._obstacle(error)}. {ANOTHER}")
            raise SystemExit(EXIT_UNREACHABLE) from None
        with reader:
            self._warn(reader)
            try:
                yield reader
            except UnknownSubject as error:
                self._refuse(error)
            except CursorPruned as error:
                raise click.UsageError(f"{error}: begin there") from None
            except (LogError, sqlite3.Error, Divergence) as error:
                found, advice = _located(reader, error), ""
                seq = getattr(found, "seq", 0)
                if seq and not reader.segment:
                    advice = f"; runnerlog salvage {shlex.quote(str(self.path))} NEW keeps what is before it"
                failing(self.output, seq=seq, error=str(found), advice=advice)

    def fold(self, reader: Reader, upto: int | None = None) -> State:
        """The state after event `upto` (None: the last). Exits with 1 where the log cannot be folded."""
        first = reader.base.seq
        if upto is not None and upto < first - 1:
            raise click.UsageError(f"the log begins with event {first}: what was before has been pruned")
        folded, head = nearest(reader, upto)
        for record in reader.records(head.seq, upto):
            fold_one(folded, decode(record))
        return folded

    def _obstacle(self, error: Exception) -> str:
        """Why the log cannot be opened."""
        if os.path.isdir(self.path):
            return f"{self.path} is a directory"
        if isinstance(error, FileNotFoundError):
            return str(error)
        if isinstance(error, PermissionError) or not os.access(self.path, os.R_OK):
            return f"this user may not read {self.path}"
        if not self.path.stat().st_size:
            return f"{self.path} is empty"
        return f"cannot open {self.path}: {error}"

    def _refuse(self, error: UnknownSubject) -> NoReturn:
        """As runnerctl does where the daemon refuses."""
        words = str(error)
        if error.comes is not None:
            words += f", at {' '.join(day_and_time(error.comes.at))}"
        if self.output.machine:
            fields = {error.field: error.subject, "nearest": error.nearest}
            self.output.line({"ok": False, "error": f"{INTERFACE}.{error.error}", **fields})
        click.echo(f"runnerlog: {printable(words)}", err=True)
        raise SystemExit(EXIT_FAILED)

    def _warn(self, reader: Reader) -> None:
        """Say that a segment breaks off: what is read of it looks like one that ends there."""
        if reader.damage is None:
            return
        words = f"{self.path} is damaged: {reader.damage}; only what is before is read"
        click.echo(f"runnerlog: {words}", err=True)
        self.damaged = True

    def _say(self, words: str) -> None:
        if self.output.machine:
            self.output.line({"ok": False, "error": words})
        click.echo(f"runnerlog: {words}", err=True)


def _located(reader: Reader, error: Exception) -> Exception:
    """Where SQLite says only that the file is damaged: the first event that cannot be read."""
    if isinstance(error, sqlite3.DatabaseError) and is_damage(error):
        with suppress(sqlite3.Error):  # it may be too damaged to tell
            try:
                reader.verify_chain()
            except LogError as found:
                return found
    return error


class Facts:
    """Events on their way to who takes them by steps, and so reads one fact ahead."""

    def __init__(self, events: Iterable[Event]) -> None:
        self._events = events
        self.stepped = 0
        """The fact of the step that is being taken."""

    def __iter__(self) -> Iterator[Event]:
        ahead = 0
        for event in self._events:
            if isinstance(event.body, Fact):
                self.stepped, ahead = ahead, event.seq
            yield event
        self.stepped = ahead
