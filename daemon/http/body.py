"""Request bodies: received whole, small ones in memory, large ones in an unlinked file, all counted."""

from __future__ import annotations

import mmap
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from typing import BinaryIO

Pieces = Sequence[bytes | memoryview]
"""A text in parts, so that a large one need not be put together."""


class Held:
    """The bytes of all bodies together, against their limit."""

    __slots__ = ("bytes", "limit_bytes")

    def __init__(self, limit_bytes: int) -> None:
        self.bytes = 0
        self.limit_bytes = limit_bytes


class Body:
    """One request's body. `close` gives its bytes back to `held`; it may be filled again afterwards."""

    __slots__ = ("_counted", "_file", "_held", "_map", "_memory_bytes", "_pieces", "size")

    def __init__(self, held: Held, memory_bytes: int) -> None:
        self.size = 0
        self._held = held
        self._memory_bytes = memory_bytes
        self._counted = 0
        self._pieces: list[bytes] = []
        self._file: BinaryIO | None = None
        self._map: mmap.mmap | None = None

    def reserve(self, size: int) -> bool:
        """Count `size` bytes in all against the common limit; False (and no change) if they do not fit."""
        held = self._held
        more = size - self._counted
        if held.bytes + more > held.limit_bytes:
            return False
        held.bytes += more
        self._counted = size
        return True

    def add(self, piece: bytes) -> None:
        """Append what has come; it has been reserved before. Raises OSError where the disk has no room."""
        self.size += len(piece)
        if self._file is None:
            self._pieces.append(piece)
            if self.size > self._memory_bytes:
                self._spill()
        else:
            self._file.write(piece)
            self._file.flush()

    def replace(self, pieces: Pieces) -> None:
        """Put another text in its place, whose pieces may be views of this one. It stays counted as before:
        the two differ by a name. Where there is no disk for a large one, it is in memory."""
        size = sum(map(len, pieces))
        file = None
        if size > self._memory_bytes:
            with suppress(OSError):
                file = spilled(pieces)
        kept = [b"".join(pieces)] if file is None else []
        counted = self._counted
        self._counted = 0
        self.close()
        self._counted, self._file, self._pieces, self.size = counted, file, kept, size

    def _spill(self) -> None:
        self._file = spilled(self._pieces)
        self._pieces.clear()

    @property
    def in_file(self) -> bool:
        """It is large: looking at all of it takes long enough to do so in another thread."""
        return self._file is not None

    def view(self) -> bytes | mmap.mmap:
        """The whole body, valid until `close`."""
        if self._file is None:
            if len(self._pieces) > 1:
                self._pieces[:] = [b"".join(self._pieces)]
            return self._pieces[0] if self._pieces else b""
        if self._map is None:
            self._map = mmap.mmap(self._file.fileno(), 0, prot=mmap.PROT_READ)
        return self._map

    def close(self) -> None:
        """Forget the bytes and stop counting them. Idempotent."""
        if not (self._counted or self.size):
            return
        self._held.bytes -= self._counted
        self._counted = self.size = 0
        self._pieces.clear()
        if self._file is not None:
            self._file.close()
            self._file = None
            self._map = None  # not closed: a traceback's frames may still hold views of it


def spilled(pieces: Pieces) -> BinaryIO:
    """A file without a name that holds them. Raises OSError."""
    file = tempfile.TemporaryFile(prefix="runnerd-body-")  # noqa: SIM115 (closed by `close`)
    try:
        file.writelines(pieces)
        file.flush()
    except OSError:
        file.close()
        raise
    return file
