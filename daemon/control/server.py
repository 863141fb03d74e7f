"""The control socket: connections, calls in order, limits.

One task a connection reads calls and answers them one after the other. What it sends waits for its client in
that task alone: a watcher that reads too slowly is told so and dropped, and slows nobody else.
"""

from __future__ import annotations

import errno
import grp
import logging
import os
import socket
import struct
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from importlib.resources import files
from pathlib import Path
from typing import Any

import trio

from daemon.catalog import Catalog
from daemon.control import methods
from daemon.control.inbox import Inbox, LimitExceeded
from daemon.control.varlink import (
    SERVICE,
    Call,
    NotVarlink,
    Parameters,
    VarlinkError,
    error_reply,
    invalid,
    parameters_as,
)
from daemon.control.varlink import parse as parse_call
from daemon.control.varlink import reply as encode_reply
from daemon.driver import Driver
from daemon.leaving import Leaver
from daemon.limits import (
    CONTROL_CONNECTIONS,
    CONTROL_CONNECTIONS_OF_ONE,
    CONTROL_LAST_WORD_BYTES,
    CONTROL_LAST_WORD_S,
    CONTROL_SEND_S,
)
from daemon.logs import Logs
from daemon.reload import Reloader
from daemon.version import VERSION
from events.failpoints import reach
from events.limits import HTTP_ACCEPT_PAUSE_S, SOCKET_PATH_BYTES

log = logging.getLogger("runnerd")

PEER = struct.Struct("3i")  # pid, uid, gid
GID_DIGITS = 10  # the largest that is one has as many
SCARCE = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class DescriptionParameters(Parameters, frozen=True):
    """Of GetInterfaceDescription."""

    interface: str


def description(interface: str) -> str:
    """The text of an interface that is implemented here. Raises VarlinkError."""
    if interface not in (methods.INTERFACE, SERVICE):
        raise VarlinkError(f"{SERVICE}.InterfaceNotFound", interface=interface)
    return (files("daemon.control") / f"{interface}.varlink").read_text("utf-8")


def bind(path: Path, group: str = "") -> socket.socket:
    """The socket, 0660, which does not listen yet; one that nobody has any more is replaced. Raises OSError
    (EADDRINUSE where a daemon has it, EEXIST where something lies there that is no socket, EPERM where it
    cannot be given to the group), and KeyError where there is no such group."""
    gid = group_id(group) if group else -1
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    path = whole(path)
    if path.exists() and not path.is_socket():
        raise OSError(errno.EEXIST, f"{path} is no socket: it is left alone")
    if answers(path):
        raise OSError(errno.EADDRINUSE, f"another daemon listens on {path}")
    if _is_bound(path):
        raise OSError(errno.EADDRINUSE, f"another daemon, which is starting, has {path}")
    path.unlink(missing_ok=True)
    sock = socket.socket(socket.AF_UNIX)
    try:
        sock.bind(str(path))
    except OSError as error:
        sock.close()
        raise OSError(error.errno, error.strerror or str(error), str(path)) from None
    try:
        if group:  # a confined daemon may not ask for it, not even for nothing
            os.chown(path, -1, gid)
    except PermissionError:
        sock.close()
        path.unlink()
        words = f"{path} cannot be given to the group {group}, of which this user is no member"
        raise OSError(errno.EPERM, words) from None
    path.chmod(0o660)
    return sock


def whole(path: Path) -> Path:
    """The path as it is bound: the kernel lists it so, and knows no directory. A relative one may be the only
    one that is short enough."""
    full = path.absolute()
    return full if len(os.fsencode(full)) <= SOCKET_PATH_BYTES else path


