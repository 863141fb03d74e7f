"""`runnerd import-ollama`: a configuration for the models of an Ollama directory. It copies no byte of them.

    models/manifests/HOST/NAMESPACE/MODEL/TAG   JSON: what the model consists of, by digest
    models/blobs/sha256-…                       weights, projectors, adapters, parameters, templates

What of a manifest is damaged is said in a sentence, and the others are taken. Names with equal manifests are
one model with several names, as in Ollama, which loads such weights once.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
import trio

from daemon.config.values import Json
from daemon.estimates import READER, read_files
from daemon.explain.words import count
from daemon.gguf import Line
from events.limits import CONFIG_INTEGER_MAX, CONFIG_MAX_BYTES, CONFIG_MODELS, GGUF_S

HOST, NAMESPACE, TAG = "registry.ollama.ai", "library", "latest"
"""What Ollama leaves out of a name."""

KEEP_ALIVE_S = 300
"""Ollama's."""

CONTEXT_TOKENS = 4096
"""Ollama's least default; it takes more where there is more GPU memory."""

_TYPE = "application/vnd.ollama.image."
_DIGEST = re.compile(r"sha256[:-]([0-9a-fA-F]{64})")
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]*")

EMBEDDING_BATCH_TOKENS = 2048
"""What Ollama starts models with that embed, where nothing is said."""

FLAGS = {
    "num_keep": "--keep",
    "num_predict": "--predict",
    "num_thread": "--threads",
    "num_batch": "--batch-size",
    "main_gpu": "--main-gpu",
    "draft_num_predict": "--spec-draft-n-max",
    "seed": "--seed",
    "temperature": "--temp",
    "top_k": "--top-k",
    "top_p": "--top-p",
    "min_p": "--min-p",
    "typical_p": "--typical",
    "repeat_last_n": "--repeat-last-n",
    "repeat_penalty": "--repeat-penalty",
    "presence_penalty": "--presence-penalty",
    "frequency_penalty": "--frequency-penalty",
}
"""Parameters of a model that llama-server takes as its defaults: a request that says nothing gets them, as in
Ollama. `setParams` would overrule what a request says."""


LEFT_OUT = {
    "template": "Ollama's template is not taken over: llama-server uses the one in the weights.",
    "prompt": "Ollama's template is not taken over: llama-server uses the one in the weights.",
    "system": "Ollama's system prompt is not taken over.",
    "messages": "Ollama's messages are not taken over.",
}
"""What is said of layers that nothing is made of."""


class Damaged(Exception):
    """Why a model cannot be taken over."""


class Layer(msgspec.Struct, rename={"media_type": "mediaType"}):
    """A file that a model consists of."""

    media_type: str
    digest: str
    size: int = -1


class Manifest(msgspec.Struct):
    """What a manifest says, as far as it matters here."""

    layers: list[Layer]
    config: Layer | None = None


class Entry(msgspec.Struct):
    """A model as it is written. `flags`: the lines of its command after the first."""

    names: list[str]
    weights: Path
    flags: list[str]
    options: dict[str, int]
    notes: list[str]


class Imported(msgspec.Struct, frozen=True):
    """The text of the configuration, and what was left out, a sentence each."""

    text: str
    models: int
    refused: tuple[str, ...]


def import_main(directory: Path | None, output: Path | None, server: str) -> int:
    """Print or write the configuration. 0: there are models in it; 1: there are none, or it cannot be
    written; 2: there is no such directory."""
    place = _place(directory, os.environ)
    if not (place / "manifests").is_dir():
        _say(f"{place} has no manifests/: DIR or $OLLAMA_MODELS names the directory of Ollama's models")
        return 2
    if output is not None and output.exists():  # before every model's head is read
        _say(f"{output} exists, and is left as it is: name a new file")
        return 1
    context = os.environ.get("OLLAMA_CONTEXT_LENGTH", "")
    found = import_models(place, server=server, context=int(context) if context.isdecimal() else 0)
    for sentence in found.refused:
        _say(f"left out: {sentence}")
    if not found.models:
        _say(f"{place} has no model that can be taken over")
        return 1
    if output is None:
        sys.stdout.write(found.text)
    else:
        try:
            with output.open("x", encoding="utf-8") as file:
                file.write(found.text)
        except OSError as error:
            _say(f"cannot write {output}: {error.strerror}")
            return 1
    _say(
        f"{count(found.models, 'model')}; runnerd check --config {output or 'FILE'} says what the file means"
    )
    return 0


def _say(words: str) -> None:
    print(f"runnerd: {words}", file=sys.stderr)


