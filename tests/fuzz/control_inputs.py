"""What the fuzzer of the control socket sends: calls by a grammar of right, odd and wrong parts.

`Stop` and `Restart` are never asked for: after these calls there is nothing left to ask.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

import msgspec

from daemon.control.methods import ENDLESS, INTERFACE
from daemon.control.varlink import SERVICE

MODELS = ["a", "b", "alias", "c"]
NAMES = [*MODELS, "", "A", "none", "q1", "r9", "a" * 300, "é\u2028", "\0", "../../etc/passwd", "a\ud83d"]
NUMBERS = [0, 1, -1, 7, 1000, 1001, 2**31, 2**53, 2**63 - 1, 2**63, -(2**63) - 1, 10**30]
VALUES: list[Any] = [
    None, True, False, 0.5, 1e308, "", "text", [], {}, [1, [2, [3]]], {"a": {"b": None}}, *NUMBERS[:8]
]  # fmt: skip

TOKENS = [
    b"\0", b"\0\0", b"{", b"}", b"[" * 600, b'"', b"null", b"true", b"1e999", b"-0", b"\\u0000", b"\\ud800",
    b"\xff\xfe", b"\xef\xbb\xbf", b'"more":true,', b'"oneway":true,', b'"upgrade":true,', b'"method":"a.B",',
    b'{"method":"org.varlink.service.GetInfo"}\0', b'{"parameters":{}}\0', b'{"error":"a.B"}\0', b" " * 200,
    b"9" * 400, b'{"a":' * 600,
]  # fmt: skip

FLAGS: list[dict[str, Any]] = [
    {}, {}, {}, {"more": True}, {"more": False}, {"oneway": True}, {"more": True, "oneway": True}
]  # fmt: skip
ODD_FLAGS: list[dict[str, Any]] = [
    {"upgrade": True}, {"more": 1}, {"oneway": None}, {"extra": 1}, {"more": "yes"}
]  # fmt: skip


class Call(msgspec.Struct):
    """A message, and what is known of how it will be answered."""

    data: bytes
    answered: bool
    """Exactly one reply to it is the last one."""
    endless: bool = False
    """It is answered until its client goes."""


def _name(rng: random.Random) -> str:
    return rng.choice(MODELS) if rng.random() < 0.7 else rng.choice(NAMES)


def _options(rng: random.Random) -> dict[str, Any]:
    return rng.choice([{}, {}, {"num_ctx": "2048"}, {"num_ctx": rng.choice(["x", "9" * 40, ""])}, {"x": "1"}])


def _some(rng: random.Random, **parts: Any) -> dict[str, Any]:
    """Some of the parameters."""
    return {name: value for name, value in parts.items() if rng.random() < 0.5}


PARAMETERS: dict[str, Callable[[random.Random], dict[str, Any]]] = {
    "Status": lambda rng: {},
    "ListModels": lambda rng: {},
    "ListRunners": lambda rng: {},
    "ListRequests": lambda rng: {},
    "ListDevices": lambda rng: {},
    "Load": lambda rng: {
        "model": _name(rng), **_some(rng, options=_options(rng), priority=rng.choice(NUMBERS))
    },
    "Acquire": lambda rng: {
        "model": _name(rng), **_some(rng, options=_options(rng), priority=rng.choice([0, 1, -5, 10**20]))
    } if rng.random() < 0.9 else {"token": rng.choice(NAMES)},
    "Unload": lambda rng: _some(rng, model=_name(rng), runner=rng.choice(NAMES), now=True, cancel=True),
    "Pin": lambda rng: {"model": _name(rng), **_some(rng, pinned=rng.random() < 0.5)},
    "Cancel": lambda rng: {"request": rng.choice([*NAMES, f"q{rng.randrange(5000)}"])},
    "Reload": lambda rng: {},
    "UseProfile": lambda rng: _some(rng, name=rng.choice(["", "calm", *NAMES])),
    "Explain": lambda rng: {"subject": rng.choice([*MODELS, *NAMES, f"q{rng.randrange(5000)}"])},
    "WhyNot": lambda rng: {"model": _name(rng)},
    "Watch": lambda rng: _some(rng, after=rng.choice([*NUMBERS[3:], -1])),
    "Logs": lambda rng: _some(rng, source=rng.choice(["", "proxy", "upstream", *NAMES])),
    "FollowLogs": lambda rng: _some(rng, source=rng.choice(["proxy", *NAMES]), history=True),
}  # fmt: skip
"""Parameters of each method that are right, or nearly so."""

OTHERS = [
    f"{SERVICE}.GetInfo", f"{SERVICE}.GetInterfaceDescription", f"{SERVICE}.Nope", f"{INTERFACE}.Nope",
    f"{INTERFACE}.status", f"{INTERFACE}.", "Status", "", ".", "io.other.X", f"{INTERFACE}.Status.Status",
    "é.B",
]  # fmt: skip


def call(rng: random.Random) -> Call:
    """One well-formed message; what it says may be wrong."""
    name = rng.choice(list(PARAMETERS))
    method: Any = f"{INTERFACE}.{name}"
    parameters: Any = PARAMETERS[name](rng)
    flags = dict(rng.choice(FLAGS))
    draw = rng.random()
    if draw < 0.1:
        method, name = rng.choice(OTHERS), ""
    elif draw < 0.2 and parameters:
        parameters[rng.choice(list(parameters))] = rng.choice(VALUES)
    elif draw < 0.25:
        parameters[rng.choice(["x", "", "model", "\0"])] = rng.choice(VALUES)
    elif draw < 0.3:
        parameters = rng.choice(VALUES)
    elif draw < 0.35:
        flags = dict(rng.choice(ODD_FLAGS))
    elif draw < 0.37:
        method = rng.choice(VALUES)
    message = {"method": method, **flags}
    if parameters or rng.random() < 0.5:
        message["parameters"] = parameters
    data = json.dumps(message, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")
    if rng.random() < 0.03:  # twice the same key: the last one counts
        data = data[:-1] + b',"more":false,"oneway":false}'
        flags = {}
    bad = b"\xed\xa0" in data or (b"\\ud83d" in data and b"\\ud83d\\u" not in data)
    endless = name in ENDLESS and bool(flags.get("more")) and not flags.get("oneway")
    oneway = flags.get("oneway") is True and set(flags) <= {"more", "oneway"} and isinstance(method, str)
    return Call(data + b"\0", not (oneway or bad), endless)


def split(rng: random.Random, data: bytes) -> list[bytes]:
    """As it may come: at once, or in pieces cut anywhere."""
    if rng.random() < 0.6:
        return [data]
    cuts = sorted(rng.randrange(len(data) + 1) for _ in range(rng.randint(1, 6)))
    return [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True) if b > a]
