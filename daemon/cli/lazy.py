"""Groups of commands: told in whole sentences, and imported when they are asked for: nobody who looks at ten
events waits for the others."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

import click

SENTENCE = 1000
"""Characters that no command's first sentence has."""


class Group(click.Group):
    """A group whose help has each command's first sentence; click would cut that off at the line's end."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Name and sentence of each, over as many lines as that takes."""
        names = self.list_commands(ctx)
        commands = [(name, command) for name in names if (command := self.get_command(ctx, name))]
        with formatter.section("Commands"):
            formatter.write_dl([(name, command.get_short_help_str(SENTENCE)) for name, command in commands])


class Commands(Group):
    """A group some of whose commands are elsewhere: by name, the module, and the command's name in it."""

    def __init__(self, *arguments: Any, elsewhere: Mapping[str, tuple[str, str]], **more: Any) -> None:
        super().__init__(*arguments, **more)
        self._elsewhere = elsewhere

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All of them."""
        return sorted({*super().list_commands(ctx), *self._elsewhere})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of a name; None where there is none."""
        if cmd_name not in self._elsewhere:
            return super().get_command(ctx, cmd_name)
        module, name = self._elsewhere[cmd_name]
        command: click.Command = getattr(import_module(module), name)
        return command
