"""What a configuration and a request can say to the scheduler, on the real daemon with real processes."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from events import catalogue as c
from tests.integration.live import PATIENCE_S, Live, daemon, ngram


def models(live: Live) -> dict[str, dict[str, Any]]:
    """The models, as runnerctl shows them."""
    printed = live.runnerctl("--json", "models").stdout
    return {row["id"]: row for row in map(json.loads, printed.splitlines())}


def states(live: Live) -> dict[str, str]:
    """Every model's state."""
    return {id: row["state"] for id, row in models(live).items()}


@contextmanager
def streams(live: Live, *wanted: str) -> Iterator[list[http.client.HTTPResponse]]:
    """Streams that go on until it is left."""
    with ExitStack() as stack:
        yield [stack.enter_context(live.stream(model, 100_000)) for model in wanted]


def test_a_group_swaps_its_members_and_a_persistent_one_stays(tmp_path: Path) -> None:
    config = f"""
models:
  chat: {{cmd: "{ngram()}", memory: 1MiB}}
  code: {{cmd: "{ngram()}", memory: 1MiB}}
  embed: {{cmd: "{ngram()}", memory: 1MiB}}
groups:
  talk: {{members: [chat, code]}}
  forever: {{members: [embed], swap: false, exclusive: false, persistent: true}}
"""
    with daemon(tmp_path, config) as live:
        for model in ("embed", "chat", "code"):
            assert live.chat(model)[0] == 200
        assert states(live) == {"chat": "unloaded", "code": "ready", "embed": "ready"}


def test_what_a_pin_is_in_the_way_of_is_told_at_once(tmp_path: Path) -> None:
    config = f"""
devices: {{host: {{budget: 300MiB}}}}
memoryHeadroom: 0
models:
  a: {{cmd: "{ngram()}", memory: 200MiB}}
  b: {{cmd: "{ngram()}", memory: 200MiB}}
"""
    with daemon(tmp_path, config) as live:
        assert live.chat("a")[0] == 200
        assert live.runnerctl("pin", "a").returncode == 0
        assert models(live)["a"]["pinned"]
        status, body, _ = live.chat("b")
        assert status == 503
        assert "(a, pinned)" in body["error"]["message"]
        refused = live.runnerctl("load", "b")
        assert refused.returncode == 1
        assert "(a, pinned)" in refused.stderr
        assert live.runnerctl("unpin", "a").returncode == 0
        assert live.chat("b")[0] == 200
        assert live.runnerctl("pin", "c").returncode == 1


def test_another_instance_is_loaded_for_a_queue(tmp_path: Path) -> None:
    """Two requests that never end and one slot each: the second gets a runner of its own, the third waits."""
    pace = ngram("--tokens-per-second", "20")
    config = f"models: {{a: {{cmd: '{pace}', memory: 1MiB, slots: 1, instances: {{min: 1, max: 2}}}}}}"
    with daemon(tmp_path, config) as live:
        with streams(live, "a", "a"):
            assert len(models(live)["a"]["runners"]) == 2
        loads = [event.body for event in live.events() if isinstance(event.body, c.RunnerLoad)]
        assert [load.reason.split()[0] for load in loads] == ["request", "queue"]


def test_a_busy_runner_can_be_looked_at(tmp_path: Path) -> None:
    """What a dashboard reads every few seconds has no place in the queue."""
    pace = ngram("--tokens-per-second", "20")
    config = f"models: {{a: {{cmd: '{pace}', memory: 1MiB, slots: 1}}}}"
    with daemon(tmp_path, config) as live, streams(live, "a"):
        assert live.get("/upstream/a/health") == {"status": "ok"}
        kinds = [event.body.kind for event in live.events() if isinstance(event.body, c.RequestArrived)]
        assert kinds == ["chat"]


