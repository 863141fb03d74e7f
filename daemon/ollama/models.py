"""What there is and what is loaded, as Ollama lists it. What nothing is known of is left empty."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from daemon.gguf import Gguf
from daemon.ollama import names, said
from daemon.ports import Card, Catalog
from events.catalogue import NEVER, Option
from events.limits import S
from statemachines.parts import Runner
from statemachines.runner import RunnerState
from statemachines.state import State

FOREVER_NS = (1 << 63) - 1
"""What Ollama adds to the time of day for a model that never expires: 292 years."""

FILE_TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S",
    12: "Q3_K_M", 13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K",
    19: "IQ2_XXS", 20: "IQ2_XS", 21: "Q2_K_S", 22: "IQ3_XS", 23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL",
    26: "IQ3_S", 27: "IQ3_M", 28: "IQ2_S", 29: "IQ2_M", 30: "IQ4_XS", 31: "IQ1_M", 32: "BF16", 36: "TQ1_0",
    37: "TQ2_0", 38: "MXFP4_MOE", 39: "NVFP4", 40: "Q1_0", 41: "Q2_0",
}  # fmt: skip
"""llama.cpp's numbers of quantisations (`llama_ftype`)."""

NO_DIGEST = "0" * 32
"""Ollama's command line cuts twelve characters off every digest, and crashes on a shorter one."""


def tags(state: State, catalog: Catalog, made_s: int) -> list[dict[str, Any]]:
    """/api/tags: every model of this machine that is listed: those of peers are asked for below /v1 alone.
    `made_s`: models have no date of their own."""
    rows = []
    for row in catalog.models():
        if row.peer:
            continue
        id = catalog.resolve(row.id) or row.id
        card = catalog.card(id)
        rows.append(
            {
                "name": names.shown(row.id),
                "model": names.shown(row.id),
                "modified_at": moment(made_s * S),
                "size": card.file.weights_bytes if card.file else 0,
                "digest": digest(state, id),
                "details": details(card.file),
                "capabilities": capabilities(card),
            }
        )
    return rows


def ps(state: State, catalog: Catalog, t: int, now_ns: int) -> list[dict[str, Any]]:
    """/api/ps: the runners that serve, those that have longest first. `t` and `now_ns`: scheduler time and
    Unix time, now."""
    here = [runner for runner in state.runners.values() if _serves(runner)]
    rows = [(_left_ns(state, runner, t), runner) for runner in here]
    rows.sort(key=lambda row: -row[0])
    return [
        {
            "name": names.shown(runner.model),
            "model": names.shown(runner.model),
            "size": sum(runner.holds.values()),
            "digest": runner.digest or NO_DIGEST,
            "details": details(catalog.card(runner.model).file),
            "expires_at": moment(now_ns + left_ns),
            "size_vram": sum(size for name, size in runner.holds.items() if name != "host"),
            "context_length": _context(state, runner),
        }
        for left_ns, runner in rows
    ]


def show(state: State, catalog: Catalog, id: str, made_s: int) -> dict[str, Any]:
    """/api/show: one model."""
    card = catalog.card(id)
    return {
        "modelfile": "",
        "parameters": parameters(catalog.launch_options(id)),
        "template": "",
        "details": details(card.file),
        "model_info": model_info(card.file),
        "capabilities": capabilities(card),
        "modified_at": moment(made_s * S),
    }


def _serves(runner: Runner) -> bool:
    """It is ready, or was and still has work."""
    return runner.state is RunnerState.ready or (runner.state is RunnerState.draining and bool(runner.held))


def _left_ns(state: State, runner: Runner, t: int) -> int:
    """How long it stays if nobody asks for it any more."""
    if runner.keep_alive_ns == NEVER or runner.model in state.pinned:
        return FOREVER_NS
    due = state.deadlines.get(("keep_alive", runner.id))
    return runner.keep_alive_ns if due is None else max(0, due - t)


def _context(state: State, runner: Runner) -> int:
    """The context that it was started with; 0: not known."""
    view = state.model(runner.model)
    estimate = view.estimate if view is not None else None
    found = runner.options.get((estimate.context if estimate else "") or "num_ctx")
    if type(found) is int:
        return found
    return estimate.context_tokens if estimate else 0


def digest(state: State, id: str) -> str:
    """What changes when the model's configuration does."""
    view = state.model(id)
    return view.digest if view is not None else NO_DIGEST


def details(file: Gguf | None) -> dict[str, Any]:
    """What a model's file says of it, in short."""
    return {
        "parent_model": "",  # always there in Ollama: typed clients insist
        "format": "gguf" if file else "",
        "family": file.architecture if file else "",
        "families": [file.architecture] if file else [],
        "parameter_size": short_count(file.parameters) if file else "",
        "quantization_level": FILE_TYPES.get(file.file_type, "") if file else "",
    }


def model_info(file: Gguf | None) -> dict[str, Any]:
    """The same in full, by the names that GGUF has for it."""
    if file is None:
        return {}
    name = file.architecture
    info = {
        "general.architecture": name,
        "general.file_type": file.file_type if file.file_type >= 0 else None,
        "general.parameter_count": file.parameters,
        f"{name}.context_length": file.trained_context or None,
        f"{name}.embedding_length": file.embedding or None,
        f"{name}.block_count": file.layers or None,
        f"{name}.attention.head_count": file.heads or None,
        f"{name}.attention.head_count_kv": max(file.kv_heads, default=0) or None,
        f"{name}.attention.sliding_window": file.window or None,
        f"{name}.vocab_size": file.vocabulary or None,
    }
    return {key: value for key, value in info.items() if value is not None}


def capabilities(card: Card) -> list[str]:
    """What a model can be asked for. What does not only embed is taken to generate text, as Ollama does."""
    able = {
        "embedding": card.embeds,
        "completion": not card.embeds,
        "tools": card.tools and not card.embeds,
        "thinking": card.file is not None and card.file.thinking and not card.embeds,
        "vision": card.vision,
        "audio": card.audio,
    }
    return [name for name, is_able in able.items() if is_able]


def parameters(options: Any) -> str:
    """The launch options and their defaults, as a Modelfile has parameters."""
    return "\n".join(f"{name:<30} {_plain(value)}" for name, value in options.items())


def _plain(value: Option) -> str:
    """As JSON: Ollama quotes texts, and clients read a line by its two words."""
    return msgspec.json.encode(value).decode()


def short_count(count: int) -> str:
    """`7B`, `8.0B`, `137M`, `22.57M`: as Ollama shortens numbers of parameters."""
    for size, letter, decimals in ((10**9, "B", 1), (10**6, "M", 2), (10**3, "K", 0)):
        if count >= size:
            return f"{count // size}{letter}" if count % size == 0 else f"{count / size:.{decimals}f}{letter}"
    return str(count)


def moment(unix_ns: int) -> str:
    """A time of day in RFC 3339."""
    return said.written(datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=unix_ns // 1000))
