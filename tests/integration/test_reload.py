"""Reloading: what it applies, what it leaves alone, and everything that may be going on meanwhile."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import signal
import termios
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from daemon.catalog import Catalog
from daemon.config.config import SETTINGS, Config, SpecChanged
from daemon.config.errors import ConfigError
from daemon.config.file import load
from daemon.control.client import CallFailed, Client
from daemon.driver import Driver, launch_of
from daemon.reload import AT_START, Asked, Refused, Reloaded, Reloader
from daemon.service import command
from events import catalogue as c
from statemachines.runner import RunnerState
from tests.integration.live import Live, daemon, gone, ngram
from tests.integration.test_driver import LIMIT_S, Here, dispatched, driving, ended, logged

KEY = b"key"
MODEL = "{{cmd: 'server --port ${{PORT}} {more}', memory: 1GiB, slots: {slots}}}"
QUEUED = 10_000


def model(more: str = "", slots: int = 1) -> str:
    return MODEL.format(more=more, slots=slots)


class Bench:
    """A driver with a configuration from a file, and a reloader."""

    def __init__(self, here: Here, path: Path) -> None:
        self.here = here
        self.path = path
        self.catalog = Catalog(load(path))
        self.reloader = Reloader(here.driver, self.catalog, KEY)
        here.driver.submit(c.ConfigChanged(self.catalog.config.view(KEY)))

    @property
    def driver(self) -> Driver:
        return self.here.driver

    def write(self, **models: str) -> None:
        """In one go: it may be being read."""
        new = self.path.with_suffix(".new")
        new.write_text(configuration(**models))
        new.replace(self.path)

    async def reload(self, by: str = "test") -> Any:
        return await answer(self.reloader.ask(by))


def configuration(*top: str, **models: str) -> str:
    entries = "".join(f"  {id}: {text}\n" for id, text in models.items())
    head = ["devices: {host: {budget: 8GiB}}", "memoryHeadroom: 0", f"maxQueue: {QUEUED}", *top]
    return "\n".join(head) + f"\nmodels:\n{entries}"


async def answer(asked: Asked) -> Any:
    with trio.fail_after(LIMIT_S):
        await asked.done.wait()
    return asked.outcome


@asynccontextmanager
async def bench(tmp_path: Path, **models: str) -> AsyncIterator[Bench]:
    path = tmp_path / "config.yaml"
    path.write_text(configuration(**models))
    async with driving(tmp_path) as here, trio.open_nursery() as nursery:
        made = Bench(here, path)
        nursery.start_soon(made.reloader.run)
        yield made
        nursery.cancel_scope.cancel()


# --- with faked processes ---------------------------------------------------------------------------------


async def test_what_changed_is_told_and_only_that_goes(tmp_path: Path) -> None:
    async with bench(tmp_path, a=model(), b=model(), d=model()) as on:
        ra, rb, rd = [await on.here.loaded(name) for name in "abd"]
        on.write(a=model("--new"), b="{cmd: 'server --port ${PORT} ', memory: 1GiB, ttl: 60}", e=model())
        done = await on.reload()
        assert (done.added, done.changed, done.removed) == (("e",), ("a", "b"), ("d",))
        assert [(each.runner, each.model) for each in done.going] == [(ra, "a"), (rd, "d")]
        assert (done.settings, done.warnings) == ((), ())
        await on.here.exits(ra)
        await on.here.exits(rd)
        runner = on.driver.state.runners[rb]
        assert (runner.state, on.driver.state.config.models["b"].keep_alive_ns) == (
            RunnerState.ready,
            60_000_000_000,
        )
        assert on.catalog.resolve("d") is None
        assert on.catalog.resolve("e") == "e"


async def test_a_reload_of_the_same_is_no_event(tmp_path: Path) -> None:
    async with bench(tmp_path, a=model()) as on:
        seq = on.driver.state.seq
        assert await on.reload() == Reloaded((), (), (), (), (), (), seq)
        assert on.driver.state.seq == seq


async def test_a_file_that_cannot_be_used_changes_nothing(tmp_path: Path) -> None:
    async with bench(tmp_path, a=model()) as on:
        before, seq = on.catalog.config, on.driver.state.seq
        for text in (
            "models: {a: {cmd: 's ${PORT}', ttl: soon}, b: {}}\nmaxQueue: none\n",
            "models: [",
            "\0",
            "",
            "a: &a [*a]\n",
        ):
            on.path.write_text(text)
            error = await on.reload()
            assert isinstance(error, ConfigError), text
        on.path.unlink()
        assert isinstance(await on.reload(), ConfigError)
        assert on.catalog.config is before
        assert on.driver.state.seq == seq
        on.write(a=model(), b=model())
        assert (await on.reload()).added == ("b",)


async def test_a_mistake_in_the_reading_is_an_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(path: Path) -> Config:
        raise RuntimeError("a mistake")

    async with bench(tmp_path, a=model()) as on:
        with monkeypatch.context() as patch:
            patch.setattr("daemon.reload.load", broken)
            assert await on.reload() == Refused("internal", "RuntimeError: a mistake")
        assert (await on.reload()).added == ()


async def test_while_the_log_is_blocked_it_is_refused_and_nobody_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with bench(tmp_path, a=model(), b=model()) as on:
        runner = await on.here.loaded("a")
        first, second = on.here.arrive("a"), on.here.arrive("a")
        await on.driver.durable(on.driver.state.seq)
        on.write(a=model("--new"))
        with monkeypatch.context() as patch:
            patch.setattr(Driver, "log_blocked", "database or disk is full")
            refused = await on.reload()
        assert (refused.reason, "disk is full" in refused.message) == ("log_blocked", True)
        assert on.catalog.resolve("b") == "b"
        assert on.driver.state.runners[runner].state is RunnerState.ready
        await dispatched(first, runner)
        on.here.answers(first, runner)
        await dispatched(second, runner)
        on.here.answers(second, runner)


async def test_while_it_stops_it_is_refused(tmp_path: Path) -> None:
    async with bench(tmp_path, a=model()) as on:
        on.driver.submit(c.StopRequested("drain"))
        on.write(b=model())
        assert (await on.reload()).reason == "stopping"
        assert on.catalog.resolve("a") == "a"


async def test_who_asks_before_one_begins_shares_it_and_who_asks_later_has_the_next(tmp_path: Path) -> None:
    """Whatever the file said when somebody asked is in force when he is answered, or something newer."""
    async with bench(tmp_path, a=model()) as on:
        on.write(a=model(), b=model())
        first, same = on.reloader.ask("first"), on.reloader.ask("second")
        assert first is same
        while on.reloader._next is first:
            await trio.lowlevel.checkpoint()
        on.write(a=model(), b=model(), e=model())
        later = on.reloader.ask("third")
        assert later is not first
        assert (await answer(first)).added[:1] == ("b",)
        await answer(later)
        assert on.catalog.resolve("e") == "e"


async def test_ten_thousand_wait_and_none_is_lost(tmp_path: Path) -> None:
    """Half of them for a model that is removed: those are told; the others are served by the new runner."""
    async with bench(tmp_path, a=model(), b=model()) as on:
        ra, rb = await on.here.loaded("a"), await on.here.loaded("b")
        running = on.here.arrive("b")
        await dispatched(running, rb)
        tickets = [on.here.arrive("ab"[i % 2]) for i in range(QUEUED)]
        assert on.driver.state.queued == QUEUED - 1  # one got the slot of a
        await dispatched(tickets[0], ra)
        on.write(b=model("--new", slots=8))
        done = await on.reload()
        assert [each.runner for each in done.going] == [ra, rb]
        for ticket in tickets[2::2]:
            assert (await ended(ticket)).status == 404
        on.here.answers(tickets[0], ra)
        on.here.answers(running, rb)
        await on.here.exits(rb)
        new = await on.here.starts("b")
        for ticket in tickets[1::2]:
            await dispatched(ticket, new)
            on.here.answers(ticket, new)
        await on.here.exits(ra)
        assert on.driver.state.queued == 0


async def test_a_load_that_was_decided_before_is_not_carried_out_after(tmp_path: Path) -> None:
    async with bench(tmp_path, a=model(), b=model()) as on:
        await on.here.loaded("b")  # so that memory has been measured
        await on.here.store.hold()
        ticket = on.here.arrive("a")
        (old,) = on.driver.state.models["a"].values()
        launch = launch_of(old)
        assert command(on.catalog, KEY, "a", launch, "").argv[-1] == "5801"
        on.write(a=model("--new"), b=model())
        done = await on.reload()
        assert [each.runner for each in done.going] == [old.id]
        on.here.store.release()
        await on.here.done(f"ensure {old.id}")
        with pytest.raises(SpecChanged, match="has changed since"):
            command(on.catalog, KEY, "a", launch, "")
        on.driver.report(c.SpawnFailed(old.id, "spec_changed"))
        new = await on.here.starts("a")
        await dispatched(ticket, new)
        on.here.answers(ticket, new)
        log = await logged(on.here)
        assert [e.subject for e in log if isinstance(e.body, c.RunnerUnloaded)] == [old.id]
        assert not any(isinstance(e.body, c.ModelCooling) for e in log)


async def test_the_keys_of_a_wide_door_cannot_be_taken_away(tmp_path: Path) -> None:
    async with bench(tmp_path, a=model()) as on:
        on.reloader._host = "0.0.0.0"
        error = await on.reload()
        assert isinstance(error, ConfigError)
        assert "0.0.0.0 can be reached from other machines" in str(error)
        on.path.write_text(configuration("apiKeys: [0123456789abcdef]", a=model()))
        assert (await on.reload()).settings == ("apiKeys",)
        on.write(a=model())
        assert isinstance(await on.reload(), ConfigError)
        assert on.catalog.config.api_keys


async def test_what_only_a_start_can_change_is_said_every_time(tmp_path: Path) -> None:
    async with bench(tmp_path, a=model()) as on:
        top = ("listen: ':9999'", "durability: machine", "maxLoadedModels: 2")
        on.path.write_text(configuration(*top, a=model()))
        done = await on.reload()
        assert set(done.settings) == {"listen", "durability", "maxLoadedModels"}
        for _ in range(2):
            words = "\n".join(done.warnings)
            assert "listen: takes effect at the next start" in words
            assert "durability: takes effect" in words
            assert len(done.warnings) == 2
            done = await on.reload()


async def test_a_runner_stays_as_it_was_loaded_and_that_is_said(tmp_path: Path) -> None:
    text = "{{cmd: 's ${{PORT}} -c ${{num_ctx}}', memory: 1GiB, slots: {}, options: {{num_ctx: {}}}}}"
    async with bench(tmp_path, a=text.format(1, 4096)) as on:
        runner = await on.here.loaded("a")
        on.write(a=text.format(2, 8192))
        done = await on.reload()
        assert done.going == ()
        assert done.warnings == (f"{runner} of a stays as it was loaded: num_ctx=4096, slots=1",)


def test_every_setting_of_a_configuration_has_its_key() -> None:
    others = {"file", "models", "aliases", "problems", "lines", "port_last"}
    assert set(SETTINGS) == set(Config.__struct_fields__) - others
    assert set(AT_START) <= set(SETTINGS)


# --- the whole daemon -------------------------------------------------------------------------------------

RED = f"  red: {{cmd: '{ngram('--slots 2 --tokens-per-second 20')}', memory: 50MiB, slots: 2}}\n"
BLUE = f"  blue: {{cmd: '{ngram()}', memory: 50MiB}}\n"
TOP = "memoryHeadroom: 0\nmodels:\n"


def change(live: Live, text: str) -> None:
    """Another text for the file, with the same ports."""
    first = live.config.read_text().partition("\n")[0]
    live.config.write_text(f"{first}\n{text}")


def pids(live: Live) -> dict[str, int]:
    runners = Client([live.socket]).call("ListRunners")["runners"]
    return {runner["model"]: runner["pid"] for runner in runners}


def test_a_request_goes_on_while_its_runner_is_replaced(tmp_path: Path) -> None:
    with daemon(tmp_path, TOP + RED + BLUE) as live:
        assert live.chat("blue")[0] == 200
        with live.stream("red", tokens=60) as stream:
            before = pids(live)
            red = RED.replace("{cmd", "{aliases: [rot], env: [A=1], cmd")
            change(live, TOP + red + BLUE.replace("blue", "sky"))
            done = live.runnerctl("--json", "reload")
            assert done.returncode == 0, done.stderr
            said = json.loads(done.stdout)
            assert (said["ok"], said["added"], said["changed"], said["removed"]) == (
                True, ["sky"], ["red"], ["blue"],
            )  # fmt: skip
            assert {each["model"] for each in said["going"]} == {"red", "blue"}
            answers: list[int] = []
            asking = threading.Thread(target=lambda: answers.append(live.chat("rot", max_tokens=2)[0]))
            asking.start()
            assert b"[DONE]" in stream.read()
        asking.join()
        assert answers == [200]
        gone(before["blue"])
        assert live.chat("sky")[0] == 200
        assert live.chat("blue")[0] == 404
        assert pids(live)["red"] != before["red"]
    assert "runner.failed" not in live.tags()


def test_a_bad_file_is_told_by_line_and_nothing_changes(tmp_path: Path) -> None:
    with daemon(tmp_path, TOP + RED) as live:
        assert live.chat("red", max_tokens=2)[0] == 200
        before = pids(live)
        change(live, TOP + RED.replace("slots: 2}", "slotz: 2}") + "  other: {}\n")
        done = live.runnerctl("--no-json", "reload")
        assert done.returncode == 1
        lines = done.stderr.splitlines()
        assert lines[0] == "runnerctl: the configuration stays as it was:"
        assert f'{live.config}:4: models.red.slotz: unknown key "slotz"; the nearest is "slots"' in lines
        assert any(line.startswith(f"{live.config}:5: models.other.cmd: expected") for line in lines)
        with pytest.raises(CallFailed) as failed:
            Client([live.socket]).call("Reload")
        assert failed.value.short == "ConfigurationInvalid"
        assert [each["line"] for each in failed.value.parameters["problems"]] == [4, 5]
        assert failed.value.parameters["file"] == str(live.config)
        assert live.chat("red", max_tokens=2)[0] == 200
        assert pids(live) == before
        change(live, "listen: 127.0.0.1:1\n" + TOP + BLUE)
        done = live.runnerctl("--no-json", "reload")
        assert done.stdout.splitlines()[:2] == ["added    blue", "removed  red"]
        assert "settings listen" in done.stdout
        assert "going    r" in done.stdout
        assert done.stderr == f"warning: {live.config}:2: listen: takes effect at the next start\n"
        assert live.runnerctl("--no-json", "reload").stdout == "nothing has changed\n"


def test_sighup_reloads_and_a_bad_file_is_in_the_journal(tmp_path: Path) -> None:
    with daemon(tmp_path, TOP + RED) as live:
        change(live, TOP + RED + BLUE)
        live.process.send_signal(signal.SIGHUP)
        assert live.read_until("1 added, 0 changed, 0 removed")
        assert live.chat("blue")[0] == 200
        change(live, "models: {")
        live.process.send_signal(signal.SIGHUP)
        assert live.read_until("the configuration stays as it was")
        assert live.chat("blue")[0] == 200
    by = [event.body.by for event in live.events() if isinstance(event.body, c.ConfigChanged)]
    assert by == ["start", "SIGHUP"]


def test_a_device_that_is_not_there_is_told_at_start_and_at_a_reload(tmp_path: Path) -> None:
    slip = 'slip: {cmd: "sleep 1 ${PORT}", memory: {gpu998: 1GiB, gpu999: 1GiB}}'
    text = TOP.replace("models:\n", f"devices: {{gpu998: {{budget: 8GiB}}}}\nmodels:\n  {slip}\n") + RED
    with daemon(tmp_path, text) as live:
        words = "there is no gpu999 here (only "
        assert live.read_until(words)
        change(live, text + BLUE)
        (warning,) = json.loads(live.runnerctl("reload").stdout)["warnings"]
        assert warning.startswith(words) and warning.endswith("(memory of slip)")


def test_the_end_of_its_terminal_stops_it(tmp_path: Path) -> None:
    """SIGHUP is also what a closed window sends: nobody wants a reload then."""
    live = Live(tmp_path, TOP + RED)
    terminal, inside = pty.openpty()
    live.options = ["--lazy"]
    live.launch(stdin=inside, start_new_session=True, preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY))
    os.close(inside)
    assert live.read_until("listening on")
    live.process.send_signal(signal.SIGHUP)
    assert live.read_until("0 added, 0 changed, 0 removed")
    os.close(terminal)
    assert live.wait() == 0
    assert any("the terminal has been closed" in line for line in live.journal)
    assert live.leftovers() == []


def test_nohup_holds(tmp_path: Path) -> None:
    live = Live(tmp_path, TOP + RED)
    terminal, inside = pty.openpty()

    def begin() -> None:
        fcntl.ioctl(0, termios.TIOCSCTTY)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    live.launch(stdin=inside, start_new_session=True, preexec_fn=begin)
    os.close(inside)
    assert live.read_until("listening on")
    os.close(terminal)
    assert live.read_until("0 added, 0 changed, 0 removed")  # a hang-up is a SIGHUP like any other
    assert live.stop() == 0


def test_reloads_under_load_lose_nobody(tmp_path: Path) -> None:
    """Clients ask without a pause while one model's command, the other's limits and the queue's change and
    change back, by both ways of asking for it."""
    texts = [
        TOP + RED + BLUE,
        "maxQueue: 300\n"
        + TOP
        + RED.replace("{cmd", "{env: [A=1], cmd")
        + BLUE.replace("{cmd", "{ttl: 60, cmd"),
        "models: [this is no configuration",
    ]
    with daemon(tmp_path, texts[0]) as live:
        over = threading.Event()
        statuses: list[int] = []

        def ask(model: str) -> None:
            while not over.is_set():
                statuses.append(live.chat(model, max_tokens=1)[0])

        clients = [threading.Thread(target=ask, args=(name,)) for name in ("red", "blue", "red", "blue")]
        for client in clients:
            client.start()
        codes = []
        for i in range(12):
            replace(live, texts[i % 3])
            live.process.send_signal(signal.SIGHUP)
            codes.append(live.runnerctl("reload").returncode)
        over.set()
        for client in clients:
            client.join()
        assert codes == [0, 0, 1] * 4
        assert set(statuses) == {200}
        assert pids(live).keys() <= {"red", "blue"}
    events = live.events()
    assert not any(isinstance(e.body, c.RunnerFailed | c.RequestFailed | c.ModelCooling) for e in events)


def replace(live: Live, text: str) -> None:
    """Another text for the file, in one go: a reload may be reading it."""
    new = live.config.with_suffix(".new")
    new.write_text(live.config.read_text().partition("\n")[0] + "\n" + text)
    new.replace(live.config)


def test_a_profile_stays_in_use(tmp_path: Path) -> None:
    profiles = (
        "profiles: {day: {description: by day, pins: {main: blue, red: ~}}, night: {pins: {main: red}}}\n"
    )
    with daemon(tmp_path, profiles + TOP + RED + BLUE) as live:
        assert live.chat("main", max_tokens=1)[0] == 404
        listed = live.runnerctl("--no-json", "profile").stdout
        assert "by day" in listed
        assert "yes" not in listed
        assert live.runnerctl("--no-json", "profile", "day").stdout == "profile day is in use\n"
        assert live.chat("main", max_tokens=1)[0] == 200
        assert live.chat("red", max_tokens=1)[0] == 404
        assert [row["id"] for row in live.get("/v1/models")["data"]] == ["red", "blue", "main"]
        told = json.loads(live.runnerctl("--json", "profile").stdout)
        assert told == {"active": "day", "profiles": {"day": "by day", "night": ""}}
        refused = live.runnerctl("--no-json", "profile", "noon")
        assert (refused.returncode, refused.stderr) == (
            1,
            "runnerctl: no profile 'noon'; there are day, night\n",
        )
        assert live.runnerctl("profile", "day", "--none").returncode == 2
        assert live.runnerctl("--no-json", "profile", "--none").stdout == "no profile is in use\n"
        assert live.chat("red", max_tokens=1)[0] == 200
        live.runnerctl("profile", "day")
        change(live, "maxQueue: 99\n" + profiles + TOP + RED + BLUE)
        assert live.runnerctl("reload").returncode == 0
        assert live.chat("main", max_tokens=1)[0] == 200
        connection = live.connect()
        connection.request("PUT", "/api/profiles/active", json.dumps({"name": "night"}))
        assert json.loads(connection.getresponse().read()) == {"active": "night"}
        connection.close()
        live.kill()
        live.start()
        assert live.get("/api/profiles")["active"] == "night"
        assert live.chat("main", max_tokens=1)[0] == 200
        change(live, TOP + RED + BLUE)
        assert live.runnerctl("reload").returncode == 0
        assert live.get("/api/profiles") == {"active": None, "profiles": []}
        assert live.chat("main", max_tokens=1)[0] == 404
        chosen = [event.body for event in live.events() if type(event.body) is c.ProfileRequested]
        assert [body.name for body in chosen] == ["day", "", "day", "night"]
        assert chosen[-1].by == "http 127.0.0.1"
        assert pids(live).keys() >= {"red"}


def test_the_profile_of_the_file_holds_after_each_start_and_reload(tmp_path: Path) -> None:
    at_start = "hooks: {on_startup: {profile: night}}"
    wanted = f"{at_start}\nprofiles: {{day: {{pins: {{m: red}}}}, night: {{pins: {{m: red}}}}}}\n"
    with daemon(tmp_path, wanted + TOP + RED) as live:
        assert live.get("/api/profiles")["active"] == "night"
        live.runnerctl("profile", "day")
        live.kill()
        live.start()
        assert live.get("/api/profiles")["active"] == "night"
        live.runnerctl("profile", "day")
        change(live, wanted.replace("profile: night", "profile: day") + TOP + RED)
        assert live.runnerctl("--no-json", "reload").stdout == "settings hooks\n"
        assert live.get("/api/profiles")["active"] == "day"
        live.runnerctl("profile", "--none")
        assert live.runnerctl("--no-json", "reload").stdout == "nothing has changed\n"
        assert live.get("/api/profiles")["active"] == "day"
