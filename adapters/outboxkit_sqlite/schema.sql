-- Version 1 of the tables of one app. {prefix} is replaced by the validated table prefix.

-- Whose outbox this is: one row.
CREATE TABLE {prefix}schema (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    version INTEGER NOT NULL,
    source TEXT NOT NULL
) STRICT;

-- The log. One writer at a time, so the order of rowids is the order of commits; AUTOINCREMENT, or ids would be reused.
-- Whatever inserts a row here publishes a message; the position is left to SQLite.
CREATE TABLE {prefix}outbox (
    position INTEGER PRIMARY KEY AUTOINCREMENT,
    topic TEXT NOT NULL CHECK (length(topic) BETWEEN 1 AND 64 AND topic NOT GLOB '*[^A-Za-z0-9._-]*'),
    partition INTEGER NOT NULL CHECK (partition >= 0),
    id TEXT NOT NULL CHECK (length(id) = 36),
    key TEXT,
    type TEXT NOT NULL,
    envelope BLOB NOT NULL CHECK (length(envelope) > 0)
) STRICT;

-- Delayed events, until they are due: then their rows move to the outbox.
CREATE TABLE {prefix}later (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, -- the order in which they were published
    id TEXT NOT NULL UNIQUE CHECK (length(id) = 36),
    due_at REAL NOT NULL, -- seconds since 1970
    topic TEXT NOT NULL CHECK (length(topic) BETWEEN 1 AND 64 AND topic NOT GLOB '*[^A-Za-z0-9._-]*'),
    partition INTEGER NOT NULL CHECK (partition >= 0),
    key TEXT,
    type TEXT NOT NULL,
    envelope BLOB NOT NULL CHECK (length(envelope) > 0)
) STRICT;

CREATE INDEX {prefix}later_due ON {prefix}later (due_at, seq);

-- The moment for which each periodic function was called last.
CREATE TABLE {prefix}period (
    name TEXT PRIMARY KEY,
    schedule TEXT NOT NULL,
    at REAL NOT NULL -- seconds since 1970
) STRICT, WITHOUT ROWID;

-- How far the log was read by a relay: a hint.
CREATE TABLE {prefix}cursor (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    major INTEGER NOT NULL,
    minor INTEGER NOT NULL
) STRICT;

-- The broker's last position of each stream, when the cursor was saved.
CREATE TABLE {prefix}stream (
    topic TEXT NOT NULL,
    partition INTEGER NOT NULL,
    major INTEGER NOT NULL,
    minor INTEGER NOT NULL,
    PRIMARY KEY (topic, partition)
) STRICT, WITHOUT ROWID;

-- When the log had come where: by this the age of rows is known.
CREATE TABLE {prefix}mark (
    major INTEGER NOT NULL,
    minor INTEGER NOT NULL,
    at REAL NOT NULL, -- seconds since 1970
    PRIMARY KEY (major, minor)
) STRICT, WITHOUT ROWID;

-- The groups that read our streams, up to where each has settled everything: retention removes nothing above. The broker may lose
-- them; here they stay until they are dismissed, and as dismissed after that.
CREATE TABLE {prefix}known_group (
    topic TEXT NOT NULL,
    partition INTEGER NOT NULL,
    "group" TEXT NOT NULL,
    major INTEGER NOT NULL,
    minor INTEGER NOT NULL,
    moved_at REAL NOT NULL,
    dismissed_at REAL,
    PRIMARY KEY (topic, partition, "group")
) STRICT, WITHOUT ROWID;

-- The last row of each stream that retention removed: what the broker may still hold, and the log does not.
CREATE TABLE {prefix}removed (
    topic TEXT NOT NULL,
    partition INTEGER NOT NULL,
    major INTEGER NOT NULL,
    minor INTEGER NOT NULL,
    PRIMARY KEY (topic, partition)
) STRICT, WITHOUT ROWID;