def test_a_higher_priority_goes_first(tmp_path: Path) -> None:
    pace = ngram("--tokens-per-second", "20")
    with daemon(tmp_path, f"models: {{a: {{cmd: '{pace}', memory: 1MiB, slots: 1}}}}") as live:
        answered: list[str] = []

        def ask(priority: str) -> None:
            connection = live.connect()
            body = json.dumps({"model": "a", "max_tokens": 1, "messages": [{"role": "user", "content": "?"}]})
            connection.request("POST", "/v1/chat/completions", body, {"X-Priority": priority})
            response = connection.getresponse()
            response.read()
            answered.append(priority if response.status == 200 else str(response.status))
            connection.close()

        def waiting(n: int) -> bool:
            return bool(live.get("/running")) and queued(live) == n

        with streams(live, "a"):
            threads = []
            for n, priority in enumerate(("0", "5", "-5", "5000"), start=1):
                threads.append(threading.Thread(target=ask, args=(priority,)))
                threads[-1].start()
                if priority != "5000":
                    live.until(partial(waiting, n))
        for thread in threads:
            thread.join(PATIENCE_S)
        assert sorted(answered) == sorted(["5", "0", "-5", "400"])
        assert [each for each in answered if each != "400"] == ["5", "0", "-5"]


def queued(live: Live) -> int:
    """How many requests wait."""
    count: int = json.loads(live.runnerctl("--json", "status").stdout)["queued"]
    return count


def test_keep_alive_of_a_request_unloads_when_idle(tmp_path: Path) -> None:
    with daemon(tmp_path, f"models: {{a: {{cmd: '{ngram()}', memory: 1MiB}}}}") as live:
        assert live.chat("a")[0] == 200
        assert live.chat("a", keep_alive=0)[0] == 200
        assert live.chat("a", keep_alive="soon")[0] == 400
        live.until(lambda: "runner.unloaded" in live.tags())
        assert states(live) == {"a": "unloaded"}


def test_a_larger_context_serves_where_it_may(tmp_path: Path) -> None:
    command = ngram("--ctx", "${num_ctx}")
    config = f"""
models:
  a: {{cmd: "{command}", memory: 1MiB, options: {{num_ctx: 2048}}, acceptLargerContext: true}}
  b: {{cmd: "{command}", memory: 1MiB, options: {{num_ctx: 2048}}}}
"""
    with daemon(tmp_path, config) as live:
        for model in ("a", "b"):
            for num_ctx in (4096, 1024):
                assert live.chat(model, options={"num_ctx": num_ctx})[0] == 200
        loaded = models(live)
        assert (len(loaded["a"]["runners"]), len(loaded["b"]["runners"])) == (1, 2)


def test_no_first_byte_in_time_is_504_and_frees_the_slot(tmp_path: Path) -> None:
    slow = ngram("--slow-first-byte", "30")
    config = f"models: {{a: {{cmd: '{slow}', memory: 1MiB, slots: 1, firstByteTimeout: 1}}}}"
    with daemon(tmp_path, config) as live:
        status, body, _ = live.chat("a")
        assert (status, body["error"]["code"]) == (504, "first_byte_timeout")
        assert json.loads(live.runnerctl("--json", "ps").stdout)["slots_used"] == 0


def test_a_load_that_ran_out_of_memory_is_tried_again_alone(tmp_path: Path) -> None:
    """The first time it says what a driver says; the second time nothing else is loaded, and it works."""
    once = tmp_path / "once"
    script = tmp_path / "server.sh"
    script.write_text(
        f'if mkdir {once} 2>/dev/null; then echo "CUDA error: out of memory"; exit 1; fi\n'
        f"exec {ngram().replace('${PORT}', '$1')}\n"
    )
    config = f"""
models:
  a: {{cmd: "{ngram()}", memory: 1MiB}}
  b: {{cmd: "sh {script} ${{PORT}}", memory: 1MiB}}
"""
    with daemon(tmp_path, config) as live:
        assert live.chat("a")[0] == 200
        assert live.chat("b")[0] == 200
        assert states(live) == {"a": "unloaded", "b": "ready"}
        assert live.tags().count("model.crowded") == 1
        assert "model.cooling" not in live.tags()
