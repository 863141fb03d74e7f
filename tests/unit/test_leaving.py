"""Who may ask the daemon to leave, and what becomes of it where several do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import trio

from daemon.driver import Driver
from daemon.leaving import Leaver
from daemon.limits import SETTLE_S
from events import catalogue as c
from events.limits import MS, S
from statemachines.parts import Request
from statemachines.state import State


class Desk:
    """As much of a driver as leaving takes; time stands still but for what a test says."""

    def __init__(self, unload_ns: int = 30 * S) -> None:
        self.state = State()
        view = c.ModelView("digest", unload_ns=unload_ns)
        self.state.config = c.ConfigView(models={"m": view})
        self.state.requests["q1"] = Request("q1", 1, "m", "", "chat", {}, 0, 0, None, "")
        self.t = 0
        self.submitted: list[c.Fact] = []

    def now(self) -> int:
        return self.t

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            await trio.lowlevel.checkpoint()

    def submit(self, fact: c.Fact) -> None:
        self.submitted.append(fact)


def leaver(desk: Desk) -> Leaver:
    return Leaver(cast("Driver", cast("Any", desk)), Path("config.yaml"))


@pytest.mark.parametrize("how", [{"again": True}, {"again": True, "now": True}])
async def test_who_asks_twice_waits_no_longer(how: dict[str, bool], autojump_clock: object) -> None:
    leaving = leaver(desk := Desk())
    leaving.ask("somebody", again=True)
    leaving.ask("somebody", **how)
    await leaving.run()
    assert leaving.again
    assert desk.submitted == [c.StopRequested("leave", "somebody")]


async def test_systemd_s_restart_ends_the_process_though_one_in_place_waits(autojump_clock: object) -> None:
    """It has a job that waits for that: a program that started again in place would be killed for it."""
    leaving = leaver(Desk())
    leaving.ask("an operator", again=True)
    leaving.ask("SIGTERM, to restart")
    await leaving.run()
    assert not leaving.again
    leaving.ask("an operator", again=True)
    assert not leaving.again


async def test_a_patience_shorter_than_the_look_at_who_is_about_to_ask(autojump_clock: object) -> None:
    leaving = leaver(desk := Desk(unload_ns=100 * MS))
    leaving.expecting = lambda: True
    leaving.ask("somebody", again=True)
    desk.t = int(SETTLE_S * S)
    await leaving.run()
    assert desk.submitted
