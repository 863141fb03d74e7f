"""`runnerlog why` and `why-not`: the chain of causes, and what is in a model's way."""

from __future__ import annotations

import click

from daemon.cli.logfile import Settings
from daemon.cli.moments import FORMS, Moment, Past, last_by
from daemon.cli.output import Output, day_and_time
from daemon.cli.told import print_explanation, print_why_not
from daemon.explain.walk import happening
from daemon.explain.why import explain, explain_absence


@click.command()
@click.option("--at", type=Moment(), help=f"At this moment: {FORMS}.")
@click.argument("subject")
@click.pass_obj
def why(settings: Settings, at: int | Past | None, subject: str) -> None:
    """Why SUBJECT is as it is: a runner (r17), a request (q12), an operation (o9), or a model."""
    output = settings.output
    with settings.open() as reader, output.progress("reading the log"):
        upto = None if at is None else last_by(reader, at)
        told = explain(reader, subject, upto)
        last = happening(reader, told.upto_seq)
    _say_when(output, last.at if last is not None else 0, told.upto_seq)
    print_explanation(output, told)


@click.command("why-not")
@click.option("--at", type=Moment(), help=f"At this moment: {FORMS}.")
@click.argument("model")
@click.pass_obj
def why_not(settings: Settings, at: int | Past | None, model: str) -> None:
    """What is in the way of MODEL being loaded, and when that can clear at the earliest."""
    output = settings.output
    with settings.open() as reader, output.progress("reading the log"):
        told = explain_absence(reader, model, None if at is None else last_by(reader, at))
    _say_when(output, told.at_ns, told.seq)
    print_why_not(output, told)


def _say_when(output: Output, at_ns: int, seq: int) -> None:
    """A log says nothing of what came after it: its "now" is that of its last event."""
    if not output.machine and at_ns:
        day, clock = day_and_time(at_ns)
        output.text(f"As of {day} {clock}, event {seq}:", dim=True)


__all__ = ["why", "why_not"]
