"""What a GGUF file says of its model: shape, trained context, and the size of its tensors. Never their data.

    python -m daemon.gguf PATH...    one JSON line each, in their order: {"gguf": …} or {"error": …}

A model's file comes from anywhere, so nothing of it is believed: every count and length has a limit, arrays
are skipped rather than built, and the daemon runs this in a process of its own that may take little memory
and little time (`daemon.estimates`).
"""

from __future__ import annotations

import os
import re
import resource
import stat
import struct
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import msgspec

from daemon import ggml
from events.limits import (
    GGUF_CPU_S,
    GGUF_KEPT_ELEMENTS,
    GGUF_KEYS,
    GGUF_LAYERS,
    GGUF_MEMORY_BYTES,
    GGUF_NAME_BYTES,
    GGUF_PARTS,
    GGUF_READ_BYTES,
    GGUF_TEMPLATE_BYTES,
    GGUF_TENSORS,
)

CHUNK_BYTES = 1 << 20
DIMENSIONS = 4
"""Of a tensor at most: ggml's GGML_MAX_DIMS."""

STRING, ARRAY, BOOL = 8, 9, 7
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "B", 10: "Q", 11: "q", 12: "d"}
"""GGUF's value types of a fixed size, as `struct` has them."""

Scalar = int | float | str
Value = Scalar | tuple[Scalar, ...]

KEPT = {
    "architecture", "alignment", "context_length", "block_count", "embedding_length", "feed_forward_length",
    "expert_feed_forward_length", "expert_used_count", "vocab_size", "pooling_type", "attention.head_count",
    "attention.head_count_kv", "attention.key_length", "attention.value_length", "attention.key_length_swa",
    "attention.value_length_swa", "attention.sliding_window", "attention.sliding_window_pattern",
    "ssm.conv_kernel", "ssm.inner_size", "ssm.state_size", "ssm.group_count", "wkv.head_size",
    "vision.block_count", "has_vision_encoder", "file_type",
}  # fmt: skip
"""Keys that are kept, without the architecture's name before them; of all others only the length is read."""

VOCABULARY = "tokenizer.ggml.tokens"
TEMPLATE = "tokenizer.chat_template"

TOOL_WORDS = (b"tools", b"tool_call")
"""What a chat template names that knows of tools: Ollama looks for the same."""

THINKING_WORDS = (b"<think>", b"</think>")
"""What a chat template names, all of it, whose model thinks before it answers."""

DROPS_THOUGHTS = (b"content.split('</think>')", b'content.split("</think>")')
"""How others, as of DeepSeek R1, drop what was thought earlier, without naming where that begins."""

NO_THOUGHTS = (b"reasoning_content", b"<SPECIAL_12>")
"""What those of them name whose model does not think, for all that."""

THINKING = ("gpt-oss", "gptoss")
"""Architectures that think, but not between such words."""

SPLIT = re.compile(r"(.*-)([0-9]{5})-of-([0-9]{5})(\.gguf)")

EMBEDDING_ONLY = {
    "bert", "modern-bert", "nomic-bert", "nomic-bert-moe", "neo-bert", "jina-bert-v2", "jina-bert-v3",
    "eurobert", "gemma-embedding", "llama-embed", "t5encoder",
}  # fmt: skip
"""Architectures that generate no text; so do not those that name a way of pooling."""


class GgufError(Exception):
    """The file is no GGUF file, is damaged, or asks for more than any model needs."""


