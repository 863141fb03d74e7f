"""What is printed for a person fits, and is neither torn nor cut where it need not be."""

from __future__ import annotations

import click
import pytest
from click.testing import CliRunner

from daemon.cli import runnerctl, runnerlog
from daemon.cli.output import Column, fitting, wrapped


@pytest.mark.parametrize(
    "measure", ["12.0 GiB", "512 MiB", "30.0 s", "5 min 10 s", "2 h 5 min", "61 %", "4 B"]
)
def test_a_number_is_not_torn_from_its_unit(measure: str) -> None:
    for width in range(20, 60):
        lines = wrapped(f"it needs {measure} on gpu0, where {measure} are free", width, "- ", "  ")
        assert all(len(line) <= width for line in lines)
        assert sum(line.count(measure) for line in lines) == 2, lines
        assert "".join(lines).isascii()


def test_other_words_are_apart_as_ever() -> None:
    assert wrapped("it waited for 2 requests and 10 minutes", 20) == [
        "it waited for 2",
        "requests and 10",
        "minutes",
    ]


COLUMNS = (
    Column("RUNNER", lambda row: row[0]),
    Column("FREE FOR A LOAD", lambda row: row[1], right=True),
    Column("REPORTED FREE", lambda row: row[2], right=True, drop=1),
)
ROWS = [("r1", "12.0 GiB", "14.0 GiB")]


@pytest.mark.parametrize(
    ("width", "headings", "names", "gap"),
    [
        (40, {}, ["RUNNER", "FREE FOR A LOAD", "REPORTED FREE"], 2),
        (26, {"FREE FOR A LOAD": "FREE FOR\nA LOAD", "REPORTED FREE": "REPORTED\nFREE"}, None, 2),
        (16, {"FREE FOR A LOAD": "FREE FOR\nA LOAD"}, ["RUNNER", "FREE FOR A LOAD"], 2),
        (15, {"FREE FOR A LOAD": "FREE FOR\nA LOAD"}, ["RUNNER", "FREE FOR A LOAD"], 1),
    ],
)
def test_headings_take_several_lines_before_anything_is_left_out(
    width: int, headings: dict[str, str], names: list[str] | None, gap: int
) -> None:
    fit = fitting(COLUMNS, ROWS, width)
    assert [column.heading for column in fit.columns] == (names or [column.heading for column in COLUMNS])
    assert {name: fit.headings[name] for name in headings} == headings
    assert (fit.cut, fit.gap) == ({}, gap)


@pytest.mark.parametrize("cli", [runnerctl.cli, runnerlog.cli])
def test_the_help_says_of_each_command_a_whole_sentence(cli: click.Group) -> None:
    text = CliRunner().invoke(cli, ["--help"], terminal_width=80).output
    assert "..." not in text.partition("Commands:")[2]
    assert all(f"\n  {name} " in text for name in cli.list_commands(click.Context(cli)))
