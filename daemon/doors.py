"""The sockets that clients come in by: made here, or taken from systemd or the program before this one.

A socket that is handed down listens already: whoever connects waits until the daemon accepts. Both kinds come
by systemd's protocol (sd_listen_fds): descriptors from 3 on, $LISTEN_FDS of them, their names in
$LISTEN_FDNAMES. `http` and `control` are systemd's, who made them and removes them; `http.kept` and
`control.kept` were made by the program before this one, which is the same process. So does the lock of the
log come, `log.kept`, for nobody else is to take that between the two programs.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import NoReturn

from daemon.control.server import bind, group_id, whole
from daemon.limits import CONTROL_CONNECTIONS, HANDED_DOWN
from daemon.processes.gate import lower_open_files
from events import failpoints
from events.failpoints import reach
from events.limits import HTTP_BACKLOG

FIRST = 3
"""The first descriptor that is handed down."""
KEPT = ".kept"
LOCK = f"log{KEPT}"
OWN = 2
"""What a program may hand down beside all that systemd does: a control socket of its own, and the lock."""
NAMES = ("http", "control", f"http{KEPT}", f"control{KEPT}", LOCK)
VARIABLES = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")
AGAIN = "RUNNERD_AGAIN"
"""The process in which a program has started the next one."""


class DoorError(ValueError):
    """What was handed down cannot be used. Change the socket units."""


class Doors:
    """See the module. A context manager: at the end the sockets are closed, unless they are `kept`."""

    def __init__(self) -> None:
        self.fronts: list[socket.socket] = []
        """Where HTTP comes in."""
        self._control: socket.socket | None = None
        self._names: dict[int, str] = {}
        """How those were called that were handed down, by descriptor."""
        self.kept = False
        """The next program in this process takes them over."""
        self.again = False
        """A program before this one in this process has handed them down: clients wait already."""
        self.lock: int | None = None
        """The lock of the log, from where one program has closed that to where the next one opens it."""

    def __enter__(self) -> Doors:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self.kept:
            for front in self.fronts:
                front.close()

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """Where HTTP comes in by systemd's sockets, whatever the configuration says."""
        return [front.getsockname()[:2] for front in self.fronts if self._name(front) == "http"]

    @property
    def control_path(self) -> Path | None:
        """Where systemd's control socket is, whatever the configuration says."""
        given = self._control
        return path_of(given) if given is not None and self._name(given) == "control" else None

    def _name(self, sock: socket.socket) -> str:
        return self._names.get(sock.fileno(), "")

    def open_front(self, host: str, port: int) -> None:
        """Take an address, on which nobody can connect yet, unless sockets were handed down for it. Raises
        OSError, saying where."""
        for front in [each for each in self.fronts if self._name(each).endswith(KEPT)]:
            if not _is_at(front, host, port):
                self.fronts.remove(front)
                front.close()
        if not self.fronts:
            self.fronts.append(bind_front(host, port))

    @property
    def control_socket(self) -> socket.socket:
        """The control socket, while it is open."""
        assert self._control is not None, "it is opened first"
        return self._control

    @contextmanager
    def control(self, path: Path, group: str = "") -> Iterator[socket.socket]:
        """The control socket; at the end it is gone, if it is ours. Raises OSError."""
        sock = self._control
        if sock is not None and self._name(sock).endswith(KEPT) and not _is_wanted(sock, path, group):
            path_of(sock).unlink(missing_ok=True)
            sock.close()
            sock = None
        sock = self._control = sock or bind(path, group)
        try:
            yield sock
        finally:
            if not self.kept:
                if self._name(sock) != "control":
                    path.unlink(missing_ok=True)
                sock.close()

    def listen(self) -> None:
        """Let clients connect."""
        for front in self.fronts:
            listen_front(front)
        if self._control is not None:
            self._control.listen(CONTROL_CONNECTIONS)

    def where(self) -> str:
        """Where HTTP comes in, as URLs."""
        return ", ".join(url_of(front) for front in self.fronts)

    def hand_down(self) -> dict[str, str]:
        """Put the sockets and the log's lock where the next program in this process looks for them; what it
        must find in its environment. Whatever else has those descriptors is closed by this."""
        named = [(front.fileno(), self._name(front) or f"http{KEPT}") for front in self.fronts]
        if self._control is not None:
            named.append((self._control.fileno(), self._name(self._control) or f"control{KEPT}"))
        if self.lock is not None:
            named.append((self.lock, LOCK))
        beyond = FIRST + len(named)
        copies = [fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, beyond) for descriptor, _ in named]
        for place, copy in enumerate(copies, FIRST):
            os.dup2(copy, place, inheritable=True)
        names, own = ":".join(name for _, name in named), str(os.getpid())
        return {**dict(zip(VARIABLES, (own, str(len(named)), names), strict=True)), AGAIN: own}


