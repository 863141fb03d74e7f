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

LOG_PAGE_BYTES = 2048
"""SQLite's page size in the log, fixed when a log is made. A small commit rewrites a few whole pages, so half
of SQLite's default writes half as much WAL."""

READ_PAGE_ROWS = 1000
"""Rows that a reader takes in one transaction: a few milliseconds, so that it never holds up a checkpoint."""

READ_TIMEOUT_S = 5.0
"""How long a reader waits for a lock: only the recovery of a crashed writer's WAL takes one, for less."""

GROUP_ROWS = 512
"""Rows in one transaction, unless a single step has more: about 2 ms of writing, so that what arrives
meanwhile does not wait long."""

INSERT_ROWS = 32
"""Rows in one INSERT, and the largest group that needs no BEGIN and COMMIT around it. Beyond that the gain in
speed is small, and each prepared size costs memory."""

RETRY_FIRST_S = 0.002
"""The first wait after a failed commit: another program's transaction is mostly over by then."""

RETRY_CAP_S = 0.25
"""The longest: a quarter of a second after there is room on the disk, the log goes on."""

CLOSE_S = 5.0
"""How long closing the log waits for a blocked head before it gives the unwritten events up."""

WAL_PAGES_PER_GROUP = 4
WAL_ROWS_PER_PAGE = 3
"""Estimates for counting the WAL's pages: a commit of n rows wrote about 4 + n / 3 pages of 2 KiB."""

WAL_YIELD_S = 0.05
"""How long the writer yields at most to let a checkpoint finish: some fsyncs on a slow disk."""

WAL_PACE_S = 0.05
"""Between two transactions while the WAL is above its hard limit: 20 large ones a second."""

WITNESS_S = 1.0
"""Between two writes of the witness."""

TAIL_ROWS = 256
"""Events whose chain is checked when the log is opened for writing: what a crash could have touched."""

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

# --- measuring -------------------------------------------------------------------------------------------

SAMPLE_NS = 5 * S
"""Between two samples of memory while runners are loaded; one reading costs well under a millisecond."""

SAMPLE_STEP_BYTES = 64 * MIB
"""A sample becomes a fact only when free memory moved by this much: telemetry without consequence stays out."""

# --- the service -----------------------------------------------------------------------------------------

WATCH_PAGE = 500
"""Records read at once for a watcher: a read transaction of about a millisecond."""

STOP_LOG_MS = 2_000
"""A stop that cannot be logged within this ends the runners anyway, and the daemon exits non-zero."""

EXIT_STEP_FAILED = 70
"""EX_SOFTWARE of sysexits.h: a step failed; its fact is in `<log>.breach`, the runners are left alive."""

EXIT_LOG_FAILED = 74
"""EX_IOERR of sysexits.h: the event log failed in a way that is not known to pass."""

# --- HTTP ------------------------------------------------------------------------------------------------

HTTP_CONNECTIONS = 10_000
"""Clients connected at once; one more gets 503. Each idle one costs about 8 KiB."""

HTTP_HEAD_BYTES = 64 * 1024
"""Request line and headers; the parser has no limit of its own. nginx's largest is 32 KiB."""

HTTP_HEADERS = 128
"""Header lines in a request: Apache and Node allow 100 and 2,000; no client of a model sends thirty."""

HTTP_URL_BYTES = 8 * 1024
"""RFC 9112 asks servers for 8,000 at least; none of our paths comes near."""

HTTP_BODY_BYTES = 64 * MIB
"""One request's body: a long conversation with a few images is 10 MiB."""

HTTP_BODY_MEMORY_BYTES = 256 * 1024
"""A body above this goes to an unlinked file: nearly all are below, and 1,000 of them are still small."""

HTTP_BODIES_HELD_BYTES = 1 * GIB
"""Request bodies of all requests together (`maxBodyBytesHeld`); above it a request gets 503 unread."""

HTTP_READ_BYTES = 64 * 1024
"""One read from a socket: what loopback delivers at once at most."""

HTTP_REPLY_HEAD_BYTES = 64 * 1024
"""Status line and headers of a runner's answer."""

HTTP_TICK_S = 1
"""Between two looks at the connections' deadlines, which are therefore a second coarse."""

HTTP_HEAD_S = 30
"""From the first byte of a request to the end of its head: slow links need one, slow-loris gets no more."""

HTTP_BODY_S = 60
"""A request body must move within this: nginx's `client_body_timeout`."""

HTTP_IDLE_S = 300
"""A client connection without a request is closed after this; Python's and Go's clients reuse for 90 s or less."""

HTTP_STALL_S = 60
"""A peer that is being written to (or connected to) must take a byte within this: nginx's `send_timeout`."""

HTTP_LINGER_S = 5
"""After an answer to a request that was not read whole: time for the client to read it, before the reset that
closing a socket with unread bytes causes."""

HTTP_LINGER_BYTES = 1 * MIB
"""Bytes of such a request that are read and dropped meanwhile."""

UPSTREAM_IDLE_S = 4
"""An idle connection to a runner is reused within this: llama-server closes its own after 5 s."""

UPSTREAM_IDLE_CONNECTIONS = 64
"""Idle connections kept for one runner: more than any runner has slots."""

HTTP_OPTION_BYTES = 1024
"""The text of one launch option in a request (an adapter's path): it enters the log."""
