"""The event log as the daemon writes it: a strict queue of steps, committed in groups, durable in order.

`append` numbers nothing and waits for nothing: it checks, encodes and chains the events of one step and puts
them in the queue. Whatever has gathered while one transaction ran goes into the next. `on_durable` is called
with the events of each transaction, in order; effects hang on it.

A log that cannot be written for now (a full disk, another program's lock) blocks: the same rows are tried
again until they are in, and nothing behind them is written first. Anything else breaks the store.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from heapq import heappop, heappush
from itertools import islice
from pathlib import Path
from typing import cast

import msgspec
import sqlalchemy as sa
import trio
from sqlalchemy.util.concurrency import greenlet_spawn

from events.catalogue import Event
from events.checkpoint import Checkpointer
from events.commit import EVENTS, Committer, StoreBroken
from events.envelope import Record, Row, encode_step
from events.failpoints import reach
from events.histogram import APPEND_BUCKETS_NS, Histogram
from events.limits import (
    CLOSE_S,
    FLUSH_NS,
    GROUP_ROWS,
    LOG_BLOCKED_MS,
    MS,
    PRUNED_ROWS_PER_PAGE,
    READ_PAGE_ROWS,
    RECENT_GROUPS,
    RECENT_ROWS,
    VACUUM_PAGES,
    WITNESS_S,
    S,
)
from events.opening import Found
from events.places import LogMoved, Places
from events.pruning import prune, shrink
from events.reader import CursorPruned, Head
from events.trio_sqlite import TrioSqlite
from events.witness import write_witness
from events.words import unwritten


class StoreStats(msgspec.Struct, frozen=True):
    """What the store has done since it was opened."""

    events: int
    groups: int
    largest_group: int
    queued: int
    blocked_ns: int
    """For how long it could not be written, or was too slow, the time that this lasts now included."""
    retries: int
    log_bytes: int
    wal_bytes: int
    wal_peak_bytes: int
    checkpoints: int
    yields: int
    paced: int


class _Group:
    """What one transaction writes: whole steps."""

    __slots__ = ("error", "events", "queued_ns", "rows", "since_ns")

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.rows: list[Row] = []
        self.queued_ns: list[int] = []
        """When each step was appended."""
        self.since_ns = 0
        """When it was begun to be written."""
        self.error = ""
        """Why the last try has failed."""


SETTLED_STEPS = 64
"""So many durations are put into their buckets at once: fewer cost more each, more are memory touched
late."""

SLOW = "the disk is slow"
"""Why the log cannot be written, where no try has failed."""


def _is_slow(group: _Group, now_ns: int) -> bool:
    """Whether a group takes too long, though no try has failed."""
    return now_ns - group.since_ns > LOG_BLOCKED_MS * MS


def _ignore(*_: object) -> None:
    """The callback of a caller that does not care."""


class EventStore:
    """An open log. Made by `open_store`; everything here belongs to the trio thread."""

    def __init__(
        self,
        log: Path,
        lock: int,
        found: Found,
        writer: TrioSqlite,
        helper: TrioSqlite,
        engine: sa.Engine,
        bell: int,
    ) -> None:
        self.base = found.base
        self.head = found.head
        """The last durable event."""
        self.tail_lost = found.tail_lost
        """(expected, found) where a crash of the machine cost the log its tail: append `log.tail_lost`."""
        self.broken: BaseException | None = None
        """What broke the store."""
        self.on_durable: Callable[[Sequence[Event]], None] = _ignore
        """Called with each transaction's events once they are durable. If it raises, the store breaks."""
        self.on_blocked: Callable[[str], None] = _ignore
        """Called with the reason when the head group has failed for the first time; it is tried again."""
        self.on_resumed: Callable[[int, str], None] = _ignore
        """Called with the ns that it was blocked, and the last reason, when such a group is durable, or one
        that took too long (SLOW)."""
        self.append_ns = Histogram(APPEND_BUCKETS_NS)
        """From the append of each step until it was durable."""
        self._log, self._lock = log, lock
        self._places = Places(log, found.base.log_id, lock)
        self._noted_seq = found.head.seq
        self._seq, self._hash = found.head.seq, found.head.hash
        self._queue: deque[_Group] = deque()
        """What is to be written; the last takes more until it is full, or its turn comes."""
        self._recent: deque[Row] = deque(maxlen=RECENT_ROWS)
        """The last durable rows, without a gap, while somebody follows them."""
        self._sought = 0
        """Transactions for which they are kept yet."""
        self._group: _Group | None = None
        self._held = self._closing = self._urgent = False
        self._unhurried = trio.Event()
        self._moved = trio.Event()
        self._waiters: list[tuple[int, int, trio.Event]] = []
        self._committer = Committer(writer.raw, found.head)
        self._checkpointer = Checkpointer(helper, str(log), self)
        self._writer, self._helper, self._engine = writer, helper, engine
        self._bell = bell
        """The eventfd by which the writer's thread wakes this one: `run_sync_soon` would cost more."""
        self._calls: deque[Callable[[], None]] = deque()
        """What it wants to have called, in order."""
        self._unrung = 0
        """Calls that were made before their bell was heard."""
        self.body = trio.CancelScope()
        """What its user does; cancelled if it breaks."""
        self._keeper = trio.CancelScope()
        self._kept = trio.Event()
        self._events = self._groups = self._largest = self._blocked_ns = self._retries = 0

    @property
    def log_id(self) -> str:
        """The log's identity."""
        return self.base.log_id

    # --- appending ---------------------------------------------------------------------------------------

    def append(self, events: Sequence[Event], at: int, *, urgent: bool = True) -> None:
        """Queue the events of one step, which are written in one transaction. `at`: UTC, ns. Never waits.

        What is not `urgent` goes with the next step that is, or after FLUSH_NS: nobody waits for the end of a
        request, and a transaction of its own would only be in the way of the next one's.

        Raises StoreBroken after the store's end, and what `encode_step` raises; then nothing was queued.
        """
        if self.broken is not None or self._closing:
            raise StoreBroken("the event log is closed") from self.broken
        reach("append.before")
        rows = encode_step(events, at, self._seq, self._hash)
        if not rows:
            return
        self._seq, self._hash = rows[-1][0], rows[-1][8]
        queue = self._queue
        if not queue or len(queue[-1].rows) + len(rows) > GROUP_ROWS:
            queue.append(_Group())
        group = queue[-1]
        group.events += events
        group.rows += rows
        group.queued_ns.append(time.monotonic_ns())
        self._urgent |= urgent
        if self._group is None:
            self._proceed()
        reach("append.after")

    async def wait(self, seq: int) -> None:
        """Wait until event `seq` is durable. Raises StoreBroken if it will not be."""
        if seq > self.head.seq:
            if self.broken is not None or self._closing:
                raise StoreBroken("the event log is closed") from self.broken
            event = trio.Event()
            heappush(self._waiters, (seq, id(event), event))
            self._hurry()
            await event.wait()
            if seq > self.head.seq:
                raise StoreBroken(f"event {seq} was not written") from self.broken
        else:
            await trio.lowlevel.checkpoint()

    # --- what can be seen --------------------------------------------------------------------------------

    @property
    def blocked_since(self) -> int | None:
        """Since when (time.monotonic_ns) the head group is refused, or just takes too long; mostly None."""
        if self._group is None:
            return None
        slow = _is_slow(self._group, time.monotonic_ns())
        return self._group.since_ns if slow or self._group.error else None

    @property
    def blocked_error(self) -> str:
        """Why the log cannot be written; empty while it can."""
        if self.blocked_since is None or self._group is None:
            return ""
        return self._group.error or SLOW

    @property
    def owed(self) -> int:
        """Events that have been appended and are not durable yet."""
        return self._seq - self.head.seq

    @property
    def tries(self) -> int:
        """Transactions that have ended, those that failed included."""
        return self._groups + self._retries

    @property
    def stats(self) -> StoreStats:
        """Counts since the log was opened."""
        since_ns = self.blocked_since
        return StoreStats(
            events=self._events,
            groups=self._groups,
            largest_group=self._largest,
            queued=self.owed,
            blocked_ns=self._blocked_ns + (time.monotonic_ns() - since_ns if since_ns is not None else 0),
            retries=self._retries,
            log_bytes=self._checkpointer.log_bytes(),
            wal_bytes=self._checkpointer.wal_bytes(),
            wal_peak_bytes=self._checkpointer.peak_bytes,
            checkpoints=self._checkpointer.checkpoints,
            yields=self._checkpointer.yields,
            paced=self._checkpointer.paced,
        )

    async def records(self, after: int) -> list[Record]:
        """The next page of durable events after number `after`; empty at the head. Raises CursorPruned.

        What has just been written is at hand. The rest is read on a connection of its own: it disturbs no
        append, and costs a millisecond.
        """
        if after < self.base.seq - 1:
            raise CursorPruned(f"the log begins at event {self.base.seq}")
        self._sought = RECENT_GROUPS
        if self._recent and self._recent[0][0] <= after + 1:
            news = islice(self._recent, after + 1 - self._recent[0][0], None)
            recent = [Record(*row) for row in news]
            await trio.lowlevel.checkpoint()
            return recent
        page = sa.select(EVENTS).where(EVENTS.c.seq > after).order_by(EVENTS.c.seq).limit(READ_PAGE_ROWS)

        def query() -> list[Record]:
            with self._engine.connect() as connection:
                return [Record(*row) for row in connection.execute(page)]

        found = cast("list[Record]", await greenlet_spawn(query))
        if found and found[0].seq != after + 1:  # pruned meanwhile, of which we may not have heard yet
            raise CursorPruned(f"the log begins at event {found[0].seq}")
        return found

    async def prune(self, upto: int, hash: bytes) -> None:
        """Delete the events up to number `upto`, as `events.pruning.prune`; nothing is appended meanwhile.
        Raises what that raises. Behind a transaction that is refused it can be cancelled."""
        count = upto + 1 - self.base.seq
        job = partial(prune, self._writer.raw, upto, hash)
        self.base = await self._writer.run(job, may_leave=True)
        self._checkpointer.wrote(max(0, count) // PRUNED_ROWS_PER_PAGE)

    async def shrink(self) -> bool:
        """Give a few free pages back, as `events.pruning.shrink`. Raises what that raises."""
        self._checkpointer.wrote(VACUUM_PAGES)
        return await self._writer.run(partial(shrink, self._writer.raw), may_leave=True)

    # --- writing -----------------------------------------------------------------------------------------

    def _proceed(self) -> None:
        """What is queued is written before the loop next waits, unless another transaction is under way; what
        is in no hurry, a little later."""
        if not self._urgent and self._writable():
            self._unhurried.set()

    def _writable(self) -> bool:
        """There is something to write, and nothing else is being written."""
        return bool(self._queue) and self._group is None and not self._held and self.broken is None

    def _hurry(self) -> None:
        """Write what is queued as soon as that is possible."""
        self._urgent = True

    def begin(self) -> None:
        """Begin a transaction, where one is due: called before trio's loop waits. The tasks that ran have had
        their turn, and what they appended is in it."""
        if self._urgent and self._writable():
            try:
                self._write_next()
            except BaseException as error:
                # By the bell: to break it now would wake nobody, for the loop is about to wait.
                self._ring(partial(self._break, error))

    def hear(self) -> None:
        """Make the calls that the writer's thread asks for: called after trio's loop has waited, so that whom
        they wake has his turn in this round."""
        calls = self._calls
        if not calls and not self._unrung:
            return
        with suppress(BlockingIOError):
            self._unrung -= os.eventfd_read(self._bell)
        while calls:  # whoever has rung has his call here
            self._unrung += 1
            try:
                calls.popleft()()
            except BaseException as error:
                self._break(error)

    def _write_next(self) -> None:
        group = self._group = self._queue.popleft()
        group.since_ns = time.monotonic_ns()
        self._urgent = bool(self._queue)
        self._writer.submit(partial(self._write, group))

    def _write(self, group: _Group) -> None:
        """In the writer's thread."""
        try:
            self._committer.commit(group.rows, partial(self._refused, group))
        except BaseException as error:
            self._ring(partial(self._break, error))
        else:
            self._ring(partial(self._committed, group))

    def _refused(self, group: _Group, error: sqlite3.Error) -> None:
        """In the writer's thread: a try has failed, and there will be another."""
        self._ring(partial(self._failed, group, unwritten(error, self._log)))

    def give_up(self) -> None:
        """Try no more to write what has been refused: then the store breaks."""
        self._committer.give_up.set()

    def _ring(self, call: Callable[[], None]) -> None:
        """In the writer's thread: have trio's make a call."""
        self._calls.append(call)
        os.eventfd_write(self._bell, 1)

    def _failed(self, group: _Group, error: str) -> None:
        first = not group.error
        group.error = error
        self._retries += 1
        if first:
            self._call(self.on_blocked, error)

    def _committed(self, group: _Group) -> None:
        self._group = None
        if self._sought:
            self._sought -= 1
            self._recent.extend(group.rows)
        elif self._recent:
            self._recent.clear()
        self.head = Head(group.rows[-1][0], group.rows[-1][8])
        self._proceed()
        self._groups += 1
        self._events += len(group.rows)
        self._largest = max(self._largest, len(group.rows))
        self._checkpointer.grew(len(group.rows))
        self._moved.set()
        while self._waiters and self._waiters[0][0] <= self.head.seq:
            heappop(self._waiters)[2].set()
        now_ns = time.monotonic_ns()
        for queued_ns in group.queued_ns:
            self.append_ns.add(now_ns - queued_ns)
        self.append_ns.settle(SETTLED_STEPS)
        if group.error or _is_slow(group, now_ns):
            self._blocked_ns += now_ns - group.since_ns
            self._call(self.on_resumed, now_ns - group.since_ns, group.error or SLOW)
        self._call(self.on_durable, group.events)

    def _call(self, callback: Callable[..., None], *arguments: object) -> None:
        try:
            callback(*arguments)
        except Exception as error:
            self._break(error)

    def _break(self, error: BaseException) -> None:
        if self.broken is None:
            self.broken = error
        self._end_waiting()
        self.body.cancel()

    def _end_waiting(self) -> None:
        self._moved.set()
        for _, _, event in self._waiters:
            event.set()
        self._waiters.clear()

    def keep_lock(self) -> int:
        """Another descriptor that holds the log's lock: until it is closed, too, the log is nobody else's."""
        return os.dup(self._lock)

    # --- what happens beside it --------------------------------------------------------------------------

    async def hold(self) -> None:
        """Begin no transaction until `release`; return when none is under way."""
        self._held = True
        await self._until(lambda: self._group is None)

    def release(self) -> None:
        """Go on writing."""
        self._held = False
        self._proceed()

    async def _until(self, condition: Callable[[], bool]) -> None:
        """Wait until `condition` holds, or the store is broken; it is looked at after each commit."""
        while not condition() and self.broken is None:
            if self._moved.is_set():
                self._moved = trio.Event()
            await self._moved.wait()

    async def keep(self) -> None:
        """Checkpoints, the witness and a look at the files, for as long as the log is open."""
        try:
            with self._keeper:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._checkpointer.run)
                    nursery.start_soon(self._witness)
                    nursery.start_soon(self._flush)
        except Exception as error:
            while isinstance(error, ExceptionGroup):
                error = error.exceptions[0]
            self._break(error)
        finally:
            self._kept.set()

    async def _flush(self) -> None:
        while True:
            await self._unhurried.wait()
            self._unhurried = trio.Event()
            while self._queue and not self._urgent:
                left_ns = FLUSH_NS - (time.monotonic_ns() - self._queue[0].queued_ns[0])
                if left_ns <= 0:
                    self._hurry()
                else:
                    await trio.sleep(left_ns / S)

    async def _witness(self) -> None:
        while True:
            with trio.move_on_after(WITNESS_S) as idle:
                await self._until(lambda: self.head.seq > self._noted_seq)
            if moved := await self._helper.run(self._places.look):
                await self._save(moved)
            if not idle.cancelled_caught:
                await self._note(self.head)
                await trio.sleep(WITNESS_S)

    async def _save(self, moved: str) -> None:
        """Nobody would find what is written from here on: save what there is, and raise LogMoved."""
        await self.hold()
        seq = self.head.seq
        saved = await self._helper.run(lambda: self._places.save(self._helper.raw, seq))
        raise LogMoved(f"{moved}, and what comes into it now would be lost; {saved}")

    async def _note(self, head: Head) -> None:
        self._noted_seq = head.seq
        with suppress(OSError):  # a full disk: the old witness stands
            await self._helper.run(partial(write_witness, self._log, head.seq, head.hash))

    async def close(self) -> None:
        """Write what is queued, unless that is impossible; then end everything."""
        self._closing = True
        with trio.CancelScope(shield=True):
            self._hurry()
            with trio.move_on_after(CLOSE_S):
                await self._until(lambda: not self._queue and self._group is None)
            self._committer.give_up.set()
            await self._until(lambda: self._group is None)
            self._keeper.cancel()
            await self._kept.wait()
            self._end_waiting()
            if self.broken is None:
                await self._note(self.head)
