#!/usr/bin/env python3
"""Write a tiny model of random weights that llama.cpp takes for a real one (GGUF version 3, "llama").

  make_tiny_gguf.py OUT.gguf [--seed 1] [--name NAME] [--embd 64] [--layers 2] [--ff 128] [--ctx 4096]

By default half a megabyte, loaded in a moment; `--embd 1024 --layers 4 --ff 3072` makes 200 MB, whose load
takes a while. The same arguments give the same bytes. What it says is nonsense, and it never stops by itself:
every answer has exactly as many tokens as were asked for. Standard library only.
"""

from __future__ import annotations

import argparse
import random
import struct
from array import array
from collections.abc import Sequence
from pathlib import Path

ALIGNMENT_BYTES = 32
HEADS, KEY_VALUE_HEADS = 4, 2
RANDOM_VALUES = 1 << 17
"""Weights are slices of this many random numbers: drawing each would take minutes for a large model."""

UINT32, INT32, FLOAT32, BOOL, STRING, ARRAY = 4, 5, 6, 7, 8, 9
"""GGUF's value types."""

UNKNOWN, NORMAL, CONTROL, BYTE = 2, 1, 3, 6
"""SentencePiece's token types."""

CHAT_TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"
WORDS = """\
the of and to in is it you that he was for on are with as his they be at one have this from or had by hot but
some what there we can out other were all your when up use word how said an each she which do their time if
will way about many then them
"""

Value = int | float | bool | str
Tensor = tuple[str, tuple[int, ...], "array[float]"]
"""Name, dimensions (the fastest first), values."""


def vocabulary() -> tuple[list[str], list[int]]:
    """Tokens and their types: three control tokens, every byte, then words and printable characters."""
    plain = ["\u2581", *("\u2581" + word for word in WORDS.split()), *map(chr, range(33, 127))]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *plain]
    types = [UNKNOWN, CONTROL, CONTROL, *[BYTE] * 256, *[NORMAL] * len(plain)]
    return tokens, types


# --- the file's parts ------------------------------------------------------------------------------------


def text(value: str) -> bytes:
    """A string: its length, then UTF-8."""
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def scalar(kind: int, value: Value) -> bytes:
    """A value that is no array."""
    if isinstance(value, str):
        return text(value)
    return struct.pack({UINT32: "<I", INT32: "<i", FLOAT32: "<f", BOOL: "<?"}[kind], value)


def entry(key: str, kind: int, value: Value) -> bytes:
    """A key and its value."""
    return text(key) + struct.pack("<I", kind) + scalar(kind, value)


def listing(key: str, kind: int, values: Sequence[Value]) -> bytes:
    """A key and an array."""
    head = struct.pack("<IIQ", ARRAY, kind, len(values))
    return text(key) + head + b"".join(scalar(kind, value) for value in values)


