"""The stock OpenAI client, with the project's own small runner."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration import clients
from tests.integration.live import Live, daemon, ngram


@pytest.fixture
def live(tmp_path: Path) -> Iterator[Live]:
    """Two models, and memory for one."""
    config = f"""
devices: {{host: {{budget: 150MiB}}}}
memoryHeadroom: 0
models:
  one: {{cmd: "{ngram("--memory 20")}", memory: 100MiB}}
  two: {{cmd: "{ngram("--memory 20")}", memory: 100MiB}}
"""
    with daemon(tmp_path, config) as running:
        yield running


def test_the_stock_openai_client(live: Live) -> None:
    clients.chats(live, "one")
    clients.chats(live, "two")
    clients.offers_tools(live, "two")
    clients.meets_errors(live)
    clients.leaves_in_mid_stream(live, "one", 100_000)


def test_embeddings(live: Live) -> None:
    clients.embeds(live, "one")
