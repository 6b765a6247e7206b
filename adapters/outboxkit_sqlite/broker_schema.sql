-- The embedded broker's tables. Their prefix is fixed, so that every app that is given the file finds the same broker.

CREATE TABLE IF NOT EXISTS outboxkit_broker_schema (version INTEGER NOT NULL) STRICT;

-- A stream is known from the first time it is announced, written or subscribed to. Its last position is kept here and not
-- looked up among the entries, as it stays when entries are removed.
CREATE TABLE IF NOT EXISTS outboxkit_broker_streams (
    id INTEGER PRIMARY KEY,
    topic TEXT NOT NULL,
    partition INTEGER NOT NULL,
    source TEXT NOT NULL,
    last_major INTEGER NOT NULL DEFAULT 0,
    last_minor INTEGER NOT NULL DEFAULT 0,
    announced INTEGER NOT NULL DEFAULT 0,
    UNIQUE (topic, partition, source)
) STRICT;

CREATE TABLE IF NOT EXISTS outboxkit_broker_entries (
    stream_id INTEGER NOT NULL,
    major INTEGER NOT NULL,
    minor INTEGER NOT NULL,
    prev_major INTEGER NOT NULL,
    prev_minor INTEGER NOT NULL,
    envelope BLOB NOT NULL,
    PRIMARY KEY (stream_id, major, minor)
) STRICT;

-- One group reading one stream: everything up to `delivered` was handed out, and up to `floor` it has settled everything in its
-- own database, as it said when it was last heard of, in seconds since 1970.
CREATE TABLE IF NOT EXISTS outboxkit_broker_groups (
    id INTEGER PRIMARY KEY,
    stream_id INTEGER NOT NULL,
    name TEXT NOT NULL,
    delivered_major INTEGER NOT NULL,
    delivered_minor INTEGER NOT NULL,
    floor_major INTEGER NOT NULL,
    floor_minor INTEGER NOT NULL,
    seen_at REAL,
    UNIQUE (stream_id, name)
) STRICT;

-- What was handed out and not acked yet. `delivered_at` is in seconds since 1970.
CREATE TABLE IF NOT EXISTS outboxkit_broker_pending (
    group_id INTEGER NOT NULL,
    major INTEGER NOT NULL,
    minor INTEGER NOT NULL,
    reader TEXT NOT NULL,
    delivered_at REAL NOT NULL,
    PRIMARY KEY (group_id, major, minor)
) STRICT, WITHOUT ROWID;
