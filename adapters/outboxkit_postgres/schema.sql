-- Version 1 of the tables of one app. {schema} and {prefix} are replaced by validated, quoted names.

-- Whose outbox this is: one row.
CREATE TABLE {schema}.{prefix}schema (
    id integer PRIMARY KEY CHECK (id = 1),
    version integer NOT NULL,
    source text NOT NULL
);

-- How many partitions the topics have whose number is not 8, for those who publish in SQL.
CREATE TABLE {schema}.{prefix}topic (
    topic text PRIMARY KEY CHECK (topic ~ '^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$'),
    partitions integer NOT NULL CHECK (partitions BETWEEN 1 AND 65536)
);

-- The log. Whatever inserts a row here publishes a message; xid and seq are left to their defaults.
CREATE TABLE {schema}.{prefix}outbox (
    xid xid8 NOT NULL DEFAULT pg_current_xact_id(),
    -- One sequence value at a time, so that what is written later stands later.
    seq bigint GENERATED ALWAYS AS IDENTITY (CACHE 1) PRIMARY KEY,
    partition integer NOT NULL CHECK (partition >= 0),
    topic text NOT NULL CHECK (topic ~ '^[A-Za-z0-9._-]{1,64}$'),
    id uuid NOT NULL,
    key text,
    type text NOT NULL,
    envelope bytea NOT NULL CHECK (octet_length(envelope) > 0)
-- Retention removes as many rows as come: how many are dead, and not how many there are, says when to make room.
) WITH (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 5000);

CREATE INDEX {prefix}outbox_xid ON {schema}.{prefix}outbox (xid, seq);

-- Stored snapshots. Tick n holds the rows that are visible in its snapshot and were not in that of the tick before it, by seq.
-- high is a value of the sequence, read after the snapshot was taken: whatever the snapshot shows is at or below it.
CREATE TABLE {schema}.{prefix}tick (
    tick bigint PRIMARY KEY CHECK (tick >= 0),
    snapshot pg_snapshot NOT NULL,
    high bigint NOT NULL,
    at timestamptz NOT NULL DEFAULT clock_timestamp()
);

INSERT INTO {schema}.{prefix}tick (tick, snapshot, high) VALUES (0, pg_current_snapshot(), 0);

-- Delayed events, until they are due: then their rows move to the outbox.
CREATE TABLE {schema}.{prefix}later (
    -- In the order in which they were published.
    seq bigint GENERATED ALWAYS AS IDENTITY (CACHE 1) PRIMARY KEY,
    due_at timestamptz NOT NULL,
    partition integer NOT NULL CHECK (partition >= 0),
    topic text NOT NULL CHECK (topic ~ '^[A-Za-z0-9._-]{1,64}$'),
    id uuid NOT NULL UNIQUE,
    key text,
    type text NOT NULL,
    envelope bytea NOT NULL CHECK (octet_length(envelope) > 0)
);

CREATE INDEX {prefix}later_due ON {schema}.{prefix}later (due_at, seq);

-- The moment for which each periodic function was called last.
CREATE TABLE {schema}.{prefix}period (
    name text PRIMARY KEY,
    schedule text NOT NULL,
    at timestamptz NOT NULL
) WITH (fillfactor = 50);

-- How far the log was read by a relay: a hint.
CREATE TABLE {schema}.{prefix}cursor (
    id integer PRIMARY KEY CHECK (id = 1),
    major bigint NOT NULL,
    minor bigint NOT NULL
);

-- The broker's last position of each stream, when the cursor was saved.
CREATE TABLE {schema}.{prefix}stream (
    topic text NOT NULL,
    partition integer NOT NULL,
    major bigint NOT NULL,
    minor bigint NOT NULL,
    PRIMARY KEY (topic, partition)
);

-- When the log had come where: by this the age of rows is known.
CREATE TABLE {schema}.{prefix}mark (
    major bigint NOT NULL,
    minor bigint NOT NULL,
    at timestamptz NOT NULL,
    PRIMARY KEY (major, minor)
);

-- The groups that read our streams, up to where each has settled everything: retention removes nothing above. The broker may lose
-- them; here they stay until they are dismissed, and as dismissed after that.
CREATE TABLE {schema}.{prefix}known_group (
    topic text NOT NULL,
    partition integer NOT NULL,
    "group" text NOT NULL,
    major bigint NOT NULL,
    minor bigint NOT NULL,
    moved_at timestamptz NOT NULL,
    dismissed_at timestamptz,
    PRIMARY KEY (topic, partition, "group")
);

