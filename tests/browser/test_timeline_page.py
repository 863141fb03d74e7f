"""The timeline's page, in a real browser: what it draws, says and does. `make test-browser` finds one."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from daemon.history.lives import Mark, Part, RequestLife, RunnerLife, Span, Timeline
from daemon.history.page import Origin, page
from statemachines.state import State
from tests.browser.chromium import Browser, find_browser
from tests.unit.test_page import HOSTILE, hostile_log
from tests.unit.test_timeline import AT, at, log_of, timeline_of

ORIGIN = Origin("/var/lib/runnerd/events.db", "the log's id", "0.1.0", "runnerlog why")
HELPERS = Path(__file__).with_name("helpers.js").read_text()
WIDE, NARROW = (1280, 860), (360, 740)

Window = tuple[float, float]
"""The part of the log's time that is shown."""


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    program = find_browser()
    assert program, "no browser: `make test-browser` says which are looked for"
    with Browser(program, tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture(scope="session")
def line() -> Timeline:
    """A world in which much goes wrong."""
    return timeline_of(log_of(3))


@pytest.fixture(scope="session")
def busy_page(tmp_path_factory: pytest.TempPathFactory, line: Timeline) -> Path:
    path = tmp_path_factory.mktemp("page") / "page.html"
    path.write_bytes(page(line, ORIGIN))
    return path


def show(browser: Browser, path: Path, size: tuple[int, int] = WIDE, *, dark: bool = False) -> None:
    """Open a page, which must be without errors and ask for nothing."""
    browser.size(*size, dark=dark)
    browser.open(path.as_uri())
    browser.run(HELPERS)
    check_quiet(browser, path)


def check_quiet(browser: Browser, path: Path) -> None:
    asked = [
        e["params"]["request"]["url"]
        for e in browser.events
        if e.get("method") == "Network.requestWillBeSent"
    ]
    assert asked == [path.as_uri()]
    loud = (
        "Runtime.exceptionThrown",
        "Log.entryAdded",
        "Runtime.consoleAPICalled",
        "Page.javascriptDialogOpening",
    )
    assert [event for event in browser.events if event.get("method") in loud] == []


def place_of(browser: Browser, kind: str) -> tuple[float, float]:
    """Where something of a kind is, in the window; it is brought into view."""
    browser.ask("placeOf", kind)
    browser.settle()
    x, y = browser.ask("placeOf", kind)
    return x, y


def text_of(browser: Browser, id: str) -> str:
    found: str = browser.run(f"document.getElementById({json.dumps(id)}).innerText")
    return found


# --- what it shows ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("size", [WIDE, NARROW])
def test_it_opens_quietly_and_draws(
    browser: Browser, busy_page: Path, size: tuple[int, int], dark: bool
) -> None:
    show(browser, busy_page, size, dark=dark)
    assert browser.ask("coloursDrawn") > 30
    assert "requests" in text_of(browser, "about")
    assert browser.run("document.title").startswith("runnerd timeline, 2023-11-1")
    assert browser.run("document.documentElement.scrollWidth <= innerWidth")
    assert browser.run("document.documentElement.scrollHeight <= innerHeight")
    assert browser.ask("outside") == []


def test_light_and_dark_by_the_system_and_both_can_be_read(browser: Browser, busy_page: Path) -> None:
    seen = []
    for dark in (False, True):
        show(browser, busy_page, dark=dark)
        pairs = [
            ("ink", "bg"), ("dim", "bg"), ("ink", "panel"), ("dim", "panel"), ("ink", "soft"),
            ("bad", "panel"),
            ("on-busy", "busy"), ("on-idle", "idle"), ("on-state", "loading"), ("on-state", "draining"),
            ("on-state", "stopping"), ("on-reclaiming", "reclaiming"), ("on-served", "served"),
            ("on-served", "gone"), ("on-bad", "bad"), *(("ink", f"m{i}") for i in range(8)), ("ink", "other"),
        ]  # fmt: skip
        ratios = browser.ask("contrasts", pairs)
        low = [(pair, round(ratio, 2)) for pair, ratio in zip(pairs, ratios, strict=True) if ratio < 4.5]
        assert low == []
        seen.append(browser.run("getComputedStyle(document.body).backgroundColor"))
    assert len(set(seen)) == 2


def test_its_numbers_are_the_timelines(browser: Browser, busy_page: Path, line: Timeline) -> None:
    show(browser, busy_page)
    moments = [line.start_t + (line.end_t - line.start_t) * i // 97 for i in range(97)]
    us = [(t - line.start_t) // 1000 for t in moments]
    queue = browser.ask("queueAt", us)
    assert queue == [sum(at(level, t) for level in line.queued.values()) for t in moments]
    for name in browser.run("LANES.filter((l) => l.kind === 'memory').map((l) => l.label)"):
        held = browser.ask("heldAt", name, us)
        assert held == [
            sum(
                next((s.get(name, 0) for t, s in reversed(life.held) if t <= then), 0)
                for life in line.runners.values()
            )
            for then in moments
        ]
    drawn = browser.run("ROWS.filter((r) => r.kind === 'serve').reduce((n, r) => n + r.start.length, 0)")
    assert drawn == sum(bool(part.runner) for request in line.requests for part in request.parts)
    assert browser.run("ROWS.every((r) => r.start.every((t, i) => !i || t >= r.start[i - 1]))")


def test_times_are_local(browser: Browser, busy_page: Path) -> None:
    for zone in ("Asia/Kolkata", "America/New_York"):
        browser.call("Emulation.setTimezoneOverride", timezoneId=zone)
        show(browser, busy_page)
        begin = datetime.fromtimestamp(AT / 1e9, ZoneInfo(zone))
        assert text_of(browser, "about").startswith(f"{begin:%Y-%m-%d %H:%M:%S} – ")
        ticks = browser.run("ticks().found.map(({t, ms}) => [t, clock(ms, 0)])")
        assert len(ticks) > 3
        for t, words in ticks:
            local = datetime.fromtimestamp(AT / 1e9 + t / 1e6, ZoneInfo(zone))
            assert words == f"{local:%H:%M:%S}" and local.second == 0
    browser.call("Emulation.setTimezoneOverride", timezoneId="")


def test_nothing_happened(browser: Browser, tmp_path: Path) -> None:
    path = tmp_path / "empty.html"
    path.write_bytes(page(timeline_of([]), ORIGIN))
    show(browser, path)
    assert text_of(browser, "about") == "No event in this time."
    for key in ("ArrowRight", "ArrowDown", "Enter", "c", "0", "+", "Escape"):
        browser.key(key)
    browser.click(600, 400)
    check_quiet(browser, path)
    assert browser.ask("coloursDrawn") > 5  # of the letters that say so


# --- what it does ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["state", "serve", "wait", "mark"])
def test_hovering_tells_and_a_click_keeps(browser: Browser, busy_page: Path, kind: str) -> None:
    show(browser, busy_page)
    x, y = place_of(browser, kind)
    browser.mouse("mouseMoved", x, y)
    browser.settle()
    told = text_of(browser, "tip")
    assert "event" in told and "from the beginning" in told
    assert ("runnerlog why " in told) == (kind != "mark")
    box = browser.run(
        "(({left, top, right, bottom}) => [left, top, right, bottom])(tip.getBoundingClientRect())"
    )
    assert box[0] >= 0 and box[1] >= 0 and box[2] <= WIDE[0] and box[3] <= WIDE[1]
    browser.click(x, y)
    assert browser.run("tip.hidden && !detail.hidden")
    kept = text_of(browser, "detail-words")
    assert kept.splitlines()[0] in told
    assert kept.splitlines()[0].split()[0] in text_of(browser, "said")
    browser.key("Escape")
    assert browser.run("detail.hidden && view.chosen === null")
    browser.mouse("mouseMoved", 5, 5)
    check_quiet(browser, busy_page)


def test_the_command_is_copied(browser: Browser, busy_page: Path) -> None:
    show(browser, busy_page)
    browser.call("Browser.grantPermissions", permissions=["clipboardReadWrite", "clipboardSanitizedWrite"])
    browser.call("Page.bringToFront")
    browser.click(*place_of(browser, "serve"))
    command = text_of(browser, "command")
    assert command.startswith("runnerlog why q")
    x, y = browser.run(
        "(({left, top}) => [left + 5, top + 5])(document.getElementById('copy').getBoundingClientRect())"
    )
    browser.click(x, y)
    browser.settle()
    assert text_of(browser, "copy") == "Copied"
    assert browser.run("navigator.clipboard.readText()") == command


def test_charts_say_what_they_show(browser: Browser, busy_page: Path) -> None:
    show(browser, busy_page)
    for kind, words in (("memory", "held of"), ("queue", "queued")):
        x, y = browser.ask("chartPlace", kind)
        browser.mouse("mouseMoved", x, y)
        browser.settle()
        assert words in text_of(browser, "tip")


def seen(browser: Browser) -> Window:
    a, b = browser.run("[view.t0, view.t1]")
    return a, b


def test_zooming_and_moving(browser: Browser, busy_page: Path) -> None:
    show(browser, busy_page)
    whole = seen(browser)
    browser.mouse("mouseWheel", 20, 500, deltaX=0, deltaY=120)
    browser.settle()
    assert browser.run("lanes.scrollTop") == 120 and seen(browser) == whole
    under = browser.run("T(700)")
    browser.mouse("mouseWheel", 700, 500, deltaX=0, deltaY=-300)
    browser.settle()
    closer = seen(browser)
    assert closer[1] - closer[0] < 0.7 * (whole[1] - whole[0])
    assert abs(browser.run("T(700)") - under) < (whole[1] - whole[0]) / 1000
    browser.drag(700, 500, 500, 500)
    assert abs(browser.run("T(500)") - under) < (whole[1] - whole[0]) / 500
    a, b = browser.run("[T(400), T(600)]")
    browser.drag(400, 500, 600, 500, shift=True)
    assert seen(browser) == pytest.approx((a, b), rel=0.01)
    tests: dict[str, Callable[[Window, Window], bool]] = {
        "+": lambda before, after: after[1] - after[0] < before[1] - before[0],
        "-": lambda before, after: after[1] - after[0] > before[1] - before[0],
        "d": lambda before, after: after[0] > before[0],
        "a": lambda before, after: after[0] < before[0],
        "0": lambda before, after: after == whole,
    }
    for key, test in tests.items():
        before = seen(browser)
        browser.key(key)
        assert test(before, seen(browser)), key
    for _ in range(40):
        browser.key("+")
    assert seen(browser)[1] - seen(browser)[0] == pytest.approx(20)
    x, y = browser.run("(({left, top}) => [left + 600, top + 20])(overview.getBoundingClientRect())")
    browser.click(x, y)
    middle = sum(seen(browser)) / 2
    assert middle == pytest.approx(browser.run("LENGTH * 600 / overview.clientWidth"), rel=0.01)
    check_quiet(browser, busy_page)


def test_keys_go_from_one_to_the_next(browser: Browser, busy_page: Path) -> None:
    show(browser, busy_page)
    browser.run("lanes.focus()")
    said = []
    for key in ("ArrowDown", "ArrowRight", "ArrowRight", "ArrowDown", "ArrowDown", "ArrowLeft", "ArrowUp"):
        browser.key(key)
        said.append(text_of(browser, "said"))
        assert browser.ask("chosenIsInView")
    assert all(said) and len(set(said)) > 4
    before = seen(browser)
    browser.key("Enter")
    assert seen(browser) != before
    browser.key("?")
    assert browser.run("document.getElementById('help').open")
    browser.key("Escape")
    assert not browser.run("document.getElementById('help').open")


def test_everything_can_be_reached_by_tab(browser: Browser, busy_page: Path) -> None:
    show(browser, busy_page)
    browser.click(*place_of(browser, "serve"))
    browser.run("document.activeElement.blur()")
    reached = []
    for _ in range(12):
        browser.key("Tab")
        reached.append(browser.run("document.activeElement.id || document.activeElement.textContent"))
        assert browser.ask("focusIsSeen")
    assert {"find", "in", "out", "fit", "ask", "lanes", "copy", "zoom-to", "close"} <= set(reached)
    assert browser.ask("nameless") == []


def test_finding(browser: Browser, busy_page: Path, line: Timeline) -> None:
    show(browser, busy_page)
    request = next(r for r in line.requests if any(part.runner for part in r.parts))
    runner = next(iter(line.runners))
    for wanted in (request.id, runner):
        browser.key("/")
        assert browser.run("document.activeElement.id") == "find"
        browser.run("find.value = ''")
        browser.type(wanted)
        assert wanted in text_of(browser, "found")
        browser.key("Enter")
        assert text_of(browser, "detail-words").split()[0] == wanted
        assert browser.run("document.activeElement.id") == "lanes"
    browser.key("/")
    browser.type("no such thing")
    assert "nothing of this name" in text_of(browser, "found")
    browser.key("Escape")
    assert browser.run("found.hidden")


# --- what is not as one would wish -----------------------------------------------------------------------


@pytest.mark.parametrize("size", [WIDE, NARROW])
def test_hostile_names_are_only_shown(browser: Browser, tmp_path: Path, size: tuple[int, int]) -> None:
    path = tmp_path / "hostile.html"
    line = timeline_of(hostile_log())
    path.write_bytes(page(line, ORIGIN))
    show(browser, path, size)
    assert set(HOSTILE) <= set(browser.run("D.models"))
    elements = browser.run("document.getElementsByTagName('*').length")
    for name in HOSTILE:
        browser.key("/")
        browser.run("find.select()")
        browser.type(name[:40])
        browser.run("showFound()")
        shown = browser.ask("shown", name)
        assert shown.startswith("\u2068") and not set(shown[1:-1]) & set("\u202e\u2066\u2028\x00\x1b")
        assert (
            browser.run("document.querySelectorAll('script, b').length - found.querySelectorAll('b').length")
            >= 2
        )
        browser.key("Escape")
    browser.ask("chooseEverything")
    browser.settle()
    browser.key("Escape")
    assert (
        browser.run("document.querySelectorAll('img, iframe, script:not([type]):nth-of-type(n+3)').length")
        == 0
    )
    assert browser.run("document.getElementsByTagName('*').length") <= elements + 40
    assert browser.run("document.documentElement.scrollWidth <= innerWidth")
    check_quiet(browser, path)


def crowd(count: int) -> Timeline:
    """So many requests, each after the last in one of four slots, and as many waits in three rows."""
    line = Timeline(0, 0, 1, count, clock=[(0, AT)])
    life = line.runners["r1"] = RunnerLife("r1", "m", 4, 0, {}, held=[(0, {"gpu0": 1 << 30})])
    for i in range(count):
        t = i * 10**9
        parts = [Part(t, 2, t + 10**9, row=i % 3), Part(t + 10**9, 3, t + 4 * 10**9, "r1", i % 4)]
        end = Mark(
            t + 4 * 10**9, 4, "failed" if i % 1000 == 7 else "completed", "failed" if i % 1000 == 7 else ""
        )
        line.requests.append(RequestLife(f"q{i + 1}", "m", t, parts=parts, end=end))
        life.spans.append(Span("busy" if i % 2 else "idle", t, t + 10**9, 5))
    line.end_t = (count + 4) * 10**9
    return line


def test_what_it_costs_to_draw_depends_on_the_window_not_on_the_log(browser: Browser, tmp_path: Path) -> None:
    calls = []
    for count in (2_000, 100_000):
        path = tmp_path / f"{count}.html"
        path.write_bytes(page(crowd(count), ORIGIN))
        show(browser, path)
        made: dict[str, int] = browser.ask("callsOfDraw")
        calls.append(made["fillRect"])
        assert made["fillText"] < 400
    rows = browser.run("ROWS.length")
    assert calls[1] < 3 * rows * WIDE[0]
    assert calls[1] < 4 * calls[0]
    odd = browser.run("ROWS.filter((r) => r.odd).reduce((n, r) => n + r.odd.start.length, 0)")
    assert odd == 100  # each failure is drawn again, above the others


def test_a_part_of_a_log_begins_in_the_middle(browser: Browser, tmp_path: Path) -> None:
    from statemachines.replay import fold

    log = log_of(2)  # in its middle there are runners
    path = tmp_path / "part.html"
    line = timeline_of(log[len(log) // 2 :], state=fold(log[: len(log) // 2], State()))
    path.write_bytes(page(line, ORIGIN))
    show(browser, path)
    assert browser.run("D.runners.some((r) => r.load < 0)")
    browser.ask("chooseWhatWasThereBefore")
    assert "since before the beginning" in text_of(browser, "detail-words")
