"""`runnerd`: the daemon's command line. Standard library only, so that the service starts fast and small."""

from __future__ import annotations

import argparse
import logging
import os
import re
import sys
from io import TextIOWrapper
from pathlib import Path

from daemon.version import VERSION, foreign_package, is_compiled

EXIT_REFUSED, EXIT_USAGE, EXIT_UNREACHABLE = 1, 2, 3
EXIT_INTERRUPTED = 130
"""As a shell says of a program that SIGINT ended."""

CONFIG = "llama-swap's YAML and ours"

_LISTEN = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^:\[\]]*):([0-9]{1,5})")


def main(arguments: list[str] | None = None) -> int:
    """Exit codes: 0 done, 1 refused or failed (a preload, too), 2 usage (a bad configuration, or preloads
    that cannot fit together), 3 the log cannot be opened, 70 a step failed, 74 the log failed, 130
    interrupted before it had started."""
    foreign = foreign_package()
    if foreign:
        _say(f"{foreign} is another distribution's: install runnerd in an environment of its own")
        return EXIT_REFUSED
    legible()
    parser, given = _parser(), sys.argv[1:] if arguments is None else arguments
    if not given:
        parser.print_help(sys.stderr)
        return EXIT_USAGE
    options = parser.parse_args(given)
    try:
        return _command(options)
    except BrokenPipeError:  # `| head` has read enough; nothing is left for the interpreter to flush
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def legible() -> None:
    """Print `?` for a character that the locale lacks, rather than die of it."""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def _command(options: argparse.Namespace) -> int:
    """Carry out what is asked for; its exit code."""
    if options.command == "schema":
        import json

        from daemon.config.schema import schema

        print(json.dumps(schema(), indent=2), flush=True)
        return 0
    if options.command == "import-ollama":
        from daemon.importing import import_main

        return import_main(options.directory, options.output, options.server)
    if options.command == "check":
        from daemon.config.check import check_main

        return check_main(options.config, insecure=options.insecure_listen)
    try:
        return _serve(options)
    except KeyboardInterrupt:
        _say("interrupted before it had started")
        return EXIT_INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="runnerd", description="Decides which model runners are loaded.")
    version = f"runnerd {VERSION}{', compiled' if is_compiled() else ''}"
    parser.add_argument("--version", action="version", version=version)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    serve = commands.add_parser("serve", help="run the daemon in the foreground (or under systemd)")
    serve.add_argument("--config", type=Path, required=True, metavar="FILE", help=CONFIG)
    serve.add_argument("--listen", metavar="HOST:PORT", help="overrides the file's `listen`")
    serve.add_argument("--socket", type=Path, metavar="PATH", help="the control socket")
    serve.add_argument("--log", type=Path, metavar="PATH", help="the event log")
    serve.add_argument(
        "--lazy",
        action="store_true",
        help="do not wait for what is preloaded: open at once, failures are warnings",
    )
    serve.add_argument(
        "--no-memcheck", action="store_true", help="start though what is to be preloaded cannot fit together"
    )
    _insecure(serve)
    check = commands.add_parser("check", help="say what is wrong with a configuration, without starting")
    check.add_argument("--config", type=Path, required=True, metavar="FILE", help=CONFIG)
    _insecure(check)
    taken = commands.add_parser("import-ollama", help="write a configuration for the models that Ollama has")
    taken.add_argument(
        "directory", nargs="?", type=Path, metavar="DIR", help="default: $OLLAMA_MODELS, or ~/.ollama/models"
    )
    taken.add_argument("--output", type=Path, metavar="FILE", help="a new file; default: standard output")
    taken.add_argument("--server", default="llama-server", metavar="PROGRAM", help="default: llama-server")
    commands.add_parser("schema", help="print the JSON Schema of the configuration, for editors")
    return parser


def _insecure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--insecure-listen", action="store_true", help="listen beyond this machine without apiKeys"
    )


def _serve(options: argparse.Namespace) -> int:
    import faulthandler

    import trio

    from daemon.cli.starting import FAILURES, explain, obstacle
    from daemon.config.errors import ConfigError
    from daemon.config.file import load
    from daemon.doors import DoorError, start_again, take
    from daemon.journal import set_up
    from daemon.logs import Ring
    from daemon.processes.gate import raise_open_files
    from daemon.processes.identity import reap_others
    from daemon.service import Options, Places, serve
    from events import failpoints

    faulthandler.enable(2)  # the watchdog ends what hangs by SIGABRT: the journal then has where that was
    set_up(os.environ)
    log, ring = logging.getLogger("runnerd"), Ring()
    logging.getLogger().addHandler(ring)
    reap_others()
    try:
        doors = take(os.environ)
        config = load(options.config)
        host, port = parse_listen(options.listen or config.listen)
        for taken, _ in doors.addresses:
            config.check_exposure(taken, insecure=options.insecure_listen)
        if doors.addresses:
            host, port = doors.addresses[0]
        config.check_exposure(host, insecure=options.insecure_listen)
        failpoint = failpoints.arm(os.environ)
    except (ConfigError, DoorError, ValueError) as error:
        return _end(EXIT_USAGE, str(error))
    dies = [f"{failpoints.VARIABLE} is set: this daemon dies at {failpoint}"] if failpoint else []
    for warning in (*config.warnings, *dies):
        log.warning("%s", warning)
    places = Places(
        log=options.log or config.event_log or default_log(os.environ),
        control=(doors.control_path or options.socket or config.control_socket or default_socket(os.environ)),
        host=host,
        port=port,
        group=config.control_group,
    )
    if (found := obstacle(places, given=doors.control_path is not None, again=doors.again)) is not None:
        return _end(*found)
    raise_open_files()
    try:
        lazy, memcheck = options.lazy or doors.again, not options.no_memcheck  # again: clients wait already
        start = Options(lazy=lazy, memcheck=memcheck, ring=ring, insecure=options.insecure_listen)
        trio.run(serve, config, places, start, doors, strict_exception_groups=True)
    except FAILURES as error:
        return _end(*explain(error, places))
    except BaseExceptionGroup as group:
        leaf = _first(group, (KeyboardInterrupt, *FAILURES))
        if leaf is None:
            raise
        if isinstance(leaf, KeyboardInterrupt):
            raise leaf from None
        return _end(*explain(leaf, places))
    if doors.kept:
        log.info("starting again in place")
        try:
            start_again(doors)
        except OSError as error:
            return _end(EXIT_REFUSED, f"{sys.executable} cannot be started: {error}. The runners live on")
    log.info("stopped")
    return 0


def _first(group: BaseExceptionGroup, kinds: tuple[type[BaseException], ...]) -> BaseException | None:
    """The first of a group that is of one of the kinds, which are looked for in turn."""
    for kind in kinds:
        error: BaseException | None = group.subgroup(kind)
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        if error is not None:
            return error
    return None


def _say(words: str) -> None:
    print(f"runnerd: {words}", file=sys.stderr)


def _end(code: int, words: str) -> int:
    _say(words)
    return code


def parse_listen(text: str) -> tuple[str, int]:
    """`127.0.0.1:8080`, `:8080`, `[::1]:8080`. Raises ValueError."""
    match = _LISTEN.fullmatch(text)
    if match is None or int(match[2]) > 65535:
        raise ValueError(f"--listen: expected HOST:PORT (127.0.0.1:8080, [::1]:8080), found {text!r}")
    return match[1].strip("[]") or "127.0.0.1", int(match[2])


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
