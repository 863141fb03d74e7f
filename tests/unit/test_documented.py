"""What the documents list is all that there is: each error's code; each link leads somewhere."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from daemon.endings import STATUS

ROOT = Path(__file__).parents[2]
NOT_OVER_HTTP = {"client_gone", "unknown_runner", "unknown_model", "revoked", "taken_over"}
"""Nobody is there to be told, or it is an answer on the control socket."""


def codes() -> set[str]:
    """Every code that the front door has for an error."""
    found = {reason for reason, (status, _) in STATUS.items() if status >= 400} - NOT_OVER_HTTP
    for path in (ROOT / "daemon/http").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            place = {"Refused": 1, "Refusal": 1, "_refuse": 1, "_refused": 0}.get(name, len(node.args))
            for argument in node.args[place : place + 1]:
                if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                    found.add(argument.value)
    return found


def test_every_error_is_in_the_table() -> None:
    text = (ROOT / "docs/requests.md").read_text()
    assert "malformed_request" in codes()
    assert sorted(code for code in codes() if f"`{code}`" not in text) == []


def anchor(heading: str) -> str:
    """What a heading is called in a link, as GitHub and GitLab have it."""
    plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading.replace("`", ""))
    return re.sub(r"[^\w\- ]", "", plain.strip().lower()).replace(" ", "-")


def test_every_link_leads_somewhere() -> None:
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), ROOT / "systemd/README.md"]
    anchors = {
        page: {anchor(line.lstrip("#")) for line in page.read_text().splitlines() if line.startswith("#")}
        for page in pages
    }
    broken = []
    for page in pages:
        for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
            path, _, part = link.partition("#")
            target = (page.parent / path).resolve() if path else page
            if "://" not in link and (not target.exists() or (part and part not in anchors[target])):
                broken.append(f"{page.relative_to(ROOT)}: {link}")
    assert broken == []
