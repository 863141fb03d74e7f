"""The interpreter of tests/scenarios/*.txt: plays a file against the core, and writes what the log says.

`play(text)` returns the file as it should read. The format is in tests/scenarios/README.md. The machine is
the simulator's `World`; what its processes and exchanges do is what the file says, and else the obvious.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec

from daemon.config.expression import postfix
from events import catalogue as c
from events.catalogue import Event, Option
from events.envelope import Record, decode, encode, first_hash
from events.limits import MS
from events.upcast import type_of
from statemachines.parts import Runner
from statemachines.replay import fold, steps, verify
from statemachines.simulator import Exchange, Life, Nature, World
from statemachines.state import canonical
from tests.unit.scenario_expect import EXPECTATIONS, History
from tests.unit.scenario_lines import duration, line, seconds, size, state_lines

HIDDEN = {
    "memory": ("memory.",),
    "requests": ("request.", "upstream.", "client.", "lease.resumed", "lease.revoked"),
    "probes": ("runner.probe", "probe."),
    "deadlines": ("deadline.",),
    "waits": ("turn.", "reclaim.", "deadline."),
    "steps": ("step.",),
}
"""What `hide` and `show` name, by the beginning of the types of event."""

MODEL_DURATIONS = ("keep_alive", "load", "stall", "unload", "queue", "request", "max_lease")
NUMBERS = ("slots", "fixed_port", "concurrency_limit", "priority", "shards")
HOLDER = ("heeds", "back")
LIFE_DURATIONS = ("spawns", "ready", "progress", "exit", "shard", "stop", "kill", "probe", "sick", "return")


def pairs(words: list[str]) -> tuple[list[str], dict[str, str]]:
    """Plain words, and `name=value` ones."""
    plain = [word for word in words if "=" not in word]
    return plain, dict(word.split("=", 1) for word in words if "=" in word)


def option(text: str) -> Option:
    """A launch option as a request gives it."""
    return int(text) if re.fullmatch(r"-?\d+", text) else text


def sizes(text: str) -> dict[str, int]:
    """`6GiB`, or `gpu0:6GiB,host:1GiB`; `unknown` is nothing."""
    if text == "unknown":
        return {}
    parts = [part.rpartition(":") for part in text.split(",")]
    return {device: size(value) for device, _, value in parts}


def estimate(text: str) -> c.Estimate:
    """`weights:4GiB,each:1MiB,context:num_ctx,trained:8192`: what a model's file says."""
    said = dict(part.split(":") for part in text.split(","))
    return c.Estimate(
        weights_bytes=size(said["weights"]),
        context_bytes=size(said["each"]) if "each" in said else 0,
        context=said.get("context", ""),
        context_tokens=int(said.get("tokens", 0)),
        trained_context=int(said.get("trained", 0)),
        layers=32,
        gpu=said.get("gpu", ""),
        gpu_layers=int(said.get("layers", c.AUTO)),
    )


def kind_of(event: Event) -> str:
    """An event's type; going on with a step that was full is part of that."""
    body = event.body
    resumes = isinstance(body, c.DeadlinePassed) and body.kind == "resume"
    return "step.resumed" if resumes else type_of(type(body))


class Script(Nature):
    """Does what the file says of each model's runners and each request's exchange."""

    def __init__(self) -> None:
        self.lives: dict[str, dict[str, Any]] = {}
        self.next_exchange: dict[str, Any] = {}
        self.exchanges: dict[str, dict[str, Any]] = {}
        self.measure = MS
        self.history = History()
        self.busy: dict[str, tuple[c.RequestArrived, int, dict[str, Any]]] = {}
        """Workers' requests: what they ask for again, until when, and how long it takes."""

    def life(self, world: World, runner: Runner) -> Life:
        life = Life(spawn_ns=0, words="", used_bytes=dict(runner.reserved_bytes))
        return msgspec.structs.replace(life, **self.lives.get(runner.model, {}))

    def exchange(self, world: World, request: str, runner: Runner) -> Exchange:
        return Exchange(**self.exchanges.get(request, {}))

    def measure_ns(self, world: World) -> int:
        return self.measure

    def seen(self, world: World, event: Event) -> None:
        if isinstance(event.body, c.RequestArrived):
            self.exchanges[event.subject] = self.next_exchange
        self.history.add(event, world.state)
        if event.subject in self.busy and self.history.requests[event.subject].end:
            asked, until, exchange = self.busy.pop(event.subject)
            if world.t < until:
                world.at(world.t, partial(self.ask, world, asked, until, exchange))

    def ask(self, world: World, asked: c.RequestArrived, until: int, exchange: dict[str, Any]) -> None:
        """One worker's next request."""
        self.next_exchange = exchange
        self.busy[f"q{world.state.seq + 1}"] = (asked, until, exchange)
        world.submit(asked)


