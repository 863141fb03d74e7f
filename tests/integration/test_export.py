"""runnerlog export: JSON lines and Parquet, of good and damaged logs, onto files that are there or not."""

from __future__ import annotations

import errno
import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow
import pytest
import trio
from click import ClickException
from click.testing import CliRunner
from pyarrow import parquet

from daemon.cli import files, log_export, runnerlog
from events.catalogue import Decision
from events.reader import Reader
from events.store import open_store
from statemachines.replay import steps
from tests.integration.live import BIN, PATIENCE_S, Command
from tests.integration.terminal import shown
from tests.integration.test_verify import edit, story

AT = 1_700_000_000_000_000_000


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """A log of two models that take turns."""
    path = tmp_path / "events.db"

    async def write() -> None:
        async with open_store(path) as store:
            for step in steps(story()):
                store.append(step, AT + step[0].t)

    trio.run(write)
    return path


def run(log: Path, *arguments: str | Path) -> Any:
    """The command without a terminal."""
    return subprocess.run(
        [BIN / "runnerlog", "--log", log, *arguments], capture_output=True, text=True, timeout=PATIENCE_S,
        check=False,
    )  # fmt: skip


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def shown_rows(log: Path, *arguments: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in run(log, "--json", "show", *arguments).stdout.splitlines()]


def left(folder: Path) -> list[str]:
    """What a failed export must not leave."""
    return [path.name for path in folder.iterdir() if ".part" in path.name]


def test_json_lines_are_those_of_show(log: Path, tmp_path: Path) -> None:
    done = run(log, "export", "-o", tmp_path / "all.jsonl")
    assert (done.returncode, done.stderr) == (0, "")
    exported = lines(tmp_path / "all.jsonl")
    assert exported == shown_rows(log)
    told = json.loads(done.stdout)
    assert told == {
        "ok": True, "events": len(story()), "bytes": (tmp_path / "all.jsonl").stat().st_size,
        "path": str(tmp_path / "all.jsonl"),
    }  # fmt: skip
    assert stat.S_IMODE((tmp_path / "all.jsonl").stat().st_mode) == 0o600


def test_parquet_has_the_same_fields(log: Path, tmp_path: Path) -> None:
    assert run(log, "export", "-o", tmp_path / "all.parquet").returncode == 0
    table = parquet.read_table(tmp_path / "all.parquet")
    rows = [{**row, "payload": json.loads(row["payload"])} for row in table.to_pylist()]
    assert rows == shown_rows(log)
    with Reader(log) as reader:
        assert table.schema.metadata[b"runnerd.log"].decode() == reader.log_id
    assert table.schema.field("at_ns").type == pyarrow.int64()
    assert stat.S_IMODE((tmp_path / "all.parquet").stat().st_mode) == 0o600
    assert run(log, "export", "--format", "jsonl", "-o", tmp_path / "odd.parquet").returncode == 0
    assert lines(tmp_path / "odd.parquet") == shown_rows(log)


def test_some_subjects(log: Path, tmp_path: Path) -> None:
    assert run(log, "export", "-o", tmp_path / "blue.jsonl", "blue").returncode == 0
    assert lines(tmp_path / "blue.jsonl") == shown_rows(log, "blue") != shown_rows(log)
    done = run(log, "export", "-o", tmp_path / "none.jsonl", "grey")
    assert (json.loads(done.stdout)["events"], (tmp_path / "none.jsonl").read_text()) == (0, "")
    assert run(log, "export", "-o", tmp_path / "none.parquet", "grey").returncode == 0
    assert parquet.read_table(tmp_path / "none.parquet").num_rows == 0
    told = run(log, "--no-json", "export", "-o", tmp_path / "near.jsonl", "blu")
    assert (told.returncode, told.stdout) == (0, f"0 events, 0 B: {tmp_path / 'near.jsonl'}\n")
    assert told.stderr.startswith(
        "runnerlog: no event of this log is what was asked for; did you mean blue? (A log knows"
    )


