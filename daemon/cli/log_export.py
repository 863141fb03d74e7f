"""`runnerlog export`: events as a file for other programs, in JSON lines or Parquet."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, closing, nullcontext
from pathlib import Path
from typing import Any, BinaryIO

import click

from daemon.cli.files import new_file
from daemon.cli.logfile import Settings
from daemon.cli.moments import BEGIN, END, Moment, Past, between
from daemon.cli.output import size
from daemon.cli.select import fields_of, meant, selected
from daemon.limits import EXPORT_BATCH_ROWS
from daemon.version import VERSION
from events.reader import Reader

Write = Callable[[list[dict[str, Any]]], None]
"""Writes some events, by their fields."""

SUFFIXES = {"": "jsonl", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".parquet": "parquet"}
"""What a file's name says of its format."""
STANDARD_OUTPUT = ("-", "/dev/stdout")


@click.command()
@click.option("--since", type=Moment(), help=BEGIN)
@click.option("--until", type=Moment(end=True), help=END)
@click.option(
    "--format",
    "form",
    type=click.Choice(["jsonl", "parquet"]),
    help="JSON lines, as `show --json` prints them, or Parquet (default: by the file's name).",
)
@click.option("--output", "-o", "path", type=click.Path(path_type=Path), required=True, metavar="FILE")
@click.option("--force", is_flag=True, help="Replace the file if it is there.")
@click.argument("subjects", nargs=-1)
@click.pass_obj
def export(
    settings: Settings,
    since: int | Past | None,
    until: int | Past | None,
    form: str | None,
    path: Path,
    force: bool,
    subjects: tuple[str, ...],
) -> None:
    """Write events to FILE, for this user only; with SUBJECTS (q12, r17, a model's name) only theirs.

    Without them it is whole steps: each fact of that time with all decisions that followed from it. A FILE of
    - is standard output.
    """
    printed = str(path) in STANDARD_OUTPUT
    writer = parquet_writer if (form or _format_of(path)) == "parquet" else lines_writer
    output = settings.output
    with settings.open() as reader:
        after, upto = between(reader, since, until)
        if not subjects:
            after, upto = whole_steps(reader, after, upto)
        with (
            nullcontext(_silent) if printed else output.progress("exporting") as say,
            output.stream() if printed else new_file(path, force=force, log=settings.path) as file,
            writer(file, reader.log_id) as write,
        ):
            count = 0
            for batch in batches(map(fields_of, selected(reader, subjects, after, upto))):
                write(batch)
                count += len(batch)
                say(f"exporting: {count:,} events, up to {batch[-1]['seq']:,} of {upto:,}")
        if not count:
            words = f"runnerlog: no event of this log is what was asked for{meant(reader, subjects)}"
            click.echo(words, err=True)
    if printed:
        return
    written = path.stat().st_size
    if output.machine:
        output.line({"ok": True, "events": count, "bytes": written, "path": str(path)})
    else:
        output.text(f"{count:,} event{'' if count == 1 else 's'}, {size(written)}: {path}")


def _format_of(path: Path) -> str:
    """The format that a file's name says. Raises UsageError."""
    form = SUFFIXES.get(path.suffix)
    if form is None:
        known = ", ".join(filter(None, SUFFIXES))
        raise click.UsageError(f"no format is known for {path.name} ({known}): say which by --format")
    return form


def _silent(text: str) -> None:
    """Progress would be in the middle of what is written."""


def whole_steps(reader: Reader, after: int, upto: int) -> tuple[int, int]:
    """The range, with all of the steps of which it holds a part."""
    for record in reader.records(after, after + 1):
        after = record.cause - 1 if record.cause and upto > after else after
    for record in reader.records(upto) if upto > after else ():
        if not record.cause:
            break
        upto = record.seq
    return after, upto


def batches(rows: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """The rows, so many at a time."""
    batch: list[dict[str, Any]] = []
    for row in rows:
        batch.append(row)
        if len(batch) == EXPORT_BATCH_ROWS:
            yield batch
            batch = []
    if batch:
        yield batch


class _Lines:
    """Writes events as JSON lines."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def __call__(self, rows: list[dict[str, Any]]) -> None:
        lines = [json.dumps(row, separators=(",", ":"), ensure_ascii=False) for row in rows]
        self._file.write(("\n".join(lines) + "\n").encode())

    def close(self) -> None:
        """Nothing is left to be written."""


def lines_writer(file: BinaryIO, log_id: str) -> AbstractContextManager[Write]:
    """Writes JSON lines: the fields of `show --json`."""
    return closing(_Lines(file))


def parquet_writer(file: BinaryIO, log_id: str) -> AbstractContextManager[Write]:
    """Writes Parquet, with the same fields; the payload is JSON text. Raises ClickException where pyarrow is
    missing."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise click.ClickException("Parquet needs pyarrow: pip install 'runnerd[parquet]'") from None
    kinds = {
        "seq": pyarrow.int64(),
        "at_ns": pyarrow.int64(),
        "t_ns": pyarrow.int64(),
        "type": pyarrow.dictionary(pyarrow.int16(), pyarrow.string()),
        "version": pyarrow.int32(),
        "cause": pyarrow.int64(),
        "subject": pyarrow.string(),
        "payload": pyarrow.string(),
    }
    about = {"runnerd.log": log_id, "runnerd.version": VERSION}
    schema = pyarrow.schema(kinds.items(), metadata=about)

    class Table:
        """Writes events as the next row group."""

        def __init__(self) -> None:
            self._writer = parquet.ParquetWriter(file, schema, compression="zstd")

        def __call__(self, rows: list[dict[str, Any]]) -> None:
            for row in rows:
                row["payload"] = json.dumps(row["payload"], separators=(",", ":"), ensure_ascii=False)
            self._writer.write_table(pyarrow.Table.from_pylist(rows, schema=schema))

        def close(self) -> None:
            """Write what closes the file."""
            self._writer.close()

    return closing(Table())


__all__ = ["export", "whole_steps"]
