"""Limits that no event depends on: of HTTP, of translations, of keeping the log; each with its reason."""

from __future__ import annotations

from events.limits import GIB, MIB, S

LEASE_TOKEN_BYTES = 32
"""Of chance in a lease's token: as many as in a key."""

LEASE_BACK_S = 0.25
"""Between two looks whether the daemon is there again: a restart takes a second."""

LEASE_LAST_S = 5.0
"""What a command of `runnerctl lease` has to end, of the time that it may let go in; half of a short one."""

FORM_PARTS = 64
"""Parts of a form that are looked at for its model: OpenAI's longest has 20."""

FORM_NAME_BYTES = 4096
"""A form's model field: names are shorter, and what is longer is not one."""

UPSTREAM_NAME_PARTS = 8
"""Parts of a path under /upstream/ that are tried as a model's name: names with slashes have two or three."""

LOOK_S = 60.0
"""How long a runner may take to begin to say how it is: llama-server does so between two batches."""

EVENTS_BEAT_S = 15.0
"""A comment goes to followers of events at least this often: proxies give up what is silent for a minute."""

FILE_LOOK_S = 1.0
"""How long a look for a model's file may take; a file system that hangs must not hold up who asks."""

LOADING_FIRST_S = 1.0
"""How long who waits for a stream is told nothing: most loads that are shorter need no explanation."""

LOADING_BEAT_S = 1.0
"""Between two signs of life while it waits."""

LOG_RING_BYTES = 256 * 1024
"""The daemon's own messages that are kept in memory for /logs: a day of a quiet one."""

LOG_HISTORY_LINES = 200
"""What a reader of a runner's output is shown of the past."""

LOG_LINE_BYTES = 4096
"""What has come of a line is shown without its end when it is longer than this."""

LOG_ENDED = 32
"""Runners that have ended, each of another model, whose output is kept: a failure is looked for soon."""

LOG_FOLLOW_S = 0.25
"""Between two looks at what runners print, while somebody watches: a file tells nobody that it has grown."""

# --- Ollama's API ----------------------------------------------------------------------------------------

OLLAMA_EVENT_BYTES = 8 * MIB
"""One event of a model server's stream: Ollama's own client of llama-server takes as much."""

OLLAMA_WHOLE_BYTES = 256 * MIB
"""An answer that is translated whole: a thousand embeddings of 8192 numbers take 100 MiB."""

OLLAMA_ERROR_BYTES = 1 * MIB
"""A model server's error: a sentence, or a prompt that it repeats."""

OLLAMA_CALLS = 1024
"""Tool calls in one answer: models make a handful."""

OLLAMA_CALLS_CHARS = 16 * MIB
"""Their arguments together: a call may write a long file."""

OLLAMA_TOP_LOGPROBS = 20
"""Alternatives to each token: Ollama's and OpenAI's limit."""

OLLAMA_ROLE_CHARS = 64
"""Of the role of a message, which templates compare with a word."""

OLLAMA_KEEP_ALIVE_NS = 300 * S
"""How long a model stays loaded after a request of Ollama's API, where neither it nor the configuration says:
Ollama's five minutes."""

# --- keeping the log -------------------------------------------------------------------------------------

CARRY_EVENTS = 5_000
"""Events between two snapshots. A start folds so many, and those of CARRY_PAUSE_S, at 6 µs each; one
transaction prunes so many at once, and nothing is appended for the 10 ms that this takes."""

CARRY_PAUSE_S = 5.0
"""Between two keepers, unless more than CARRY_HASTE_EVENTS come: to start one takes 0.3 s of a core."""

CARRY_HASTE_EVENTS = 50_000
"""After so many events a keeper is started though one has just ended: 10 MB that the log has too much."""

CARRY_S = 24 * 3600.0
"""A log into which little comes has a snapshot a day, so that what is old can be pruned by age."""

KEEPER_IDLE_S = 3.0
"""How long a keeper may take that has only what is left of the processor. With enough of it, it is done in
0.3 s; at full rate 25 MB of events come meanwhile."""

KEEPER_S = 600.0
"""How long a keeper may take: it folds 100,000 events a second, and an older runnerd's log has millions."""

PRUNE_PAUSE_S = 0.05
"""Between two cuts, or two steps of making the file smaller: others append, and the WAL is checkpointed. A
cut takes 10 ms, so most of the time is theirs; and 80,000 events a second go, more than can come."""

KEEPER_PAGE_ROWS = 64
"""Rows that it reads in one transaction. On a busy machine it may have to wait in the middle of one, and as
long as it does the log's WAL cannot begin anew: so it is in one for a twentieth of its time."""

