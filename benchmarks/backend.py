"""The fast backend of the benchmarks: a fixed answer, or a stream of chunks at a fixed rate, on one epoll.

usage: python benchmarks/backend.py PORT [CHUNKS_PER_S]

It answers any POST with 1 KB of JSON. A body with `"stream": true` gets `max_tokens` server-sent events,
200 a second unless told otherwise. It is no general HTTP server: it trusts its client.
"""

from __future__ import annotations

import re
import select
import socket
import sys
import time

ANSWER_BYTES = 1024
CHUNKS_PER_S = 200

EVENT = b'data: {"choices":[{"delta":{"content":"word "}}]}\n\n'
CHUNK = b"%x\r\n%b\r\n" % (len(EVENT), EVENT)
LAST_CHUNK = b"0\r\n\r\n"
STREAM_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"

_text = b'{"id":"x","object":"chat.completion","choices":[{"message":{"content":"%b"}}]}'
_body = _text % (b"a" * (ANSWER_BYTES - len(_text) + 2))
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (
    len(_body),
    _body,
)

LENGTH = re.compile(rb"content-length: (\d+)", re.IGNORECASE)
TOKENS = re.compile(rb'"max_tokens": ?(\d+)')


class Backend:
    """All connections, and the streams that are under way."""

    def __init__(self, listener: socket.socket, chunks_per_s: float = CHUNKS_PER_S) -> None:
        self.listener = listener
        self.pause_s = 1 / chunks_per_s
        self.epoll = select.epoll()
        self.epoll.register(listener.fileno(), select.EPOLLIN)
        self.peers: dict[int, socket.socket] = {}
        self.read: dict[int, bytes] = {}
        self.streams: dict[int, int] = {}
        """Descriptor to the chunks that are still to be sent."""

    def run(self) -> None:
        """For ever."""
        due = 0.0
        while True:
            wait = max(0.0, due - time.monotonic()) if self.streams else -1
            for fd, _ in self.epoll.poll(wait):
                if fd == self.listener.fileno():
                    self.accept()
                else:
                    self.receive(fd)
            now = time.monotonic()
            if self.streams and now >= due:
                due = max(due + self.pause_s, now - 0.1)
                self.send_chunks()

    def accept(self) -> None:
        """Take one connection."""
        sock, _ = self.listener.accept()
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.peers[sock.fileno()] = sock
        self.read[sock.fileno()] = b""
        self.epoll.register(sock.fileno(), select.EPOLLIN)

    def receive(self, fd: int) -> None:
        """Read; answer if the request is whole."""
        try:
            data = self.peers[fd].recv(65536)
        except OSError:
            data = b""
        if not data:
            return self.drop(fd)
        data = self.read[fd] + data
        end = data.find(b"\r\n\r\n")
        length = LENGTH.search(data, 0, end) if end >= 0 else None
        if end < 0 or (length is not None and len(data) < end + 4 + int(length[1])):
            self.read[fd] = data
            return None
        self.read[fd] = b""
        if data.find(b'"stream": true', end) < 0:
            self.peers[fd].sendall(ANSWER)
        else:
            tokens = TOKENS.search(data, end)
            self.peers[fd].sendall(STREAM_HEAD)
            self.streams[fd] = int(tokens[1]) if tokens else CHUNKS_PER_S
        return None

    def send_chunks(self) -> None:
        """One chunk on each stream."""
        for fd, left in list(self.streams.items()):
            if left:
                self.streams[fd] = left - 1
            else:
                del self.streams[fd]
            try:
                self.peers[fd].sendall(CHUNK if left else LAST_CHUNK)
            except OSError:
                self.drop(fd)

    def drop(self, fd: int) -> None:
        """The client is gone."""
        self.streams.pop(fd, None)
        self.read.pop(fd, None)
        sock = self.peers.pop(fd, None)
        if sock is not None:
            self.epoll.unregister(fd)
            sock.close()


def main() -> None:
    """Listen, say so, serve."""
    listener = socket.create_server(("127.0.0.1", int(sys.argv[1])), backlog=1024)
    print("listening on", listener.getsockname()[1], flush=True)
    Backend(listener, float(sys.argv[2]) if len(sys.argv) > 2 else CHUNKS_PER_S).run()


if __name__ == "__main__":
    main()
