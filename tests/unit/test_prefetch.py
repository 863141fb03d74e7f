"""Reading ahead: asked for in pieces, ended when something else is wanted, harmless when it cannot be."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
import trio
import trio.testing

from daemon import prefetch
from daemon.config.file import load
from daemon.prefetch import Prefetcher, available_bytes, files_of, read_ahead
from events.limits import PREFETCH_PIECE_BYTES

LIMIT_S = 10


def test_whole_files_are_asked_for_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr("os.posix_fadvise", lambda fd, offset, size, advice: asked.append((offset, size)))
    path = tmp_path / "a"
    path.write_bytes(bytes(2 * PREFETCH_PIECE_BYTES + 5))
    assert read_ahead([path, path], threading.Event()) == 2 * (2 * PREFETCH_PIECE_BYTES + 5)
    assert [offset for offset, _ in asked[:3]] == [0, PREFETCH_PIECE_BYTES, 2 * PREFETCH_PIECE_BYTES]


def test_it_ends_when_it_is_to(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(bytes(10))
    stop = threading.Event()
    stop.set()
    assert read_ahead([path], stop) == 0


def test_what_is_not_there_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(bytes(10))
    assert read_ahead([tmp_path / "missing", path], threading.Event()) == 10


async def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "a"
    os.mkfifo(path)
    with trio.fail_after(LIMIT_S):
        stop = threading.Event()
        assert await trio.to_thread.run_sync(read_ahead, [path], stop, abandon_on_cancel=True) == 0


def test_no_more_than_memory_has_room_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    path.write_bytes(bytes(100))
    assert available_bytes() > 0
    monkeypatch.setattr(prefetch, "available_bytes", lambda: 120)
    assert read_ahead([path], threading.Event()) == 0
    monkeypatch.setattr(prefetch, "available_bytes", lambda: 140)
    assert read_ahead([path], threading.Event()) == 100


async def test_the_last_one_asked_for_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[list[Path]] = []
    entered, let_go = threading.Event(), threading.Event()

    def slow(files: list[Path], stop: threading.Event) -> int:
        begun.append(files)
        if files == [Path("a.gguf")]:
            entered.set()
            assert stop.wait(LIMIT_S), "not told to stop"
        let_go.set()
        return 0

    monkeypatch.setattr(prefetch, "read_ahead", slow)
    ahead = Prefetcher(lambda model: [Path(f"{model}.gguf")])
    with trio.fail_after(LIMIT_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ahead.run)
            ahead.begin("a")
            assert await trio.to_thread.run_sync(entered.wait, LIMIT_S)
            ahead.begin("b")
            ahead.begin("c")
            while begun[-1] != [Path("c.gguf")]:
                await trio.testing.wait_all_tasks_blocked(0.001)
            nursery.cancel_scope.cancel()
    assert begun == [[Path("a.gguf")], [Path("c.gguf")]]


def test_the_files_are_those_of_the_command(tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text(
        "models:\n"
        "  one: {cmd: 's --port ${PORT} -m /models/one.gguf --mmproj /models/eyes.gguf'}\n"
        "  split: {cmd: 's --port ${PORT} -m /models/big-00001-of-00002.gguf'}\n"
        "  other: {cmd: 'vllm serve --port ${PORT}'}\n"
    )
    models = load(config, {}).models
    assert files_of(models, "one") == [Path("/models/one.gguf"), Path("/models/eyes.gguf")]
    assert files_of(models, "split") == [Path(f"/models/big-0000{i}-of-00002.gguf") for i in (1, 2)]
    assert files_of(models, "other") == files_of(models, "unknown") == []
