"""The store: order, groups, durability, a blocked log, a broken one, the lock and the witness."""

from __future__ import annotations

import os
import resource
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
import trio

from events import opening, writing
from events.catalogue import Event
from events.commit import Committer
from events.envelope import OutOfOrder, encode, first_hash
from events.limits import RECENT_ROWS
from events.lock import hold_lock
from events.pruning import prune
from events.reader import ChainBroken, CursorPruned, Head, Reader
from events.store import LogInUse, StoreBroken, TailLost, is_held, lock_path, open_store
from events.witness import Witness, boot_id, read_witness, write_witness
from tests.integration.logs import append, make, step, stored, vandal

CRASHING = """
import sys, time, trio
from events.store import open_store
from tests.integration.logs import step

async def main():
    async with open_store(sys.argv[1]) as log:
        log.on_durable = lambda events: print(events[-1].seq, flush=True)
        seq = log.head.seq + 1
        while True:
            for _ in range(5):
                log.append(step(seq), time.time_ns())
                seq += 2
            await log.wait(seq - 1)

trio.run(main)
"""


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Where a test's log is."""
    return tmp_path / "log.db"


class Watch:
    """What a store's callbacks have said."""

    def __init__(self, log: writing.EventStore) -> None:
        self.groups: list[list[int]] = []
        self.blocked = trio.Event()
        self.resumed: list[tuple[int, str]] = []
        log.on_durable = self.durable
        log.on_blocked = lambda _: self.blocked.set()
        log.on_resumed = self.resume

    def durable(self, events: Sequence[Event]) -> None:
        self.groups.append([event.seq for event in events])

    def resume(self, blocked_ns: int, error: str) -> None:
        if error != writing.SLOW:  # the machine may be
            self.resumed.append((blocked_ns, error))

    @property
    def seqs(self) -> list[int]:
        return [seq for group in self.groups for seq in group]


# --- order and groups -----------------------------------------------------------------------------------


async def test_events_become_durable_in_order_and_stay(log: Path) -> None:
    async with open_store(log) as opened:
        watch = Watch(opened)
        last = append(opened, 500)
        assert opened.head.seq == 0
        await opened.wait(last)
        assert watch.seqs == list(range(1, last + 1))
        assert opened.stats.events == last
        head, log_id = opened.head, opened.log_id
    assert stored(log) == list(range(1, last + 1))
    async with open_store(log) as opened:
        assert (opened.head, opened.log_id, opened.tail_lost) == (head, log_id, None)
        await opened.wait(append(opened, 1))
    with Reader(log) as reader:
        assert reader.verify_chain() == last + 2
        assert [event.seq for event in reader.events()] == list(range(1, last + 3))
        assert next(reader.events()) == step(1)[0]


async def test_a_step_is_never_split(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "GROUP_ROWS", 5)
    async with open_store(log) as opened:
        watch = Watch(opened)
        await opened.hold()
        append(opened, 7)
        big = [event for seq in range(15, 35, 2) for event in step(seq)]
        opened.append(big, 0)
        last = append(opened, 3, first=35)
        assert opened.stats.queued == last
        opened.release()
        await opened.wait(last)
        assert [len(group) for group in watch.groups] == [4, 4, 4, 2, 20, 4, 2]


@pytest.mark.parametrize("rows", [1, 31, 32, 33, 64, 100, 700])
async def test_groups_of_every_size_arrive_whole(log: Path, rows: int) -> None:
    async with open_store(log) as opened:
        opened.append([event for seq in range(1, rows + 2, 2) for event in step(seq)][:rows], 0)
        await opened.wait(rows)
    with Reader(log) as reader:
        assert reader.verify_chain() == rows


async def test_what_does_not_follow_is_refused_and_leaves_nothing(log: Path) -> None:
    async with open_store(log) as opened:
        append(opened, 1)
        for wrong in (step(2), step(4), [step(3)[0], step(3)[0]], [*step(3), *step(7)]):
            with pytest.raises(OutOfOrder):
                opened.append(wrong, 0)
        with pytest.raises(UnicodeEncodeError):
            opened.append([step(3)[0], Event(4, 0, 0, "\ud800", step(3)[1].body)], 0)
        opened.append([], 0)
        await opened.wait(append(opened, 1, first=3))
    assert stored(log) == [1, 2, 3, 4]


