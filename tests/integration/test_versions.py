"""Versions: what earlier ones wrote is read for ever, what later ones wrote is refused, and an upgrade begins
with a backup."""

from __future__ import annotations

import gzip
import json
import shutil
import sqlite3
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest

from daemon.past import nearest
from daemon.recovery import fold_log
from events import schema
from events.backup import BackupFailed, backup_path
from events.envelope import EventUnreadable
from events.reader import ChainBroken, Reader
from events.store import open_store
from statemachines.replay import fold, verify
from statemachines.state import canonical
from tests.integration.live import BIN, Command
from tests.integration.logs import vandal

LOGS = Path(__file__).parent.parent / "golden" / "logs"
DATABASES = sorted(LOGS.glob("*.db.gz"))
SEGMENTS = sorted(LOGS.glob("*.jsonl.gz"))
LATER = {2: "CREATE TABLE later (a INTEGER);\n"}


def unzipped(path: Path, into: Path) -> Path:
    log = into / "events.db"
    with gzip.open(path, "rb") as zipped, log.open("wb") as plain:
        shutil.copyfileobj(zipped, plain)
    return log


@pytest.fixture
def golden(tmp_path: Path) -> Path:
    return unzipped(DATABASES[0], tmp_path)


def test_there_are_logs_of_this_version() -> None:
    from daemon.version import VERSION

    names = {path.name for path in (*DATABASES, *SEGMENTS)}
    assert {f"{VERSION}-{name}" for name in ("calm.db.gz", "harsh.db.gz", "calm.jsonl.gz")} <= names


@pytest.mark.parametrize("path", DATABASES, ids=lambda path: path.name)
async def test_a_log_of_an_earlier_version_replays(path: Path, tmp_path: Path) -> None:
    log = unzipped(path, tmp_path)
    with Reader(log) as reader:
        assert reader.verify_chain() == reader.head().seq
        known = canonical(fold(reader.events()))
        report, state = verify(reader.events(), None, [s.upto for s in reader.snapshots()])
        assert canonical(state) == known
        assert report.decisions or report.not_rederived
    recovered = fold_log(log)
    assert canonical(recovered.state) == known
    assert recovered.carried_seq > 0
    async with open_store(log) as store:
        assert store.head.seq == recovered.state.seq


@pytest.mark.parametrize("path", SEGMENTS, ids=lambda path: path.name)
def test_a_segment_of_an_earlier_version_replays(path: Path) -> None:
    with Reader(path) as reader:
        reader.verify_chain()
        begin, head = nearest(reader, reader.base.seq - 1)
        report, state = verify(reader.events(head.seq), begin, [s.upto for s in reader.snapshots()])
        assert state.seq == reader.head().seq
        assert report.decisions or report.not_rederived


