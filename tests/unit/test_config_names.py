"""Names that stand for models (selectors, profiles, peers), and what a model says of itself."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from daemon.catalog import Catalog
from daemon.config.capabilities import Capabilities
from daemon.config.config import Config
from daemon.config.errors import ConfigError
from daemon.config.file import load
from daemon.config.filters import FilterRules, Filters
from daemon.config.peers import Peer
from daemon.config.selectors import Look, Profile, Selector, Strategy, choose
from daemon.config.timeouts import Timeouts
from daemon.http.refusals import unknown_model
from events import catalogue as c
from events.limits import GIB, S
from statemachines.scheduler import Scheduler
from statemachines.state import State

MODELS = """
models:
  a: {cmd: 's ${PORT}', aliases: [one], memory: 1GiB}
  b: {cmd: 's ${PORT}', memory: 1GiB}
  d: {cmd: 's ${PORT}', memory: 1GiB}
"""
PEERS = """
peers:
  box: {proxy: "http://192.168.1.23/", models: [m1, shared, a]}
  router:
    proxy: https://router.example.org/api/
    apiKey: ${env.KEY}
    models: [q/m2, shared]
    timeouts: {connect: 3, responseHeader: 5}
    filters: {stripParams: top_p, setParams: {provider: {zdr: true}}}
"""


def read(directory: Path, text: str, environ: Mapping[str, str] | None = None) -> Config:
    path = directory / "config.yaml"
    path.write_text(text if "models:" in text.split("peers", maxsplit=1)[0] else MODELS + text)
    return load(path, {"KEY": "hush-hush"} | dict(environ or {}))


def refused(directory: Path, text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        read(directory, text)
    return str(caught.value)


# --- peers ------------------------------------------------------------------------------------------------


def test_peers(tmp_path: Path) -> None:
    config = read(tmp_path, PEERS)
    box, router = config.peers.values()
    assert box == Peer("box", "http://192.168.1.23", ("m1", "shared", "a"), timeouts=Timeouts(30 * S, 60 * S))
    assert router == Peer(
        "router",
        "https://router.example.org/api",
        ("q/m2", "shared"),
        "hush-hush",
        FilterRules(("top_p",), {"provider": {"zdr": True}}),
        Timeouts(3 * S, 5 * S),
    )
    assert "hush" not in repr(config)
    assert config.warnings == ()
    assert config.peer("box/m1") == config.peer("m1") == (box, "m1")
    assert config.peer("router/q/m2") == config.peer("q/m2") == (router, "q/m2")
    assert config.peer("shared") is None  # two have it
    assert config.peer("router/shared") == (router, "shared")
    assert config.peer("a") is None  # served here
    assert config.peer("box/a") == (box, "a")
    assert config.filters("q/m2") == Filters(("top_p",), {"provider": {"zdr": True}})
    assert config.filters("m1") is None


@pytest.mark.parametrize(
    ("peers", "message"),
    [
        ("[x]", "peers: expected a mapping"),
        ("{p: x}", "peers.p: expected a mapping with the key `proxy`"),
        ("{p: {models: [m]}}", "peers.p.proxy: expected http://HOST or https://HOST"),
        ("{p: {proxy: 'ftp://x', models: [m]}}", "peers.p.proxy: expected http://HOST"),
        ("{p: {proxy: 'http://u:hush@x', models: [m]}}", "peers.p.proxy: expected no user's name"),
        ("{p: {proxy: 'http://x'}}", "peers.p.models: expected a list of 1 to 1000"),
        ("{p: {proxy: 'http://x', models: []}}", "peers.p.models: expected a list of 1 to 1000"),
        (
            "{p: {proxy: 'http://x', models: [m], apiKey: 'hush hush'}}",
            "peers.p.apiKey: expected at most 512",
        ),
        (
            "{p: {proxy: 'http://x', models: [m], apiKey: [hush]}}",
            "peers.p.apiKey: expected text, found a list",
        ),
        ("{p: {proxy: 'http://x', models: [m], key: 1}}", 'peers.p.key: unknown key "key"'),
        (
            "{p: {proxy: 'http://x', models: [m], timeouts: {connect: x}}}",
            "timeouts.connect: expected a number",
        ),
        ("{p: {proxy: 'http://x', models: [m], timeouts: {conect: 1}}}", 'the nearest is "connect"'),
        ("{p/q: {proxy: 'http://x', models: [m]}, p: {proxy: 'http://x', models: [q/m]}}", "which is"),
    ],
)
def test_peers_that_cannot_be(tmp_path: Path, peers: str, message: str) -> None:
    found = refused(tmp_path, f"peers: {peers}\n")
    assert message in found
    assert "hush" not in found


def test_a_model_here_has_no_name_of_a_peers(tmp_path: Path) -> None:
    text = "models: {p/m: {cmd: 's ${PORT}'}}\npeers: {p: {proxy: 'http://x', models: [m]}}\n"
    assert 'expected a name that no model here has, found "p/m"' in refused(tmp_path, text)


def test_models_of_peers_are_listed_as_they_can_be_asked_for(tmp_path: Path) -> None:
    pins = 'profiles: {p: {pins: {m1: a, "router/shared": a}}}\n'
    text = PEERS.replace("q/m2, shared", '"q/m2", one, shared, box/m1') + pins
    state = State()
    catalog = Catalog(read(tmp_path, text), state)
    theirs = [row for row in catalog.models() if row.peer]
    shown = ["m1", "box/shared", "box/a", "q/m2", "router/one", "router/shared", "router/box/m1"]
    assert [row.id for row in theirs] == shown
    assert list(catalog.models())[-len(shown) :] == theirs
    for row in theirs:
        asked = catalog.peer(catalog.target(row.id))
        assert asked is not None and f"{asked.id}: {asked.model}" == row.name
        assert row.kind == {"type": "peer", "peerID": asked.id} and row.peer == asked.id
        assert catalog.row(row.id) == row
    far, near = catalog.row("box/m1"), catalog.row("a")
    assert far is not None and (far.id, far.name) == ("box/m1", "box: m1")
    assert near is not None and not near.peer
    assert catalog.row("shared") is None
    state.profile = "p"
    shown = ["box/m1", "box/shared", "box/a", "q/m2", "router/one", "router/box/m1"]
    assert [row.id for row in catalog.models() if row.peer] == shown


def test_a_selector_with_a_peers_models_name_is_listed_once(tmp_path: Path) -> None:
    text = """
