"""The matrix's expressions: models, variables and other sets, joined by `&` and `|`, in parentheses."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from daemon.config.errors import did_you_mean
from events.limits import CONFIG_SET_TOKENS

TOKEN = re.compile(r"\s*(?:([&|()])|(\+?[\w.-]+))")


def postfix(text: str, names: Mapping[str, str], sets: list[str]) -> tuple[str, ...]:
    """An expression of the matrix in postfix form (see MatrixView). Raises ValueError with what is wrong."""
    tokens: list[str] = []
    at, stripped = 0, text.rstrip()
    while at < len(stripped):
        found = TOKEN.match(stripped, at)
        if found is None:
            raise ValueError(f"{stripped[at:].strip()[0]!r} has no meaning here")
        tokens.append(found[1] or found[2])
        at = found.end()
    if len(tokens) > CONFIG_SET_TOKENS:
        raise ValueError(f"it has more than {CONFIG_SET_TOKENS} parts")
    return tuple(_Parser(tokens, names, sets).parse())


class _Parser:
    """Shunting-yard with two operators: `&` binds more tightly than `|`."""

    def __init__(self, tokens: list[str], names: Mapping[str, str], sets: list[str]) -> None:
        self._tokens = tokens
        self._names = names
        self._sets = sets

    def parse(self) -> list[str]:
        out: list[str] = []
        waiting: list[str] = []
        operand = True  # one is due next
        for token in self._tokens:
            if operand != (token not in ("&", "|", ")")):
                raise ValueError(f"{token!r} where {'a model' if operand else '& or |'} is expected")
            if token == "(":
                waiting.append(token)
            elif token == ")":
                self._pop(out, waiting, lambda top: top != "(")
                if not waiting:
                    raise ValueError("a ) without its (")
                waiting.pop()
            elif token in ("&", "|"):
                first = ("&",) if token == "&" else ("&", "|")
                self._pop(out, waiting, first.__contains__)
                waiting.append(token)
                operand = True
            else:
                out.append(self._operand(token))
                operand = False
        if operand:
            raise ValueError("it ends where a model is expected")
        self._pop(out, waiting, lambda top: True)
        if "(" in out:
            raise ValueError("a ( without its )")
        return out

    def _pop(self, out: list[str], waiting: list[str], which: Callable[[str], bool]) -> None:
        while waiting and which(waiting[-1]):
            out.append(waiting.pop())

    def _operand(self, token: str) -> str:
        if token.startswith("+"):
            if token[1:] not in self._sets:
                raise ValueError(
                    f"there is no set {token[1:]!r}{did_you_mean(token[1:], dict.fromkeys(self._sets))}"
                )
            return token
        if token not in self._names:
            hint = did_you_mean(token, dict.fromkeys(self._names))
            raise ValueError(f"{token!r} is neither a variable nor the id of a model{hint}")
        return "=" + self._names[token]
