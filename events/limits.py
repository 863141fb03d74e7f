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

FLUSH_NS = 2 * MS
"""How long the end of a request may wait for company on its way into the log: well within what a crash of the
daemon loses anyway, and a watcher does not notice it."""

WAL_SOFT_PAGES = 4096
"""8 MiB of 2 KiB pages; above it the writer yields so that a checkpoint can finish. At full rate that is six
times a second for 1 to 3 ms each (two fsyncs); SQLite's own 1000 pages would make it 25 times."""

WAL_HARD_BYTES = 64 * MIB
"""Above this the writer paces itself: a WAL grew to 1.5 GB in 12 s with passive checkpoints alone."""

LOG_PAGE_BYTES = 2048
"""SQLite's page size in the log, fixed when a log is made. A small commit rewrites a few whole pages, so half
of SQLite's default writes half as much WAL."""

READ_PAGE_ROWS = 1000
"""Rows that a reader takes in one transaction: a few milliseconds, so that it never holds up a checkpoint."""

RECENT_ROWS = 512
"""Durable rows that are kept in memory for those who follow the log: some 0.4 MB. A query for what has just
been written would take a millisecond for each of them; who is farther behind reads from the file."""

RECENT_GROUPS = 64
"""For so many transactions after somebody has asked for what is new. Rows that nobody follows are not kept:
memory that is touched late costs each request some hundredths of its time."""

FOLLOW_S = 0.2
"""How often a reader that follows a log looks for more: a person takes less for at once, and a look is one
page's read."""

LOCK_S = 5.0
"""How long opening or reading a log waits for SQLite's locks: only the recovery of a crashed writer's WAL
takes one against readers, and for less."""

GROUP_ROWS = 512
"""Rows in one transaction, unless a single step has more: about 2 ms of writing, so that what arrives
meanwhile does not wait long."""

INSERT_ROWS = 32
"""Rows in one INSERT, and the largest group that needs no BEGIN and COMMIT around it. All sizes prepared cost
1 MiB; up to 64 they cost 3, for a gain within the noise."""

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

CARRIED_PART_CHARS = 8 * 1024
"""One event's part of a snapshot: encoded and chained in 10 µs, so that a large state holds nobody up."""

CARRIED_TEXT_BYTES = 256 * MIB
"""The text of a state, at most: a million queued requests, at 250 bytes each."""

PRUNED_ROWS_PER_PAGE = 5
"""Estimate: to delete n rows writes about n / 5 pages into the WAL."""

VACUUM_PAGES = 64
"""Pages of a log's file that are given back at once, in a millisecond; each is a page of WAL."""

VACUUM_FREE_PAGES = 4096
"""Free pages that are kept for what comes next, 8 MiB: giving them back to take them again would be work."""

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
"""Between two looks at a runner that has not answered yet: five of them fit into RESPONSE_NS."""

RESPONSE_NS = 300 * S
"""A runner that left requests unanswered and failed its probes for this long is hung (`responseTimeout`)."""

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

MEMORY_WORDS = (
    "out of memory", "outofmemory", "outofdevicememory", "cannot allocate memory", "unable to allocate",
    "failed to allocate", "bad_alloc", "oom-kill",
)  # fmt: skip
"""What the last lines of a server say, in any case, when its load ran out of memory: llama.cpp's backends
(CUDA, HIP, Vulkan, Metal), PyTorch's, the C library's and the C++ run-time's words."""

FOOTPRINTS = 2_000
"""What is kept of what was learned of launch specs: two for each of CONFIG_MODELS. Clients choose options'
values, so there is no end to them; what was learned longest ago is forgotten first."""

KILLED_STATUSES = (-9, 137)
"""The exit status of what the kernel killed, itself and as a shell or a container tells it."""

CRASH_WINDOW_NS = 30 * S
"""An exit this soon after becoming ready counts as a failed load."""

COOL_FIRST_NS = 2 * S
"""The first cool-down after a failed load; each further failure doubles it."""

COOL_MAX_NS = 300 * S
"""The longest cool-down: a person who mends the model's file should not wait longer."""

LEASE_TRIES = 16
"""Ports that are tried for one load before it fails: beyond that, another program uses the range."""

STEP_DECISIONS = 4
"""Waiters answered in one step, half of them where there are more than LOOK_RUNNERS; the rest follow in steps
of their own, due at once. Keeps a step under 50 µs with 10,000 queued."""

LOOK_RUNNERS = 16
"""With more of them, what else is one step is several, due at once: who is loaded next is decided in a step
of its own, if the step has decided anything before (a look at all is most of what one may take); so is each
victim told to go, and each runner ended whose memory is back."""

