"""`runnerctl lease`: hold a slot while a command, or a person, uses it.

The lease is this program's connection to the daemon. It is held again, by its token, when the daemon starts
again; the command goes on meanwhile, for it talks to the runner.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from daemon.cli.output import duration
from daemon.control.client import CallFailed, Client, Unreachable
from daemon.limits import LEASE_BACK_S, LEASE_LAST_S
from events.limits import LEASE_GRACE_NS, S

if TYPE_CHECKING:
    from daemon.cli.runnerctl import Context

Row = dict[str, Any]


class Lease:
    """A lease that is asked for, held, and held again."""

    def __init__(self, connect: Callable[[], Client], parameters: Row) -> None:
        self._connect = connect
        self._parameters = parameters

    def replies(self) -> Iterator[Row]:
        """What the daemon says of it, one reply after the other. Raises CallFailed, Unreachable."""
        client = self._connect()
        while True:
            try:
                for reply in client.calls("Acquire", **self._parameters):
                    if reply["lease"] is not None:
                        self._parameters = {"token": reply["lease"]["token"]}
                    yield reply
            except Unreachable:
                if "token" not in self._parameters:
                    raise
                client = self._again()

    def _again(self) -> Client:
        """A connection to the daemon's next start. Raises Unreachable once the slot is no longer kept."""
        until = time.monotonic() + LEASE_GRACE_NS / S
        while True:
            try:
                return self._connect()
            except Unreachable:
                if time.monotonic() > until:
                    raise
            threading.Event().wait(LEASE_BACK_S)


def environment(lease: Row, model: str) -> dict[str, str]:
    """What a command is told of a lease: of a runner at a port also what clients of OpenAI's API look for."""
    told = {
        "RUNNERD_ADDRESS": lease["url"] + lease["prefix"]
        if lease["url"].startswith("http")
        else lease["url"],
        "RUNNERD_MODEL": lease["model_name"] or model,
        "RUNNERD_LEASE": lease["token"],
    }
    if lease["url"].startswith("http"):
        told["OPENAI_BASE_URL"] = told["RUNNERD_ADDRESS"] + "/v1"
    return told


def why(reason: str) -> str:
    """Why a lease is revoked, for people."""
    words = {"max_lease": "it has lasted for as long as it may", "others_wait": "others wait for the slot"}
    return words.get(reason, f"its runner goes ({reason.replace('_', ' ')})")


class Command:
    """A command that runs while a lease is held."""

    def __init__(self, argv: Sequence[str], say: Callable[[str], None]) -> None:
        self._argv = argv
        self._say = say
        self._process: subprocess.Popen[bytes] | None = None
        self._failure: Exception | None = None

    def run(self, held: Row, replies: Iterator[Row]) -> int:
        """Run the command while the lease is held, of which this reply has told; its exit code. Raises
        CallFailed, Unreachable and OSError (no such command)."""
        told = environment(held["lease"], held["model"])
        before = {number: signal.signal(number, self._pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            with subprocess.Popen(self._argv, env={**os.environ, **told}) as process:
                self._process = process
                threading.Thread(target=self._listen, args=(replies,), daemon=True).start()
                code = process.wait()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        if self._failure is not None:
            raise self._failure
        return code if code >= 0 else 128 - code

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        """A terminal's Ctrl-C reaches the command by itself."""
        if number == signal.SIGTERM and self._process is not None:
            self._process.terminate()

    def _listen(self, replies: Iterator[Row]) -> None:
        """Hear what the holder has to know, in a thread of its own; the end of the lease ends the command."""
        try:
            for reply in replies:
                if reply["state"] == "revoked":
                    self._revoked(reply["reason"], reply["left_ns"] / S)
        except (CallFailed, Unreachable) as error:
            self._failure = error
            self._end()

    def _revoked(self, reason: str, left_s: float) -> None:
        ends_s = max(left_s / 2, left_s - LEASE_LAST_S)
        self._say(f"the lease is revoked, {why(reason)}; the command gets SIGTERM in {ends_s:.0f} s")
        timer = threading.Timer(ends_s, self._end)
        timer.daemon = True
        timer.start()

    def _end(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()


def pairs(options: tuple[str, ...]) -> dict[str, str]:
    """Launch options as they are written on the command line."""
    for option in options:
        if "=" not in option:
            raise click.UsageError(f"--option takes NAME=VALUE, not {option!r}")
    return dict(option.split("=", 1) for option in options)


@click.command()
@click.argument("model", required=False, default="")
@click.argument("command", nargs=-1, metavar="[-- COMMAND…]")
@click.option("--option", "-o", "options", multiple=True, metavar="NAME=VALUE", help="A launch option.")
@click.option("--priority", type=int, default=0, metavar="N", help="Added to the model's priority.")
@click.option("--token", help="Hold the lease again whose token this is, instead of asking for one.")
@click.pass_obj
def lease(
    context: Context,
    model: str,
    command: tuple[str, ...],
    options: tuple[str, ...],
    priority: int,
    token: str | None,
) -> int:
    """Hold a slot of MODEL, and talk to its runner directly.

    \b
      runnerctl lease qwen                      until Ctrl-C; prints the address
      runnerctl lease qwen -- python bench.py   for as long as a command runs

    The command finds the address in $RUNNERD_ADDRESS and $OPENAI_BASE_URL. It gets SIGTERM when others need
    the slot, in time to let go of it.
    """
    if token:
        command, model = (model, *command) if model else (), ""
    elif not model:
        raise click.UsageError("name a MODEL, or --token")
    asked: Row = (
        {"token": token} if token else {"model": model, "options": pairs(options), "priority": priority}
    )
    if command and shutil.which(command[0]) is None:  # not only once a model has been loaded for it
        raise click.UsageError(f"there is no program {command[0]} that can be run")
    replies = Lease(context.client, asked).replies()
    with context.output.progress(f"{model or 'lease'}: asking") as show:
        for reply in replies:
            if reply["lease"] is not None:
                break
            show(f"{model}: waits ({reply['reason'] or 'queued'}), {duration(reply['elapsed_ns'])}")
    if not command:
        return _hold(context, reply, replies)
    try:
        return Command(command, lambda text: click.echo(f"runnerctl: {text}", err=True)).run(reply, replies)
    except OSError as error:
        raise click.UsageError(f"{command[0]}: {error.strerror}") from None


def _hold(context: Context, held: Row, replies: Iterator[Row]) -> int:
    """Show a lease, and what its holder has to know, until he lets go by Ctrl-C."""
    output = context.output
    try:
        for reply in chain([held], replies):
            leased = reply["lease"]
            if output.machine:
                output.line(reply)
            elif leased is not None:
                output.text(f"{reply['model']} is at {leased['url']}{leased['prefix']} ({leased['runner']})")
                output.text(
                    f"{reply['request']} is yours until Ctrl-C; runnerctl lease --token {leased['token']}"
                )
            elif reply["state"] == "revoked":
                left = duration(reply["left_ns"])
                output.text(f"let go within {left} (Ctrl-C): {why(reply['reason'])}", style="bold yellow")
    except KeyboardInterrupt:
        pass
    return 0


__all__ = ["Command", "Lease", "environment", "lease", "pairs", "why"]
