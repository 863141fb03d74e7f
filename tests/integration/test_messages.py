"""What a person is told when something is in the way: what it is, what to do about it, and the exit code."""

from __future__ import annotations

import os
import signal
import socket
import sqlite3
import subprocess
import threading
from pathlib import Path

import pytest
import trio

from daemon.cli import runnerd
from daemon.cli.runnerd import parse_listen
from daemon.cli.starting import explain, obstacle
from daemon.driver import StepFailed
from daemon.past import EventUnfoldable
from daemon.service import Places, StopFailed
from events.limits import SOCKET_PATH_BYTES
from events.reader import ChainBroken
from events.schema import SchemaTooNew
from events.store import StoreBroken
from events.witness import TailLost
from statemachines.invariants import Breach
from tests.integration.live import BIN, PATIENCE_S, daemon

CONFIG = "models: {red: {cmd: 'sleep 1000 ${PORT}', memory: 1MiB}}\n"
Done = subprocess.CompletedProcess[str]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A configuration that is right."""
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG)
    return path


def run(program: str, *arguments: object) -> Done:
    command = [str(BIN / program), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)


def serve(config: Path, **options: object) -> Done:
    """`runnerd serve` that is expected to end by itself."""
    given: dict[str, object] = {
        "listen": "127.0.0.1:0", "socket": config.parent / "c.sock", "log": config.parent / "state/events.db"
    }  # fmt: skip
    words = [word for name, value in {**given, **options}.items() for word in (f"--{name}", value)]
    return run("runnerd", "serve", "--config", config, *words)


def told(done: Done, code: int, *words: object) -> None:
    """It ended with this code, and said so in its own name, in these words, without a traceback."""
    assert done.returncode == code, done
    assert "runnerd: " in done.stderr
    assert "Traceback" not in done.stderr
    assert "[Errno" not in done.stderr
    for each in words:
        assert str(each) in done.stderr


# --- the command line and the configuration --------------------------------------------------------------


def test_runnerd_alone_says_what_there_is() -> None:
    done = run("runnerd")
    assert (done.returncode, done.stdout) == (2, "")
    for word in ("serve", "check", "--version", "Decides which model runners are loaded."):
        assert word in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["serv"], "choose from"),
        (["serve"], "required: --config"),
        (["check"], "required: --config"),
        (["serve", "--config"], "--config: expected one argument"),
        (["serve", "--config", "x", "--sokcet", "y"], "unrecognized arguments: --sokcet"),
    ],
)
def test_bad_usage_of_runnerd_exits_2(arguments: list[str], words: str) -> None:
    done = run("runnerd", *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: runnerd")
    assert words in done.stderr


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "cannot be read: No such file or directory"),
        ("a: [b", ": expected YAML"),
        ("", "expected a mapping with the key `models`, found an empty file"),
        ("modles: {}", 'unknown key "modles"; the nearest is "models"'),
        ("models: {red: {cmd: 's ${PORT}', ttl: soon}}", "models.red.ttl: expected a number of seconds"),
    ],
    ids=["missing", "no YAML", "empty", "unknown key", "bad value"],
)
def test_a_bad_configuration_is_told_alike_by_serve_and_check(
    config: Path, text: str | None, words: str
) -> None:
    config.write_text(text or "")
    if text is None:
        config.unlink()
    told(serve(config), 2, words, config)
    assert not (config.parent / "state").exists()
    done = run("runnerd", "check", "--config", config)
    assert (done.returncode, done.stdout) == (2 if text is None else 1, "")
    assert done.stderr.startswith(f"{config}:")
    assert words in done.stderr


def test_a_directory_is_no_configuration(config: Path) -> None:
    told(serve(config.parent), 2, config.parent, "cannot be read: Is a directory")


def test_check_says_what_a_good_configuration_means(config: Path) -> None:
    done = run("runnerd", "check", "--config", config)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"OK: {config}: 1 model, listening on http://127.0.0.1:8080\n")
    assert "red" in done.stdout
    assert "memory 1 MiB" in done.stdout


def test_check_warns_of_a_file_that_is_not_there(config: Path) -> None:
    config.write_text("models: {red: {cmd: 'llama-server --port ${PORT} -m /no/red.gguf'}}")
    done = run("runnerd", "check", "--config", config)
    words = "red: no estimate of its memory from /no/red.gguf: No such file or directory"
    assert done.stderr.splitlines()[0] == f"warning: {words}"


@pytest.mark.parametrize(
    "listen", ["", "8080", "localhost", "127.0.0.1:", "127.0.0.1:x", "127.0.0.1:65536", "::1:80", "[::1:80"]
)
def test_a_bad_address_exits_2(config: Path, listen: str) -> None:
    if listen:
        told(serve(config, listen=listen), 2, "--listen: expected HOST:PORT (127.0.0.1:8080, [::1]:8080)")
    with pytest.raises(ValueError, match="expected HOST:PORT"):
        parse_listen(listen)


def test_good_addresses() -> None:
    assert parse_listen("127.0.0.1:0") == ("127.0.0.1", 0)
    assert parse_listen(":65535") == ("127.0.0.1", 65535)
    assert parse_listen("[::1]:8080") == ("::1", 8080)
    assert parse_listen("gpu-box.lan:80") == ("gpu-box.lan", 80)


# --- where it listens ------------------------------------------------------------------------------------


def test_an_address_in_use_exits_1(config: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        where = f"127.0.0.1:{taken.getsockname()[1]}"
        done = serve(config, listen=where)
    told(done, 1, f"cannot listen on {where}: Address already in use. --listen HOST:PORT")
    assert done.stderr.count("\n") == 1


def test_an_address_of_another_machine_exits_1(config: Path) -> None:
    told(serve(config, listen="192.0.2.1:80"), 2, "192.0.2.1 can be reached from other machines", "apiKeys")
    config.write_text(f"insecureListen: true\n{CONFIG}")
    told(serve(config, listen="192.0.2.1:80"), 1, "cannot listen on 192.0.2.1:80: Cannot assign requested")


def test_a_socket_path_that_is_too_long_exits_2_before_anything_is_opened(config: Path) -> None:
    path = config.parent / ("x" * SOCKET_PATH_BYTES)
    told(serve(config, socket=path), 2, path, f"Linux takes {SOCKET_PATH_BYTES}", "--socket PATH")
    assert not (config.parent / "state").exists()


def test_a_group_that_is_not_there_exits_2_before_anything_is_opened(config: Path) -> None:
    config.write_text("controlGroup: no-such-group\n" + CONFIG)
    told(serve(config), 2, "there is no group 'no-such-group' on this machine; `controlGroup` names it")
    assert not (config.parent / "state").exists()


def test_what_is_no_socket_is_left_alone(config: Path) -> None:
    told(serve(config, socket=config), 1, f"{config} is no socket, and is left alone. --socket PATH")
    assert config.read_text() == CONFIG
    told(serve(config, socket=config.parent), 1, f"{config.parent} is no socket")
    assert not (config.parent / "state").exists()


def test_a_socket_that_cannot_be_made_exits_1(config: Path) -> None:
    told(serve(config, socket=config / "c.sock"), 1, f"{config} is no directory. --socket PATH")
    told(serve(config, socket="/proc/runnerd/c.sock"), 1, "control socket", "/proc", "--socket PATH")


def test_a_socket_that_somebody_listens_on_exits_1(config: Path) -> None:
    path = config.parent / "c.sock"
    with socket.socket(socket.AF_UNIX) as theirs:
        theirs.bind(str(path))
        theirs.listen()
        told(serve(config), 1, f"another daemon listens on {path}. --socket PATH")
    assert path.is_socket()


# --- the log ---------------------------------------------------------------------------------------------


def test_a_log_that_cannot_be_made_exits_3(config: Path) -> None:
    told(serve(config, log=config / "e.db"), 3, f"{config / 'e.db'}: {config} is no directory. --log PATH")
    told(serve(config, log=config.parent), 3, f"{config.parent}: that is a directory. --log PATH")
    told(serve(config, log="/proc/runnerd/e.db"), 3, "the log /proc/runnerd/e.db: ", "--log PATH")


def test_what_is_no_log_is_left_as_it_is(config: Path) -> None:
    told(serve(config, log=config), 3, f"cannot open the log {config}: not a SQLite database", "--log PATH")
    assert config.read_text() == CONFIG
    path = config.parent / "recipes.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE recipes (name TEXT)")
    connection.close()
    before = path.read_bytes()
    told(serve(config, log=path), 3, f"{path}: a SQLite database, but not an event log of runnerd")
    assert path.read_bytes() == before


def test_a_log_that_another_daemon_has_exits_3_and_names_it(tmp_path: Path) -> None:
    with daemon(tmp_path, CONFIG) as live:
        done = serve(live.config, log=live.log, socket=tmp_path / "other.sock")
        told(done, 3, f"{live.log} is in use by pid {live.process.pid} on ", "runnerctl stop", "--log PATH")
        other = tmp_path / "other" / "events.db"
        told(serve(live.config, log=other, socket=live.socket), 1, f"another daemon listens on {live.socket}")
        assert live.runnerctl("status").returncode == 0


PLACES = Places(log=Path("/srv/log/events.db"), control=Path("/srv/run/c.sock"), host="127.0.0.1", port=1)


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (
            PermissionError(13, "Permission denied", "/srv/log/events.db.lock"),
            3,
            "cannot open the log /srv/log",
        ),
        (OSError(30, "Read-only file system", "/srv/log"), 3, "Read-only file system: /srv/log. --log PATH"),
        (sqlite3.OperationalError("attempt to write a readonly database"), 3, "events.db: attempt to write"),
        (SchemaTooNew(9, 1), 3, "knows up to 1: use a newer runnerd"),
        (
            TailLost(9, 7, "the log has lost its tail"),
            3,
            "remove /srv/log/events.db.head, and go on with what",
        ),
        (ChainBroken(5, "missing"), 3, "altered: the chain breaks at event 5: missing. It is left as it is"),
        (EventUnfoldable(7, Breach("a slot too many")), 3, "event 7 cannot follow: a slot too many. It is"),
        (
            OSError(13, "Permission denied", "/srv/run"),
            1,
            "control socket: Permission denied: /srv/run. --soc",
        ),
        (
            OSError(1, f"{PLACES.control} cannot be given to the group x, of which"),
            1,
            "cannot open the control socket: /srv/run/c.sock cannot be given to the group x, of which",
        ),
        (OSError(28, "No space left on device", "/tmp/x"), 1, "No space left on device: /tmp/x"),
        (OSError("odd"), 1, "odd"),
        (StopFailed("the stop could not be logged"), 1, "the stop could not be logged"),
        (StepFailed("Breach: x"), 70, "/srv/log/events.db.breach; the runners live on"),
        (StoreBroken("somebody else has written to the log"), 74, "somebody else has written"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_an_end_is_explained(error: Exception, code: int, words: str) -> None:
    found, text = explain(error, PLACES)
    assert found == code
    assert words in text


def test_what_this_user_may_not_write_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The root user may write anywhere, so that who may not has to be made up."""
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)
    inside = Places(log=tmp_path / "a/events.db", control=Path("/tmp/c.sock"), host="", port=0)
    found = obstacle(inside)
    assert found is not None
    assert (found[0], f"this user may not write in {tmp_path}. --log" in found[1]) == (3, True)
    found = obstacle(Places(log=Path("/tmp/e.db"), control=tmp_path / "c.sock", host="", port=0))
    assert found is not None
    assert (found[0], f"this user may not write in {tmp_path}. --socket" in found[1]) == (1, True)


