"""Names and values that mean something to a shell or a file system: here they are words, and nothing else."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from textwrap import dedent

import yaml

from tests.integration.live import ROOT, daemon

RUNNER = """
import json, os, sys
place, port, *words = sys.argv[1:]
with open(place, "w") as file:
    json.dump([words, os.environ["VALUE"]], file)
os.execv(sys.executable, [sys.executable, {ngram!r}, "--port", port])
"""


def test_they_reach_no_shell_and_no_path(tmp_path: Path) -> None:
    bait = tmp_path / "bait"
    evil = f"../../x; touch {bait}; $(touch {bait}) `touch {bait}` | touch {bait} & > {bait} '\" \\ * ~ $HOME"
    name = f"../../m;$(touch {bait})`touch {bait}`|*"
    alias = "-rf /../etc/passwd & 'alias' \"x\""
    script = tmp_path / "runner.py"
    script.write_text(dedent(RUNNER).format(ngram=str(ROOT / "examples/ngram_runner.py")))
    model = {
        "cmd": f"{sys.executable} {script} {tmp_path}/seen ${{PORT}} ';touch {bait}' a${{text}}b ${{text}}",
        "env": ["VALUE=${text}"],
        "options": {"text": "plain"},
        "aliases": [alias],
        "memory": "64MiB",
    }
    with daemon(tmp_path, yaml.safe_dump({"models": {name: model}})) as live:
        for asked, value in ((name, evil), (alias, "line\nbreak\ttab\r\u2028 -o \x1b[31m")):
            assert live.chat(asked, text=value)[0] == 200
            words, environment = json.loads((tmp_path / "seen").read_text())
            assert words == [f";touch {bait}", f"a{value}b", value]
            assert environment == value
        for asked in ("../../etc/passwd", f"$(touch {bait})", "a\0b", "m\r\nX: y", "\ud800", "x" * 5000):
            assert live.chat(asked)[0] in {400, 404}
        assert live.chat(name, text="a\0b")[1]["error"]["code"] == "invalid_option"
        assert live.runnerctl("unload", f"$(touch {bait})").returncode == 1
        found = live.get(f"/upstream/..%2f..%2fetc%2fpasswd;touch%20{bait}/x")
        assert found["error"]["code"] == "model_not_found"
        files = {path.name for path in (tmp_path / "state").rglob("*")}
    assert not bait.exists()
    assert files and all(re.fullmatch(r"[a-z0-9]+([._-][a-z0-9]+)*", file) for file in files), files
