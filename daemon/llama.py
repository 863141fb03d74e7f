"""What a llama-server will need: from its command line, and from what its files say.

    weights + buffers + context × (key and value cache + attention mask)

The cache is exact: rows of the cache's types, for each layer that has attention (llama.cpp,
`llama_kv_cache`). The buffers are bounded from above, after Ollama's `GraphSize`: for one batch, the larger
of the logits and of a layer's activations. docs/decisions/0030 has the figures that were measured.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import msgspec

from daemon import ggml
from daemon.config.commands import LLAMA_SLOTS, option_text
from daemon.config.config import Model
from daemon.config.macros import fill
from daemon.gguf import Gguf
from events.catalogue import AUTO, Estimate
from events.limits import BATCH_TOKENS, CONTEXT_PAD_TOKENS, SERVER_BYTES, TOKEN_BYTES

MODEL = ("-m", "--model"), "LLAMA_ARG_MODEL"
CONTEXT = ("-c", "--ctx-size"), "LLAMA_ARG_CTX_SIZE"
GPU_LAYERS = ("-ngl", "--gpu-layers", "--n-gpu-layers"), "LLAMA_ARG_N_GPU_LAYERS"
BATCH = ("-ub", "--ubatch-size"), "LLAMA_ARG_UBATCH"
PARALLEL = ("-np", "--parallel"), "LLAMA_ARG_N_PARALLEL"
CACHE_K = ("-ctk", "--cache-type-k"), "LLAMA_ARG_CACHE_TYPE_K"
CACHE_V = ("-ctv", "--cache-type-v"), "LLAMA_ARG_CACHE_TYPE_V"
FLASH = ("-fa", "--flash-attn"), "LLAMA_ARG_FLASH_ATTN"
DEVICE = ("-dev", "--device"), "LLAMA_ARG_DEVICE"
FIT = ("-fit", "--fit"), "LLAMA_ARG_FIT"
PROJECTOR = ("-mm", "--mmproj"), "LLAMA_ARG_MMPROJ"
ADAPTER = ("--lora",), ""
DRAFT = ("-md", "--model-draft", "--spec-draft-model"), "LLAMA_ARG_MODEL_DRAFT"

ALL = 1 << 20
"""More layers than there are."""

SPREAD = {
    "-cmoe", "--cpu-moe", "-ncmoe", "--n-cpu-moe", "-ncffn", "--n-cpu-ffn", "-ot", "--override-tensor",
    "-nkvo", "--no-kv-offload",
}  # fmt: skip
"""With one of these a part of it stays in host memory, however many layers are on a GPU."""

NO = ("off", "0", "false", "disabled")

CACHELESS = {
    "bert", "jina-bert-v2", "jina-bert-v3", "nomic-bert", "nomic-bert-moe", "neo-bert", "eurobert",
    "modern-bert", "gemma-embedding", "wavtokenizer-dec", "dream", "llada", "llada-moe", "rnd1", "t5encoder",
}  # fmt: skip
"""Architectures that keep nothing of earlier tokens (llama.cpp, `create_memory`)."""

_OPTION = re.compile(r"\$\{([^}]*)\}")


class Server(msgspec.Struct, frozen=True):
    """What a command line says. Counts are 0 where it says nothing; `gpu_layers` is AUTO then."""

    model: str
    draft: str = ""
    beside: tuple[str, ...] = ()
    """A projector and adapters, whose weights come on top."""
    vision: bool = False
    context: str = ""
    context_tokens: int = 0
    gpu: str = ""
    gpu_layers: int = AUTO
    slots: int = 0
    batch_tokens: int = BATCH_TOKENS
    cache_k: ggml.Type = ggml.BY_NAME["f16"]
    cache_v: ggml.Type = ggml.BY_NAME["f16"]
    flash: bool = True
    fits: bool = True
    """It makes itself smaller where there is too little memory: the context, if that was left to it, and
    the layers on the GPU."""
    whole_windows: bool = False

    @property
    def files(self) -> tuple[str, ...]:
        """All that it loads, its model first."""
        return (self.model, *([self.draft] if self.draft else []), *self.beside)


class _Words:
    """A command's flags, with the environment's variables where a flag is not there."""

    def __init__(self, model: Model) -> None:
        self._argv = model.argv
        self._env = model.env
        self._defaults = {name: option_text(value) for name, value in model.options.items()}

    def raw(self, flag: tuple[tuple[str, ...], str]) -> str:
        """The last value, with launch options still to be filled in; "": none."""
        names, variable = flag
        found = self._env.get(variable, "")
        for i, word in enumerate(self._argv):
            name, equals, value = word.partition("=")
            if name in names:
                found = value if equals else self._argv[i + 1] if i + 1 < len(self._argv) else ""
        return found

    def text(self, flag: tuple[tuple[str, ...], str]) -> str:
        """The value with the options' defaults."""
        return fill(self.raw(flag), self._defaults)

    def number(self, flag: tuple[tuple[str, ...], str], default: int = 0) -> int:
        """The value, where it is a count."""
        text = self.text(flag)
        return int(text) if re.fullmatch(r"[0-9]{1,12}", text) else default

    def option(self, flag: tuple[tuple[str, ...], str]) -> str:
        """The launch option that is the value, and nothing else; "": there is none."""
        match = _OPTION.fullmatch(self.raw(flag))
        return match[1] if match and match[1] in self._defaults else ""


