"""What somebody who waits for a streamed chat is told meanwhile (`sendLoadingState`): in the field that chat
programs show as the model's thoughts, where it does not become a part of the answer.
"""

from __future__ import annotations

import time

import msgspec
import trio

from daemon.http.answers import EVENT_STREAM, Answer
from daemon.http.framed import Framed
from daemon.http.wire import FAILURES
from daemon.limits import LOADING_BEAT_S, LOADING_FIRST_S
from daemon.ports import Dispatched, Ended, Ticket
from events.limits import S
from statemachines.state import State
from statemachines.waiting import cause


def event(data: bytes) -> bytes:
    """One server-sent event."""
    return b"data: %b\n\n" % data


class Words:
    """One request's. The answer begins with the first of them; whatever comes then goes into the same."""

    def __init__(self, framed: Framed, ticket: Ticket, model: str, state: State) -> None:
        self.framed = framed
        self.begun = False
        """The client has been sent something."""
        self._ticket = ticket
        self._model = model
        self._state = state

    async def turn(self) -> Dispatched | Ended:
        """The request's turn; until then the client is told now and then what it waits for."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._tell)
            turn = await self._ticket.turn()
            nursery.cancel_scope.cancel()
        if self.begun and isinstance(turn, Dispatched):
            await self._say(f"{self._model} is ready.\n")
        return turn

    async def _tell(self) -> None:
        """Say what it waits for whenever that has changed, and a dot while it has not."""
        said = ""
        await trio.sleep(LOADING_FIRST_S)
        while True:
            words = self._words()
            try:
                await self._say(f"\n{words} " if words != said else ".")
            except FAILURES:
                return  # the client has gone, and who notices that ends the request
            said = words
            await trio.sleep(LOADING_BEAT_S)

    def _words(self) -> str:
        state = self._state
        request = state.requests.get(self._ticket.request)
        demand = state.demands.get(request.demand) if request is not None else None
        if demand is None:
            return f"{self._model} has another turn soon"
        loading = [r for r in state.models.get(demand.model, {}).values() if r.id in state.loading]
        if not loading:
            return f"Waiting for {self._model}: {cause(state, demand)}"
        cost_ns = state.load_cost_ns.get(demand.model)
        last = f" (last time it took {cost_ns / S:.0f} s)" if cost_ns else ""
        return f"{self._model} is loading{last}"

    async def _say(self, words: str) -> None:
        self.begun = True
        # No role: the runner's first chunk has one, and clients that add up deltas add text to text.
        delta = {"reasoning_content": words}
        chunk = {
            "id": f"chatcmpl-{self._ticket.request}",
            "object": "chat.completion.chunk",
            "created": int(time.time()),
            "model": self._model,
            "choices": [{"index": 0, "delta": delta, "finish_reason": None}],
        }
        with trio.CancelScope(shield=True):  # half a chunk would spoil the rest; the reaper bounds the wait
            await self.framed.piece(event(msgspec.json.encode(chunk)))

    async def fail(self, answer: Answer) -> None:
        """End with an error, as an event: the status has long been sent."""
        await self.framed.end(event(answer.body))


class AsItComes:
    """The runner's stream behind the words, unchanged; an error of its becomes an event."""

    def __init__(self) -> None:
        self._whole: list[bytes] | None = None

    def began(self) -> None:
        """Nothing is measured."""

    def head(self, status: int, content_type: bytes) -> tuple[int, bytes]:
        """Only for what is no stream is anything to be done."""
        streams = status < 400 and content_type.startswith(EVENT_STREAM)
        self._whole = None if streams else []
        return 200, EVENT_STREAM

    def feed(self, piece: bytes) -> bytes:
        """As it is."""
        if self._whole is None:
            return piece
        self._whole.append(piece)
        return b""

    def end(self) -> bytes:
        """An error, on one line."""
        return event(b" ".join(b"".join(self._whole).split(b"\n"))) if self._whole else b""

    def broken(self, message: str) -> bytes:
        """In OpenAI's shape."""
        error = {"message": message, "type": "server_error", "code": "upstream_failed", "param": None}
        return event(msgspec.json.encode({"error": error}))
