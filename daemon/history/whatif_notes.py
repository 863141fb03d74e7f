"""What a person must know of a recording that is played again, before believing it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from daemon.history.changes import Changes
from daemon.history.recording import Recording
from events import catalogue as c
from events.catalogue import ConfigView, ModelView
from statemachines.ledger import mib
from statemachines.scheduler import RULES

CLOSED = "requests arrive when they did: who asks again only after an answer would have asked sooner or later"
AS_RECORDED = "every request takes its slot for as long as it did, however many others run beside it"
LISTED = 5
"""Names that are listed of many."""


def notes(recording: Recording, changes: Changes, recorded: Sequence[ConfigView]) -> list[str]:
    """Sentences; the general ones first."""
    return [
        CLOSED,
        AS_RECORDED,
        *_substituted(recording),
        *_world(recording),
        *_configured(changes, recorded, recording),
    ]


def _substituted(recording: Recording) -> list[str]:
    found, counted = list[str](), recording.substitutes
    if counted.never_served:
        found.append(
            f"{_count(counted.never_served, 'request')} never served: given times of others of their model"
        )
    if counted.cut_off:
        found.append(f"{_count(counted.cut_off, 'request')} cut off: given longer times of their model")
    if counted.loads:
        found.append(
            f"{_count(counted.loads, 'load')} given up before it was ready: given their model's median time"
        )
    return found


def _world(recording: Recording) -> list[str]:
    """What else happened, and happens again."""
    found = []
    kinds: dict[type, int] = defaultdict(int)
    for each in recording.inputs:
        kinds[type(each.fact)] += 1
    starts = kinds[c.DaemonStarted] - (0 if recording.start.seq else 1)
    if starts > 0:
        found.append(
            f"the daemon started again {_times(starts)}: so it does here, and what was served then ends"
        )
    asked = [f"{kinds[kind]} {name}" for kind, name in OPERATORS.items() if kinds[kind]]
    if asked:
        found.append(f"operators' requests are repeated at their time: {', '.join(asked)}")
    changed = kinds[c.ConfigChanged] - (0 if recording.start.seq else 1)
    if changed > 0:
        found.append(
            f"the configuration changed {_times(changed)}: so it does here, each with the same change"
        )
    crashed = sum(b.crashed for b in recording.behaviours.values())
    if crashed:
        found.append(f"{_count(crashed, 'runner')} crashed: so does the same load of the same model")
    if recording.refused:
        found.append(
            f"{_count(recording.refused, 'request')} came while the log was blocked, and is not in it"
        )
    if other := [rules for rules in recording.rules if rules != RULES]:
        found.append(f"recorded under rules {', '.join(map(str, other))}; played by rules {RULES}")
    if recording.start.seq:
        found.append("it begins with what was loaded, running and queued at its first moment")
    return found


OPERATORS = {
    c.LoadRequested: "load",
    c.UnloadRequested: "unload",
    c.PinRequested: "pin",
    c.CancelRequested: "cancel",
    c.StopRequested: "stop",
}


def _configured(changes: Changes, recorded: Sequence[ConfigView], recording: Recording) -> list[str]:
    """Where the changed configuration and the recording do not meet."""
    found = []
    before = recorded[-1] if recorded else ConfigView()
    view = changes(before)
    wanted = dict.fromkeys(arrival.model for arrival in recording.arrivals)
    missing = [name for name in wanted if name in before.models and name not in view.models]
    if missing:
        found.append(f"not in that file, so refused: {_listed(missing)}")
    other = [name for name in wanted if "" != _digest(before, name) != _digest(view, name) != ""]
    if other:
        found.append(f"another command than recorded, but the recorded times: {_listed(other)}")
    known: dict[str, int] = {}
    for memory in recording.readings:
        known |= memory.total_bytes
    for name, device in view.devices.items() if changes.view is not None else ():
        size = known.get(name)
        if size is not None and (device.budget_bytes or 0) > size and name not in changes.budgets_bytes:
            found.append(f"{name} has {mib(size)}, whatever its budget: --memory {name}=… makes it larger")
    gpus = {
        b.model for b in recording.behaviours.values() if any(device != "host" for device in b.used_bytes)
    }
    for added in changes.budgets_bytes:
        bound = [name for name, model in view.models.items() if _elsewhere(model, added)]
        if added not in known and bound:
            found.append(
                f"its memory is not for what is configured for other devices than {added}: {_listed(bound)}"
            )
        learned = [name for name, model in view.models.items() if not model.memory_bytes and name in gpus]
        if added not in known and learned:
            found.append(f"measured on another device than {added}, where it stays: {_listed(learned)}")
    return found


def _elsewhere(model: ModelView, device: str) -> bool:
    """Whether a model is configured for other devices only."""
    return bool(model.memory_bytes) and "" not in model.memory_bytes and device not in model.memory_bytes


def _digest(view: ConfigView, name: str) -> str:
    return view.models[name].digest if name in view.models else ""


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun} was" if number == 1 else f"{number:,} {noun}s were"


def _times(number: int) -> str:
    return "once" if number == 1 else f"{number} times"