-- Whose turn it is at something that one process at a time should do.
CREATE TABLE {prefix}lease (
    name TEXT PRIMARY KEY,
    holder TEXT NOT NULL,
    term INTEGER NOT NULL,
    until REAL NOT NULL -- seconds since 1970
) STRICT, WITHOUT ROWID;

-- Who takes part in a group: it shows that it lives by moving the end of its time on.
CREATE TABLE {prefix}member (
    "group" TEXT NOT NULL,
    name TEXT NOT NULL,
    topics TEXT NOT NULL, -- that it consumes, with spaces between
    until REAL NOT NULL, -- seconds since 1970
    PRIMARY KEY ("group", name)
) STRICT, WITHOUT ROWID;

-- The types of events that some process of a group has, or had, a function for: others do not skip them.
CREATE TABLE {prefix}handled (
    "group" TEXT NOT NULL,
    type TEXT NOT NULL,
    PRIMARY KEY ("group", type)
) STRICT, WITHOUT ROWID;

-- Up to where a group has settled everything of a stream, and which member reads it.
CREATE TABLE {prefix}floor (
    id INTEGER PRIMARY KEY, -- drawn by chance, so that none is given out twice
    "group" TEXT NOT NULL,
    topic TEXT NOT NULL,
    partition INTEGER NOT NULL,
    source TEXT NOT NULL,
    major INTEGER NOT NULL,
    minor INTEGER NOT NULL,
    digest INTEGER, -- of the entry at the floor, to know it again
    -- Up to where redelivered entries have been tried together: should they come yet again, somebody died of it.
    tried_major INTEGER NOT NULL DEFAULT 0,
    tried_minor INTEGER NOT NULL DEFAULT 0,
    owner TEXT, -- the member that claimed it last, alive or not; nobody when null
    term INTEGER NOT NULL DEFAULT 0, -- grows with each claim: whoever has not this one may not settle
    UNIQUE ("group", topic, partition, source)
) STRICT;

-- What is settled above a floor, waits for its next attempt or behind one that does, is dead, or was dead and is kept elsewhere.
-- Its primary key, and the floor, are what makes effects happen once. With rowids: by them a search of the key comes past large
-- envelopes, and does not read them.
CREATE TABLE {prefix}inbox (
    floor_id INTEGER NOT NULL REFERENCES {prefix}floor (id),
    major INTEGER NOT NULL,
    minor INTEGER NOT NULL,
    prev_major INTEGER NOT NULL,
    prev_minor INTEGER NOT NULL,
    digest INTEGER NOT NULL,
    state TEXT NOT NULL DEFAULT 'settled' CHECK (state IN ('settled', 'retry', 'parked', 'dead', 'held', 'exported')),
    attempt INTEGER NOT NULL DEFAULT 1, -- begun so far
    alone INTEGER NOT NULL DEFAULT 0 CHECK (alone IN (0, 1)), -- it is to be tried: it may have ended a process
    due_at REAL CHECK ((state = 'retry') = (due_at IS NOT NULL)),
    since REAL CHECK ((state = 'settled') = (since IS NULL)), -- it is not settled, in seconds since 1970
    at REAL CHECK ((state = 'settled') = (at IS NULL)), -- it is in this state
    error TEXT CHECK (error IS NOT NULL OR state NOT IN ('dead', 'held')),
    envelope BLOB CHECK ((state IN ('settled', 'exported')) = (envelope IS NULL)),
    id TEXT,
    type TEXT,
    key TEXT CHECK (key IS NOT NULL OR state NOT IN ('parked', 'held')),
    PRIMARY KEY (floor_id, major, minor)
) STRICT;

CREATE INDEX {prefix}inbox_due ON {prefix}inbox (floor_id, due_at) WHERE state = 'retry';
CREATE INDEX {prefix}inbox_key ON {prefix}inbox (floor_id, key, major, minor) WHERE state IN ('retry', 'parked', 'held');
CREATE INDEX {prefix}inbox_dead ON {prefix}inbox (floor_id, major, minor) WHERE state IN ('dead', 'held');