async def test_waiting_for_what_is_yet_to_come_and_cancelling_it(log: Path) -> None:
    async with open_store(log) as opened, trio.open_nursery() as nursery:
        nursery.start_soon(opened.wait, 4)
        with trio.CancelScope() as scope:
            scope.cancel()
            append(opened, 1)
            await opened.wait(2)
        assert scope.cancelled_caught
        await opened.wait(append(opened, 1, first=3))
        await opened.wait(1)
    assert stored(log) == [1, 2, 3, 4]


async def test_pages_of_records_while_it_is_written(log: Path) -> None:
    async with open_store(log) as opened:
        assert await opened.records(0) == []
        last = append(opened, 600)
        await opened.wait(last)
        append(opened, 1, first=last + 1)
        seen: list[int] = []
        while page := await opened.records(len(seen)):
            seen += [record.seq for record in page]
        assert seen[:last] == list(range(1, last + 1))


async def test_a_page_has_no_gap_where_the_log_has_been_pruned_unheard(log: Path) -> None:
    """It is pruned in one thread and read in another: whose word comes first is open."""
    async with open_store(log) as opened:
        await opened.wait(append(opened, RECENT_ROWS))  # more than are at hand
        (fifth,) = [record for record in await opened.records(4) if record.seq == 5]
        with closing(sqlite3.connect(log, isolation_level=None)) as connection:
            prune(connection, 5, fifth.hash)
        assert (await opened.records(5))[0].seq == 6
        with pytest.raises(CursorPruned, match="begins at event 6"):
            await opened.records(3)


# --- leaving --------------------------------------------------------------------------------------------


async def test_leaving_writes_what_is_queued_also_when_cancelled(log: Path) -> None:
    with trio.CancelScope() as scope:
        async with open_store(log) as opened:
            append(opened, 300)
            scope.cancel()
            await trio.sleep_forever()
    assert scope.cancelled_caught
    assert stored(log) == list(range(1, 601))
    with pytest.raises(StoreBroken):
        append(opened, 1)
    with pytest.raises(StoreBroken):
        await opened.wait(1_000)


async def test_an_error_within_comes_out_as_it_is_and_nothing_is_left(log: Path) -> None:
    threads = threading.active_count()
    with pytest.raises(KeyError):
        async with open_store(log) as opened:
            append(opened, 1)
            raise KeyError
    assert stored(log) == [1, 2]
    assert not is_held(lock_path(log))
    for thread in threading.enumerate():
        if "connection_worker" in thread.name:
            await trio.to_thread.run_sync(thread.join, 5)
    assert not [thread for thread in threading.enumerate() if "connection_worker" in thread.name]
    assert threading.active_count() <= threads + 1


# --- a blocked log --------------------------------------------------------------------------------------


async def test_a_foreign_lock_blocks_and_then_everything_goes_in_order(log: Path) -> None:
    async with open_store(log) as opened:
        await opened.wait(append(opened, 1))
        watch = Watch(opened)
        foreign = sqlite3.connect(log, isolation_level=None)
        foreign.execute("BEGIN IMMEDIATE")
        assert (opened.blocked_since, opened.blocked_error) == (None, "")
        append(opened, 1, first=3)
        with trio.fail_after(5):
            await watch.blocked.wait()
        append(opened, 20, first=5)
        assert opened.blocked_since is not None
        assert opened.blocked_error == "database is locked"
        assert opened.head.seq == 2
        foreign.execute("ROLLBACK")
        foreign.close()
        with trio.fail_after(5):
            await opened.wait(44)
        assert watch.seqs == list(range(3, 45))
        assert watch.groups[0] == [3, 4]
        [(blocked_ns, error)] = watch.resumed
        assert blocked_ns > 0
        assert error == "database is locked"
        assert opened.blocked_since is None
        assert opened.stats.retries >= 1