# --- how it ends -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_a_signal_stops_it_and_it_says_so(tmp_path: Path, number: signal.Signals) -> None:
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(tmp_path / "control.sock"))  # of a daemon that was killed: it is no obstacle
    stale.close()
    with daemon(tmp_path, CONFIG) as live:
        assert live.runnerctl("status").returncode == 0  # all of it has started
        assert live.stop(number) == 0
    journal = "".join(live.journal)
    assert f"I {number.name}: stopping (draining)\n" in journal
    assert journal.endswith("I stopped\n")
    assert "Traceback" not in journal
    assert not live.socket.exists()


@pytest.mark.parametrize("grouped", [False, True])
def test_an_interruption_before_it_has_started_is_quiet(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], grouped: bool
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise BaseExceptionGroup("", [KeyboardInterrupt()]) if grouped else KeyboardInterrupt

    monkeypatch.setattr(trio, "run", interrupted)
    places = ["--log", str(config.parent / "e.db"), "--socket", str(config.parent / "c.sock")]
    assert runnerd.main(["serve", "--config", str(config), *places]) == 130
    assert capsys.readouterr().err == "runnerd: interrupted before it had started\n"


# --- runnerctl without a daemon --------------------------------------------------------------------------


def unreachable(path: Path, *words: str) -> None:
    done = run("runnerctl", "--no-json", "--socket", path, "ps")
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.startswith(f"runnerctl: no daemon answers\n  {path}: ")
    assert "Traceback" not in done.stderr
    for each in (*words, "Start it (runnerd serve, or its service), or name its socket: --socket PATH"):
        assert each in done.stderr


