"""What model servers' answers become: Ollama's lines, whatever pieces the bytes come in."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from daemon.http.answers import JSON
from daemon.ollama import replies, sse
from daemon.ollama.loaded import Loaded
from daemon.ollama.replies import NDJSON, TextReply
from daemon.ollama.sse import Events, TooLong
from daemon.ollama.vectors import VectorReply

SSE = b"text/event-stream; charset=utf-8"


class Clock:
    """A second with every look."""

    def __init__(self) -> None:
        self.ns = 0

    def __call__(self) -> int:
        self.ns += 1_000_000_000
        return self.ns


def event(**members: Any) -> bytes:
    return b"data: " + json.dumps(members).encode() + b"\n\n"


def delta(finish: str | None = None, **words: Any) -> bytes:
    return event(choices=[{"index": 0, "delta": words, "finish_reason": finish}])


def reply(form: str = "chat", *, streamed: bool = True, **more: Any) -> TextReply:
    made = TextReply(form, "m:latest", streamed=streamed, clock=Clock(), **more)
    made.began()
    return made


def said(made: TextReply | VectorReply, *pieces: bytes, content_type: bytes = SSE) -> list[dict[str, Any]]:
    """The lines of a whole answer."""
    assert made.head(200, content_type)[0] == 200
    body = b"".join(made.feed(piece) for piece in pieces) + made.end()
    lines = [json.loads(line) for line in body.splitlines()]
    for line in lines:
        line.pop("created_at", None)
    return lines


USAGE = {"usage": {"prompt_tokens": 20, "completion_tokens": 3, "total_tokens": 23}}
TIMINGS = {
    "timings": {
        "cache_n": 19,
        "prompt_n": 1,
        "prompt_ms": 0.5,
        "predicted_n": 3,
        "predicted_ms": 2.25,
        "x": 1,
    }
}
DONE = b"data: [DONE]\n\n"

STREAM = b"".join(
    [
        delta(role="assistant", content=None),
        b": a comment\n\n",
        delta(reasoning_content="Hmm: "),
        delta(reasoning_content="\u00fcber \u2192 \U0001f600"),
        delta(content="Hello"),
        delta(content=" w\u00f6rld\n"),
        delta(
            tool_calls=[
                {"index": 0, "id": "x1", "type": "function", "function": {"name": "f", "arguments": ""}}
            ]
        ),
        delta(tool_calls=[{"index": 0, "function": {"arguments": '{"city": "K\\u00f6'}}]),
        delta(tool_calls=[{"index": 1, "id": "x2", "function": {"name": "g", "arguments": ""}}]),
        delta(tool_calls=[{"index": 0, "function": {"arguments": 'ln",\n "n": [1, 2.5, null]}'}}]),
        delta("tool_calls"),
        event(choices=[], **USAGE, **TIMINGS),
        DONE,
    ]
)


def figures(line: dict[str, Any]) -> dict[str, Any]:
    names = (
        "total_duration",
        "load_duration",
        "prompt_eval_count",
        "prompt_eval_duration",
        "eval_count",
        "eval_duration",
    )
    return {name: line[name] for name in names if name in line}


# --- streams -----------------------------------------------------------------------------------------------


def test_a_streamed_chat() -> None:
    lines = said(reply(), STREAM)
    assert [line["message"] for line in lines] == [
        {"role": "assistant", "content": "", "thinking": "Hmm: "},
        {"role": "assistant", "content": "", "thinking": "\u00fcber \u2192 \U0001f600"},
        {"role": "assistant", "content": "Hello"},
        {"role": "assistant", "content": " w\u00f6rld\n"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [
                {
                    "function": {
                        "index": 0,
                        "name": "f",
                        "arguments": {"city": "K\u00f6ln", "n": [1, 2.5, None]},
                    },
                    "id": "x1",
                },
                {"function": {"index": 1, "name": "g", "arguments": {}}, "id": "x2"},
            ],
        },
        {"role": "assistant", "content": ""},
    ]
    assert [line["done"] for line in lines] == [False] * 5 + [True]
    assert all(line["model"] == "m:latest" for line in lines)
    assert lines[-1]["done_reason"] == "stop" and "done_reason" not in lines[0]
    assert figures(lines[-1]) == {
        "total_duration": lines[-1]["total_duration"],
        "load_duration": 1_000_000_000,
        "prompt_eval_count": 20,
        "prompt_eval_duration": 500_000,
        "eval_count": 3,
        "eval_duration": 2_250_000,
    }


def test_each_event_goes_on_at_once() -> None:
    made = reply()
    assert made.head(200, SSE) == (200, NDJSON)
    assert made.feed(delta(content="a")).count(b"\n") == 1
    assert made.feed(b'data: {"choices": [{"delta": {"cont') == b""
    assert b'"content":"b"' in made.feed(b'ent": "b"}}]}\n\n')
    assert made.feed(delta("length")) == b""
    assert b'"done_reason":"length"' in made.feed(DONE)
    assert made.end() == b""


def test_any_split_gives_the_same_lines() -> None:
    whole = said(reply(), STREAM)
    for at in range(len(STREAM) + 1):
        assert said(reply(), STREAM[:at], STREAM[at:])[:-1] == whole[:-1]
    chance = random.Random(1)
    for _ in range(300):
        cuts = sorted(chance.choices(range(len(STREAM)), k=chance.randrange(40)))
        pieces = [STREAM[a:b] for a, b in zip([0, *cuts], [*cuts, len(STREAM)], strict=True)]
        assert said(reply(), *pieces)[:-1] == whole[:-1]
    assert said(reply(), *(STREAM[i : i + 1] for i in range(len(STREAM))))[:-1] == whole[:-1]


@pytest.mark.parametrize("end", [b"\r\n", b"\r"])
def test_other_ends_of_lines(end: bytes) -> None:
    whole, stream = said(reply(), STREAM), STREAM.replace(b"\n", end)
    for at in range(0, len(stream), 3):
        assert said(reply(), stream[:at], stream[at:])[:-1] == whole[:-1]


def test_a_stream_without_figures_is_measured() -> None:
    lines = said(
        reply("generate"),
        event(choices=[{"text": "a"}]) + event(choices=[{"text": "b", "finish_reason": "stop"}]),
    )
    assert [line["response"] for line in lines] == ["a", "b", ""]
    assert [line.get("context") for line in lines] == [None, None, []]
    # The clock: asked 1, began 2, first piece 3, last line 4.
    assert figures(lines[-1]) == {
        "total_duration": 3_000_000_000,
        "load_duration": 1_000_000_000,
        "prompt_eval_duration": 1_000_000_000,
        "eval_count": 2,
        "eval_duration": 1_000_000_000,
    }


def test_timings_alone_count_what_was_cached() -> None:
    lines = said(
        reply(),
        delta(content="a") + event(choices=[{"delta": {}, "finish_reason": "length"}], **TIMINGS) + DONE,
    )
    assert lines[-1]["prompt_eval_count"] == 20 and lines[-1]["eval_count"] == 3


def test_a_streamed_infill() -> None:
    stream = event(content="a", stop=False, index=0) + event(content="b", stop=False)
    stream += event(content="", stop=True, stop_type="limit", **TIMINGS)
    lines = said(reply("generate"), stream)
    assert [line["response"] for line in lines] == ["a", "b", ""]
    assert lines[-1]["done_reason"] == "length" and lines[-1]["eval_count"] == 3


def test_logprobs() -> None:
    token = {"id": 5, "token": "a", "bytes": [97], "logprob": -0.5}
    probs = {"content": [token | {"top_logprobs": [token, {"token": "b", "logprob": -2.0}]}]}
    stream = event(choices=[{"delta": {"content": "a"}, "logprobs": probs}]) + delta("stop")
    plain = {"token": "a", "bytes": [97], "logprob": -0.5}
    assert said(reply(), stream)[0]["logprobs"] == [plain]
    both = [plain | {"top_logprobs": [plain, {"token": "b", "logprob": -2.0}]}]
    assert said(reply(top_logprobs=True), stream)[0]["logprobs"] == both
    native = event(content="a", stop=False, completion_probabilities=[plain]) + event(content="", stop=True)
    assert said(reply("generate"), native)[0]["logprobs"] == [plain]


def test_vllms_name_for_thoughts() -> None:
    assert said(reply(), delta(reasoning="Hm") + delta("stop"))[0]["message"]["thinking"] == "Hm"
    lines = said(reply("generate"), delta(reasoning_content="Hm") + delta("stop"))
    assert (lines[0]["thinking"], lines[0]["response"]) == ("Hm", "")


def test_a_server_that_does_not_stream() -> None:
    body = json.dumps({"choices": [{"message": {"content": "all"}, "finish_reason": "stop"}]}).encode()
    made = reply()
    [line] = said(made, body[:10], body[10:], content_type=b"application/json")
    assert (line["message"]["content"], line["done"]) == ("all", True)


# --- errors ------------------------------------------------------------------------------------------------


def test_an_error_in_mid_stream_is_the_last_line() -> None:
    broke = event(error={"code": 500, "message": "out of memory", "type": "server_error"})
    lines = said(reply(), delta(content="a") + broke + delta(content="b") + DONE)
    assert lines[1:] == [{"error": "out of memory"}]
    assert said(reply(), event(error="no"))[0] == {"error": "no"}


def test_what_breaks_off_ends_with_a_line() -> None:
    made = reply()
    made.head(200, SSE)
    made.feed(delta(content="a"))
    assert made.broken("it broke") == b'{"error":"it broke"}\n'
    assert made.broken("again") == b"" and made.feed(delta(content="b")) == b"" and made.end() == b""


@pytest.mark.parametrize(
    "bad",
    [
        b"data: {\n\n",
        b"data: [1]\n\n",
        b'data: {"choices": [{"delta": {"content": 5}}]}\n\n',
        b"data: \xff\n\n",
        b"data: " + b"[" * 100_000 + b"\n\n",
        b"",  # no last word
    ],
)
def test_what_is_not_understood_breaks_off_behind_what_was(bad: bytes) -> None:
    made = reply()
    made.head(200, SSE)
    got = b""
    with pytest.raises(ValueError):
        got += made.feed(delta(content="a") + bad)
        got += made.feed(delta(content="b"))
        got += made.end()
    assert b'"content":"a"' in got


@pytest.mark.parametrize("arguments", ['{"a": "cut o', "[1]", "{bad"])
@pytest.mark.parametrize("streamed", [True, False])
def test_a_call_that_was_cut_off_is_text(arguments: str, streamed: bool) -> None:
    """As in Ollama, and as the server itself has it: the model is well, its tokens were too few."""
    calls = [
        {"index": 0, "id": "1", "function": {"name": "f", "arguments": '{"x": 1}'}},
        {"index": 1, "id": "2", "function": {"name": "g", "arguments": arguments}},
    ]
    made = reply(streamed=streamed)
    if streamed:
        made.head(200, SSE)
        got = made.feed(delta("length", tool_calls=calls)) + made.feed(b"data: [DONE]\n\n") + made.end()
    else:
        made.head(200, b"application/json")
        choice = {"message": {"tool_calls": calls}, "finish_reason": "length"}
        got = made.feed(json.dumps({"choices": [choice]}).encode()) + made.end()
    lines = [json.loads(line) for line in got.splitlines()]
    assert lines[0]["message"]["content"] == f'{{"name": "g", "arguments": {arguments}'
    assert [call["function"]["name"] for call in lines[0]["message"]["tool_calls"]] == ["f"]
    assert (lines[-1]["done"], lines[-1]["done_reason"]) == (True, "length")


def test_arguments_may_come_as_they_are_meant() -> None:
    made = reply()
    made.head(200, SSE)
    call = {"index": 0, "function": {"name": "f", "arguments": {"x": [1]}}}
    (line,) = [json.loads(line) for line in made.feed(delta("stop", tool_calls=[call])).splitlines()]
    assert line["message"]["tool_calls"][0]["function"]["arguments"] == {"x": [1]}


@pytest.mark.parametrize(
    ("status", "ours"), [(400, 400), (404, 501), (405, 501), (500, 500), (501, 501), (302, 502)]
)
@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (b'{"error": {"code": 400, "message": "too long", "type": "x"}}', "too long"),
        (b'{"error": "too long"}', "too long"),
        (b'{"message": "too long"}', "too long"),
        (b'{"detail": "Not Found"}', "Not Found"),
        (b"<html>oops</html>", "<html>oops</html>"),
        (b'{"detail": [1]}', '{"detail": [1]}'),
        (b"", "the model server gave no reason"),
    ],
)
def test_errors_of_the_model_server(status: int, ours: int, body: bytes, sentence: str) -> None:
    for made in (reply(), reply(streamed=False), VectorReply("m")):
        made.began()
        assert made.head(status, b"application/json") == (ours, JSON)
        assert made.feed(body) == b""
        assert json.loads(made.end()) == {"error": sentence}


def test_another_attempt_forgets_the_first() -> None:
    made = reply()
    made.head(500, b"text/plain")
    made.feed(b"oops")
    made.began()
    assert [line["message"]["content"] for line in said(made, delta(content="a") + delta("stop"))] == [
        "a",
        "",
    ]


# --- limits ------------------------------------------------------------------------------------------------


def test_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "OLLAMA_EVENT_BYTES", 100)
    for pieces in ([b"data: " + b"x" * 200], [b"x"] * 200, [b"data: xxxxxxxxxx\n"] * 20):
        events = Events()
        with pytest.raises(TooLong):
            for piece in pieces:
                events.feed(piece)
    monkeypatch.setattr(replies, "OLLAMA_WHOLE_BYTES", 100)
    made = reply(streamed=False)
    made.head(200, b"application/json")
    with pytest.raises(TooLong):
        for _ in range(20):
            made.feed(b"x" * 10)
    monkeypatch.setattr(replies, "OLLAMA_CALLS_CHARS", 100)
    made = reply()
    made.head(200, SSE)
    with pytest.raises(TooLong):
        for _ in range(20):
            made.feed(delta(tool_calls=[{"index": 0, "function": {"arguments": "x" * 10}}]))
    made = reply()
    made.head(200, SSE)
    with pytest.raises(TooLong):
        for i in range(2000):
            made.feed(delta(tool_calls=[{"index": i}]))


def test_events() -> None:
    events = Events()
    assert events.feed(b"") == []
    assert events.feed(b"data:a\ndata: b\nid: 7\nretry: 1\ndata\n\n\n\n") == [b"a\nb"]
    assert events.feed(b"data: [DONE]") == [] and events.end() == [b"[DONE]"]
    assert events.feed(b"data: a\r") == [] and events.feed(b"\n\r") == [] and events.feed(b"\n") == [b"a"]


# --- whole answers -----------------------------------------------------------------------------------------


def test_a_whole_chat() -> None:
    call = {"id": "x", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    words = {"role": "assistant", "content": None, "reasoning_content": "Hm", "tool_calls": [call]}
    body = {"choices": [{"message": words, "finish_reason": "tool_calls"}], **USAGE, **TIMINGS}
    made = reply(streamed=False)
    assert made.head(200, b"application/json") == (200, JSON)
    assert made.feed(json.dumps(body).encode()) == b""
    answer = made.end()
    assert not answer.endswith(b"\n")
    found = json.loads(answer)
    assert found["message"] == {
        "role": "assistant",
        "content": "",
        "thinking": "Hm",
        "tool_calls": [{"function": {"index": 0, "name": "f", "arguments": {"a": 1}}, "id": "x"}],
    }
    assert (found["done"], found["done_reason"], found["eval_count"]) == (True, "stop", 3)
    assert found["created_at"].endswith("Z")


@pytest.mark.parametrize(
    "body",
    [
        {"choices": [{"text": "all", "finish_reason": "length"}]},
        {"choices": [{"message": {"content": "all"}, "finish_reason": "length"}]},
        {"content": "all", "stop": True, "stop_type": "limit"},
    ],
)
def test_a_whole_text(body: dict[str, Any]) -> None:
    [found] = said(
        reply("generate", streamed=False), json.dumps(body).encode(), content_type=b"application/json"
    )
    assert (found["response"], found["done_reason"], found["context"]) == ("all", "length", [])
    # The clock: asked 1, began 2, the piece 3, all of it 4. Nothing else is known.
    assert figures(found) == {
        "total_duration": 3_000_000_000,
        "load_duration": 1_000_000_000,
        "eval_duration": 2_000_000_000,
    }


@pytest.mark.parametrize("body", [b"", b"{}", b"[]", b'{"choices": []}', b"data: x\n\n"])
def test_a_whole_answer_that_is_none(body: bytes) -> None:
    made = reply(streamed=False)
    made.head(200, b"application/json")
    made.feed(body)
    with pytest.raises(ValueError):
        made.end()


def test_embeddings() -> None:
    rows = [{"index": 1, "embedding": [0.25, -1e-7, 3]}, {"index": 0, "embedding": [3.0, 4.0, 12.0]}]
    body = json.dumps({"data": rows, "usage": {"prompt_tokens": 4}}).encode()

    def embedded(**more: Any) -> dict[str, Any]:
        made = VectorReply("m", clock=Clock(), **more)
        made.began()
        [found] = said(made, body[:20], body[20:])
        return found

    found = embedded()
    assert found == {
        "model": "m", "embeddings": [[3.0, 4.0, 12.0], [0.25, -1e-7, 3]], "total_duration": 2_000_000_000,
        "load_duration": 1_000_000_000, "prompt_eval_count": 4,
    }  # fmt: skip
    assert embedded(dimensions=2)["embeddings"][0] == [0.6, 0.8]
    assert embedded(dimensions=3)["embeddings"] == found["embeddings"]
    assert embedded(many=False) == {"embedding": [3.0, 4.0, 12.0]}
    made = VectorReply("m")
    made.head(200, b"application/json")
    made.feed(b'{"data": 5}')
    with pytest.raises(ValueError):
        made.end()


def test_the_answer_to_nothing() -> None:
    for form, member in (("chat", "message"), ("generate", "response"), ("embed", "embeddings")):
        made = Loaded(form, "m")
        made.began()
        assert made.head(200, b"") == (200, JSON)
        found = json.loads(made.end())
        assert found["model"] == "m" and member in found
        assert found.get("done_reason") == (None if form == "embed" else "load")
    assert json.loads(Loaded("embeddings", "m").end()) == {"embedding": []}