class Gguf(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is known of a model from its file (all of its parts). Sizes in bytes, lengths in elements.

    kv_heads: of each layer; 0 where a layer has no attention. window: tokens that the layers marked in
    `windowed` look back at. recurrent: floats of state that a sequence has in each layer without attention.
    """

    architecture: str
    tensor_bytes: dict[str, int]
    """By type of ggml."""
    trained_context: int = 0
    layers: int = 0
    embedding: int = 0
    feed_forward: int = 0
    """Of the experts that are used at once, all together."""
    heads: int = 0
    kv_heads: tuple[int, ...] = ()
    key_length: int = 0
    value_length: int = 0
    window: int = 0
    windowed: tuple[bool, ...] = ()
    recurrent: int = 0
    vocabulary: int = 0
    embedding_only: bool = False
    vision: bool = False
    file_type: int = -1
    """llama.cpp's number of the quantisation that it was made with; -1: it does not say."""
    tools: bool = False
    """Its chat template knows of tools."""
    thinking: bool = False

    @property
    def parameters(self) -> int:
        """How many numbers the model is made of."""
        types = ((ggml.BY_NAME[name], size) for name, size in self.tensor_bytes.items())
        return sum(size // type.block_bytes * type.block_elements for type, size in types)

    @property
    def weights_bytes(self) -> int:
        """All of its tensors."""
        return sum(self.tensor_bytes.values())


def read(path: Path) -> Gguf:
    """A model's file; where it is one part of several, all of them. Raises GgufError and OSError."""
    values: dict[str, Value] = {}
    sizes: dict[str, int] = {}
    for i, part in enumerate(parts(path)):
        found = _read_part(part)
        values = found.values if i == 0 else values
        for name, size in found.tensor_bytes.items():
            sizes[name] = sizes.get(name, 0) + size
    return _model(values, sizes)


def parts(path: Path) -> list[Path]:
    """The files of a model that is split as llama.cpp does it: `…-00001-of-00003.gguf`."""
    match = SPLIT.fullmatch(path.name)
    if match is None:
        return [path]
    count = int(match[3])
    if not 0 < count <= GGUF_PARTS:
        raise GgufError(f"it has {count} parts, and at most {GGUF_PARTS} are read")
    return [path.with_name(f"{match[1]}{i:05}-of-{match[3]}{match[4]}") for i in range(1, count + 1)]


# --- one file --------------------------------------------------------------------------------------------


class _Part:
    """One file's header."""

    def __init__(self) -> None:
        self.values: dict[str, Value] = {}
        self.tensor_bytes: dict[str, int] = {}
        self.data_bytes = 0
        """Where the last tensor ends, from the first one on."""


def _read_part(path: Path) -> _Part:
    # Not blocking: what has the name of a file may be a pipe that nobody writes to.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb", buffering=0) as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise GgufError("it is no regular file")
        return _Reader(file, status.st_size).part()


class _Reader:
    """Reads a header from front to back, by the chunk."""

    def __init__(self, file: BinaryIO, size_bytes: int) -> None:
        self._file = file
        self._size_bytes = size_bytes
        self._chunk = b""
        self._at = 0
        """In the chunk."""
        self._start = 0
        """Of the chunk, in the file."""
        self._order = "<"

    def part(self) -> _Part:
        """The header: counts, keys and values, where each tensor is."""
        found = _Part()
        tensors, keys = self._counts()
        for _ in range(keys):
            self._key(found)
        for _ in range(tensors):
            self._tensor(found)
        if tensors:
            step = max(1, _whole(found.values.get("alignment"), 32))
            start = -(-(self._start + self._at) // step) * step
            if start + found.data_bytes > self._size_bytes:
                missing = start + found.data_bytes - self._size_bytes
                raise GgufError(f"it is truncated: {missing} bytes of its tensors are missing")
        return found

    def _counts(self) -> tuple[int, int]:
        if self._take(4) != b"GGUF":
            raise GgufError("it is no GGUF file")
        version = self._number("I")
        if version & 0xFFFF == 0:  # written by a machine of the other endianness
            self._order = ">"
            version = int.from_bytes(version.to_bytes(4, "little"), "big")
        if version not in (2, 3):
            raise GgufError(f"it is GGUF version {version}, and only 2 and 3 are read")
        tensors, keys = self._number("Q"), self._number("Q")
        if tensors > GGUF_TENSORS or keys > GGUF_KEYS:
            raise GgufError(
                f"it says that it has {tensors} tensors and {keys} keys; "
                f"at most {GGUF_TENSORS} and {GGUF_KEYS} are read"
            )
        return tensors, keys

    def _key(self, found: _Part) -> None:
        name = self._name("a key")
        kind = self._number("I")
        short = name.partition(".")[2]
        if kind == ARRAY:
            inner, count = self._number("I"), self._number("Q")
            if short in KEPT and inner in SCALARS and count <= GGUF_KEPT_ELEMENTS:
                found.values[short] = tuple(self._scalar(inner) for _ in range(count))
            else:
                self._skip_array(inner, count)
            if name == VOCABULARY:
                found.values[VOCABULARY] = count
        elif name == TEMPLATE and kind == STRING:
            self._template(found, self._number("Q"))
        elif short not in KEPT:
            self._skip(self._number("Q") if kind == STRING else self._width(kind))
        else:
            found.values[short] = self._name("a value") if kind == STRING else self._scalar(kind)

    def _template(self, found: _Part, length: int) -> None:
        """What a chat template speaks of; one that is too long to be one is passed over."""
        if length > GGUF_TEMPLATE_BYTES:
            self._skip(length)
            return
        text = self._take(length)
        found.values["tools"] = int(any(word in text for word in TOOL_WORDS))
        found.values["thinking"] = int(_thinks(text))

    def _tensor(self, found: _Part) -> None:
        name = self._name("a tensor")
        count = self._number("I")
        if count > DIMENSIONS:
            raise GgufError(f"a tensor has {count} dimensions, and ggml's have at most {DIMENSIONS}")
        shape = [self._number("Q") for _ in range(count)]
        number, offset = self._number("I"), self._number("Q")
        type = ggml.TYPES.get(number)
        if type is None:
            raise GgufError(f"a tensor has the type {number}, which ggml did not have when this was written")
        row, rows = shape[0] if shape else 1, 1
        for length in shape[1:]:
            rows *= length
        size = ggml.row_bytes(type, row) * rows
        if max(size, offset) > self._size_bytes:
            raise GgufError(f"it is truncated: the tensor {name!r} ends beyond the end of the file")
        found.tensor_bytes[type.name] = found.tensor_bytes.get(type.name, 0) + size
        found.data_bytes = max(found.data_bytes, offset + size)

    def _scalar(self, kind: int) -> int | float:
        self._width(kind)
        value: int | float = self._unpack(SCALARS[kind])
        return value

    def _skip_array(self, inner: int, count: int) -> None:
        if inner != STRING:
            self._skip(self._width(inner) * count)
            return
        if count * 8 > self._size_bytes:
            raise GgufError(f"an array says that it has {count} texts, more than fit into the file")
        length_of = struct.Struct(self._order + "Q")
        for _ in range(count):
            at = self._at
            if at + 8 > len(self._chunk):
                self._skip(self._number("Q"))
                continue
            length = length_of.unpack_from(self._chunk, at)[0]
            if at + 8 + length <= len(self._chunk):
                self._at = at + 8 + length
            else:
                self._at = at + 8
                self._skip(length)

    def _width(self, kind: int) -> int:
        format = SCALARS.get(kind)
        if format is None:
            raise GgufError(f"a value has the type {kind}, which GGUF does not have here")
        return struct.calcsize("<" + format)

    def _name(self, what: str) -> str:
        length = self._number("Q")
        if length > GGUF_NAME_BYTES:
            raise GgufError(f"{what} is {length} bytes long, and at most {GGUF_NAME_BYTES} are read")
        return self._take(length).decode("utf-8", "replace")

    def _number(self, format: str) -> int:
        return int(self._unpack(format))

    def _unpack(self, format: str) -> int | float:
        codec = struct.Struct(self._order + format)
        value: int | float = codec.unpack(self._take(codec.size))[0]
        return value

    def _take(self, count: int) -> bytes:
        """The next bytes. Raises GgufError where the file ends before, or is read too far."""
        while len(self._chunk) - self._at < count:
            rest = self._chunk[self._at :]
            more = self._file.read(CHUNK_BYTES)
            if not more:
                raise GgufError("it is truncated: the header does not end")
            self._start += self._at
            self._chunk, self._at = rest + more, 0
            if self._start > GGUF_READ_BYTES:
                raise GgufError(f"its header is longer than {GGUF_READ_BYTES} bytes")
        taken = self._chunk[self._at : self._at + count]
        self._at += count
        return taken

    def _skip(self, count: int) -> None:
        """Pass over bytes; those beyond the chunk are not read."""
        ahead = self._at + count
        if ahead > len(self._chunk):
            place = self._start + ahead
            if place > min(self._size_bytes, GGUF_READ_BYTES):
                raise GgufError(f"it is truncated, or not what it seems: {count} bytes are to be skipped")
            self._file.seek(place)
            self._chunk, self._at, self._start = b"", 0, place
        else:
            self._at = ahead


# --- the model -------------------------------------------------------------------------------------------


def _whole(value: Value | None, default: int = 0) -> int:
    """A count out of a file; the largest of an array. What is no sensible count is taken for the default."""
    if isinstance(value, tuple):
        return max((_whole(item) for item in value), default=default)
    return value if isinstance(value, int) and 0 <= value < 1 << 40 else default


def _each(value: Value | None, layers: int, default: int) -> tuple[int, ...]:
    """A count for each layer."""
    if isinstance(value, tuple) and value:
        found = [_whole(item) for item in value][:layers]
        return tuple(found + found[-1:] * (layers - len(found)))
    return (_whole(value, default),) * layers


def _model(values: dict[str, Value], tensor_bytes: dict[str, int]) -> Gguf:
    architecture = values.get("architecture")
    if not isinstance(architecture, str) or not architecture:
        raise GgufError("it does not say what architecture it has")
    layers, heads = _whole(values.get("block_count")), _whole(values.get("attention.head_count"))
    if layers > GGUF_LAYERS:
        raise GgufError(f"it says that it has {layers} layers; at most {GGUF_LAYERS} are believed")
    embedding = _whole(values.get("embedding_length"))
    head = embedding // heads if heads else 0
    pattern = values.get("attention.sliding_window_pattern")
    feed, experts = _whole(values.get("feed_forward_length")), _whole(values.get("expert_used_count"))
    vision = _whole(values.get("has_vision_encoder")) or _whole(values.get("vision.block_count"))
    return Gguf(
        architecture=architecture,
        tensor_bytes=tensor_bytes,
        trained_context=_whole(values.get("context_length")),
        layers=layers,
        embedding=embedding,
        feed_forward=max(feed, experts * (_whole(values.get("expert_feed_forward_length")) or feed)),
        heads=heads,
        kv_heads=_each(values.get("attention.head_count_kv"), layers, heads),
        key_length=max(
            _whole(values.get("attention.key_length"), head), _whole(values.get("attention.key_length_swa"))
        ),
        value_length=max(
            _whole(values.get("attention.value_length"), head),
            _whole(values.get("attention.value_length_swa")),
        ),
        window=_whole(values.get("attention.sliding_window")),
        windowed=_windowed(pattern, layers),
        recurrent=_recurrent(values, embedding),
        vocabulary=_whole(values.get(VOCABULARY)) or _whole(values.get("vocab_size")),
        embedding_only=architecture in EMBEDDING_ONLY or _whole(values.get("pooling_type")) > 0,
        vision=architecture == "clip" or vision > 0,
        file_type=_whole(values.get("file_type"), -1),
        tools=bool(values.get("tools")),
        thinking=bool(values.get("thinking")) or architecture in THINKING,
    )


def _thinks(template: bytes) -> bool:
    """Whether a chat template is of a model that thinks, as Ollama tells it."""
    if all(word in template for word in THINKING_WORDS):
        return True
    drops = any(word in template for word in DROPS_THOUGHTS)
    return drops and not any(word in template for word in NO_THOUGHTS)


def _windowed(pattern: Value | None, layers: int) -> tuple[bool, ...]:
    """Which layers look back at a window only: marked one by one, or all but every nth."""
    if isinstance(pattern, tuple):
        return tuple(bool(flag) for flag in pattern[:layers])
    every = _whole(pattern)
    return tuple(i % every < every - 1 for i in range(layers)) if every > 1 else ()


def _recurrent(values: dict[str, Value], embedding: int) -> int:
    """As llama.cpp's `n_embd_r` + `n_embd_s`, for RWKV and for Mamba."""
    if head := _whole(values.get("wkv.head_size")):
        return embedding * (head + 2)
    inner, state = _whole(values.get("ssm.inner_size")), _whole(values.get("ssm.state_size"))
    convolved = max(0, _whole(values.get("ssm.conv_kernel")) - 1)
    return convolved * (inner + 2 * _whole(values.get("ssm.group_count")) * state) + state * inner


# --- the process -----------------------------------------------------------------------------------------


class Line(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the process prints for each path."""

    gguf: Gguf | None = None
    error: str = ""


def examine(path: str) -> Line:
    """A file, or why nothing is known of it."""
    try:
        return Line(read(Path(path)))
    except GgufError as error:
        return Line(error=str(error))
    except (OSError, ValueError) as error:
        return Line(error=str(getattr(error, "strerror", None) or error))
    except MemoryError:
        return Line(error="reading it takes too much memory")


def main(paths: Sequence[str]) -> int:
    """The command line. Limits itself first."""
    resource.setrlimit(resource.RLIMIT_AS, (GGUF_MEMORY_BYTES, GGUF_MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (GGUF_CPU_S, GGUF_CPU_S))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for path in paths:
        sys.stdout.buffer.write(msgspec.json.encode(examine(path)) + b"\n")
        sys.stdout.buffer.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