def test_a_newer_schema_is_refused_by_everything_and_says_what_to_do(golden: Path, tmp_path: Path) -> None:
    connection = sqlite3.connect(golden)
    connection.execute("PRAGMA user_version=9")
    connection.close()
    before = golden.read_bytes()
    known = max(schema.migrations())
    words = f"the log has schema 9, and this program knows up to {known}: use a newer runnerd"
    for command in (["verify"], ["show"], ["state"], ["prune", "--keep", "1GiB"]):
        done = subprocess.run(
            [BIN / "runnerlog", "--log", golden, "--json", *command],
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, words in done.stderr) == (3, True)
        assert words in json.loads(done.stdout)["error"]
    config = tmp_path / "config.yaml"
    config.write_text("models: {m: {cmd: 'server --port ${PORT}'}}\n")
    serve: Command = [BIN / "runnerd", "serve", "--config", config, "--log", golden]
    done = subprocess.run(
        [*serve, "--listen", "127.0.0.1:0", "--socket", tmp_path / "c.sock"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, words in done.stderr) == (3, True)
    assert golden.read_bytes() == before


@pytest.mark.parametrize(
    ("column", "value", "words"),
    [("type", "dream.dreamt", "unknown type 'dream.dreamt'"), ("version", 7, "version 7 of")],
)
def test_an_event_that_only_a_newer_version_knows_is_named(
    golden: Path, column: str, value: object, words: str
) -> None:
    """Its chain is right: a newer runnerd of the same schema wrote it."""
    from events.envelope import Record, chain_hash

    connection = vandal(golden)
    row = connection.execute("SELECT * FROM events ORDER BY seq DESC LIMIT 1").fetchone()
    with Reader(golden) as reader:
        previous = reader.hash_of(row[0] - 1)
    connection.execute(f"UPDATE events SET {column} = ? WHERE seq = ?", (value, row[0]))
    r = Record(*connection.execute("SELECT * FROM events WHERE seq = ?", (row[0],)).fetchone())
    texts = r.type.encode(), r.version, r.cause, r.subject.encode(), r.payload.encode()
    hash = chain_hash(previous, r.seq, r.at, r.t, *texts)
    connection.execute("UPDATE events SET hash = ? WHERE seq = ?", (hash, r.seq))
    connection.close()
    with Reader(golden) as reader:
        assert reader.verify_chain() == r.seq
    with pytest.raises(EventUnreadable, match=words) as caught:
        fold_log(golden)
    assert caught.value.seq == r.seq


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program of one more migration."""
    found = dict(schema.migrations()) | LATER
    monkeypatch.setattr(schema, "migrations", lambda: found)


@pytest.mark.usefixtures("later")
async def test_an_upgrade_begins_with_a_backup_that_is_whole(golden: Path) -> None:
    with Reader(golden) as reader:
        records, head = list(reader.records()), reader.head()
    async with open_store(golden) as store:
        assert store.head == head
    copy = backup_path(golden, 1)
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600
    with Reader(copy) as reader, Reader(golden) as upgraded:
        assert (reader.schema, upgraded.schema) == (1, 2)
        assert list(reader.records()) == list(upgraded.records()) == records
    assert not list(golden.parent.glob("*.new*"))
    before = copy.stat().st_mtime_ns
    async with open_store(golden):
        pass
    assert copy.stat().st_mtime_ns == before, "one upgrade, one backup"


@pytest.mark.usefixtures("later")
async def test_without_a_backup_there_is_no_upgrade(golden: Path) -> None:
    """Where it is to be is a directory: as good as any other reason."""
    backup_path(golden, 1).mkdir()
    with pytest.raises(BackupFailed, match=r"its backup .* cannot be written: .* MiB"):
        async with open_store(golden):
            pass
    with Reader(golden) as reader:
        assert reader.schema == 1


@pytest.mark.usefixtures("later")
async def test_a_backup_that_does_not_fit_is_said_and_leaves_nothing(
    golden: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect = sqlite3.connect

    def small(path: Any, **more: Any) -> sqlite3.Connection:
        connection: sqlite3.Connection = connect(path, **more)
        if str(path).endswith(".backup-1.new"):
            connection.execute("PRAGMA max_page_count=8")
        return connection

    monkeypatch.setattr(sqlite3, "connect", small)
    with pytest.raises(BackupFailed, match="disk is full"):
        async with open_store(golden):
            pass
    assert not list(golden.parent.glob("*backup*"))
    with Reader(golden) as reader:
        assert reader.schema == 1


@pytest.mark.usefixtures("later")
async def test_a_damaged_log_is_not_upgraded(golden: Path) -> None:
    connection = vandal(golden)
    connection.execute("UPDATE events SET at = at + 1 WHERE seq = 3")
    connection.close()
    with pytest.raises(ChainBroken) as caught:
        async with open_store(golden):
            pass
    assert caught.value.seq == 3
    with Reader(golden) as reader:
        assert reader.schema == 1


async def test_a_new_log_and_one_of_today_need_no_backup(golden: Path, tmp_path: Path) -> None:
    for log in (golden, tmp_path / "new.db"):
        async with open_store(log):
            pass
    assert not list(tmp_path.glob("*backup*"))
