"""The `options` of a request: launch options go to the scheduler, those of sampling to the model server."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from daemon.ollama.wrong import INVALID_JSON, wrong

Options = Mapping[str, msgspec.Raw]

INTEGER, NUMBER, TEXTS = "integer", "number", "array"

SAMPLING: dict[str, tuple[str, str]] = {
    "num_predict": ("max_tokens", INTEGER),
    "num_keep": ("n_keep", INTEGER),
    "seed": ("seed", INTEGER),
    "stop": ("stop", TEXTS),
    "temperature": ("temperature", NUMBER),
    "top_k": ("top_k", INTEGER),
    "top_p": ("top_p", NUMBER),
    "min_p": ("min_p", NUMBER),
    "typical_p": ("typical_p", NUMBER),
    "repeat_last_n": ("repeat_last_n", INTEGER),
    "repeat_penalty": ("repeat_penalty", NUMBER),
    "presence_penalty": ("presence_penalty", NUMBER),
    "frequency_penalty": ("frequency_penalty", NUMBER),
    "mirostat": ("mirostat", INTEGER),
    "mirostat_tau": ("mirostat_tau", NUMBER),
    "mirostat_eta": ("mirostat_eta", NUMBER),
}
"""Ollama's name to the model server's, and the type. What is neither here nor a launch option is ignored."""

LEAST = {"num_predict": 1, "seed": 0}
"""Below these they say "no limit" and "by chance": what a server does that is not told."""

CONTEXT = "num_ctx"
WHOLE_CONTEXT = -1
"""Of `repeat_last_n`; newer model servers want a number of tokens."""


def sampling(options: Options, declared: Mapping[str, object]) -> dict[str, Any]:
    """What the model server is told. Options that the model declares are the scheduler's. Raises Refused."""
    told: dict[str, Any] = {}
    for name, (renamed, kind) in SAMPLING.items():
        raw = options.get(name)
        if raw is None or name in declared:
            continue
        value = _value(name, raw, kind)
        if value is None or (name in LEAST and value < LEAST[name]):
            continue
        told[renamed] = value
    if told.get("repeat_last_n") == WHOLE_CONTEXT:
        told["repeat_last_n"] = _context(options, declared)
        if told["repeat_last_n"] <= 0:
            del told["repeat_last_n"]
    return told


def _context(options: Options, declared: Mapping[str, object]) -> int:
    """The context that the request is served with, as far as its launch options say; 0: not known."""
    default = declared.get(CONTEXT)
    if type(default) is not int:
        return 0
    given = _value(CONTEXT, options[CONTEXT], INTEGER) if CONTEXT in options else None
    return default if given is None else int(given)


def launch(options: Options, declared: Mapping[str, object]) -> dict[str, msgspec.Raw]:
    """The options that the model declares, whole numbers written as such: Ollama takes 4096.0 for 4096."""
    found = {name: options[name] for name in declared if name in options}
    for name, raw in found.items():
        if type(declared[name]) is int:
            value = _decoded(raw)
            if isinstance(value, float) and value.is_integer():
                found[name] = msgspec.Raw(msgspec.json.encode(int(value)))
    return found


def _value(name: str, raw: msgspec.Raw, kind: str) -> Any:
    value = _decoded(raw)
    if value is None:
        return None
    if kind == TEXTS:
        if isinstance(value, str):
            return [value]
        if isinstance(value, list) and all(isinstance(each, str) for each in value):
            return value
        raise wrong(f'option "{name}" must be an array of strings')
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise wrong(f'option "{name}" must be of type {kind}')
    if kind == INTEGER and abs(value) >= 1 << 63:
        raise wrong(f'option "{name}" does not fit into 64 bits')
    return int(value) if kind == INTEGER else value


def _decoded(raw: msgspec.Raw) -> Any:
    try:
        return msgspec.json.decode(raw)
    except INVALID_JSON as invalid:
        raise wrong(f"invalid options: {invalid}") from None
