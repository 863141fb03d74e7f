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

# --- the scheduler ---------------------------------------------------------------------------------------

STOP_NS = 10 * S
"""From the stop signal to SIGKILL: llama-swap's own ten seconds."""

KILL_NS = 5 * S
"""From SIGKILL to the alarm that a process cannot die (it sits in the kernel, mostly in a GPU driver)."""

PROBE_NS = 10 * S
"""How long a suspect runner may take to say that it is healthy: Ollama's ping has the same limit."""

REPROBE_NS = 500 * MS
"""Between two probes of a suspect runner that answered "not healthy"."""

WATCH_NS = 60 * S
"""Between two looks at a busy runner: five of them fit into RESPONSE_NS."""

RESPONSE_NS = 300 * S
"""A busy runner that moved no byte and failed its probes for this long is hung (`responseTimeout`)."""

UPSTREAM_CLOSE_NS = 5 * S
"""From the end of a request, or of its runner, to its slot being taken back without the relay's word."""

RECLAIM_NS = 5 * S
"""How long freed GPU memory may take to show up; it mostly takes 0.5 to 1.5 s."""

RECLAIM_POLL_NS = 250 * MS
"""Between two measurements while a runner's memory is awaited."""

RECLAIM_PERCENT = 75
"""Memory counts as back when this much of the prediction has reappeared."""

MEMORY_FRESH_NS = 1 * S
"""A load decision needs a measurement no older than this."""

MEASURE_NS = 2 * S
"""How long a measurement may take before the ledger alone decides."""

QUEUE_MAX = 512
"""Requests that may wait at once: Ollama's default."""

CRASH_WINDOW_NS = 30 * S
"""An exit this soon after becoming ready counts as a failed load."""

COOL_FIRST_NS = 2 * S
"""The first cool-down after a failed load; each further failure doubles it."""

COOL_MAX_NS = 300 * S
"""The longest cool-down: a person who mends the model's file should not wait longer."""

LEASE_TRIES = 16
"""Ports that are tried for one load before it fails: more than this means a range in use by another program."""

STEP_DECISIONS = 10
"""Waiters answered in one step; the rest follow in steps of their own, due at once. Keeps a step under
50 µs with 10,000 queued."""

SWAP_PATIENCE = 4
"""α: a runner may keep its place for α × (what it costs to swap) while others wait. Switching then takes
at most 1/(1+α) of the time."""

LOAD_GUESS_NS = 10 * S
"""What a load is taken to cost before one has been seen: the middle of the usual 6 to 25 s."""

MEMORY_WAIT_NS = 30 * S
"""How long a load waits for memory that other programs hold, before its waiters are told."""

MEMORY_RETRY_NS = 1 * S
"""Between two looks at such memory."""

AGE_STEP_NS = 60 * S
"""A waiter gains one step of priority for each of these."""

MODELS_PER_GPU = 3
"""`maxLoadedModels: 0`: Ollama's automatic value, also without a GPU."""

CONSIDERED_MAX = 16
"""Alternatives recorded with a decision: enough to explain it, bounded for the log."""

QUARANTINE_NS = 60 * S
"""How long requests of a shape that breached an invariant are refused."""

OUTPUT_MAX_BYTES = 2048
"""The last output of a failed load that enters the log and its waiters' answers."""

MAX_DOWNTIME_NS = 30 * 24 * 3600 * S
"""A start counts at most this much elapsed wall time: a clock that jumped by more is not believed."""
