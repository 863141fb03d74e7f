"""`runnerctl`: the person's and the script's client of the control socket."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import msgspec

from daemon.cli.describe import named, printable
from daemon.cli.lazy import Group
from daemon.cli.lease import lease, pairs
from daemon.cli.output import ANY_PATH, Column, Number, Output, age, as_json, duration, memory, run, size
from daemon.cli.restart import restart_daemon, words
from daemon.cli.runnerd import EXIT_REFUSED, EXIT_UNREACHABLE
from daemon.control.client import ADVICE, CallFailed, Client, Unreachable
from daemon.version import VERSION
from events.limits import ORPHAN_GRACE_S, SOCKET_PATH_BYTES

Row = dict[str, Any]
STAGE = ("done", "state", "runner")
"""What of a load's progress is worth a line to a script."""
ENDS = ("completed", "failed", "cancelled", "timed_out", "rejected", "interrupted")
"""How requests end; the status tells how many have."""
STATE_COLOURS = {
    "ready": "green",
    "loading": "yellow",
    "draining": "cyan",
    "stopping": "magenta",
    "failed": "red",
}


def sockets(given: Path | None) -> list[Path]:
    """Where to look for the daemon: the given one, else $RUNNERD_SOCKET, the system's, the user's."""
    if given is not None:
        return [given]
    if path := os.environ.get("RUNNERD_SOCKET"):
        return [Path(path)]
    places = [Path("/run/runnerd/control.sock")]
    if runtime := os.environ.get("XDG_RUNTIME_DIR"):
        places.append(Path(runtime) / "runnerd" / "control.sock")
    return places


class Context:
    """What the options before the command say."""

    def __init__(self, path: Path | None, as_json: bool | None) -> None:
        self._path = path
        self.output = Output(as_json)

    def client(self) -> Client:
        """A connection to the daemon. Raises Unreachable."""
        paths = {path: _impossible(path) for path in sockets(self._path)}
        if all(paths.values()):
            tried = "".join(f"\n  {path}: {reason}" for path, reason in paths.items())
            raise Unreachable(f"no daemon answers{tried}\n{ADVICE}")
        return Client([path for path, reason in paths.items() if not reason])


def _impossible(path: Path) -> str:
    """Why no daemon can listen there; "" where one may."""
    if len(os.fsencode(path)) > SOCKET_PATH_BYTES:
        return f"that is longer than the {SOCKET_PATH_BYTES} bytes that a socket's path can have"
    return "that is no socket" if os.path.exists(path) and not path.is_socket() else ""


class Program(Group):
    """The command line, and what the daemon refuses on it."""

    def invoke(self, context: click.Context) -> object:
        """Run the command; its exit code where the daemon refused or did not answer."""
        try:
            return super().invoke(context)
        except CallFailed as error:
            return _fail(context, EXIT_REFUSED, {"error": error.name, **error.parameters}, _explain(error))
        except Unreachable as error:
            return _unreachable(context, str(error))
        except json.JSONDecodeError:
            return _unreachable(context, f"what listens there is not runnerd. {ADVICE}")


