"""What a valid configuration means: defaults, macros, commands, names, the scheduling view."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from textwrap import dedent

import msgspec
import pytest

from daemon.config.check import check_main
from daemon.config.commands import Command
from daemon.config.config import Config, SpecChanged
from daemon.config.errors import ConfigError
from daemon.config.file import load
from daemon.config.retention import Retention
from daemon.ports import Launch
from events.catalogue import NEVER, DeviceView, Option
from events.limits import GIB, MIB, S

ROOT = Path(__file__).parents[2]

Write = Callable[..., Config]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(text: str, environ: Mapping[str, str] | None = None) -> Config:
        path = tmp_path / "config.yaml"
        path.write_text(dedent(text))
        return load(path, environ or {})

    return write


def command(
    config: Config,
    model: str = "m",
    *,
    port: int = 5800,
    socket: str = "",
    options: dict[str, Option] | None = None,
) -> Command:
    launch = Launch("r1", model, "", options or {}, port, bool(socket))
    return config.command(model, launch, socket)


def test_the_least_configuration_has_the_defaults(write: Write) -> None:
    config = write("models: {m: {cmd: 'server --port ${PORT}'}}")
    assert (config.listen, config.control_socket, config.event_log) == ("127.0.0.1:8080", None, None)
    assert (config.durability, config.warnings, config.include_aliases) == ("process", (), False)
    view = config.view(b"key")
    assert (view.max_queue, view.max_loaded, view.headroom_bytes) == (512, 0, 512 * MIB)
    assert (view.port_first, view.port_last, view.devices) == (5800, 6799, {})
    model = view.models["m"]
    assert (model.slots, model.memory_bytes, model.keep_alive_ns) == (1, {}, NEVER)
    assert (model.lease, model.fixed_port, model.load_ns) == ("port", 0, 120 * S)
    assert (model.queue_ns, model.request_ns, model.unload_ns) == (0, 0, 30 * S)
    made = command(config)
    assert made.argv == ("server", "--port", "5800")
    assert (made.url, made.check_path, made.env, made.stop_argv(7)) == (
        "http://127.0.0.1:5800",
        "/health",
        {},
        None,
    )


def test_how_much_of_the_log_is_kept(write: Write) -> None:
    text = "models: {m: {cmd: 'server --port ${PORT}'}}\n"
    assert write(text).retention == Retention(GIB, 0, GIB)
    found = write(text + "retention: {size: 64MiB, age: 30d, archive: 0}").retention
    assert found == Retention(64 * MIB, 30 * 86400 * S, 0)


def test_leases_and_who_may_ask_for_them(write: Write) -> None:
    config = write("""
        controlGroup: video
        maxLease: 2h
        models: {m: {cmd: 's ${PORT}', maxLease: 5m}, d: {cmd: 's ${PORT}'}}
    """)
    view = config.view(b"")
    assert config.control_group == "video"
    assert (view.models["m"].max_lease_ns, view.models["d"].max_lease_ns) == (300 * S, 7200 * S)


def test_every_key_is_taken(write: Write, tmp_path: Path) -> None:
    config = write("""
        listen: "[::1]:9000"
        controlSocket: run/control.sock
        eventLog: ${env.STATE}/events.db
        durability: machine
        maxQueue: 7
        maxLoadedModels: 2
        policy: fifo
        memoryHeadroom: 1GiB
        healthCheckTimeout: 20
        globalTTL: 60
        unloadTimeout: 5
        queueTimeout: 1m
        requestTimeout: 10m
        startPort: 7000
        includeAliasesInList: yes
        devices: {host: {budget: 12GiB}, gpu0: , gpu1: {budget: 24GB}}
        models:
          m:
            cmd: s ${PORT} ${num_ctx}
            ttl: 0
            slots: 3
            memory: {gpu0: 6GiB, host: 1GiB}
            options: {num_ctx: 4096}
            concurrencyLimit: 9
            priority: -2
            unloadTimeout: 8
            queueTimeout: 0
            requestTimeout: 90s
            firstByteTimeout: 20
            instances: {min: 2, max: 5}
            acceptLargerContext: true
            healthCheckTimeout: 500
            name: M
            description: the model
            unlisted: true
            useModelName: upstream/m
            trustProbe: true
            aliases: [n, o]
          d: {cmd: 's ${PORT}', ttl: -1, memory: 1GiB}
        x-anything: {goes: here}
    """, {"STATE": "/var/lib/runnerd"})  # fmt: skip
    assert config.listen == "[::1]:9000"
    assert config.control_socket == tmp_path / "run/control.sock"
    assert config.event_log == Path("/var/lib/runnerd/events.db")
    assert (config.durability, config.include_aliases) == ("machine", True)
    view = config.view(b"")
    assert (view.max_queue, view.max_loaded, view.headroom_bytes, view.unload_ns) == (7, 2, GIB, 5 * S)
    assert view.policy == "fifo"
    assert (view.port_first, view.port_last) == (7000, 7999)
    assert view.devices == {
        "host": DeviceView(12 * GIB, False),
        "gpu0": DeviceView(None, True),
        "gpu1": DeviceView(24 * 10**9, True),
    }
    m, d = view.models["m"], view.models["d"]
    assert (m.keep_alive_ns, m.slots, m.memory_bytes) == (NEVER, 3, {"gpu0": 6 * GIB, "host": GIB})
    assert (m.options, m.concurrency_limit, m.priority) == ({"num_ctx": 4096}, 9, -2)
    assert (m.unload_ns, m.queue_ns, m.request_ns, m.load_ns) == (8 * S, 0, 90 * S, 500 * S)
    assert (m.first_byte_ns, m.instances_min, m.instances_max, m.larger) == (20 * S, 2, 5, "num_ctx")
    assert (d.first_byte_ns, d.instances_min, d.instances_max, d.larger) == (0, 1, 1, "")
    assert (d.keep_alive_ns, d.memory_bytes, d.queue_ns) == (60 * S, {"": GIB}, 60 * S)
    assert (d.request_ns, d.unload_ns, d.load_ns) == (600 * S, 5 * S, 20 * S)
    shown = config.models["m"]
    assert (shown.name, shown.description, shown.unlisted) == ("M", "the model", True)
    made = command(config)
    assert (made.model_name, made.trust_probe) == ("upstream/m", True)
    assert (config.resolve("m"), config.resolve("o"), config.resolve("M")) == ("m", "m", None)
    assert (config.models["m"].aliases, config.aliases) == (("n", "o"), {"n": "m", "o": "m"})


def test_the_knobs_of_the_policy(write: Write) -> None:
    knobs = "swapPatience: 7\nageStep: 30\nmaxWait: 5m\nprefetch: true"
    config = write(f"{knobs}\nmodels: {{a: {{cmd: 's ${{PORT}}'}}}}")
    view = config.view(b"")
    assert (view.swap_patience, view.age_step_ns, view.max_wait_ns) == (7, 30 * S, 300 * S)
    assert config.prefetch


def test_a_wait_shorter_than_the_loads_in_turn_is_warned_about(write: Write) -> None:
    models = "models: {a: {cmd: 's ${PORT}'}, b: {cmd: 's ${PORT}'}}"
    assert not write(f"maxWait: 20\n{models}").warnings
    [warning] = write(f"maxWait: 19\n{models}").warnings
    assert "to load 2 models in turn takes about 20 s" in warning


def test_macros_nest_and_a_model_replaces_a_global_one(write: Write) -> None:
    config = write(
        """
        macros:
          ctx: 4096
          temp: 0.70
          args: --ctx ${ctx} --temp ${temp}
          server: >
            /opt/server --port ${PORT}
            --id ${MODEL_ID}
          wait: 60
        globalTTL: ${wait}
        models:
          m:
            macros: {ctx: 8192, own: '${args} -x'}
            cmd: |
              # ${nothing} in a comment is not looked at
              ${server} \\
              ${own}
              --say "two words"   --it's
            ttl: ${wait}
            metadata: {ctx: '${ctx}', note: 'at ${PORT}', port: '${PORT}', list: [1.5, '${temp}', null, true]}
          n: {cmd: '${server} ${args}'}
    """.replace("--it's", "--last")
    )
    assert command(config).argv == (
        "/opt/server", "--port", "5800", "--id", "m", "--ctx", "8192", "--temp", "0.7", "-x",
        "--say", "two words", "--last",
    )  # fmt: skip
    assert command(config, "n").argv[-4:] == ("--ctx", "4096", "--temp", "0.7")
    assert config.models["m"].keep_alive_ns == config.models["n"].keep_alive_ns == 60 * S
    assert config.metadata("m") == {
        "ctx": 8192,
        "note": "at null",
        "port": None,
        "list": [1.5, 0.70, None, True],
    }
    assert config.metadata("m", 5800)["note"] == "at 5800"
    assert config.metadata("m", 5800)["port"] == 5800


def test_the_environment_is_put_in_with_its_type_and_never_shown(write: Write) -> None:
    environ = {"TTL": "60", "TOKEN": "a: b # c", "HOME": "/home/u"}
    config = write("""
        macros: {home: '${env.HOME}/models'}
        models:
          m:
            cmd: s ${PORT} --model ${home}/m.gguf
            ttl: ${env.TTL}
            env: ['TOKEN=${env.TOKEN}', 'WHERE=${PORT}', lower=1]
        """, environ)  # fmt: skip
    made = command(config)
    assert made.argv[-1] == "/home/u/models/m.gguf"
    assert made.env == {"TOKEN": "a: b # c", "WHERE": "5800", "lower": "1"}
    assert config.models["m"].keep_alive_ns == 60 * S


def test_options_fill_one_argument_whatever_they_contain(write: Write) -> None:
    config = write("""
        models:
          m:
            options: {num_ctx: 4096, adapter: none, flash: true}
            cmd: s ${PORT} --ctx=${num_ctx} --lora ${adapter} --fa ${flash}
            checkEndpoint: /ready/${adapter}
    """)
    assert command(config).argv[2:] == ("--ctx=4096", "--lora", "none", "--fa", "true")
    made = command(config, options={"num_ctx": 8192, "adapter": "a b; rm -rf ${PORT} '", "flash": False})
    assert made.argv[2:] == ("--ctx=8192", "--lora", "a b; rm -rf ${PORT} '", "--fa", "false")
    assert made.check_path == "/ready/a%20b%3B%20rm%20-rf%20%24%7BPORT%7D%20%27"


@pytest.mark.parametrize("options", [{"other": 1}, {"num_ctx": "8"}, {"num_ctx": True}, {"text": "a\0b"}])
def test_a_launch_that_does_not_fit_is_refused(write: Write, options: dict[str, Option]) -> None:
    config = write("models: {m: {cmd: 's ${PORT} ${num_ctx} ${text}', options: {num_ctx: 1, text: x}}}")
    with pytest.raises(SpecChanged):
        command(config, options=options)
    with pytest.raises(SpecChanged):
        command(config, "gone")


def test_where_a_runner_answers(write: Write) -> None:
    config = write("""
        models:
          port: {cmd: 's ${PORT}', proxy: 'http://localhost:${PORT}/api/', checkEndpoint: /ok}
          fixed: {cmd: s, proxy: 'http://127.0.0.1:9999', checkEndpoint: none}
          remote: {cmd: s, proxy: 'http://10.0.0.7:8000/v'}
          socket: {cmd: 's ${SOCKET}'}
          own: {cmd: s, proxy: 'unix:/run/own.sock'}
          env: {cmd: s, env: ['PORT=${PORT}']}
    """)
    views = config.view(b"").models
    assert {id: (view.lease, view.fixed_port) for id, view in views.items()} == {
        "port": ("port", 0), "fixed": ("port", 9999), "remote": ("none", 0), "socket": ("socket", 0),
        "own": ("none", 0), "env": ("port", 0),
    }  # fmt: skip
    made = {id: command(config, id, port=6000, socket="/run/r1.sock") for id in views}
    assert {id: (one.url, one.prefix, one.check_path) for id, one in made.items()} == {
        "port": ("http://127.0.0.1:6000", "/api", "/ok"),
        "fixed": ("http://127.0.0.1:9999", "", ""),
        "remote": ("http://10.0.0.7:8000", "/v", "/health"),
        "socket": ("unix:/run/r1.sock", "", "/health"),
        "own": ("unix:/run/own.sock", "", "/health"),
        "env": ("http://127.0.0.1:6000", "", "/health"),
    }
    address = made["port"].address("r1")
    assert (address.runner, address.url, address.prefix) == ("r1", "http://127.0.0.1:6000", "/api")


def test_the_stop_command_learns_the_pid_last(write: Write) -> None:
    config = write("models: {m: {cmd: 's ${PORT}', cmdStop: 'stop --pid ${PID} --port ${PORT} ${MODEL_ID}'}}")
    assert command(config).stop_argv(4711) == ("stop", "--pid", "4711", "--port", "5800", "m")


@pytest.mark.parametrize(
    ("model", "slots"),
    [
        ("{cmd: 's ${PORT}'}", 1),
        ("{cmd: 's ${PORT} --parallel 4'}", 4),
        ("{cmd: 's ${PORT} -np 2 -np 8'}", 8),
        ("{cmd: 's ${PORT} --max-num-seqs=256'}", 256),
        ("{cmd: 's ${PORT} -np -1'}", 1),
        ("{cmd: '/opt/llama-server --port ${PORT}'}", 4),
        ("{cmd: 'llama-server --port ${PORT} -np -1'}", 4),
        ("{cmd: 'llama-server --port ${PORT} --embeddings'}", 1),
        ("{cmd: 'llama-server --port ${PORT}', concurrencyLimit: 2}", 2),
        ("{cmd: 'llama-server --port ${PORT}', slots: 2}", 2),
        ("{cmd: 'docker run -p ${PORT}:8080 ghcr.io/ggml-org/llama.cpp:server -m x'}", 4),
        ("{cmd: 'sh -c \"exec llama-server --port ${PORT} -np 3\"'}", 3),
        ("{cmd: 'sh -c \"exec llama-server --port ${PORT} --rerank\"'}", 1),
        ("{cmd: 'vllm serve --port ${PORT}'}", 10),
        ("{cmd: 'docker run -p ${PORT}:8000 vllm/vllm-openai'}", 10),
        ("{cmd: 'python -m sglang.launch_server --port ${PORT}'}", 10),
        ("{cmd: 's ${PORT} -np'}", 1),
        ("{cmd: 's ${PORT}', concurrencyLimit: 5}", 5),
        ("{cmd: 's ${PORT} --parallel 4', concurrencyLimit: 5}", 4),
        ("{cmd: 's ${PORT} --parallel 4', slots: 2}", 2),
    ],
)
def test_slots(write: Write, model: str, slots: int) -> None:
    assert write(f"models: {{m: {model}}}").models["m"].slots == slots


def test_the_digest_changes_with_what_fixes_a_process_only(write: Write) -> None:
    base = "cmd: 's ${PORT} ${n}', options: {n: 1}"

    def digest(more: str = "", key: bytes = b"key") -> str:
        text = f"models: {{m: {{{base}{', ' if more else ''}{more}}}}}"
        return write(text).view(key).models["m"].digest

    same = [
        "ttl: 60",
        "slots: 4",
        "memory: 1GiB",
        "name: x",
        "aliases: [y]",
        "useModelName: z",
        "priority: 3",
    ]
    other = ["env: [A=1]", "cmdStop: 'kill ${PID}'", "checkEndpoint: /", "proxy: 'http://127.0.0.1:${PORT}/v'",
             "trustProbe: true"]  # fmt: skip
    assert {digest(more) for more in ["", *same]} == {digest()}
    assert len({digest(more) for more in ["", *other]}) == len(other) + 1
    assert digest(key=b"other") != digest()
    assert len(digest()) == 32


def test_the_view_is_stable_and_holds_no_command(write: Write) -> None:
    text = "models: {m: {cmd: 's3cret ${PORT}', env: ['KEY=s3cret']}}"
    first, second = (msgspec.json.encode(write(text).view(b"k")) for _ in range(2))
    assert first == second
    assert b"s3cret" not in first


def test_keys_without_effect_are_warned_of(write: Write) -> None:
    config = write("""
        logLevel: debug
        healthCheckTimeout: 2
        models: {m: {cmd: 's ${PORT}', timeouts: {connect: 3}, filters: {}}}
        captureBuffer: 5
        groups: {}
    """)
    lines = [warning.split(": ")[:2] for warning in config.warnings]
    file = str(config.file)
    assert lines == [
        [f"{file}:2", "logLevel"],
        [f"{file}:3", "healthCheckTimeout"],
        [f"{file}:4", "models.m.timeouts"],
        [f"{file}:5", "captureBuffer"],
    ]
    assert config.models["m"].load_ns == 2 * S


def test_anchors_work_with_macros(write: Write) -> None:
    config = write("""
        x-base: &base
          cmd: s --port ${PORT} --name ${MODEL_ID}
          ttl: 30
        models:
          a: {<<: *base}
          b: {<<: *base, ttl: 60}
    """)
    assert command(config, "b").argv[-1] == "b"
    assert [model.keep_alive_ns for model in config.models.values()] == [30 * S, 60 * S]


def test_the_example_loads_and_check_shows_it(capsys: pytest.CaptureFixture[str]) -> None:
    path = ROOT / "examples/config.yaml"
    assert check_main(path) == 0
    out, err = capsys.readouterr()
    found = [line for line in err.splitlines() if "there is no program" not in line]  # it may be here
    assert [line.partition("/srv")[0] for line in found] == [
        f"warning: {model}: no estimate of its memory from " for model in ("qwen", "embeddings")
    ]
    assert out.startswith(f"OK: {path}: 3 models, listening on http://127.0.0.1:8080\n")
    assert "memory 6 GiB; slots 4" in out
    config = load(path)
    assert command(config, "qwen", port=5801, options={"num_ctx": 16384}).argv[:6] == (
        "llama-server", "--host", "127.0.0.1", "--port", "5801", "--model",
    )  # fmt: skip


def test_what_the_documentation_shows_loads(tmp_path: Path) -> None:
    environ = {"HOME": "/home/u", "BOX_KEY": "k", "RUNNERD_KEY": "k" * 16}
    for page in ("README.md", "docs/configuration.md", "docs/recipes.md"):
        examples = re.findall(r"```yaml\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
        assert examples
        for example in examples:
            path = tmp_path / "c.yaml"
            path.write_text(example)
            assert load(path, environ, guarded=True).warnings == ()


@pytest.mark.parametrize(("title", "frame"), [("Top level", "{%s}"), ("Models", "{models: {m: {%s}}}")])
def test_every_documented_key_is_known(tmp_path: Path, title: str, frame: str) -> None:
    section = (ROOT / "docs/configuration.md").read_text().split(f"## {title}\n")[1].split("\n## ")[0]
    keys = [
        key
        for row in re.findall(r"^\| (`.*?) \|", section, re.MULTILINE)
        for key in re.findall(r"`(\w+)`", row)
    ]
    assert len(keys) > 15
    path = tmp_path / "c.yaml"
    path.write_text(frame % ", ".join(f"{key}: [[]]" for key in keys))
    with pytest.raises(ConfigError) as caught:
        load(path, {})
    assert not [problem for problem in caught.value.problems if "unknown key" in problem.text]


@pytest.mark.parametrize(
    ("cmd", "starts"),
    [
        ("docker run -p ${PORT}:8080 image", True),
        ("/usr/bin/podman run --rm -p ${PORT}:8080 image", True),
        ("sudo -n nerdctl run -p ${PORT}:8080 image", True),
        ("docker --context far container run -p ${PORT}:8080 image", True),
        ("env A=1 docker run -p ${PORT}:8080 image", True),
        ("docker exec box server --port ${PORT}", True),
        ("docker start -a box-${PORT}", True),
        ("docker compose --env-file e -f c.yml up box-${PORT}", True),
        ("docker-compose up box-${PORT}", True),
        ('/bin/sh -c "PORT=${PORT} docker compose up box"', True),
        ('bash -lc "cd /srv && exec docker run -p ${PORT}:8080 image"', True),
        ('bash -c "server --port ${PORT}; docker stop box"', False),
        ('bash -c "server --port ${PORT} \\"docker run"', False),
        ("bash docker run ${PORT}", False),
        ("server run docker ${PORT}", False),
        ("docker stop ${PORT}", False),
        ("docker ${PORT}", False),
    ],
)
def test_a_container_is_trusted(write: Write, cmd: str, starts: bool) -> None:
    asked = f"models: {{m: {{cmd: {json.dumps(cmd)}"
    model = write(asked + "}}").models["m"]
    assert model.trust_probe == starts
    distrusted = write(asked + ", trustProbe: false}}")
    said = "models.m.trustProbe: who listens is no process of the command's (a container, another host)"
    assert [said in warning for warning in distrusted.warnings] == [True] * starts
    assert not distrusted.models["m"].trust_probe


def test_another_host_is_trusted(write: Write) -> None:
    def trusted(proxy: str) -> bool:
        return write(f"models: {{m: {{cmd: 'ssh box server', proxy: '{proxy}'}}}}").models["m"].trust_probe

    assert trusted("http://box:8000") and trusted("http://192.168.1.7:8000")
    assert not trusted("http://127.0.0.2:8000") and not trusted("http://localhost:8000")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("True", "true"), ("FALSE", "false"), ("0.70", "0.7"), (".5", "0.5"), ("2.0", "2"), ("-0.0", "-0"),
        ("1e3", "1000"), ("1e6", "1e+06"), ("1234567.5", "1.2345675e+06"), ("123456.5", "123456.5"),
        ("0.0001", "0.0001"), ("0.00001", "1e-05"), ("1.5e-300", "1.5e-300"), ("0x1F", "31"), ("+5", "5"),
        ("010", "010"), ("'0.70'", "0.70"), ("'True'", "True"), ("1.10.2", "1.10.2"),
    ],
)  # fmt: skip
def test_macros_in_text_are_as_go_writes_them(write: Write, value: str, text: str) -> None:
    config = write(f"""
        macros: {{m: {value}, n: 'x${{m}}'}}
        models: {{m: {{cmd: 's ${{PORT}} --t=${{m}} ${{n}}', name: '${{m}}'}}}}
    """)
    assert command(config).argv == ("s", "5800", f"--t={text}", f"x{text}")
    assert config.models["m"].name == text


def test_a_variable_may_have_any_name_that_a_program_can_get(write: Write) -> None:
    config = write("models: {m: {cmd: 's ${PORT}', env: ['a.b-c=1', '2 x=${PORT}=', 'E=']}}")
    assert command(config).env == {"a.b-c": "1", "2 x": "5800=", "E": ""}


def test_a_socket_and_shards_of_containers(write: Write) -> None:
    assert not write("models: {m: {cmd: 'docker run -v ${SOCKET}:/s i'}}").models["m"].trust_probe
    shard = "docker run -p ${PORT}:1 i"
    assert write(f"models: {{m: {{cmd: 's ${{PORT}}', shards: ['{shard}']}}}}").models["m"].trust_probe


def test_check_doubts_what_can_hardly_be_meant(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(
        "devices: {host: {budget: 2GiB}}\n"
        "models:\n"
        "  a: {cmd: 'no-such-server --port ${PORT}'}\n"
        "  b: {cmd: 'CUDA_VISIBLE_DEVICES=0 sh ${PORT}'}\n"
        "  c: {cmd: 'sh ${PORT}', memory: 5GiB}\n"
        "  d: {cmd: 'sh ${PORT}', memory: 6}\n"
        "  e.f: {cmd: 'sh ${PORT}', memory: 1GiB, instances: 2}\n"
        "groups: {g: {members: [e.f]}}\n"
        "hooks: {on_startup: {preload: [c]}}\n"
    )
    assert check_main(path) == 0
    err = capsys.readouterr().err
    for words in (
        f"{path}:3: models.a.cmd: there is no program 'no-such-server' here",
        f"{path}:4: models.b.cmd: no shell runs: variables belong into `env`",
        f"{path}:5: models.c.memory: 5 GiB can never fit: the budget is 2 GiB, of which 512 MiB are headroom",
        f"{path}:6: models.d.memory: 6 B is little: is the unit missing?",
        f'{path}:7: models."e.f".instances: its group has `swap`',
        f"{path}:9: hooks.on_startup.preload: c can never fit",
    ):
        assert words in err
