"""`runnerctl`: the person's and the script's client of the control socket."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from daemon.cli.describe import describe
from daemon.cli.output import Output, clock_time, duration, size
from daemon.cli.runnerd import EXIT_REFUSED, EXIT_UNREACHABLE
from daemon.control.client import CallFailed, Client, Unreachable
from daemon.version import VERSION

Row = dict[str, Any]
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

    def __init__(self, path: Path | None, as_json: bool) -> None:
        self._path = path
        self.output = Output(as_json)

    def client(self) -> Client:
        """A connection to the daemon."""
        return Client(sockets(self._path))


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--socket", "path", type=click.Path(path_type=Path), help="The daemon's control socket.")
@click.option("--json", "as_json", is_flag=True, help="Stable JSON lines, also on a terminal.")
@click.version_option(VERSION, prog_name="runnerctl")
@click.pass_context
def cli(context: click.Context, path: Path | None, as_json: bool) -> None:
    """Ask a running runnerd what is loaded and who waits, and tell it what to load and unload."""
    context.obj = Context(path, as_json)


def _listing(context: Context, method: str, field: str, columns: dict[str, Callable[[Row], str]]) -> None:
    """Print a list: JSON lines for scripts, a table for people."""
    rows = context.client().call(method)[field]
    if context.output.machine:
        for row in rows:
            context.output.line(row)
    elif rows:
        context.output.table(list(columns), [[show(row) for show in columns.values()] for row in rows])
    else:
        context.output.text(f"no {field}", dim=True)


def _memory(sizes: dict[str, int]) -> str:
    return ", ".join(f"{size(n)}{' ' + device if device else ''}" for device, n in sizes.items()) or "unknown"


def _age(ns: int | None, otherwise: str = "") -> str:
    return otherwise if ns is None else duration(ns)


def _state(runner: Row) -> str:
    marks = "".join(f" {mark}" for mark in ("suspect", "stuck") if runner[mark])
    why = f" ({runner['reason']})" if runner["reason"] else ""
    colour = STATE_COLOURS.get(runner["state"], "bold")
    return f"[{colour}]{runner['state']}[/]{why}{marks}"


MODEL_COLUMNS: dict[str, Callable[[Row], str]] = {
    "MODEL": lambda m: m["id"],
    "STATE": lambda m: m["state"],
    "RUNNERS": lambda m: " ".join(m["runners"]),
    "SLOTS": lambda m: str(m["slots"]),
    "MEMORY": lambda m: _memory(m["memory_bytes"]),
    "KEEP-ALIVE": lambda m: _age(m["keep_alive_ns"], "never ends"),
    "ALIASES": lambda m: " ".join(m["aliases"]),
}

RUNNER_COLUMNS: dict[str, Callable[[Row], str]] = {
    "RUNNER": lambda r: r["id"],
    "MODEL": lambda r: r["model"],
    "STATE": _state,
    "SLOTS": lambda r: f"{r['slots_used']}/{r['slots']}",
    "MEMORY": lambda r: _memory(r["memory_bytes"]),
    "AGE": lambda r: duration(r["age_ns"]),
    "IDLE": lambda r: _age(r["idle_ns"]),
    "EXPIRES IN": lambda r: _age(r["expires_ns"], "-"),
    "PID": lambda r: str(r["pid"] or ""),
    "PORT": lambda r: str(r["port"] or ""),
}

REQUEST_COLUMNS: dict[str, Callable[[Row], str]] = {
    "REQUEST": lambda q: q["id"],
    "MODEL": lambda q: q["model"],
    "KIND": lambda q: q["kind"],
    "STATE": lambda q: q["state"],
    "AGE": lambda q: duration(q["age_ns"]),
    "PLACE": lambda q: str(q["position"] or ""),
    "RUNNER": lambda q: q["runner"] or "",
    "FROM": lambda q: q["caller"],
}


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
    blocked = f", BLOCKED: {reply['log_blocked']}" if reply["log_blocked"] else ""
    stopping = f", stopping ({reply['stopping']})" if reply["stopping"] else ""
    output.text(
        f"runnerd {reply['version']}, pid {reply['pid']}, up {duration(reply['uptime_ns'])}{stopping}"
    )
    output.text(f"log {reply['log']}: {reply['seq']} events{blocked}")
    queued = f"{reply['queued']} of at most {reply['max_queue']} queued"
    output.text(f"{reply['runners']} runners, {reply['running']} requests running, {queued}")
    output.table(
        ["DEVICE", "HELD", "BUDGET", "FREE FOR A LOAD", ""], [_device(row) for row in reply["devices"]]
    )


def _device(row: Row) -> list[str]:
    budget, held = row["budget_bytes"], row["held_bytes"]
    filled = min(20, 20 * held // budget) if budget else 0
    free = "unknown" if row["free_bytes"] is None else size(max(0, row["free_bytes"]))
    return [
        row["name"],
        size(held),
        size(budget) if budget else "unknown",
        free,
        "█" * filled + "░" * (20 - filled),
    ]


@cli.command()
@click.argument("model")
@click.option("--option", "-o", "options", multiple=True, metavar="NAME=VALUE", help="A launch option.")
@click.pass_obj
def load(context: Context, model: str, options: tuple[str, ...]) -> None:
    """Load MODEL and wait until it is ready."""
    pairs = dict(option.partition("=")[::2] for option in options)
    output, last = context.output, {}
    replies = context.client().calls("Load", model=model, options=pairs)
    if output.machine:
        for last in replies:
            output.line(last)
        return
    from rich.console import Console

    with Console().status(f"{model}: queued") as spinner:
        for last in replies:
            usual = last["load_estimate_ns"]
            tail = f", usually {duration(usual)}" if usual else ""
            spinner.update(f"{model}: {last['state']}, {duration(last['elapsed_ns'])}{tail}")
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
@click.argument("request")
@click.pass_obj
def cancel(context: Context, request: str) -> None:
    """Cancel REQUEST (q12), queued or running."""
    context.client().call("Cancel", request=request)
    _done(context, f"{request} cancelled")


@cli.command()
@click.argument("how", type=click.Choice(["drain", "now", "leave"]), default="drain")
@click.pass_obj
def stop(context: Context, how: str) -> None:
    """Stop the daemon: let requests end, stop now, or leave the runners alive for the next start."""
    context.client().call("Stop", how=how)
    _done(context, f"stopping ({how})")


def _done(context: Context, text: str) -> None:
    if context.output.machine:
        context.output.line({"ok": True})
    else:
        context.output.text(text)


@cli.command()
@click.option(
    "--after", type=int, metavar="SEQ", help="Begin after this event (default: with what comes next)."
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
        payload = {key: value for key, value in event["payload"].items() if key != "type"}
        what = describe(event["type"], event["subject"], payload)
        arrow = "  └ " if event["cause"] else ""
        dim = event["type"] in ("deadline.passed", "memory.measured")
        output.text(f"{clock_time(event['at_ns'])}  {event['seq']:>6}  {arrow}{what}", dim=dim)


MESSAGES: dict[str, Callable[[Row], str]] = {
    "ModelNotFound": lambda p: (
        f"no model {p['model']!r}"
        + (f"; did you mean {', '.join(p['nearest'])}?" if p.get("nearest") else "")
    ),
    "RequestNotFound": lambda p: f"no request {p['request']} is queued or running",
    "RunnerNotFound": lambda p: f"no runner {p['runner']}",
    "OperationFailed": lambda p: str(p["message"]),
    "InvalidParameter": lambda p: f"bad value for {p['parameter']}",
}


def _explain(error: CallFailed) -> str:
    sentence = MESSAGES.get(error.short)
    return sentence(error.parameters) if sentence else f"{error.short} {error.parameters}"


def main() -> int:
    """Exit codes: 0 done, 1 refused or failed, 2 usage, 3 no daemon answers, 130 interrupted."""
    as_json = "--json" in sys.argv or not sys.stdout.isatty()
    try:
        cli(standalone_mode=True)
    except CallFailed as error:
        if as_json:
            Output(True).line({"ok": False, "error": error.name, **error.parameters})
        print(f"runnerctl: {_explain(error)}", file=sys.stderr)
        return EXIT_REFUSED
    except Unreachable as error:
        print(f"runnerctl: {error}", file=sys.stderr)
        return EXIT_UNREACHABLE
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


if __name__ == "__main__":
    sys.exit(main())