class BetweenTries(threading.Event):
    """What the writer's thread waits for after a failure: only there can its connection's limit be lifted."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        super().__init__()
        self.connection = connection
        self.make_room = threading.Event()

    def wait(self, timeout: float | None = None) -> bool:
        if self.make_room.is_set():
            self.connection.execute("PRAGMA max_page_count=1000000").fetchone()
        return super().wait(timeout)


async def test_a_full_disk_blocks_and_loses_nothing(log: Path) -> None:
    async with open_store(log) as opened:
        watch = Watch(opened)
        await opened.wait(append(opened, 1))
        raw = opened._writer.raw
        await opened._writer.run(lambda: raw.execute("PRAGMA max_page_count=30").fetchone())
        between = opened._committer.give_up = BetweenTries(raw)
        last = append(opened, 2_000, first=3)
        with trio.fail_after(5):
            await watch.blocked.wait()
        assert opened.blocked_error == "database or disk is full"
        assert opened.head.seq == watch.seqs[-1] < last
        assert stored(log)[-1] == opened.head.seq
        between.make_room.set()
        with trio.fail_after(10):
            await opened.wait(last)
        assert watch.seqs == list(range(1, last + 1))
    with Reader(log) as reader:
        assert reader.verify_chain() == last


async def test_a_refused_write_blocks_and_loses_nothing(log: Path) -> None:
    async with open_store(log) as opened:
        watch = Watch(opened)
        await opened.wait(append(opened, 1))
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (Path(f"{log}-wal").stat().st_size + 5_000, hard))
        try:
            last = append(opened, 500, first=3)
            with trio.fail_after(5):
                await watch.blocked.wait()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        with trio.fail_after(5):
            await opened.wait(last)
        assert watch.seqs == list(range(1, last + 1))
    with Reader(log) as reader:
        assert reader.verify_chain() == last


async def test_leaving_a_blocked_log_gives_up_in_the_end(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "CLOSE_S", 0.05)
    foreign = None
    with pytest.raises(StoreBroken, match="database is locked"):
        async with open_store(log) as opened:
            await opened.wait(append(opened, 1))
            foreign = sqlite3.connect(log, isolation_level=None)
            foreign.execute("BEGIN IMMEDIATE")
            append(opened, 1, first=3)
    assert foreign is not None
    foreign.close()
    assert stored(log) == [1, 2]


async def test_who_would_prune_behind_a_refused_transaction_can_be_cancelled(log: Path) -> None:
    """A daemon whose step fails meanwhile must come to its end, though the disk stays full."""
    async with open_store(log) as opened:
        await opened.wait(append(opened, 2))
        hash, watch = opened.head.hash, Watch(opened)
        with closing(sqlite3.connect(log, isolation_level=None)) as foreign:
            foreign.execute("BEGIN IMMEDIATE")
            append(opened, 1, first=5)
            with trio.fail_after(5):
                await watch.blocked.wait()
            with trio.fail_after(5), trio.move_on_after(0) as pruning:
                await opened.prune(4, hash)
            assert pruning.cancelled_caught
            foreign.execute("ROLLBACK")
        await opened.wait(6)
        assert opened.base.seq == 1
        await opened.prune(4, hash)
    assert stored(log) == [5, 6]


class Doubtful(sqlite3.Connection):
    """A connection whose commits report a full disk, having taken place or not."""

    doubts: list[bool]

    def executemany(self, sql: str, parameters: Any) -> sqlite3.Cursor:
        if not self.doubts:
            return super().executemany(sql, parameters)
        if self.doubts.pop(0):
            super().executemany(sql, parameters)
        error = sqlite3.OperationalError("database or disk is full")
        error.sqlite_errorcode = sqlite3.SQLITE_FULL
        raise error


@pytest.mark.parametrize("doubts", [[True], [False], [False, False, True], [False, True]])
def test_a_commit_in_doubt_is_looked_up(log: Path, doubts: list[bool]) -> None:
    make(log, 0)
    connection = sqlite3.connect(log, isolation_level=None, factory=Doubtful)
    connection.doubts = list(doubts)
    with Reader(log) as reader:
        hash = reader.base.hash
    rows = []
    for event in [*step(1), *step(3)]:
        rows.append(encode(event, 0, hash))
        hash = rows[-1][8]
    errors: list[sqlite3.Error] = []
    committer = Committer(connection, Head(0, rows[0][8]))
    committer.commit(rows[:2], errors.append)
    committer.commit(rows[2:], errors.append)
    assert len(errors) == len(doubts)
    connection.close()
    with Reader(log) as reader:
        assert reader.verify_chain() == 4


# --- a broken log ---------------------------------------------------------------------------------------


def poison(log: Path, seq: int) -> None:
    """Write an event as another program would."""
    foreign = sqlite3.connect(log)
    with foreign:
        foreign.execute("INSERT INTO events VALUES (?, 0, 0, 'x', 1, 0, 'x', '{}', zeroblob(32))", (seq,))
    foreign.close()


async def test_a_foreign_event_breaks_the_store(log: Path) -> None:
    told = []
    with pytest.raises(StoreBroken, match="must follow the last one") as caught:
        async with open_store(log) as opened:
            await opened.wait(append(opened, 1))
            poison(log, 3)
            append(opened, 1, first=3)
            append(opened, 1, first=5)
            for seq in (3, 6, 100):
                with trio.CancelScope(shield=True), pytest.raises(StoreBroken):
                    await opened.wait(seq)
                told.append(seq)
            with pytest.raises(StoreBroken):
                append(opened, 1, first=7)
            await trio.sleep_forever()
    assert told == [3, 6, 100]
    assert isinstance(caught.value.__cause__, sqlite3.IntegrityError)
    assert stored(log) == [1, 2, 3]


async def test_a_foreign_event_found_while_blocked_breaks_the_store(log: Path) -> None:
    with pytest.raises(StoreBroken, match=r"somebody else has written to the log|append-only"):
        async with open_store(log) as opened:
            watch = Watch(opened)
            await opened.wait(append(opened, 1))
            foreign = sqlite3.connect(log, isolation_level=None)
            foreign.execute("BEGIN IMMEDIATE")
            append(opened, 1, first=3)
            with trio.fail_after(5):
                await watch.blocked.wait()
            foreign.execute("INSERT INTO events VALUES (3, 0, 0, 'x', 1, 0, 'x', '{}', zeroblob(32))")
            foreign.execute("COMMIT")
            foreign.close()
            await trio.sleep_forever()


async def test_a_driver_that_fails_on_durable_events_breaks_the_store(log: Path) -> None:
    def fail(_: object) -> None:
        raise ZeroDivisionError

    with pytest.raises(StoreBroken) as caught:
        async with open_store(log) as opened:
            opened.on_durable = fail
            append(opened, 1)
            await trio.sleep_forever()
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert stored(log) == [1, 2]


async def test_a_damaged_tail_is_found_on_opening(log: Path) -> None:
    async with open_store(log) as opened:
        append(opened, 50)
    harm = vandal(log)
    harm.execute("UPDATE events SET payload = replace(payload, 'chat', 'chad') WHERE seq = 71")
    harm.close()
    with pytest.raises(ChainBroken) as caught:
        async with open_store(log):
            pass
    assert caught.value.seq == 71


# --- crashes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wanted", [10, 200, 1_000])
def test_kill_9_loses_nothing_that_was_acknowledged(log: Path, wanted: int) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    acknowledged = 0
    for round in (1, 2):
        with subprocess.Popen(
            [sys.executable, "-c", CRASHING, str(log)], stdout=subprocess.PIPE, text=True, env=environment
        ) as child:
            assert child.stdout is not None
            for line in child.stdout:
                acknowledged = int(line)
                if acknowledged >= wanted * round:
                    break
            child.send_signal(signal.SIGKILL)
            for line in child.stdout:
                acknowledged = int(line) if line.endswith("\n") else acknowledged
        with Reader(log) as reader:
            head = reader.head().seq
            assert reader.verify_chain() == head >= acknowledged
            assert head % 2 == 0, "a step was split"
            assert head <= acknowledged + 10
    make(log, 0)


# --- the lock -------------------------------------------------------------------------------------------


async def test_a_second_opener_is_refused_and_told_who_holds_it(log: Path) -> None:
    assert not is_held(lock_path(log))
    async with open_store(log):
        assert is_held(lock_path(log))
        with pytest.raises(LogInUse, match=f"is in use by pid {os.getpid()} on "):
            async with open_store(log):
                pass
        assert is_held(lock_path(log))
        code = "import sys; from events.lock import is_held; sys.exit(40 + is_held(sys.argv[1]))"
        answer = await trio.run_process([sys.executable, "-c", code, str(lock_path(log))], check=False)
        assert answer.returncode == 41
    assert not is_held(lock_path(log))


def test_the_lock_goes_with_its_holder_and_not_with_a_look(log: Path) -> None:
    held = hold_lock(log)
    for _ in range(3):
        assert is_held(lock_path(log))
    with open(lock_path(log)) as file:
        assert file.read().startswith("pid ")
    assert is_held(lock_path(log))
    os.close(held)
    assert not is_held(lock_path(log))
    os.close(hold_lock(log))


# --- the witness ----------------------------------------------------------------------------------------


def modes(directory: Path) -> dict[str, int]:
    """Each file's permissions; a witness that is being written may be gone again under its first name."""
    found = {}
    for path in directory.iterdir():
        with suppress(FileNotFoundError):
            found[path.name] = path.stat().st_mode & 0o777
    return found


