"""`runnerlog prune` and `runnerlog salvage`: what a person does to a log while no daemon has it."""

from __future__ import annotations

import shlex
import sqlite3
import time
from pathlib import Path
from typing import NoReturn

import click
import msgspec

from daemon.cli.logfile import Settings
from daemon.cli.moments import FORMS, Moment, Past, last_by
from daemon.cli.output import day_and_time, failing, size
from daemon.cli.runnerd import EXIT_REFUSED
from daemon.config.units import duration_ns, show_duration, size_bytes
from daemon.keeper import ArchiveFailed, Order, cuts
from daemon.keeping import archive_path
from daemon.limits import CARRY_EVENTS
from daemon.salvage import NothingBroken, NothingIntact, Salvaged
from daemon.salvage import salvage as salvage_log
from events.envelope import LogError
from events.lock import LogInUse, hold_lock, is_held, lock_path
from events.pruning import prune as prune_log
from events.pruning import shrink
from events.reader import Reader
from events.witness import witness_path
from events.words import refused

WRITING = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR)
"""Errors of who writes: a log that is only read cannot be at fault."""


class Keep(click.ParamType[tuple[int, int]]):
    """A size or a duration: (bytes, ns), of which one is 0."""

    name = "SIZE|AGE"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int]:
        """Raises BadParameter."""
        if isinstance(value, tuple):
            return value
        text = str(value).strip()
        size, age = (None, None) if text.isdigit() else (size_bytes(text), duration_ns(text))
        if not size and not age:
            self.fail(f"{text!r} is neither a size (64MiB) nor a duration (30d)", param, ctx)
        return size or 0, age or 0


@click.command()
@click.option("--before", type=Moment(), help=f"What is older than this moment: {FORMS}.")
@click.option("--keep", type=Keep(), help="What is above this size, or older than this: 64MiB, 30d.")
@click.option("--discard", is_flag=True, help="Archive nothing: what is pruned is gone.")
@click.option("--dry-run", is_flag=True, help="Only say what would go.")
@click.pass_obj
def prune(
    settings: Settings,
    before: int | Past | None,
    keep: tuple[int, int] | None,
    discard: bool,
    dry_run: bool,
) -> None:
    """Archive and remove the beginning of a log.

    It goes into LOG.archive. No daemon may have the log open: a running one does this by itself, by
    `retention` in its configuration. Only what lies before a snapshot can go; there is one for each 5,000
    events.
    """
    if (before is None) == (keep is None):
        raise click.UsageError("one of --before and --keep says what is to go")
    with settings.open() as reader:
        order = Order(
            log=str(settings.path),
            every=0,
            size_bytes=keep[0] if keep else 0,
            age_ns=keep[1] if keep else 0,
            before=0 if before is None else last_by(reader, before) + isinstance(before, Past),
            archive="" if discard or dry_run else str(archive_path(settings.path)),
        )
        if reader.segment:
            _refuse(settings, f"{settings.path} is a segment of a log: it has been pruned already")
        if dry_run:
            upto = max((cut.upto for cut in cuts(reader, order, time.time_ns())), default=0)
            _tell_pruned(settings, reader, upto, 0, order)
            return
        try:
            lock = hold_lock(settings.path)
        except LogInUse as error:
            _refuse(
                settings,
                f"{error}. A running daemon prunes its log by itself, by `retention` in its configuration; "
                "to do it by hand, stop it first (runnerctl stop)",
            )
        except OSError as error:
            _refuse(settings, f"cannot write {lock_path(settings.path)}: {error.strerror}")
        with open(lock, "rb"):
            try:
                upto, freed = _prune(settings, reader, order)
            except ArchiveFailed as error:
                _refuse(settings, f"nothing was pruned: {error}; make room there, or prune with --discard")
        _tell_pruned(settings, reader, upto, freed, order)


def _prune(settings: Settings, reader: Reader, order: Order) -> tuple[int, int]:
    """Prune; up to which event, and how many bytes of the file that freed."""
    path, upto = settings.path, 0
    before = path.stat().st_size
    found = []
    with settings.output.progress("the archive" if order.archive else "the chain") as say:
        for cut in cuts(reader, order, time.time_ns()):
            say(f"events up to {cut.upto}")
            found.append(cut)
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        for cut in found:
            prune_log(connection, cut.upto, bytes.fromhex(cut.hash))
            upto = cut.upto
        while shrink(connection, 0):
            pass
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    finally:
        connection.close()
    return upto, before - path.stat().st_size


