"""What Ollama's requests become: bodies for a model server, launch options, and clear refusals."""

from __future__ import annotations

import base64
import json
import mmap
from typing import Any

import msgspec
import pytest

from daemon.http.refusals import Refused
from daemon.ollama import names, options, requests
from daemon.ollama.asked import Chat, Embed, Embeddings, Generate, Show, read
from daemon.ollama.messages import Message, translate
from daemon.ollama.requests import CHAT, COMPLETION, EMBEDDING, INFILL, Work

PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(16)).decode()
USER = {"role": "user", "content": "Hello"}


def chat(**members: Any) -> Work:
    members = {"model": "m", "messages": [USER]} | members
    return requests.chat(read(json.dumps(members).encode(), Chat))


def generate(**members: Any) -> Work:
    members = {"model": "m", "prompt": "Once"} | members
    return requests.generate(read(json.dumps(members).encode(), Generate))


def embed(**members: Any) -> Work:
    return requests.embed(read(json.dumps({"model": "m"} | members).encode(), Embed))


def plain(value: Any) -> Any:
    """As the model server reads it."""
    return msgspec.json.decode(msgspec.json.encode(value))


def refusal(call: Any, *arguments: Any, **members: Any) -> tuple[int, str]:
    with pytest.raises(Refused) as refused:
        call(*arguments, **members)
    return refused.value.refusal.status, refused.value.refusal.message


def conversation(*messages: dict[str, Any]) -> list[dict[str, Any]]:
    return translate(msgspec.json.decode(json.dumps(messages), type=list[Message]))


# --- bodies ------------------------------------------------------------------------------------------------


def test_a_chat_streams_unless_told_otherwise() -> None:
    work = chat()
    assert (work.target, work.kind, work.reply, work.streamed) == (CHAT, "chat", "chat", True)
    assert work.body == {
        "messages": [USER],
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    assert chat(stream=None).streamed
    assert chat(stream=False).body == {"messages": [USER], "stream": False}


def test_null_is_as_if_it_were_not_there() -> None:
    nothing = dict.fromkeys(
        ("format", "think", "tools", "options", "keep_alive", "logprobs", "top_logprobs", "stream")
    )
    assert chat(**nothing) == chat()
    nothing |= dict.fromkeys(("suffix", "system", "template", "context", "raw", "images"))
    del nothing["tools"]
    assert generate(**nothing) == generate()


def test_unknown_members_are_ignored() -> None:
    assert chat(shift=True, truncate=False, _debug_render_only=1, anything={"a": [1]}) == chat()


def test_a_format() -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}}
    assert chat(format="json").body["response_format"] == {"type": "json_object"}
    wrapped = {"type": "json_schema", "json_schema": {"name": "schema", "schema": schema}}
    assert chat(format=schema).body["response_format"] == wrapped
    assert "response_format" not in chat(format="").body
    raw = generate(raw=True, format=schema).body
    assert (raw["json_schema"], raw["response_format"]) == (schema, wrapped)
    assert generate(raw=True, format="json").body["json_schema"] == {"type": "object"}
    assert refusal(chat, format="yaml") == (
        400,
        'invalid format: "yaml"; expected "json" or a valid JSON Schema object',
    )
    assert refusal(chat, format=[1])[0] == 400


@pytest.mark.parametrize(
    ("think", "told"),
    [
        (True, {"chat_template_kwargs": {"enable_thinking": True}}),
        (False, {"chat_template_kwargs": {"enable_thinking": False}}),
        (
            "low",
            {
                "chat_template_kwargs": {"enable_thinking": True, "reasoning_effort": "low"},
                "reasoning_effort": "low",
            },
        ),
        ("max", {"chat_template_kwargs": {"enable_thinking": True, "reasoning_effort": "max"}}),
    ],
)
def test_thinking(think: bool | str, told: dict[str, Any]) -> None:
    for work in (chat(think=think), generate(think=think)):
        assert told.items() <= work.body.items()
    assert "reasoning_effort" in chat(think="high").body
    assert refusal(chat, think="much")[1].startswith('invalid think value: "much" (must be "low", ')


