"""Damage of every kind, in real files: found with its number, and what is before it saved."""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
from pathlib import Path

import msgspec
import pytest

from daemon.past import EventUnfoldable
from daemon.recovery import fold_log
from daemon.salvage import NothingBroken, NothingIntact, Salvaged, salvage
from events.catalogue import Event, LogSalvaged
from events.envelope import EventUnreadable, LogError, decode, encode
from events.limits import MAX_DOWNTIME_NS, MS
from events.reader import ChainBroken, Reader
from events.store import open_store
from statemachines.replay import steps, verify
from statemachines.state import canonical
from tests.integration.live import BIN, Command
from tests.integration.logs import vandal
from tests.kept import KeptWorld

SNAPSHOTS = 3
COLUMNS = ("seq", "at", "t", "type", "version", "cause", "subject", "payload", "hash")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, KeptWorld]:
    """A log with snapshots, and the world that it is of. It is not changed."""
    path = tmp_path_factory.mktemp("kept") / "events.db"
    return path, KeptWorld(path, 9, SNAPSHOTS)


@pytest.fixture
def log(world: tuple[Path, KeptWorld], tmp_path: Path) -> Path:
    path = tmp_path / "events.db"
    shutil.copy(world[0], path)
    return path


@pytest.fixture
def events(world: tuple[Path, KeptWorld]) -> list[Event]:
    return world[1].log


def flipped(value: object) -> object:
    """A value with one bit changed."""
    if isinstance(value, int):
        return value ^ 1
    data = value.encode() if isinstance(value, str) else value
    assert isinstance(data, bytes)
    at = len(data) // 2
    data = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
    return data.decode() if isinstance(value, str) else data


def edit(log: Path, statement: str, *values: object) -> None:
    """Change a file as SQLite would; the index over the payload goes, for it takes only JSON."""
    connection = vandal(log)
    for index in ("events_request", "events_runner"):
        connection.execute(f"DROP INDEX IF EXISTS {index}")
    connection.execute(statement, values)
    connection.close()


def found_by_verify(log: Path) -> int:
    done = subprocess.run(
        [BIN / "runnerlog", "--log", log, "--json", "verify"], capture_output=True, check=False
    )
    report = json.loads(done.stdout)
    assert (done.returncode, report["ok"]) == (1, False), report
    return int(report["seq"])


def whole_before(events: list[Event], seq: int) -> int:
    """The last event of the last step that ends before event `seq`."""
    return max((step[-1].seq for step in steps(events) if step[-1].seq < seq), default=0)


def salvaged(log: Path, events: list[Event], seq: int) -> Salvaged:
    """Salvage a log that is broken at `seq`: what is kept is whole, the same as it was, and goes on."""
    before = log.read_bytes()
    fresh = log.with_name("salvaged.db")
    done = salvage(log, fresh)
    assert log.read_bytes() == before
    assert (done.broken_seq, done.last) == (seq, whole_before(events, seq))
    with Reader(fresh) as reader, Reader(log) as broken:
        assert reader.base == broken.base
        reader.verify_chain()
        kept = list(reader.events())
        assert kept[: done.last] == events[: done.last]
        (said,) = [event.body for event in kept[done.last :] if isinstance(event.body, LogSalvaged)]
        assert said.broken_seq == seq
        report, state = verify(kept, None, [snapshot.upto for snapshot in reader.snapshots()])
        assert report.snapshots_not_compared == 0
    assert canonical(fold_log(fresh).state) == canonical(state)
    return done


@pytest.mark.parametrize("column", COLUMNS)
@pytest.mark.parametrize("place", ["early", "late"])
def test_a_changed_column_is_found_and_what_is_before_is_saved(
    log: Path, events: list[Event], column: str, place: str
) -> None:
    seq = len(events) // 3 if place == "early" else len(events) - 5
    connection = sqlite3.connect(log)
    (old,) = connection.execute(f"SELECT {column} FROM events WHERE seq = ?", (seq,)).fetchone()
    connection.close()
    if column == "seq":  # another number: it is missing where it was
        edit(log, "UPDATE events SET seq = seq + 100000 WHERE seq = ?", seq)
    else:
        edit(log, f"UPDATE events SET {column} = ? WHERE seq = ?", flipped(old), seq)
    assert found_by_verify(log) == seq
    salvaged(log, events, seq)


