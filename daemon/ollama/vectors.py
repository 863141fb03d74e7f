"""A model server's embeddings as Ollama's. Their numbers are passed on as they are written."""

from __future__ import annotations

import math
from time import monotonic_ns

import msgspec

from daemon.http.answers import JSON
from daemon.limits import OLLAMA_ERROR_BYTES, OLLAMA_WHOLE_BYTES
from daemon.ollama import heard, said
from daemon.ollama.heard import NotUnderstood
from daemon.ollama.replies import Clock, Whole, failed_status
from daemon.ollama.wrong import INVALID_JSON


class _Vector(msgspec.Struct, gc=False):
    embedding: msgspec.Raw
    index: int = 0


class _Vectors(msgspec.Struct, gc=False):
    data: list[_Vector]
    usage: heard.Usage | None = None


class EmbedAnswer(msgspec.Struct, omit_defaults=True, gc=False):
    """The answer of /api/embed."""

    model: str
    embeddings: list[msgspec.Raw]
    total_duration: int = 0
    load_duration: int = 0
    prompt_eval_count: int = 0


class VectorReply:
    """The answer to /api/embed (`many`) or /api/embeddings. See `daemon.http.calls.Translation`."""

    def __init__(
        self, model: str, *, many: bool = True, dimensions: int = 0, clock: Clock = monotonic_ns
    ) -> None:
        self._model = model
        self._many = many
        self._dimensions = dimensions
        self._clock = clock
        self._asked_ns = self._began_ns = clock()
        self._reset()

    def _reset(self) -> None:
        self._whole = Whole(OLLAMA_WHOLE_BYTES)
        self._failed = self._over = False

    def began(self) -> None:
        """The request goes to a runner: for the first time, or once more."""
        self._began_ns = self._clock()
        self._reset()

    def head(self, status: int, content_type: bytes) -> tuple[int, bytes]:
        """The runner's head is here."""
        if status >= 300:
            self._failed = True
            self._whole = Whole(OLLAMA_ERROR_BYTES)
            return failed_status(status), JSON
        return 200, JSON

    def feed(self, piece: bytes) -> bytes:
        """A piece of the runner's body."""
        if self._over:
            return b""
        self._whole.add(piece)
        return b""

    def end(self) -> bytes:
        """The runner's body is complete."""
        if self._over:
            return b""
        if self._failed:
            return self.broken(heard.error(self._whole.all()))
        try:
            return self._answer(self._whole.all())
        except INVALID_JSON as invalid:
            raise NotUnderstood(str(invalid)) from None

    def broken(self, message: str) -> bytes:
        """It broke off: the last words."""
        if self._over:
            return b""
        self._over = True
        return said.error(message)

    def _answer(self, body: bytes) -> bytes:
        found = msgspec.json.decode(body, type=_Vectors)
        vectors = [vector.embedding for vector in sorted(found.data, key=lambda vector: vector.index)]
        if not self._many:
            return msgspec.json.encode({"embedding": vectors[0] if vectors else []})
        if self._dimensions:
            vectors = [_cut(vector, self._dimensions) for vector in vectors]
        answer = EmbedAnswer(self._model, vectors)
        answer.total_duration = self._clock() - self._asked_ns
        answer.load_duration = self._began_ns - self._asked_ns
        if found.usage is not None:
            answer.prompt_eval_count = found.usage.prompt_tokens or 0
        return msgspec.json.encode(answer)


def _cut(vector: msgspec.Raw, dimensions: int) -> msgspec.Raw:
    """The first numbers of a vector, of length 1 again."""
    numbers = msgspec.json.decode(vector, type=list[float])
    if len(numbers) <= dimensions:
        return vector
    numbers = numbers[:dimensions]
    length = max(math.hypot(*numbers), 1e-12)
    return msgspec.Raw(msgspec.json.encode([number / length for number in numbers]))
