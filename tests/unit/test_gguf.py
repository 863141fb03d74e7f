"""Reading GGUF files: real ones, those of other versions and byte orders, and those that lie."""

from __future__ import annotations

import argparse
import os
import random
import struct
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from daemon import ggml, gguf
from events.limits import GGUF_KEYS, GGUF_NAME_BYTES, GGUF_TEMPLATE_BYTES, GGUF_TENSORS
from scripts import make_tiny_gguf

FUZZ_S = 1.0
SHAPE = {"seed": 1, "name": "tiny", "embd": 64, "layers": 2, "ff": 128, "ctx": 4096}


class File:
    """Writes a GGUF file of one order and version; values are unsigned 32-bit numbers, texts or arrays."""

    def __init__(self, order: str = "<", version: int = 3, counts: tuple[int, int] | None = None) -> None:
        self.order, self.version, self.counts = order, version, counts
        self.keys: list[bytes] = []
        self.tensors: list[bytes] = []
        self.data_bytes = 0

    def pack(self, format: str, *values: int) -> bytes:
        return struct.pack(self.order + format, *values)

    def text(self, value: str) -> bytes:
        return self.pack("Q", len(value.encode())) + value.encode()

    def key(self, name: str, value: int | str | list[int] | list[str]) -> File:
        if isinstance(value, int):
            body = self.pack("II", 4, value)
        elif isinstance(value, str):
            body = self.pack("I", 8) + self.text(value)
        else:
            kind = 8 if value and isinstance(value[0], str) else 4
            items = (self.text(item) if isinstance(item, str) else self.pack("I", item) for item in value)
            body = self.pack("IIQ", 9, kind, len(value)) + b"".join(items)
        self.keys.append(self.text(name) + body)
        return self

    def raw_key(self, name: str, body: bytes) -> File:
        self.keys.append(self.text(name) + body)
        return self

    def tensor(self, name: str, shape: Iterable[int], type: int, size_bytes: int = 0) -> File:
        lengths = list(shape)
        where = self.pack(f"I{len(lengths)}QIQ", len(lengths), *lengths, type, self.data_bytes)
        self.tensors.append(self.text(name) + where)
        self.data_bytes += -(-size_bytes // 32) * 32
        return self

    def header(self) -> bytes:
        tensors, keys = self.counts or (len(self.tensors), len(self.keys))
        head = b"GGUF" + self.pack("IQQ", self.version, tensors, keys)
        return head + b"".join(self.keys) + b"".join(self.tensors)

    def write(self, path: Path) -> Path:
        """The tensors' data is a hole in the file."""
        head = self.header()
        path.write_bytes(head)
        os.truncate(path, -(-len(head) // 32) * 32 + self.data_bytes)
        return path


def llama(**file: Any) -> File:
    """The keys of a small llama."""
    found = File(**file)
    found.key("general.architecture", "llama").key("llama.block_count", 2)
    found.key("llama.context_length", 8192).key("llama.embedding_length", 64)
    return found.key("llama.attention.head_count", 4).key("llama.attention.head_count_kv", 2)


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.gguf"
    make_tiny_gguf.write(path, argparse.Namespace(**SHAPE))
    return path


def test_a_model_as_it_is_made_for_llama_server(tiny: Path) -> None:
    found = gguf.read(tiny)
    assert found.architecture == "llama"
    assert (found.layers, found.embedding, found.feed_forward, found.heads) == (2, 64, 128, 4)
    assert (found.kv_heads, found.key_length, found.value_length) == ((2, 2), 16, 16)
    assert (found.trained_context, found.vocabulary) == (4096, len(make_tiny_gguf.vocabulary()[0]))
    assert not found.embedding_only and not found.vision
    header = tiny.stat().st_size - found.weights_bytes
    assert set(found.tensor_bytes) == {"f32"}
    assert 0 < header < 20_000


def test_what_its_chat_template_knows_of(tiny: Path, tmp_path: Path) -> None:
    found = gguf.read(tiny)
    assert (found.file_type, found.tools, found.thinking) == (0, False, False)
    assert found.parameters == found.weights_bytes // 4
    template = "{% if tools %}{{ tools }}{% endif %}<think>{{ x }}</think>"
    file = llama().key("general.file_type", 15).key("tokenizer.chat_template", template)
    found = gguf.read(file.tensor("w", (512,), 12, 288).write(tmp_path / "able.gguf"))
    assert (found.file_type, found.tools, found.thinking, found.parameters) == (15, True, True, 512)
    file = llama().key("tokenizer.chat_template", "tools" * GGUF_TEMPLATE_BYTES)
    assert not gguf.read(file.write(tmp_path / "long.gguf")).tools


@pytest.mark.parametrize(
    ("architecture", "template", "thinking"),
    [
        ("llama", "{{ content.split('</think>')[-1] }}", True),
        ("llama", '{{ content.split("</think>")[-1] }}', True),
        ("llama", "{{ content.split('</think>')[-1] }}{{ reasoning_content }}", False),
        ("llama", "{{ content.split('</think>')[-1] }}<SPECIAL_12>", False),
        ("llama", "</think>", False),
        ("gpt-oss", "<|channel|>analysis", True),
    ],
)
def test_models_that_think(tmp_path: Path, architecture: str, template: str, thinking: bool) -> None:
    file = File().key("general.architecture", architecture).key("tokenizer.chat_template", template)
    assert gguf.read(file.write(tmp_path / "m.gguf")).thinking is thinking


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("version", [2, 3])
def test_both_byte_orders_and_versions(tmp_path: Path, order: str, version: int) -> None:
    file = llama(order=order, version=version).key("tokenizer.ggml.tokens", ["a", "b", "c"])
    found = gguf.read(file.tensor("w", (256, 3), 12, 432).write(tmp_path / "m.gguf"))
    assert found.tensor_bytes == {"q4_K": 3 * 144}
    assert (found.trained_context, found.vocabulary) == (8192, 3)


@pytest.mark.parametrize("number", ggml.TYPES)
def test_every_type_counts_by_its_blocks(tmp_path: Path, number: int) -> None:
    type = ggml.TYPES[number]
    size = 7 * 2 * type.block_bytes
    file = llama().tensor("w", (2 * type.block_elements, 7), number, size)
    assert gguf.read(file.write(tmp_path / "m.gguf")).tensor_bytes == {type.name: size}


def test_the_parts_of_a_split_model_are_one(tmp_path: Path) -> None:
    for i in (1, 2, 3):
        file = llama() if i == 1 else File().key("split.no", i - 1)
        file.tensor(f"w{i}", (256,), 8, 272).write(tmp_path / f"m-0000{i}-of-00003.gguf")
    found = gguf.read(tmp_path / "m-00002-of-00003.gguf")
    assert found.architecture == "llama" and found.weights_bytes == 3 * 272
    (tmp_path / "m-00003-of-00003.gguf").unlink()
    assert gguf.examine(str(tmp_path / "m-00001-of-00003.gguf")).error == "No such file or directory"
    with pytest.raises(gguf.GgufError, match="99999 parts"):
        gguf.read(tmp_path / "m-00001-of-99999.gguf")


def test_what_layers_differ_in(tmp_path: Path) -> None:
    """Arrays say it for each layer; those that are too short go on as they end."""
    file = File().key("general.architecture", "gemma9").key("gemma9.block_count", 4)
    file.key("gemma9.attention.head_count", [8, 8, 8, 8]).key("gemma9.attention.head_count_kv", [4, 0, 2])
    file.key("gemma9.attention.key_length", 128).key("gemma9.attention.value_length", 64)
    file.key("gemma9.attention.sliding_window", 512).key("gemma9.attention.sliding_window_pattern", 2)
    file.key("gemma9.ssm.state_size", 16).key("gemma9.ssm.inner_size", 32).key("gemma9.ssm.conv_kernel", 4)
    file.key("gemma9.expert_used_count", 4).key("gemma9.expert_feed_forward_length", 100)
    found = gguf.read(file.write(tmp_path / "m.gguf"))
    assert found.kv_heads == (4, 0, 2, 2)
    assert (found.key_length, found.value_length, found.feed_forward) == (128, 64, 400)
    assert (found.window, found.windowed) == (512, (True, False, True, False))
    assert found.recurrent == 16 * 32 + 3 * 32


@pytest.mark.parametrize(
    ("keys", "embeds", "sees"),
    [
        ({"general.architecture": "bert"}, True, False),
        ({"general.architecture": "qwen3", "qwen3.pooling_type": 3}, True, False),
        ({"general.architecture": "qwen3", "qwen3.pooling_type": 0}, False, False),
        ({"general.architecture": "clip", "clip.has_vision_encoder": 1}, False, True),
        ({"general.architecture": "mllama", "mllama.vision.block_count": 32}, False, True),
    ],
)
def test_what_it_is_good_for(tmp_path: Path, keys: dict[str, int | str], embeds: bool, sees: bool) -> None:
    file = File()
    for name, value in keys.items():
        file.key(name, value)
    found = gguf.read(file.write(tmp_path / "m.gguf"))
    assert (found.embedding_only, found.vision) == (embeds, sees)


# --- files that are damaged, or lie ----------------------------------------------------------------------


def test_every_truncation_is_noticed(tiny: Path, tmp_path: Path) -> None:
    whole, cut = tiny.read_bytes(), tmp_path / "cut.gguf"
    header = len(whole) - gguf.read(tiny).weights_bytes
    for length in [*range(0, header + 256, 64), *range(header, len(whole), 50_021), len(whole) - 1]:
        cut.write_bytes(whole[:length])
        assert gguf.examine(str(cut)).gguf is None, length


def huge(count: int) -> bytes:
    return struct.pack("<Q", count)


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"", "truncated"),
        (b"GGML" + bytes(60), "no GGUF file"),
        (File(version=1).header(), "version 1"),
        (File(version=4).header(), "version 4"),
        (File(version=0).header(), "version 0"),
        (File(counts=(GGUF_TENSORS + 1, 0)).header(), "tensors"),
        (File(counts=(0, GGUF_KEYS + 1)).header(), "keys"),
        (File(counts=(1 << 63, 1 << 63)).header(), "tensors"),
        (File(counts=(0, 1)).header() + huge(1 << 63), "a key is"),
        (File(counts=(0, 1)).header() + huge(GGUF_NAME_BYTES + 1), "a key is"),
        (File().raw_key("a.b", struct.pack("<I", 8) + huge(1 << 62)).header(), "skipped"),
        (File().raw_key("a.b", struct.pack("<I", 99)).header(), "type 99"),
        (File().raw_key("a.b", struct.pack("<IIQ", 9, 9, 1)).header(), "type 9"),
        (File().raw_key("a.b", struct.pack("<IIQ", 9, 4, 1 << 60)).header(), "skipped"),
        (File().raw_key("a.b", struct.pack("<IIQ", 9, 8, 1 << 60)).header(), "texts"),
        (File().raw_key("a.b", struct.pack("<IIQ", 9, 8, 1) + huge(1 << 60)).header(), "texts|skipped"),
        (File().key("a.b", 1).header(), "architecture"),
        (File().key("general.architecture", 7).header(), "architecture"),
        (File().key("general.architecture", "").header(), "architecture"),
        (llama().key("llama.block_count", 1 << 31).header(), "layers"),
        (llama().tensor("w", (1 << 62, 1 << 62, 1 << 62, 1 << 62), 0).header(), "beyond the end"),
        (llama().tensor("w", (4,) * 5, 0).header(), "5 dimensions"),
        (llama().tensor("w", (32,), 31).header(), "type 31"),
        (llama().tensor("w", (32,), 1000).header(), "type 1000"),
    ],
)
def test_what_no_model_needs_is_refused(tmp_path: Path, data: bytes, error: str) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(data)
    with pytest.raises(gguf.GgufError, match=error):
        gguf.read(path)


