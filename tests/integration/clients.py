"""What the stock OpenAI client does with a daemon: the same with every kind of runner."""

from __future__ import annotations

import openai
import pytest
from openai.types.chat import ChatCompletionFunctionToolParam, ChatCompletionMessageParam

from tests.integration.live import PATIENCE_S, Live

SAYS: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Tell me about the sea."}]


def client(live: Live) -> openai.OpenAI:
    """The client as it comes, but for its retries."""
    base = f"http://127.0.0.1:{live.port}/v1"
    return openai.OpenAI(base_url=base, api_key="none", max_retries=0, timeout=PATIENCE_S)


def chats(live: Live, model: str) -> None:
    """A list, one model, a whole answer, and a stream."""
    api = client(live)
    assert model in [row.id for row in api.models.list()]
    assert api.models.retrieve(model).id == model
    answer = api.chat.completions.create(model=model, messages=SAYS, max_tokens=8)
    assert answer.choices[0].message.content
    pieces = api.chat.completions.create(model=model, messages=SAYS, max_tokens=8, stream=True)
    assert len([piece for piece in pieces if piece.choices and piece.choices[0].delta.content]) > 1
    raw = api.chat.completions.with_raw_response.create(
        model=model, messages=SAYS, max_tokens=2, extra_headers={"X-Priority": "5"},
        extra_body={"keep_alive": "5m"},
    )  # fmt: skip
    assert raw.headers["x-runnerd-request"].startswith("q")


def offers_tools(live: Live, model: str) -> None:
    """Tools reach the runner, whatever it makes of them."""
    tool: ChatCompletionFunctionToolParam = {
        "type": "function",
        "function": {
            "name": "tide",
            "parameters": {"type": "object", "properties": {"port": {"type": "string"}}},
        },
    }
    answer = client(live).chat.completions.create(model=model, messages=SAYS, tools=[tool], max_tokens=8)
    assert answer.choices[0].finish_reason in ("stop", "length", "tool_calls")


def embeds(live: Live, model: str) -> None:
    """Vectors of several texts."""
    answer = client(live).embeddings.create(model=model, input=["the sea", "the land"])
    assert len(answer.data) == 2 and len(answer.data[0].embedding) == len(answer.data[1].embedding) > 1


def meets_errors(live: Live) -> None:
    """An unknown model is the client's NotFoundError, which names the nearest."""
    api = client(live)
    with pytest.raises(openai.NotFoundError, match="is not configured"):
        api.chat.completions.create(model="nope", messages=SAYS)
    with pytest.raises(openai.NotFoundError, match="is not configured"):
        api.models.retrieve("nope")
    with pytest.raises(openai.BadRequestError, match="keep_alive"):
        api.chat.completions.create(model="nope", messages=SAYS, extra_body={"keep_alive": "soon"})


def leaves_in_mid_stream(live: Live, model: str, tokens: int) -> None:
    """A client that has read enough closes its stream: its request is cancelled, and its slot is free."""
    with client(live).chat.completions.create(
        model=model, messages=SAYS, max_tokens=tokens, stream=True
    ) as stream:
        assert next(iter(stream)).id
    live.until(lambda: "request.cancelled" in live.tags())
    assert client(live).chat.completions.create(model=model, messages=SAYS, max_tokens=2).choices
