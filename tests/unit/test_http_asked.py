"""What is read of a body: its model, its declared launch options, and nothing else."""

from __future__ import annotations

import pytest

from daemon.http import asked
from daemon.http.refusals import Refused
from events.catalogue import NEVER
from events.limits import S


def test_the_model() -> None:
    assert asked.model_and_keep_alive(b'{"messages": [{"model": "inner"}], "model": "m", "x": 1e99}') == (
        "m",
        None,
    )


@pytest.mark.parametrize(
    "body", [b'{"options":[1]}', b'{"options":"x"}', b'{"options":null}', b"{}", b'{"n":null}']
)
def test_open_options(body: bytes) -> None:
    assert asked.launch_options(body, {"n": 1}) == {}


def test_options_of_each_kind() -> None:
    body = b'{"n": 1, "s": "a", "b": true, "undeclared": 5, "options": {"n": 2, "m": 7}}'
    assert asked.launch_options(body, {"n": 1, "s": "", "b": False}) == {"n": 2, "s": "a", "b": True}


@pytest.mark.parametrize("value", [b"1.5", b"[]", b"{}", b'"8192"', b"true", b"9223372036854775808"])
def test_bad_options(value: bytes) -> None:
    with pytest.raises(Refused) as refused:
        asked.launch_options(b'{"n": %b}' % value, {"n": 4096})
    assert refused.value.refusal.status == 400


@pytest.mark.parametrize("value", [b"1", b'"%b"' % (b"a" * 2000), b'"a\\u0000b"'])
def test_bad_texts(value: bytes) -> None:
    with pytest.raises(Refused) as refused:
        asked.launch_options(b'{"s": %b}' % value, {"s": "f16"})
    assert refused.value.refusal.status == 400


def test_a_refused_option_says_what_it_should_be() -> None:
    with pytest.raises(Refused) as refused:
        asked.launch_options(b'{"num_ctx": "8192"}', {"num_ctx": 4096})
    assert '"num_ctx" must be an integer, not' in refused.value.refusal.message


def test_renamed_keeps_the_bytes_of_the_rest() -> None:
    body = b'{"a" : [1.50,  {"b": "\\u00e9"}], "model":"x", "c":1E5, "model":"y"}'
    assert b"".join(asked.renamed(body, 'n"')) == b'{"a":[1.50,  {"b": "\\u00e9"}],"model":"n\\"","c":1E5}'


@pytest.mark.parametrize(
    ("given", "ns"),
    [
        (b"300", 300 * S), (b"0", 0), (b"-1", NEVER), (b"0.5", S // 2), (b'"5m"', 300 * S),
        (b'"1h30m"', 5400 * S),
        (b'"-1s"', NEVER), (b'"-1m"', NEVER), (b'"0"', 0), (b'"0s"', 0), (b"1e300", NEVER), (b"null", None),
    ],
)  # fmt: skip
def test_keep_alive_as_ollama_has_it(given: bytes, ns: int | None) -> None:
    assert asked.model_and_keep_alive(b'{"model": "m", "keep_alive": %b}' % given) == ("m", ns)


@pytest.mark.parametrize("given", [b'"soon"', b'"5"', b"[]", b"true", b'""'])
def test_bad_keep_alives(given: bytes) -> None:
    with pytest.raises(Refused) as refused:
        asked.model_and_keep_alive(b'{"model": "m", "keep_alive": %b}' % given)
    assert refused.value.refusal.status == 400
    assert "keep_alive" in refused.value.refusal.message