models: {a: {cmd: 's ${PORT}'}}
peers: {hub: {proxy: "http://hub:1", models: [x, y]}}
selectors: {x: {strategy: pin, targets: [hub/x]}}
"""
    path = tmp_path / "c.yaml"
    path.write_text(text)
    assert [row.id for row in Catalog(load(path, {})).models()] == ["a", "x", "hub/x", "y"]


def test_a_hint_names_each_name_once(tmp_path: Path) -> None:
    text = "includeAliasesInList: true\nmodels: {big: {cmd: 's ${PORT}', aliases: ['Big:8b', 'Big:9b']}}\n"
    refusal = unknown_model("Big:8", Catalog(read(tmp_path, text))).refusal
    assert refusal.message == "The model 'Big:8' is not configured. Did you mean Big:8b or Big:9b or big?"


# --- selectors --------------------------------------------------------------------------------------------


def test_selectors(tmp_path: Path) -> None:
    config = read(
        tmp_path,
        PEERS
        + """
selectors:
  coding: {strategy: warm, targets: [a, b], name: Coding, description: the best, metadata: {purpose: code}}
  plan: {strategy: pin, targets: [one, box/m1], unlisted: true}
  far: {strategy: pin, targets: [box/m1]}
  many: {strategy: spillover, targets: [a, b, m1], settings: {spillover: 4}}