def test_a_name_says_the_format_or_is_refused(log: Path, tmp_path: Path) -> None:
    for name in ("a.json", "a.ndjson", "a"):
        assert run(log, "export", "-o", tmp_path / name).returncode == 0
        assert lines(tmp_path / name) == shown_rows(log)
    done = run(log, "export", "-o", tmp_path / "a.csv")
    assert (done.returncode, done.stdout) == (2, "")
    assert "no format is known for a.csv (.jsonl, .ndjson, .json, .parquet): say which by --format" in (
        done.stderr
    )
    assert not (tmp_path / "a.csv").exists()
    assert run(log, "export", "--format", "jsonl", "-o", tmp_path / "a.csv").returncode == 0
    assert lines(tmp_path / "a.csv") == shown_rows(log)


def test_standard_output(log: Path, tmp_path: Path) -> None:
    for name in ("-", "/dev/stdout"):
        done = run(log, "export", "-o", name)
        assert (done.returncode, done.stderr) == (0, "")
        assert [json.loads(line) for line in done.stdout.splitlines()] == shown_rows(log)
    assert run(log, "export", "-o", "-", "grey").stdout == ""
    command: Command = [BIN / "runnerlog", "--log", log, "export", "--format", "parquet", "-o", "-"]
    with (tmp_path / "all").open("wb") as file:
        subprocess.run(command, stdout=file, check=True)
    assert parquet.read_table(tmp_path / "all").num_rows == len(story())
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [BIN / "runnerlog", "--log", log, "export", "-o", "-"],
            stdout=full, stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr == "runnerlog: cannot write what it prints: No space left on device\n"


def test_steps_are_whole(log: Path, tmp_path: Path) -> None:
    """Whatever moments are asked for, no fact comes without what followed from it."""
    whole = {event.seq: (step[0].seq, step[-1].seq) for step in steps(story()) for event in step}
    inside = [event.seq for event in story() if isinstance(event.body, Decision)]
    for since, until in (
        (inside[0], inside[0]),
        (inside[1], inside[4]),
        (1, 1),
        (len(story()), len(story())),
    ):
        path = tmp_path / f"{since}-{until}.jsonl"
        assert run(log, "export", "--since", str(since), "--until", str(until), "-o", path).returncode == 0
        seqs = [row["seq"] for row in lines(path)]
        assert seqs == list(range(whole[since][0], whole[until][1] + 1))
    assert run(log, "export", "--since", "9999", "-o", tmp_path / "late.jsonl").returncode == 0
    assert lines(tmp_path / "late.jsonl") == []
    assert run(log, "export", "--until", "0", "-o", tmp_path / "early.jsonl").returncode == 0
    assert lines(tmp_path / "early.jsonl") == []


def test_by_time_of_day(log: Path, tmp_path: Path) -> None:
    path = tmp_path / "late.jsonl"
    assert run(log, "export", "--since", "2023-11-14 22:13:22+00:00", "-o", path).returncode == 0
    assert [row["seq"] for row in lines(path)] == [
        row["seq"] for row in shown_rows(log) if row["at_ns"] >= AT + 2 * 10**9
    ]
    assert 0 < len(lines(path)) < len(story())


