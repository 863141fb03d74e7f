"""Ollama's lists: from the folded state, the configuration and the models' files; nothing made up."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from daemon import gguf
from daemon.ollama import models
from daemon.ports import Access, Card, ModelRow
from events import catalogue as c
from events.catalogue import NEVER, Option
from events.limits import GIB, S
from scripts import make_tiny_gguf
from tests.integration.front_door_world import FakeCatalog
from tests.unit.test_scheduler import Core, model

MADE_S = 1_700_000_000


class Catalog(FakeCatalog):
    """Two models, one with a file, and an alias that is listed."""

    def __init__(self, cards: dict[str, Card]) -> None:
        super().__init__(Access())
        self.cards = cards

    def resolve(self, name: str) -> str | None:
        return {"alias": "a"}.get(name, name if name in self.cards else None)

    def models(self) -> Sequence[ModelRow]:
        return [ModelRow(id) for id in self.cards] + [ModelRow("alias")]

    def card(self, model: str) -> Card:
        return self.cards[model]

    def launch_options(self, model: str) -> Mapping[str, Option]:
        return {"num_ctx": 4096, "flash": True, "adapter": "a b"} if model == "a" else {}


@pytest.fixture
def tiny(tmp_path: Path) -> gguf.Gguf:
    path = tmp_path / "tiny.gguf"
    shape = {"seed": 1, "name": "tiny", "embd": 64, "layers": 2, "ff": 128, "ctx": 4096}
    make_tiny_gguf.write(path, argparse.Namespace(**shape))
    return gguf.read(path)


@pytest.fixture
def catalog(tiny: gguf.Gguf) -> Catalog:
    return Catalog({"a": Card(file=tiny), "b:7b": Card()})


def test_tags(catalog: Catalog, tiny: gguf.Gguf) -> None:
    core = Core({"a": model()})
    first, second, alias = models.tags(core.state, catalog, MADE_S)
    assert (first["name"], first["model"], first["size"]) == ("a:latest", "a:latest", tiny.weights_bytes)
    assert (first["modified_at"], first["digest"]) == ("2023-11-14T22:13:20.000000Z", "d")
    assert first["details"] == {
        "parent_model": "", "format": "gguf", "family": "llama", "families": ["llama"],
        "quantization_level": "F32", "parameter_size": models.short_count(tiny.weights_bytes // 4),
    }  # fmt: skip
    assert (second["name"], second["size"], second["details"]["family"]) == ("b:7b", 0, "")
    assert len(second["digest"]) >= 12, "Ollama's command line cuts twelve characters off"
    assert (alias["name"], alias["details"]) == ("alias:latest", first["details"])
    shown = models.show(core.state, catalog, "b:7b", MADE_S)["details"]
    assert second["details"] == shown and shown.keys() == first["details"].keys()


def test_ps(catalog: Catalog) -> None:
    core = Core({"a": model(2, keep_alive_ns=60 * S, slots=2), "b:7b": model(1)})
    now_ns = MADE_S * S

    def rows() -> list[dict[str, Any]]:
        return models.ps(core.state, catalog, core.t, now_ns)

    assert rows() == []
    core.arrive("a")
    assert rows() == [], "it loads"
    (runner,) = core.state.runners
    core.spawn(runner)
    core.take(c.ProbeAnswered(runner, True), S)
    [row] = rows()
    assert (row["name"], row["size"], row["size_vram"]) == ("a:latest", 2 * GIB, 0)
    assert row["expires_at"] == "2023-11-14T22:14:20.000000Z", "busy: as long as it would stay from now on"
    core.ended(next(iter(core.state.requests)))
    core.passes(20 * S)
    assert rows()[0]["expires_at"] == "2023-11-14T22:14:00.000000Z"
    core.load("b:7b")
    first, second = rows()
    assert (first["name"], second["name"]) == ("b:7b", "a:latest"), "what stays longest comes first"
    assert first["expires_at"].startswith("2316-02-"), "never is far away"
    core.take(c.PinRequested("a"))
    assert rows()[0]["expires_at"] == rows()[1]["expires_at"]
    core.arrive("a")
    core.take(c.UnloadRequested("a", gently=True))
    assert len(rows()) == 2, "it drains, but it works"
    core.ended(list(core.state.requests)[-1])
    assert [row["name"] for row in rows()] == ["b:7b"]


def test_memory_of_gpus(catalog: Catalog) -> None:
    core = Core({"a": c.ModelView("d" * 32, memory_bytes={"gpu0": 2 * GIB, "host": GIB})})
    core.free["gpu0"] = (8 * GIB, 8 * GIB)
    core.measure()
    core.load("a")
    [row] = models.ps(core.state, catalog, core.t, 0)
    assert (row["size"], row["size_vram"], row["digest"]) == (3 * GIB, 2 * GIB, "d" * 32)


@pytest.mark.parametrize(
    ("view", "options", "tokens"),
    [
        (model(options={"num_ctx": 4096}), {}, 4096),
        (model(options={"num_ctx": 4096}), {"num_ctx": 8192}, 8192),
        (model(), {}, 0),
        (model(estimate=c.Estimate(1, context_tokens=2048)), {}, 2048),
        (
            model(options={"len": 512}, estimate=c.Estimate(1, context="len", context_tokens=512)),
            {"len": 64},
            64,
        ),
    ],
)
def test_the_context_that_is_loaded(
    catalog: Catalog, view: c.ModelView, options: dict[str, Option], tokens: int
) -> None:
    core = Core({"a": view})
    core.load("a", **options)
    [row] = models.ps(core.state, catalog, core.t, 0)
    assert row["context_length"] == tokens


def test_show(catalog: Catalog, tiny: gguf.Gguf) -> None:
    shown = models.show(Core({}).state, catalog, "a", MADE_S)
    assert shown["parameters"].splitlines() == [
        "num_ctx                        4096",
        "flash                          true",
        'adapter                        "a b"',
    ]
    assert shown["model_info"] == {
        "general.architecture": "llama", "general.file_type": 0,
        "general.parameter_count": tiny.weights_bytes // 4, "llama.context_length": 4096,
        "llama.embedding_length": 64, "llama.block_count": 2, "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2, "llama.vocab_size": tiny.vocabulary,
    }  # fmt: skip
    assert shown["capabilities"] == ["completion"]
    unknown = models.show(Core({}).state, catalog, "b:7b", MADE_S)
    assert (unknown["model_info"], unknown["parameters"], unknown["template"]) == ({}, "", "")


def test_capabilities(tiny: gguf.Gguf) -> None:
    able = Card(file=replace(tiny, thinking=True), tools=True, vision=True, audio=True)
    assert models.capabilities(able) == ["completion", "tools", "thinking", "vision", "audio"]
    assert models.capabilities(replace(able, embeds=True)) == ["embedding", "vision", "audio"]
    assert models.capabilities(Card(embeds=True)) == ["embedding"]


def test_keep_alives_that_never_end(catalog: Catalog) -> None:
    core = Core({"a": model(keep_alive_ns=NEVER)})
    core.load("a")
    assert models.ps(core.state, catalog, core.t, 0)[0]["expires_at"].startswith("2262-04-")


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (999, "999"),
        (1500, "2K"),
        (22_568_000, "22.57M"),
        (137_000_000, "137M"),
        (8_030_000_000, "8.0B"),
        (7 * 10**9, "7B"),
    ],
)
def test_numbers_of_parameters(count: int, text: str) -> None:
    assert models.short_count(count) == text
