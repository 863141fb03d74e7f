"""`runnerd`: the daemon's command line. Standard library only, so that the service starts fast and small."""

from __future__ import annotations

import argparse
import logging
import os
import sqlite3
import sys
from pathlib import Path

from daemon.version import VERSION, foreign_package
from events.limits import EXIT_LOG_FAILED, EXIT_STEP_FAILED

EXIT_REFUSED, EXIT_USAGE, EXIT_UNREACHABLE = 1, 2, 3


def main(arguments: list[str] | None = None) -> int:
    """Exit codes: 0 done, 1 refused or failed, 2 usage (a bad configuration too), 3 the log cannot be opened,
    70 a step failed, 74 the log failed."""
    foreign = foreign_package()
    if foreign:
        print(f"runnerd: {foreign} is another distribution's: install runnerd in an environment of its own",
              file=sys.stderr)  # fmt: skip
        return EXIT_REFUSED
    options = _parser().parse_args(arguments)
    if options.command == "check":
        from daemon.config.check import check_main

        return check_main(options.config)
    return _serve(options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="runnerd", description="Decides which model runners are loaded.")
    parser.add_argument("--version", action="version", version=f"runnerd {VERSION}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    serve = commands.add_parser("serve", help="run the daemon in the foreground (or under systemd)")
    serve.add_argument(
        "--config", type=Path, required=True, metavar="FILE", help="llama-swap's YAML and ours"
    )
    serve.add_argument("--listen", metavar="HOST:PORT", help="overrides the file's `listen`")
    serve.add_argument("--socket", type=Path, metavar="PATH", help="the control socket")
    serve.add_argument("--log", type=Path, metavar="PATH", help="the event log")
    check = commands.add_parser("check", help="say what is wrong with a configuration, without starting")
    check.add_argument("--config", type=Path, required=True, metavar="FILE")
    return parser


def _serve(options: argparse.Namespace) -> int:
    import trio

    from daemon.config.errors import ConfigError
    from daemon.config.file import load
    from daemon.driver import StepFailed
    from daemon.processes.gate import raise_open_files
    from daemon.service import Places, StopFailed, serve
    from events.envelope import LogError
    from events.store import StoreBroken

    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(levelname).1s %(message)s")
    try:
        config = load(options.config)
        host, port = parse_listen(options.listen or config.listen)
    except (ConfigError, ValueError) as error:
        print(f"runnerd: {error}", file=sys.stderr)
        return EXIT_USAGE
    for warning in config.warnings:
        logging.getLogger("runnerd").warning("%s", warning)
    places = Places(
        log=options.log or config.event_log or default_log(os.environ),
        control=options.socket or config.control_socket or default_socket(os.environ),
        host=host,
        port=port,
    )
    codes = {StepFailed: EXIT_STEP_FAILED, StoreBroken: EXIT_LOG_FAILED, LogError: EXIT_UNREACHABLE,
             sqlite3.Error: EXIT_UNREACHABLE, StopFailed: EXIT_REFUSED, OSError: EXIT_REFUSED}  # fmt: skip
    raise_open_files()
    try:
        trio.run(serve, config, places, strict_exception_groups=True)
    except tuple(codes) as error:
        return _report(error, codes)
    except BaseExceptionGroup as group:
        for kind in codes:
            matched = group.subgroup(kind)
            if matched is not None:
                return _report(_leaf(matched), codes)
        raise
    return 0


def _leaf(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _report(error: BaseException, codes: dict[type[Exception], int]) -> int:
    print(f"runnerd: {error}", file=sys.stderr)
    return next(code for kind, code in codes.items() if isinstance(error, kind))


def parse_listen(text: str) -> tuple[str, int]:
    """`127.0.0.1:8080`, `:8080`, `[::1]:8080`. Raises ValueError."""
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdigit() or not 0 <= int(port) <= 65535:
        raise ValueError(f"listen: expected HOST:PORT, found {text!r}")
    return host.strip("[]") or "127.0.0.1", int(port)


def default_log(environ: os._Environ[str] | dict[str, str]) -> Path:
    """In systemd's state directory, else the user's."""
    if directory := environ.get("STATE_DIRECTORY"):
        return Path(directory.split(":")[0]) / "events.db"
    home = environ.get("XDG_STATE_HOME") or str(Path(environ.get("HOME", "/")) / ".local/state")
    return Path(home) / "runnerd" / "events.db"


def default_socket(environ: os._Environ[str] | dict[str, str]) -> Path:
    """$RUNNERD_SOCKET, else /run/runnerd where that can be written, else the user's runtime directory."""
    if path := environ.get("RUNNERD_SOCKET"):
        return Path(path)
    system = Path("/run/runnerd")
    if os.access(system if system.exists() else system.parent, os.W_OK) or "XDG_RUNTIME_DIR" not in environ:
        return system / "control.sock"
    return Path(environ["XDG_RUNTIME_DIR"]) / "runnerd" / "control.sock"


if __name__ == "__main__":
    sys.exit(main())
