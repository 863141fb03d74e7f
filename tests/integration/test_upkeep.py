"""`runnerlog prune` on the log of a stopped daemon, and the witness beside a log that was pruned."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from daemon import keeper, past
from daemon.keeper import Order, cuts
from daemon.keeping import KEEPER
from daemon.recovery import fold_log
from events.catalogue import Event
from events.envelope import LogError
from events.lock import hold_lock
from events.reader import Reader
from events.store import open_store
from events.witness import TailLost, write_witness
from events.words import unwritten
from statemachines.fold import apply
from statemachines.scheduler import RULES
from statemachines.state import State, canonical
from tests.integration.live import BIN, Command
from tests.integration.logs import vandal
from tests.kept import KeptWorld


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log with five snapshots. It is not changed."""
    path = tmp_path_factory.mktemp("kept") / "events.db"
    KeptWorld(path, 9, 5)
    return path


@pytest.fixture
def log(kept: Path, tmp_path: Path) -> Path:
    path = tmp_path / "events.db"
    shutil.copy(kept, path)
    return path


def uptos(log: Path) -> list[int]:
    """The events that there are snapshots of, the oldest first."""
    with Reader(log) as reader:
        return [snapshot.upto for snapshot in reader.snapshots()][::-1]


def prune(log: Path, *arguments: object) -> tuple[int, dict[str, Any], str]:
    done = subprocess.run(
        [BIN / "runnerlog", "--log", log, "--json", "prune", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, json.loads(done.stdout or "{}"), done.stderr


def verified(*paths: Path) -> None:
    done = subprocess.run(
        [BIN / "runnerlog", "--json", "verify", *paths], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
    assert all(json.loads(line)["ok"] for line in done.stdout.splitlines())


def test_what_lies_before_a_moment_is_archived_and_goes(log: Path) -> None:
    known, snapshots = canonical(fold_log(log).state), uptos(log)
    code, told, _ = prune(log, "--before", snapshots[2] + 1)
    assert (code, told["upto"], told["first"]) == (0, snapshots[2], 1)
    with Reader(log) as reader:
        assert reader.base.seq == snapshots[2] + 1
    segments = sorted(Path(f"{log}.archive").iterdir())
    assert len(segments) == 3
    verified(log, *segments)
    assert canonical(fold_log(log).state) == known
    assert log.stat().st_size < told["freed_bytes"] * 20


def test_a_dry_run_changes_nothing(log: Path) -> None:
    before = log.read_bytes()
    code, told, _ = prune(log, "--before", uptos(log)[1] + 1, "--dry-run")
    assert (code, told["upto"], told["freed_bytes"]) == (0, uptos(log)[1], 0)
    assert log.read_bytes() == before
    assert not Path(f"{log}.archive").exists()


def test_all_but_the_last_snapshot_goes_where_little_is_to_be_kept(log: Path) -> None:
    last = uptos(log)[-1]
    code, told, _ = prune(log, "--keep", "1KiB", "--discard")
    assert (code, told["upto"]) == (0, last)
    assert not Path(f"{log}.archive").exists()
    verified(log)
    code, told, _ = prune(log, "--keep", "1s")
    assert (code, told["upto"]) == (0, 0), "there is nothing more to prune"


def test_a_log_that_a_daemon_has_is_not_pruned(log: Path) -> None:
    with open(hold_lock(log), "rb"):
        code, told, _ = prune(log, "--keep", "1KiB")
    assert (code, told["ok"]) == (1, False)
    assert "stop it first (runnerctl stop)" in str(told["error"])
    with Reader(log) as reader:
        assert reader.base.seq == 1


def test_a_damaged_beginning_is_neither_archived_nor_pruned(log: Path) -> None:
    connection = vandal(log)
    connection.execute("UPDATE events SET at = at + 1 WHERE seq = 5")
    connection.close()
    for more in ((), ("--discard",)):
        code, told, _ = prune(log, "--keep", "1KiB", *more)
        assert (code, told["seq"]) == (1, 5)
    with Reader(log) as reader:
        assert reader.base.seq == 1
    assert not list(Path(f"{log}.archive").glob("*"))


def test_what_makes_no_sense_is_said(log: Path) -> None:
    for arguments in ((), ("--keep", "7"), ("--keep", "much"), ("--keep", "1GiB", "--before", "1")):
        assert prune(log, *arguments)[0] == 2
    prune(log, "--keep", "1KiB")
    archive = Path(f"{log}.archive")
    before = sorted(archive.iterdir())
    for segment in before:  # the first begins with no snapshot
        code, told, _ = prune(segment, "--keep", "1KiB")
        assert (code, "is a segment" in str(told["error"])) == (1, True)
    assert sorted(archive.iterdir()) == before


def test_it_says_what_is_kept_and_why(log: Path, tmp_path: Path) -> None:
    def said(log: Path, *arguments: object) -> str:
        command: Command = [BIN / "runnerlog", "--log", log, "--no-json", "prune", "--dry-run"]
        command = [*command, *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    first, *_, last = uptos(log)
    assert said(log, "--keep", "1GiB").startswith("nothing goes: the log takes ")
    assert said(log, "--keep", "1GiB").endswith(" KiB, and 1.0 GiB may stay\n")
    assert said(log, "--keep", "3000d").endswith(", and may stay for 3000 d\n")
    nothing = "nothing goes: the log begins with event 1, and nothing is before that\n"
    assert said(log, "--before", 1) == nothing
    only = "nothing goes: only what lies before a snapshot can go, and "
    stay = f"the first one stands for events 1 to {first}, some of which are to stay\n"
    assert said(log, "--before", first) == only + stay
    prune(log, "--keep", "1KiB")
    with Reader(log) as reader:
        of = f"of events {last + 1} to {reader.head().seq} there is none yet (one for each 5,000 events)\n"
    assert said(log, "--keep", "1KiB") == only + of


def test_what_cannot_be_written_is_told_in_words(log: Path, tmp_path: Path) -> None:
    Path(f"{log}.archive").write_text("in the way")
    code, told, _ = prune(log, "--keep", "1KiB")
    assert code == 1
    assert str(told["error"]).startswith(f"nothing was pruned: cannot write {log}.archive/0000")
    assert str(told["error"]).endswith(": File exists; make room there, or prune with --discard")
    order = msgspec.json.encode(Order(str(log), 10**6, size_bytes=1, archive=f"{log}.archive"))
    done = subprocess.run([*KEEPER, order.decode()], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith(f"cannot write {log}.archive/0000")
    assert done.stderr.endswith("; make room there, or archive nothing (retention: archive: 0)\n")
    command: Command = [BIN / "runnerlog", "salvage", log, tmp_path / "no" / "such"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    told = json.loads(done.stdout)
    new = tmp_path / "no" / "such"
    advice = "make room there, or name a NEW elsewhere"
    assert told["error"] == f"cannot salvage {log}: {new}: No such file or directory; {advice}"


def test_a_read_only_file_system_is_told_apart_from_a_disk_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def statvfs(path: object) -> SimpleNamespace:
        assert path == tmp_path
        return SimpleNamespace(f_flag=flags)

    monkeypatch.setattr(os, "statvfs", statvfs)
    error = sqlite3.OperationalError("disk I/O error")
    error.sqlite_errorcode = sqlite3.SQLITE_IOERR_WRITE
    flags = 0
    assert unwritten(error, tmp_path / "events.db") == "disk I/O error"
    flags = os.ST_RDONLY
    assert unwritten(error, tmp_path / "events.db") == "read-only file system"
    error.sqlite_errorcode = sqlite3.SQLITE_BUSY
    assert unwritten(error, tmp_path / "events.db") == "disk I/O error"


async def test_the_witness_of_a_pruned_log(log: Path) -> None:
    with Reader(log) as reader:
        hashes = {record.seq: record.hash for record in reader.records()}
    base = uptos(log)[2]
    assert prune(log, "--before", base + 1)[0] == 0
    for seq, hash in ((base - 1, b"\0" * 32), (base, hashes[base]), (base + 1, hashes[base + 1])):
        write_witness(log, seq, hash)  # the first is of what is gone: nothing can be said of it
        async with open_store(log) as store:
            assert store.base.seq == base + 1
    for seq, hash in ((base, b"\0" * 32), (base + 1, b"\0" * 32), (10**6, b"\0" * 32)):
        write_witness(log, seq, hash)
        with pytest.raises(TailLost):
            async with open_store(log):
                pass


def test_a_segment_that_is_cut_short_is_said_to_be_whatever_is_asked_of_it(log: Path) -> None:
    prune(log, "--keep", "1KiB")
    first, *_, last = sorted(Path(f"{log}.archive").iterdir())
    for segment in (first, last):
        segment.write_bytes(segment.read_bytes()[:-200])
        for command in ("show", "state", "stats", "waits", "replay", "verify"):
            done = subprocess.run(
                [BIN / "runnerlog", "--log", segment, command], capture_output=True, text=True, check=False
            )
            assert done.returncode == 1, command
            assert f"runnerlog: {segment} is damaged: the segment breaks at event" in done.stderr, command
            assert "the file is cut short" in done.stderr
            assert done.stdout, command
        done = subprocess.run(
            [BIN / "runnerlog", "--log", segment, "show", "--since", "nonsense"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert (done.returncode, "'nonsense' is none of" in done.stderr) == (2, True)
        done = subprocess.run(
            [BIN / "runnerlog", "--log", segment, "stats", "--since", "99999"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert (done.returncode, "the log ends before 99999" in done.stderr) == (2, True)


def test_a_log_of_other_rules_is_pruned(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What an older program's events add up to here need not be what that one has carried."""

    def otherwise(state: State, event: Event) -> None:
        apply(state, event)
        state.next_port = 7

    monkeypatch.setattr(past, "apply", otherwise)
    order = Order(str(log), 0, size_bytes=1)
    with Reader(log) as reader:
        with pytest.raises(LogError, match="is not what the events before it add up to"):
            list(cuts(reader, order, 0))
        monkeypatch.setattr(keeper, "RULES", RULES + 1)
        assert [cut.upto for cut in cuts(reader, order, 0)] == uptos(log)
