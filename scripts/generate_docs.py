"""Writes the parts of the documents that the code determines; with `--check`, says which are stale.

- ARCHITECTURE.md: the diagrams of the two machines, between markers;
- docs/events.md: the catalogue of events, from its declarations and docstrings;
- docs/README.md: the list of decisions, from their titles, between markers;
- docs/metrics.md: the table of metric families, between markers.

Exit codes: 0 done (or nothing stale), 1 something is stale, 2 usage.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec
from prometheus_client import PROCESS_COLLECTOR

from daemon.families import FAMILIES
from events import catalogue
from events.catalogue import DECISIONS, FACTS, Payload
from events.parts import Part
from statemachines import request, runner
from statemachines.machine import mermaid
from statemachines.request import RequestState
from statemachines.runner import RunnerState

ROOT = Path(__file__).resolve().parent.parent


def main() -> int:
    """Write what is stale, or with `--check` only name it."""
    parser = argparse.ArgumentParser(description="Write the documents that the code determines.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if something is stale")
    check = parser.parse_args().check
    stale = [
        (path, text) for path, text in documents() if not path.exists() or path.read_text("utf-8") != text
    ]
    for path, text in stale:
        print(f"{path.relative_to(ROOT)}: {'stale, run scripts/generate_docs.py' if check else 'written'}")
        if not check:
            path.write_text(text, "utf-8")
    return 1 if check and stale else 0


def documents() -> Iterator[tuple[Path, str]]:
    """Each document's path, and what it should hold."""
    architecture = ROOT / "ARCHITECTURE.md"
    text = architecture.read_text("utf-8")
    text = between(text, "runner machine", runner_diagram())
    yield architecture, between(text, "request machine", request_diagram())
    yield ROOT / "docs/events.md", events_page()
    metrics = ROOT / "docs/metrics.md"
    yield metrics, between(metrics.read_text("utf-8"), "families", families_table())
    index = ROOT / "docs/README.md"
    yield index, between(index.read_text("utf-8"), "decisions", decisions())


def between(text: str, name: str, body: str) -> str:
    """Replace what stands between a document's markers of that name. Raises ValueError without them."""
    begin, end = f"<!-- generated: {name} -->\n", f"<!-- end: {name} -->"
    before, found, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise ValueError(f"no markers for {name!r}")
    return before + begin + body + end + after


def decisions() -> str:
    """One line for each decision record: its number, its title, its file."""
    lines = []
    for path in sorted((ROOT / "docs/decisions").glob("[0-9]*.md")):
        title = path.read_text("utf-8").splitlines()[0].lstrip("# ").strip()
        lines.append(f"- [{title}](decisions/{path.name})\n")
    return "".join(lines)


# --- the machines ----------------------------------------------------------------------------------------


def runner_diagram() -> str:
    """The runner machine as GitHub and most editors draw it."""
    return fenced(mermaid(RunnerState, RunnerState.loading, runner.TABLE, runner.TERMINAL))


def request_diagram() -> str:
    """The request machine, likewise."""
    return fenced(mermaid(RequestState, RequestState.arrived, request.TABLE, request.TERMINAL))


def fenced(diagram: str) -> str:
    """A Mermaid diagram as a block of a Markdown document."""
    return f"```mermaid\n{diagram}```\n"


# --- the metrics -----------------------------------------------------------------------------------------


def families_table() -> str:
    """A row for each family: ours, then the library's own about the process."""
    lines = ["| name | type | labels | what it is |", "|---|---|---|---|"]
    for family in FAMILIES:
        kind = family.type.__name__.removesuffix("MetricFamily").lower()
        labels = ", ".join(f"`{label}`" for label in family.labels) or "–"
        lines.append(f"| `{family.name}` | {kind} | {labels} | {cell(family.help)} |")
    for metric in PROCESS_COLLECTOR.collect():
        name = f"{metric.name}_total" if metric.type == "counter" else metric.name
        lines.append(f"| `{name}` | {metric.type} | – | {cell(metric.documentation)} |")
    return "\n".join(lines) + "\n"


# --- the catalogue of events -----------------------------------------------------------------------------


class Field(NamedTuple):
    """A field as its declaration reads."""

    name: str
    type: str
    default: str
    doc: str


PREFACE = """\
# Events

Generated from `events/catalogue.py` by `scripts/generate_docs.py`. How they are stored:
[data-file.md](data-file.md).

Times and durations (`_ns`, `_t`) are nanoseconds, sizes bytes. A field that has its default is left out of
the payload. Every type has version 1 unless it says otherwise.
"""


def events_page() -> str:
    """docs/events.md as a whole."""
    facts = f"## Facts\n\n{inspect.getdoc(catalogue.Fact)}\n\n{event_table(FACTS)}"
    made = f"## Decisions\n\n{inspect.getdoc(catalogue.Decision)}\n\n{event_table(DECISIONS)}"
    parts = "\n".join(part_section(part) for part in Part.__subclasses__())
    return "\n".join((PREFACE, facts, made, f"## Parts\n\nValues inside events.\n\n{parts}"))


def event_table(events: tuple[type[Payload], ...]) -> str:
    """A row for each event: its type, its fields, what it means."""
    lines = ["| type | fields | meaning |", "|---|---|---|"]
    for event in events:
        tag = str(event.__struct_config__.tag)
        version = f" (version {event.VERSION})" if event.VERSION != 1 else ""
        named = "<br>".join(f"`{declared(field)}`" for field in fields_of(event))
        docs = " ".join(f"`{field.name}`: {field.doc}" for field in fields_of(event) if field.doc)
        lines.append(f"| `{tag}`{version} | {cell(named)} | {cell(f'{inspect.getdoc(event)} {docs}')} |")
    return "\n".join(lines) + "\n"


def part_section(part: type[msgspec.Struct]) -> str:
    """A part's meaning, and a row for each of its fields."""
    rows = "".join(f"| `{cell(declared(field))}` | {cell(field.doc)} |\n" for field in fields_of(part))
    return f"### {part.__name__}\n\n{inspect.getdoc(part)}\n\n| field | meaning |\n|---|---|\n{rows}"


def declared(field: Field) -> str:
    """`name: type`, and its default where it has one."""
    return f"{field.name}: {field.type}" + (f" = {field.default}" if field.default else "")


def cell(text: str) -> str:
    """A text as it may stand in one cell of a table."""
    return re.sub(r"\s+", " ", text).strip().replace("|", "\\|")


def fields_of(struct: type[msgspec.Struct]) -> list[Field]:
    """The fields of a struct as declared, each with the docstring below it."""
    source = inspect.getsource(struct)
    body = ast.parse(source).body[0]
    assert isinstance(body, ast.ClassDef)
    found: list[Field] = []
    for node in body.body:
        if isinstance(node, ast.AnnAssign):
            default = (node.value and ast.get_source_segment(source, node.value)) or ""
            found.append(Field(ast.unparse(node.target), ast.unparse(node.annotation), default, ""))
        elif found and isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            found[-1] = found[-1]._replace(doc=str(node.value.value))
    return found


if __name__ == "__main__":
    sys.exit(main())