def test_logprobs() -> None:
    assert chat(logprobs=True).body["top_logprobs"] == 1
    assert not chat(logprobs=True).top_logprobs
    work = chat(logprobs=True, top_logprobs=5)
    assert (work.body["logprobs"], work.body["top_logprobs"], work.top_logprobs) == (True, 5, True)
    assert generate(raw=True, logprobs=True, top_logprobs=3).body["logprobs"] == 3
    assert generate(suffix="x", logprobs=True).body["n_probs"] == 1
    for count in (-1, 21):
        assert refusal(chat, top_logprobs=count) == (400, "top_logprobs must be between 0 and 20")


def test_tools_go_as_they_come() -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
    assert plain(chat(tools=[tool]).body["tools"]) == [tool]
    assert "tools" not in chat(tools=[]).body


def test_generate_is_a_chat_of_one_message() -> None:
    assert generate().body["messages"] == [{"role": "user", "content": "Once"}]
    work = generate(system="Be brief.", images=[PNG])
    assert (work.target, work.kind, work.reply) == (CHAT, "completion", "generate")
    system, user = work.body["messages"]
    assert system == {"role": "system", "content": "Be brief."}
    assert [part["type"] for part in user["content"]] == ["text", "image_url"]


def test_raw_and_suffix_send_the_prompt_as_it_is() -> None:
    work = generate(raw=True)
    assert (work.target, work.body["prompt"]) == (COMPLETION, "Once")
    assert work.body["stream_options"] == {"include_usage": True}
    work = generate(suffix="upon", stream=False)
    assert work.target == INFILL
    assert work.body == {"input_prefix": "Once", "input_suffix": "upon", "stream": False}
    assert "stream_options" not in generate(suffix="upon").body


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ({"template": "{{ .Prompt }}"}, '"template" cannot be given here'),
        ({"context": [1, 2]}, '"context" is not kept here'),
        ({"raw": True, "system": "x"}, "raw mode does not support template, system, or context"),
        ({"raw": True, "context": [1]}, "raw mode does not support"),
        ({"raw": True, "images": [PNG]}, "raw mode and suffix do not support images"),
        ({"images": ["?"]}, "illegal base64 data"),
        ({"prompt": 5}, "invalid request body: Expected `str | null`, got `int` - at `$.prompt`"),
        ({"stream": "yes"}, "invalid request body"),
    ],
)
def test_what_cannot_be_done_is_said(members: dict[str, Any], words: str) -> None:
    status, message = refusal(generate, **members)
    assert status == 400 and words in message


def test_no_work_is_no_target() -> None:
    assert not chat(messages=[]).target and not chat(messages=None).target
    assert not generate(prompt="").target and not generate(prompt="", system="x").target
    assert not embed().target and not embed(input="").target and not embed(input=[]).target


def test_embeddings() -> None:
    assert embed(input="a").body == {"input": ["a"]}
    work = embed(input=["a", ""], dimensions=8, truncate=True)
    assert (work.target, work.body, work.dimensions) == (EMBEDDING, {"input": ["a", ""]}, 8)
    work = requests.embeddings(read(b'{"model": "m", "prompt": "a"}', Embeddings))
    assert (work.target, work.body, work.reply) == (EMBEDDING, {"input": "a"}, "embeddings")
    assert refusal(embed, input=[1])[0] == 400


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"model": 1}', b'"\xff"', b"[" * 100_000])
def test_what_is_no_request(body: bytes) -> None:
    for shape in (Chat, Generate, Embed, Embeddings, Show):
        assert refusal(read, body, shape)[0] == 400
    assert refusal(requests.named, read(b"{}", Chat)) == (400, "model is required")


