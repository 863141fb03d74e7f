"""A real, if modest, language model server: an n-gram model trained at start on the text beside this file.

    python ngram_runner.py --port 8000 [--name NAME] [--slots 2] [--memory 200MiB] [--load-seconds 2]

Speaks the parts of OpenAI's API that runnerd's demonstration and tests use (chat, completions, embeddings,
models; streaming; /health as llama-server has it), with slots, real memory and a real load time. Standard
library only. The switches under "misbehaviour" are for tests: they make it slow, hang, crash, lie or refuse.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from typing import Any

CORPUS = Path(__file__).with_name("corpus.txt")
ORDER = 4
"""Words that a next word is chosen by, at most; fewer where the longer context was never seen."""
EMBEDDING_SIZE = 64
UNITS = {"": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}


def size_bytes(text: str) -> int:
    """`200MiB` as bytes."""
    match = re.fullmatch(r"(\d+)(KiB|MiB|GiB)?", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"expected a size such as 200MiB, found {text!r}")
    return int(match[1]) * UNITS[match[2] or ""]


class NGram:
    """Counts of which word followed which words."""

    def __init__(self) -> None:
        self.next: dict[tuple[str, ...], list[str]] = defaultdict(list)

    def train(self, words: list[str]) -> None:
        """Count a text."""
        for i, word in enumerate(words):
            for order in range(min(ORDER, i) + 1):
                self.next[tuple(words[i - order : i])].append(word)

    def generate(self, prompt: str, chance: random.Random) -> Iterator[str]:
        """Words without end, each with the space or mark before it."""
        context = split(prompt)[-ORDER:]
        while True:
            for start in range(len(context) + 1):
                choices = self.next.get(tuple(context[start:]))
                if choices:
                    break
            word = chance.choice(choices or ["the"])
            context = [*context, word][-ORDER:]
            yield word if word in ".,;:?!" else " " + word


def split(text: str) -> list[str]:
    """Words and marks."""
    return re.findall(r"[\w'-]+|[.,;:?!]", text)


def embed(text: str) -> list[float]:
    """Hashed counts of words and pairs of words, normalised."""
    vector = [0.0] * EMBEDDING_SIZE
    words = [word.lower() for word in split(text)]
    for feature in words + [f"{a} {b}" for a, b in pairwise(words)]:
        digest = hashlib.blake2b(feature.encode(), digest_size=8).digest()
        vector[digest[0] % EMBEDDING_SIZE] += 1 if digest[1] & 1 else -1
    length = math.sqrt(sum(x * x for x in vector)) or 1.0
    return [x / length for x in vector]


def tool_calls(message: dict[str, Any], tools: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A call of each tool that a user's message names, with the word behind its name for each argument."""
    calls: list[dict[str, Any]] = []
    text = str(message.get("content", "")) if message.get("role") == "user" else ""
    for function in (tool.get("function", {}) for tool in tools):
        match = re.search(rf"\b{re.escape(str(function.get('name')))}\b\W*(\w*)", text)
        if match:
            names = function.get("parameters", {}).get("properties", {})
            made = {"name": function["name"], "arguments": json.dumps(dict.fromkeys(names, match[1]))}
            number = len(calls)
            calls.append({"index": number, "id": f"call{number}", "type": "function", "function": made})
    return calls


def usage_of(prompt: int, completion: int) -> dict[str, int]:
    """Tokens, as OpenAI counts them."""
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


