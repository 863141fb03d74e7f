"""The stock OpenAI and Anthropic clients, with a real llama-server behind the daemon."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import anthropic
import pytest
from anthropic.types import MessageParam

from tests.integration import clients
from tests.integration.live import PATIENCE_S, Live, daemon

SAYS: list[MessageParam] = [{"role": "user", "content": "Tell me about the sea."}]


@pytest.fixture
def live(tmp_path: Path, llama_server: str, weights: dict[str, Path]) -> Iterator[Live]:
    """Two models, and memory for one."""
    serve = f"{llama_server} --host 127.0.0.1 --port ${{PORT}} -t 1 --jinja"
    config = f"""
devices: {{host: {{budget: 300MiB}}}}
memoryHeadroom: 0
models:
  red: {{cmd: "{serve} -c 131072 -np 2 -m {weights["red"]}", memory: 200MiB}}
  vectors: {{cmd: "{serve} -m {weights["blue"]} --embeddings --pooling mean", memory: 200MiB}}
"""
    with daemon(tmp_path, config) as running:
        yield running


def test_the_stock_openai_client(live: Live) -> None:
    clients.chats(live, "red")
    clients.offers_tools(live, "red")
    clients.embeds(live, "vectors")
    clients.meets_errors(live)
    clients.leaves_in_mid_stream(live, "red", 60_000)


def test_the_stock_anthropic_client(live: Live) -> None:
    base = f"http://127.0.0.1:{live.port}"
    api = anthropic.Anthropic(base_url=base, api_key="none", max_retries=0, timeout=PATIENCE_S)
    answer = api.messages.create(model="red", messages=SAYS, max_tokens=8)
    assert answer.content[0].type == "text" and answer.usage.output_tokens == 8
    with api.messages.stream(model="red", messages=SAYS, max_tokens=8) as stream:
        assert "".join(stream.text_stream)
    assert api.messages.count_tokens(model="red", messages=SAYS).input_tokens > 1
    with pytest.raises(anthropic.NotFoundError, match="is not configured"):
        api.messages.create(model="nope", messages=SAYS, max_tokens=8)
