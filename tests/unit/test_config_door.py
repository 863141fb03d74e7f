"""The front door's settings: who may come in; that keys are shown nowhere; that a wide door takes keys."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from daemon.cli import runnerd
from daemon.config.check import check_main
from daemon.config.config import Config
from daemon.config.door import IGNORED_PATHS, is_loopback
from daemon.config.errors import ConfigError
from daemon.config.file import load
from events.limits import API_KEYS, MIB

KEY = "sk-0123456789abcdef-hush"
MODELS = "models: {m: {cmd: 's ${PORT}'}}\n"


def read(directory: Path, text: str) -> Config:
    path = directory / "config.yaml"
    path.write_text(MODELS + text)
    return load(path, {"KEY": KEY})


def refused(directory: Path, text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        read(directory, text)
    return str(caught.value)


def test_the_defaults_let_this_machine_in_and_no_page(tmp_path: Path) -> None:
    config = read(tmp_path, "apiKeys: []\nallowedHosts: \ncors: {}\nupstream: {}\n")
    assert (config.api_keys, config.hosts, config.cors_origins) == ((), (), ())
    assert (config.body_bytes, config.ignore_paths) == (64 * MIB, IGNORED_PATHS)
    assert config.warnings == ()


def test_everything_is_taken(tmp_path: Path) -> None:
    config = read(
        tmp_path,
        f"""
apiKeys: ["{KEY}", "${{env.KEY}}", sk-another-0123456789]
allowedHosts: [GPU.example.org., 192.168.1.7, "[fd00::7]", localhost]
cors: {{origins: ["https://Chat.example.org:8443", "*", "tauri://localhost"]}}
maxBody: 5MiB
insecureListen: true
upstream: {{ignorePaths: ['\\.css$', '^/ws$|^/api/jobs$']}}
""",
    )
    assert config.api_keys == (KEY, "sk-another-0123456789")
    assert config.hosts == ("gpu.example.org", "192.168.1.7", "fd00::7", "localhost")
    assert config.cors_origins == ("https://chat.example.org:8443", "*", "tauri://localhost")
    assert (config.body_bytes, config.insecure_listen) == (5 * MIB, True)
    assert config.ignore_paths == (r"\.css$", "^/ws$|^/api/jobs$")
    assert config.warnings == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("apiKeys: ['']", "apiKeys[0]: expected a key of 1 to 512"),
        ("apiKeys: [with blank]", "apiKeys[0]: expected a key of 1 to 512"),
        ("apiKeys: [ä]", "apiKeys[0]: expected a key"),
        (f"apiKeys: [{'x' * 513}]", "apiKeys[0]: expected a key"),
        ("apiKeys: [{a: b}]", "apiKeys[0]: expected text, found a mapping"),
        (f"apiKeys: [{', '.join(map(str, range(API_KEYS + 1)))}]", "apiKeys: expected at most 1000 keys"),
        ("allowedHosts: ['example.org:8080']", "allowedHosts[0]: expected a host's name or address, without"),
        ("allowedHosts: ['*']", "allowedHosts[0]: expected a host's name"),
        ("allowedHosts: example.org", "allowedHosts: expected a list of text"),
        ("cors: ['*']", "cors: expected a mapping"),
        ("cors: {origins: [chat.example.org]}", "cors.origins[0]: expected an origin such as"),
        ("cors: {origins: ['https://a/b']}", "cors.origins[0]: expected an origin such as"),
        ("cors: {origin: ['*']}", 'cors.origin: unknown key "origin"; the nearest is "origins"'),
        ("maxBody: 1", "maxBody: expected a size from 1KiB to 1GiB, found 1"),
        ("maxBody: 2GiB", "maxBody: expected a size from 1KiB to 1GiB"),
        ("upstream: {ignorePaths: ['(']}", "upstream.ignorePaths[0]: expected a regular expression"),
        ("upstream: {ignorePaths: ['[[:alpha:]]']}", "ignorePaths[0]: expected a regular expression, found"),
        ("upstream: {ignorePaths: ['[a&&b]']}", "expected a regular expression, found"),
        ("upstream: {ignorePath: []}", 'unknown key "ignorePath"; the nearest is "ignorePaths"'),
        ("insecureListen: perhaps", "insecureListen: expected true or false"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant(tmp_path: Path, text: str, message: str) -> None:
    assert message in refused(tmp_path, text)


@pytest.mark.parametrize(
    "text",
    [
        f"apiKeys: {KEY}",
        f"apiKeys: ['{KEY} {KEY}']",
        f"apiKeys: [['{KEY}']]",
        f"apiKeys: {{a: '{KEY}'}}",
        "apiKeys: ['${env.KEY} x']",
        f"macros: {{k: '{KEY}'}}\napiKeys: ['${{k}} x']",
        f"x-keys: &k '{KEY}'\napiKeys: *k",
    ],
)
def test_no_message_shows_a_key(tmp_path: Path, text: str) -> None:
    assert "hush" not in refused(tmp_path, text)


def test_nothing_else_shows_a_key(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    config = read(tmp_path, f"apiKeys: ['{KEY}', hush]\n")
    assert "hush" not in repr(config)
    assert "hush" not in repr(config.view(b""))
    assert check_main(config.file) == 0
    shown = capsys.readouterr()
    assert "hush" not in shown.out + shown.err
    assert "apiKeys[1]: a key of fewer than 16 characters can be guessed" in shown.err
    logging.getLogger("runnerd").warning("%s", config)
    assert "hush" not in caplog.text


@pytest.mark.parametrize(
    ("listen", "narrow"),
    [
        ("127.0.0.1:80", True), ("127.9.9.9:80", True), ("localhost:80", True), (":80", True),
        ("[::1]:80", True),
        ("0.0.0.0:80", False), ("[::]:80", False), ("192.168.1.7:80", False), ("gpu.example.org:80", False),
    ],
)  # fmt: skip
def test_a_wide_door_takes_keys_or_a_word(tmp_path: Path, listen: str, narrow: bool) -> None:
    config = read(tmp_path, f"listen: '{listen}'\n")
    assert is_loopback(config.listen.rpartition(":")[0]) is narrow
    assert check_main(config.file) == (0 if narrow else 1)
    assert check_main(config.file, insecure=True) == 0
    assert check_main(read(tmp_path, f"listen: '{listen}'\ninsecureListen: true\n").file) == 0
    assert check_main(read(tmp_path, f"listen: '{listen}'\napiKeys: ['{KEY}']\n").file) == 0


def test_a_wide_door_is_named_with_every_other_problem(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("models:\n  m: {cmd: 'sleep ${PORT}', tll: 5}\nlisten: 0.0.0.0:80\n")
    assert check_main(path) == 1
    told = capsys.readouterr().err
    assert f"{path}:2: models.m" in told and f"{path}:3: listen: 0.0.0.0 can be" in told


def test_the_daemon_does_not_open_a_wide_door_either(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`--listen` counts, not the file's; exit code 2, before anything is opened."""
    config = read(tmp_path, "")
    arguments = ["serve", "--config", str(config.file), "--log", str(tmp_path / "log" / "events.db")]
    assert runnerd.main([*arguments, "--listen", "0.0.0.0:0"]) == 2
    assert "0.0.0.0 can be reached from other machines, and without apiKeys" in capsys.readouterr().err
    assert not (tmp_path / "log").exists()
    config.check_exposure("0.0.0.0", insecure=True)
    read(tmp_path, "listen: 0.0.0.0:80\n").check_exposure("127.0.0.1", insecure=False)