def take(environ: dict[str, str] | os._Environ[str]) -> Doors:
    """What was handed down to this process, which then is in its environment no more. Raises DoorError."""
    doors = Doors()
    doors.again = environ.pop(AGAIN, "") == str(os.getpid())
    found = {name: environ.pop(name, "") for name in VARIABLES}
    if found["LISTEN_PID"] != str(os.getpid()):
        return doors  # it was meant for another process
    for descriptor, name in _listed(found, HANDED_DOWN + (OWN if doors.again else 0)):
        os.set_inheritable(descriptor, False)
        if name == LOCK:
            doors.lock = descriptor
            continue
        doors._names[descriptor] = name
        sock = socket.socket(fileno=descriptor)
        if name.startswith("http"):
            _check(sock, name, (socket.AF_INET, socket.AF_INET6), "a TCP socket")
            doors.fronts.append(sock)
        else:
            _check(sock, name, (socket.AF_UNIX,), "a Unix stream socket")
            if doors._control is not None:
                raise DoorError("systemd hands down two control sockets: one is expected")
            doors._control = sock
    return doors


def start_again(doors: Doors) -> NoReturn:
    """Replace this program by what is on the disk now: the same process, arguments and sockets. Raises
    OSError."""
    environ = {**os.environ, **doors.hand_down()}
    sys.stdout.flush()
    sys.stderr.flush()
    lower_open_files()
    reach("again.before")
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environ | failpoints.rest())


def _listed(found: Mapping[str, str], most: int) -> list[tuple[int, str]]:
    """Descriptors and their names. Raises DoorError."""
    text = found["LISTEN_FDS"]
    count = int(text) if text.isascii() and text.isdigit() else -1
    if not 0 <= count <= most:
        raise DoorError(f"$LISTEN_FDS is {text!r}: expected at most {most} sockets")
    names = found["LISTEN_FDNAMES"].split(":") if found["LISTEN_FDNAMES"] else []
    if len(names) != count:
        raise DoorError(f"$LISTEN_FDNAMES names {len(names)} sockets, $LISTEN_FDS says {count}")
    unknown = [name for name in names if name not in NAMES]
    if unknown:
        raise DoorError(
            f"systemd hands down a socket named {unknown[0]!r}: expected FileDescriptorName=http or "
            "FileDescriptorName=control in the socket unit"
        )
    return list(enumerate(names, FIRST))


def _check(sock: socket.socket, name: str, families: tuple[int, ...], expected: str) -> None:
    """Raises DoorError for a socket that is another kind, or does not listen."""
    try:
        fits = sock.family in families and sock.type == socket.SOCK_STREAM
        fits = fits and bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
    except OSError:
        fits = False
    if not fits:
        raise DoorError(
            f"what systemd hands down as {name!r} is not {expected} that listens (ListenStream=, Accept=no)"
        )


def _is_wanted(kept: socket.socket, path: Path, group: str) -> bool:
    """Whether a control socket is still where it is to be, and its group's."""
    try:
        gid = path.stat().st_gid
    except FileNotFoundError:
        return False
    wanted = (group_id(group),) if group else (os.getegid(), path.parent.stat().st_gid)
    return path_of(kept) == whole(path) and gid in wanted


def _is_at(sock: socket.socket, host: str, port: int) -> bool:
    """Whether a socket listens where it is wanted. Port 0 is any."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    if sock.family != family:
        return False
    found_host, found_port = sock.getsockname()[:2]
    try:
        wanted = {info[4][0] for info in socket.getaddrinfo(host, port, family, socket.SOCK_STREAM)}
    except OSError:
        return False
    return found_host in wanted and port in (0, found_port)


def path_of(sock: socket.socket) -> Path:
    """Where a Unix socket is."""
    name = sock.getsockname()
    return Path(os.fsdecode(name))


def bind_front(host: str, port: int) -> socket.socket:
    """The front door's socket, which does not listen yet: nobody can connect, nor take the address. Raises
    OSError, saying where."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family)
    if family == socket.AF_INET6:  # `::` is no promise to answer on IPv4, too
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    try:
        try:
            sock.bind((host, port))  # with SO_REUSEADDR another that does not listen yet could have it, too
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # old connections may linger
            sock.bind((host, port))
    except OSError as error:
        sock.close()
        raise OSError(error.errno, f"cannot listen on {host}:{port}: {error.strerror or error}") from None
    return sock


def listen_front(sock: socket.socket) -> None:
    """Let clients connect. Their connections must not keep the next start from the address."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.listen(HTTP_BACKLOG)


def url_of(sock: socket.socket) -> str:
    """Where a socket listens, as a URL."""
    host, port = sock.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


__all__ = ["DoorError", "Doors", "bind_front", "listen_front", "start_again", "take", "url_of"]
