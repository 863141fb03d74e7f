"""`runnerctl restart`: the daemon's program starts again in place, and its runners stay."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from daemon.cli.output import Output, duration
from daemon.control.client import Client, Unreachable

BACK_S = 15.0
"""How long nobody may listen on the control socket: it is handed over, so that nobody does only where the
program did not start, until systemd starts it once more."""

POLL_S = 0.05
"""Between two tries to reach it then."""

Row = dict[str, Any]


def restart_daemon(connect: Callable[[], Client], output: Output, *, now: bool) -> Row:
    """Restart, and wait until the new program answers: what became of the runners. Raises CallFailed,
    Unreachable."""
    client = connect()
    last = Row()
    with output.progress("restart: asking") as show:
        try:
            for last in client.calls("Restart", now=now):
                waiting = last["waiting_for"]
                what = f"waiting for {waiting} request{'' if waiting == 1 else 's'} to end"
                show(f"restart: {what}, {duration(last['left_ns'])} at most" if waiting else "restart")
        except Unreachable:
            if not last:
                raise
        began = time.monotonic()
        show("restart: waiting until it answers again")
        status, runners = _ask_again(connect, began)
    kept = [runner["id"] for runner in runners if runner["id"] in last["runners"]]
    return {
        "before": last["version"],
        "after": status["version"],
        "adopted": kept,
        "gone": [id for id in last["runners"] if id not in kept],
        "gap_ns": int((time.monotonic() - began) * 1e9),
    }


def _ask_again(connect: Callable[[], Client], began: float) -> tuple[Row, list[Row]]:
    """The new program's first answers."""
    while True:
        try:
            client = connect()
            return client.call("Status"), client.call("ListRunners")["runners"]
        except Unreachable as error:
            if time.monotonic() - began > BACK_S:
                message = f"the daemon has not come back; its journal says why. {error}"
                raise Unreachable(message) from None
        time.sleep(POLL_S)


def words(done: Row) -> str:
    """What was done, for people."""
    adopted, gone = len(done["adopted"]), done["gone"]
    count = f"{adopted} of {adopted + len(gone)}" if gone else str(adopted)
    one = adopted == 1 and not gone
    text = f"runnerd {done['before']} -> {done['after']}, {count} runner{'' if one else 's'} adopted"
    text = f"{text} in {duration(done['gap_ns'])}"
    return f"{text}; gone: {', '.join(gone)} (runnerlog show {gone[0]} says why)" if gone else text