async def test_a_lock_that_is_kept_is_the_next_opener_s_if_it_is_of_his_log(log: Path) -> None:
    async with open_store(log) as opened:
        kept = opened.keep_lock()
    assert is_held(lock_path(log))
    async with open_store(log, lock=kept) as opened:
        with pytest.raises(LogInUse):
            hold_lock(log)
        kept = opened.keep_lock()
    other = log.with_name("other.db")
    async with open_store(other, lock=kept):
        assert not is_held(lock_path(log))
        assert is_held(lock_path(other))


async def test_everything_is_for_the_owner_alone(log: Path) -> None:
    async with open_store(log) as opened:
        await opened.wait(append(opened, 1))
        names = modes(log.parent)
        assert set(names) >= {"log.db", "log.db-wal", "log.db-shm", "log.db.lock"}
    names |= modes(log.parent)
    assert "log.db.head" in names
    assert set(names.values()) == {0o600}


async def test_the_witness_is_written_at_once_and_on_leaving(log: Path) -> None:
    async with open_store(log) as opened:
        await opened.wait(append(opened, 1))
        with trio.fail_after(5):
            while read_witness(log) is None:
                await trio.lowlevel.checkpoint()
        await opened.wait(append(opened, 5, first=3))
        head = opened.head
    assert read_witness(log) == Witness(head.seq, head.hash.hex(), boot_id())