SWAP_PATIENCE = 4
"""α: a runner may keep its place for α × (what it costs to swap there and back) while others wait. Switching
then takes at most 1/(1+α) of the time."""

LEASE_GRACE_NS = 60 * S
"""After a start, how long a lease's slot is kept for who held it: for as long as a runner outlives a daemon
(ORPHAN_GRACE_S)."""

SWAP_PATIENCE_MAX = 1000
"""`swapPatience`: with more, nobody else would ever have a turn."""

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

PREFETCH_PIECE_BYTES = 2 * MIB
"""What the kernel is asked to read ahead at once: it ignores the wish for a file as a whole."""

PREFETCH_KEEP_PERCENT = 25
"""Of the memory that is available, what reading ahead leaves alone."""

FILL_TRIES = 4
"""Waiters that are looked at when the first of them waits for its turn on a device that they do not need."""

LINGER_SHARE = 10
"""The part of its load cost that an idle runner keeps its place for: a swap is a tenth dearer at most."""

LINGER_MAX_NS = 2 * S
"""And never longer than a person would call a pause."""

LINGER_TIMES = 4
"""It waits for so many times what its clients took to ask again: they are not always as quick."""

LINGER_LEAST_NS = 100 * MS
"""And for this at least: a client on another machine, between two requests."""

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

SETTLE_NS = 2 * SAMPLE_NS
"""From a runner's being ready: until then a sample has seen what it has taken."""

METER_S = 1.5
"""How long a GPU's driver may take to answer: within MEASURE_NS, so that host memory is known in any case."""

SAMPLE_STEP_BYTES = 64 * MIB
"""A sample becomes a fact only when free memory moved by this much: the log is no telemetry."""

METRIC_MODELS = 2000
METRIC_REASONS = 64
"""Models, and reasons, that are counted by name, the rest as one: twice as many as there are."""

SCRAPE_SAMPLES = 256
"""Lines that a scrape makes at a time, before the others have their turn: 1 to 2 ms."""

DEADLINE_LATE_NS = 5 * S
"""A deadline that is overdue for longer has nobody who fires it: that takes milliseconds."""

# --- what a model needs ----------------------------------------------------------------------------------

GGUF_READ_BYTES = 256 * MIB
"""The longest header of a GGUF file: vocabularies of 262,000 tokens with their merges take 15 MiB."""

GGUF_NAME_BYTES = 65_535
"""The longest key or name in a GGUF file: the format's own limit for keys."""

GGUF_KEYS = 65_536
"""Keys in one file: those in use have less than a hundred."""

GGUF_TENSORS = 1 << 20
"""Tensors in one file: a thousand layers of a thousand experts each, were they not one tensor."""

GGUF_LAYERS = 4096
"""Layers of a model: the deepest has 126; llama.cpp takes 512."""

GGUF_KEPT_ELEMENTS = 4096
"""Elements of an array that is kept: those that say something of each layer."""

GGUF_TEMPLATE_BYTES = 1 * MIB
"""A chat template that is looked into: the longest in use have 20 KiB."""

GGUF_PARTS = 1000
"""Files that a model may be split into: those of a trillion parameters have some tens."""

GGUF_MEMORY_BYTES = 512 * MIB
"""Address space of the process that reads GGUF files: Python takes 60 MiB of it."""

GGUF_CPU_S = 30
"""Its processor time: a large vocabulary takes 0.1 s, so some hundred models of the largest kind."""

GGUF_S = 30.0
"""And the time that a start waits for it, where it sits in a file system that does not answer."""

PROCESS_END_S = 1.0
"""How long its end is waited for after a SIGKILL: it may sit in the kernel."""

GGUF_OUTPUT_BYTES = 16 * MIB
"""Its output: a kilobyte a file, more with a figure for each of many layers."""

GPU_CONTEXT_BYTES = 457 * MIB
"""What a process takes of a GPU before it has allocated anything: Ollama's figure for CUDA and ROCm."""

SERVER_BYTES = 32 * MIB
"""What llama-server takes without a model: 20 MiB measured, and its threads' buffers."""

TOKEN_BYTES = 512
"""What a token of the vocabulary takes in llama-server: its text, the maps by text and number, the merges."""

BATCH_TOKENS = 512
"""Tokens that llama-server computes at once (`--ubatch-size`)."""

CONTEXT_PAD_TOKENS = 256
"""llama.cpp rounds each slot's context up to this."""

CONTEXT_LEAST_TOKENS = 4
"""The smallest context: Ollama's."""

CONTEXT_LEAST_VISION_TOKENS = 2048
"""The same where a model sees images, each of which takes hundreds of tokens: Ollama's too."""