@pytest.mark.parametrize(
    ("written", "text"),
    [
        (r"a\ud83d b", "a\ufffd b"),
        (r"\uD83D", "\ufffd"),
        (r"\ude00\ud83d", "\ufffd\ufffd"),
        (r"\ud83d\ud83d\ude00\uDe00", "\ufffd\U0001f600\ufffd"),
        (r"\ud83d\u0041\n\ud83d\"", '\ufffdA\n\ufffd"'),
        (r"\\ud83d \ud83d", "\\ud83d \ufffd"),
        (r"\\\ud83d", "\\\ufffd"),
        (r"\\\\ud83d\udc00", "\\\\ud83d\ufffd"),
        (r"\ud83d\\ude00", "\ufffd\\ude00"),
        (r"\\ud83d\ude00", "\\ud83d\ufffd"),
    ],
)
def test_half_a_character_is_replaced(written: str, text: str) -> None:
    body = f'{{"model": "m", "prompt": "{written}", "other": "{written}"}}'.encode()
    assert read(body, Generate).prompt == text
    with mmap.mmap(-1, len(body)) as mapped:
        mapped[:] = body
        assert read(mapped, Generate).prompt == text
    stop = read(f'{{"options": {{"stop": "{written}"}}}}'.encode(), Chat).options
    assert stop is not None and options.sampling(stop, {}) == {"stop": [text]}


def test_half_a_character_hides_no_other_fault() -> None:
    for body, words in (
        (rb'{"prompt": "\ud83d}', "the request body is not valid JSON"),
        (rb'{"prompt": \ud83d}', "the request body is not valid JSON"),
        (rb'{"prompt": "\ud83d", "raw": 1}', "invalid request body"),
    ):
        assert words in refusal(read, body, Generate)[1]


# --- messages ----------------------------------------------------------------------------------------------


def test_roles() -> None:
    assert conversation({"role": "User", "content": None})[0] == {"role": "user", "content": ""}
    control = conversation({"role": "control", "content": "thinking"}, {"role": "x" * 64})
    assert control[0] == {"role": "control", "content": "thinking"} and control[1]["role"] == "x" * 64
    for bad in ({}, {"role": ""}, {"role": None}, {"role": "x" * 65}):
        status, message = refusal(conversation, bad)
        assert status == 400 and message.startswith("invalid role '") and len(message) < 200


@pytest.mark.parametrize(
    ("data", "url"),
    [
        (b"\x89PNG\r\n\x1a\n1234", "image/png"),
        (b"\xff\xd8\xff\xe0", "image/jpeg"),
        (b"GIF89a", "image/gif"),
        (b"RIFF\0\0\0\0WEBPVP8 ", "image/webp"),
        (b"BM123456", "image/bmp"),
        (b"?", "image/jpeg"),
    ],
)
def test_pictures(data: bytes, url: str) -> None:
    encoded = base64.b64encode(data).decode()
    [made] = conversation({"role": "user", "content": "See", "images": [encoded]})
    assert made["content"] == [
        {"type": "text", "text": "See"},
        {"type": "image_url", "image_url": {"url": f"data:{url};base64,{encoded}"}},
    ]


def test_base64_in_lines() -> None:
    data = b"\x89PNG\r\n\x1a\n" + bytes(range(256))
    encoded, lines = base64.b64encode(data).decode(), base64.encodebytes(data).decode()
    assert lines.count("\n") > 3
    url = f"data:image/png;base64,{encoded}"
    for written in (lines, lines.replace("\n", "\r\n"), "\n" + encoded[:3] + "\n" + encoded[3:]):
        [made] = conversation({"role": "user", "images": [written]})
        assert made["content"] == [{"type": "image_url", "image_url": {"url": url}}]
        [made] = plain(generate(prompt="See", images=[written]).body["messages"])
        assert made["content"][1] == {"type": "image_url", "image_url": {"url": url}}
    for bad in (encoded[:9] + " " + encoded[9:], encoded[:-1] + "\n", encoded + "\t"):
        assert refusal(conversation, {"role": "user", "images": [bad]}) == (
            400,
            "illegal base64 data in images",
        )


def test_sounds() -> None:
    for data, form in ((b"RIFF\0\0\0\0WAVEfmt ", "wav"), (b"ID3\x04", "mp3")):
        encoded = base64.b64encode(data).decode()
        [made] = conversation({"role": "user", "images": [encoded]})
        assert made["content"] == [{"type": "input_audio", "input_audio": {"data": encoded, "format": form}}]


def call(name: str, id: str | None = None, **arguments: Any) -> dict[str, Any]:
    return {"id": id, "function": {"name": name, "arguments": arguments}}