""",
    )
    assert config.selectors["coding"] == Selector(
        "warm", ("a", "b"), 1, "Coding", "the best", metadata={"purpose": "code"}
    )
    assert config.selectors["many"] == Selector("spillover", ("a", "b", "m1"), 4)
    catalog = Catalog(config)
    assert [row.id for row in catalog.models() if not row.peer] == ["a", "b", "d", "coding", "far", "many"]
    assert [catalog.resolve(name) for name in ("coding", "plan", "far", "many", "a", "x")] == [
        "a", "a", None, "a", "a", None,
    ]  # fmt: skip
    assert catalog.target("far") == "box/m1"
    found = catalog.row("coding")
    assert found is not None
    assert (found.name, found.metadata) == ("Coding", {"purpose": "code"})
    assert found.kind == {"type": "selector", "strategy": "warm", "targets": ["a", "b"]}
    assert found.behind == ("a", "b")
    plan, many = catalog.row("plan"), catalog.row("many")
    assert plan is not None and plan.behind == ("a",)
    assert many is not None and many.behind == ("a", "b")
    assert many.kind == {
        "type": "selector",
        "strategy": "spillover",
        "targets": ["a", "b", "m1"],
        "spillover": 4,
    }
    assert catalog.row("nobody") is None
    assert sorted(catalog.names()) == [
        "a", "a", "b", "box/a", "box/m1", "box/shared", "coding", "d", "far", "m1", "many", "one", "plan",
        "q/m2", "router/q/m2", "router/shared", "shared", "shared",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("selector", "message"),
    [
        ("s: [a]", "selectors.s: expected a mapping with the keys"),
        ("s: {targets: [a]}", 'selectors.s.strategy: expected "warm", "pin" or "spillover", found nothing'),
        ("s: {strategy: hot, targets: [a]}", 'strategy: expected "warm" or "pin" or "spillover", fo'),
        ("s: {strategy: pin}", "selectors.s.targets: expected a list of models, found nothing"),
        ("s: {strategy: pin, targets: [an]}", 'selectors.s.targets[0]: expected the id or alias of a model'),
        ("s: {strategy: pin, targets: [s]}", 'targets[0]: expected a model, found "s", which is a s'),
        ("s: {strategy: warm, targets: [box/m1]}", "expected a model of this machine"),
        ("s: {strategy: pin, targets: [shared]}", "expected the id or alias of a model, found \"shared\""),
        ("s: {strategy: spillover, targets: [a, one]}", "expected each model once, found one under"),
        ("s: {strategy: spillover, targets: [a], settings: {spillover: 0}}", "spillover: expected a whole"),
        ("s: {strategy: spillover, targets: [a], settings: {spill: 1}}", 'unknown key "spill"'),
        ("one: {strategy: pin, targets: [a]}", "selectors.one: expected a name of its own"),
        ("box/m1: {strategy: pin, targets: [a]}", 'selectors."box/m1": expected a name of its own'),
        ("s: {strategy: pin, targets: [a], weight: 3}", 'unknown key "weight"'),
    ],
)  # fmt: skip
def test_selectors_that_cannot_be(tmp_path: Path, selector: str, message: str) -> None:
    assert message in refused(tmp_path, f"{PEERS}\nselectors:\n  {selector}\n")


@pytest.mark.parametrize(
    ("groups", "fine"),
    [
        ("{}", True),
        ("{g: {swap: false, members: [a, b]}}", True),
        ("{g: {swap: true, members: [a, b]}}", False),
        ("{g: {swap: false, members: [a]}}", False),
        ("{g: {swap: false, members: [a]}, h: {swap: false, members: [b]}}", False),
        ("{g: {swap: false, members: [d]}}", False),
    ],
)
def test_spillover_takes_models_that_may_be_loaded_together(tmp_path: Path, groups: str, fine: bool) -> None:
    text = f"groups: {groups}\nselectors: {{s: {{strategy: spillover, targets: [a, b]}}}}\n"
    if fine:
        assert read(tmp_path, text).warnings == ()
    else:
        assert "expected models of one group, which has `swap: false`" in refused(tmp_path, text)


@pytest.mark.parametrize(
    ("sets", "fine"),
    [
        ("{s: a & b}", True),
        ("{s: d | a, t: (a | d) & b}", True),
        ("{s: a | b}", False),
        ("{s: a & d, t: b & d}", False),
        ("{s: d}", False),
    ],
)
def test_spillover_takes_models_that_the_matrix_has_together(tmp_path: Path, sets: str, fine: bool) -> None:
    many = "{strategy: spillover, targets: [one, b, m1]}"
    text = f"{PEERS}\nmatrix: {{sets: {sets}}}\nselectors: {{s: {many}}}\n"
    if fine:
        assert read(tmp_path, text).warnings == ()
    else:
        found = refused(tmp_path, text)
        assert "selectors.s.targets: expected models that one set of the matrix has all of" in found
    with_cycle = text.replace("sets: {", "sets: {x: +x, ")
    assert "does not refer to itself" in refused(tmp_path, with_cycle)


COLD, LOADS, READY = Look(), Look(loading=True), Look(ready=True)


@pytest.mark.parametrize(
    ("strategy", "looks", "chosen"),
    [
        ("pin", {"x": COLD, "y": READY}, "x"),
        ("warm", {"x": COLD, "y": COLD}, "x"),
        ("warm", {"x": COLD, "y": LOADS}, "y"),
        ("warm", {"x": LOADS, "y": READY}, "y"),
        ("warm", {"x": READY, "y": READY}, "x"),
        ("spillover", {"x": COLD, "y": COLD}, "x"),
        ("spillover", {"x": COLD, "y": READY}, "y"),
        ("spillover", {"x": Look(ready=True, busy=1), "y": COLD}, "x"),
        ("spillover", {"x": Look(ready=True, busy=2), "y": COLD}, "y"),
        ("spillover", {"x": Look(busy=2), "y": COLD}, "y"),
        ("spillover", {"x": Look(ready=True, busy=2), "y": Look(loading=True, busy=1)}, "y"),
        ("spillover", {"x": Look(ready=True, busy=3), "y": Look(ready=True, busy=2), "z": COLD}, "z"),
        ("spillover", {"x": Look(ready=True, busy=3), "y": Look(ready=True, busy=2)}, "y"),
        ("spillover", {"x": Look(ready=True, busy=2), "y": Look(ready=True, busy=2)}, "x"),
    ],
)  # fmt: skip
def test_the_target_of_a_selector(strategy: Strategy, looks: dict[str, Look], chosen: str) -> None:
    selector = Selector(strategy, tuple(looks), spillover=2)
    assert choose(selector, looks.__getitem__) == chosen


def test_selectors_go_by_what_is_loaded_and_who_waits(tmp_path: Path) -> None:
    config = read(
        tmp_path,
        """
