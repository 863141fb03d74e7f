"""What the store keeps at hand for those who follow the log, and where that ends."""

from __future__ import annotations

from pathlib import Path

import pytest

from events import store
from events.limits import RECENT_ROWS
from events.reader import Reader
from events.store import open_store
from tests.integration.logs import append, step


async def test_what_has_just_been_written_is_at_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "events.db"
    async with open_store(log) as opened:
        last = append(opened, RECENT_ROWS)
        await opened.wait(last)
        opened.append(step(last + 1), 7)
        await opened.wait(last + 2)
        with Reader(log) as reader:
            stored_rows = list(reader.records())
        for after in (last + 2, last + 1, last, last + 2 - RECENT_ROWS, last + 1 - RECENT_ROWS, 5):
            page = await opened.records(after)
            assert page == stored_rows[after : after + len(page)] and bool(page) == (after < last + 2)
        monkeypatch.setattr(store, "greenlet_spawn", None)  # by which the file is read
        assert len(await opened.records(last + 2 - RECENT_ROWS)) == RECENT_ROWS
        with pytest.raises(TypeError):
            await opened.records(last + 1 - RECENT_ROWS)
        monkeypatch.undo()