# --- the service -----------------------------------------------------------------------------------------

STOP_LOG_MS = 2_000
"""A stop that cannot be logged within this ends the runners anyway, and the daemon exits non-zero."""

EXIT_STEP_FAILED = 70
"""EX_SOFTWARE of sysexits.h: a step failed; its fact is in `<log>.breach`, the runners are left alive."""

EXIT_LOG_FAILED = 74
"""EX_IOERR of sysexits.h: the event log failed in a way that is not known to pass."""

# --- HTTP ------------------------------------------------------------------------------------------------

HTTP_CONNECTIONS = 10_000
"""Clients connected at once; one more gets 503. Each idle one costs about 6 KiB."""

HTTP_ACCEPTS = 64
"""Connections accepted in a row before the others get their turn."""

HTTP_ACCEPT_PAUSE_S = 0.1
"""Before the next try when the machine has no descriptor left: listening sockets stay readable meanwhile."""

HTTP_HEAD_BYTES = 64 * 1024
"""Request line and headers; the parser has no limit of its own. nginx's largest is 32 KiB."""

HTTP_HEADERS = 128
"""Header lines in a request: Apache and Node allow 100 and 2,000; no client of a model sends thirty."""

HTTP_URL_BYTES = 8 * 1024
"""RFC 9112 asks servers for 8,000 at least; none of our paths comes near."""

HTTP_BODY_BYTES = 64 * MIB
"""One request's body: a long conversation with a few images is 10 MiB."""

HTTP_BODY_LEAST_BYTES = 1024
"""The least that `maxBody` may be: below it no model could be asked for anything."""

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

HTTP_BODY_TOTAL_S = 900
"""And it must be whole within this: 64 MiB at 600 kbit/s. Else a byte a minute would hold a connection."""

HTTP_IDLE_S = 300
"""A client connection without a request is closed after this; common clients reuse one for 90 s or less."""

HTTP_VANISHED_IDLE_S = 15
HTTP_VANISHED_PROBES = 9
"""A client, or a peer, that says nothing is asked for a sign of life (TCP keep-alive) after so long, and gone
when it has not answered so many times, as far apart: 150 s, as all of Go has it (Ollama, llama-swap)."""

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

# --- configuration ---------------------------------------------------------------------------------------

CONFIG_MAX_BYTES = 1 * MIB
"""The largest configuration file: a thousand long model entries. Of Ollama's manifests, too: a few KiB."""

CONFIG_DEPTH = 32
"""The deepest nesting in the file: the schema needs four levels, `metadata` of a model perhaps ten."""

CONFIG_NODES = 100_000
"""Values in the file with all aliases expanded: a thousand models of a hundred values; stops YAML bombs."""

CONFIG_MODELS = 1_000
"""Models in one configuration: far more than a box holds, and its view still fits into one event."""

CONFIG_GROUPS = 200
"""Groups, or sets of the matrix: more than there are reasons for, and few enough to refer to each other."""

CONFIG_SET_TOKENS = 1000
"""Names and operators in one expression of the matrix."""

EVICT_COST_MAX = 1_000_000
"""What it may cost to lose a model: sums of all of them stay far below 64 bits."""

API_KEYS = 1_000
"""Keys of the front door: one for each user of a large group; each is compared with every request's."""

API_KEY_CHARS = 512
"""The longest key: fits into a header with room to spare; keys in use have 20 to 100."""

API_KEY_FEW_CHARS = 16
"""Shorter keys are warned of: 64 bits in hexadecimal, which nobody guesses over a network, have as many."""

CONFIG_MACROS = 200
"""Macros at the top, and again in each model: large files in use have some tens."""

CONFIG_EXPANDED_CHARS = 8 * MIB
"""Text that macros may expand to in all: eight times the largest file; it stops macros that double."""

CONFIG_NAME_CHARS = 256
"""The longest model id, alias or host: they are shown in tables and in every event of a model."""

CONFIG_MACRO_NAME_CHARS = 63
"""The longest macro name: llama-swap's own limit."""

CONFIG_SHOWN_CHARS = 80
"""How much of a wrong value a message shows: enough to find it, and the message stays on one line."""

CONFIG_PROBLEMS_SHOWN = 50
"""Problems listed at once: a screenful; the rest are counted."""

CONFIG_PROBLEMS = 500
"""Problems after which reading ends: each may look for the nearest of a thousand names, which takes 15 ms."""

NEAREST_LOOKED_AT = 64
"""Names that are compared letter by letter with a mistyped one, of those with the most letters in common."""