def test_every_bit_of_an_event_counts(log: Path) -> None:
    """All of a payload's, a hash's and the numbers' bits, one after the other."""
    seq = 30
    connection = vandal(log)
    for index in ("events_request", "events_runner", "events_subject"):
        connection.execute(f"DROP INDEX IF EXISTS {index}")
    row = connection.execute("SELECT * FROM events WHERE seq = ?", (seq,)).fetchone()
    with Reader(log) as reader:
        reader.verify_chain()
        for name, value in zip(COLUMNS[1:], row[1:], strict=True):
            data = value if isinstance(value, bytes) else str(value).encode()
            bits = range(8 * len(data)) if not isinstance(value, int) else range(62)
            for bit in bits:
                if isinstance(value, int):
                    changed: object = value ^ 1 << bit
                else:
                    raw = data[: bit // 8] + bytes([data[bit // 8] ^ 1 << bit % 8]) + data[bit // 8 + 1 :]
                    changed = raw if isinstance(value, bytes) else raw.decode("latin-1")
                connection.execute(f"UPDATE events SET {name} = ? WHERE seq = ?", (changed, seq))
                with pytest.raises(ChainBroken) as caught:
                    reader.verify_chain()
                assert caught.value.seq == seq
            connection.execute(f"UPDATE events SET {name} = ? WHERE seq = ?", (value, seq))
        reader.verify_chain()
    connection.close()


def test_bytes_that_are_no_text_are_found(log: Path, events: list[Event]) -> None:
    seq = len(events) // 2
    connection = vandal(log)
    for index in ("events_request", "events_runner"):
        connection.execute(f"DROP INDEX {index}")
    connection.execute("UPDATE events SET subject = CAST(x'fffe' AS TEXT) WHERE seq = ?", (seq,))
    connection.close()
    assert found_by_verify(log) == seq
    salvaged(log, events, seq)


DAMAGE = {
    "no JSON": "payload = substr(payload, 1, 100) || char(1) || substr(payload, 102)",
    "no UTF-8": "payload = CAST(CAST(substr(payload, 1, 9) AS BLOB) || x'ff' || substr(payload, 11) AS TEXT)",
    "a number that is none": "at = -1",
}


@pytest.mark.parametrize("which", range(SNAPSHOTS))
@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_snapshot_costs_what_comes_after_it(
    log: Path, events: list[Event], kind: str, which: int
) -> None:
    """A salvage reads on to it, though it goes by no snapshot; a start says what is to be done."""
    with Reader(log) as reader:
        seq = [snapshot.seq for snapshot in reader.snapshots()][which]
    edit(log, f"UPDATE events SET {DAMAGE[kind]} WHERE seq = ?", seq)
    assert found_by_verify(log) == seq
    if which == 0:
        with pytest.raises((ChainBroken, EventUnreadable)):
            fold_log(log)
    salvaged(log, events, seq)


@pytest.mark.parametrize("place", ["first", "middle", "in a step", "the one before the last"])
def test_a_missing_event_is_found(log: Path, events: list[Event], place: str) -> None:
    seqs = {"first": 1, "middle": len(events) // 2, "the one before the last": len(events) - 1}
    seqs["in a step"] = next(step[-1].seq for step in steps(events) if len(step) > 3)
    seq = seqs[place]
    edit(log, "DELETE FROM events WHERE seq = ?", seq)
    assert found_by_verify(log) == seq
    if seq == 1:
        with pytest.raises(NothingIntact, match=r"nothing of the log is intact: .* event 1: missing"):
            salvage(log, log.with_name("salvaged.db"))
        assert not list(log.parent.glob("salvaged*"))
    else:
        salvaged(log, events, seq)


def test_a_repeated_event_is_found(log: Path, events: list[Event]) -> None:
    seq = len(events)
    edit(log, f"INSERT INTO events SELECT {seq + 1}, {', '.join(COLUMNS[1:])} FROM events WHERE seq = ?", seq)
    assert found_by_verify(log) == seq + 1
    salvaged(log, events, seq + 1)


def test_two_swapped_events_are_found(log: Path, events: list[Event]) -> None:
    connection = vandal(log)
    for old, new in ((50, -50), (51, 50), (-50, 51)):
        connection.execute("UPDATE events SET seq = ? WHERE seq = ?", (new, old))
    connection.close()
    assert found_by_verify(log) == 50
    salvaged(log, events, 50)


def test_another_identity_is_found(log: Path) -> None:
    edit(log, "UPDATE log_base SET log_id = 'x' || substr(log_id, 2)")
    assert found_by_verify(log) == 1
    with pytest.raises(NothingIntact):
        salvage(log, log.with_name("salvaged.db"))


def leaves(log: Path) -> dict[int, tuple[int, int]]:
    """The pages of the table that hold rows: each with its first and last event."""
    connection = sqlite3.connect(log)
    (size,) = connection.execute("PRAGMA page_size").fetchone()
    data = log.read_bytes()
    connection.close()
    found = {}
    for number in range(1, len(data) // size):
        page = data[number * size : (number + 1) * size]
        count = int.from_bytes(page[3:5], "big")
        if page[0] != 13 or not 0 < count < 200:  # a leaf of a table
            continue
        seqs = [rowid_at(page, int.from_bytes(page[8 + 2 * i : 10 + 2 * i], "big")) for i in range(count)]
        if len(seqs) > 1 and seqs == list(range(seqs[0], seqs[0] + count)):
            found[number + 1] = (seqs[0], seqs[-1])
    return found


def rowid_at(page: bytes, at: int) -> int:
    """The rowid of a cell: the second of its two variable-length integers."""
    for _ in range(2):
        value, more = 0, True
        while more:
            value, more = value << 7 | page[at] & 0x7F, bool(page[at] & 0x80)
            at += 1
    return value


@pytest.mark.parametrize("kind", ["zeros", "noise", "another page"])
def test_a_torn_page_is_found(log: Path, events: list[Event], kind: str) -> None:
    pages = {number: seqs for number, seqs in leaves(log).items() if 100 < seqs[0] < len(events) - 100}
    number, (first, _) = next(iter(pages.items()))
    other = next(page for page in pages if page > number)
    with log.open("r+b") as file:
        size = 2048
        file.seek((other - 1) * size)
        content = {"zeros": b"\0" * size, "noise": bytes(range(256)) * 8, "another page": file.read(size)}
        file.seek((number - 1) * size)
        file.write(content[kind])
    assert found_by_verify(log) == first
    salvaged(log, events, first)


def test_half_a_page_is_found(log: Path, events: list[Event]) -> None:
    """A page of which a crash of the machine left only the first 512 bytes."""
    number, (first, last) = next(item for item in leaves(log).items() if item[1][0] > 100)
    with log.open("r+b") as file:
        file.seek((number - 1) * 2048 + 512)
        file.write(b"\0" * 1536)
    seq = found_by_verify(log)
    assert first <= seq <= last
    salvaged(log, events, seq)


def test_a_log_whose_events_have_no_beginning_is_damaged_from_the_first(log: Path) -> None:
    connection = sqlite3.connect(log)
    root = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'events'").fetchone()[0]
    connection.close()
    with log.open("r+b") as file:
        file.seek((root - 1) * 2048)
        file.write(b"\0" * 2048)
    for asked in ("verify", "show", "stats"):
        done = subprocess.run(
            [BIN / "runnerlog", "--log", log, "--no-json", asked], capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stderr) == (1, ""), asked
        assert "event 1: unreadable (database disk image is malformed); runnerlog salvage" in done.stdout


@pytest.mark.parametrize("parts", [3, 2])
def test_a_truncated_file_is_found(log: Path, events: list[Event], parts: int) -> None:
    """SQLite's own header says how long the file was."""
    with log.open("r+b") as file:
        file.truncate(log.stat().st_size * (parts - 1) // parts // 2048 * 2048)
    done = subprocess.run(
        [BIN / "runnerlog", "--log", log, "--json", "verify"], capture_output=True, check=False
    )
    assert done.returncode in (1, 3)
    report = json.loads(done.stdout)
    assert not report["ok"]
    if done.returncode == 1:
        for asked in (["show"], ["state"], ["stats"], ["waits"]):
            said = subprocess.run(
                [BIN / "runnerlog", "--log", log, "--no-json", *asked],
                capture_output=True,
                text=True,
                check=False,
            )
            assert said.returncode == 1, asked
            assert f"event {report['seq']}: " in said.stdout
            assert "runnerlog salvage" in said.stdout, "who meets damage is told how to go on"
        salvaged(log, events, report["seq"])


def test_an_event_that_cannot_follow_is_found_though_its_hash_is_right(
    log: Path, events: list[Event]
) -> None:
    """What a forger may do, or a mistake in runnerd: a request that is dispatched twice."""
    dispatched = next(event for event in events if event.body.__class__.__name__ == "RequestDispatched")
    seq = dispatched.seq
    with Reader(log) as reader:
        previous = reader.hash_of(seq)
    connection = vandal(log)
    connection.execute("DELETE FROM events WHERE seq > ?", (seq,))
    again = Event(seq + 1, dispatched.t, dispatched.cause, dispatched.subject, dispatched.body)
    row = encode(again, 1, previous)
    connection.execute("INSERT INTO events VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
    connection.close()
    with pytest.raises(EventUnfoldable) as caught:
        fold_log(log)
    assert caught.value.seq == seq + 1


def test_a_salvage_is_no_time_of_its_log(log: Path, events: list[Event]) -> None:
    """It may come long after the last event: stats end with that, and the next start's time begins there."""
    seq = len(events) // 2
    edit(log, "UPDATE events SET at = at + 1 WHERE seq = ?", seq)
    saved, fresh = salvaged(log, events, seq), log.with_name("salvaged.db")
    command: Command = [BIN / "runnerlog", "--log", fresh, "stats"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    total = json.loads(done.stdout.splitlines()[-1])
    assert total["end_ns"] == saved.last_at
    assert abs(total["end_ns"] - total["begin_ns"] - total["span_ns"]) <= MS, "as the times of day are kept"
    recovered = fold_log(fresh)
    assert recovered.clock() - recovered.state.t >= MAX_DOWNTIME_NS, "the last event is years old"


def test_an_intact_log_is_not_salvaged(log: Path, tmp_path: Path) -> None:
    fresh = tmp_path / "new.db"
    with pytest.raises(NothingBroken):
        salvage(log, fresh)
    assert not fresh.exists()
    fresh.write_text("mine")
    with pytest.raises(FileExistsError):
        salvage(log, fresh)
    assert fresh.read_text() == "mine"


def damage_late(log: Path) -> int:
    with Reader(log) as reader:
        seq = reader.head().seq - 20
    edit(log, "UPDATE events SET at = at + 1 WHERE seq = ?", seq)
    return seq


async def test_a_salvaged_log_is_gone_on_with(log: Path, tmp_path: Path) -> None:
    damage_late(log)
    fresh = tmp_path / "new.db"
    done = salvage(log, fresh)
    async with open_store(fresh) as store:
        assert store.head.seq > done.last
        assert store.log_id == Reader(log).log_id


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [BIN / "runnerlog", *map(str, arguments)], capture_output=True, text=True, check=False
    )


def test_the_commands_of_a_salvage_lead_to_a_log_that_verifies(log: Path) -> None:
    """What it prints is carried out as it is."""
    seq = damage_late(log)
    Path(f"{log}.head").write_text('{"seq": 99999, "hash": "00", "boot_id": "x"}')
    fresh = log.with_name("a 'new' one.db")
    done = run("--no-json", "salvage", log, fresh)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert f"the chain breaks at event {seq}: its hash does not match" in lines[0]
    assert lines[2].startswith("lost: events ")
    assert "to 99999" in lines[2], "the witness knows of more than is there"
    commands = [line for line in lines if line.startswith("  ")]
    subprocess.run(["/bin/sh", "-e", "-c", "\n".join(commands)], check=True)
    assert run("--log", log, "verify").returncode == 0
    left = [path.name for path in log.parent.iterdir() if not path.name.endswith(("-wal", "-shm"))]
    assert sorted(left) == ["events.db", "events.db.broken"]
    assert (Path(f"{log}.broken") / "events.db").exists()
    assert "events" in run("--no-json", "--log", log, "show", "--type", "log.salvaged").stdout


def test_what_salvage_refuses(log: Path, tmp_path: Path) -> None:
    done = run("--no-json", "salvage", log, tmp_path / "new.db")
    assert (done.returncode, "is intact: there is nothing to salvage" in done.stderr) == (1, True)
    done = run("--no-json", "salvage", tmp_path / "none.db", tmp_path / "new.db")
    assert (done.returncode, "there is no event log at" in done.stderr) == (1, True)
    done = run("--no-json", "salvage", log, log)
    assert (done.returncode, "is there already" in done.stderr) == (1, True)
    done = run("--json", "salvage", log, tmp_path / "new.db")
    assert msgspec.json.decode(done.stdout)["ok"] is False


def test_a_daemon_says_what_to_do_with_a_damaged_log(log: Path, tmp_path: Path) -> None:
    """And doing that is enough."""
    seq = damage_late(log)
    config = tmp_path / "config.yaml"
    config.write_text("models: {m: {cmd: 'server --port ${PORT}'}}\n")
    serve: Command = [BIN / "runnerd", "serve", "--config", config, "--listen", "127.0.0.1:0", "--log", log]
    done = subprocess.run(
        [*serve, "--socket", tmp_path / "c.sock"], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 3
    assert f"event {seq}" in done.stderr
    (command,) = [line for line in done.stderr.splitlines() if line.startswith("  runnerlog salvage")]
    found = subprocess.run(
        ["/bin/sh", "-e", "-c", command.replace("runnerlog", str(BIN / "runnerlog"))],
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(found.stdout)["ok"] is True


def test_a_start_goes_by_nothing_that_is_damaged(log: Path) -> None:
    """Whatever byte of what a start reads is changed: it is refused, or nothing of it was changed."""
    seen: dict[type, int] = {}
    known = canonical(fold_log(log).state)
    data = log.read_bytes()
    for at in range(len(data) - 40_000, len(data), 997):
        log.write_bytes(data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :])
        try:
            assert canonical(fold_log(log).state) == known
        except (LogError, sqlite3.DatabaseError, EventUnreadable) as error:
            seen[type(error)] = seen.get(type(error), 0) + 1
        for suffix in ("-wal", "-shm"):
            Path(f"{log}{suffix}").unlink(missing_ok=True)
    assert seen.get(ChainBroken, 0) > 2, seen


def test_decoding_is_not_what_finds_damage(log: Path) -> None:
    """A payload that reads well, and says another thing."""
    with Reader(log) as reader:
        record = next(r for r in reader.records() if r.type == "request.arrived")
    other = record.payload.replace('"model":"m', '"model":"n')
    assert other != record.payload
    decode(msgspec.structs.replace(record, payload=other))
    edit(log, "UPDATE events SET payload = ? WHERE seq = ?", other, record.seq)
    assert found_by_verify(log) == record.seq