class Server(ThreadingHTTPServer):
    """The server's state: the model, the slots, how it is to misbehave."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.model = NGram()
        self.weights = bytearray()
        self.leaked: list[bytearray] = []
        self.ready = threading.Event()
        self.slots = threading.Semaphore(options.slots)
        self.served = 0
        if options.socket:
            self.address_family = socket.AF_UNIX
            Path(options.socket).unlink(missing_ok=True)
        handler = LocalHandler if options.socket else Handler
        super().__init__(options.socket or (options.host, options.port), handler)

    def server_bind(self) -> None:
        """As the standard library's, but for the look-up of our own name, and for Unix sockets."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_name, self.server_port = "localhost", self.options.port

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that left is no error."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)

    def load(self) -> None:
        """Train and allocate, in as many seconds as asked."""
        options = self.options
        steps, began = 10, time.monotonic()
        words = split(CORPUS.read_text())
        for i in range(steps):
            part = bytearray(options.memory // steps)
            part[::4096] = b"\1" * len(part[::4096])  # touched, so that it is really there
            self.weights += part
            if options.load_seconds:
                print(f"load: {10 * (i + 1)} %", file=sys.stderr, flush=True)
                time.sleep(max(0.0, began + options.load_seconds * (i + 1) / steps - time.monotonic()))
        self.model.train(words)
        if options.noisy:
            print("x" * options.noisy, file=sys.stderr, flush=True)
        if options.fail_load:
            print(options.fail_load, file=sys.stderr, flush=True)
            os._exit(1)
        if not options.hang_load:
            self.ready.set()


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    server: Server
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""

    def address_string(self) -> str:
        """A Unix socket's client has no address."""
        return "local"

    def do_GET(self) -> None:
        """Health, and what is served."""
        server, options = self.server, self.server.options
        if self.path == "/health":
            if options.hang_all and server.served:
                threading.Event().wait()
            if server.ready.is_set() or options.lie_health:
                self.reply(200, {"status": "ok"})
            else:
                self.reply(
                    503, {"error": {"message": "Loading model", "type": "unavailable_error", "code": 503}}
                )
        elif self.path == "/v1/models":
            self.reply(200, {"object": "list", "data": [{"id": options.name, "object": "model"}]})
        elif self.path == "/slots":
            self.reply(200, [{"id": i} for i in range(options.slots)])
        else:
            self.reply(404, {"error": {"message": "File Not Found", "type": "not_found_error", "code": 404}})

    def do_POST(self) -> None:
        """Generation and embeddings."""
        server = self.server
        data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if not server.ready.is_set():
            return self.reply(503, {"error": {"message": "Loading model", "code": 503}})
        try:
            asked = json.loads(data)
            if not isinstance(asked, dict):
                raise ValueError("expected an object")
        except ValueError as error:
            return self.reply(400, {"error": {"message": str(error), "code": 400}})
        with server.slots:
            server.served += 1
            self.misbehave()
            if self.path == "/v1/embeddings":
                texts = asked.get("input", "")
                texts = texts if isinstance(texts, list) else [texts]
                rows = [
                    {"object": "embedding", "index": i, "embedding": embed(str(t))}
                    for i, t in enumerate(texts)
                ]
                self.reply(200, {"object": "list", "model": server.options.name, "data": rows})
            elif self.path in ("/v1/chat/completions", "/v1/completions"):
                self.complete(asked, chat=self.path.endswith("chat/completions"))
            else:
                self.reply(404, {"error": {"message": "File Not Found", "code": 404}})

    def misbehave(self) -> None:
        """Crash, hang or leak, as asked."""
        options, served = self.server.options, self.server.served
        if options.leak:
            self.server.leaked.append(bytearray(options.leak))
        if options.hang_requests and served >= options.hang_requests:
            threading.Event().wait()
        if options.crash_after_requests == served and not options.crash_after_bytes:
            os.abort()  # at once: a signal to the process may find another thread first
        time.sleep(options.slow_first_byte)

    # --- answers -----------------------------------------------------------------------------------------

    def reply(self, status: int, body: Any) -> None:
        """A JSON answer."""
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.put(data)

    def put(self, data: bytes) -> None:
        """Send, unless the test wants the connection cut here."""
        options = self.server.options
        self.sent = getattr(self, "sent", 0) + len(data)
        if options.crash_after_bytes and self.sent >= options.crash_after_bytes:
            os.abort()  # at once: a signal to the process may find another thread first
        if options.truncate_after and self.sent >= options.truncate_after:
            self.wfile.write(data[: max(1, len(data) // 2)])
            self.connection.shutdown(socket.SHUT_RDWR)
            raise ConnectionResetError
        self.wfile.write(data)

    def tokens(self, prompt: str, asked: dict[str, Any]) -> Iterator[str]:
        """As many words as asked, at the pace that was set; fewer where a stop text comes."""
        options = self.server.options
        limit = asked.get("max_tokens") or asked.get("max_completion_tokens") or 64
        stops = asked.get("stop") or []
        stops = [stops] if isinstance(stops, str) else stops
        chance = random.Random(asked.get("seed", 1))
        for _, token in zip(range(int(limit)), self.server.model.generate(prompt, chance), strict=False):
            if any(stop in token for stop in stops):
                return
            if options.tokens_per_second:
                time.sleep(1 / options.tokens_per_second)
            yield token

    def complete(self, asked: dict[str, Any], *, chat: bool) -> None:
        """A chat or text completion, streamed or whole."""
        messages = asked.get("messages") or []
        prompt = (
            " ".join(str(m.get("content", "")) for m in messages) if chat else str(asked.get("prompt", ""))
        )
        prompt = " ".join(prompt.split()[-self.server.options.ctx :])
        calls = tool_calls(messages[-1], asked.get("tools") or []) if chat and messages else []
        kind = "chat.completion" if chat else "text_completion"
        head = {
            "id": f"{kind}-{self.server.served}",
            "created": int(time.time()),
            "model": self.server.options.name,
        }
        if asked.get("stream"):
            head["object"] = kind + ".chunk" if chat else kind
            tokens = iter(()) if calls else self.tokens(prompt, asked)
            usage = (asked.get("stream_options") or {}).get("include_usage")
            return self.stream(head, tokens, calls, chat, len(split(prompt)) if usage else None)
        words = [] if calls else list(self.tokens(prompt, asked))
        text = "".join(words).strip()
        choice: dict[str, Any] = {"index": 0, "finish_reason": "tool_calls" if calls else "length"}
        message = {"role": "assistant", "content": text, **({"tool_calls": calls} if calls else {})}
        choice |= {"message": message} if chat else {"text": text}
        used = usage_of(len(split(prompt)), len(words))
        self.reply(200, {**head, "object": kind, "choices": [choice], "usage": used})

    def stream(
        self,
        head: dict[str, Any],
        tokens: Iterator[str],
        calls: list[dict[str, Any]],
        chat: bool,
        prompt_tokens: int | None,
    ) -> None:
        """Server-sent events, one a word; the tokens of the prompt where their number is wanted."""
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        count = 0
        for count, token in enumerate(tokens, 1):  # noqa: B007 (used below)
            self.event({**head, "choices": [self.delta(token, None, chat)]})
        for call in calls:
            part = {"index": 0, "finish_reason": None, "delta": {"tool_calls": [call]}}
            self.event({**head, "choices": [part]})
        self.event({**head, "choices": [self.delta("", "tool_calls" if calls else "length", chat)]})
        if prompt_tokens is not None:
            self.event({**head, "choices": [], "usage": usage_of(prompt_tokens, count)})
        self.chunk(b"data: [DONE]\n\n")
        self.put(b"0\r\n\r\n")

    @staticmethod
    def delta(token: str, finish: str | None, chat: bool) -> dict[str, Any]:
        """One choice of one event."""
        words: dict[str, Any] = {"delta": {"content": token} if token else {}} if chat else {"text": token}
        return {"index": 0, "finish_reason": finish, **words}

    def event(self, body: dict[str, Any]) -> None:
        """One event."""
        self.chunk(b"data: " + json.dumps(body).encode() + b"\n\n")

    def chunk(self, data: bytes) -> None:
        """One chunk of a chunked body."""
        self.put(b"%x\r\n%b\r\n" % (len(data), data))


class LocalHandler(Handler):
    """One connection on a Unix socket, which has no TCP option to be set."""

    disable_nagle_algorithm = False


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--socket", metavar="PATH", help="serve on a Unix socket instead")
    parser.add_argument("--name", default="ngram")
    parser.add_argument("--slots", type=int, default=1, help="requests served at once; the others wait")
    parser.add_argument("--ctx", type=int, default=4096, help="words of the prompt that are looked at")
    parser.add_argument("--memory", type=size_bytes, default=0, help="weights: really allocated")
    parser.add_argument("--load-seconds", type=float, default=0.0)
    parser.add_argument("--tokens-per-second", type=float, default=0.0, help="0: as fast as it goes")
    bad = parser.add_argument_group("misbehaviour, for tests")
    bad.add_argument("--fail-load", metavar="TEXT", help="say TEXT and exit 1 instead of becoming ready")
    bad.add_argument("--hang-load", action="store_true", help="never become ready")
    bad.add_argument("--lie-health", action="store_true", help="say that it is ready before it is")
    bad.add_argument(
        "--crash-after-requests", type=int, default=0, metavar="N", help="abort under the Nth request"
    )
    bad.add_argument(
        "--crash-after-bytes", type=int, default=0, metavar="N", help="abort after N bytes of an answer"
    )
    bad.add_argument("--truncate-after", type=int, default=0, metavar="N", help="cut an answer after N bytes")
    bad.add_argument(
        "--hang-requests", type=int, default=0, metavar="N", help="answer nothing from the Nth request on"
    )
    bad.add_argument("--hang-all", action="store_true", help="nor the health probe, after the first request")
    bad.add_argument("--slow-first-byte", type=float, default=0.0, metavar="SECONDS")
    bad.add_argument("--refuse-stop", action="store_true", help="ignore SIGTERM")
    bad.add_argument(
        "--leak", type=size_bytes, default=0, metavar="SIZE", help="keep so much for each request"
    )
    bad.add_argument("--spawn-child", action="store_true", help="leave a child behind")
    bad.add_argument("--noisy", type=int, default=0, metavar="N", help="print N bytes")
    return parser.parse_args()


def main() -> None:
    """Serve until a signal."""
    options = parse()
    server = Server(options)
    signal.signal(signal.SIGINT, lambda *_: os._exit(0))
    signal.signal(signal.SIGTERM, signal.SIG_IGN if options.refuse_stop else lambda *_: os._exit(0))
    if options.spawn_child:
        subprocess.Popen(["sleep", "1000"], start_new_session=True)
    threading.Thread(target=server.load, daemon=True).start()
    server.serve_forever(poll_interval=3600)


if __name__ == "__main__":
    main()
