"""How pip builds runnerd: as setuptools does. With RUNNERD_COMPILE=1 it takes mypyc, too."""

from __future__ import annotations

import os
import shutil
import tomllib
from pathlib import Path
from typing import Any

from setuptools import build_meta
from setuptools.build_meta import *  # noqa: F403 (the rest of what pip calls)

COMPILER = ("mypy>=2.4,<2.5", "types-PyYAML")


def get_requires_for_build_wheel(config_settings: Any = None) -> list[str]:
    """What has to be there for a wheel to be built."""
    needed: list[str] = build_meta.get_requires_for_build_wheel(config_settings)
    if os.environ.get("RUNNERD_COMPILE"):
        project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
        needed += [*COMPILER, *project["dependencies"]]  # it compiles by their types
    return needed


def build_wheel(directory: str, config_settings: Any = None, metadata_directory: str | None = None) -> str:
    """Build it from what is here now: setuptools packs whatever it finds of an earlier build, and a module
    that was compiled then would hide its source."""
    for built in Path("build").glob("lib*"):
        shutil.rmtree(built)
    name: str = build_meta.build_wheel(directory, config_settings, metadata_directory)
    return name
