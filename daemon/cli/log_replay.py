"""`runnerlog replay`: the log a step at a time, with the state beside it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import click
import msgspec

from daemon.cli.describe import describe, duration, printable, size
from daemon.cli.keys import Left, Terminal
from daemon.cli.logfile import Settings
from daemon.cli.moments import BEGIN, END, FORMS, Moment, Past, between, parsed
from daemon.cli.output import Output, day_and_time, failing, wrapped
from daemon.cli.select import models, selected
from daemon.explain.steps import Change, Glance, Step, Steps, changes, glance
from daemon.explain.unknown import UnknownSubject
from events.envelope import Record
from events.reader import Reader
from statemachines.ledger import budget_bytes, free_bytes
from statemachines.state import State
from statemachines.waiting import cause

EVENTS_SHARE = 2
"""One line in so many is for the events of a step; the rest is the state."""
LEAST_LINES = 8
"""A screen with fewer shows the events alone."""
WAITING_SHOWN = 6
"""Demands that are shown with what they wait for."""
KEYS = "n next  p back  j jump  / search  q quit"


@click.command()
@click.option("--step", is_flag=True, help="One step at a time, on a terminal, with the state beside it.")
@click.option("--from", "begin", type=Moment(), help=BEGIN)
@click.option("--to", "end", type=Moment(end=True), help=END)
@click.argument("subject", required=False)
@click.pass_obj
def replay(
    settings: Settings, step: bool, begin: int | Past | None, end: int | Past | None, subject: str | None
) -> None:
    """Go through the log a step (a fact and its decisions) at a time, and show what each does to the state;
    with SUBJECT (q12, r17, a model), only the steps that are about it.

    \b
    Keys of --step: n, space or → the next step; p or ← the one before; g the first, G the last;
    j jump to an event's number or a time; / search the words of what comes; q quit.
    """
    output = settings.output
    with settings.open() as reader:
        after, upto = between(reader, begin, end)
        only: list[int] | None = None
        if subject is not None:
            with output.progress(f"looking for {subject}"):
                found = (record.cause or record.seq for record in selected(reader, (subject,), after, upto))
                only = list(dict.fromkeys(found))
            if not only and begin is None and end is None:
                raise UnknownSubject(subject, tuple(models(reader)))
            if not only:
                failing(output, seq=0, error=f"no step is about {subject} in this part of the log")
        steps = Steps(reader, after, upto, only)
        if step and output.terminal and not output.machine:
            _interactive(steps, reader, output)
        else:
            _print_all(steps, output)


# --- printed ---------------------------------------------------------------------------------------------


def _print_all(steps: Steps, output: Output) -> None:
    """Each step, and what it changed."""
    step, shown = steps.next(None), False
    while step is not None:
        before = glance(steps.state(step.first - 1))
        found = list(changes(before, glance(steps.state(step.last))))
        if output.machine:
            output.line(
                {
                    "seq": step.first,
                    "events": [_event(r) for r in step.records],
                    "changes": [msgspec.to_builtins(each) for each in found],
                }
            )
        else:
            for record in step.records:
                payload = json.loads(record.payload)
                output.event(record.at, record.seq, record.subject, payload, decided=record.cause > 0)
            for words in filter(None, map(change_words, found)):
                output.text(f"{'':22}~ {printable(words)}", dim=True)
        step, shown = steps.next(step), True
    if not shown and not output.machine:
        output.text("no such step", dim=True)


def _event(record: Record) -> dict[str, Any]:
    return {
        "seq": record.seq, "at_ns": record.at, "t_ns": record.t, "type": record.type, "cause": record.cause,
        "subject": record.subject, "payload": json.loads(record.payload),
    }  # fmt: skip


def change_words(change: Change) -> str:
    """`r16: idle 0/2 → draining 0/2`; "" for so little memory that nobody would see a difference."""
    before, after = change.before, change.after
    if change.what == "memory":
        was, now = size(int(before)), size(int(after))
        return f"{change.name}: {was} held → {now}" if was != now else ""
    if change.what == "waiting":
        return f"{change.name.partition('!')[0].rstrip('?')}: {before} waiting → {after}"
    if change.what == "runner":
        return f"{change.name}: {before or 'not there'} → {after or 'gone'}"
    words = {"claim": "makes room", "cooling": "cools down after a failed load", "pin": "pinned"}[change.what]
    return (
        f"{change.name.partition('?')[0]}: {words}"
        if after
        else f"{change.name.partition('?')[0]}: no longer {words}"
    )


# --- on a terminal ---------------------------------------------------------------------------------------


class View:
    """Where a person is in the log, and what the screen shows."""

    def __init__(self, steps: Steps, reader: Reader, step: Step) -> None:
        self.steps = steps
        self.reader = reader
        self.step = step
        self.said = ""
        """An answer to the last key, instead of the keys."""
        self.sought = ""

    def go(self, step: Step | None, otherwise: str) -> None:
        """To another step, if there is one."""
        if step is None:
            self.said = otherwise
        else:
            self.step = step

    def lines(self, columns: int, rows: int) -> list[str]:
        """The screen."""
        before = glance(self.steps.state(self.step.first - 1))
        earlier_t = self.steps.state(self.step.first - 1).t
        state = self.steps.state(self.step.last)
        head = [_cut(self._title(earlier_t), columns), ""]
        most = max(3, (rows - 4) // EVENTS_SHARE)
        events = list(self._events(columns))
        if len(events) > most:
            events = [
                *events[: most - 1],
                f"  … {len(events) - most + 1} more lines: runnerlog show --after {self.step.first - 1}",
            ]
        left = rows - len(head) - len(events) - 2
        beside = list(state_lines(state, before, columns)) if left >= LEAST_LINES - 4 else []
        if len(beside) > left:
            beside = [
                *beside[: left - 1],
                f"  … {len(beside) - left + 1} more lines: runnerlog state --at {self.step.last}",
            ]
        body = [*head, *events, "", *beside]
        body += [""] * (rows - 1 - len(body))
        return [*body[: rows - 1], _cut(self.said or KEYS, columns)]

    def _title(self, earlier_t: int) -> str:
        first, last = self.step.first, self.step.last
        day, clock = day_and_time(self.step.records[0].at)
        events = f"event {first}" if first == last else f"events {first} to {last}"
        later = self.step.records[0].t - earlier_t
        return f"{day} {clock}  {events} of {self.reader.head().seq}  (+{duration(later)})"

    def _events(self, columns: int) -> Iterator[str]:
        for record in self.step.records:
            mark = "└ " if record.cause else ""
            payload = json.loads(record.payload)
            type = payload.pop("type", record.type)
            text = describe(type, record.subject, payload)
            yield from wrapped(text, columns - 1, mark, " " * len(mark))


def state_lines(state: State, before: Glance, columns: int) -> Iterator[str]:
    """The state after a step; a star at what the step has changed."""
    now = glance(state)
    changed = {(each.what, each.name) for each in changes(before, now) if change_words(each)}

    def row(what: str, name: str, text: str) -> str:
        return _cut(f"{'*' if (what, name) in changed else ' '} {text}", columns)

    width = max((len(id) for id in now.runners), default=0)
    names = max((len(r[0]) for r in now.runners.values()), default=0)
    yield "Runners" if now.runners else "No runners"
    for id, (model, activity, slots, held) in now.runners.items():
        reason = f"  ({state.runners[id].reason.replace('_', ' ')})" if state.runners[id].reason else ""
        yield row(
            "runner", id, f"{id:{width}}  {model:{names}}  {activity:10} {slots:>5}  {size(held):>9}{reason}"
        )
    gone = [id for what, id in changed if what == "runner" and id not in now.runners]
    for id in sorted(gone):
        yield _cut(f"* {id:{width}}  {before.runners[id][0]:{names}}  gone", columns)
    yield f"Requests  {state.queued} queued, {now.running} running"
    for key in list(now.waiting)[:WAITING_SHOWN]:
        demand = state.demands[key]
        name = key.partition("!")[0].rstrip("?")
        yield row("waiting", key, f"{name}: {now.waiting[key]} waiting ({cause(state, demand)})")
    for name, held in now.held_bytes.items():
        yield row("memory", name, f"{name}: {size(held)} held{_of(state, name)}")
    for what, each in (("claim", now.claims), ("cooling", now.cooling), ("pin", now.pinned)):
        for name in each:
            yield row(what, name, change_words(Change(what, name, "", "yes")))
    first = state.deadlines.first()
    if first is not None:
        due, (kind, id) = first
        words = describe("deadline.passed", "", {"kind": kind, "id": id})
        yield _cut(f"  next deadline, in {duration(max(0, due - state.t))}: {words}", columns)


def _of(state: State, device: str) -> str:
    budget, free = budget_bytes(state, device), free_bytes(state, device)
    return f" of {size(budget)}, {size(max(0, free or 0))} free for a load" if budget is not None else ""


def _cut(text: str, columns: int) -> str:
    """A line that neither wraps nor steers the terminal."""
    text = "".join(char if char.isprintable() else " " for char in text)
    return text if len(text) < columns else text[: max(0, columns - 2)] + "…"


def _interactive(steps: Steps, reader: Reader, output: Output) -> None:
    """Until q."""
    with output.progress("reading the log"):
        step = steps.next(None)
        if step is not None:
            steps.state(step.last)
    if step is None:
        output.text("no such step", dim=True)
        return
    view, terminal = View(steps, reader, step), Terminal()
    try:
        with terminal.entered():
            _loop(view, terminal)
    except Left as left:
        raise SystemExit(128 + left.number) from None


def _loop(view: View, terminal: Terminal) -> None:
    while True:
        terminal.draw(view.lines(*terminal.size))
        key = terminal.key()
        view.said = ""
        if key in ("q", "escape"):
            return
        action = ACTIONS.get(key)
        if action is not None:
            action(view, terminal)
        elif key != "resize":
            view.said = f"{key!r} is no key here.  {KEYS}"


def _ask(view: View, terminal: Terminal, question: str) -> str | None:
    """A line of text, typed at the bottom; None: escaped."""
    text = ""
    while True:
        view.said = f"{question}{text}_"
        terminal.draw(view.lines(*terminal.size))
        key = terminal.key()
        if key == "enter":
            view.said = ""
            return text
        if key == "escape":
            view.said = ""
            return None
        if key == "back":
            text = text[:-1]
        elif key == "space":
            text += " "
        elif len(key) == 1 and key.isprintable():
            text += key


def _jump(view: View, terminal: Terminal) -> None:
    text = _ask(view, terminal, "to event or time: ")
    if not text:
        return
    if text.strip().isascii() and text.strip().isdigit():
        seq = int(text.strip()[:18])
    else:
        at_ns = parsed(text.strip(), time.time_ns())
        if at_ns is None:
            view.said = f"{text!r} is none of: {FORMS}"
            return
        seq = view.reader.first_at(at_ns)
    step = view.steps.nearest(seq)
    view.go(step, "there is no such step")
    if step is not None and step.last < seq:
        view.said = "there is nothing later: this is the last step"
    elif seq <= view.steps.after:
        view.said = "there is nothing earlier: this is the first step"


def _search(view: View, terminal: Terminal) -> None:
    text = _ask(view, terminal, "search: ")
    if text is None:
        return
    view.sought = (text or view.sought).lower()
    if not view.sought:
        return
    view.said = "searching …"
    terminal.draw(view.lines(*terminal.size))
    view.said = ""
    view.go(_found(view), f"{view.sought!r} is not in what comes")


def _found(view: View) -> Step | None:
    """The next step in whose words it is."""
    for record in view.reader.records(view.step.last, view.steps.upto):
        payload = json.loads(record.payload)
        type = payload.pop("type", record.type)
        if view.sought in f"{type} {describe(type, record.subject, payload)}".lower():
            step = view.steps.at(record.seq)
            if step is not None and (view.steps.only is None or step.first in view.steps.only):
                return step
    return None


def _next(view: View, terminal: Terminal) -> None:
    view.go(view.steps.next(view.step), "this is the last step")


def _back(view: View, terminal: Terminal) -> None:
    view.go(view.steps.previous(view.step), "this is the first step")


def _first(view: View, terminal: Terminal) -> None:
    view.go(view.steps.next(None), "")


def _last(view: View, terminal: Terminal) -> None:
    view.go(view.steps.last(), "")


ACTIONS: dict[str, Callable[[View, Terminal], None]] = {
    **dict.fromkeys(("n", "space", "right", "down", "enter"), _next),
    **dict.fromkeys(("p", "left", "up", "back"), _back),
    **dict.fromkeys(("g", "home"), _first),
    **dict.fromkeys(("G", "end"), _last),
    "j": _jump,
    "/": _search,
}
