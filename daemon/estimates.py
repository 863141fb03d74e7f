"""What the configured models need, from their files: read at start, and when the configuration changes.

All files are read by one process (`daemon.gguf`) that may take little memory and time. If it crashes or
hangs, the models whose files it did not come to have no estimate: they are loaded alone, and measured.
"""

from __future__ import annotations

import errno
import logging
import os
import sys
from collections.abc import Mapping, Sequence

import msgspec

from daemon import llama
from daemon.child import printed
from daemon.config.config import Config, Model
from daemon.gguf import Gguf, Line
from daemon.journal import about
from events.catalogue import Estimate, Option
from events.limits import (
    CONTEXT_LEAST_TOKENS,
    CONTEXT_LEAST_VISION_TOKENS,
    GGUF_OUTPUT_BYTES,
    GGUF_S,
)

log = logging.getLogger("runnerd")

UNSHARED = {"mllama"}
"""Architectures whose slots would get in each other's way: its images are kept once (Ollama's rule, too)."""

READER = (sys.executable, "-I", "-m", "daemon.gguf")


async def with_estimates(
    config: Config, reader: Sequence[str] = READER, patience_s: float = GGUF_S
) -> Config:
    """The configuration with what the models' files say. Takes `patience_s` at most."""
    servers = {  # a file does not say how shards would share it
        id: llama.server_of(model) if not model.shards else None for id, model in config.models.items()
    }
    paths = list(dict.fromkeys(path for server in servers.values() if server for path in server.files))
    if not paths:
        return config
    found = await read_files(paths, reader, patience_s)
    models = dict(config.models)
    for id, server in servers.items():
        if server is not None:
            models[id] = _with_estimate(id, models[id], server, found)
    return msgspec.structs.replace(config, models=models)


def _with_estimate(id: str, model: Model, server: llama.Server, found: Mapping[str, Line]) -> Model:
    files: dict[str, Gguf] = {}
    for path in server.files:
        line = found.get(path, Line(error="reading it took too long, or failed"))
        if line.gguf is None:
            if path.endswith(".gguf"):  # others may be names, as vLLM has them
                words = "%s: no estimate of its memory from %s: %s"
                log.warning(words, id, path, line.error, extra=about(model=id))
            gone = line.error == os.strerror(errno.ENOENT) and llama.is_own(model)
            return msgspec.structs.replace(model, missing=path) if gone else model
        files[path] = line.gguf
    gguf = files[server.model]
    model = msgspec.structs.replace(model, estimate=llama.estimate(server, files), file=gguf)
    if (gguf.embedding_only or gguf.architecture in UNSHARED) and not model.slots_given:
        model = msgspec.structs.replace(model, slots=1)
    return model


async def read_files(paths: Sequence[str], reader: Sequence[str], patience_s: float) -> dict[str, Line]:
    """What the process says of each file that it comes to."""
    try:
        said = await printed([*reader, *paths], patience_s=patience_s, limit_bytes=GGUF_OUTPUT_BYTES)
    except OSError as error:
        log.warning("no estimates of models' memory: %s", error)
        return {}
    return dict(zip(paths, _lines(said.output), strict=False))


def _lines(output: bytes) -> list[Line]:
    """The lines up to the first that is not whole."""
    found = []
    for line in output.split(b"\n")[:-1]:
        try:
            found.append(msgspec.json.decode(line, type=Line))
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            break
    return found


def bounded(
    options: Mapping[str, Option],
    defaults: Mapping[str, Option],
    estimate: Estimate | None,
    slots: int = 1,
) -> dict[str, Option]:
    """The launch options that a request fixes, as Ollama takes them: a context that is too small is raised,
    one beyond what the model was trained for (times its slots, which share it), and configured with, is cut,
    and a negative number of layers on GPUs is no wish. So what a client sends without thinking starts no
    other process."""
    found = dict(options)
    context = (estimate.context if estimate else "") or "num_ctx"
    asked = found.get(context)
    if type(asked) is int:
        least = CONTEXT_LEAST_VISION_TOKENS if estimate and estimate.vision else CONTEXT_LEAST_TOKENS
        default, trained = defaults.get(context), estimate.trained_context * slots if estimate else 0
        if trained:
            asked = min(asked, max(trained, default if type(default) is int else 0))
        found[context] = max(asked, least)
    layers = (estimate.gpu if estimate else "") or "num_gpu"
    wanted = found.get(layers)
    if type(wanted) is int and wanted < 0:
        del found[layers]
    return found


__all__ = ["bounded", "read_files", "with_estimates"]