CONFIG_DURATION_MAX_S = 10 * 365 * 24 * 3600
"""Ten years: the longest duration. In nanoseconds it is far from the end of 64 bits."""

CONFIG_SIZE_MAX_BYTES = 1 << 50
"""One PiB: the largest size; sums of a thousand of them still fit into 64 bits."""

CONFIG_INTEGER_MAX = (1 << 53) - 1
"""The largest whole number of an option: every JSON reader keeps it exactly."""

INSTANCES_MAX = 64
"""Runners of one launch spec: more than GPUs in a box."""

SLOTS_MAX = 1024
"""Requests that one runner may serve at once: the largest batch that servers are run with."""

MATRIX_CHOICES = 256
"""Ways in which a set of the matrix can hold the models that are loaded: few in practice, at most 2 to the
power of their number. What lies beyond is not looked at, so that no expression makes a step long."""

REQUESTS_MAX = 1_000_000
"""The largest `maxQueue` and `concurrencyLimit`: above it a step with a full queue was never measured."""

PRIORITY_MAX = 1000
"""The largest priority, either way: with a step of age a minute, more would mean waiting for ever."""

LISTEN = "127.0.0.1:8080"
"""Loopback only, and llama-swap's port."""

LOAD_NS = 120 * S
"""`healthCheckTimeout`: llama-swap's default."""

LOAD_LEAST_S = 15
"""llama-swap raises a shorter `healthCheckTimeout` to this; here it holds as written, with a warning."""

LOAD_STALL_LEAST_S = 1
"""The shortest `loadStallTimeout`: a quarter of it is how often every process is looked at."""

UNLOAD_NS = 30 * S
"""`unloadTimeout`: longer than llama-swap's 10 s, which start at the signal; ours start with the drain."""

HEADROOM_BYTES = 512 * MIB
"""`memoryHeadroom`: what drivers and other programs grow by without asking; about a CUDA context."""

PORT_FIRST = 5800
"""`startPort`: llama-swap's default."""

PORT_COUNT = 1000
"""Ports that may be leased from `startPort` on: a thousand runners at once."""

SOCKET_PATH_BYTES = 107
"""The longest path of a Unix socket: sun_path of Linux, less its NUL."""

# --- processes -------------------------------------------------------------------------------------------

READY_POLL_S = 0.01
"""Between two looks at a loading runner: readiness is found within this of its being true."""

READY_PAUSE_S = 1.0
"""The longest pause between two looks at a loading runner that is slow to answer: so late at most is its
readiness found, and it has one request a second to bear."""

WATCHERS_S = 0.5
"""How long a daemon that stops waits for watchers to take the last events."""

SCARCE_PAUSE_S = 0.1
"""Before the next try where the daemon has no descriptor left for what its runners need."""

PROBE_S = 5.0
"""How long a runner may take to answer one health probe; two must fit into PROBE_NS."""

PROBE_LONGEST_S = 30.0
"""The same while it loads: some loaders answer between two tensors only."""

PROBE_REPLY_BYTES = 4096
"""As much of a health answer as is read: its status line is at the beginning."""

STOP_COMMAND_S = 8.0
"""How long `cmdStop` may take before a signal is sent instead: within STOP_NS."""

RUNNER_LOG_MAX_BYTES = 16 * MIB
"""A runner's output file is truncated at this: a day of llama-server's own verbosity."""

OUTPUT_LOOK_S = 1.0
"""Between two looks at the size of a runner's output: a stat costs a microsecond."""

SHARD = 0
"""A runner's first process: the only one, or the one that serves, beside its shards 1, 2 …."""

SHARDS_MAX = 64
"""Further processes of one runner: more than GPUs in a box."""

LOAD_LOOKS = 4
"""Looks at a loading runner within its `loadStallTimeout`: so many facts at most, and a stall is found at
most a quarter late."""

LOAD_READ_BYTES_S = 128 * 1024
"""Bytes a second that a loading runner must read for that to be progress: ten times what answering a hundred
health probes a second makes it read, and a hundredth of a slow disk."""

LOAD_WORK_PERCENT = 25
"""Percent of one core that a loading runner must use for that to be progress: one that waits uses a few for
answering its health probes."""

ORPHAN_GRACE_S = 60.0
"""How long runners outlive a daemon that nobody restarts: longer than any restart of systemd's."""

GUARDIAN_LOOK_S = 30.0
"""How often the daemon looks whether its guardian is there: a few file operations."""

HTTP_BACKLOG = 1024
"""Connections that may wait to be accepted: a burst of clients after a restart."""

PRELOAD_REPORT_S = 10.0
"""Between two lines in the journal while models are preloaded: who reads it sees that the start goes on."""
