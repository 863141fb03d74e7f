"""Server-sent events, as they come: bytes in, in any pieces; the data of each whole event out."""

from __future__ import annotations

from daemon.limits import OLLAMA_EVENT_BYTES


class TooLong(ValueError):
    """An answer, or an event of it, is longer than any that a model server sends."""


class Events:
    """One stream. Lines end with LF, CRLF or CR; comments and fields other than `data` are passed over."""

    __slots__ = ("_data", "_data_bytes", "_pieces", "_pieces_bytes")

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        """What has come of a line that has not ended."""
        self._pieces_bytes = 0
        self._data: list[bytes] = []
        """The lines of data of an event that has not ended."""
        self._data_bytes = 0

    def feed(self, piece: bytes) -> list[bytes]:
        """The data of the events that end in this piece. Raises TooLong."""
        if b"\n" not in piece and b"\r" not in piece and not self._after_return():
            return self._keep(piece)
        lines = (b"".join(self._pieces) + piece).splitlines(keepends=True)
        self._pieces, self._pieces_bytes = [], 0
        if not lines[-1].endswith(b"\n"):  # a CR may be half of a CRLF
            self._keep(lines.pop())
        return [data for line in lines if (data := self._line(line.rstrip(b"\r\n"))) is not None]

    def end(self) -> list[bytes]:
        """The stream is over: the event that nothing ended, if there is one. Raises TooLong."""
        found = self.feed(b"\n\n")
        return found

    def _after_return(self) -> bool:
        return bool(self._pieces) and self._pieces[-1].endswith(b"\r")

    def _keep(self, piece: bytes) -> list[bytes]:
        if piece:
            self._pieces.append(piece)
            self._pieces_bytes += len(piece)
            if self._pieces_bytes > OLLAMA_EVENT_BYTES:
                raise TooLong("an event of it is too long")
        return []

    def _line(self, line: bytes) -> bytes | None:
        """Take a line; the data of an event, where it was the empty line that ends one."""
        if not line:
            if not self._data:
                return None
            data = b"\n".join(self._data)
            self._data, self._data_bytes = [], 0
            return data
        if line.startswith(b"data:"):
            value = line[5:].removeprefix(b" ")
            self._data.append(value)
            self._data_bytes += len(value)
            if self._data_bytes > OLLAMA_EVENT_BYTES:
                raise TooLong("an event of it is too long")
        return None