KEEPER_LINE_BYTES = 64 * 1024
"""One line that a keeper prints: a piece of a snapshot, of 8 KiB and a few numbers."""

RETAIN_BYTES = 1 * GIB
"""`retention.size`: a million requests, and little beside a model's file."""

RETAIN_LEAST_BYTES = 16 * MIB
"""The least of it: some snapshots' worth, so that the last hour of a busy machine can be looked at."""

ARCHIVE_BYTES = 1 * GIB
"""`retention.archive`: some four million requests more, compressed."""

# --- the control socket ----------------------------------------------------------------------------------

CONTROL_MESSAGE_BYTES = MIB
"""A call: a name and a handful of words; a thousand times what any needs."""

CONTROL_READ_BYTES = 64 * 1024
"""Read at once: the size of a Unix socket's buffer."""

CONTROL_MESSAGE_S = 10.0
"""From the first byte of a call to its last: programs write one at once."""

CONTROL_AHEAD_BYTES = MIB
"""What a client may send while a call of its own is answered that takes long: as much as one call, or some
thousand small ones."""

CONTROL_CONNECTIONS = 512
"""Clients at once: people, scripts, watchers and holders of leases of one machine; half of the descriptors
that a process may mostly have open."""

CONTROL_CONNECTIONS_OF_ONE = 256
"""Clients of one user: nobody keeps the others out."""

CONTROL_SEND_S = 10.0
"""A client that takes longer than this to read a reply is dropped."""

CONTROL_LAST_WORD_BYTES = 256 * 1024
"""The send buffer of a client that is dropped for not reading: the default one is full, and Linux doubles
what is asked for, so that what was begun and the reason fit behind it."""

CONTROL_LAST_WORD_S = 1.0
"""How long those last words may take: they fit at once, or never."""

LOAD_PROGRESS_S = 0.25
"""Between two progress replies of a load: a person sees it move."""

# --- systemd ---------------------------------------------------------------------------------------------

BEAT_S = 1.0
"""Between two looks at how the daemon is, for systemd: `systemctl status` is read by people."""

STOP_EXTENSION_S = 30.0
"""A stop that makes progress may take so much longer than now: thirty beats may be late."""

RESTART_WATCHDOG_S = 600.0
"""The watchdog's patience from the end of one program to the next one's having read its log: a million events
take some seconds, a slow disk takes longer, and who takes longer than this hangs."""

HANDED_DOWN = 16
"""Sockets that are taken from systemd: HTTP on a few addresses, and the control socket."""

UNIT_ASK_S = 3.0
"""How long systemd may take to say whether its job is a restart; it takes some 20 ms."""

RESTART_DRAIN_S = 30.0
"""How long a restart waits for requests of models that are not in the configuration any more."""

SETTLE_S = 0.5
"""How long a restart waits for the requests of those who have connected and asked for nothing yet: mostly a
millisecond; some connect ahead of time, and never ask."""

REHEARSAL_S = 60.0
"""How long the program that a restart would start may take to check its configuration: it starts in half a
second, and reads headers of model files."""

JOURNAL_LINE_BYTES = 48 * 1024
"""A line for the journal is cut here, as journald cuts those of streams; Linux takes datagrams of 208 KiB."""

# --- timelines and exports ------------------------------------------------------------------------------

CLOCK_STEP_NS = 50_000_000
"""By how much the time of day may run ahead of scheduler time before a timeline says so: less is not seen."""

EXPORT_BATCH_ROWS = 20_000
"""Events that an export holds at a time, and a row group of Parquet: some 40 MB, and few enough groups."""

TIMELINE_WIDE_REQUESTS = 200_000
"""Requests in a timeline from which on it is said that fewer would do: a page of some 15 MB."""

# --- explanations ----------------------------------------------------------------------------------------

EXPLAIN_S = 60.0
"""How long an explanation may take: in a log of a million events without snapshots, six seconds of a core."""

EXPLAINED_AT_ONCE = 2
"""Explanations that are made at once, each by a process that takes a core for some seconds."""

EXPLAIN_BYTES = 4 * MIB
"""An explanation: the longest has some hundred lines."""

EXPLAIN_MEMORY_BYTES = 2 * GIB
"""And the address space of the process that makes it: the state of a log is some tens of MiB."""

EXPLAIN_NICE = 5
"""Behind the daemon and its runners, but somebody waits for it."""

EXPLAIN_DURABLE_S = 1.0
"""How long an explanation waits for what has just happened to be in the log: a commit takes milliseconds."""
