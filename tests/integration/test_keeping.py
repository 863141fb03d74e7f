"""The daemon's side of a keeper: what it prints gets into the log, beside everything else."""

from __future__ import annotations

import logging
import sys
from functools import partial
from pathlib import Path

import pytest
import trio

from daemon import keeping
from daemon.beside import running
from daemon.config.retention import Retention
from daemon.keeping import KeeperFailed, Keeping, archive_path
from daemon.past import nearest
from daemon.recovery import fold_log
from events.envelope import decode
from events.reader import CursorPruned, Reader
from statemachines.replay import verify
from statemachines.state import State, canonical
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
        kept = Keeping(here.driver, here.store, log, 0, Retention, every=100)

        def grown(before: int) -> bool:
            return kept.carried_seq > before

        async with running(kept.run):
            runner = await here.loaded("a")
            with trio.fail_after(LIMIT_S):
                for _ in range(3):
                    before = kept.carried_seq
                    await requests(here, runner, 40)
                    await here.driver.until(partial(grown, before))
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


async def test_the_log_keeps_to_its_size_and_what_is_pruned_can_be_read(tmp_path: Path) -> None:
    """A watcher that was there is told so; verification goes on from segment to segment."""
    log = tmp_path / "events.db"
    async with driving(tmp_path) as here:
        kept = Keeping(here.driver, here.store, log, 0, lambda: Retention(200_000, 0, 10**9), every=100)
        runner = await here.loaded("a")
        while here.store.base.seq < 600:
            await requests(here, runner, 40)
            await kept.carry(whole=False)
            assert here.driver.state.seq < 3000
        with pytest.raises(CursorPruned):
            await here.store.records(7)
        assert (await here.store.records(here.store.base.seq - 1))[0].seq == here.store.base.seq
        await here.driver.durable(here.driver.state.seq)
        known = canonical(here.driver.state)
    with Reader(log) as reader:
        assert reader.used_bytes() < 300_000
        last, base = reader.head(), reader.base
    assert canonical(fold_log(log).state) == known
    segments = sorted(archive_path(log).iterdir())
    assert len(segments) > 2
    state, seq = State(), 0
    for path in [*segments, log]:
        with Reader(path) as reader:
            assert (reader.log_id, reader.base.seq) == (base.log_id, seq + 1)
            reader.verify_chain()
            begin, head = nearest(reader, reader.base.seq - 1)
            assert (head.seq, canonical(begin)) == (seq, canonical(state))
            uptos = [snapshot.upto for snapshot in reader.snapshots()]
            report, state = verify(reader.events(), begin, uptos)
            assert report.snapshots == sum(upto >= head.seq for upto in uptos)
            assert report.snapshots_not_compared == 0
            seq = reader.head().seq
    assert seq == last.seq
    assert canonical(state) == known


async def test_what_is_older_than_its_age_goes_and_nothing_is_archived_where_none_is_wanted(
    tmp_path: Path,
) -> None:
    log = tmp_path / "events.db"
    async with driving(tmp_path) as here:
        kept = Keeping(here.driver, here.store, log, 0, lambda: Retention(0, 1, 0), every=100)
        await requests(here, await here.loaded("a"), 40)
        await kept.carry(whole=False)
        assert here.store.base.seq == 1, "there was no snapshot yet"
        await here.driver.durable(here.driver.state.seq)
        await kept.carry(whole=False)
        assert here.store.base.seq == kept.carried_seq + 1 > 100
        assert not archive_path(log).exists()


async def test_what_cannot_be_archived_is_not_pruned(tmp_path: Path) -> None:
    log = tmp_path / "events.db"
    async with driving(tmp_path) as here:
        kept = Keeping(here.driver, here.store, log, 0, lambda: Retention(0, 1, 10**9), every=100)
        await requests(here, await here.loaded("a"), 40)
        await kept.carry(whole=False)
        await here.driver.durable(here.driver.state.seq)
        archive_path(log).write_text("a file where the directory is to be")
        with pytest.raises(KeeperFailed, match="File exists"):
            await kept.carry(whole=False)
        assert here.store.base.seq == 1


