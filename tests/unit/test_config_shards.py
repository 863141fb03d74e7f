"""`shards`: the commands, environments and ports of a runner's further processes; `loadStallTimeout`."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent

import pytest

from daemon.config.check import summary
from daemon.config.commands import Command, ShardCommand
from daemon.config.config import Config, SpecChanged
from daemon.config.errors import ConfigError
from daemon.config.file import load
from daemon.estimates import with_estimates
from daemon.ports import Launch
from events.limits import SHARDS_MAX, S


def write(directory: Path, text: str) -> Config:
    path = directory / "config.yaml"
    path.write_text(dedent(text))
    return load(path, {})


def command(config: Config, *ports: int, port: int = 5800, **options: int) -> Command:
    return config.command("m", Launch("r1", "m", "", options, port, False, ports), "/run/r1.sock")


def problem(directory: Path, model: str, top: str = "") -> str:
    """What is wrong with a model."""
    with pytest.raises(ConfigError) as caught:
        write(directory, f"{top}\nmodels:\n  m: {{cmd: 's ${{PORT}}', {model}}}")
    return str(caught.value).partition("config.yaml:")[2]


def test_each_shard_has_its_port_and_everybody_knows_them(tmp_path: Path) -> None:
    config = write(
        tmp_path,
        """
        macros: {rpc: rpc-server -p}
        models:
          m:
            cmd: server --port ${PORT} --rpc 127.0.0.1:${SHARD_PORT_1},127.0.0.1:${SHARD_PORT_2} -c ${num_ctx}
            cmdStop: stop ${PID} ${SHARD_PORT_2}
            env: ["A=${PORT}", B=1]
            options: {num_ctx: 4096, layers: 3}
            shards:
              - ${rpc} ${PORT}
              - |
                # the second ${nonsense}
                ${rpc} ${PORT} -m ${layers}
              - cmd: worker of ${SHARD_PORT_1} ${MODEL_ID}
                env: [B=2, "C=${PORT}"]
                checkEndpoint: /up
              - worker
        """,
    )
    view = config.view(b"key").models["m"]
    assert (view.shards, view.stall_ns) == (4, 0)
    made = command(config, 5801, 5802, 5803, 5804, num_ctx=8192)
    assert made.argv[3:] == ("--rpc", "127.0.0.1:5801,127.0.0.1:5802", "-c", "8192")
    assert made.stop_argv(7) == ("stop", "7", "5802")
    env = {"A": "5800", "B": "1"}
    assert made.env == env
    assert made.shards == (
        ShardCommand(("rpc-server", "-p", "5801"), env, "http://127.0.0.1:5801"),
        ShardCommand(("rpc-server", "-p", "5802", "-m", "3"), env, "http://127.0.0.1:5802"),
        ShardCommand(
            ("worker", "of", "5801", "m"),
            {"A": "5800", "B": "2", "C": "5803"},
            "http://127.0.0.1:5803",
            "/up",
        ),
        ShardCommand(("worker",), env),
    )
    assert "and 4 shards" in summary(config)[-1]


def test_a_launch_with_other_shards_is_not_of_this_configuration(tmp_path: Path) -> None:
    config = write(tmp_path, "models: {m: {cmd: 's ${PORT}', shards: ['w ${PORT}']}}")
    with pytest.raises(SpecChanged):
        command(config)
    assert command(config, 5801).shards


def test_the_digest_changes_with_the_shards(tmp_path: Path) -> None:
    def digest(more: str) -> str:
        return write(tmp_path, f"models: {{m: {{cmd: 's ${{PORT}}'{more}}}}}").view(b"k").models["m"].digest

    kinds = ["", ", shards: [w]", ", shards: [v]", ", shards: [w, w]", ", shards: [{cmd: w, env: [A=1]}]"]
    assert len({digest(more) for more in kinds}) == len(kinds)
    assert digest(", shards: []") == digest(", loadStallTimeout: 30") == digest("")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("shards: worker", "expected a list of commands"),
        ("shards: [[a]]", "expected a command, or a mapping with the key `cmd`, found a list"),
        ("shards: [{}]", "expected the command that starts this shard, found nothing"),
        ("shards: ['']", "m.shards[0].cmd: expected a command, found none"),
        ('shards: ["it\'s"]', "expected a command, found: No closing quotation"),
        ("shards: [{cmd: w, cmdstop: x}]", "m.shards[0].cmdstop: unknown key"),
        ("shards: ['w ${SOCKET}']", "expected a macro that has a value here, found ${SOCKET}"),
        ("shards: ['w ${SHARD_PORT_2}']", "expected a macro that has a value here, found ${SHARD_PORT_2}"),
        ("cmdStop: 'x ${SHARD_PORT_1}'", "expected a macro that has a value here, found ${SHARD_PORT_1}"),
        ("shards: [{cmd: w, checkEndpoint: /up}]", "expected ${PORT} in this shard's `cmd` or `env`"),
        ("shards: [{cmd: 'w ${PORT}', checkEndpoint: up}]", 'expected a path that begins with "/"'),
        ("shards: [{cmd: w, env: [RUNNERD_RUNNER=1]}]", "expected another name: RUNNERD_*"),
        ("macros: {SHARD_PORT_1: 3}", "expected another name: SHARD_PORT_1 is reserved"),
        ("options: {SHARD_PORT_1: 3}", "expected an option's name"),
        (f"shards: [{'w, ' * SHARDS_MAX}w]", f"expected at most {SHARDS_MAX}, found {SHARDS_MAX + 1}"),
        ("loadStallTimeout: 500ms", "expected at least 1 s, or 0 for no limit"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, model: str, message: str) -> None:
    assert message in problem(tmp_path, model)


def test_the_limit_to_standing_still_is_the_models_or_everybodys(tmp_path: Path) -> None:
    config = write(
        tmp_path,
        """
        loadStallTimeout: 30
        models:
          a: {cmd: 's ${PORT}'}
          b: {cmd: 's ${PORT}', loadStallTimeout: 1m}
          c: {cmd: 's ${PORT}', loadStallTimeout: 0}
        """,
    )
    models = config.view(b"k").models.values()
    assert [view.stall_ns for view in models] == [30 * S, 60 * S, 0]
    assert problem(tmp_path, "ttl: 1", top="loadStallTimeout: 0.1s").count("loadStallTimeout") == 1


async def test_no_file_says_how_shards_would_share_it(tmp_path: Path) -> None:
    config = write(tmp_path, "models: {m: {cmd: 'llama-server --port ${PORT} -m big.gguf', shards: [w]}}")
    assert await with_estimates(config, reader=("/no/such/reader",)) is config
