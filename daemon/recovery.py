"""Starting again: fold the log, say who survived, notice what changed meanwhile.

Recovery folds recorded facts *and* decisions; it decides nothing. What follows from the crash is decided in
the step of `daemon.started`, the first fact of every start.
"""

from __future__ import annotations

import hashlib
import logging
import os
import secrets
from collections.abc import Sequence
from pathlib import Path

import msgspec

from daemon.clock import Clock
from daemon.driver import Driver, launch_of
from daemon.past import fold_one, nearest
from daemon.ports import Launch
from daemon.version import VERSION
from events import catalogue as c
from events.catalogue import Process
from events.envelope import decode
from events.failpoints import reach
from events.reader import Reader
from events.store import EventStore
from events.witness import boot_id
from statemachines.runner import RunnerState
from statemachines.scheduler import RULES
from statemachines.state import State

log = logging.getLogger("runnerd")


class Kept(msgspec.Struct):
    """A fact that breached, as the driver kept it."""

    fact: dict[str, object] | None = None
    model: str = ""
    detail: str = ""
    seq: int = 0


class Recovered(msgspec.Struct):
    """What a log folds to."""

    state: State
    clock: Clock
    """It goes on from there."""
    carried_seq: int
    """The event up to which a snapshot was; 0: there is none."""


def fold_log(path: Path) -> Recovered:
    """The state that the log folds to, from its last snapshot on; what lies before it is not looked at.
    Raises LogError for a log that this program must not go on with."""
    last_at: int | None = None
    with Reader(path) as reader:
        state, head = nearest(reader)
        for record in reader.verified(head):
            event = decode(record)
            fold_one(state, event)
            if type(event.body) is not c.LogSalvaged:  # which took no scheduler time, however late it came
                last_at = record.at
    return Recovered(state, Clock(state.t, last_at), head.seq)


def recorded(state: State) -> Sequence[tuple[Process, Launch]]:
    """Every process that the log believes alive, with what it was started as."""
    return [
        (process, launch_of(runner))
        for runner in state.runners.values()
        for process in runner.processes.values()
    ]


async def begin(driver: Driver, store: EventStore, view: c.ConfigView, path: Path, profile: str = "") -> None:
    """The first facts of a start, in their order; nothing is dispatched before them. `profile`: the one that
    the configuration wants used."""
    state = driver.state
    survivors = await driver.machinery.identify(recorded(state))
    if state.seq:
        alive = len({process.runner for process in survivors})
        log.info("recovered %d events, %d of %d runners alive", state.seq, alive, len(state.runners))
    told = [id for id, runner in state.runners.items() if runner.state is RunnerState.stopping]
    reach("recovery.before")
    driver.submit(
        c.DaemonStarted(RULES, view.policy, boot_id(), VERSION, os.uname().nodename, tuple(survivors))
    )
    if store.tail_lost is not None:
        driver.submit(c.LogTailLost(*store.tail_lost))
    _report_breach(driver, path)
    if driver.state.config != view:
        driver.submit(c.ConfigChanged(view, "start"))
    use_profile(driver, profile, "start")
    driver.submit(await driver.meter.measure({}))
    for words in unlimited(driver.state):
        log.warning("%s", words)
    for id in told:  # by the last start, whose signal may not have been sent: once more
        runner = driver.state.runners.get(id)
        if runner is not None and runner.processes:
            driver.machinery.stop(id)
    await driver.durable(driver.state.seq)
    reach("recovery.after")


def serving(state: State) -> bool:
    """Whether a runner of the last start serves on."""
    return any(runner.state is RunnerState.ready for runner in state.runners.values())


def _report_breach(driver: Driver, path: Path) -> None:
    """A fact that broke an earlier start enters as a fact; its file is kept under another name."""
    kept_path = Path(f"{path}.breach")
    try:
        kept = msgspec.json.decode(kept_path.read_bytes(), type=Kept)
    except FileNotFoundError:
        return
    except (msgspec.MsgspecError, UnicodeDecodeError):
        kept = Kept(detail="unreadable")
    kind = str((kept.fact or {}).get("type", "deadline.passed"))
    driver.submit(c.BreachRecorded(kind, kept.model, kept.detail[:500]))
    kept_path.replace(f"{path}.breach.{kept.seq}")


def digest_key(directory: Path) -> bytes:
    """The key of the launch specs' digests: made once, so that digests can be compared between starts, and
    kept beside the log, so that a digest in an exported log tells nothing of a command or a secret."""
    path = directory / "digest.key"
    try:
        key = path.read_bytes()
    except FileNotFoundError:
        key = b""
    if len(key) != hashlib.sha256().digest_size:
        key = secrets.token_bytes(hashlib.sha256().digest_size)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with open(descriptor, "wb") as file:
            file.write(key)
    return key


def use_profile(driver: Driver, profile: str, by: str) -> None:
    """Switch to the profile that the configuration wants used, if it says any ("": none)."""
    if profile and driver.state.profile != profile:
        driver.submit(c.ProfileRequested(profile, by))


def unlimited(state: State) -> list[str]:
    """Devices that models are configured for, and of which neither the machine nor the file says how large
    they are: mostly a slip of the pen."""
    models: dict[str, list[str]] = {}
    for id, view in state.config.models.items():
        for device in view.memory_bytes:
            if device and device not in state.readings and device not in state.config.devices:
                models.setdefault(device, []).append(id)
    there = ", ".join(sorted(state.readings))
    return [
        f"there is no {device} here (only {there}), nor a budget for it in `devices`: nothing limits what is "
        f"loaded on it (memory of {', '.join(ids)})"
        for device, ids in models.items()
    ]
