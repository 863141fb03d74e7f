"""Files that a command writes: for their owner only, whole or not at all, never over another by mistake."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import click

BESIDE_LOG = ("", "-wal", "-shm", "-journal", ".head", ".lock", ".breach")
"""How the names of a log and of the files beside it end."""

NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK, errno.EXDEV)
"""What a file system says that has no hard links."""


@contextmanager
def new_file(path: Path, *, force: bool, log: Path) -> Iterator[BinaryIO]:
    """A file that appears at `path` once the block has ended well. Raises ClickException where one is there
    already (unless `force`), where it would be part of `log`, and where it cannot be written."""
    place = Path(os.path.realpath(path))
    if str(place) in [os.path.realpath(log) + end for end in BESIDE_LOG]:
        raise click.ClickException(f"{path} belongs to the log")
    _refuse(path, place, force)
    part = place.with_name(f".{place.name[:200]}.{os.getpid()}.part")
    try:
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with open(descriptor, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            _move(part, place, path, force)
        finally:
            with suppress(FileNotFoundError):
                os.unlink(part)
    except OSError as error:
        raise click.ClickException(f"cannot write {path}: {error.strerror or error}") from error


def _refuse(path: Path, place: Path, force: bool) -> None:
    try:
        mode = os.lstat(place).st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise click.ClickException(f"cannot write {path}: {error.strerror}") from error
    if not stat.S_ISREG(mode):
        raise click.ClickException(f"{path} is there, and not a file")
    if not force:
        raise click.ClickException(f"{path} is there already; --force replaces it")


def _move(part: Path, place: Path, path: Path, force: bool) -> None:
    """Give the file its name. A link, unlike a rename, never takes the name of another."""
    if force:
        os.replace(part, place)
        return
    try:
        os.link(part, place)
    except FileExistsError:
        raise click.ClickException(f"{path} is there already; --force replaces it") from None
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        _refuse(path, place, force)
        os.replace(part, place)