def test_batches_hold_all(log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_export, "EXPORT_BATCH_ROWS", 7)
    for name in ("a.jsonl", "a.parquet"):
        result = CliRunner().invoke(
            runnerlog.cli, ["--log", str(log), "export", "-o", str(tmp_path / name)], obj=None
        )
        assert result.exit_code == 0, result.output
    assert lines(tmp_path / "a.jsonl") == shown_rows(log)
    found = parquet.ParquetFile(tmp_path / "a.parquet")
    assert found.metadata.num_rows == len(story())
    assert found.num_row_groups == -(-len(story()) // 7)


def test_a_person_is_told_in_words(log: Path, tmp_path: Path) -> None:
    result = shown([BIN / "runnerlog", "--log", log, "export", "-o", tmp_path / "x.jsonl"], columns=200)
    assert result.code == 0
    assert result.lines[-2].startswith(f"{len(story())} events, ")
    assert result.lines[-2].endswith(f"KiB: {tmp_path / 'x.jsonl'}")


# --- files that are there, or cannot be -----------------------------------------------------------------


def test_what_is_there_is_replaced_only_by_force(log: Path, tmp_path: Path) -> None:
    path = tmp_path / "kept.jsonl"
    path.write_text("mine")
    path.chmod(0o644)
    done = run(log, "export", "-o", path)
    assert done.returncode == 1
    assert f"{path} is there already; --force replaces it" in done.stderr
    assert path.read_text() == "mine"
    assert run(log, "export", "--force", "-o", path).returncode == 0
    assert lines(path) == shown_rows(log)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert left(tmp_path) == []


def test_a_link_is_followed_and_kept(log: Path, tmp_path: Path) -> None:
    path = tmp_path / "link"
    path.symlink_to(tmp_path / "target")
    assert run(log, "export", "-o", path).returncode == 0
    assert path.is_symlink()
    assert lines(tmp_path / "target") == shown_rows(log)
    assert run(log, "export", "-o", path).returncode == 1


@pytest.mark.parametrize("force", [[], ["--force"]])
def test_what_must_not_be_overwritten(log: Path, tmp_path: Path, force: list[str]) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    before = shown_rows(log)
    for path, words in (
        (log, "belongs to the log"),
        (tmp_path / "events.db-wal", "belongs to the log"),
        (tmp_path / "events.db.head", "belongs to the log"),
        (tmp_path, "is there, and not a file"),
        (fifo, "is there, and not a file"),
        (tmp_path / "no" / "such", "No such file or directory"),
        (log / "below", "Not a directory"),
    ):
        done = run(log, "export", "--format", "jsonl", *force, "-o", path)
        assert (done.returncode, done.stdout) == (1, ""), path
        assert words in done.stderr
        assert "Traceback" not in done.stderr
    assert stat.S_ISFIFO(fifo.stat().st_mode)
    assert shown_rows(log) == before
    assert left(tmp_path) == []


def test_a_file_that_comes_meanwhile_stays(log: Path, tmp_path: Path) -> None:
    path = tmp_path / "late.jsonl"
    with (
        pytest.raises(Exception, match="--force replaces it"),
        files.new_file(path, force=False, log=log) as f,
    ):
        f.write(b"ours")
        path.write_text("theirs")
    assert path.read_text() == "theirs"
    assert left(tmp_path) == []


@pytest.mark.parametrize("force", [False, True])
def test_a_file_system_without_links_does_as_well(
    log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, force: bool
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    path = tmp_path / "out"
    with files.new_file(path, force=force, log=log) as file:
        file.write(b"ours")
    assert path.read_text() == "ours"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(ClickException), files.new_file(path, force=False, log=log) as file:
        file.write(b"again")
    assert path.read_text() == "ours"
    assert left(tmp_path) == []


def test_what_is_interrupted_leaves_nothing(log: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), files.new_file(tmp_path / "out", force=False, log=log) as file:
        file.write(b"half")
        raise KeyboardInterrupt
    assert not (tmp_path / "out").exists()
    assert left(tmp_path) == []


def test_a_full_disk_is_said(log: Path, tmp_path: Path) -> None:
    with (
        pytest.raises(ClickException, match=r"cannot write .*out: No space left on device"),
        files.new_file(tmp_path / "out", force=False, log=log),
    ):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_damaged_log_leaves_no_file(log: Path, tmp_path: Path) -> None:
    edit(log, lambda db: db.execute("UPDATE events SET payload = '{}' WHERE seq = 9"))
    for name in ("x.jsonl", "x.parquet"):
        done = run(log, "export", "-o", tmp_path / name)
        assert done.returncode == 1
        assert json.loads(done.stdout)["seq"] == 9
        assert not (tmp_path / name).exists()
    assert left(tmp_path) == []


def test_without_pyarrow_it_says_what_to_install(log: Path, tmp_path: Path) -> None:
    script = (
        "import sys; sys.modules['pyarrow'] = None; from daemon.cli.runnerlog import main; sys.exit(main())"
    )
    arguments: Command = ["--log", log, "export", "-o", tmp_path / "x.parquet"]
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "Parquet needs pyarrow: pip install 'runnerd[parquet]'" in done.stderr
    assert left(tmp_path) == []