@pytest.fixture
def shortened(log: Path) -> Path:
    """A log of two events whose witness has seen four."""
    make(log, 2)
    harm = vandal(log)
    harm.execute("DELETE FROM events WHERE seq > 2")
    harm.close()
    return log


async def test_within_one_boot_a_shorter_log_is_refused(shortened: Path) -> None:
    with pytest.raises(TailLost) as caught:
        async with open_store(shortened):
            pass
    assert (caught.value.expected_seq, caught.value.found_seq) == (4, 2)
    shortened.unlink()
    with pytest.raises(TailLost):
        async with open_store(shortened):
            pass


async def test_after_another_boot_a_shorter_log_is_accepted_as_its_durability_allows(
    shortened: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "boot_id", lambda: "another")
    with pytest.raises(TailLost):
        async with open_store(shortened, durability="machine"):
            pass
    async with open_store(shortened, durability="process") as opened:
        assert opened.tail_lost == (4, 2)
        append(opened, 1)
    async with open_store(shortened, durability="process") as opened:
        assert opened.tail_lost is None


async def test_another_log_under_the_same_name_is_refused(log: Path) -> None:
    async with open_store(log) as opened:
        append(opened, 2)
    write_witness(log, 3, first_hash("another"))
    with pytest.raises(TailLost, match="not the one that was written"):
        async with open_store(log):
            pass


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xff", b"[]"])
async def test_a_witness_that_a_crash_has_emptied_says_nothing(log: Path, content: bytes) -> None:
    async with open_store(log) as opened:
        append(opened, 2)
    Path(f"{log}.head").write_bytes(content)
    async with open_store(log) as opened:
        assert opened.tail_lost is None
