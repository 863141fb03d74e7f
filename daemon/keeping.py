"""Keeping the log quick to read, and small: what a keeper (`daemon.keeper`) finds is done here.

Its snapshots are put into the log, and what it has archived is pruned, a snapshot's worth at once: no more
than what holds appends up for some 10 ms.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import msgspec
import trio

from daemon.config.retention import Retention
from daemon.driver import Driver, StepFailed
from daemon.keeper import Cut, Order
from daemon.limits import (
    CARRY_EVENTS,
    CARRY_HASTE_EVENTS,
    CARRY_PAUSE_S,
    CARRY_S,
    KEEPER_IDLE_S,
    KEEPER_LINE_BYTES,
    KEEPER_S,
    PRUNE_PAUSE_S,
)
from events.catalogue import StateCarried
from events.envelope import LogError
from events.failpoints import reach
from events.limits import PROCESS_END_S
from events.store import EventStore, StoreBroken
from events.words import refused

log = logging.getLogger("runnerd")

KEEPER = (sys.executable, "-I", "-m", "daemon.keeper")


class KeeperFailed(Exception):
    """A keeper has not done its work; the message says why."""


def archive_path(log: Path) -> Path:
    """The directory of what was pruned from a log."""
    return Path(f"{log}.archive")


class Keeping:
    """Runs a keeper whenever enough has come into the log. `carried_seq`: up to where a snapshot is."""

    def __init__(
        self,
        driver: Driver,
        store: EventStore,
        path: Path,
        carried_seq: int,
        retention: Callable[[], Retention],
        every: int = CARRY_EVENTS,
    ) -> None:
        self._driver = driver
        self._store = store
        self._path = path
        self._retention = retention
        """What is configured now."""
        self._every = every
        self.carried_seq = carried_seq
        """The last event whose state is in the log, or was to be."""

    async def run(self) -> None:
        """Do it, until cancelled, or the log is broken."""
        with suppress(StoreBroken, StepFailed):  # then the daemon ends
            while True:
                with trio.move_on_after(CARRY_S) as waited:
                    await self._store.wait(self.carried_seq + self._every)
                try:
                    await self.carry(whole=waited.cancelled_caught)
                except KeeperFailed as error:
                    log.error("the log was not kept short: %s", error)
                    self.carried_seq = self._store.head.seq
                with trio.move_on_after(CARRY_PAUSE_S):
                    await self._store.wait(self.carried_seq + CARRY_HASTE_EVENTS)

    async def carry(self, *, whole: bool) -> None:
        """Have snapshots made, with `whole` one of the log as it is now among them. Raises KeeperFailed.

        A keeper has what is left of the processor, so that no request waits for it. If that is too little,
        the next one has its share like everybody.
        """
        first = self._store.base.seq
        try:
            done = await self._has_kept(whole, KEEPER_IDLE_S, idle=True)
            if not (done or await self._has_kept(whole, KEEPER_S, idle=False)):
                raise KeeperFailed(f"its keeper took more than {KEEPER_S:.0f} s")
        finally:
            if self._store.base.seq > first:
                log.info("pruned events %d to %d", first, self._store.base.seq - 1)
        if self._store.base.seq == first:
            await self._shrink()

    async def _has_kept(self, whole: bool, patience_s: float, *, idle: bool) -> bool:
        """Run a keeper; False: it has taken too long, and is gone. What it had said is in the log."""
        process = await self._open(whole)
        assert process.stdout is not None
        assert process.stderr is not None
        if idle:
            with suppress(OSError):  # it has ended, or may not
                os.sched_setscheduler(process.pid, os.SCHED_IDLE, os.sched_param(0))
        try:
            with trio.move_on_after(patience_s) as late:
                await self._take(process.stdout)
                words = await process.stderr.receive_some(KEEPER_LINE_BYTES)
                await process.wait()
        finally:
            process.kill()
            with trio.move_on_after(PROCESS_END_S, shield=True):
                await process.wait()
            with trio.CancelScope(shield=True):
                await process.stdout.aclose()
                await process.stderr.aclose()
        if late.cancelled_caught:
            with trio.move_on_after(KEEPER_S):  # who gets nothing of the processor cannot even die at once
                await process.wait()
            return False
        if process.returncode:
            said = bytes(words).decode(errors="replace").strip().splitlines()
            raise KeeperFailed(said[-1] if said else f"its keeper exited with {process.returncode}")
        return True

    def _order(self, whole: bool) -> Order:
        keep = self._retention()
        archive = str(archive_path(self._path)) if keep.archive_bytes else ""
        return Order(
            log=str(self._path),
            every=self._every,
            whole=whole,
            size_bytes=keep.size_bytes,
            age_ns=keep.age_ns,
            archive=archive,
            archive_bytes=keep.archive_bytes,
        )

    async def _open(self, whole: bool) -> trio.Process:
        try:
            return await trio.lowlevel.open_process(
                [*KEEPER, msgspec.json.encode(self._order(whole)).decode()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env={"LC_ALL": "C.UTF-8"},
            )
        except OSError as error:
            raise KeeperFailed(f"its keeper cannot be started: {refused(error)}") from error

    async def _take(self, lines: trio.abc.ReceiveStream) -> None:
        """Submit what a keeper prints, a line at a time; the others have their turn between two."""
        rest = bytearray()
        async for chunk in lines:
            rest += chunk
            *whole, last = rest.split(b"\n")
            rest = last
            for line in whole:
                await self._do(bytes(line))
            if len(rest) > KEEPER_LINE_BYTES:
                raise KeeperFailed("its keeper printed too long a line")

    async def _do(self, line: bytes) -> None:
        try:
            what = msgspec.json.decode(line, type=StateCarried | Cut)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            raise KeeperFailed("its keeper printed what is none of its words") from None
        if self._driver.state.stopping:
            return
        if isinstance(what, Cut):
            await self._prune(what)
        else:
            reach("snapshot.before")
            self._driver.submit(what)
            reach("snapshot.after")
            self.carried_seq = what.upto
            await trio.lowlevel.checkpoint()

    async def _prune(self, cut: Cut) -> None:
        try:
            await self._store.prune(cut.upto, bytes.fromhex(cut.hash))
        except (sqlite3.Error, LogError) as error:
            raise KeeperFailed(f"the log could not be pruned: {error}") from error
        await trio.sleep(PRUNE_PAUSE_S)

    async def _shrink(self) -> None:
        """Give back what is free and not going to be used soon."""
        try:
            while await self._store.shrink():
                await trio.sleep(PRUNE_PAUSE_S)
        except sqlite3.Error as error:
            raise KeeperFailed(f"the log's file could not be made smaller: {error}") from error


__all__ = ["KEEPER", "KeeperFailed", "Keeping"]
