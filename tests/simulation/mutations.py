"""Break the scheduler's rules on purpose, one at a time, and see whether the random worlds notice:
`python -m tests.simulation.mutations` (make mutate).

Each rule is broken in a copy of the tree; worlds run until one fails. A rule that no world notices is a hole
in the worlds or in the invariants. `tests/unit/test_mutations.py` keeps the texts that are replaced true.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
COPIED = ("events", "statemachines", "tests/simulation")
SEEDS = 400


class Mutation(NamedTuple):
    """A rule, and the text that breaks it: `old` is in the module once."""

    rule: str
    module: str
    old: str
    new: str


MUTATIONS = (
    Mutation(
        "a load has a deadline",
        "fold_runners",
        'state.deadlines.arm(("load", runner.id), event.t + d.load_ns)',
        "pass",
    ),
    Mutation(
        "a runner that drains is not revived",
        "decide",
        "if runner.state is not RunnerState.ready or runner.suspect or len(runner.held) >= runner.slots:",
        "if runner.state is RunnerState.loading or len(runner.held) >= runner.slots:",
    ),
    Mutation(
        "an exchange that has ended gives its slot back", "moves", "del runner.held[request.id]", "pass"
    ),
    Mutation(
        "what is pinned or persistent is not evicted",
        "loading",
        "if runner.live and kept_from(state, runner, demand)}",
        "if False}",
    ),
    Mutation(
        "no more requests than slots",
        "decide",
        "while len(runner.held) < runner.slots:",
        "while len(runner.held) <= runner.slots:",
    ),
    Mutation(
        "when one shard ends its siblings are stopped",
        "decide",
        's.emit(c.RunnerStop(runner.id, "failed", "shard_exited"))',
        "pass",
    ),
    Mutation(
        "a free slot goes to who waits for it",
        "decide",
        "        elif s.state.queued:\n            dispatch_waiting(s, runner)",
        "        elif False:\n            dispatch_waiting(s, runner)",
    ),
    Mutation(
        "no load beyond a device's budget",
        "room",
        "return not (self.full or self._lacking() or ",
        "return not (self.full or ",
    ),
    Mutation("what does not stop is killed", "deadlines", "    s.emit(c.RunnerKill(id))", "    pass"),
    Mutation(
        "no two runners have one port",
        "room",
        "if port not in leased and port not in refused and port != fixed:",
        "if port not in refused and port != fixed:",
    ),
    Mutation(
        "a measurement has a deadline",
        "fold_daemon",
        'state.deadlines.arm(("measure", ""), event.t + MEASURE_NS)',
        "pass",
    ),
    Mutation(
        "a request is tried again once",
        "decide",
        "again = f.bytes_to_client == 0 and request.attempt == 1 and",
        "again = f.bytes_to_client == 0 and request.attempt <= 2 and",
    ),
    Mutation(
        "groups and the matrix bind loads",
        "room",
        "blocking |= dict.fromkeys(in_the_way(state, demand.model), True)",
        "pass",
    ),
    Mutation(
        "a runner with a slot in use does not stop",
        "scheduler",
        "        if not runner.held:\n            self.emit(c.RunnerStop",
        "        if True:\n            self.emit(c.RunnerStop",
    ),
    Mutation(
        "a runner that may be dead gets no work",
        "decide",
        "if runner.state is not RunnerState.ready or runner.suspect or len",
        "if runner.state is not RunnerState.ready or len",
    ),
    Mutation(
        "the devices of a claim are its own",
        "claims",
        "or whole(state, need) or self.has(need.bytes)",
        "or whole(state, need)",
    ),
    Mutation(
        "what a claim has booked of the host is not given away",
        "room",
        "booked = ahead.bytes.get(device, 0) if ahead is not None else 0",
        "booked = 0",
    ),
    Mutation(
        "a lease outlives a start of the daemon",
        "fold_daemon",
        "return runner.state is RunnerState.ready and bool(runner.processes) and survives",
        "return False",
    ),
    Mutation(
        "a slot that a holder may still use is nobody else's",
        "leases",
        '        s.drain(runner, "lease_revoked")',
        "        pass",
    ),
    Mutation(
        "a lease on a runner that drains is revoked",
        "scheduler",
        "leases.revoke_all(self, runner, reason, deadline_ns)",
        "pass",
    ),
)


def noticed(mutation: Mutation, directory: Path) -> str:
    """What the first world that fails says of a broken rule; "" if none does."""
    for part in COPIED:
        shutil.copytree(ROOT / part, directory / part, ignore=shutil.ignore_patterns("__pycache__"))
    (directory / "tests/__init__.py").touch()
    path = directory / f"statemachines/{mutation.module}.py"
    text = path.read_text("utf-8")
    if text.count(mutation.old) != 1:
        raise SystemExit(f"{mutation.module}: {mutation.old!r} is there {text.count(mutation.old)} times")
    path.write_text(text.replace(mutation.old, mutation.new), "utf-8")
    command = [sys.executable, "-m", "tests.simulation.run", "--count", str(SEEDS), "--first-failure"]
    done = subprocess.run(
        command,
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(directory), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    found = re.search(r"^seed .*", done.stdout, re.MULTILINE)
    return found[0] if found else ""


def main() -> int:
    """One line a rule; 1 if a broken one was not noticed."""
    missed = 0
    for mutation in MUTATIONS:
        with tempfile.TemporaryDirectory(prefix="runnerd-mutation-") as directory:
            said = noticed(mutation, Path(directory))
        missed += not said
        print(f"{mutation.rule:48} {said or f'NOT NOTICED in {SEEDS} worlds'}", flush=True)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
