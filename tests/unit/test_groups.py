"""The matrix against its definition: all combinations, written out."""

from __future__ import annotations

import random
from itertools import product

from daemon.config.expression import postfix
from events.catalogue import MatrixView
from statemachines.groups import cheapest_set

MODELS = [f"m{i}" for i in range(7)]


def combinations(matrix: MatrixView, name: str) -> list[frozenset[str]]:
    """Every set that an expression describes, in its order, written out."""
    stack: list[list[frozenset[str]]] = []
    for token in matrix.sets[name]:
        if token == "&":
            right = stack.pop()
            stack[-1] = [a | b for a, b in product(stack[-1], right)]
        elif token == "|":
            right = stack.pop()
            stack[-1] = [*stack[-1], *right]
        elif token[0] == "+":
            stack.append(list(combinations(matrix, token[1:])))
        else:
            stack.append([frozenset([token[1:]])])
    return stack.pop()


def documented(matrix: MatrixView, model: str, running: list[str]) -> set[str]:
    """llama-swap's documentation, step by step: the cost of what must go, the lowest first, ties in order."""
    sets = [each for name in matrix.sets for each in combinations(matrix, name) if model in each]
    if not sets:
        return {model}
    costs = [sum(matrix.evict_costs.get(r, 1) for r in running if r not in each) for each in sets]
    return {r for r in [model, *running] if r in sets[costs.index(min(costs))]}


def random_matrix(chance: random.Random) -> MatrixView:
    sets: dict[str, tuple[str, ...]] = {}
    for i in range(chance.randrange(1, 5)):
        text = chance.choice(MODELS)
        for _ in range(chance.randrange(6)):
            other = f"+s{chance.randrange(i)}" if i and chance.random() < 0.3 else chance.choice(MODELS)
            text = chance.choice(["{} | {}", "{} & {}", "({} | {})", "({}) & {}"]).format(text, other)
        sets[f"s{i}"] = postfix(text, {model: model for model in MODELS}, [*sets, f"s{i}"])
    return MatrixView(sets, {m: chance.randrange(1, 6) for m in MODELS if chance.random() < 0.5})


def test_what_stays_is_what_the_documentation_says() -> None:
    chance = random.Random(7)
    for _ in range(2000):
        matrix, model = random_matrix(chance), chance.choice(MODELS)
        running = chance.sample([m for m in MODELS if m != model], chance.randrange(6))
        costs = {model: 0} | {name: matrix.evict_costs.get(name, 1) for name in running}
        assert set(cheapest_set(matrix, model, costs)) == documented(matrix, model, running), (matrix, model)


def test_a_set_of_a_billion_combinations_is_no_work() -> None:
    """Ten alternatives for each of nine places: what runs is all that matters."""
    names = [f"m{i}" for i in range(90)]
    text = " & ".join("(" + " | ".join(names[i : i + 10]) + ")" for i in range(0, 90, 10))
    matrix = MatrixView({"all": postfix(text, {name: name for name in names}, [])})
    running = {"m0": 0, "m1": 1, "m11": 1, "m22": 1, "m23": 1}
    assert set(cheapest_set(matrix, "m0", running)) == {"m0", "m11", "m22"}