def metadata(asked: argparse.Namespace) -> list[bytes]:
    """What llama.cpp needs to know: the shape, the tokenizer, the chat template."""
    tokens, types = vocabulary()
    first_plain = types.index(NORMAL)
    scores = [0.0] * first_plain + [-float(rank) for rank in range(len(tokens) - first_plain)]
    return [
        entry("general.architecture", STRING, "llama"),
        entry("general.name", STRING, asked.name),
        entry("general.file_type", UINT32, 0),
        entry("general.alignment", UINT32, ALIGNMENT_BYTES),
        entry("llama.block_count", UINT32, asked.layers),
        entry("llama.context_length", UINT32, asked.ctx),
        entry("llama.embedding_length", UINT32, asked.embd),
        entry("llama.feed_forward_length", UINT32, asked.ff),
        entry("llama.attention.head_count", UINT32, HEADS),
        entry("llama.attention.head_count_kv", UINT32, KEY_VALUE_HEADS),
        entry("llama.attention.layer_norm_rms_epsilon", FLOAT32, 1e-5),
        entry("llama.rope.dimension_count", UINT32, asked.embd // HEADS),
        entry("llama.vocab_size", UINT32, len(tokens)),
        entry("tokenizer.ggml.model", STRING, "llama"),
        entry("tokenizer.ggml.pre", STRING, "default"),
        listing("tokenizer.ggml.tokens", STRING, tokens),
        listing("tokenizer.ggml.scores", FLOAT32, scores),
        listing("tokenizer.ggml.token_type", INT32, types),
        entry("tokenizer.ggml.unknown_token_id", UINT32, 0),
        entry("tokenizer.ggml.bos_token_id", UINT32, 1),
        entry("tokenizer.ggml.eos_token_id", UINT32, 2),
        entry("tokenizer.ggml.add_bos_token", BOOL, True),
        entry("tokenizer.ggml.add_space_prefix", BOOL, False),
        entry("tokenizer.chat_template", STRING, CHAT_TEMPLATE),
    ]


# --- weights ---------------------------------------------------------------------------------------------


class Weights:
    """Matrices of normally distributed values, the same for the same seed."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._values = [self._random.gauss(0, 1) for _ in range(RANDOM_VALUES)]

    def matrix(self, columns: int, rows: int, deviation: float) -> array[float]:
        """Rows cut from the random values at random places."""
        scaled = array("f", (value * deviation for value in self._values))
        found = array("f")
        for _ in range(rows):
            start = self._random.randrange(RANDOM_VALUES - columns)
            found += scaled[start : start + columns]
        return found


def tensors(asked: argparse.Namespace) -> list[Tensor]:
    """Every tensor of the model.

    The output's rows of control and byte tokens are zero: only printable words come out, and never the end of
    the text.
    """
    weights, embd, ff = Weights(asked.seed), asked.embd, asked.ff
    tokens, types = vocabulary()
    key_value = embd // HEADS * KEY_VALUE_HEADS
    norm = array("f", [1.0]) * embd
    found: list[Tensor] = [("token_embd.weight", (embd, len(tokens)), weights.matrix(embd, len(tokens), 1))]
    shapes = [
        ("attn_q", embd, embd),
        ("attn_k", embd, key_value),
        ("attn_v", embd, key_value),
        ("attn_output", embd, embd),
        ("ffn_gate", embd, ff),
        ("ffn_up", embd, ff),
        ("ffn_down", ff, embd),
    ]
    for layer in range(asked.layers):
        found += [(f"blk.{layer}.{name}.weight", (embd,), norm) for name in ("attn_norm", "ffn_norm")]
        for name, columns, rows in shapes:
            matrix = weights.matrix(columns, rows, columns**-0.5)
            found.append((f"blk.{layer}.{name}.weight", (columns, rows), matrix))
    silent = types.index(NORMAL)
    output = array("f", bytes(4 * embd * silent)) + weights.matrix(embd, len(tokens) - silent, 1)
    return [
        *found,
        ("output_norm.weight", (embd,), norm),
        ("output.weight", (embd, len(tokens)), output),
    ]


def write(path: Path, asked: argparse.Namespace) -> None:
    """Write the file: header, metadata, where each tensor is, the tensors."""
    entries, parts, offset = metadata(asked), tensors(asked), 0
    head = b"GGUF" + struct.pack("<IQQ", 3, len(parts), len(entries)) + b"".join(entries)
    for name, dimensions, values in parts:
        head += text(name) + struct.pack(f"<I{len(dimensions)}Q", len(dimensions), *dimensions)
        head += struct.pack("<IQ", 0, offset)  # type 0: 32-bit floats
        offset += 4 * len(values) + -4 * len(values) % ALIGNMENT_BYTES
    with path.open("wb") as file:
        file.write(head + bytes(-len(head) % ALIGNMENT_BYTES))
        for _, _, values in parts:
            file.write(values.tobytes() + bytes(-4 * len(values) % ALIGNMENT_BYTES))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, metavar="OUT.gguf")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--name", default="tiny-random")
    parser.add_argument("--embd", type=int, default=64, help="width; a multiple of 8")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--ff", type=int, default=128, help="width of the feed-forward part")
    parser.add_argument("--ctx", type=int, default=4096, help="tokens that it claims to be trained for")
    asked = parser.parse_args()
    if asked.embd % (2 * HEADS) or not 0 < asked.embd <= RANDOM_VALUES // 2:
        parser.error(f"--embd must be a positive multiple of {2 * HEADS} up to {RANDOM_VALUES // 2}")
    if not 0 < asked.ff <= RANDOM_VALUES // 2:
        parser.error(f"--ff must be between 1 and {RANDOM_VALUES // 2}")
    write(asked.out, asked)


if __name__ == "__main__":
    main()
