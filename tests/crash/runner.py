"""A runner that notes what it was made to do, each start and each request, in a file that outlives it.

    python -I -S runner.py --port N --ledger FILE [--fail] [--stray]

It ends if it is to fail; with a stray, a child of its own in another session would outlive it. Each line is
one write to a file opened for appending: nothing is lost, whoever is killed.
"""

import json
import os
import signal
import socket
import sys
import threading
import time

PAUSE = threading.Event()


def note(ledger: str, **what: object) -> None:
    """Append a line."""
    marker = os.environ["RUNNERD_RUNNER"].partition("/")[2]
    line = json.dumps({"of": marker, **what}) + "\n"
    descriptor = os.open(ledger, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(descriptor, line.encode())
    os.close(descriptor)


def start_time() -> int:
    """When this process began, as the kernel counts."""
    with open("/proc/self/stat", "rb") as file:
        return int(file.read().rpartition(b")")[2].split()[19])


def receive(client: socket.socket, data: bytes) -> tuple[bytes, bytes, bytes]:
    """One request behind bytes that have come already: its head, its body, what follows."""
    while b"\r\n\r\n" not in data:
        more = client.recv(65536)
        if not more:
            raise ConnectionResetError
        data += more
    head, _, data = data.partition(b"\r\n\r\n")
    size = 0
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            size = int(line[15:])
    while len(data) < size:
        data += client.recv(65536)
    return head, data[:size], data[size:]


def serve(client: socket.socket, ledger: str) -> None:
    """One connection."""
    data = b""
    try:
        while True:
            head, body, data = receive(client, data)
            if head.startswith(b"GET"):
                client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
                continue
            asked = json.loads(body)
            note(ledger, request=asked["user"], at=time.monotonic())
            client.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n")
            client.sendall(b"Transfer-Encoding: chunked\r\n\r\n")
            for _ in range(asked["pieces"]):
                PAUSE.wait(asked["pause_ms"] / 1000)
                client.sendall(b"9\r\ndata: {}\n\r\n")
            client.sendall(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")
            note(ledger, answered=asked["user"])
    except OSError:
        client.close()


def main() -> None:
    """Serve until a signal ends it."""
    argv = sys.argv
    ledger = argv[argv.index("--ledger") + 1]
    note(ledger, start=os.getpid(), start_time=start_time())
    if "--fail" in argv:
        sys.exit("it was told to fail")
    if "--stray" in argv and not os.fork():
        os.setsid()
        signal.pause()
    server = socket.create_server(("127.0.0.1", int(argv[argv.index("--port") + 1])), backlog=64)
    while True:
        client, _ = server.accept()
        threading.Thread(target=serve, args=(client, ledger), daemon=True).start()


if __name__ == "__main__":
    main()
