"""Keeping the log quick to read: a keeper (`daemon.keeper`) makes snapshots, which go into the log here."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import msgspec
import trio

from daemon.driver import Driver, StepFailed
from daemon.limits import CARRY_PAUSE_S, CARRY_S, KEEPER_LINE_BYTES, KEEPER_S
from events.catalogue import StateCarried
from events.limits import CARRY_EVENTS, PROCESS_END_S
from events.store import EventStore, StoreBroken

log = logging.getLogger("runnerd")

KEEPER = (sys.executable, "-I", "-m", "daemon.keeper")


class KeeperFailed(Exception):
    """A keeper has not done its work; the message says why."""


class Keeping:
    """Runs a keeper whenever enough has come into the log. `carried_seq`: up to where a snapshot is."""

    def __init__(
        self,
        driver: Driver,
        store: EventStore,
        path: Path,
        carried_seq: int,
        every: int = CARRY_EVENTS,
    ) -> None:
        self._driver = driver
        self._store = store
        self._path = path
        self._every = every
        self.carried_seq = carried_seq
        """The last event whose state is in the log, or was to be."""

    @asynccontextmanager
    async def run(self) -> AsyncIterator[None]:
        """Do it in the background."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep)
            yield
            nursery.cancel_scope.cancel()

    async def _keep(self) -> None:
        with suppress(StoreBroken, StepFailed):  # then the daemon ends
            while True:
                with trio.move_on_after(CARRY_S) as waited:
                    await self._store.wait(self.carried_seq + self._every)
                try:
                    await self.carry(whole=waited.cancelled_caught)
                except KeeperFailed as error:
                    log.error("no snapshot of the log was made: %s", error)
                    self.carried_seq = self._store.head.seq
                await trio.sleep(CARRY_PAUSE_S)

    async def carry(self, *, whole: bool) -> None:
        """Have snapshots made, with `whole` one of the log as it is now among them. Raises KeeperFailed."""
        process = await self._open(whole)
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            with trio.move_on_after(KEEPER_S) as late:
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
            raise KeeperFailed(f"its keeper took more than {KEEPER_S:.0f} s")
        if process.returncode:
            said = bytes(words).decode(errors="replace").strip().splitlines()
            raise KeeperFailed(said[-1] if said else f"its keeper exited with {process.returncode}")

    async def _open(self, whole: bool) -> trio.Process:
        try:
            return await trio.lowlevel.open_process(
                [*KEEPER, str(self._path), str(self._every), *(["--whole"] if whole else [])],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env={"LC_ALL": "C.UTF-8"},
            )
        except OSError as error:
            raise KeeperFailed(str(error)) from error

    async def _take(self, lines: trio.abc.ReceiveStream) -> None:
        """Submit what a keeper prints, a line at a time; the others have their turn between two."""
        rest = bytearray()
        async for chunk in lines:
            rest += chunk
            *whole, last = rest.split(b"\n")
            rest = last
            for line in whole:
                try:
                    piece = msgspec.json.decode(line, type=StateCarried)
                except (msgspec.MsgspecError, UnicodeDecodeError):
                    raise KeeperFailed("its keeper printed what is no snapshot") from None
                if self._driver.state.stopping:
                    return
                self._driver.submit(piece)
                self.carried_seq = piece.upto
                await trio.lowlevel.checkpoint()
            if len(rest) > KEEPER_LINE_BYTES:
                raise KeeperFailed("its keeper printed what is no snapshot")


__all__ = ["KEEPER", "KeeperFailed", "Keeping"]
