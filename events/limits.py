"""Every limit and every waiting time of the project, by name, each with the precedent or the sum behind it.

Units last: `_ns` and `_ms` durations, `_bytes` sizes, `_s` seconds. Anything a user can configure has its
default here too.
"""

MS = 1_000_000
"""Nanoseconds in a millisecond."""

S = 1_000_000_000
"""Nanoseconds in a second."""

MIB = 1 << 20
GIB = 1 << 30

# --- the log ---------------------------------------------------------------------------------------------

LOG_BLOCKED_MS = 250
"""After this long without a commit, arrivals are refused (503) before they become facts: long enough for a
slow fsync or a checkpoint, short enough that a client is not left hanging."""

WAL_SOFT_PAGES = 1000
"""SQLite's own default checkpoint distance; above it the writer yields so that a checkpoint can finish."""

WAL_HARD_BYTES = 64 * MIB
"""Above this the writer paces itself: a WAL grew to 1.5 GB in 12 s with passive checkpoints alone."""
