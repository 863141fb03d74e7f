"""What the daemon writes to systemd's journal, and how."""

from __future__ import annotations

import logging
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from daemon.journal import Journal, JournalHandler, Prefixed, about, encode, is_journal
from daemon.limits import JOURNAL_LINE_BYTES
from events import catalogue as c
from tests.unit.test_scheduler import Core, model


def parse(data: bytes) -> dict[str, str]:
    """A datagram as journald reads it."""
    found = {}
    while data:
        name, end, rest = data.partition(b"\n")
        if b"=" in name:
            key, _, value = name.partition(b"=")
            data = rest
        else:
            key, (size,) = name, struct.unpack("<Q", rest[:8])
            value, data = rest[8 : 8 + size], rest[8 + size + 1 :]
        assert end
        found[key.decode()] = value.decode()
    return found


@pytest.fixture
def journald(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "journal"))
        sock.settimeout(10)
        yield sock


@pytest.fixture
def lines(journald: socket.socket) -> Iterator[logging.Logger]:
    """A logger whose records go to that journal."""
    handler = JournalHandler(journald.getsockname())
    logger = logging.getLogger("runnerd")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False  # the root's handlers are other tests'
    yield logger
    logger.propagate = True
    logger.removeHandler(handler)
    handler.close()


def test_lines_carry_what_they_are_about(journald: socket.socket, lines: logging.Logger) -> None:
    core = Core({"a": model(), "b": model(6)})
    runner = core.load("a")
    journal = Journal(core.state)
    request = core.arrive("b")
    for event in core.log[-6:]:
        journal.write(event)
    journal.write(c.Event(90, 0, 0, "r80", c.RunnerFailed(runner, "exited")))
    told = []
    journald.setblocking(False)
    try:
        while True:
            told.append(parse(journald.recv(65536)))
    except BlockingIOError:
        pass
    load = next(each for each in told if f"r{each['RUNNERD_SEQ']} loads b" in each["MESSAGE"])
    assert load["RUNNERD_RUNNER"] == f"r{load['RUNNERD_SEQ']}"
    assert (load["RUNNERD_MODEL"], load["RUNNERD_REQUEST"]) == ("b", request)
    assert (load["PRIORITY"], load["SYSLOG_IDENTIFIER"]) == ("6", "runnerd")
    failed = told[-1]
    assert (failed["RUNNERD_MODEL"], failed["RUNNERD_RUNNER"], failed["PRIORITY"]) == ("a", runner, "4")
    assert "RUNNERD_REQUEST" not in failed


def test_a_line_of_our_own_code(journald: socket.socket, lines: logging.Logger) -> None:
    lines.warning("%s is slow", "red", extra=about(model="red"))
    assert parse(journald.recv(65536)) == {
        "MESSAGE": "red is slow",
        "PRIORITY": "4",
        "SYSLOG_IDENTIFIER": "runnerd",
        "RUNNERD_MODEL": "red",
    }


def test_several_lines_and_long_ones() -> None:
    fields = {"MESSAGE": "one\ntwo\nPRIORITY=0", "LONG": "ä" * JOURNAL_LINE_BYTES}
    [(_, message), (_, long)] = parse(encode({**fields, "LONG": "x" * 10**6})).items()
    assert message == fields["MESSAGE"]
    assert len(long) == JOURNAL_LINE_BYTES


def test_what_the_journal_does_not_take_goes_to_standard_error(
    journald: socket.socket, lines: logging.Logger, capfd: pytest.CaptureFixture[str]
) -> None:
    journald.close()
    lines.error("one\ntwo")
    assert capfd.readouterr().err == "<3>one\n<3>two\n"


def test_a_prefix_for_each_line() -> None:
    record = logging.LogRecord("runnerd", logging.WARNING, "", 0, "one\ntwo", (), None)
    assert Prefixed().format(record) == "<4>one\n<4>two"


def test_whether_standard_error_is_the_journal() -> None:
    stat = os.fstat(2)
    assert is_journal({"JOURNAL_STREAM": f"{stat.st_dev}:{stat.st_ino}"})
    assert not is_journal({"JOURNAL_STREAM": f"{stat.st_dev}:{stat.st_ino + 1}"}), "`2> file` in a unit"
    assert not is_journal({})


def test_what_nobody_takes_is_lost_and_nothing_else(
    journald: socket.socket, lines: logging.Logger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lines are written in the middle of things: an error here would break the event log."""

    def broken(descriptor: int, data: bytes) -> int:
        raise BrokenPipeError

    monkeypatch.setattr(os, "write", broken)
    monkeypatch.setattr(logging, "raiseExceptions", False)
    Path(journald.getsockname()).unlink()
    journald.close()
    lines.info("nobody hears this")
    lines.info("%d", "this neither")
