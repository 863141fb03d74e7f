"""Explanations, asked of a process that reads the log beside the daemon (`daemon.explain.child`)."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from daemon.child import printed
from daemon.limits import EXPLAIN_BYTES, EXPLAIN_S, EXPLAINED_AT_ONCE

CHILD = (sys.executable, "-I", "-m", "daemon.explain.child")


class Unexplained(Exception):
    """There is no explanation. `reason`: `busy`, `too_long` or `failed`; the message is for people."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Explainer:
    """Asks for explanations of one log, a few at once."""

    def __init__(self, child: Sequence[str] = CHILD, patience_s: float = EXPLAIN_S) -> None:
        self._child = child
        self._patience_s = patience_s
        self._asked = 0

    async def ask(self, log: Path, seq: int, t: int, kind: str, subject: str) -> dict[str, Any]:
        """What the child says: `told`, or `unknown` and `nearest`. Raises Unexplained."""
        if not subject.isprintable():  # nothing is called so, nor could be an argument
            return {"unknown": subject, "nearest": []}
        if self._asked >= EXPLAINED_AT_ONCE:
            raise Unexplained("busy", f"{self._asked} explanations are being made: ask again in a moment")
        self._asked += 1
        try:
            said: dict[str, Any] = msgspec.json.decode(
                await self._run([str(log), str(seq), str(t), kind, subject])
            )
        except (msgspec.DecodeError, OSError) as error:
            raise Unexplained("failed", f"the log could not be read beside the daemon: {error}") from None
        finally:
            self._asked -= 1
        if "error" in said:
            raise Unexplained("failed", f"the log could not be read: {said['error']}")
        return said

    async def _run(self, arguments: Sequence[str]) -> bytes:
        said = await printed(
            [*self._child, *arguments], patience_s=self._patience_s, limit_bytes=EXPLAIN_BYTES
        )
        if said.late:
            words = f"reading the log took longer than {self._patience_s:.0f} s: runnerlog has no such limit"
            raise Unexplained("too_long", words)
        return said.output
