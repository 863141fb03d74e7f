"""The daemon's side of a keeper: what it prints gets into the log, beside everything else."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import trio

from daemon import keeping
from daemon.keeping import KeeperFailed, Keeping
from daemon.recovery import fold_log
from events.envelope import decode
from events.reader import Reader
from statemachines.replay import verify
from statemachines.state import canonical
from tests.integration.logs import vandal
from tests.integration.test_driver import Here, driving

LIMIT_S = 60


async def requests(here: Here, runner: str, count: int) -> None:
    """So many requests, each served, all durable."""
    for _ in range(count):
        ticket = here.arrive("a")
        await ticket.turn()
        here.answers(ticket, runner)
    await here.driver.durable(here.driver.state.seq)


async def test_snapshots_come_into_the_log_as_it_grows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeping, "CARRY_PAUSE_S", 0)
    log = tmp_path / "events.db"
    async with driving(tmp_path) as here:
        kept = Keeping(here.driver, here.store, log, 0, every=100)
        async with kept.run():
            runner = await here.loaded("a")
            with trio.fail_after(LIMIT_S):
                for _ in range(3):
                    before = kept.carried_seq
                    await requests(here, runner, 40)
                    await here.driver.until(lambda before=before: kept.carried_seq > before)
        known = canonical(here.driver.state)
        await here.driver.durable(here.driver.state.seq)
        recovered = fold_log(log)
        assert canonical(recovered.state) == known
        assert recovered.carried_seq == kept.carried_seq > 0
    with Reader(log) as reader:
        uptos = [snapshot.upto for snapshot in reader.snapshots()]
        assert len(uptos) >= 3
        report, _ = verify(map(decode, reader.records()), None, uptos)
    assert (report.snapshots, report.snapshots_not_compared) == (len(uptos), 0)


async def test_a_log_that_is_damaged_under_its_daemon_is_found_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "events.db"
    async with driving(tmp_path) as here:
        await requests(here, await here.loaded("a"), 10)
        connection = vandal(log)
        connection.execute("UPDATE events SET t = t + 1 WHERE seq = 20")
        kept = Keeping(here.driver, here.store, log, 0)
        with pytest.raises(KeeperFailed, match="the chain breaks at event 20: its hash does not match"):
            await kept.carry(whole=True)
        monkeypatch.setattr(keeping, "CARRY_S", 0)
        caplog.set_level(logging.ERROR, "runnerd")
        async with kept.run():
            with trio.fail_after(LIMIT_S):
                while not caplog.records:
                    await trio.lowlevel.checkpoint()
        assert "the chain breaks at event 20" in caplog.text
        connection.execute("UPDATE events SET t = t - 1 WHERE seq = 20")
        connection.close()


async def test_a_keeper_that_is_none_fails_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with driving(tmp_path) as here:
        kept = Keeping(here.driver, here.store, tmp_path / "events.db", 0)
        before = here.driver.state.seq
        for command, words in (
            (("/bin/echo", "what"), "printed what is no snapshot"),
            (("/bin/sh", "-c", "head -c 1000000 /dev/zero"), "printed what is no snapshot"),
            (("/bin/sh", "-c", "exit 3"), "exited with 3"),
            (("/nonexistent/keeper",), "No such file"),
        ):
            monkeypatch.setattr(keeping, "KEEPER", command)
            with pytest.raises(KeeperFailed, match=words):
                await kept.carry(whole=False)
        monkeypatch.setattr(keeping, "KEEPER", ("/bin/sh", "-c", "exec sleep 1000"))
        monkeypatch.setattr(keeping, "KEEPER_S", 0)
        with pytest.raises(KeeperFailed, match="took more than 0 s"):
            await kept.carry(whole=False)
        assert here.driver.state.seq == before
