"""A file with every key that llama-swap documents: it loads, and means what its documentation says.

The keys and what they mean are those of its config.example.yaml (August 2026); its own file names models that
it does not define, and is refused for that here as it is there.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from daemon.catalog import Catalog
from daemon.config.config import Config
from daemon.config.file import load
from daemon.config.filters import Filters
from daemon.config.values import Json
from daemon.ports import Launch
from events.limits import S
from statemachines.state import State
from tests.unit.test_migration import LLAMA_SWAP, MODEL

FILE = r"""
healthCheckTimeout: 500
logLevel: info
logTimeFormat: ""
logToStdout: "proxy"
logRequests: true
store: {path: /tmp/activity.sqlite}
metricsMaxInMemory: 1000
captureBuffer: 15
ui: {activity: {session_id: ["X-Session-ID"]}}
performance: {disabled: false, every: 15s}
startPort: 10001
sendLoadingState: true
includeAliasesInList: true
globalTTL: 90
unloadTimeout: 10
macros:
  "server": >
    /opt/llama/llama-server --port ${PORT}
  "default_ctx": 4096
  "default_args": "--ctx-size ${default_ctx}"
  "models_dir": "${env.HOME}/models"
  flag: true
apiKeys: ["sk-0123456789abcdef", "${env.API_KEY_1}"]
upstream: {ignorePaths: ['.*\.(js|css)$', '^\/ws$|^\/api\/jobs$']}
profiles:
  "coding": {description: "for code", pins: {"llm-code": "big", "llm-plan": "coder", "image-gen": ~}}
selectors:
  "coder": {strategy: warm, targets: [big, small], name: Coder, description: "warm", metadata: {a: 1}}
  "plan": {strategy: pin, targets: [big, "z-ai/glm"]}
  "many": {strategy: spillover, targets: [small, docker, "openrouter/z-ai/glm"], settings: {spillover: 4}}
models:
  "big":
    macros: {"default_ctx": 16384, "temp": 0.7}
    cmd: |
      # a comment with ${undefined}
      ${server}
      --model ${models_dir}/big.gguf
      ${default_args} --temperature ${temp}
    name: "Big"
    description: "thinks"
    env: ["CUDA_VISIBLE_DEVICES=0,1,2"]
    proxy: http://127.0.0.1:8999
    checkEndpoint: /custom
    ttl: 60
    unloadTimeout: 12
    compat: {ignoreWebsockets: true}
    useModelName: "vendor/big"
    filters:
      stripParams: "temperature, top_k"
      setParams: {temperature: 0.7}
      setParamsByID:
        "${MODEL_ID}": {chat_template_kwargs: {reasoning_effort: medium}}
        "${MODEL_ID}:high": {chat_template_kwargs: {reasoning_effort: high}}
    aliases: ["gpt-4o-mini"]
    metadata:
      port: ${PORT}
      temperature: ${temp}
      flag: ${flag}
      note: "${MODEL_ID} on ${PORT}, temp=${temp}, ctx=${default_ctx}"
      a_list: [1, 1.23, "for ${MODEL_ID}"]
      an_obj: {a: "1", c: ["${temp}", false, "model: ${MODEL_ID}"]}
    concurrencyLimit: 3
    sendLoadingState: false
    timeouts: {responseHeader: 60}
    capabilities: {in: [text, image], out: [text], tools: true, reranker: false, context: 32000}
  "small": {unlisted: true, cmd: "${server} -m small.gguf"}
  "docker":
    proxy: "http://127.0.0.1:${PORT}"
    cmd: |
      docker run --name ${MODEL_ID} --rm -p ${PORT}:8080
      image:server --model '/models/x y.gguf'
    cmdStop: docker stop ${MODEL_ID} ${PID}
    ttl: 0
hooks: {on_startup: {profile: coding, preload: [small, "gpt-4o-mini"]}}
routing:
  router:
    use: group
    settings:
      groups:
        "one": {swap: true, exclusive: true, members: [big]}
        "together": {swap: false, exclusive: false, persistent: true, members: [small, docker]}
      matrix: {vars: {b: big}, evict_costs: {b: 50}, sets: {all: "b & small", more: "+all & docker"}}
  scheduler: {use: fifo, settings: {fifo: {priority: {"gpt-4o-mini": 10, small: 5}}}}
peers:
  openrouter:
    proxy: https://openrouter.ai/api
    apiKey: ${env.OPENROUTER_API_KEY}
    models: [z-ai/glm]
    timeouts: {connect: 30, responseHeader: 45}
    filters: {stripParams: "top_p", setParams: {provider: {zdr: true}}}