def _place(directory: Path | None, environ: Mapping[str, str]) -> Path:
    """Where the models are: what is given (also the directory above), $OLLAMA_MODELS, or Ollama's own."""
    if directory is None:
        own = Path(environ.get("HOME", "/")) / ".ollama" / "models"
        directory = Path(environ["OLLAMA_MODELS"]) if environ.get("OLLAMA_MODELS") else own
    above = directory / "models"
    return above if not (directory / "manifests").is_dir() and above.is_dir() else directory


def import_models(place: Path, *, server: str = "llama-server", context: int = 0) -> Imported:
    """The models of a directory. `context`: tokens, where a model says nothing; 0: Ollama's least default."""
    place = place.absolute()
    refused: list[str] = []
    entries: dict[bytes, Entry] = {}
    for path in sorted((place / "manifests").glob("*/*/*/*"))[:CONFIG_MODELS]:
        if path.name.startswith(".") or path.is_dir():
            continue
        shown = "/".join(path.parts[-4:])
        try:
            name = shown = _name(path)
            data = _read(path, "its manifest")
            if data in entries:
                entries[data].names.append(name)
            else:
                entries[data] = _entry(name, data, place / "blobs", context or CONTEXT_TOKENS)
        except Damaged as damaged:
            refused.append(f"{shown}: {damaged}")
    lines = trio.run(read_files, [str(each.weights) for each in entries.values()], READER, GGUF_S)
    good = []
    for entry in entries.values():
        fault = _judge(entry, lines.get(str(entry.weights)))
        if fault:
            refused.append(f"{entry.names[0]}: {fault}")
        else:
            good.append(entry)
    return Imported(_written(place, good, server), len(good), tuple(refused))


# --- reading ----------------------------------------------------------------------------------------------


def _name(path: Path) -> str:
    """A model's name, as Ollama shows it, from where its manifest is."""
    host, namespace, model, tag = path.parts[-4:]
    if not all(_PART.fullmatch(part) for part in (host, namespace, model, tag)):
        raise Damaged("that is no model's name")
    parts = [] if host == HOST else [host]
    if parts or namespace != NAMESPACE:
        parts.append(namespace)
    return "/".join([*parts, model]) + f":{tag}"


def _read(path: Path, what: str) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(CONFIG_MAX_BYTES + 1)
    except OSError as error:
        raise Damaged(f"{what} cannot be read: {error.strerror}") from None
    if len(data) > CONFIG_MAX_BYTES:
        raise Damaged(f"{what} is longer than {CONFIG_MAX_BYTES} bytes")
    return data


def _entry(name: str, data: bytes, blobs: Path, context: int) -> Entry:
    """A model, from its manifest. Raises Damaged."""
    try:
        manifest = msgspec.json.decode(data, type=Manifest)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Damaged(f"its manifest is damaged: {error}") from None
    _check_local(manifest, blobs)
    layers: dict[str, list[Layer]] = {}
    for layer in manifest.layers:
        layers.setdefault(layer.media_type.removeprefix(_TYPE), []).append(layer)
    weights = [_blob(layer, blobs, "weights") for layer in layers.get("model", [])]
    if "tensor" in layers:
        raise Damaged("its weights are safetensors, which llama-server does not read")
    if len(weights) != 1:
        raise Damaged(f"expected one file of weights, found {len(weights) or 'none'}")
    flags = [f"--mmproj {_word(_blob(layer, blobs, 'projector'))}" for layer in layers.get("projector", [])]
    adapters = [_word(_blob(layer, blobs, "adapter")) for layer in layers.get("adapter", [])]
    flags += [f"--lora {','.join(adapters)}"] if adapters else []
    flags += [f"-md {_word(_blob(each, blobs, 'draft'))}" for each in layers.get("draft", [])]
    entry = Entry([name], weights[0], flags, {"num_ctx": context}, [])
    for layer in layers.get("params", []):
        _take_parameters(entry, _read(_blob(layer, blobs, "parameters"), "the file of its parameters"))
    entry.notes += [sentence for kind, sentence in LEFT_OUT.items() if kind in layers]
    return entry


def _check_local(manifest: Manifest, blobs: Path) -> None:
    """Raises Damaged for a model that another server has."""
    if manifest.config is None:
        return
    data = _read(_blob(manifest.config, blobs, "configuration"), "its configuration")
    try:
        config = msgspec.json.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Damaged(f"its configuration is damaged: {error}") from None
    if isinstance(config, dict) and config.get("remote_host"):
        raise Damaged(f"it is served by {config['remote_host']!s}, and not on this machine")


def _blob(layer: Layer, blobs: Path, what: str) -> Path:
    """The file of a layer, whole. Raises Damaged."""
    match = _DIGEST.fullmatch(layer.digest)
    if match is None:
        raise Damaged(f"its manifest has no digest of its {what}")
    path = blobs / f"sha256-{match[1]}"
    try:
        size = path.stat().st_size
    except OSError as error:
        raise Damaged(f"its {what} cannot be read: {error.strerror}: {path}") from None
    if layer.size >= 0 and size != layer.size:
        raise Damaged(f"its {what} should have {layer.size} bytes and has {size}: {path}")
    return path


