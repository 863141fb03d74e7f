"""The configuration: `load` reads and checks a file, `Config` answers for it."""

from daemon.config.config import Config, SpecChanged
from daemon.config.errors import ConfigError
from daemon.config.file import load

__all__ = ["Config", "ConfigError", "SpecChanged", "load"]
