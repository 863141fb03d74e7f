"""The tables of docs/migration.md: every key, variable and option of the others is in them or known."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from daemon.config.schema import schema

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/migration.md").read_text()


def _words(text: str) -> list[str]:
    return text.split()


LLAMA_SWAP = _words("""
healthCheckTimeout logLevel logTimeFormat logToStdout logRequests store metricsMaxInMemory
captureBuffer ui performance startPort sendLoadingState includeAliasesInList globalTTL unloadTimeout
macros apiKeys upstream profiles selectors models hooks routing peers groups matrix
""")
"""The top level of its config.example.yaml and of its Config, as of August 2026."""

MODEL = _words("""
macros cmd name description env proxy checkEndpoint ttl unloadTimeout compat useModelName filters
aliases metadata concurrencyLimit sendLoadingState timeouts capabilities unlisted cmdStop
healthCheckTimeout
""")

OLLAMA = _words("""
OLLAMA_DEBUG OLLAMA_DEBUG_LOG_REQUESTS OLLAMA_GO_TEMPLATE OLLAMA_FLASH_ATTENTION
OLLAMA_KV_CACHE_TYPE OLLAMA_GPU_OVERHEAD OLLAMA_IGPU_ENABLE LLAMA_ARG_FIT LLAMA_ARG_FIT_TARGET
OLLAMA_HOST OLLAMA_KEEP_ALIVE OLLAMA_LLM_LIBRARY OLLAMA_LOAD_TIMEOUT OLLAMA_MAX_LOADED_MODELS
OLLAMA_MAX_TRANSFER_STREAMS OLLAMA_MAX_QUEUE OLLAMA_MODELS OLLAMA_NO_CLOUD OLLAMA_NOHISTORY
OLLAMA_NOPRUNE OLLAMA_NUM_PARALLEL OLLAMA_ORIGINS OLLAMA_SCHED_SPREAD OLLAMA_CONTEXT_LENGTH
OLLAMA_EDITOR OLLAMA_REMOTES OLLAMA_AUTH OLLAMA_VULKAN HTTP_PROXY HTTPS_PROXY NO_PROXY http_proxy
https_proxy no_proxy CUDA_VISIBLE_DEVICES HIP_VISIBLE_DEVICES ROCR_VISIBLE_DEVICES
GGML_VK_VISIBLE_DEVICES GPU_DEVICE_ORDINAL HSA_OVERRIDE_GFX_VERSION
""")
"""Those of its envconfig, as of August 2026."""

ROUTER = _words("""
--models-dir --models-preset --models-max --models-autoload --no-models-autoload
--sleep-idle-seconds load-on-startup stop-timeout dedup-cache-models
""")


def named(title: str) -> set[str]:
    """What the first column of a section's table names."""
    section = PAGE.split(f"## {title}\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (`.*?) \|", section, re.MULTILINE)
    return {word for row in rows for word in re.findall(r"`([\w.*-]+)", row)}


@pytest.mark.parametrize(
    ("title", "words"),
    [("From llama-swap", LLAMA_SWAP), ("From Ollama", OLLAMA), ("From llama-server's router", ROUTER)],
)
def test_everything_is_in_the_tables(title: str, words: list[str]) -> None:
    assert set(words) - named(title) == set()


def test_every_key_of_llama_swap_is_known_to_the_reader() -> None:
    properties = schema()["properties"]
    assert set(LLAMA_SWAP) - set(properties) == set()
    assert set(MODEL) - set(properties["models"]["additionalProperties"]["properties"]) == set()


def test_every_key_of_a_model_is_in_the_table() -> None:
    text = PAGE.split("## From llama-swap\n")[1].split("\n## ")[0]
    assert [key for key in MODEL if f"`{key}`" not in text and f"`models.*.{key}`" not in text] == []


def test_what_the_tables_name_of_ours_is_known() -> None:
    ours = {
        "maxQueue",
        "maxLoadedModels",
        "loadStallTimeout",
        "memoryHeadroom",
        "insecureListen",
        "eventLog",
        "policy",
    }
    properties = schema()["properties"]
    assert all(f"`{key}`" in PAGE and key in properties for key in ours)
