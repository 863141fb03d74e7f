"""The containers in pieces: what a dict and a sorted list would hold, in their order."""

from __future__ import annotations

import random

import pytest

from statemachines.tables import RUN, Line, Row, Table


@pytest.mark.parametrize("size", [4, 3 * RUN, 40 * RUN])
def test_a_row_is_a_sorted_list(size: int) -> None:
    pick = random.Random(size).randrange
    row, plain = Row(), set[int]()
    for i in range(4 * size):
        entry = pick(size)
        assert (entry in row) == (entry in plain)
        if entry in plain:
            row.remove(entry)
            plain.remove(entry)
        else:
            row.add(entry, f"k{entry}")
            plain.add(entry)
        assert bool(row) == bool(plain)
        if plain and i % (1 + size // 8) == 0:
            assert row.first() == (min(plain), f"k{min(plain)}")
            assert list(row) == [(entry, f"k{entry}") for entry in sorted(plain)]
            assert len(row) == len(plain)
    for entry in list(plain):
        row.remove(entry)
    assert not row and list(row) == [] and len(row) == 0
    with pytest.raises(IndexError):
        row.first()


def test_a_row_that_only_grows_at_its_end_and_shrinks_at_its_front() -> None:
    row = Row()
    for entry in range(10 * RUN):
        row.add(entry, f"k{entry}")
    for entry in range(10 * RUN):
        assert row.first() == (entry, f"k{entry}")
        row.remove(entry)


@pytest.mark.parametrize("there", [[], [1, 3], [2 * n for n in range(2 * RUN)]])
def test_what_is_not_in_a_row_cannot_be_taken_out(there: list[int]) -> None:
    row = Row()
    for entry in there:
        row.add(entry, "")
    for missing in (-1, 5 if 5 not in there else 7, 10 * RUN):
        with pytest.raises(KeyError):
            row.remove(missing)
    assert list(row) == [(entry, "") for entry in there]


def test_a_line_is_in_the_order_of_its_numbers() -> None:
    line = Line(["q9", "q100", "q10"])
    assert (list(line), line.first(), len(line)) == (["q9", "q10", "q100"], "q9", 3)
    assert "q10" in line and "q11" not in line
    line.remove("q9")
    assert line and list(line) == ["q10", "q100"]
    with pytest.raises(KeyError):
        line.remove("q9")
    assert not Line()


def test_a_table_is_a_dict_in_the_order_of_its_numbers() -> None:
    pick = random.Random(1).randrange
    table, plain = Table[int](), dict[int, int]()
    for i in range(5000):
        n = pick(400)
        if n in plain and pick(2):
            del table[f"q{n}"], plain[n]
        else:
            table[f"q{n}"] = plain[n] = i
        assert table.get(f"q{n}") == plain.get(n)
        assert (f"q{n}" in table, len(table)) == (n in plain, len(plain))
    expected = [(f"q{n}", plain[n]) for n in sorted(plain)]
    assert table.items() == expected
    assert [*table] == table.keys() == [id for id, _ in expected]
    assert table.values() == [value for _, value in expected]
    assert {**table} == dict(expected) and table[expected[0][0]] == expected[0][1]
    with pytest.raises(KeyError):
        del table["q400"]
    with pytest.raises(KeyError):
        table["q400"]
