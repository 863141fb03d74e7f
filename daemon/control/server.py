"""The control socket: connections, calls in order, limits.

One task a connection reads calls and answers them one after the other. What it sends waits for its client in
that task alone: a watcher that reads too slowly is told so and dropped, and slows nobody else.
"""

from __future__ import annotations

import errno
import logging
import socket
import struct
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from importlib.resources import files
from pathlib import Path
from typing import Any

import trio

from daemon.catalog import Catalog
from daemon.control import methods
from daemon.control.varlink import (
    SERVICE,
    Call,
    NotVarlink,
    Splitter,
    VarlinkError,
    error_reply,
    parameters_as,
)
from daemon.control.varlink import parse as parse_call
from daemon.control.varlink import reply as encode_reply
from daemon.driver import Driver
from daemon.version import VERSION
from events.limits import CONTROL_CONNECTIONS, CONTROL_READ_BYTES, CONTROL_SEND_S

log = logging.getLogger("runnerd")

PEER = struct.Struct("3i")  # pid, uid, gid


def description(interface: str) -> str:
    """The text of an interface that is implemented here. Raises VarlinkError."""
    if interface not in (methods.INTERFACE, SERVICE):
        raise VarlinkError(f"{SERVICE}.InterfaceNotFound", interface=interface)
    return (files("daemon.control") / f"{interface}.varlink").read_text("utf-8")


def listen(path: Path) -> socket.socket:
    """The listening socket, 0660. Raises OSError (EADDRINUSE where a daemon answers there)."""
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    with suppress(FileNotFoundError, ConnectionRefusedError), socket.socket(socket.AF_UNIX) as probe:
        probe.connect(str(path))
        raise OSError(errno.EADDRINUSE, f"another daemon answers on {path}")
    path.unlink(missing_ok=True)
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(path))
    path.chmod(0o660)
    sock.listen(CONTROL_CONNECTIONS)
    return sock


class ControlServer:
    """Serves io.runnerd.Control and org.varlink.service."""

    def __init__(self, driver: Driver, catalog: Catalog) -> None:
        self._service = methods.Service(driver, catalog)
        self._connections = 0

    async def serve(self, sock: socket.socket) -> None:
        """Serve until cancelled. The listening socket is the caller's."""
        listener = trio.SocketListener(trio.socket.from_stdlib_socket(sock))
        async with trio.open_nursery() as nursery:
            while True:
                stream = await listener.accept()
                nursery.start_soon(self._connection, stream)

    async def _connection(self, stream: trio.SocketStream) -> None:
        if self._connections >= CONTROL_CONNECTIONS:
            await stream.aclose()
            return
        self._connections += 1
        pid, uid, _ = PEER.unpack(stream.socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, PEER.size))
        try:
            async with stream:
                await self._talk(stream, f"uid {uid} pid {pid}")
        except (trio.BrokenResourceError, trio.ClosedResourceError, OSError):
            pass  # the client went away
        finally:
            self._connections -= 1

    async def _talk(self, stream: trio.SocketStream, by: str) -> None:
        splitter = Splitter()
        while data := await stream.receive_some(CONTROL_READ_BYTES):
            try:
                for message in splitter.feed(data):
                    await self._answer(stream, message, by)
            except NotVarlink as error:
                log.info("control socket: %s sent what is no call: %s", by, error)
                return

    async def _answer(self, stream: trio.SocketStream, message: bytes, by: str) -> None:
        try:
            call = parse_call(message)
        except VarlinkError as error:
            await _send(stream, error_reply(error))
            return
        if not call.more:
            await self._send_replies(stream, call, by)
            return
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_until_gone, stream, nursery.cancel_scope)
            await self._send_replies(stream, call, by)
            nursery.cancel_scope.cancel()

    async def _send_replies(self, stream: trio.SocketStream, call: Call, by: str) -> None:
        try:
            async with aclosing(self._replies(call, by)) as replies:
                async for reply, continues in replies:
                    if not call.oneway and (call.more or not continues):
                        await _send(stream, encode_reply(reply, continues=continues))
        except VarlinkError as error:
            if not call.oneway:
                await _send(stream, error_reply(error))

    async def _replies(self, call: Call, by: str) -> AsyncGenerator[tuple[Any, bool], None]:
        """The replies to a call, each with whether more follow."""
        interface, _, name = call.method.rpartition(".")
        if interface == SERVICE:
            yield self._about(name, call), False
            return
        if interface != methods.INTERFACE:
            raise VarlinkError(f"{SERVICE}.InterfaceNotFound", interface=interface)
        if call.upgrade:
            raise VarlinkError(f"{SERVICE}.MethodNotImplemented", method=call.method)
        if name in methods.ONCE:
            kind, once = methods.ONCE[name]
            yield await once(self._service, parameters_as(kind, call.parameters), by), False
            return
        if name not in methods.MANY:
            raise VarlinkError(f"{SERVICE}.MethodNotFound", method=call.method)
        kind, many = methods.MANY[name]
        if name in methods.ENDLESS and not call.more:
            raise VarlinkError(f"{SERVICE}.ExpectedMore")
        async with aclosing(many(self._service, parameters_as(kind, call.parameters), by)) as replies:
            async for reply in replies:
                yield reply, not reply.get("done", False)

    def _about(self, name: str, call: Call) -> dict[str, Any]:
        if name == "GetInfo":
            return {
                "vendor": "runnerd",
                "product": "runnerd",
                "version": VERSION,
                "url": "",
                "interfaces": [SERVICE, methods.INTERFACE],
            }
        if name == "GetInterfaceDescription":
            interface = call.parameters.get("interface")
            if not isinstance(interface, str):
                raise VarlinkError(f"{SERVICE}.InvalidParameter", parameter="interface")
            return {"description": description(interface)}
        raise VarlinkError(f"{SERVICE}.MethodNotFound", method=call.method)


async def _until_gone(stream: trio.SocketStream, scope: trio.CancelScope) -> None:
    """Notice that a client has left while it is being told nothing."""
    await trio.lowlevel.wait_readable(stream.socket.fileno())
    if await stream.socket.recv(1, socket.MSG_PEEK) == b"":
        scope.cancel()


async def _send(stream: trio.SocketStream, data: bytes) -> None:
    """Send a reply. Raises trio.BrokenResourceError for a client that does not read it in time: after a part
    of a message nothing more can be told it, so the connection ends."""
    with trio.move_on_after(CONTROL_SEND_S) as scope:
        await stream.send_all(data)
    if scope.cancelled_caught:
        raise trio.BrokenResourceError("the client reads too slowly")


__all__ = ["ControlServer", "description", "listen"]