def test_calls_and_results_get_ids() -> None:
    made = conversation(
        USER,
        {"role": "assistant", "tool_calls": [call("f", a=1), call("g"), call("f", b=[None])]},
        {"role": "tool", "content": "G", "tool_name": "g"},
        {"role": "tool", "content": "F1"},
        {"role": "tool", "content": "F2", "tool_name": "f"},
        {"role": "tool", "content": "?"},
    )
    calls = made[1]["tool_calls"]
    assert [each["id"] for each in calls] == ["call00001", "call00002", "call00003"]
    assert calls[0]["function"] == {"name": "f", "arguments": '{"a":1}'} and calls[0]["type"] == "function"
    assert json.loads(calls[2]["function"]["arguments"]) == {"b": [None]}
    results = [message.get("tool_call_id") for message in made[2:]]
    assert results == ["call00002", "call00001", "call00003", None]
    assert made[2]["name"] == "g"


def test_ids_that_are_there_are_kept() -> None:
    made = conversation(
        {"role": "assistant", "tool_calls": [call("f", "x"), call("f", "y")]},
        {"role": "tool", "tool_call_id": "y", "tool_name": "f"},
        {"role": "tool", "tool_name": "f"},
        {"role": "tool", "tool_call_id": "z"},
    )
    assert [each["id"] for each in made[0]["tool_calls"]] == ["x", "y"]
    assert [message["tool_call_id"] for message in made[1:]] == ["y", "x", "z"]


def test_a_result_of_another_name_is_that_of_the_oldest_call() -> None:
    made = conversation(
        {"role": "assistant", "tool_calls": [call("f")]}, {"role": "tool", "tool_name": "functions.f"}
    )
    assert made[1]["tool_call_id"] == "call00001"


def test_a_result_whose_call_has_lost_its_id() -> None:
    """As LiteLLM sends a conversation: ids only in the results."""
    made = conversation(
        {"role": "assistant", "tool_calls": [call("f"), call("g"), call("h", "x")]},
        {"role": "tool", "tool_call_id": "b", "tool_name": "g"},
        {"role": "tool", "tool_call_id": "a"},
        {"role": "tool", "tool_call_id": "c"},
        {"role": "tool", "tool_call_id": "x", "tool_name": "functions.h"},
    )
    assert [each["id"] for each in made[0]["tool_calls"]] == ["call00001", "call00002", "x"]
    assert [message["tool_call_id"] for message in made[1:]] == ["call00002", "call00001", "c", "x"]


def test_ids_that_are_made_up_are_such_as_mistral_s_templates_take() -> None:
    [made] = conversation({"role": "assistant", "tool_calls": [call("f")] * 100})
    ids = [each["id"] for each in made["tool_calls"]]
    assert len(set(ids)) == 100 and all(len(id) == 9 and id.isalnum() for id in ids)


def test_thoughts_are_kept() -> None:
    [made] = conversation({"role": "assistant", "content": "4", "thinking": "2 + 2"})
    assert made == {"role": "assistant", "content": "4", "reasoning_content": "2 + 2"}


# --- options -----------------------------------------------------------------------------------------------


def raw(**values: Any) -> dict[str, msgspec.Raw]:
    return {name: msgspec.Raw(msgspec.json.encode(value)) for name, value in values.items()}


def test_sampling_options_are_renamed() -> None:
    given = raw(
        num_predict=7, num_keep=4, seed=42, stop=["a", "b"], temperature=0, top_k=5, top_p=0.5, min_p=0.1,
        typical_p=1, repeat_last_n=9, repeat_penalty=1.1, presence_penalty=-0.5, frequency_penalty=0.5,
        mirostat=2, mirostat_tau=5.0, mirostat_eta=0.1, num_ctx=8192, nonsense={"a": 1},
    )  # fmt: skip
    told = options.sampling(given, {"num_ctx": 4096})
    assert told == {
        "max_tokens": 7, "n_keep": 4, "seed": 42, "stop": ["a", "b"], "temperature": 0, "top_k": 5,
        "top_p": 0.5, "min_p": 0.1, "typical_p": 1, "repeat_last_n": 9, "repeat_penalty": 1.1,
        "presence_penalty": -0.5, "frequency_penalty": 0.5, "mirostat": 2, "mirostat_tau": 5.0,
        "mirostat_eta": 0.1,
    }  # fmt: skip


