"""What `expect` can ask in a scenario: claims about the whole story that rewriting a file cannot silence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from events import catalogue as c
from events.catalogue import Event
from events.upcast import type_of
from statemachines.ledger import free_bytes
from statemachines.state import State
from tests.unit.scenario_lines import duration, gib, label, line, seconds, size

ENDS = (
    c.RequestCompleted, c.RequestFailed, c.RequestCancelled, c.RequestTimedOut, c.RequestRejected,
    c.RequestInterrupted,
)  # fmt: skip


class Told(msgspec.Struct):
    """What became of one request."""

    label: str
    arrived_t: int
    runners: list[str] = []
    dispatched_t: int | None = None
    """When it first got a slot."""
    end: str = ""
    reason: str = ""
    end_t: int = 0


class History:
    """Everything that has happened, as the expectations ask about it."""

    def __init__(self) -> None:
        self.state = State()
        self.log: list[Event] = []
        self.requests: dict[str, Told] = {}
        self.runners: dict[str, str] = {}
        """How each runner that is over has ended."""
        self.most = 0
        """The most runners that there have been at once."""
        self.names: dict[str, str] = {}
        """The log's ids to the scenario's."""

    def add(self, event: Event, state: State) -> None:
        """Take note of an event; `state` is the one after its step."""
        self.log.append(event)
        self.state = state
        body, id = event.body, event.subject
        if isinstance(
            body,
            c.RequestArrived
            | c.RunnerLoad
            | c.LoadRequested
            | c.UnloadRequested
            | c.CancelRequested
            | c.PinRequested,
        ):
            kind = id[0]
            self.names[id] = f"{kind}{sum(name[0] == kind for name in self.names) + 1}"
        if isinstance(body, c.RequestArrived):
            self.requests[id] = Told(label(body.model, body.options), event.t)
        elif isinstance(body, c.RequestDispatched):
            told = self.requests[id]
            told.runners.append(body.runner)
            told.dispatched_t = event.t if told.dispatched_t is None else told.dispatched_t
        elif isinstance(body, ENDS):
            told = self.requests[id]
            assert not told.end, f"{id} has two ends"
            told.end, told.end_t = type_of(type(body)).removeprefix("request."), event.t
            told.reason = getattr(body, "reason", "")
        elif isinstance(body, c.RunnerUnloaded | c.RunnerFailed | c.RunnerLost):
            self.runners[id] = type_of(type(body)).removeprefix("runner.")
        elif isinstance(body, c.RunnerLoad):
            self.most = max(self.most, sum(name[0] == "r" for name in self.names) - len(self.runners))

    def of(self, name: str) -> list[Told]:
        """The requests of a label."""
        found = [told for told in self.requests.values() if told.label == name]
        assert found, f"no request for {name}"
        return found

    def waited(self, told: Told) -> int:
        """From its arrival to its first slot, or to its end without one, or so far."""
        until = told.end_t if told.end else self.state.t
        return (told.dispatched_t if told.dispatched_t is not None else until) - told.arrived_t

    def tally(self, name: str) -> str:
        told = self.of(name)
        ends = {
            end: sum(each.end == end for each in told) for end in dict.fromkeys(each.end for each in told)
        }
        became = ", ".join(f"{count} {end or 'under way'}" for end, count in ends.items())
        return f"{name}: {became}; longest wait {seconds(max(self.waited(each) for each in told))}"


def request(h: History, words: list[str]) -> None:
    """`expect request q1 completed [on r1]`, `… failed load_failed`, `… queued`, `… dispatched`."""
    id, state, *rest = words
    told = h.requests[id]
    live = h.state.requests.get(id)
    found = told.end or (live.state.value if live else "")
    assert found == state, f"{id} is {found} ({told.reason})"
    if rest and rest[0] == "on":
        assert told.runners == rest[1:], f"{id} was on {told.runners}"
    elif rest:
        assert told.reason == rest[0], f"{id} is {found}: {told.reason}"


def runner(h: History, words: list[str]) -> None:
    """`expect runner r1 ready`, `… lost`."""
    id, state = words
    live = h.state.runners.get(id)
    found = live.state.value if live else h.runners[id]
    assert found == state, f"{id} is {found}"


def wait(h: History, words: list[str]) -> None:
    """`expect wait 60s a num_ctx=4096`: no request of the label waited longer for its first slot."""
    limit, name = duration(words[0]), " ".join(words[1:])
    longest = max(h.waited(told) for told in h.of(name))
    assert longest <= limit, f"a request for {name} waited {seconds(longest)}"


def within(h: History, words: list[str]) -> None:
    """`expect within 5s q1`: the request ended within that of its arrival."""
    told = h.requests[words[1]]
    took = told.end_t - told.arrived_t
    assert told.end and took <= duration(words[0]), (
        f"{words[1]}: {told.end or 'no end'} after {seconds(took)}"
    )


def all_completed(h: History, words: list[str]) -> None:
    """`expect all_completed [label]`: every request was answered."""
    name = " ".join(words)
    for id, told in h.requests.items():
        if not name or told.label == name:
            assert told.end == "completed", f"{id} is {told.end or 'under way'} ({told.reason})"


def completed(h: History, words: list[str]) -> None:
    """`expect completed 50 a num_ctx=4096`: at least so many."""
    count = sum(told.end == "completed" for told in h.of(" ".join(words[1:])))
    assert count >= int(words[0]), f"only {count} completed"


def order(h: History, words: list[str]) -> None:
    """`expect order q1 q3 q2`: they first got their slots in this order."""
    times = [h.requests[id].dispatched_t for id in words]
    got = [event.subject for event in h.log if isinstance(event.body, c.RequestDispatched)]
    first = [id for id in dict.fromkeys(got) if id in words]
    assert first == words, f"dispatched in the order {first} at {times}"


def count(h: History, words: list[str]) -> None:
    """`expect count 1 runner.load [r1|a]`: exactly so many events of a type [about that]."""
    number, kind, *about = words

    def concerns(event: Event) -> bool:
        body: Any = event.body
        return not about or about[0] in (event.subject, getattr(body, "model", ""))

    found = sum(type_of(type(event.body)) == kind and concerns(event) for event in h.log)
    assert found == int(number), f"{found} of {kind}"


def at_most(h: History, words: list[str]) -> None:
    """`expect at_most 1`: never more runners at once, those that end not yet counted out."""
    assert h.most <= int(words[0]), f"{h.most} runners at once"


def said(h: History, words: list[str]) -> None:
    """`expect said "r1 stop: hung"`: a line of the log contains it. Ids as in the log."""
    assert any(words[0] in line(event) for event in h.log), f"nothing says {words[0]}"


def not_said(h: History, words: list[str]) -> None:
    """`expect not_said "kill"`."""
    found = [line(event) for event in h.log if words[0] in line(event)]
    assert not found, f"{found[0]}"


def in_order(h: History, words: list[str]) -> None:
    """`expect in_order "r1 exited" "r2 load"`: a line with the first, a later one with the second …."""
    lines = iter([line(event) for event in h.log])
    for word in words:
        assert any(word in text for text in lines), f"nothing says {word} after what is before it"


def free(h: History, words: list[str]) -> None:
    """`expect free gpu0 8GiB`: what the ledger has left for a new load."""
    left = free_bytes(h.state, words[0]) or 0
    assert left == size(words[1]), f"{gib(left)} free on {words[0]}"


def nothing_left(h: History, words: list[str]) -> None:
    """`expect nothing_left`: no runner, request, waiter or claim; every request has had its one end."""
    state = h.state
    left = [*state.runners, *state.requests, *state.demands, *state.operations]
    assert not left and not state.claims, f"left: {left} {state.claims}"
    assert all(told.end for told in h.requests.values())


EXPECTATIONS: dict[str, Callable[[History, list[str]], None]] = {
    check.__name__: check
    for check in (
        request, runner, wait, within, all_completed, completed, order, count, at_most, said, not_said,
        in_order, free, nothing_left,
    )
}  # fmt: skip
