"""A model server's answer, in any pieces, as Ollama's: text streamed or whole, line by line as it comes."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic_ns
from typing import Any

import msgspec

from daemon.http.answers import JSON
from daemon.limits import OLLAMA_CALLS, OLLAMA_CALLS_CHARS, OLLAMA_ERROR_BYTES, OLLAMA_WHOLE_BYTES
from daemon.ollama import heard, said
from daemon.ollama.heard import NotUnderstood, Piece
from daemon.ollama.said import MS, Called, CalledFunction, ChatLine, Figures, GenerateLine, Said
from daemon.ollama.sse import Events, TooLong
from daemon.ollama.wrong import INVALID_JSON

NDJSON = b"application/x-ndjson"
DONE = b"[DONE]"

Clock = Callable[[], int]


def failed_status(status: int) -> int:
    """The status of a model server's error. That it lacks an endpoint must not look like a missing model,
    which Ollama's clients try to pull then."""
    if status in (404, 405):
        return 501
    return status if status >= 400 else 502


class Whole:
    """Collects a body that cannot be translated before its end."""

    __slots__ = ("_limit_bytes", "_pieces", "bytes")

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._pieces: list[bytes] = []
        self.bytes = 0

    def add(self, piece: bytes) -> None:
        """Raises TooLong."""
        self.bytes += len(piece)
        if self.bytes > self._limit_bytes:
            self._pieces.clear()
            raise TooLong("it is too long")
        self._pieces.append(piece)

    def all(self) -> bytes:
        """The body."""
        return b"".join(self._pieces)


class Calls:
    """Tool calls, of which a stream sends the parts."""

    def __init__(self) -> None:
        self._calls: dict[int, list[str]] = {}
        """By index: id, name, arguments."""
        self._chars = 0

    def add(self, parts: list[heard.ToolCall]) -> None:
        """Raises TooLong."""
        for place, part in enumerate(parts):
            call = self._calls.setdefault(place if part.index is None else part.index, ["", "", ""])
            function = part.function or heard.Function()
            arguments = function.arguments
            if isinstance(arguments, dict):
                arguments = msgspec.json.encode(arguments).decode()
            for i, text in enumerate((part.id, function.name, arguments)):
                if text:
                    call[i] += text
                    self._chars += len(text)
            if self._chars > OLLAMA_CALLS_CHARS or len(self._calls) > OLLAMA_CALLS:
                raise TooLong("its tool calls are too long")

    def take(self) -> tuple[list[Called], str]:
        """All that are there, whole. One that the model has not said to its end, or not well, is text, as it
        is in Ollama: what it meant is for the client to judge."""
        calls, self._calls = self._calls, {}
        whole: list[Called] = []
        text = ""
        for index in sorted(calls):
            id, name, arguments = calls[index]
            try:
                found = msgspec.json.decode(arguments or "{}", type=dict[str, Any])
            except INVALID_JSON:
                text += f'{{"name": {msgspec.json.encode(name).decode()}, "arguments": {arguments}'
            else:
                whole.append(Called(CalledFunction(index, name, found), id))
        return whole, text


class Times:
    """When what happened, for the figures of the last line."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.asked_ns = self.began_ns = self.first_ns = clock()
        self._first = False
        self._pieces = 0

    def began(self) -> None:
        """The model is loaded, and has been asked."""
        self.began_ns = self.first_ns = self._clock()
        self._first = False
        self._pieces = 0

    def came(self) -> None:
        """A piece of its answer has come."""
        if not self._first:
            self._first = True
            self.first_ns = self._clock()
        self._pieces += 1

    def fill(
        self, line: Figures, usage: heard.Usage | None, timings: heard.Timings | None, *, streamed: bool
    ) -> None:
        """The figures: the server's own, where it has any; else what was seen from here."""
        now = self._clock()
        line.total_duration = now - self.asked_ns
        line.load_duration = self.began_ns - self.asked_ns
        line.eval_duration = now - self.began_ns  # typed clients insist on it
        if streamed:
            line.prompt_eval_duration = self.first_ns - self.began_ns
            line.eval_duration = now - self.first_ns
            line.eval_count = self._pieces
        if timings is not None:
            line.prompt_eval_count = timings.cache_n + timings.prompt_n
            line.eval_count = timings.predicted_n
            line.prompt_eval_duration = int(timings.prompt_ms * MS)
            line.eval_duration = int(timings.predicted_ms * MS)
        if usage is not None:
            line.prompt_eval_count = usage.prompt_tokens or line.prompt_eval_count
            line.eval_count = usage.completion_tokens or line.eval_count


