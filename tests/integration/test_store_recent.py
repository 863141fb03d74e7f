"""What the store keeps at hand for those who follow the log, and where that ends."""

from __future__ import annotations

from pathlib import Path

import pytest

from events import writing
from events.limits import RECENT_GROUPS, RECENT_ROWS
from events.reader import Reader
from events.store import open_store
from tests.integration.logs import append, step


async def test_what_has_just_been_written_is_at_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "events.db"
    async with open_store(log) as opened:
        assert await opened.records(0) == []  # somebody follows
        last = append(opened, RECENT_ROWS)
        await opened.wait(last)
        opened.append(step(last + 1), 7)
        await opened.wait(last + 2)
        with Reader(log) as reader:
            stored_rows = list(reader.records())
        for after in (last + 2, last + 1, last, last + 2 - RECENT_ROWS, last + 1 - RECENT_ROWS, 5):
            page = await opened.records(after)
            assert page == stored_rows[after : after + len(page)] and bool(page) == (after < last + 2)
        monkeypatch.setattr(writing, "greenlet_spawn", None)  # by which the file is read
        assert len(await opened.records(last + 2 - RECENT_ROWS)) == RECENT_ROWS
        with pytest.raises(TypeError):
            await opened.records(last + 1 - RECENT_ROWS)
        monkeypatch.undo()


async def test_nothing_is_kept_that_nobody_follows(tmp_path: Path) -> None:
    async with open_store(tmp_path / "events.db") as opened:
        await opened.wait(append(opened, 3))
        assert not opened._recent
        assert len(await opened.records(0)) == 6
        for groups in range(RECENT_GROUPS + 1):
            assert len(opened._recent) == 2 * groups
            await opened.wait(append(opened, 1))
        assert not opened._recent
        assert len(await opened.records(0)) == 6 + 2 * (RECENT_GROUPS + 1)