class Machine(World):
    """The simulator's world, with processes whose last words are the scenario's."""

    def exits(self, id: str, shard: int, told: str) -> None:
        """A process ends; the fact alone where it is not there any more."""
        if id in self.alive and shard in self.alive[id].processes:
            self.alive[id].life.words = told
            self._exit(id, shard)
        else:
            self.submit(c.ProcessExited(id, shard, 1, told))
            self._cut(id)


class Play:
    """One file's run."""

    def __init__(self) -> None:
        self.script = Script()
        self.world = Machine(self.script, {})
        self.view = c.ConfigView()
        self.hidden = dict.fromkeys(["memory", "steps"])
        self.shown = 0
        self.out: list[str] = []

    # --- commands ----------------------------------------------------------------------------------------

    def command(self, text: str) -> None:
        """`[at TIME] NAME words…`. Raises ValueError or KeyError for what is not a command."""
        words = shlex.split(text)
        if words[0] == "at":
            self.world.run(duration(words[1]))
            words = words[2:]
        name, words = words[0], words[1:]
        if name == "expect":
            self.script.history.state = self.world.state
            EXPECTATIONS[words[0]](self.script.history, self.real(words[1:]))
            return
        COMMANDS[name](self, self.real(words))
        self.world.run(self.world.t)

    def real(self, words: list[str]) -> list[str]:
        """The log's ids for the scenario's: the second request of a file is its q2."""
        names = {short: id for id, short in self.script.history.names.items()}
        return [re.sub(r"\b[qro]\d+\b", lambda found: names.get(found[0], found[0]), word) for word in words]

    def devices(self, words: list[str]) -> None:
        for device, value in pairs(words)[1].items():
            self.world.devices[device] = size(value)
            gpu = device != "host"
            self.view = msgspec.structs.replace(
                self.view, devices={**self.view.devices, device: c.DeviceView(None, gpu)}
            )

    def limits(self, words: list[str]) -> None:
        for name, value in pairs(words)[1].items():
            change: dict[str, Any] = {name: value}
            if name == "ports":
                first, last = value.split("-")
                change = {"port_first": int(first), "port_last": int(last)}
            elif name == "headroom":
                change = {"headroom_bytes": size(value)}
            elif name != "policy":
                change = {name: int(value)}
            self.view = msgspec.structs.replace(self.view, **change)

    def model(self, words: list[str]) -> None:
        """A model's entry; what is not said is as before, `digest` follows what fixes a process."""
        (name,), said = pairs(words)
        fields: dict[str, Any] = {}
        options: dict[str, Option] = {}
        for key, value in said.items():
            if key in MODEL_DURATIONS:
                fields[key + "_ns"] = duration(value)
            elif key == "instances":
                least, most = value.split("-")
                fields |= {"instances_min": int(least), "instances_max": int(most)}
            elif key in NUMBERS:
                fields[key] = int(value)
            elif key == "memory":
                fields["memory_bytes"] = sizes(value)
            elif key == "estimate":
                fields["estimate"] = estimate(value)
            elif key in ("digest", "lease", "larger", "at_least"):
                fields[key] = value
            else:
                options[key] = option(value)
        before = self.view.models.get(name, c.ModelView(digest=f"{name}-1"))
        if options:
            fields["options"] = {**before.options, **options}
        view = msgspec.structs.replace(before, **fields)
        self.view = msgspec.structs.replace(self.view, models={**self.view.models, name: view})

    def group(self, words: list[str]) -> None:
        """`group g a b swap=no exclusive=no persistent=yes`."""
        (name, *members), said = pairs(words)
        flags = {key: value == "yes" for key, value in said.items()}
        groups = {**self.view.groups, name: c.GroupView(tuple(members), **flags)}
        self.view = msgspec.structs.replace(self.view, groups=groups)

    def matrix(self, words: list[str]) -> None:
        """`matrix "s1: (a | b) & c" "s2: d" a=5`: sets, and what it costs to lose a model."""
        given, costs = pairs(words)
        texts = dict(text.split(": ", 1) for text in given)
        models = {name: name for name in self.view.models}
        sets = {name: postfix(text, models, list(texts)) for name, text in texts.items()}
        matrix = c.MatrixView(sets, {model: int(cost) for model, cost in costs.items()})
        self.view = msgspec.structs.replace(self.view, matrix=matrix)

    def pin(self, words: list[str]) -> None:
        self.world.submit(c.PinRequested(words[0]))

    def unpin(self, words: list[str]) -> None:
        self.world.submit(c.PinRequested(words[0], False))

    def remove(self, words: list[str]) -> None:
        models = {name: view for name, view in self.view.models.items() if name not in words}
        self.view = msgspec.structs.replace(self.view, models=models)

    def start(self, words: list[str]) -> None:
        self.world.start()
        self.config(words)

    def config(self, words: list[str]) -> None:
        self.world.submit(c.ConfigChanged(self.view))

    def runner(self, words: list[str]) -> None:
        """How the runners of a model behave from now on: those that are loaded later."""
        (model,), said = pairs(words)
        life = self.script.lives.setdefault(model, {})
        for key, value in said.items():
            if key == "spawn":
                life[key] = value
            elif key == "used":
                life["used_bytes"] = sizes(value)
            elif key == "seen":
                life["seen"] = value == "yes"
            elif key in LIFE_DURATIONS:
                life["spawn_ns" if key == "spawns" else key + "_ns"] = duration(value)
            else:
                raise ValueError(f"a runner has no {key}")

    def arrive(self, words: list[str]) -> None:
        asked, exchange, times = self.asked(words)
        for _ in range(times):
            self.script.next_exchange = exchange
            self.world.submit(asked)

    def lease(self, words: list[str]) -> None:
        """`lease a takes=20m heeds=2s back=5s`: how long it is wanted, how soon its holder lets go when he is
        told to, and when he is back after a start."""
        exchange = {key + "_ns": duration(value) for key, value in pairs(words)[1].items() if key in HOLDER}
        asked, more, times = self.asked([word for word in words if word.partition("=")[0] not in HOLDER])
        for _ in range(times):
            self.script.next_exchange = more | exchange
            self.world.submit(msgspec.structs.replace(asked, kind=c.LEASE, token_digest="t"))

    def workers(self, words: list[str]) -> None:
        """`workers 4 a num_ctx=4096 until=60s`: each asks again as soon as it is answered."""
        (count, *rest), until = words, duration(pairs(words)[1]["until"])
        asked, exchange, _ = self.asked([word for word in rest if not word.startswith("until=")])
        for _ in range(int(count)):
            self.script.ask(self.world, asked, until, exchange)

    def asked(self, words: list[str]) -> tuple[c.RequestArrived, dict[str, Any], int]:
        """The request, how its exchange goes, how often."""
        (model,), said = pairs(words)
        exchange: dict[str, Any] = {}
        for key, field in (("takes", "ns"), ("close", "close_ns")):
            if key in said:
                exchange[field] = duration(said.pop(key))
        if "breaks" in said:
            exchange.update(complete=False, bytes_to_client=int(said.pop("breaks")))
        times, priority = int(said.pop("times", 1)), int(said.pop("priority", 0))
        keep_alive, otherwise = said.pop("keep_alive", None), said.pop("keep_alive_else", None)
        options = {name: option(value) for name, value in said.items()}
        keep_ns = None if keep_alive is None else duration(keep_alive)
        else_ns = None if otherwise is None else duration(otherwise)
        arrival = c.RequestArrived(model, "chat", options, priority, keep_ns, keep_alive_else_ns=else_ns)
        return arrival, exchange, times

    def gone(self, words: list[str]) -> None:
        self.world.submit(c.ClientGone(words[0]))

    def cancel(self, words: list[str]) -> None:
        self.world.submit(c.CancelRequested(words[0]))

    def load(self, words: list[str]) -> None:
        (model,), options = pairs(words)
        self.world.submit(c.LoadRequested(model, {name: option(value) for name, value in options.items()}))

    def unload(self, words: list[str]) -> None:
        what, cancel, now, gently = words[0], "cancel" in words, "now" in words, "gently" in words
        is_runner = what in self.script.history.names
        model = "" if is_runner or what == "everything" else what
        self.world.submit(c.UnloadRequested(model, what if is_runner else "", cancel, now, gently=gently))

    def healthy(self, words: list[str]) -> None:
        self.world.submit(c.ProbeAnswered(words[0], True))

    def unhealthy(self, words: list[str]) -> None:
        self.world.submit(c.ProbeAnswered(words[0], False, "moved" in words))

    def progresses(self, words: list[str]) -> None:
        self.world.submit(c.LoadProgressed(words[0], "output"))

    def exits(self, words: list[str]) -> None:
        """`exits r1 "last words"`, `exits r1 shard=1 "last words"`."""
        (id, *told), said = pairs(words)
        self.world.exits(id, int(said.get("shard", 0)), " ".join(told))

    def ended(self, words: list[str]) -> None:
        """`ended q1 r1 [after 50]`: the exchange is over, answered or broken off; it may be an old one."""
        request, runner, *rest = words
        self.world.exchanges.pop(request, None)
        sent = int(rest[1]) if rest else 100
        self.world.submit(c.UpstreamEnded(request, runner, not rest, sent, 200))

    def other(self, words: list[str]) -> None:
        """What other programs use; a sample of it becomes a fact, as the daemon's would."""
        self.world.foreign.update({device: size(value) for device, value in pairs(words)[1].items()})
        self.world.submit(self.world.measurement())

    def measurements(self, words: list[str]) -> None:
        self.script.measure = duration(words[0])

    def restart(self, words: list[str]) -> None:
        """The daemon dies and starts again: `restart survivors=r1,r2 down=5s` or `survivors=none`; with
        `broken=r1` a shard of r1 is gone."""
        said = pairs(words)[1]
        alive, broken = said["survivors"].split(","), said.get("broken", "").split(",")
        for id, sim in self.world.alive.items():
            sim.life.survives, sim.life.shard_survives = id in alive, id not in broken
        self.world.restart(duration(said.get("down", "0s")))

    def stop(self, words: list[str]) -> None:
        self.world.submit(c.StopRequested(words[0]))  # type: ignore[arg-type]

    def breach(self, words: list[str]) -> None:
        self.world.submit(c.BreachRecorded("request.arrived", words[0], "an earlier start"))

    def until(self, words: list[str]) -> None:
        self.world.run(duration(words[0]))

    def hide(self, words: list[str]) -> None:
        self.flush()
        self.hidden.update(dict.fromkeys(words))

    def show(self, words: list[str]) -> None:
        self.flush()
        self.hidden = {name: None for name in self.hidden if name not in words}

    def state(self, words: list[str]) -> None:
        self.flush()
        self.out += [f"  {text}" for text in state_lines(self.world.state)]

    def tally(self, words: list[str]) -> None:
        """Per kind of request: how many came, what became of them, how long they waited."""
        self.flush()
        for name in dict.fromkeys(request.label for request in self.script.history.requests.values()):
            self.out.append("  " + self.script.history.tally(name))

    # --- what the log says -------------------------------------------------------------------------------

    def flush(self) -> None:
        """Write the events since the last time, but those that are hidden; a fact is not if a decision of
        its step is shown."""
        hidden = tuple(prefix for name in self.hidden for prefix in HIDDEN[name])
        for step in steps(self.world.log[self.shown :]):
            visible = [not kind_of(event).startswith(hidden) for event in step]
            visible[0] = any(visible)
            self.out += [line(event) for event, show in zip(step, visible, strict=True) if show]
        self.shown = len(self.world.log)

    def block(self, commands: list[str]) -> list[str]:
        """Run a block's commands; the lines that belong below them."""
        self.out = []
        for text in commands:
            if not text.startswith("#"):
                self.command(text)
        self.flush()
        names = self.script.history.names
        return [
            re.sub(r"\b[qro]\d+\b", lambda found: names.get(found[0], found[0]), text) for text in self.out
        ]

    def check_log(self) -> None:
        """What was logged is stored, read, folded and derived again: the same events, the same state."""
        log, previous, stored = self.world.log, first_hash("scenario"), []
        for event in log:
            row = encode(event, 0, previous)
            previous = row[-1]
            stored.append(decode(Record(*row)))
        assert stored == log, "the log reads back otherwise than it was written"
        known = canonical(self.world.state)
        assert canonical(fold(stored)) == known, "the log folds to another state"
        assert canonical(verify(stored)[1]) == known, "the log verifies to another state"