def is_own(model: Model) -> bool:
    """Whether a model's command is llama-server itself: its files are where this program sees them, too."""
    return model.argv[0].rpartition("/")[2].startswith("llama-server") and not model.trust_probe


def server_of(model: Model) -> Server | None:
    """What a model's command says, if it is one that names a model's file. A file that a launch option names
    is not known before the load."""
    words = _Words(model)
    path = words.raw(MODEL)
    if not path or "\0" in path or _OPTION.search(path):
        return None
    projector = words.text(PROJECTOR)
    adapters = words.text(ADAPTER)
    f16 = ggml.BY_NAME["f16"]
    return Server(
        model=path,
        draft=words.text(DRAFT),
        beside=tuple(name for name in (projector, *adapters.split(",")) if name),
        vision=bool(projector),
        context=words.option(CONTEXT),
        context_tokens=words.number(CONTEXT),
        gpu="" if _spread(model) else words.option(GPU_LAYERS),
        gpu_layers=_gpu_layers(model, words),
        slots=words.number(PARALLEL),
        batch_tokens=words.number(BATCH) or BATCH_TOKENS,
        cache_k=ggml.BY_NAME.get(words.text(CACHE_K), f16),
        cache_v=ggml.BY_NAME.get(words.text(CACHE_V), f16),
        flash=words.text(FLASH) not in NO,
        fits=words.text(FIT) not in NO,
        whole_windows="--swa-full" in model.argv,
    )


def _spread(model: Model) -> bool:
    return not SPREAD.isdisjoint(model.argv)


def _gpu_layers(model: Model, words: _Words) -> int:
    """How many layers the command puts on GPUs; AUTO also where it then keeps a part of them elsewhere."""
    if words.text(DEVICE) == "none" or model.env.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return 0
    layers = words.text(GPU_LAYERS)
    count = ALL if layers == "all" else words.number(GPU_LAYERS, AUTO)
    return AUTO if count and _spread(model) else count


def estimate(server: Server, files: Mapping[str, Gguf]) -> Estimate:
    """What it needs. `files` has what each of its files says."""
    model = files[server.model]
    buffers, per_token = _buffers_bytes(server, model), _mask_bytes(server, model)
    for path in server.files[: 2 if server.draft else 1]:
        fixed, each = _cache_bytes(server, files[path])
        buffers += fixed
        per_token += each
    layers = model.layers + 1  # the output counts as one
    tokens, gpu_layers = server.context_tokens, server.gpu_layers
    if not server.fits:
        tokens, gpu_layers = tokens or model.trained_context, layers if gpu_layers == AUTO else gpu_layers
    return Estimate(
        weights_bytes=sum(files[path].weights_bytes for path in server.files),
        buffers_bytes=buffers,
        context_bytes=per_token,
        context=server.context,
        context_tokens=tokens,
        trained_context=model.trained_context,
        vision=server.vision or model.vision,
        layers=layers,
        gpu=server.gpu,
        gpu_layers=min(gpu_layers, layers),
    )


def _buffers_bytes(server: Server, model: Gguf) -> int:
    """What it takes whatever its context: the process, the vocabulary, and one batch's computation."""
    logits = model.vocabulary + model.embedding
    attention = model.heads * (model.key_length + model.value_length)
    activations = 4 * model.embedding + 3 * model.feed_forward + attention
    batch = 4 * server.batch_tokens * max(logits, activations)
    return SERVER_BYTES + TOKEN_BYTES * model.vocabulary + batch


def _mask_bytes(server: Server, model: Gguf) -> int:
    """What one batch's attention takes for each token of the context: with flash attention a mask in 16 bits,
    and another for windows; without, one in 32 bits, and the scores of every head."""
    if server.flash:
        return 2 * server.batch_tokens * (2 if model.window else 1)
    return 4 * server.batch_tokens * (1 + model.heads)


def _cache_bytes(server: Server, model: Gguf) -> tuple[int, int]:
    """What it keeps of earlier tokens: whatever the context, and for each token of it.

    A layer that looks back at a window keeps that for each slot, and a batch; one without attention keeps a
    state for each slot. Where a file does not say which layers those are, all of them count as both.
    """
    if model.architecture in CACHELESS:
        return 0, 0
    slots = server.slots or LLAMA_SLOTS
    whole = windows = states = 0
    for i, heads in enumerate(model.kv_heads):
        row = ggml.row_bytes(server.cache_k, heads * model.key_length)
        row += ggml.row_bytes(server.cache_v, heads * model.value_length)
        windowed = model.window and i < len(model.windowed) and model.windowed[i]
        if windowed and not server.whole_windows:
            windows += row
        else:
            whole += row
        states += not heads
    if model.recurrent and not states:
        states = model.layers
    fixed = windows * (model.window * slots + server.batch_tokens + CONTEXT_PAD_TOKENS)
    fixed += whole * CONTEXT_PAD_TOKENS * slots + 4 * model.recurrent * states * slots
    return fixed, whole