def test_options_that_leave_it_open() -> None:
    assert options.sampling(raw(num_predict=-1, seed=-1, temperature=None, stop=None), {}) == {}
    assert options.sampling(raw(num_predict=-2), {}) == options.sampling(raw(num_predict=0), {}) == {}
    assert options.sampling(raw(num_predict=1, seed=0), {}) == {"max_tokens": 1, "seed": 0}
    assert options.sampling(raw(num_predict=16.0, stop="x"), {}) == {"max_tokens": 16, "stop": ["x"]}


@pytest.mark.parametrize(
    ("given", "declared", "told"),
    [
        ({}, {"num_ctx": 4096}, 4096),
        ({"num_ctx": 8192.0}, {"num_ctx": 4096}, 8192),
        ({"num_ctx": None}, {"num_ctx": 4096}, 4096),
        ({"num_ctx": 8192}, {}, None),
        ({}, {"num_ctx": 0}, None),
        ({}, {"num_ctx": "4k"}, None),
        ({"repeat_last_n": 0}, {"num_ctx": 4096}, 0),
    ],
)
def test_the_whole_context_is_a_number(
    given: dict[str, Any], declared: dict[str, Any], told: int | None
) -> None:
    found = options.sampling(raw(**{"repeat_last_n": -1, **given}), declared)
    assert found == ({} if told is None else {"repeat_last_n": told})


def test_a_declared_option_is_the_schedulers() -> None:
    assert options.sampling(raw(top_k=5), {"top_k": 40}) == {}
    found = options.launch(
        raw(top_k=5, num_ctx=8192.0, other=1, num_gpu=1.5), {"top_k": 40, "num_ctx": 1, "num_gpu": 0}
    )
    assert {name: bytes(value) for name, value in found.items()} == {
        "top_k": b"5",
        "num_ctx": b"8192",
        "num_gpu": b"1.5",
    }


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("temperature", "hot", 'option "temperature" must be of type number'),
        ("num_predict", True, 'option "num_predict" must be of type integer'),
        ("num_predict", 1e300, 'option "num_predict" does not fit into 64 bits'),
        ("stop", [1], 'option "stop" must be an array of strings'),
        ("stop", {"a": 1}, 'option "stop" must be an array of strings'),
    ],
)
def test_options_of_the_wrong_type(name: str, value: Any, words: str) -> None:
    assert refusal(options.sampling, raw(**{name: value}), {}) == (400, words)


# --- names -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "id"),
    [
        ("small", "small"),
        ("small:latest", "small"),
        ("qwen3:8b", "qwen3:8b"),
        ("qwen3:8b:latest", "qwen3:8b"),
        ("tagged", "tagged:latest"),
        ("tagged:latest", "tagged:latest"),
        ("org/model", "org/model"),
        ("qwen3", ""),
        ("small:8b", ""),
        ("", ""),
        (":latest", ""),
    ],
)
def test_names(name: str, id: str) -> None:
    known = ("small", "qwen3:8b", "tagged:latest", "org/model")
    assert names.configured(name, lambda each: each in known) == id


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("SMALL", ["SMALL", "small:latest"]),
        ("Small:Latest", ["Small:Latest", "small:latest"]),
        ("library/Qwen3:8B", ["library/Qwen3:8B", "Qwen3:8B", "qwen3:8b"]),
        ("registry.ollama.ai/library/qwen3:8b", ["registry.ollama.ai/library/qwen3:8b", *["qwen3:8b"] * 2]),
        ("ORG/Model:latest", ["ORG/Model:latest", "org/model"]),
        ("big", ["big"]),  # Big or BIG?
        ("mine", ["mine", "Library/Mine"]),
        ("qwen3:8", ["qwen3:8"]),
        ("", [""]),
    ],
)
def test_other_spellings_of_a_name(name: str, found: list[str]) -> None:
    known = ("small", "small:latest", "qwen3:8b", "org/model", "Big", "BIG", "Library/Mine")
    assert list(names.spellings(name, lambda: known)) == found


def test_names_are_shown_with_a_tag() -> None:
    assert [names.shown(id) for id in ("a", "a:b", "host:5000/a", "x/a:b")] == [
        "a:latest",
        "a:b",
        "host:5000/a:latest",
        "x/a:b",
    ]
