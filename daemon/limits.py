"""Limits of what the daemon shows and takes that no event depends on, each with its reason."""

from __future__ import annotations

from events.limits import GIB, MIB

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

EVENTS_BEAT_S = 15.0
"""A comment goes to followers of events at least this often: proxies give up what is silent for a minute."""

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

# --- keeping the log -------------------------------------------------------------------------------------

CARRY_EVENTS = 5_000
"""Events between two snapshots. A start folds so many, and those of CARRY_PAUSE_S, at 6 µs each; one
transaction prunes so many at once, and nothing is appended for the 10 ms that this takes."""

CARRY_PAUSE_S = 5.0
"""Between two keepers: at full rate (10,000 events a second) one then takes a twentieth of a core."""

CARRY_S = 24 * 3600.0
"""A log into which little comes has a snapshot a day, so that what is old can be pruned by age."""

KEEPER_S = 600.0
"""How long a keeper may take: it folds 100,000 events a second, and an older runnerd's log has millions."""

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