async def test_the_archive_keeps_to_its_size(tmp_path: Path) -> None:
    log = tmp_path / "events.db"
    async with driving(tmp_path) as here:
        kept = Keeping(here.driver, here.store, log, 0, lambda: Retention(0, 1, 5_000), every=50)
        runner = await here.loaded("a")
        for _ in range(6):
            await requests(here, runner, 20)
            await kept.carry(whole=False)
    left = sorted(archive_path(log).iterdir())
    assert left
    assert sum(path.stat().st_size for path in left) <= 5_000
    with Reader(left[-1]) as reader, Reader(log) as rest:
        assert reader.head().seq == rest.base.seq - 1, "the newest is there"
        assert left[0].name > "000000000050", "the oldest has gone"


async def test_a_log_that_is_damaged_under_its_daemon_is_found_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "events.db"
    async with driving(tmp_path) as here:
        await requests(here, await here.loaded("a"), 10)
        connection = vandal(log)
        connection.execute("UPDATE events SET t = t + 1 WHERE seq = 20")
        kept = Keeping(here.driver, here.store, log, 0, Retention)
        with pytest.raises(KeeperFailed, match="the chain breaks at event 20: its hash does not match"):
            await kept.carry(whole=True)
        monkeypatch.setattr(keeping, "CARRY_S", 0)
        caplog.set_level(logging.ERROR, "runnerd")
        async with running(kept.run):
            with trio.fail_after(LIMIT_S):
                while "the chain breaks at event 20" not in caplog.text:
                    await trio.lowlevel.checkpoint()
        connection.execute("UPDATE events SET t = t - 1 WHERE seq = 20")
        connection.close()


async def test_a_keeper_that_is_none_fails_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with driving(tmp_path) as here:
        kept = Keeping(here.driver, here.store, tmp_path / "events.db", 0, Retention)
        before = here.driver.state.seq
        for command, words in (
            (("/bin/echo", "what"), "printed what is none of its words"),
            (("/bin/sh", "-c", "head -c 1000000 /dev/zero"), "printed too long a line"),
            (("/bin/sh", "-c", "exit 3"), "exited with 3"),
            (("/nonexistent/keeper",), "No such file"),
        ):
            monkeypatch.setattr(keeping, "KEEPER", command)
            with pytest.raises(KeeperFailed, match=words):
                await kept.carry(whole=False)
        monkeypatch.setattr(keeping, "KEEPER", ("/bin/sh", "-c", "exec sleep 1000"))
        monkeypatch.setattr(keeping, "KEEPER_IDLE_S", 0)
        monkeypatch.setattr(keeping, "KEEPER_S", 0)
        with pytest.raises(KeeperFailed, match="took more than 0 s"):
            await kept.carry(whole=False)
        assert here.driver.state.seq == before


STARVED = """\
import os, signal, sys
marker, *keeper = sys.argv[1:]
while os.sched_getscheduler(0) != os.SCHED_IDLE and not os.path.exists(marker):
    os.sched_yield()
if not os.path.exists(marker):
    open(marker, "w").close()
    signal.pause()
if os.sched_getscheduler(0) == os.SCHED_IDLE:
    sys.exit("it is starved again")
os.execv(keeper[0], keeper)
"""
"""A keeper that has nothing of the processor while others go first."""


async def test_a_keeper_lets_others_go_first_and_has_its_turn_where_it_starves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    marker = tmp_path / "starved"
    command = (sys.executable, "-c", STARVED, str(marker), *keeping.KEEPER)
    monkeypatch.setattr(keeping, "KEEPER", command)
    monkeypatch.setattr(keeping, "KEEPER_IDLE_S", 2)
    async with driving(tmp_path) as here:
        kept = Keeping(here.driver, here.store, tmp_path / "events.db", 0, Retention, every=100)
        await requests(here, await here.loaded("a"), 40)
        with trio.fail_after(LIMIT_S):
            await kept.carry(whole=True)
    assert marker.exists()
    assert kept.carried_seq > 0
