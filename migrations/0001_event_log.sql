-- The event log: one append-only table, what came before its first row, and what finds a subject's events.

CREATE TABLE events (
    seq     INTEGER PRIMARY KEY,  -- 1, 2, 3 … without a gap
    at      INTEGER NOT NULL,     -- UTC, ns; for people
    t       INTEGER NOT NULL,     -- scheduler time, ns; never decreases over the whole log
    type    TEXT    NOT NULL,
    version INTEGER NOT NULL,
    cause   INTEGER NOT NULL,     -- the fact that a decision follows from; 0 for a fact
    subject TEXT    NOT NULL,     -- the request, runner, operation or model that it is about
    payload TEXT    NOT NULL,     -- JSON
    hash    BLOB    NOT NULL CHECK (length(hash) = 32)
) STRICT;

-- One row. `seq` is the first event that this log holds (or will hold), `hash` what that event is chained to:
-- the hash of the event before it, or SHA-256(log_id) where there is none. Pruning moves both forward.
CREATE TABLE log_base (
    id         INTEGER PRIMARY KEY CHECK (id = 1),
    log_id     TEXT    NOT NULL,
    created_at INTEGER NOT NULL,  -- UTC, ns
    seq        INTEGER NOT NULL CHECK (seq >= 1),
    hash       BLOB    NOT NULL CHECK (length(hash) = 32)
) STRICT;

-- A request's and a runner's events. Where the subject is already the one that the payload names, the index on
-- the subject finds the event: leaving it out of the others spares each commit a page of WAL. The types are those of
-- every request, which never name another subject: that spares them JSON functions, a fifteenth of what a commit takes.
CREATE INDEX events_subject ON events (subject);

CREATE INDEX events_request ON events (json_extract(payload, '$.request'))
    WHERE type <> 'request.arrived' AND type <> 'request.dispatched' AND type <> 'upstream.ended'
        AND type <> 'request.completed' AND json_extract(payload, '$.request') <> subject;

CREATE INDEX events_runner ON events (coalesce(json_extract(payload, '$.runner'), json_extract(payload, '$.process.runner')))
    WHERE type <> 'request.arrived' AND type <> 'request.completed'
        AND coalesce(json_extract(payload, '$.runner'), json_extract(payload, '$.process.runner')) <> subject;

CREATE TRIGGER events_no_update BEFORE UPDATE ON events
BEGIN
    SELECT RAISE(ABORT, 'the event log is append-only: no event is ever changed');
END;

CREATE TRIGGER events_no_delete BEFORE DELETE ON events
WHEN OLD.seq >= (SELECT seq FROM log_base)
BEGIN
    SELECT RAISE(ABORT, 'the event log is append-only: only what lies below its base may go');
END;

-- Refuses REPLACE as well, also from programs that have not set PRAGMA recursive_triggers.
CREATE TRIGGER events_in_order BEFORE INSERT ON events
WHEN NEW.seq <> (SELECT coalesce((SELECT max(seq) FROM events) + 1, (SELECT seq FROM log_base)))
BEGIN
    SELECT RAISE(ABORT, 'the event log is append-only: the next event must follow the last one');
END;

CREATE TRIGGER log_base_no_delete BEFORE DELETE ON log_base
BEGIN
    SELECT RAISE(ABORT, 'the base of the event log cannot be removed');
END;

CREATE TRIGGER log_base_once BEFORE INSERT ON log_base
WHEN EXISTS (SELECT 1 FROM log_base)
BEGIN
    SELECT RAISE(ABORT, 'the event log has a base already');
END;

CREATE TRIGGER log_base_forward BEFORE UPDATE ON log_base
WHEN NEW.id <> OLD.id OR NEW.log_id <> OLD.log_id OR NEW.created_at <> OLD.created_at OR NEW.seq < OLD.seq
BEGIN
    SELECT RAISE(ABORT, 'the base of the event log only moves forward');
END;
