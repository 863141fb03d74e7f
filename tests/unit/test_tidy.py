"""The style that a machine can check: import direction, a pure core, bounded sizes, no loose ends."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatch
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("daemon", "events", "statemachines", "migrations")
CODE = (*PACKAGES, "scripts", "examples", "benchmarks", "tests")

LINES_OF_FUNCTION = 70
LINES_OF_MODULE = 600

MAY_IMPORT = {
    "daemon": {"daemon", "statemachines", "events", "migrations"},
    "statemachines": {"statemachines", "events"},
    "events": {"events", "migrations"},
    "migrations": set[str](),
}
"""Which of our packages each may import: arrows point one way only."""

CORE_MAY_IMPORT_OF_EVENTS = {"events.catalogue", "events.limits"}
CORE_MAY_IMPORT = {"msgspec", "transitions"}
"""From outside the standard library."""
IMPURE = {
    "trio", "time", "os", "random", "sqlalchemy", "aiosqlite", "sqlite3", "logging", "socket", "threading",
    "asyncio", "datetime", "subprocess", "pathlib", "secrets", "uuid", "importlib", "math", "statistics",
}  # fmt: skip
IMPURE_CALLS = {"open", "print", "input", "eval", "exec", "__import__", "breakpoint", "hash", "id"}
"""The last two differ from process to process."""
IN_BUCKETS = {"agenda.py", "tables.py"}
"""Where `hash` tells in which bucket something lies, and buckets have no order that anybody sees."""
LOCKS = {"Lock", "RLock", "StrictFIFOLock", "Semaphore", "BoundedSemaphore", "Condition", "CapacityLimiter"}
CLOCKS = {"autojump_clock", "mock_clock"}
"""pytest-trio's fixtures for time that only a test lets pass."""
UNITS = {"MS", "S", "KIB", "MIB", "GIB"}
"""Constants that are what they are: they need no reason."""


def files(*folders: str) -> list[Path]:
    """The Python files under some of the repository's folders."""
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


@cache
def source(path: Path) -> str:
    return path.read_text("utf-8")


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(source(path), str(path))


def nodes(*folders: str) -> Iterator[tuple[Path, ast.AST]]:
    """Every node of every module under some folders."""
    return ((path, node) for path in files(*folders) for node in ast.walk(tree(path)))


def at(path: Path, node: ast.AST | int, what: object = "") -> str:
    """An offence, as `file:line what`."""
    line = node if isinstance(node, int) else getattr(node, "lineno", 0)
    return f"{path.relative_to(ROOT)}:{line} {what}".rstrip()


def imported(node: ast.AST) -> list[str]:
    """The modules that a node imports by their full names, if it is an import. `from a import b` counts as
    `a.b` where that is a module of ours, and as `a` otherwise."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        name = node.module or ""
        folder = ROOT / name.replace(".", "/")
        return [f"{name}.{a.name}" if (folder / f"{a.name}.py").exists() else name for a in node.names]
    return []


def expect_none(offences: list[str]) -> None:
    """Fail with every offence, one in a line."""
    assert not offences, "\n" + "\n".join(offences)


def called(node: ast.AST) -> str:
    """`open` of `open(…)`, `time.sleep` of `time.sleep(…)`, "" of anything else."""
    return ast.unparse(node.func) if isinstance(node, ast.Call) else ""


# --- which way the arrows point --------------------------------------------------------------------------


def test_imports_point_one_way() -> None:
    wrong = []
    for package, allowed in MAY_IMPORT.items():
        for path, node in nodes(package):
            assert not (isinstance(node, ast.ImportFrom) and node.level), at(path, node, "relative import")
            ours = {name for name in imported(node) if name.split(".")[0] in CODE}
            wrong += [at(path, node, name) for name in ours if name.split(".")[0] not in allowed]
    expect_none(wrong)


def test_the_core_imports_nothing_impure() -> None:
    wrong = []
    for path, node in nodes("statemachines"):
        for name in imported(node):
            top = name.split(".")[0]
            foreign = top not in sys.stdlib_module_names and top not in {
                *CORE_MAY_IMPORT,
                "statemachines",
                "events",
            }
            beyond = top == "events" and name not in CORE_MAY_IMPORT_OF_EVENTS
            if top in IMPURE or foreign or beyond:
                wrong.append(at(path, node, name))
    expect_none(wrong)


def test_the_core_calls_nothing_impure() -> None:
    calls = ((path, node) for path, node in nodes("statemachines") if called(node) in IMPURE_CALLS)
    expect_none([at(p, n, called(n)) for p, n in calls if called(n) != "hash" or p.name not in IN_BUCKETS])


LOADED = """
import sys, {first}
before = set(sys.modules)
import importlib, pkgutil, {package}
for module in pkgutil.iter_modules({package}.__path__, "{package}."):
    importlib.import_module(module.name)
