"""The schema of a log file: how it is made, what it refuses, and how it moves forward."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from events import catalogue as c
from events import schema
from events.envelope import LogError, first_hash
from events.reader import Reader
from events.schema import NotALog, SchemaTooNew, migrate
from events.store import open_store
from statemachines.scheduler import SUBJECT_FIELD

GOLDEN = Path(__file__).parent.parent / "golden" / "schema.sql"
ROW = (
    "INSERT INTO events VALUES (?, 0, 0, 'request.queued', 1, 0, 'q1', '{\"request\":\"q1\"}', zeroblob(32))"
)


def connect(path: Path) -> sqlite3.Connection:
    """A connection such as any other program would make: no pragmas."""
    return sqlite3.connect(path, isolation_level=None)


@pytest.fixture
def log(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    """A log of three events."""
    connection = connect(tmp_path / "log.db")
    migrate(connection)
    connection.executemany(ROW, [(1,), (2,), (3,)])
    yield connection
    connection.close()


def rows(connection: sqlite3.Connection) -> list[int]:
    return [row[0] for row in connection.execute("SELECT seq FROM events ORDER BY seq")]


def test_the_schema_is_frozen(log: sqlite3.Connection) -> None:
    found = [
        row[0] for row in log.execute("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY rowid")
    ]
    text = ";\n\n".join(found) + ";\n"
    if os.environ.get("RUNNERD_REWRITE"):
        GOLDEN.write_text(text, "utf-8")
    assert text == GOLDEN.read_text("utf-8")


def test_the_file_says_what_it_is(log: sqlite3.Connection) -> None:
    pragmas = ("user_version", "application_id", "auto_vacuum", "journal_mode")
    assert [log.execute(f"PRAGMA {name}").fetchone()[0] for name in pragmas] == [1, 0x524E444C, 2, "wal"]
    log_id, seq, hash = log.execute("SELECT log_id, seq, hash FROM log_base").fetchone()
    assert len(log_id) == 32
    assert (seq, hash) == (1, first_hash(log_id))


def test_a_second_time_changes_nothing(log: sqlite3.Connection) -> None:
    before = log.execute("SELECT * FROM log_base").fetchall()
    migrate(log)
    assert log.execute("SELECT * FROM log_base").fetchall() == before
    assert rows(log) == [1, 2, 3]


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE events SET payload = '{}' WHERE seq = 2",
        "UPDATE events SET seq = 4 WHERE seq = 3",
        "DELETE FROM events WHERE seq = 3",
        "DELETE FROM events",
        "REPLACE INTO events SELECT * FROM events WHERE seq = 2",
        "INSERT OR IGNORE INTO events VALUES (5, 0, 0, 'x', 1, 0, 'x', '{}', zeroblob(32))",
        "INSERT INTO events VALUES (5, 0, 0, 'x', 1, 0, 'x', '{}', zeroblob(32))",
        "INSERT INTO events VALUES (0, 0, 0, 'x', 1, 0, 'x', '{}', zeroblob(32))",
        "INSERT INTO events VALUES (NULL, 0, 0, 'x', 1, 0, 'x', '{}', zeroblob(32))",
        "UPDATE log_base SET seq = 0",
        "UPDATE log_base SET log_id = 'x'",
        "UPDATE log_base SET created_at = 0",
        "DELETE FROM log_base",
        "INSERT INTO log_base VALUES (1, 'x', 0, 1, zeroblob(32))",
        "REPLACE INTO log_base VALUES (1, 'x', 0, 1, zeroblob(32))",
        "INSERT INTO log_base VALUES (2, 'x', 0, 1, zeroblob(32))",
        "INSERT INTO events VALUES (4, 0, 0, 'x', 1, 0, 'x', '{}', zeroblob(31))",
        "INSERT INTO events VALUES (4, 'x', 0, 'x', 1, 0, 'x', '{}', zeroblob(32))",
        "INSERT INTO events VALUES (4, 0, 0, 'x', 1, 0, NULL, '{}', zeroblob(32))",
    ],
)
@pytest.mark.parametrize("recursive", ["off", "on"])
def test_nothing_but_the_next_event_goes_in(log: sqlite3.Connection, statement: str, recursive: str) -> None:
    log.execute(f"PRAGMA recursive_triggers={recursive}")
    before = log.execute("SELECT * FROM events").fetchall(), log.execute("SELECT * FROM log_base").fetchall()
    with pytest.raises(sqlite3.IntegrityError):
        log.execute(statement)
    after = log.execute("SELECT * FROM events").fetchall(), log.execute("SELECT * FROM log_base").fetchall()
    assert after == before


def test_only_what_lies_below_the_base_may_go(log: sqlite3.Connection) -> None:
    with pytest.raises(sqlite3.IntegrityError):
        log.execute("DELETE FROM events WHERE seq < 3")
    log.execute("UPDATE log_base SET seq = 3, hash = (SELECT hash FROM events WHERE seq = 2)")
    log.execute("DELETE FROM events WHERE seq < 3")
    assert rows(log) == [3]
    with pytest.raises(sqlite3.IntegrityError):
        log.execute("DELETE FROM events WHERE seq = 3")


def test_a_pruned_log_without_events_goes_on_at_its_base(tmp_path: Path) -> None:
    log = connect(tmp_path / "log.db")
    migrate(log)
    log.execute("UPDATE log_base SET seq = 10")
    with pytest.raises(sqlite3.IntegrityError):
        log.execute(ROW, (1,))
    log.execute(ROW, (10,))
    log.close()


def test_each_index_serves_its_question(log: sqlite3.Connection) -> None:
    from events.reader import _OF_SUBJECT

    plan = log.execute(
        f"EXPLAIN QUERY PLAN SELECT * FROM events WHERE {_OF_SUBJECT}", {"subject": "q1", "after": 0}
    ).fetchall()
    text = " ".join(str(row[3]) for row in plan)
    assert all(f"INDEX events_{name} " in text for name in ("subject", "request", "runner"))
    assert "SCAN events" not in text


def test_what_the_indexes_leave_out_is_found_by_its_subject() -> None:
    """They leave out types of event, which must therefore name nobody but their subject."""
    for kind in (c.RequestArrived, c.RequestCompleted, c.RequestDispatched, c.UpstreamEnded):
        fields = {field.name for field in msgspec.structs.fields(kind)}
        assert ("request" in fields) is (SUBJECT_FIELD.get(kind) == "request")
        assert "process" not in fields
        assert ("runner" in fields) is (kind in (c.RequestDispatched, c.UpstreamEnded))


async def test_a_newer_schema_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    connection = connect(path)
    migrate(connection)
    connection.execute("PRAGMA user_version=7")
    connection.close()
    with pytest.raises(SchemaTooNew, match="the log has schema 7, and this program knows up to 1"):
        Reader(path)
    with pytest.raises(SchemaTooNew) as caught:
        async with open_store(path):
            pass
    assert (caught.value.found, caught.value.known) == (7, 1)


async def test_other_files_are_refused_and_left_alone(tmp_path: Path) -> None:
    text, database, empty = tmp_path / "text", tmp_path / "database", tmp_path / "empty"
    text.write_text("not a database, but long enough to be taken for one" * 100)
    connection = connect(database)
    connection.execute("CREATE TABLE events (seq INTEGER)")
    connection.close()
    for path in (text, database):
        before = path.read_bytes()
        with pytest.raises(NotALog):
            Reader(path)
        with pytest.raises(NotALog):
            async with open_store(path):
                pass
        assert path.read_bytes() == before
    empty.touch()
    with pytest.raises(NotALog):
        Reader(empty)
    with pytest.raises(FileNotFoundError):
        Reader(tmp_path / "nothing")


def test_a_migration_happens_whole_or_not_at_all(
    log: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = dict(schema.migrations())
    monkeypatch.setattr(schema, "migrations", lambda: files)
    files[2] = "CREATE TABLE more (a);\nCREATE TABLE more (a);\n"
    with pytest.raises(sqlite3.OperationalError):
        migrate(log)
    assert log.execute("PRAGMA user_version").fetchone()[0] == 1
    assert not log.execute("SELECT * FROM sqlite_master WHERE name = 'more'").fetchall()
    files[2] = "-- a comment; with a semicolon\nCREATE TABLE more (a);\n"
    files[3] = "CREATE TRIGGER t BEFORE DELETE ON more BEGIN\n  SELECT 1;\n  SELECT 2;\nEND;\n"
    migrate(log)
    assert log.execute("PRAGMA user_version").fetchone()[0] == 3
    assert rows(log) == [1, 2, 3]


def test_a_half_written_migration_is_not_run(
    log: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schema, "migrations", lambda: {1: "", 2: "CREATE TABLE more (a);\nCREATE TABLE x ("})
    with pytest.raises(LogError, match="ends within a statement"):
        migrate(log)
    assert log.execute("PRAGMA user_version").fetchone()[0] == 1
