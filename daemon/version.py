"""Which program this is, and whether its packages are its own."""

from __future__ import annotations

from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import events
import migrations
import statemachines

VERSION = version("runnerd")


def is_compiled() -> bool:
    """Whether the modules that `setup.py` lists are compiled."""
    return not str(getattr(find_spec("statemachines.scheduler"), "origin", "")).endswith(".py")


def foreign_package() -> str:
    """The path of a top-level package that is another distribution's, or "". Their names are common words:
    another project's `events` on the path would fail in stranger ways later."""
    home = Path(__file__).resolve().parent.parent
    for package in (events, migrations, statemachines):
        path = Path(str(package.__file__)).resolve()
        if path.parent.parent != home:
            return str(path)
    return ""