def answers(path: Path) -> bool:
    """Whether somebody listens on a socket. Raises OSError where that cannot be told."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except BlockingIOError:  # a full backlog is somebody's, too
            return True
        except (FileNotFoundError, ConnectionRefusedError):
            return False
    return True


def group_id(group: str) -> int:
    """The number of a group that is given by its name, or its number. Raises KeyError."""
    return int(group) if group.isdecimal() and len(group) < GID_DIGITS else grp.getgrnam(group).gr_gid


def _is_bound(path: Path) -> bool:
    """Whether a process has a socket there, though it does not listen on it yet: connecting cannot tell that
    from one that is left of a daemon that was killed."""
    with suppress(OSError), open("/proc/net/unix", "rb") as file:
        return any(line.split(maxsplit=7)[7:] == [os.fsencode(path) + b"\n"] for line in file)
    return False


def listen(path: Path) -> socket.socket:
    """The same, listening. Raises OSError."""
    sock = bind(path)
    sock.listen(CONTROL_CONNECTIONS)
    return sock


class ControlServer:
    """Serves io.runnerd.Control and org.varlink.service."""

    def __init__(
        self, driver: Driver, catalog: Catalog, reloader: Reloader, logs: Logs, leaver: Leaver
    ) -> None:
        self._service = methods.Service(driver, catalog, reloader, logs, leaver)
        self.connections = 0
        """Clients connected now."""
        self._of_one: Counter[int] = Counter()
        """The same by user."""
        self.mistakes = 0
        """Connections that a mistake in runnerd has ended."""

    async def all_told(self, seq: int) -> None:
        """Wait until every watcher has been sent the events up to a number."""
        await self._service.all_told(seq)

    async def serve(self, sock: socket.socket) -> None:
        """Serve until cancelled. The listening socket is the caller's."""
        listener = trio.SocketListener(trio.socket.from_stdlib_socket(sock))
        async with trio.open_nursery() as nursery:
            while True:
                try:
                    nursery.start_soon(self._connection, await listener.accept())
                except OSError as error:
                    if error.errno not in SCARCE:
                        raise
                    log.warning("control socket: cannot accept a connection: %s", error)
                    await trio.sleep(HTTP_ACCEPT_PAUSE_S)

    async def _connection(self, stream: trio.SocketStream) -> None:
        """One client, from its first byte to its last. Whatever goes wrong with it ends nothing but it."""
        pid, uid = _peer(stream)
        self.connections += 1
        self._of_one[uid] += 1
        try:
            async with stream:
                try:
                    self._admit(uid)
                    await self._talk(stream, f"uid {uid} pid {pid}")
                except LimitExceeded as error:
                    refusal = VarlinkError(f"{methods.INTERFACE}.LimitExceeded", message=str(error))
                    await _send(stream, error_reply(refusal))
        except* (trio.BrokenResourceError, trio.ClosedResourceError, OSError):
            pass  # the client went away
        except* Exception:
            log.exception("control socket: a connection failed")
            self.mistakes += 1
        finally:
            self.connections -= 1
            self._of_one[uid] -= 1
            if not self._of_one[uid]:
                del self._of_one[uid]

    def _admit(self, uid: int) -> None:
        """Raises LimitExceeded where too many are connected."""
        more = "connections are open: close one, or try again later"
        if self.connections > CONTROL_CONNECTIONS:
            raise LimitExceeded(f"{CONTROL_CONNECTIONS} {more}")
        if self._of_one[uid] > CONTROL_CONNECTIONS_OF_ONE:
            raise LimitExceeded(f"{CONTROL_CONNECTIONS_OF_ONE} {more}")

    async def _talk(self, stream: trio.SocketStream, by: str) -> None:
        inbox = Inbox(stream)
        try:
            while (message := await inbox.message()) is not None:
                await self._answer(stream, inbox, message, by)
        except NotVarlink as error:
            log.info("control socket: %s sent what is no call: %s", by, error)

    async def _answer(self, stream: trio.SocketStream, inbox: Inbox, message: bytes, by: str) -> None:
        await trio.lowlevel.checkpoint()  # thousands of calls may come at once, and not all of them wait
        try:
            call = parse_call(message)
        except VarlinkError as error:
            await _send(stream, error_reply(error))
            return
        caller = methods.Caller(by)
        try:
            if not call.more:
                await self._send_replies(stream, call, caller)
                return
            async with trio.open_nursery() as nursery:
                nursery.start_soon(inbox.watch, nursery.cancel_scope)
                await self._send_replies(stream, call, caller)
                nursery.cancel_scope.cancel()
        finally:
            caller.over()

    async def _send_replies(self, stream: trio.SocketStream, call: Call, caller: methods.Caller) -> None:
        try:
            async with aclosing(self._replies(call, caller)) as replies:
                async for reply, continues in replies:
                    if not call.oneway and (call.more or not continues):
                        await _send(stream, encode_reply(reply, continues=continues))
                    if not continues:
                        reach("reply.after")
        except VarlinkError as error:
            if not call.oneway:
                await _send(stream, error_reply(error))

    async def _replies(self, call: Call, caller: methods.Caller) -> AsyncGenerator[tuple[Any, bool], None]:
        """The replies to a call, each with whether more follow."""
        interface, _, name = call.method.rpartition(".")
        if not interface:
            raise invalid("method")
        if interface == SERVICE:
            yield self._about(name, call), False
            return
        if interface != methods.INTERFACE:
            raise VarlinkError(f"{SERVICE}.InterfaceNotFound", interface=interface)
        if call.upgrade:
            raise VarlinkError(f"{SERVICE}.MethodNotImplemented", method=call.method)
        if name in methods.ONCE:
            kind, once = methods.ONCE[name]
            yield await once(self._service, parameters_as(kind, call.parameters), caller), False
            return
        if name not in methods.MANY:
            raise VarlinkError(f"{SERVICE}.MethodNotFound", method=call.method)
        kind, many = methods.MANY[name]
        if name in methods.ENDLESS and (call.oneway or not call.more):
            raise VarlinkError(f"{SERVICE}.ExpectedMore")
        async with aclosing(many(self._service, parameters_as(kind, call.parameters), caller)) as replies:
            async for reply in replies:
                yield reply, not reply.get("done", False)

    def _about(self, name: str, call: Call) -> dict[str, Any]:
        if name == "GetInfo":
            parameters_as(methods.Nothing, call.parameters)
            return {
                "vendor": "runnerd",
                "product": "runnerd",
                "version": VERSION,
                "url": "",
                "interfaces": [SERVICE, methods.INTERFACE],
            }
        if name == "GetInterfaceDescription":
            return {
                "description": description(parameters_as(DescriptionParameters, call.parameters).interface)
            }
        raise VarlinkError(f"{SERVICE}.MethodNotFound", method=call.method)


def _peer(stream: trio.SocketStream) -> tuple[int, int]:
    """Who is at the other end (pid, uid): what the kernel knew when it connected."""
    pid, uid, _ = PEER.unpack(stream.socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, PEER.size))
    return pid, uid


async def _send(stream: trio.SocketStream, data: bytes) -> None:
    """Send a reply. Raises OSError for a client that is gone, and trio.BrokenResourceError for one that does
    not read it in time: that is told so, behind what it has not read yet, and the connection ends."""
    rest = memoryview(data)
    with trio.move_on_after(CONTROL_SEND_S) as late:
        while rest:
            rest = rest[await stream.socket.send(rest) :]
    if late.cancelled_caught:
        stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, CONTROL_LAST_WORD_BYTES)
        message = f"nothing was read for {CONTROL_SEND_S:.0f} s: begin again after the last event that came"
        word = error_reply(VarlinkError(f"{methods.INTERFACE}.TooSlow", message=message))
        with trio.move_on_after(CONTROL_LAST_WORD_S):
            await stream.send_all(bytes(rest) + word)
        raise trio.BrokenResourceError("the client reads too slowly")


__all__ = ["ControlServer", "bind", "description", "listen"]
