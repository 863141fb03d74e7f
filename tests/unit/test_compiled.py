"""What `setup.py` has compiled: all of it or nothing, and nothing that means something else then."""

from __future__ import annotations

import ast
import importlib
import os
from pathlib import Path

import pytest

from daemon.version import is_compiled

ROOT = Path(__file__).resolve().parents[2]


def listed() -> tuple[str, ...]:
    """The paths that `setup.py` names."""
    for node in ast.parse((ROOT / "setup.py").read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "COMPILED":
            names: tuple[str, ...] = ast.literal_eval(node.value)
            return names
    raise AssertionError("setup.py lists nothing")


def test_all_of_it_is_compiled_or_nothing() -> None:
    files = {path: importlib.import_module(path[:-3].replace("/", ".")).__file__ or "" for path in listed()}
    assert ("build/compiled" in os.environ.get("PYTHONPATH", "")) == is_compiled()
    assert [path for path, file in files.items() if file.endswith(".so") != is_compiled()] == []
    assert len(files) > 30 and list(files) == sorted(files)


@pytest.mark.parametrize("path", listed())
def test_what_is_caught_in_a_function_has_one_type_for_each_name(path: str) -> None:
    """mypyc gives a name the type of its first `except` clause, and raises TypeError in the second."""
    wrong = []
    for function in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            types: dict[str, str] = {}
            for node in within(function):
                if isinstance(node, ast.ExceptHandler) and node.name and node.type is not None:
                    kind = ast.unparse(node.type)
                    if types.setdefault(node.name, kind) != kind:
                        wrong.append(f"{function.name}: {node.name} is {types[node.name]} and {kind}")
    assert wrong == []


def within(function: ast.AST) -> list[ast.AST]:
    """What is in a function, but not in one inside."""
    found: list[ast.AST] = []
    for node in ast.iter_child_nodes(function):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            found += [node, *within(node)]
    return found