def _tell_pruned(settings: Settings, reader: Reader, upto: int, freed: int, order: Order) -> None:
    output, first, last = settings.output, reader.base.seq, reader.head().seq
    dry = not order.archive and not freed and upto
    if output.machine:
        output.line({"ok": True, "first": first, "upto": upto, "last": last, "freed_bytes": freed})
    elif not upto:
        output.text(f"nothing goes: {_why_kept(reader, order)}", dim=True)
    elif dry:
        output.text(f"events {first} to {upto} of {last} would go")
    else:
        where = f"archived in {order.archive} and pruned" if order.archive else "pruned"
        output.text(f"events {first} to {upto} {where}: {size(max(0, freed))} less")
        output.text(f"the log now has events {upto + 1} to {last}, and takes {size(reader.used_bytes())}")


def _why_kept(reader: Reader, order: Order) -> str:
    """Why all of a log is kept."""
    first, last, used = reader.base.seq, reader.head().seq, reader.used_bytes()
    if last < first:
        return "the log has no events"
    if order.size_bytes and used <= order.size_bytes:
        return f"the log takes {size(used)}, and {size(order.size_bytes)} may stay"
    (oldest,) = reader.records(first - 1, first)
    if order.age_ns and oldest.at >= time.time_ns() - order.age_ns:
        day, clock = day_and_time(oldest.at)
        return f"the oldest event is of {day} {clock[:8]}, and may stay for {show_duration(order.age_ns)}"
    if order.before and order.before <= first:
        return f"the log begins with event {first}, and nothing is before that"
    only = "only what lies before a snapshot can go, and"
    snapshot = min((s.upto for s in reader.snapshots() if s.upto >= first), default=0)
    if not snapshot:
        return f"{only} of events {first} to {last} there is none yet (one for each {CARRY_EVENTS:,} events)"
    return f"{only} the first one stands for events {first} to {snapshot}, some of which are to stay"


@click.command()
@click.argument("broken", type=click.Path(path_type=Path))
@click.argument("new", type=click.Path(path_type=Path))
@click.pass_obj
def salvage(settings: Settings, broken: Path, new: Path) -> None:
    """Copy what is intact of a log into a new one.

    That is every step before the first that is damaged. BROKEN is only read. NEW keeps its identity, so that
    a daemon that goes on with it adopts the runners that still live; an event in it says what was lost.
    """
    output = settings.output
    if is_held(lock_path(broken)):
        _refuse(settings, f"a daemon has {broken} open: stop it first (runnerctl stop)")
    if new.exists() or Path(f"{new}-wal").exists():
        _refuse(settings, f"{new} is there already; name a new file")
    try:
        with output.progress("what is intact"):
            done = salvage_log(broken, new)
    except NothingBroken:
        _refuse(settings, f"{broken} is intact: there is nothing to salvage")
    except NothingIntact as error:
        failing(output, seq=1, error=f"{error}. Restore it from a backup, or begin another log")
    except (LogError, OSError, sqlite3.Error) as error:
        _refuse(settings, f"cannot salvage {broken}: {_obstacle(error, new)}")
    if output.machine:
        output.line({"ok": True, **msgspec.to_builtins(done)})
        return
    _tell_salvaged(settings, done, broken, new)


def _obstacle(error: Exception, new: Path) -> str:
    """What is in the way of a salvage, and what to do where it is the new file."""
    advice = "make room there, or name a NEW elsewhere"
    if isinstance(error, OSError):
        return f"{refused(error)}; {advice}" if error.filename == str(new) else refused(error)
    if getattr(error, "sqlite_errorcode", 0) & 0xFF in WRITING:
        return f"{new}: {error}; {advice}"
    return str(error)


def _tell_salvaged(settings: Settings, done: Salvaged, broken: Path, new: Path) -> None:
    text = settings.output.text
    day, clock = day_and_time(done.last_at)
    text(f"{broken} is broken: {done.what}", style="red")
    text(f"kept: events {done.first} to {done.last}, the last of {day} {clock}")
    text(f"lost: events {done.last + 1} to {done.lost_upto}, and what may have come after them")
    text("")
    text("To go on with what was kept, in the old place:")
    aside = broken.with_name(f"{broken.name}.broken")
    parts = [broken, *(Path(f"{broken}{suffix}") for suffix in ("-wal", "-shm")), witness_path(broken)]
    there = " ".join(shlex.quote(str(path)) for path in parts if path.exists())
    text(f"  mkdir {shlex.quote(str(aside))}")
    text(f"  mv {there} {shlex.quote(str(aside))}")
    text(f"  mv {shlex.quote(str(new))} {shlex.quote(str(broken))}")


def _refuse(settings: Settings, words: str) -> NoReturn:
    if settings.output.machine:
        settings.output.line({"ok": False, "error": words})
    else:
        click.echo(f"runnerlog: {words}", err=True)
    raise SystemExit(EXIT_REFUSED)


__all__ = ["prune", "salvage"]
