"""What models need: by their commands and files, read by a process that may fail, and placed by the core."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import msgspec
import pytest
import trio

from daemon import ggml, llama
from daemon.config.config import Config, Model
from daemon.config.endpoint import Endpoint
from daemon.config.file import load
from daemon.estimates import READER, bounded, with_estimates
from daemon.gguf import Gguf
from events.catalogue import AUTO, ConfigView, DeviceView, Estimate, ModelView, Option
from events.limits import (
    BATCH_TOKENS,
    CONTEXT_PAD_TOKENS,
    GGUF_CPU_S,
    GGUF_MEMORY_BYTES,
    GIB,
    GPU_CONTEXT_BYTES,
    SERVER_BYTES,
    TOKEN_BYTES,
)
from scripts import make_tiny_gguf
from statemachines.estimate import estimated_bytes, raised
from statemachines.ledger import needs
from statemachines.state import State, spec_key

PATIENCE_S = 30.0

LLAMA8B = Gguf(
    architecture="llama",
    tensor_bytes={"q4_K": 4 * GIB, "q6_K": GIB},
    trained_context=8192,
    layers=32,
    embedding=4096,
    feed_forward=14336,
    heads=32,
    kv_heads=(8,) * 32,
    key_length=128,
    value_length=128,
    vocabulary=128256,
)


def model(cmd: str, env: dict[str, str] | None = None, **options: Option) -> Model:
    return Model(argv=tuple(cmd.split()), endpoint=Endpoint(), env=env or {}, options=options)


def server(cmd: str, env: dict[str, str] | None = None, **options: Option) -> llama.Server:
    found = llama.server_of(model(cmd, env, **options))
    assert found is not None
    return found


def estimate(cmd: str, gguf: Gguf = LLAMA8B, **options: Option) -> Estimate:
    found = server(cmd, None, **options)
    return llama.estimate(found, dict.fromkeys(found.files, gguf))


# --- commands --------------------------------------------------------------------------------------------


def test_what_a_command_says() -> None:
    found = server(
        "/opt/llama-server --port ${PORT} -m old.gguf --model=m.gguf -c ${num_ctx} -ngl ${num_gpu} -np 4 "
        "-ub 256 -ctk q8_0 -ctv q4_0 -fa off --mmproj p.gguf --lora a.gguf,b.gguf -md d.gguf --fit off "
        "--swa-full",
        num_ctx=4096,
        num_gpu=20,
    )
    assert found.files == ("m.gguf", "d.gguf", "p.gguf", "a.gguf", "b.gguf")
    assert (found.context, found.context_tokens, found.gpu, found.gpu_layers) == (
        "num_ctx",
        4096,
        "num_gpu",
        20,
    )
    assert (found.slots, found.batch_tokens, found.vision) == (4, 256, True)
    assert (found.cache_k.name, found.cache_v.name) == ("q8_0", "q4_0")
    assert not found.flash and not found.fits and found.whole_windows


def test_what_a_command_leaves_open() -> None:
    found = server("llama-server -m m.gguf")
    assert (found.context, found.context_tokens, found.gpu_layers, found.slots) == ("", 0, AUTO, 0)
    assert found.batch_tokens == BATCH_TOKENS and found.flash and found.fits and not found.vision


def test_the_environment_says_what_the_command_does_not() -> None:
    env = {"LLAMA_ARG_MODEL": "e.gguf", "LLAMA_ARG_CTX_SIZE": "2048", "LLAMA_ARG_N_GPU_LAYERS": "7"}
    found = server("llama-server -c 1024", env)
    assert (found.model, found.context_tokens, found.gpu_layers) == ("e.gguf", 1024, 7)


@pytest.mark.parametrize(
    "cmd", ["sleep 1", "server -m", "server -m ${file}", "server --model=", "server -m a\0b"]
)
def test_a_command_that_names_no_file(cmd: str) -> None:
    assert llama.server_of(model(cmd, file="x.gguf")) is None


@pytest.mark.parametrize(
    ("flags", "layers"),
    [
        ("", AUTO),
        ("-ngl auto", AUTO),
        ("-ngl -1", AUTO),
        ("-ngl 0", 0),
        ("--n-gpu-layers 12", 12),
        ("--gpu-layers=999", 33),
        ("-ngl all", 33),
        ("-ngl 99 --fit off", 33),
        ("--fit off", 33),
        ("-ngl 99 --n-cpu-moe 8", AUTO),
        ("-ngl 0 --cpu-moe", 0),
        ("-dev none", 0),
    ],
)
def test_layers_on_gpus(flags: str, layers: int) -> None:
    assert estimate(f"llama-server -m m.gguf {flags}").gpu_layers == layers


# --- figures ---------------------------------------------------------------------------------------------


def test_the_figures_of_a_model_of_eight_billion() -> None:
    found = estimate("llama-server -m m.gguf -c 8192 -np 2")
    each = 32 * 8 * (128 + 128) * 2
    assert found.weights_bytes == 5 * GIB
    assert found.context_bytes == each + 2 * BATCH_TOKENS
    logits = 4 * BATCH_TOKENS * (128256 + 4096)
    buffers = SERVER_BYTES + TOKEN_BYTES * 128256 + logits + each * CONTEXT_PAD_TOKENS * 2
    assert found.buffers_bytes == buffers
    assert (found.context_tokens, found.trained_context, found.layers) == (8192, 8192, 33)


def test_a_cache_of_other_types_counts_by_their_blocks() -> None:
    row = 8 * 128
    q8, f32 = ggml.row_bytes(ggml.BY_NAME["q8_0"], row), ggml.row_bytes(ggml.BY_NAME["f32"], row)
    found = estimate("llama-server -m m.gguf -c 8192 -ctk q8_0 -ctv f32")
    assert found.context_bytes == 32 * (q8 + f32) + 2 * BATCH_TOKENS


def test_without_flash_attention_every_head_keeps_its_scores() -> None:
    flash, plain = estimate("llama-server -m m.gguf"), estimate("llama-server -m m.gguf -fa off")
    assert plain.context_bytes - flash.context_bytes == 4 * BATCH_TOKENS * 33 - 2 * BATCH_TOKENS


def test_windows_cost_no_context_unless_they_are_whole() -> None:
    gguf = msgspec.structs.replace(LLAMA8B, window=1024, windowed=(True,) * 31)
    found = estimate("llama-server -m m.gguf", gguf)
    assert found.context_bytes == 8 * 256 * 2 + 4 * BATCH_TOKENS
    whole = estimate("llama-server -m m.gguf --swa-full", gguf)
    assert whole.context_bytes == 32 * 8 * 256 * 2 + 4 * BATCH_TOKENS


def test_a_recurrent_model_keeps_a_state_for_each_slot() -> None:
    mamba = msgspec.structs.replace(LLAMA8B, kv_heads=(0,) * 32, recurrent=1000)
    four, eight = (estimate(f"llama-server -m m.gguf -np {n}", mamba) for n in (4, 8))
    assert four.context_bytes == 2 * BATCH_TOKENS
    assert eight.buffers_bytes - four.buffers_bytes == 4 * 1000 * 32 * 4
    unsaid = msgspec.structs.replace(LLAMA8B, recurrent=1000)
    assert estimate("llama-server -m m.gguf", unsaid).context_bytes == 32 * 8 * 256 * 2 + 2 * BATCH_TOKENS


def test_an_encoder_keeps_nothing_of_earlier_tokens() -> None:
    bert = msgspec.structs.replace(LLAMA8B, architecture="bert", embedding_only=True)
    assert estimate("llama-server -m m.gguf", bert).context_bytes == 2 * BATCH_TOKENS


def test_a_draft_model_and_a_projector_come_on_top() -> None:
    one, two = estimate("llama-server -m m.gguf"), estimate("llama-server -m m.gguf -md d.gguf")
    assert (one.weights_bytes, two.weights_bytes) == (5 * GIB, 10 * GIB)
    assert two.context_bytes - one.context_bytes == 32 * 8 * 256 * 2
    seeing = estimate("llama-server -m m.gguf --mmproj p.gguf")
    assert seeing.weights_bytes == 10 * GIB and seeing.vision and seeing.context_bytes == one.context_bytes


# --- where it goes ---------------------------------------------------------------------------------------

SMALL = Estimate(
    4 * GIB, context_bytes=1 << 20, context="num_ctx", trained_context=8192, layers=32, gpu="num_gpu"
)


@pytest.mark.parametrize(
    ("options", "gpus", "expected"),
    [
        ({"num_ctx": 1024, "num_gpu": 99}, True, {"": 5 * GIB + GPU_CONTEXT_BYTES}),
        ({"num_ctx": 1024, "num_gpu": -1}, True, {"": 5 * GIB + GPU_CONTEXT_BYTES}),
        ({"num_ctx": 1024}, True, {"": 5 * GIB + GPU_CONTEXT_BYTES}),
        ({"num_ctx": 1024, "num_gpu": 0}, True, {"host": 5 * GIB}),
        ({"num_ctx": 1024, "num_gpu": 99}, False, {"host": 5 * GIB}),
        ({"num_ctx": 4096, "num_gpu": 8}, True, {"": 2 * GIB + GPU_CONTEXT_BYTES, "host": 6 * GIB}),
        ({"num_ctx": "1024", "num_gpu": "0"}, True, {"host": 5 * GIB}),
        ({"num_ctx": 0, "num_gpu": 0}, True, {"host": 12 * GIB}),
        ({"num_ctx": "auto", "num_gpu": 0}, True, {"host": 12 * GIB}),
    ],
)
def test_where_an_estimate_puts_a_model(
    options: dict[str, Option], gpus: bool, expected: dict[str, int]
) -> None:
    assert estimated_bytes(SMALL, options, gpus) == expected


def test_what_was_measured_is_no_less_than_the_weights() -> None:
    assert raised({"host": 5 * GIB}, SMALL) == {"host": 5 * GIB}
    assert raised({"host": GIB}, SMALL) == {"host": 4 * GIB}
    assert raised({"host": 2 * GIB, "gpu0": GIB}, SMALL) == {"host": 2 * GIB, "gpu0": 2 * GIB}
    assert raised({"gpu0": 2 * GIB, "gpu1": 3 * GIB}, SMALL) == {"gpu0": 2 * GIB, "gpu1": 3 * GIB}


def test_configured_goes_before_learned_before_estimated() -> None:
    state = State()
    state.config = ConfigView(devices={"host": DeviceView(16 * GIB)})
    options: dict[str, Option] = {"num_ctx": 1024}
    view = ModelView("d", options=options)
    assert needs(state, view, options) == (None, "unknown")
    view = msgspec.structs.replace(view, estimate=SMALL)
    assert needs(state, view, options) == ({"host": 5 * GIB}, "estimated")
    state.footprints[spec_key("d", options)] = {"host": 3 * GIB}
    assert needs(state, view, options) == ({"host": 4 * GIB}, "measured")
    assert needs(state, view, {"num_ctx": 2048}) == ({"host": 6 * GIB}, "estimated")
    view = msgspec.structs.replace(view, memory_bytes={"": 7 * GIB})
    assert needs(state, view, options) == ({"host": 7 * GIB}, "configured")


# --- requests --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "taken"),
    [
        ({}, {}),
        ({"num_ctx": 2048}, {"num_ctx": 2048}),
        ({"num_ctx": 0}, {"num_ctx": 4}),
        ({"num_ctx": -1}, {"num_ctx": 4}),
        ({"num_ctx": 131072}, {"num_ctx": 8192}),
        ({"num_gpu": -1, "num_ctx": 9000}, {"num_ctx": 8192}),
        ({"num_gpu": 0}, {"num_gpu": 0}),
        ({"adapter": "x"}, {"adapter": "x"}),
    ],
)
def test_what_a_request_may_ask_for(asked: dict[str, Option], taken: dict[str, Option]) -> None:
    assert bounded(asked, {"num_ctx": 4096, "num_gpu": 99}, SMALL) == taken


def test_a_context_beyond_the_trained_one_is_the_configurations_choice() -> None:
    assert bounded({"num_ctx": 16384}, {"num_ctx": 16384}, SMALL) == {"num_ctx": 16384}
    assert bounded({"num_ctx": 32768}, {"num_ctx": 16384}, SMALL) == {"num_ctx": 16384}


def test_a_model_that_sees_needs_room_for_an_image() -> None:
    seeing = msgspec.structs.replace(SMALL, vision=True)
    assert bounded({"num_ctx": 512}, {"num_ctx": 4096}, seeing) == {"num_ctx": 2048}


def test_without_an_estimate_only_the_least_is_known() -> None:
    assert bounded({"num_ctx": 1, "num_gpu": -1}, {"num_ctx": 4096, "num_gpu": 1}, None) == {"num_ctx": 4}
    assert bounded({"num_ctx": 1 << 40}, {"num_ctx": 4096}, None) == {"num_ctx": 1 << 40}


# --- the process -----------------------------------------------------------------------------------------


@pytest.fixture
def config(tmp_path: Path) -> Config:
    shape = {"seed": 1, "name": "tiny", "embd": 64, "layers": 2, "ff": 128, "ctx": 4096}
    for name in ("a", "b"):
        make_tiny_gguf.write(tmp_path / f"{name}.gguf", argparse.Namespace(**shape))
    (tmp_path / "broken.gguf").write_bytes(b"GGUF")
    (tmp_path / "runnerd.yaml").write_text(
        f"""