@click.group(cls=Program, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--socket", "path", type=ANY_PATH, help="The daemon's control socket.")
@as_json
@click.version_option(VERSION, prog_name="runnerctl")
@click.pass_context
def cli(context: click.Context, path: Path | None, as_json: bool | None) -> None:
    """Ask a running runnerd what is loaded and who waits, and tell it what to load and unload."""
    context.obj = Context(path, as_json)


def _listing(context: Context, method: str, field: str, columns: Sequence[Column]) -> None:
    """Print a list: JSON lines for scripts, a table for people."""
    rows = context.client().call(method)[field]
    if context.output.machine:
        for row in rows:
            context.output.line(row)
    elif rows:
        context.output.table(columns, rows)
    else:
        context.output.text(f"no {field}", dim=True)


def _colour(row: Row) -> str:
    return STATE_COLOURS.get(row["state"], "")


def _model_state(model: Row) -> str:
    left = model["cooling_ns"]
    return str(model["state"]) if left is None else f"cooling, {duration(left)}"


def _runner_state(runner: Row) -> str:
    return " ".join([runner["state"], *(mark for mark in ("suspect", "stuck") if runner[mark])])


def _slots(runner: Row) -> str:
    leases = runner.get("leases", 0)
    return f"{runner['slots_used']}/{runner['slots']}" + (f", {leases} leased" if leases else "")


def _request_state(request: Row) -> str:
    if request["state"] != "dispatched":
        return str(request["state"])
    return "leased" if request["kind"] == "lease" else "running"


def _needs(model: Row) -> str:
    """What a model needs, and how that is known unless it is configured."""
    source = {"estimated": " (estimated)", "measured": " (measured)"}.get(model["need_source"], "")
    return memory(model["need_bytes"]) + source


def _options(row: Row) -> str:
    return " ".join(f"{name}={value}" for name, value in row["options"].items())


MODEL_COLUMNS = (
    Column("MODEL", lambda m: m["id"]),
    Column("STATE", _model_state, style=_colour),
    Column("SLOTS", lambda m: str(m["slots"]), right=True),
    Column("MEMORY", _needs, right=True),
    Column(
        "KEEP", lambda m: "pinned" if m["pinned"] else age(m["keep_alive_ns"], "forever"), right=True, drop=1
    ),
    Column("RUNNERS", lambda m: " ".join(m["runners"]), drop=2),
    Column("ALIASES", lambda m: " ".join(m["aliases"]), drop=3),
)

RUNNER_COLUMNS = (
    Column("RUNNER", lambda r: r["id"]),
    Column("MODEL", lambda r: r["model"]),
    Column("STATE", _runner_state, style=_colour),
    Column("SLOTS", _slots, right=True),
    Column("HELD", lambda r: memory(r.get("held_bytes", r["memory_bytes"])), right=True),
    Column("USED", lambda r: memory(r["used_bytes"], ""), right=True, drop=6),
    Column("AGE", lambda r: age(r["age_ns"]), right=True, drop=3),
    Column("IDLE", lambda r: age(r["idle_ns"]), right=True, drop=1),
    Column("EXPIRES", lambda r: age(r["expires_ns"], up=True), right=True, drop=2),
    Column("WHY", lambda r: r["reason"], drop=4),
    Column("OPTIONS", _options, drop=5),
    Column("PID", lambda r: str(r["pid"] or ""), right=True, drop=8),
    Column("PORT", lambda r: str(r["port"] or ""), right=True, drop=7),
)

REQUEST_COLUMNS = (
    Column("REQUEST", lambda q: q["id"]),
    Column("MODEL", lambda q: q["model"]),
    Column("STATE", _request_state, style=_colour),
    Column("AGE", lambda q: age(q["age_ns"]), right=True),
    Column("OPTIONS", _options, drop=4),
    Column("PLACE", lambda q: str(q["position"] or ""), right=True, drop=1),
    Column("RUNNER", lambda q: q["runner"] or "", drop=3),
    Column("WAITS FOR", lambda q: q.get("reason", ""), drop=2),
    Column("TRY", lambda q: str(q["attempt"]) if q["attempt"] > 1 else "", right=True, drop=5),
    Column("KIND", lambda q: q["kind"], drop=6),
    Column("FROM", lambda q: named(q["caller"]), drop=7),
)

DEVICE_COLUMNS = (
    Column("DEVICE", lambda d: d["name"]),
    Column("HELD", lambda d: size(d["held_bytes"]), right=True),
    Column("BUDGET", lambda d: _size(d["budget_bytes"]), right=True),
    Column("FREE", lambda d: _size(d["free_bytes"]), right=True),
    Column("HELD OF BUDGET", lambda d: _bar(d["held_bytes"], d["budget_bytes"]), drop=1),
)


def _size(count: int | None) -> str:
    return "unknown" if count is None else size(count)


def _bar(held: int, budget: int | None) -> str:
    """Twenty cells; anything held shows as one at least."""
    if not budget:
        return ""
    filled = min(20, -(-20 * held // budget))
    return "█" * filled + "░" * (20 - filled)


@cli.command()
@click.pass_obj
def models(context: Context) -> None:
    """Configured models, and whether they are loaded."""
    _listing(context, "ListModels", "models", MODEL_COLUMNS)


@cli.command()
@click.pass_obj
def ps(context: Context) -> None:
    """Runners: what is loaded, loading, or on its way out."""
    _listing(context, "ListRunners", "runners", RUNNER_COLUMNS)


@cli.command()
@click.pass_obj
def queue(context: Context) -> None:
    """Requests that wait or run, oldest first."""
    _listing(context, "ListRequests", "requests", REQUEST_COLUMNS)


@cli.command()
@click.pass_obj
def status(context: Context) -> None:
    """The daemon at a glance."""
    reply = context.client().call("Status")
    output = context.output
    if output.machine:
        output.line(reply)
        return
    stopping = f", stopping ({reply['stopping']})" if reply["stopping"] else ""
    output.text(
        f"runnerd {reply['version']}, pid {reply['pid']}, up {duration(reply['uptime_ns'])}{stopping}"
    )
    output.text(f"log       {reply['log']}, {reply['seq']} events")
    if reply["log_blocked"]:
        output.text(f"          BLOCKED: {reply['log_blocked']}", style="bold red")
    for reason in reply["unready"]:
        output.text(f"ready     no, for {duration(reason['age_ns'])}: {reason['message']}", style="bold red")
    if not reply["unready"]:
        output.text("ready     yes")
    output.text(f"runners   {reply['runners']}")
    output.text(
        f"requests  {reply['running']} running, {reply['queued']} queued (at most {reply['max_queue']})"
    )
    counts = reply["counts"]
    if ended := ", ".join(f"{counts[end]} {end.replace('_', ' ')}" for end in ENDS if counts.get(end)):
        output.text(f"          {ended}")
    if reply["devices"]:
        output.text("")
    output.table(DEVICE_COLUMNS, reply["devices"])


@cli.command()
@click.argument("model")
@click.option("--option", "-o", "options", multiple=True, metavar="NAME=VALUE", help="A launch option.")
@click.option("--priority", type=int, default=0, metavar="N", help="Added to the model's priority.")
@click.pass_obj
def load(context: Context, model: str, options: tuple[str, ...], priority: int) -> None:
    """Load MODEL and wait until it is ready.

    Ctrl-C ends the waiting, not the load.
    """
    given, output, last = pairs(options), context.output, Row()
    replies = context.client().calls("Load", model=model, options=given, priority=priority)
    with output.progress(f"{model}: asking") as show:
        for reply in replies:
            changed = [reply[name] for name in STAGE] != [last.get(name) for name in STAGE]
            last = reply
            usual = f", usually {duration(last['load_estimate_ns'])}" if last["load_estimate_ns"] else ""
            show(f"{model}: {last['state']}, {duration(last['elapsed_ns'])}{usual}")
            if output.machine and changed:
                output.line(last)
    if not output.machine:
        output.text(f"{model} is ready ({last['runner']}), after {duration(last['elapsed_ns'])}")


@cli.command()
@click.argument("model", required=False)
@click.option("--runner", help="Only this runner (r17).")
@click.option("--all", "everything", is_flag=True, help="Every runner.")
@click.option("--cancel", is_flag=True, help="Fail the requests that wait for it, too.")
@click.option("--now", is_flag=True, help="Do not wait for running requests.")
@click.pass_obj
def unload(
    context: Context, model: str | None, runner: str | None, everything: bool, cancel: bool, now: bool
) -> None:
    """Unload MODEL, and wait until its memory is free."""
    if sum((model is not None, runner is not None, everything)) != 1:
        raise click.UsageError("name a MODEL, or --runner, or --all")
    context.client().call("Unload", model=model or "", runner=runner or "", cancel=cancel, now=now)
    _done(context, f"{model or runner or 'everything'} unloaded")


@cli.command()
@click.argument("model")
@click.pass_obj
def pin(context: Context, model: str) -> None:
    """Keep MODEL loaded once it is: never evicted, never expired."""
    context.client().call("Pin", model=model, pinned=True)
    _done(context, f"{model} pinned")


@cli.command()
@click.argument("model")
@click.pass_obj
def unpin(context: Context, model: str) -> None:
    """Let MODEL go like others again."""
    context.client().call("Pin", model=model, pinned=False)
    _done(context, f"{model} unpinned")


@cli.command()
@click.argument("request")
@click.pass_obj
def cancel(context: Context, request: str) -> None:
    """Cancel REQUEST (q12), queued or running."""
    context.client().call("Cancel", request=request)
    _done(context, f"{request} cancelled")


@cli.command()
@click.pass_obj
def reload(context: Context) -> None:
    """Read the configuration file again, and apply it if nothing is wrong with it."""
    reply, output = context.client().call("Reload"), context.output
    if output.machine:
        output.line({"ok": True, **reply})
        return
    for line in _changes(reply) or ["nothing has changed"]:
        output.text(line)
    for warning in reply["warnings"]:
        click.echo(f"warning: {printable(warning)}", err=True)


@cli.command()
@click.argument("name", required=False)
@click.option("--none", is_flag=True, help="Use none any more.")
@click.pass_obj
def profile(context: Context, name: str | None, none: bool) -> None:
    """Use the profile NAME of the configuration; without a name, say which there are."""
    if none and name:
        raise click.UsageError("name a profile, or --none")
    given: dict[str, Any] = {"name": "" if none else name} if none or name else {}
    reply, output = context.client().call("UseProfile", **given), context.output
    if output.machine:
        output.line(reply)
    elif given or not reply["profiles"]:
        output.text(f"profile {reply['active']} is in use" if reply["active"] else "no profile is in use")
    else:
        output.table(
            (
                Column("PROFILE", lambda row: row[0]),
                Column("IN USE", lambda row: "yes" if row[0] == reply["active"] else ""),
                Column("DESCRIPTION", lambda row: row[1]),
            ),
            list(reply["profiles"].items()),
        )


def _changes(reply: Row) -> list[str]:
    """What a reload did, in a few lines."""
    lines = [
        f"{what:9}{', '.join(reply[what])}"
        for what in ("added", "changed", "removed", "settings")
        if reply[what]
    ]
    going = [f"{each['runner']} ({each['model']})" for each in reply["going"]]
    return [*lines, f"going    {', '.join(going)}"] if going else lines


@cli.command()
@click.argument("how", type=click.Choice(["drain", "now", "leave"]), default="drain")
@click.pass_obj
def stop(context: Context, how: str) -> None:
    """Stop the daemon, and wait until it has: let requests end, stop now, or leave the runners alive for the
    next start, which has a minute."""
    client = context.client()
    status = client.call("Status")
    client.call("Stop", how=how)
    if not context.output.machine:
        running, queued = status["running"], status["queued"]
        what = f": {running} running, {queued} queued" if running or queued else ""
        context.output.text(f"stopping ({how}){what}")
    client.until_closed()
    lives = f"stopped; its runners live on for {ORPHAN_GRACE_S:.0f} s, for the next start"
    _done(context, lives if how == "leave" and status["runners"] else "stopped")


@cli.command()
@click.option("--now", is_flag=True, help="Do not wait for running requests: they are cut.")
@click.pass_obj
def restart(context: Context, now: bool) -> None:
    """Start the daemon's program again in place, as it is on the disk now: no runner is unloaded."""
    done = restart_daemon(context.client, context.output, now=now)
    if context.output.machine:
        context.output.line({"ok": True, **done})
    else:
        context.output.text(words(done))


def _done(context: Context, text: str) -> None:
    if context.output.machine:
        context.output.line({"ok": True})
    else:
        context.output.text(text)


@cli.command()
@click.option(
    "--after",
    type=Number(0),
    metavar="SEQ",
    help="Begin after this event (default: with what comes next).",
)
@click.pass_obj
def watch(context: Context, after: int | None) -> None:
    """Print events as they become durable, without a gap."""
    output = context.output
    since: dict[str, Any] = {} if after is None else {"after": after}
    for reply in context.client().calls("Watch", **since):
        event = reply["event"]
        if output.machine:
            output.line(event)
            continue
        output.event(
            event["at_ns"], event["seq"], event["subject"], event["payload"], decided=event["cause"] > 0
        )


@cli.command()
@click.argument("subject")
@click.pass_obj
def why(context: Context, subject: str) -> None:
    """Why SUBJECT is as it is: a runner (r17), a request (q12), an operation (o9), or a model."""
    from daemon.cli.told import print_explanation
    from daemon.explain.told import Explanation

    client = context.client()
    with context.output.progress("reading the log"):
        reply = client.call("Explain", subject=subject)
    print_explanation(context.output, msgspec.convert(reply, Explanation))


@cli.command("why-not")
@click.argument("model")
@click.pass_obj
def why_not(context: Context, model: str) -> None:
    """What is in the way of MODEL being loaded, and when that can clear."""
    from daemon.cli.told import print_why_not
    from daemon.explain.obstacle import WhyNot

    client = context.client()
    with context.output.progress("reading the log"):
        reply = client.call("WhyNot", model=model)
    print_why_not(context.output, msgspec.convert(reply["told"], WhyNot))


@cli.command()
@click.argument("model", required=False, default="")
@click.option("-f", "--follow", is_flag=True, help="Go on printing what comes.")
@click.option("--daemon", "daemon_only", is_flag=True, help="Only what the daemon itself says.")
@click.pass_obj
def logs(context: Context, model: str, follow: bool, daemon_only: bool) -> None:
    """Print what the daemon and its runners, or those of MODEL, have said lately."""
    if model and daemon_only:
        raise click.UsageError("a model and --daemon exclude one another")
    source = "proxy" if daemon_only else model
    client = context.client()
    replies = client.calls("FollowLogs", source=source) if follow else [client.call("Logs", source=source)]
    rest, said = "", False
    for reply in replies:
        *lines, rest = (rest + reply["text"]).split("\n")
        for line in lines:
            _log_line(context, line)
        said = said or bool(reply["text"])
    if rest:
        _log_line(context, rest)
    if not said and model:
        click.echo(f"{model} has printed nothing lately; runnerlog show {model} says what happened", err=True)


def _log_line(context: Context, line: str) -> None:
    if context.output.machine:
        context.output.line({"line": line})
    else:
        context.output.text("".join(char if char.isprintable() or char == "\t" else " " for char in line))


MESSAGES: dict[str, Callable[[Row], str]] = {
    "ModelNotFound": lambda p: (
        f"no model {p['model']!r}; "
        + (f"did you mean {' or '.join(p['nearest'])}?" if p["nearest"] else "runnerctl models lists them")
    ),
    "RequestNotFound": lambda p: (
        f"no request {p['request']!r} is queued or running; runnerctl queue lists them"
    ),
    "LeaseNotFound": lambda p: "no lease is held that this token is of: it has ended",
    "RunnerNotFound": lambda p: f"no runner {p['runner']!r}; runnerctl ps lists them",
    "SubjectNotFound": lambda p: (
        f"the log has no {p['subject']!r}"
        + (f"; did you mean {' or '.join(p['nearest'])}?" if p["nearest"] else "")
    ),
    "ProfileNotFound": lambda p: (
        f"no profile {p['profile']!r}; "
        + (f"there are {', '.join(p['known'])}" if p["known"] else "the configuration has none")
    ),
    "CursorPruned": lambda p: f"{p['message']}: use an --after that is not before it",
    "CursorLost": lambda p: f"{p['message']}: is --after of another log?",
    "ConfigurationInvalid": lambda p: f"the configuration stays as it was:\n{p['message']}",
    "InvalidParameter": lambda p: _invalid(p["parameter"]),
}


def _invalid(parameter: str) -> str:
    kind, _, name = parameter.partition(".")
    if kind == "options" and name:
        return f"--option {name}: the model has no such launch option, or it takes another kind of value"
    return f"the daemon does not take this {parameter}"


def _explain(error: CallFailed) -> str:
    sentence = MESSAGES.get(error.short)
    words = sentence(error.parameters) if sentence else str(error.parameters.get("message", error.short))
    return "\n".join(map(printable, words.splitlines()))


def _unreachable(context: click.Context, words: str) -> int:
    return _fail(context, EXIT_UNREACHABLE, {"error": "unreachable", "message": words}, words)


def _fail(context: click.Context, code: int, fields: Row, words: str) -> int:
    if context.obj.output.machine:
        context.obj.output.line({"ok": False, **fields})
    click.echo(f"runnerctl: {words}", err=True)
    return code


cli.add_command(lease)


def main() -> int:
    """Exit codes: 0 done, 1 refused or failed, 2 usage, 3 no daemon answers, 130 interrupted, 141 nobody
    reads what is printed."""
    return run(cli, "runnerctl")


if __name__ == "__main__":
    sys.exit(main())
