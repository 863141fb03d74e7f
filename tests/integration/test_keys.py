"""API keys with the whole daemon: they are needed, and they are nowhere afterwards."""

from __future__ import annotations

import json
from pathlib import Path

from tests.integration.live import Live, daemon, ngram

KEY = "sk-4f1d-very-secret"

CONFIG = f"""
apiKeys: [other, {KEY}]
models:
  red: {{cmd: "{ngram()}", memory: 64MiB}}
"""


def ask(live: Live, method: str, path: str, **headers: str) -> int:
    connection = live.connect()
    try:
        body = json.dumps({"model": "red", "max_tokens": 1, "messages": []}) if method == "POST" else None
        connection.request(method, path, body, {name.replace("_", "-"): h for name, h in headers.items()})
        response = connection.getresponse()
        response.read()
        return response.status
    finally:
        connection.close()


def test_a_key_is_needed_and_never_kept(tmp_path: Path) -> None:
    with daemon(tmp_path, CONFIG) as live:
        assert ask(live, "GET", "/health") == ask(live, "GET", "/ready") == 200
        assert ask(live, "POST", "/v1/chat/completions") == 401
        assert ask(live, "POST", "/v1/chat/completions", X_Api_Key=KEY[:-1]) == 401
        assert ask(live, "POST", "/v1/chat/completions", Authorization=f"Bearer {KEY}") == 200
        assert ask(live, "POST", "/v1/chat/completions", X_Api_Key=KEY) == 200
        assert ask(live, "GET", "/v1/models", X_Api_Key=KEY, Host="evil.example") == 403
        assert ask(live, "GET", "/unload", X_Api_Key=KEY, Origin="https://evil.example") == 403
        live.config.write_text(live.config.read_text().replace(KEY, "another"))
        assert live.runnerctl("reload").returncode == 0
        assert ask(live, "GET", "/v1/models", X_Api_Key=KEY) == 401
        assert ask(live, "GET", "/v1/models", X_Api_Key="another") == 200
    kept = [path for path in (tmp_path / "state").rglob("*") if path.is_file()]
    assert kept and not [path for path in kept if KEY.encode() in path.read_bytes()]
    assert KEY not in "".join(live.journal)