class TextReply:
    """The answer to /api/chat or /api/generate. See `daemon.http.calls.Translation`."""

    def __init__(
        self,
        form: str,
        model: str,
        *,
        streamed: bool,
        top_logprobs: bool = False,
        clock: Clock = monotonic_ns,
    ) -> None:
        self._form = form
        self._model = model
        self._streamed = streamed
        self._top_logprobs = top_logprobs
        self._times = Times(clock)
        self._reset()

    def _reset(self) -> None:
        self._failed = False
        """The server answers with an error."""
        self._over = False
        """The last line is said; what comes behind it is passed over."""
        self._events: Events | None = None
        self._whole = Whole(OLLAMA_WHOLE_BYTES)
        self._calls = Calls()
        self._wrong: ValueError | None = None
        """What was found behind lines that had to go out first."""
        self._finish = ""
        self._usage: heard.Usage | None = None
        self._timings: heard.Timings | None = None

    # --- what the relay calls ----------------------------------------------------------------------------

    def began(self) -> None:
        """The request goes to a runner: for the first time, or once more."""
        self._times.began()
        self._reset()

    def head(self, status: int, content_type: bytes) -> tuple[int, bytes]:
        """The runner's head is here."""
        if status >= 300:
            self._failed = True
            self._whole = Whole(OLLAMA_ERROR_BYTES)
            return failed_status(status), JSON
        if self._streamed and content_type.lower().startswith(b"text/event-stream"):
            self._events = Events()
        return 200, NDJSON if self._streamed else JSON

    def feed(self, piece: bytes) -> bytes:
        """A piece of the runner's body."""
        if self._over:
            return b""
        if self._wrong is not None:
            raise self._wrong
        if self._events is None:
            self._whole.add(piece)
            return b""
        return self._take(self._events.feed(piece))

    def end(self) -> bytes:
        """The runner's body is complete."""
        if self._over:
            return b""
        if self._wrong is not None:
            raise self._wrong
        if self._failed:
            return self.broken(heard.error(self._whole.all()))
        if self._events is None:
            return self._one(heard.piece(self._whole.all()))
        return self._take(self._events.end()) + self._last()

    def broken(self, message: str) -> bytes:
        """It broke off: the last words."""
        if self._over:
            return b""
        self._over = True
        return said.error(message) + (b"\n" if self._streamed and not self._failed else b"")

    # --- the lines ---------------------------------------------------------------------------------------

    def _take(self, events: list[bytes]) -> bytes:
        """What the events say, as lines. Raises ValueError."""
        lines: list[bytes] = []
        try:
            for data in events:
                lines.append(self._last() if data == DONE else self._one(heard.piece(data)))
        except ValueError as error:
            if not lines:
                raise
            self._wrong = error
        return b"".join(lines)

    def _one(self, piece: Piece) -> bytes:
        """What one event adds. Raises ValueError."""
        if self._over:
            return b""
        if piece.error:
            return self.broken(piece.error)
        self._usage = piece.usage or self._usage
        self._timings = piece.timings or self._timings
        self._calls.add(piece.calls)
        if piece.text or piece.thinking or piece.calls:
            self._times.came()
        if self._events is None:
            return self._whole_answer(piece)
        lines = b""
        if piece.text or piece.thinking or piece.likely:
            lines = self._encode(self._line(piece))
        if piece.finish:
            self._finish = piece.finish
            calls, text = self._calls.take()
            if calls or text:
                lines += self._encode(self._line(Piece(text=text), calls))
        return lines

    def _last(self) -> bytes:
        """The last line of a stream. Raises ValueError."""
        if self._over:
            return b""
        if not self._finish:
            raise NotUnderstood("it ends without a last word")
        return self._done(self._line(Piece()))

    def _whole_answer(self, piece: Piece) -> bytes:
        if not (piece.finish or piece.text or piece.thinking or piece.calls):
            raise NotUnderstood("there is no choice in it")
        self._finish = piece.finish or "stop"
        calls, text = self._calls.take()
        piece.text += text
        return self._done(self._line(piece, calls))

    def _done(self, line: ChatLine | GenerateLine) -> bytes:
        line.done, line.done_reason = True, self._finish
        if isinstance(line, GenerateLine):
            line.context = []  # nothing is kept here, but typed clients insist on the member
        self._times.fill(line, self._usage, self._timings, streamed=self._events is not None)
        encoded = self._encode(line)
        self._over = True
        return encoded

    def _line(self, piece: Piece, calls: list[Called] | None = None) -> ChatLine | GenerateLine:
        logprobs = said.tokens(piece.likely, alternatives=self._top_logprobs)
        if self._form == "chat":
            message = Said("assistant", piece.text, piece.thinking, calls or [])
            return ChatLine(self._model, said.now(), message, False, logprobs)
        return GenerateLine(self._model, said.now(), piece.text, False, piece.thinking, logprobs=logprobs)

    def _encode(self, line: ChatLine | GenerateLine) -> bytes:
        return msgspec.json.encode(line) + (b"\n" if self._streamed else b"")