selectors:
  warm: {strategy: warm, targets: [a, b]}
  many: {strategy: spillover, targets: [a, b], settings: {spillover: 2}}
""",
    )
    made = Scheduler()
    catalog = Catalog(config, made.state)
    made.step(c.DaemonStarted(1, "balanced", "boot", "0"), 1)
    made.step(c.ConfigChanged(config.view(b"")), 2)
    made.step(c.MemoryMeasured({"host": c.Reading(16 * GIB, 12 * GIB)}), 3)
    made.step(c.RequestArrived("b", "chat"), 4)
    (runner,) = made.state.models["b"]
    assert (catalog.resolve("warm"), catalog.resolve("many")) == ("b", "b")
    made.step(c.ProcessSpawned(c.Process(runner, 0, "boot", 1, 1)), 5)
    made.step(c.ProbeAnswered(runner, True), 6)
    assert (catalog.resolve("warm"), catalog.resolve("many")) == ("b", "b")
    made.step(c.RequestArrived("b", "chat"), 7)  # one runs, one waits
    assert (catalog.resolve("warm"), catalog.resolve("many")) == ("b", "a")


def test_metadata_has_the_port_of_the_model_that_is_loaded(tmp_path: Path) -> None:
    at = "{port: '${PORT}', url: 'http://h:${PORT}/'}"
    config = read(tmp_path, f"models: {{m: {{cmd: 's ${{PORT}}', memory: 1GiB, metadata: {at}}}}}\n")
    made = Scheduler()
    catalog = Catalog(config, made.state)

    def metadata() -> Mapping[str, object]:
        (row,) = catalog.models()
        return row.metadata

    assert metadata() == {"port": None, "url": "http://h:null/"}
    made.step(c.DaemonStarted(1, "balanced", "boot", "0"), 1)
    made.step(c.ConfigChanged(config.view(b"")), 2)
    made.step(c.MemoryMeasured({"host": c.Reading(16 * GIB, 12 * GIB)}), 3)
    made.step(c.RequestArrived("m", "chat"), 4)
    (runner,) = made.state.models["m"]
    made.step(c.ProcessSpawned(c.Process(runner, 0, "boot", 1, 1)), 5)
    assert metadata()["port"] is None
    made.step(c.ProbeAnswered(runner, True), 6)
    assert metadata() == {"port": 5800, "url": "http://h:5800/"}


def test_spillover_goes_on_when_a_peer_is_busy(tmp_path: Path) -> None:
    many = "{strategy: spillover, targets: [m1, router/shared, a], settings: {spillover: 2}}"
    catalog = Catalog(read(tmp_path, f"{PEERS}\nselectors: {{many: {many}}}\n"), State())

    def target() -> str:
        return catalog.target("many")

    box, router = catalog.peer("box/m1"), catalog.peer("router/shared")
    assert box is not None and router is not None
    with catalog.at_peer(box):
        assert target() == "m1"
        with catalog.at_peer(box):
            assert target() == "router/shared"
            with catalog.at_peer(router), catalog.at_peer(router):
                assert target() == "a"
    assert target() == "m1"


def test_a_selector_may_have_a_peers_models_short_name(tmp_path: Path) -> None:
    config = read(tmp_path, f"{PEERS}\nselectors: {{m1: {{strategy: pin, targets: [router/shared]}}}}\n")
    assert Catalog(config).target("m1") == "router/shared"
    assert Catalog(config).target("box/m1") == "box/m1"


# --- profiles ---------------------------------------------------------------------------------------------


PROFILES = """
selectors: {warm: {strategy: warm, targets: [b]}}
peers: {box: {proxy: "http://x", models: [m1]}}
profiles:
  coding: {description: for code, pins: {llm: one, plan: warm, far: box/m1, image: ~, d: "", a: b, b: a}}