def _take_parameters(entry: Entry, data: bytes) -> None:
    """Parameters of a model: what is fixed at its start as launch options, the others as defaults."""
    try:
        given = msgspec.json.decode(data, type=dict[str, msgspec.Raw])
        parameters: dict[str, Json] = {name: msgspec.json.decode(raw) for name, raw in given.items()}
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Damaged(f"the file of its parameters is damaged: {error}") from None
    for name, value in parameters.items():
        flags = _parameter(entry, name, value)
        if flags is None:
            entry.notes.append(f"Ollama's parameter {name[:64]!a} is not taken over.")
        else:
            entry.flags += flags


def _parameter(entry: Entry, name: str, value: Json) -> list[str] | None:
    """The flags for a parameter; None where llama-server has nothing like it."""
    number = not isinstance(value, bool) and isinstance(value, int | float)
    if name in ("num_ctx", "num_gpu") and type(value) is int and abs(value) <= CONFIG_INTEGER_MAX:
        if name == "num_ctx" and value > 0:
            entry.options[name] = value
        elif name == "num_gpu" and value >= 0:
            entry.options[name] = value
            return ["-ngl ${num_gpu}"]
        return []
    if name == "use_mmap" and value is True:
        return []
    if name == "stop" and isinstance(value, list | str):
        words = [value] if isinstance(value, str) else [word for word in value if isinstance(word, str)]
        left = [word for word in words if "${" in word]
        entry.notes += [
            f"Ollama's stop word {word[:64]!a} is not taken over: it looks like a macro." for word in left
        ]
        return [f"--reverse-prompt {_escaped(word)}" for word in words if word and word not in left]
    if name in FLAGS and number:
        return [f"{FLAGS[name]} {msgspec.json.encode(value).decode()}"]
    return None


def _escaped(word: str) -> str:
    """A text as llama-server reads it, which takes `\\n` for the end of a line: on one line, printable."""
    marked = word.replace("\\", "\\\\").replace("\n", "\\n").replace("\t", "\\t").replace("\r", "\\r")
    return shlex.quote("".join(char if char.isprintable() else "?" for char in marked))


def _word(path: Path) -> str:
    """A path in a command. Raises Damaged for one that a configuration cannot hold."""
    text = str(path)
    if "${" in text or not text.isprintable():
        raise Damaged(f"its path cannot stand in a configuration: {text!a}")
    return shlex.quote(text)


def _judge(entry: Entry, line: Line | None) -> str:
    """Why a model's weights are of no use; "" where they are, or could not be looked at in time."""
    if line is None:
        entry.notes.append("Its weights could not be looked at.")
        return ""
    if line.gguf is None:
        return f"its weights are no GGUF file that can be read: {line.error}"
    if line.gguf.embedding_only:
        # llama-server refuses a longer text than fits into one batch of computation, 512 tokens by default.
        given = [flag.split()[1] for flag in entry.flags if flag.startswith("--batch-size ")]
        entry.flags += ["--embeddings", f"--ubatch-size {given[0] if given else EMBEDDING_BATCH_TOKENS}"]
    return ""


# --- writing ----------------------------------------------------------------------------------------------


def _written(place: Path, entries: Sequence[Entry], server: str) -> str:
    lines = [
        f"# The models of {json.dumps(str(place))}, as `runnerd import-ollama` found them.",
        "# Nothing was copied: what `ollama rm` or `ollama pull` takes away is gone here, too.",
        f"globalTTL: {KEEP_ALIVE_S}",
        "models:",
    ]
    for entry in entries:
        lines += _model(entry, server)
    return "\n".join(lines) + "\n"


def _model(entry: Entry, server: str) -> list[str]:
    names = sorted(entry.names, key=lambda name: (name.endswith(f":{TAG}"), name))
    short = [name.removesuffix(f":{TAG}") for name in names if name.endswith(f":{TAG}")]
    lines = [f"  {json.dumps(names[0])}:", *(f"    # {note}" for note in entry.notes), "    cmd: |"]
    start = [f"{shlex.quote(server)} --port ${{PORT}}", f"--model {_word(entry.weights)}"]
    for words in [*start, "--ctx-size ${num_ctx} --parallel 1", *entry.flags]:
        lines.append(f"      {words}")
    if names[1:] or short:
        lines.append(f"    aliases: {json.dumps([*names[1:], *short])}")
    lines.append(f"    options: {json.dumps(entry.options)}")
    return lines