def test_a_number_that_is_none_is_as_good_as_missing(tmp_path: Path) -> None:
    file = File().key("general.architecture", "llama").key("llama.block_count", "many")
    file.raw_key("llama.context_length", struct.pack("<Iq", 11, -5))
    file.raw_key("llama.embedding_length", struct.pack("<If", 6, float("nan")))
    file.key("general.alignment", 0).tensor("w", (32,), 0, 128)
    found = gguf.read(file.write(tmp_path / "m.gguf"))
    assert (found.layers, found.trained_context, found.embedding, found.weights_bytes) == (0, 0, 0, 128)


def test_a_pipe_or_a_folder_holds_nobody_up(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.gguf")
    assert "regular file" in gguf.examine(str(tmp_path / "pipe.gguf")).error
    assert gguf.examine(str(tmp_path)).error
    assert gguf.examine(str(tmp_path / "none.gguf")).error == "No such file or directory"
    assert gguf.examine("nul\0.gguf").error


def test_any_damage_is_an_error_or_a_figure(tiny: Path, tmp_path: Path) -> None:
    """A seeded second of it: bytes changed, removed and repeated in the header."""
    whole, path, draw = tiny.read_bytes(), tmp_path / "fuzzed.gguf", random.Random(14407)
    head = len(whole) - gguf.read(tiny).weights_bytes
    end = time.monotonic() + FUZZ_S
    while time.monotonic() < end:
        data = bytearray(whole[: head + 4096])
        for _ in range(draw.randint(1, 8)):
            at = draw.randrange(head if draw.random() < 0.5 else 600)
            change = draw.choice((b"", bytes([draw.randrange(256)]), b"\xff" * 8, bytes(data[at : at + 64])))
            data[at : at + draw.randint(0, 8)] = change
        path.write_bytes(data)
        os.truncate(path, len(whole))
        line = gguf.examine(str(path))
        assert (line.gguf is None) == bool(line.error)
        assert msgspec.json.decode(msgspec.json.encode(line), type=gguf.Line) == line
