"""Snapshots in log files: reading on from them, checking them, and the keeper that makes them."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest

from daemon.keeper import Order
from daemon.past import nearest, state_at
from daemon.recovery import fold_log
from events import catalogue as c
from events.envelope import EventUnreadable, LogError, decode, encode
from events.reader import ChainBroken, Reader
from statemachines.carried import carry, pieces
from statemachines.replay import SnapshotDiffers, fold, verify
from statemachines.state import State, canonical
from tests.integration.live import BIN
from tests.integration.logs import vandal
from tests.kept import KeptWorld

SNAPSHOTS = 5


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log of some hundred events, with snapshots. It is not changed."""
    path = tmp_path_factory.mktemp("kept") / "events.db"
    KeptWorld(path, 9, SNAPSHOTS)
    return path


@pytest.fixture
def log(kept: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    path = tmp_path / "events.db"
    path.write_bytes(kept.read_bytes())
    return path


def uptos(path: Path) -> list[int]:
    with Reader(path) as reader:
        return [snapshot.upto for snapshot in reader.snapshots()][::-1]


def rechain(path: Path, change: dict[int, c.Payload]) -> None:
    """Put other bodies into some events, and make the chain right."""
    connection = vandal(path)
    with Reader(path) as reader:
        records, previous = list(reader.records()), reader.base.hash
    for record in records:
        event = decode(record)
        body = change.get(record.seq, event.body)
        if isinstance(body, c.StateCarried) and record.seq not in change:
            upto = connection.execute("SELECT hash FROM events WHERE seq = ?", (body.upto,)).fetchone()[0]
            body = c.StateCarried(body.upto, upto.hex(), body.layout, body.part, body.parts, body.data)
        row = encode(c.Event(event.seq, event.t, event.cause, event.subject, body), record.at, previous)
        previous = row[8]
        connection.execute("UPDATE events SET payload = ?, hash = ? WHERE seq = ?", (row[7], row[8], row[0]))
    connection.close()


def test_a_state_at_any_moment_is_the_same_from_snapshots_and_from_the_beginning(log: Path) -> None:
    with Reader(log) as reader:
        assert len(uptos(log)) == SNAPSHOTS
        state = State()
        for event in reader.events():
            fold([event], state)
            if event.seq % 7 == 0:
                assert canonical(state_at(reader, event.seq)) == canonical(state)
        assert carry(fold_log(log).state) == carry(state)
        assert fold_log(log).carried_seq == uptos(log)[-1]


def test_the_nearest_snapshot_is_taken(log: Path) -> None:
    known = uptos(log)
    with Reader(log) as reader:
        assert nearest(reader)[1].seq == known[-1]
        assert nearest(reader, known[2])[1].seq == known[2]
        assert nearest(reader, known[2] - 1)[1].seq == known[1]
        state, head = nearest(reader, known[0] - 1)
        assert (head.seq, head.hash, canonical(state)) == (0, reader.base.hash, canonical(State()))


def test_verify_compares_each_snapshot(log: Path) -> None:
    done = subprocess.run(
        [BIN / "runnerlog", "--log", log, "--json", "verify"], capture_output=True, check=True
    )
    report = json.loads(done.stdout)
    assert (report["snapshots"], report["snapshots_not_compared"]) == (SNAPSHOTS, 0)


def altered(path: Path, snapshot: int) -> int:
    """Make a log's snapshot one of another state, in a chain that is right; its number."""
    with Reader(path) as reader:
        found = list(reader.snapshots())[::-1][snapshot]
        state = state_at(reader, found.upto)
        state.pinned["m0"] = None
        other = list(pieces(carry(state), found.upto, found.hash))
        assert len(other) == len(reader.pieces(found))
    first = found.seq - len(other) + 1
    rechain(path, {first + i: piece for i, piece in enumerate(other)})
    return found.seq


def test_a_snapshot_of_another_state_is_found_though_the_chain_is_right(log: Path) -> None:
    seq = altered(log, 2)
    with Reader(log) as reader:
        assert reader.verify_chain() == reader.head().seq
        with pytest.raises(SnapshotDiffers) as caught:
            verify(reader.events(), None, uptos(log))
    assert caught.value.seq == seq
    done = subprocess.run(
        [BIN / "runnerlog", "--log", log, "--json", "verify"], capture_output=True, check=False
    )
    assert (done.returncode, json.loads(done.stdout)["seq"]) == (1, seq)


def test_a_start_looks_at_nothing_before_the_last_snapshot(log: Path) -> None:
    connection = vandal(log)
    connection.execute("UPDATE events SET payload = '{}' WHERE seq < ? - 1", (uptos(log)[-1],))
    connection.close()
    assert fold_log(log).carried_seq > 0
    connection = sqlite3.connect(log)
    seq = connection.execute("SELECT max(seq) FROM events").fetchone()[0]
    connection.execute("DROP TRIGGER IF EXISTS events_no_update")
    connection.execute("UPDATE events SET at = at + 1 WHERE seq = ?", (seq - 1,))
    connection.commit()
    connection.close()
    with pytest.raises(ChainBroken) as caught:
        fold_log(log)
    assert caught.value.seq == seq - 1


def test_a_snapshot_that_is_damaged_is_named(log: Path) -> None:
    with Reader(log) as reader:
        seq = next(reader.snapshots()).seq
    connection = vandal(log)
    connection.execute("UPDATE events SET payload = replace(payload, 'upto', 'up') WHERE seq = ?", (seq,))
    connection.close()
    with pytest.raises((EventUnreadable, ChainBroken)) as caught:
        fold_log(log)
    assert isinstance(caught.value, EventUnreadable | ChainBroken)
    assert caught.value.seq == seq


def test_a_snapshot_whose_beginning_is_another_is_named(log: Path) -> None:
    upto = uptos(log)[-1]
    connection = vandal(log)
    connection.execute("UPDATE events SET hash = zeroblob(32) WHERE seq = ?", (upto,))
    connection.close()
    with pytest.raises(ChainBroken) as caught:
        fold_log(log)
    assert caught.value.seq == upto


def test_a_snapshot_of_an_unknown_form_is_passed_over(log: Path) -> None:
    with Reader(log) as reader:
        snapshot = next(reader.snapshots())
        parts = reader.pieces(snapshot)
        expected = carry(fold(reader.events()))
    first = snapshot.seq - len(parts) + 1
    rechain(
        log,
        {first + i: c.StateCarried(p.upto, p.hash, 99, p.part, p.parts, p.data) for i, p in enumerate(parts)},
    )
    recovered = fold_log(log)
    assert recovered.carried_seq == uptos(log)[-2]
    assert carry(recovered.state) == expected


def test_parts_that_a_dead_daemon_left_behind_are_no_snapshot(log: Path) -> None:
    with Reader(log) as reader:
        snapshot = next(reader.snapshots())
        (whole,) = reader.pieces(snapshot)
    rechain(log, {snapshot.seq: c.StateCarried(whole.upto, whole.hash, 1, 1, 2, whole.data)})
    assert fold_log(log).carried_seq == uptos(log)[-1] < snapshot.upto


def keep(path: Path, every: int, **more: Any) -> subprocess.CompletedProcess[bytes]:
    """Have a keeper look at a log."""
    order = msgspec.json.encode(Order(str(path), every, **more)).decode()
    return subprocess.run(
        [sys.executable, "-I", "-m", "daemon.keeper", order], capture_output=True, check=False
    )


def kept_by(path: Path, every: int, **more: Any) -> list[c.StateCarried]:
    """The snapshots that a keeper prints."""
    done = keep(path, every, **more)
    assert (done.returncode, done.stderr) == (0, b"")
    return [msgspec.json.decode(line, type=c.StateCarried) for line in done.stdout.splitlines()]


def test_the_keeper_carries_the_state_at_every_so_many_events(log: Path) -> None:
    last = uptos(log)[-1]
    with Reader(log) as reader:
        head = reader.head().seq
        found = kept_by(log, 40)
        assert found
        for piece in found:
            assert piece.hash == reader.hash_of(piece.upto).hex()
            assert next(reader.events(piece.upto, piece.upto + 1)).cause == 0, "a step was cut"
        for piece in [piece for piece in found if piece.parts == 1]:
            assert [piece] == list(
                pieces(carry(state_at(reader, piece.upto)), piece.upto, bytes.fromhex(piece.hash))
            )
    known = [last, *dict.fromkeys(piece.upto for piece in found)]
    assert all(40 <= b - a < 60 for a, b in pairwise(known))
    assert head - known[-1] < 60
    assert kept_by(log, 40, whole=True)[-1].upto == head
    assert kept_by(log, 10**6) == []


def test_the_keeper_finds_a_log_that_is_damaged_or_cannot_be(log: Path) -> None:
    with Reader(log) as reader:
        seq = reader.head().seq - 3
    connection = vandal(log)
    connection.execute("UPDATE events SET subject = 'x' WHERE seq = ?", (seq,))
    connection.close()
    done = keep(log, 40)
    assert done.returncode == 1
    for line in done.stdout.splitlines():
        assert msgspec.json.decode(line, type=c.StateCarried).upto < seq
    assert f"event {seq}" in done.stderr.decode()


def test_a_log_without_its_beginning_and_without_a_snapshot_says_so(log: Path) -> None:
    connection = vandal(log)
    connection.execute("UPDATE log_base SET seq = 5, hash = (SELECT hash FROM events WHERE seq = 4)")
    connection.execute("DELETE FROM events WHERE seq < 5 OR type = 'state.carried'")
    connection.close()
    with (
        Reader(log) as reader,
        pytest.raises(LogError, match="begins at event 5, with no state to go on from"),
    ):
        nearest(reader)
