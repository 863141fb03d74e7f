"""`runnerctl lease`: for a person, for a command, and over a start of the daemon."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.live import BIN, PATIENCE_S, Command, Live, daemon, ngram
from tests.integration.terminal import shown

CONFIG = f"""
devices: {{host: {{budget: 300MiB}}}}
memoryHeadroom: 0
models:
  red: {{cmd: "{ngram("--slots 2")}", memory: 50MiB, slots: 2}}
  hasty: {{cmd: "{ngram()}", memory: 50MiB, maxLease: 100ms, unloadTimeout: 2}}
"""


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with daemon(tmp_path_factory.mktemp("lease"), CONFIG) as live:
        yield live


def test_a_person_sees_the_address_and_lets_go_with_ctrl_c(live: Live) -> None:
    told: list[str] = []

    def react(text: str, pid: int) -> None:
        if "until Ctrl-C" in text and not told:
            told.append(live.runnerctl("--no-json", "ps").stdout)
            told.append(live.runnerctl("--no-json", "queue").stdout)
            os.kill(pid, signal.SIGINT)

    screen = shown([BIN / "runnerctl", "--socket", live.socket, "lease", "red"], columns=120, react=react)
    assert screen.code == 0
    assert any(line.startswith("red is at http://127.0.0.1:") for line in screen.lines)
    assert "1/2, 1 leased" in told[0]
    assert " leased " in told[1]
    live.until(lambda: "request.completed" in live.tags())


def test_a_command_finds_the_address_and_its_code_is_ours(live: Live) -> None:
    words = "echo $RUNNERD_ADDRESS $RUNNERD_MODEL $OPENAI_BASE_URL; exit 7"
    done = live.runnerctl("lease", "red", "--", "sh", "-c", words)
    assert done.returncode == 7
    address, model, base = done.stdout.split()
    assert address.startswith("http://127.0.0.1:")
    assert (model, base) == ("red", f"{address}/v1")
    assert live.runnerctl("lease", "red", "--", "sh", "-c", "kill -9 $$").returncode == 137


def test_a_command_is_told_in_time(live: Live) -> None:
    words = "trap 'echo told; exit 3' TERM; echo up; while :; do sleep 0.1; done"
    done = subprocess.run(
        [BIN / "runnerctl", "--socket", live.socket, "lease", "hasty", "--", "sh", "-c", words],
        capture_output=True, text=True, timeout=PATIENCE_S, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout.split()) == (3, ["up", "told"])
    assert "it has lasted for as long as it may; the command gets SIGTERM in 1 s" in done.stderr


def test_what_is_wrong(live: Live) -> None:
    asked = live.tags().count("request.arrived")
    for arguments, code, words in (
        ([], 2, "name a MODEL, or --token"),
        (["rad"], 1, "did you mean red?"),
        (["--token", "x"], 1, "no lease is held that this token is of"),
        (["red", "--", "no-such-command"], 2, "there is no program no-such-command that can be run"),
        (["red", "--", "/etc/passwd"], 2, "there is no program /etc/passwd that can be run"),
        (["red", "-o", "x"], 2, "NAME=VALUE"),
    ):
        done = live.runnerctl("lease", *arguments)
        assert done.returncode == code
        assert words in done.stderr
    assert live.tags().count("request.arrived") == asked, "nothing was loaded for what cannot run"


def test_a_command_goes_on_while_the_daemon_starts_again(tmp_path: Path) -> None:
    with daemon(tmp_path, CONFIG) as live:
        command: Command = [BIN / "runnerctl", "--socket", live.socket, "lease", "red", "--", "sh", "-c"]
        with subprocess.Popen(
            [*command, "echo up; read word; echo $word"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        ) as holder:  # fmt: skip
            assert holder.stdin is not None and holder.stdout is not None
            assert holder.stdout.readline() == "up\n"
            live.kill()
            live.start()
            live.until(lambda: "lease.resumed" in live.tags())
            holder.stdin.write("done\n")
            holder.stdin.flush()
            assert holder.stdout.readline() == "done\n"
            assert holder.wait(PATIENCE_S) == 0
        live.until(lambda: "request.completed" in live.tags())