"""


def test_a_profile_in_use_says_what_names_stand_for(tmp_path: Path) -> None:
    config = read(tmp_path, PROFILES)
    pins = {"llm": "one", "plan": "warm", "far": "box/m1", "image": "", "d": "", "a": "b", "b": "a"}
    assert config.profiles == {"coding": Profile("for code", pins)}
    assert config.warnings == ()
    state = State()
    catalog = Catalog(config, state)
    names = ["llm", "plan", "far", "image", "d", "a", "b", "one"]
    assert [catalog.target(name) for name in names] == names  # none is in use at start
    assert [row.id for row in catalog.models() if not row.peer] == ["a", "b", "d", "warm"]
    state.profile = "coding"
    assert [catalog.target(name) for name in names] == ["one", "b", "box/m1", "", "", "b", "a", "one"]
    assert [catalog.resolve(catalog.target(name)) for name in names] == [
        "a", "b", None, None, None, "b", "a", "a",
    ]  # fmt: skip
    assert catalog.resolve("llm") == "a"
    assert {"llm", "far"} < set(catalog.names())
    shown = ["a", "b", "d", "warm", "llm", "plan", "far", "m1"]
    assert [row.id for row in catalog.models()] == shown
    found = [(row.kind, row.behind) for row in catalog.models()[4:7]]
    assert found == [({"type": "profile"}, behind) for behind in (("a",), ("b",), ())]
    assert [catalog.row(name) for name in ("llm", "plan", "far")] == list(catalog.models()[4:7])


@pytest.mark.parametrize(
    ("profile", "message"),
    [
        ("[a, b]", "profiles.p: expected a mapping with the key `pins`, found a list"),
        ("{}", "profiles.p.pins: expected a mapping of names to models, found nothing"),
        ("{pins: {x: nobody}}", 'profiles.p.pins.x: expected the name of a model, found "nobody"'),
        ("{pins: {x: [a]}}", "profiles.p.pins.x: expected the name of a model, or nothing"),
        ("{pin: {x: a}}", 'the nearest is "pins"'),
    ],
)
def test_profiles_that_cannot_be(tmp_path: Path, profile: str, message: str) -> None:
    assert message in refused(tmp_path, f"profiles: {{p: {profile}}}\n")


# --- `:latest` ----------------------------------------------------------------------------------------------


def test_a_name_with_latest_behind_it_means_the_one_without(tmp_path: Path) -> None:
    state = State()
    catalog = Catalog(read(tmp_path, PROFILES.replace("models: [m1]", 'models: [m1, "m2:latest"]')), state)
    assert [catalog.resolve(f"{name}:latest") for name in ("a", "one", "warm", "m1", "none", "a:x")] == [
        "a", "a", "b", None, None, None,
    ]  # fmt: skip
    names = ["a", "one", "warm", "m1", "box/m1", "none"]
    assert [catalog.target(f"{name}:latest") for name in names] == ["a", "one", "b", "m1", "box/m1", "none"]
    row = catalog.row("a:latest")
    assert row is not None and row.id == "a"
    assert catalog.target("m2:latest") == "m2:latest"  # a peer's, by just this name
    assert catalog.target("a:latest:latest") == "a:latest"  # once, and no more
    state.profile = "coding"
    names = ["llm", "plan", "far", "d", "a"]
    assert [catalog.target(f"{name}:latest") for name in names] == ["one", "b", "box/m1", "", "b"]


def test_an_exact_name_goes_before_one_without_latest(tmp_path: Path) -> None:
    text = (
        MODELS
        + """
  a:latest: {cmd: 's ${PORT}', memory: 1GiB}