def test_what_no_daemon_listens_on_is_told_for_what_it_is(config: Path) -> None:
    unreachable(config, "that is no socket")
    unreachable(config.parent, "that is no socket")
    unreachable(config.parent / "none.sock", "there is no such socket")
    unreachable(config.parent / ("x" * SOCKET_PATH_BYTES), f"longer than the {SOCKET_PATH_BYTES} bytes")


def test_what_is_not_runnerd_is_told(tmp_path: Path) -> None:
    path = tmp_path / "other.sock"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()

        def answer() -> None:
            stream, _ = server.accept()
            with stream:
                stream.recv(1000)
                stream.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n\0")

        other = threading.Thread(target=answer)
        other.start()
        done = run("runnerctl", "--no-json", "--socket", path, "status")
        other.join(PATIENCE_S)
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.startswith("runnerctl: what listens there is not runnerd. ")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["ps", "--json"], "--json comes before the command: runnerctl --json …"),
        (["load", "red", "--no-json"], "--no-json comes before the command"),
        (["watch", "--socket", "x"], "--socket comes before the command"),
        (["watch", "--after", "soon"], "'soon' is not a valid whole number"),
        (["lod", "red"], "load"),
        (["--soket", "x", "ps"], "--socket"),
    ],
)
def test_bad_usage_of_runnerctl_says_what_is_right(arguments: list[str], words: str) -> None:
    done = run("runnerctl", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert words in done.stderr


def test_a_mistyped_model_is_told_the_nearest(tmp_path: Path) -> None:
    with daemon(tmp_path, CONFIG) as live:
        for command in ("load", "unload"):
            done = live.runnerctl("--no-json", command, "rad")
            assert (done.returncode, done.stdout) == (1, "")
            assert done.stderr == "runnerctl: no model 'rad'; did you mean red?\n"
        status, body, _ = live.chat("rad")
        assert status == 404
        assert "rad" in str(body)
