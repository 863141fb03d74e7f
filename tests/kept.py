"""Logs of random worlds in files, with snapshots, as a daemon and its keeper would have left them."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from events import schema
from events.catalogue import Event
from events.commit import Committer
from events.envelope import Row, encode
from events.limits import MS
from events.reader import Head, read_base
from statemachines.carried import carry, pieces
from tests.simulation.worlds import TRAFFIC_NS, RandomWorld

AT_NS = 1_700_000_000_000_000_000
"""When these worlds begin, for people."""


class KeptWorld:
    """The world of a seed, played to its end; its log has `snapshots` of them at even intervals."""

    def __init__(self, path: Path, seed: int, snapshots: int) -> None:
        connection = sqlite3.connect(path, isolation_level=None)
        schema.migrate(connection)
        base = read_base(connection)
        self.hashes = [base.hash]
        """By number."""
        self._rows: list[Row] = []
        self._world = RandomWorld(seed)
        world = self._world.world
        for i in range(snapshots):
            world.at(TRAFFIC_NS * (i + 1) // (snapshots + 1), self._carry)
        self._world.play()
        self._chain()
        Committer(connection, Head(0, base.hash)).commit(self._rows, lambda error: None)
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        connection.close()

    @property
    def log(self) -> list[Event]:
        """Its events."""
        return self._world.world.log

    def _chain(self) -> None:
        for event in self.log[len(self._rows) :]:
            row = encode(event, AT_NS + event.t // MS * MS, self.hashes[-1])
            self._rows.append(row)
            self.hashes.append(row[8])

    def _carry(self) -> None:
        self._chain()
        world = self._world.world
        for piece in list(pieces(carry(world.state), world.state.seq, self.hashes[-1])):
            world.submit(piece)


__all__ = ["AT_NS", "KeptWorld"]