print(*sorted(set(sys.modules) - before))
"""


def loaded(package: str, first: str) -> set[str]:
    """What importing every module of a package brings along in a fresh process, beyond what `first` does."""
    script = LOADED.format(package=package, first=first)
    run = subprocess.run(
        [sys.executable, "-I", "-c", script], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return {name.split(".")[0] for name in run.stdout.split()}


def test_importing_the_core_brings_nothing_impure_along() -> None:
    """`transitions` itself imports logging, and with it time, os and threading: those are there before."""
    new = loaded("statemachines", "msgspec, transitions")
    assert {"statemachines", "events"} <= new
    assert new & (IMPURE - {"importlib"}) == set()
    assert new - {"statemachines", "events"} <= sys.stdlib_module_names


def test_asyncio_stays_in_events() -> None:
    wrong = []
    for path, node in nodes("daemon", "statemachines", "migrations"):
        tops = [name.split(".")[0] for name in imported(node)]
        wrong += [at(path, node, top) for top in tops if top in ("asyncio", "anyio", "trio_asyncio")]
    expect_none(wrong)


def test_no_locks() -> None:
    """The state has one owner, and what would need to wait is a state: there is nothing to lock."""
    wrong = []
    for path, node in nodes("daemon", "statemachines"):
        if isinstance(node, ast.Attribute) and node.attr in LOCKS:
            wrong.append(at(path, node, ast.unparse(node)))
        if isinstance(node, ast.ImportFrom):
            wrong += [at(path, node, alias.name) for alias in node.names if alias.name in LOCKS]
    expect_none(wrong)


# --- a core that gives the same answer in every process --------------------------------------------------


def test_the_core_uses_sets_for_nothing_but_membership() -> None:
    """The order of a set differs from process to process: a dict with None values keeps its own."""
    wrong = []
    for path in files("statemachines"):
        asked = {
            id(part)
            for node in ast.walk(tree(path))
            if isinstance(node, ast.Compare)
            for operator, part in zip(node.ops, node.comparators, strict=True)
            if isinstance(operator, ast.In | ast.NotIn)
        }
        for node in ast.walk(tree(path)):
            made = isinstance(node, ast.Set | ast.SetComp) or called(node) in ("set", "frozenset")
            keys = isinstance(node, ast.BinOp) and (called(node.left) + called(node.right)).count(".keys")
            if (made and id(node) not in asked) or keys:
                wrong.append(at(path, node, ast.unparse(node)))
    expect_none(wrong)


def test_the_core_counts_in_integers() -> None:
    wrong = []
    for path, node in nodes("statemachines"):
        literal = isinstance(node, ast.Constant) and isinstance(node.value, float | complex)
        divided = isinstance(node, ast.BinOp | ast.AugAssign) and isinstance(node.op, ast.Div)
        named = isinstance(node, ast.Name) and node.id == "float"
        if literal or divided or named:
            wrong.append(at(path, node, ast.unparse(node)))
    expect_none(wrong)


# --- sizes -----------------------------------------------------------------------------------------------


def test_functions_fit_on_a_screen() -> None:
    long = []
    for path, node in nodes(*CODE):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or 0) - node.lineno + 1
            if lines > LINES_OF_FUNCTION:
                long.append(at(path, node, f"{node.name}: {lines} lines"))
    expect_none(long)


def test_modules_have_one_subject_and_say_it_first() -> None:
    wrong = []
    for path in files(*CODE):
        lines = source(path).count("\n")
        if lines > LINES_OF_MODULE:
            wrong.append(at(path, lines, "lines"))
        if path.name != "__init__.py" and not (ast.get_docstring(tree(path)) or "").split("\n")[0]:
            wrong.append(at(path, 1, "says nothing of its subject"))
    expect_none(wrong)


def test_init_files_are_empty() -> None:
    expect_none([at(p, 1) for p in files(*CODE) if p.name == "__init__.py" and p.stat().st_size])


# --- what is packaged ------------------------------------------------------------------------------------


def test_packages_and_their_data_are_all_listed() -> None:
    listed = tomllib.loads(source(ROOT / "pyproject.toml"))["tool"]["setuptools"]
    found = {".".join(path.parent.relative_to(ROOT).parts) for path in files(*PACKAGES)}
    assert set(listed["packages"]) == found
    for package in found:
        data = [path.name for path in (ROOT / package.replace(".", "/")).iterdir() if path.is_file()]
        patterns = listed["package-data"].get(package, [])
        unlisted = [n for n in data if not n.endswith(".py") and not any(fnmatch(n, p) for p in patterns)]
        unmatched = [p for p in patterns if not any(fnmatch(n, p) for n in data)]
        expect_none([f"{package}: {name}" for name in unlisted + unmatched])


# --- no loose ends ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [ROOT / "events/limits.py", ROOT / "daemon/limits.py"], ids=str)
def test_every_limit_has_its_reason(path: Path) -> None:
    """A comment beside or above it, or a docstring below; one below several in a row is for them all."""
    lines, wrong, explained = source(path).splitlines(), [], 0
    for node in reversed(tree(path).body):
        if isinstance(node, ast.Assign | ast.AnnAssign):
            name = ast.unparse(node.targets[0] if isinstance(node, ast.Assign) else node.target)
            beside = "#" in lines[node.lineno - 1] or lines[node.lineno - 2].startswith("# ")
            if (node.end_lineno or 0) + 1 == explained:
                explained = node.lineno
            elif not (name in UNITS or beside):
                wrong.append(at(path, node, name))
        elif isinstance(node, ast.Expr):
            explained = node.lineno
    expect_none(wrong)


def test_nothing_is_left_for_later() -> None:
    marks = re.compile(r"\b(TO" + r"DO|FIX" + r"ME|XX" + r"X|HA" + r"CK)\b")
    wrong = []
    for path in [*files(*CODE), *(path for end in ("md", "toml", "sql", "sh") for path in texts(end))]:
        for number, line in enumerate(source(path).splitlines(), start=1):
            if marks.search(line):
                wrong.append(at(path, number, line.strip()))
    expect_none(wrong)


def test_tests_do_not_sleep() -> None:
    """They wait for the event. A test with a mock clock may let that run: it takes no time."""
    wrong = []
    for path in files("tests"):
        mocked = set[ast.AST]()
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and CLOCKS & {
                a.arg for a in node.args.args
            }:
                mocked.update(ast.walk(node))
            if called(node) in ("time.sleep", "trio.sleep", "sleep") and node not in mocked:
                wrong.append(at(path, node, called(node)))
    expect_none(wrong)


def test_no_test_is_skipped() -> None:
    skips = re.compile(r"^pytest\.(skip|xfail|importorskip|mark\.(skip|skipif|xfail))$")
    attributes = ((path, node) for path, node in nodes("tests") if isinstance(node, ast.Attribute))
    expect_none([at(p, n, ast.unparse(n)) for p, n in attributes if skips.match(ast.unparse(n))])


def test_no_handler_swallows_a_cancellation() -> None:
    wrong = []
    for path, function in nodes("daemon", "events"):
        if not isinstance(function, ast.AsyncFunctionDef):
            continue
        for node in ast.walk(function):
            if isinstance(node, ast.ExceptHandler):
                caught = ast.unparse(node.type) if node.type else "BaseException"
                wide = re.search(r"\b(BaseException|BaseExceptionGroup|Cancelled)\b", caught)
                if wide and not any(isinstance(inner, ast.Raise) for inner in ast.walk(node)):
                    wrong.append(at(path, node, caught))
    expect_none(wrong)


# --- documents -------------------------------------------------------------------------------------------


def texts(end: str) -> list[Path]:
    """The repository's own text files of a kind: at the top, and in the folders that are ours."""
    top = list(ROOT.glob(f"*.{end}"))
    return sorted(
        top + [path for folder in (*CODE, "docs", "systemd") for path in (ROOT / folder).rglob(f"*.{end}")]
    )


def test_links_between_documents_lead_somewhere() -> None:
    broken = []
    for path in texts("md"):
        for number, line in enumerate(source(path).splitlines(), start=1):
            for link in re.findall(r"\]\(([^)\s]+)\)", line):
                target = link.split("#")[0]
                if target and "://" not in link and not (path.parent / target).exists():
                    broken.append(at(path, number, link))
    expect_none(broken)


def test_the_architecture_names_files_that_exist() -> None:
    named = re.findall(r"`((?:" + "|".join(CODE) + r")/[\w/.-]*)`", source(ROOT / "ARCHITECTURE.md"))
    assert len(named) > 10
    assert [name for name in named if not (ROOT / name).exists()] == []