"""
ENVIRON = {"HOME": "/home/u", "API_KEY_1": "sk-fedcba9876543210", "OPENROUTER_API_KEY": "sk-or"}


@pytest.fixture
def config(tmp_path: Path) -> Config:
    path = tmp_path / "config.yaml"
    path.write_text(FILE)
    return load(path, ENVIRON)


def test_every_key_is_in_this_file() -> None:
    legacy = {"groups", "matrix"}  # the older places of what is under `routing`
    assert [key for key in LLAMA_SWAP if f"\n{key}:" not in FILE and key not in legacy] == []
    per_model = set(MODEL) - {"healthCheckTimeout"}  # a copy of the top's in its code, in no file
    assert [key for key in sorted(per_model) if f"{key}:" not in FILE] == []


def test_what_has_no_effect_is_warned_of_once(config: Config) -> None:
    said = [warning.split(": ")[1] for warning in config.warnings]
    assert said == [
        "logLevel", "logTimeFormat", "logToStdout", "logRequests", "store", "metricsMaxInMemory",
        "captureBuffer", "ui", "performance", "models.big.proxy", "models.big.compat",
        "routing.router.settings.matrix",
    ]  # fmt: skip


def test_macros_nest_are_typed_and_overridden(config: Config) -> None:
    command = config.command("big", Launch("r1", "big", "", {}, 8999, False), "")
    assert command.argv == (
        "/opt/llama/llama-server", "--port", "8999", "--model", "/home/u/models/big.gguf", "--ctx-size",
        "16384", "--temperature", "0.7",
    )  # fmt: skip
    assert command.url == "http://127.0.0.1:8999"
    assert (command.check_path, command.model_name) == ("/custom", "vendor/big")
    assert command.env == {"CUDA_VISIBLE_DEVICES": "0,1,2"}
    assert config.metadata("big", 8999) == {
        "port": 8999,
        "temperature": 0.7,
        "flag": True,
        "note": "big on 8999, temp=0.7, ctx=16384",
        "a_list": [1, 1.23, "for big"],
        "an_obj": {"a": "1", "c": [0.7, False, "model: big"]},
    }
    docker = config.command("docker", Launch("r2", "docker", "", {}, 10001, False), "")
    assert docker.argv[:6] == ("docker", "run", "--name", "docker", "--rm", "-p")
    assert docker.argv[-1] == "/models/x y.gguf"
    assert docker.stop_argv(77) == ("docker", "stop", "docker", "77")


def test_times_limits_and_what_is_shown(config: Config) -> None:
    big, small, docker = config.models.values()
    assert [model.keep_alive_ns // S for model in (big, small)] == [60, 90]
    assert docker.keep_alive_ns < 0
    assert [model.unload_ns // S for model in (big, small)] == [12, 10]
    assert [model.load_ns // S for model in (big, small)] == [500, 500]
    assert [model.first_byte_ns // S for model in (big, small)] == [60, 0]
    assert [model.send_loading_state for model in (big, small)] == [False, True]
    assert (big.concurrency_limit, big.priority, small.priority) == (3, 10, 5)
    assert big.capabilities.row()["context_length"] == 32000
    assert config.port_first == 10001
    assert config.api_keys == ("sk-0123456789abcdef", "sk-fedcba9876543210")
    assert config.preload == ("small", "big")
    rows = [row.id for row in Catalog(config).models()]
    assert rows == ["big", "gpt-4o-mini", "big:high", "docker", "coder", "plan", "many", "z-ai/glm"]


def test_names_and_filters(config: Config) -> None:
    strip = ("temperature", "top_k")
    medium: dict[str, Json] = {"chat_template_kwargs": {"reasoning_effort": "medium"}}
    high: dict[str, Json] = {"chat_template_kwargs": {"reasoning_effort": "high"}}
    assert config.filters("big") == Filters(strip, {"temperature": 0.7}, medium)
    assert config.filters("big:high") == Filters(strip, {"temperature": 0.7}, high)
    assert config.filters("gpt-4o-mini") == Filters(strip, {"temperature": 0.7})
    assert config.filters("z-ai/glm") == Filters(("top_p",), {"provider": {"zdr": True}})
    state = State()
    catalog = Catalog(config, state)
    assert [catalog.target(name) for name in ("coder", "plan", "many")] == ["big", "big", "small"]
    found = config.peer("openrouter/z-ai/glm")
    assert found is not None
    assert (found[0].url, found[0].timeouts.first_byte_ns // S) == ("https://openrouter.ai/api", 45)
    state.profile = "coding"
    assert [catalog.resolve(name) for name in ("llm-code", "llm-plan", "image-gen")] == ["big", "big", None]


def test_groups_here_and_the_matrix_where_it_is_in_use(config: Config, tmp_path: Path) -> None:
    groups = config.groups
    assert [(g.members, g.swap, g.exclusive, g.persistent) for g in groups.values()] == [
        (("big",), True, True, False),
        (("small", "docker"), False, False, True),
    ]
    path = tmp_path / "matrix.yaml"
    path.write_text(FILE.replace("use: group", "use: matrix"))
    other = load(path, ENVIRON)
    assert (other.groups, other.matrix is not None) == ({}, True)
    assert other.matrix is not None
    assert other.matrix.evict_costs == {"big": 50}