selectors: {"b:latest": {strategy: pin, targets: [d]}}
profiles: {p: {pins: {"d:latest": a}}}
"""
    )
    state = State()
    catalog = Catalog(read(tmp_path, text), state)
    state.profile = "p"
    names = ["a:latest", "b:latest", "d:latest"]
    assert [catalog.target(name) for name in names] == ["a:latest", "d", "a"]
    assert [catalog.resolve(name) for name in names] == ["a:latest", "d", "a"]


# --- what a model says of itself --------------------------------------------------------------------------


def test_capabilities_and_how_they_are_shown(tmp_path: Path) -> None:
    able = "{in: [text, audio, image], out: [text], tools: true, context: 32000}"
    config = read(tmp_path, f"models: {{m: {{cmd: 's ${{PORT}}', capabilities: {able}}}}}\n")
    found = config.models["m"].capabilities
    assert found == Capabilities(("text", "audio", "image"), ("text",), tools=True, context=32000)
    assert config.warnings == ()
    assert found.row() == {
        "architecture": {
            "input_modalities": ["text", "audio", "image"],
            "output_modalities": ["text"],
            "modality": "text+audio+image->text",
        },
        "capabilities": {"vision": True, "audio_transcriptions": True, "function_calling": True},
        "supported_parameters": ["tools", "tool_choice"],
        "context_length": 32000,
    }
    assert Capabilities().row() == {}
    assert Capabilities(reranker=True).row() == {"capabilities": {"reranker": True}}
    assert Capabilities(("text",), ("audio", "image")).row()["capabilities"] == {
        "audio_speech": True, "image_generation": True,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ("capabilities: {in: [smell]}", 'capabilities.in[0]: expected "text", "audio", "image" or "video"'),
        ("capabilities: {context: -1}", "capabilities.context: expected a whole number"),
        ("capabilities: {tool: true}", 'the nearest is "tools"'),
        ("capabilities: [text]", "capabilities: expected a mapping"),
        ("sendLoadingState: maybe", "sendLoadingState: expected true or false"),
        ("timeouts: {responseHeader: soon}", "timeouts.responseHeader: expected a number of seconds"),
    ],
)  # fmt: skip
def test_what_a_model_cannot_say(tmp_path: Path, keys: str, message: str) -> None:
    assert message in refused(tmp_path, f"models: {{m: {{cmd: 's ${{PORT}}', {keys}}}}}\n")


def test_loading_state_and_timeouts(tmp_path: Path) -> None:
    config = read(
        tmp_path,
        """
sendLoadingState: true
firstByteTimeout: 9
models:
  a: {cmd: 's ${PORT}'}
  b: {cmd: 's ${PORT}', sendLoadingState: false, timeouts: {connect: 30, keepalive: 0, responseHeader: 60}}
  d: {cmd: 's ${PORT}', firstByteTimeout: 5, timeouts: {responseHeader: 60}}
  e: {cmd: 's ${PORT}', timeouts: {responseHeader: 0}}
""",
    )
    models = config.models.values()
    assert [model.send_loading_state for model in models] == [True, False, True, True]
    assert [model.first_byte_ns // S for model in models] == [9, 60, 5, 0]
    assert [w.partition(":6: ")[2] for w in config.warnings] == [
        "models.b.timeouts: connect, keepalive has no effect: "
        "connections to runners are local, and nothing of them is configured"
    ]
