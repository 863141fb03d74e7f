"""A non-blocking socket under trio: no stream, no lock, no checkpoint that is not needed."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Callable
from typing import TypeVar

import outcome
import trio
from trio.lowlevel import (
    Abort,
    Task,
    current_task,
    notify_closing,
    reschedule,
    wait_task_rescheduled,
    wait_writable,
)

from daemon.http.sockets import Sockets
from events.limits import HTTP_READ_BYTES, HTTP_VANISHED_IDLE_S, HTTP_VANISHED_PROBES

T = TypeVar("T")

FAILURES = (OSError, trio.ClosedResourceError, trio.BusyResourceError)
"""What using a wire can raise: the peer's end of it, or ours (it was closed while a task waited on it)."""


class Clock:
    """Coarse monotonic time in seconds: read for nothing on every request, moved on by the reaper."""

    __slots__ = ("now",)

    def __init__(self) -> None:
        self.now = trio.current_time()


class Wire:
    """One connected (or connecting) socket, used by one task at a time; any task may close it."""

    __slots__ = (
        "_clock",
        "_recv",
        "_send",
        "_sockets",
        "_step",
        "_task",
        "closed",
        "fd",
        "on_hang_up",
        "sock",
        "waiting_since",
    )  # fmt: skip

    def __init__(self, sock: socket.socket, clock: Clock, sockets: Sockets) -> None:
        sock.setblocking(False)
        if sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock = sock
        self.closed = False
        self.fd = sock.fileno()
        self.on_hang_up: Callable[[], None] | None = None
        """Called when the peer is gone while nobody reads."""
        self.waiting_since: float | None = None
        """Since when the peer has taken nothing that we want to give it. The reaper looks at it."""
        self._clock = clock
        self._sockets = sockets
        self._step: Callable[[], object] | None = None
        """What is to be called when something has come; then it says what its task gets, or None: go on."""
        self._task: Task | None = None
        self._recv = sock.recv
        self._send = sock.send

    async def connect(self, address: object) -> None:
        """Connect; raises one of FAILURES. The reaper bounds the wait as it does a stalled write."""
        self.waiting_since = self._clock.now
        try:
            self.sock.connect(address)  # type: ignore[arg-type]
        except BlockingIOError:
            if self.sock.family == socket.AF_UNIX:  # a full backlog: nothing to wait on, so it is a refusal
                raise ConnectionRefusedError("its queue of connections is full") from None
            await wait_writable(self.sock)
            error = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if error:
                raise OSError(error, os.strerror(error)) from None
        self.waiting_since = None

    async def recv(self) -> bytes:
        """Wait for bytes; b"" at the end of the stream. Raises one of FAILURES.

        It waits before it tries: on a relay the bytes are mostly not there yet, and a fast peer must not keep
        the task from yielding.
        """
        data = await self.drain(self.recv_now)
        if self.closed:  # since they came
            raise trio.ClosedResourceError
        return data

    @property
    def waits(self) -> bool:
        """Its task waits for what comes, and has not got it yet."""
        return self._step is not None

    def recv_now(self) -> bytes | None:
        """What has come; b"" at the end of the stream, None if nothing has. Raises OSError."""
        try:
            return self._recv(HTTP_READ_BYTES)
        except BlockingIOError:
            return None

    async def drain(self, step: Callable[[], T | None]) -> T:
        """Have `step` called whenever something has come, until it returns something: that. Its task is not
        waked before: to wake it for each token of a stream is two thirds of what one costs. `step` never
        waits; it takes one read's worth, or does nothing if there is nothing after all.

        Raises what `step` does, and ClosedResourceError if it is closed."""
        if self.closed:
            raise trio.ClosedResourceError
        self._sockets.ask(self)
        self._step, self._task = step, current_task()
        result: T = await wait_task_rescheduled(self._abort)
        return result

    def _abort(self, _: object) -> Abort:
        self._step = self._task = None
        return Abort.SUCCEEDED

    def came(self) -> bool:
        """As Owner has it."""
        step = self._step
        if step is None:
            return False
        try:
            result = step()
        except Exception as error:
            self._wake(outcome.Error(error))
        else:
            if result is not None:
                self._wake(outcome.Value(result))
        return True

    def hung_up(self) -> None:
        """As Owner has it."""
        if self.on_hang_up is not None:
            self.on_hang_up()

    def _wake(self, how: outcome.Outcome[object]) -> None:
        task, self._task, self._step = self._task, None, None
        if task is not None:
            reschedule(task, how)

    async def send(self, data: bytes | memoryview) -> None:
        """Send all of it; raises one of FAILURES. Does not yield where the kernel takes it at once."""
        sent = self.send_now(data)
        if sent != len(data):
            await self.send_rest(memoryview(data)[sent:])

    def send_now(self, data: bytes | memoryview) -> int:
        """Send as much as the kernel takes at once: how much that is. Raises OSError."""
        try:
            return self._send(data)
        except BlockingIOError:
            return 0

    async def send_rest(self, rest: memoryview) -> None:
        """Send what the kernel has not taken at once; raises one of FAILURES."""
        while rest:
            self.waiting_since = self._clock.now
            await wait_writable(self.sock)
            if self.closed:
                raise trio.ClosedResourceError
            try:
                rest = rest[self._send(rest) :]
            except BlockingIOError:
                continue
        self.waiting_since = None

    def reset_at_close(self, wanted: bool) -> None:
        """Whether closing it (or the end of this process) resets the connection, so that its peer knows that
        what it got is not all."""
        if not self.closed:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", wanted, 0))

    def close(self) -> None:
        """Close it, and wake the task that waits on it with ClosedResourceError. Idempotent."""
        if not self.closed:
            self.closed = True
            self._sockets.forget(self)
            self._wake(outcome.Error(trio.ClosedResourceError()))
            notify_closing(self.sock)
            self.sock.close()


def notice_vanished(sock: socket.socket) -> None:
    """Have the kernel ask a peer that says nothing whether it is there: one whose machine or network is gone
    never closes, and what waits for it would wait for ever. What a listener accepts inherits it."""
    if sock.family in (socket.AF_INET, socket.AF_INET6):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, HTTP_VANISHED_IDLE_S)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, HTTP_VANISHED_IDLE_S)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, HTTP_VANISHED_PROBES)