-- The last row of each stream that retention removed: what the broker may still hold, and the log does not.
CREATE TABLE {schema}.{prefix}removed (
    topic text NOT NULL,
    partition integer NOT NULL,
    major bigint NOT NULL,
    minor bigint NOT NULL,
    PRIMARY KEY (topic, partition)
);

-- Whose turn it is at something that one process at a time should do.
CREATE TABLE {schema}.{prefix}lease (
    name text PRIMARY KEY,
    holder text NOT NULL,
    term bigint NOT NULL,
    until timestamptz NOT NULL
) WITH (fillfactor = 50);

-- Who takes part in a group: it shows that it lives by moving the end of its time on.
CREATE TABLE {schema}.{prefix}member (
    "group" text NOT NULL,
    name text NOT NULL,
    topics text[] NOT NULL, -- that it consumes
    until timestamptz NOT NULL,
    PRIMARY KEY ("group", name)
) WITH (fillfactor = 50);

-- The types of events that some process of a group has, or had, a function for: others do not skip them.
CREATE TABLE {schema}.{prefix}handled (
    "group" text NOT NULL,
    type text NOT NULL,
    PRIMARY KEY ("group", type)
);

-- Up to where a group has settled everything of a stream, and which member reads it. Whoever changes a stream's inbox holds its row.
CREATE TABLE {schema}.{prefix}floor (
    id bigint PRIMARY KEY, -- drawn by chance, so that none is given out twice
    "group" text NOT NULL,
    topic text NOT NULL,
    partition integer NOT NULL,
    source text NOT NULL,
    major bigint NOT NULL,
    minor bigint NOT NULL,
    digest bigint, -- of the entry at the floor, to know it again
    -- Whether messages may be known above it: where none are, moving it over a run makes all of that known.
    ragged boolean NOT NULL DEFAULT false,
    -- Up to where redelivered entries have been tried together: should they come yet again, somebody died of it.
    tried_major bigint NOT NULL DEFAULT 0,
    tried_minor bigint NOT NULL DEFAULT 0,
    owner text, -- the member that claimed it last, alive or not; nobody when null
    term bigint NOT NULL DEFAULT 0, -- grows with each claim: whoever has not this one may not settle
    UNIQUE ("group", topic, partition, source)
) WITH (fillfactor = 50);

-- What is settled above a floor, waits for its next attempt or behind one that does, is dead, or was dead and is kept elsewhere.
-- Its primary key, and the floor, are what makes effects happen once.
CREATE TABLE {schema}.{prefix}inbox (
    floor_id bigint NOT NULL REFERENCES {schema}.{prefix}floor (id),
    major bigint NOT NULL,
    minor bigint NOT NULL,
    prev_major bigint NOT NULL,
    prev_minor bigint NOT NULL,
    digest bigint NOT NULL,
    state text NOT NULL DEFAULT 'settled' CHECK (state IN ('settled', 'retry', 'parked', 'dead', 'held', 'exported')),
    attempt integer NOT NULL DEFAULT 1, -- begun so far
    alone boolean NOT NULL DEFAULT false, -- it is to be tried: it may have ended a process
    due_at timestamptz CHECK ((state = 'retry') = (due_at IS NOT NULL)),
    since timestamptz CHECK ((state = 'settled') = (since IS NULL)), -- it is not settled
    at timestamptz CHECK ((state = 'settled') = (at IS NULL)), -- it is in this state
    error text CHECK (error IS NOT NULL OR state NOT IN ('dead', 'held')),
    envelope bytea CHECK ((state IN ('settled', 'exported')) = (envelope IS NULL)),
    id text,
    type text,
    key text CHECK (key IS NOT NULL OR state NOT IN ('parked', 'held')),
    PRIMARY KEY (floor_id, major, minor)
-- A row comes and goes with each message.
) WITH (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 5000);

CREATE INDEX {prefix}inbox_due ON {schema}.{prefix}inbox (floor_id, due_at) WHERE state = 'retry';
CREATE INDEX {prefix}inbox_key ON {schema}.{prefix}inbox (floor_id, key, major, minor)
    WHERE state IN ('retry', 'parked', 'held');
CREATE INDEX {prefix}inbox_dead ON {schema}.{prefix}inbox (floor_id, major, minor) WHERE state IN ('dead', 'held');