COMMANDS: dict[str, Callable[[Play, list[str]], None]] = {
    name: getattr(Play, name)
    for name in (
        "devices", "limits", "model", "remove", "start", "config", "runner", "arrive", "lease", "workers",
        "gone",
        "cancel", "load", "unload", "healthy", "unhealthy", "progresses", "exits", "ended", "other",
        "measurements",
        "restart", "stop", "breach", "group", "matrix", "pin", "unpin", "until", "hide", "show", "state",
        "tally",
    )
}  # fmt: skip


def play(text: str) -> str:
    """The file as it should read: its story and commands, and what the log says to them.

    Raises AssertionError where an `expect` does not hold or the log does not replay, with the line.
    """
    paragraphs = re.split(r"\n\s*\n", text.strip("\n"))
    run = Play()
    done = [paragraphs[0]]
    for paragraph in paragraphs[1:]:
        lines = paragraph.split("\n")
        commands = lines[: lines.index("----")] if "----" in lines else lines
        if all(text.startswith("#") for text in commands):
            done.append("\n".join(commands))
            continue
        try:
            said = run.block(commands)
        except Exception as error:
            error.add_note("in the block:\n" + "\n".join(commands))
            error.add_note(
                f"at {seconds(run.world.t)}, after:\n" + "\n".join(line(e) for e in run.world.log[-12:])
            )
            raise
        done.append("\n".join([*commands, "----", *said]))
    run.check_log()
    return "\n\n".join(done) + "\n"
