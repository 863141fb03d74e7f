"""Hold a slot of a model and talk to its runner directly: `python examples/lease.py MODEL`.

Standard library only. The lease is the connection to the control socket: it ends when that is closed.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

SOCKET = os.environ.get("RUNNERD_SOCKET", "/run/runnerd/control.sock")


@contextmanager
def lease(model: str) -> Iterator[dict[str, Any]]:
    """A slot of the model, while the block runs: {"url": …, "runner": …, "token": …}."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(SOCKET)
        call = {"method": "io.runnerd.Control.Acquire", "parameters": {"model": model}, "more": True}
        sock.sendall(json.dumps(call).encode() + b"\0")
        replies = messages(sock)
        for reply in replies:
            print(f"{model}: {reply['state']} {reply['reason']}", file=sys.stderr)
            if reply["state"] == "held":
                break
        threading.Thread(target=listen, args=(replies,), daemon=True).start()
        yield reply["lease"]


def messages(sock: socket.socket) -> Iterator[dict[str, Any]]:
    """The replies' parameters; an error, and the end of the connection, end the program."""
    data = b""
    while part := sock.recv(65536):
        *whole, data = (data + part).split(b"\0")
        for message in whole:
            reply = json.loads(message)
            if "error" in reply:
                sys.exit(f"{reply['error']}: {reply['parameters']}")
            yield reply["parameters"]
    sys.exit("runnerd has ended; Acquire with the token, within a minute, holds the lease again")


def listen(replies: Iterator[dict[str, Any]]) -> None:
    """A notice means: end what you do, and close the connection."""
    for reply in replies:
        print(f"let go within {reply['left_ns'] / 1e9:.0f} s: {reply['reason']}", file=sys.stderr)


def main() -> None:
    model = sys.argv[1] if len(sys.argv) > 1 else sys.exit(__doc__)
    with lease(model) as held:
        runner = http.client.HTTPConnection(held["url"].removeprefix("http://"))
        for question in ("What is the sea?", "And the sky?"):
            message = {"role": "user", "content": question}
            body = json.dumps({"messages": [message], "max_tokens": 32})
            runner.request("POST", f"{held['prefix']}/v1/chat/completions", body)
            answer = json.loads(runner.getresponse().read())
            print(answer["choices"][0]["message"]["content"])


if __name__ == "__main__":
    main()
