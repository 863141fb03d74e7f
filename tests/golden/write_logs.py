"""Writes the logs of tests/golden/logs: `python -m tests.golden.write_logs VERSION`.

Each is what that version of runnerd left behind, and replays for ever: a file that is there is never written
again. While a version has not been released, its files may be removed and written anew.
"""

from __future__ import annotations

import gzip
import shutil
import sys
import tempfile
from pathlib import Path

from events import segment
from events.reader import Reader
from events.segment import Header
from statemachines.replay import steps
from tests.kept import KeptWorld

LOGS = Path(__file__).parent / "logs"
WORLDS = {"calm": 3, "harsh": 6}
"""Names, and seeds of worlds that are small and in which much happens."""
SNAPSHOTS = 3


def main(version: str) -> int:
    """Write what is not there."""
    LOGS.mkdir(exist_ok=True)
    for name, seed in WORLDS.items():
        with tempfile.TemporaryDirectory() as directory:
            log = Path(directory) / "events.db"
            world = KeptWorld(log, seed, SNAPSHOTS)
            path = LOGS / f"{version}-{name}.db.gz"
            if not path.exists():
                with log.open("rb") as plain, gzip.GzipFile(path, "wb", mtime=0) as zipped:
                    shutil.copyfileobj(plain, zipped)
            _write_segment(log, LOGS / f"{version}-{name}.jsonl.gz")
        print(f"{path.name}: {len(world.log)} events, {sum(1 for _ in steps(world.log))} steps")
    return 0


def _write_segment(log: Path, path: Path) -> None:
    """What would have been archived between the first snapshot and the last."""
    if path.exists():
        return
    with Reader(log) as reader:
        last, *_, first = reader.snapshots()
        begin = tuple(reader.pieces(first))
        base = reader.base
        header = Header(segment.FORMAT, base.log_id, base.created_at, first.upto + 1, first.hash.hex(), begin)
        segment.write(path, header, reader.records(first.upto, last.upto))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