models:
  a: {{cmd: "llama-server --port ${{PORT}} -m {tmp_path}/a.gguf -c ${{num_ctx}}", options: {{num_ctx: 1024}}}}
  broken: {{cmd: "llama-server --port ${{PORT}} -m {tmp_path}/broken.gguf"}}
  other: {{cmd: "python -m http.server ${{PORT}}"}}
  b: {{cmd: "llama-server --port ${{PORT}} -m {tmp_path}/b.gguf -c 2048 --embeddings", concurrencyLimit: 8}}
"""
    )
    return load(tmp_path / "runnerd.yaml")


async def test_the_models_of_a_configuration(config: Config, caplog: pytest.LogCaptureFixture) -> None:
    found = (await with_estimates(config)).models
    a, b = found["a"].estimate, found["b"].estimate
    assert a is not None and b is not None
    assert (a.context, a.trained_context, b.context, b.context_tokens) == ("num_ctx", 4096, "", 2048)
    assert found["broken"].estimate is None and found["other"].estimate is None
    assert [record.message for record in caplog.records if "broken: no estimate" in record.message]
    assert not [record for record in caplog.records if "other" in record.message]
    assert found["b"].slots == 1
    view = (await with_estimates(config)).view(b"key").models["a"]
    assert view.estimate == a and view.digest == config.view(b"key").models["a"].digest


@pytest.mark.parametrize("kind", ['"mllama"', '"qwen3","embedding_only":true'])
async def test_files_of_models_that_share_no_runner_get_one_slot(config: Config, kind: str) -> None:
    says = f"""'{{"gguf":{{"tensor_bytes":{{}},"architecture":{kind}}}}}'"""
    reader = [sys.executable, "-c", f"import sys\nfor _ in sys.argv[1:]: print({says})"]
    models = {
        "plain": msgspec.structs.replace(config.models["a"], slots=8),
        "given": msgspec.structs.replace(config.models["a"], slots=8, slots_given=True),
    }
    config = msgspec.structs.replace(config, models=models)
    found = (await with_estimates(config, reader)).models
    assert (found["plain"].slots, found["given"].slots) == (1, 8)


FIRST = 'import os, sys\nos.execv(sys.executable, [sys.executable, "-I", "-m", "daemon.gguf", sys.argv[1]])'
HANGS = (
    "import subprocess, sys, time\n"
    'subprocess.run([sys.executable, "-I", "-m", "daemon.gguf", sys.argv[1]])\n'
    "time.sleep(600)"
)


@pytest.mark.parametrize(
    ("program", "patience_s", "known"),
    [
        ("import os\nos.kill(os.getpid(), 11)", PATIENCE_S, []),
        ("print('x' * (32 << 20))", PATIENCE_S, []),
        ("print('{\"gguf\": 7}')", PATIENCE_S, []),
        ("print('[' * 100000)", PATIENCE_S, []),
        (FIRST, PATIENCE_S, ["a"]),
        (HANGS, 2.0, ["a"]),
    ],
)
async def test_a_reader_that_fails_costs_its_estimates_only(
    config: Config, program: str, patience_s: float, known: list[str]
) -> None:
    with trio.fail_after(PATIENCE_S):
        found = await with_estimates(config, [sys.executable, "-c", program], patience_s)
    assert [id for id, each in found.models.items() if each.estimate] == known
    assert list(found.models) == list(config.models)


async def test_a_reader_that_cannot_be_started_costs_them_too(config: Config) -> None:
    found = await with_estimates(config, ["/nonexistent/python"])
    assert not [each for each in found.models.values() if each.estimate]


async def test_the_reader_is_limited() -> None:
    """It sets its limits itself, before it opens anything."""
    code = (
        "import daemon.gguf as g, resource as r; g.main([]); "
        "print(r.getrlimit(r.RLIMIT_AS)[0], r.getrlimit(r.RLIMIT_CPU)[0])"
    )
    done = await trio.run_process([*READER[:2], "-c", code], capture_stdout=True)
    assert done.stdout.split() == [str(GGUF_MEMORY_BYTES).encode(), str(GGUF_CPU_S).encode()]
