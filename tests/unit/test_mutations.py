"""The rules that `make mutate` breaks are still where it looks for them."""

from __future__ import annotations

from tests.simulation.mutations import MUTATIONS, ROOT


def test_each_text_is_there_once() -> None:
    for mutation in MUTATIONS:
        text = (ROOT / f"statemachines/{mutation.module}.py").read_text("utf-8")
        assert text.count(mutation.old) == 1, f"{mutation.rule}: {mutation.old!r}"
