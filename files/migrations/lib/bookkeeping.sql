-- What the migrations know about themselves. Lives outside the four schemas of
-- the contract; created where absent, so that every migration finds it.
CREATE SCHEMA IF NOT EXISTS migration;

CREATE TABLE IF NOT EXISTS migration.ledger (
    file TEXT PRIMARY KEY,
    checksum TEXT NOT NULL,
    applied_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    applied_by TEXT NOT NULL DEFAULT session_user,
    duration INTERVAL
);

-- One row a bot and run. snapshot_at: everything the source had acknowledged
-- before this moment was read. merged_at: when its rows became visible in the
-- unified tables; NULL until then. The last merged run is what the next one
-- builds upon: `position` (PostgreSQL) and migration.page_digests (SQLite) tell
-- it which rows of the source can have changed since, as long as `engine` (code
-- and settings) is the same.
CREATE TABLE IF NOT EXISTS migration.runs (
    run_id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    bot_id TEXT NOT NULL,
    source TEXT NOT NULL,
    started_at TIMESTAMPTZ NOT NULL,
    snapshot_at TIMESTAMPTZ NOT NULL,
    staged_at TIMESTAMPTZ NOT NULL,
    merged_at TIMESTAMPTZ,
    accepted_rejects BIGINT,
    notes JSONB NOT NULL DEFAULT '{}',
    result JSONB
);
ALTER TABLE migration.runs
    ADD COLUMN IF NOT EXISTS mode TEXT NOT NULL DEFAULT 'full' CHECK (mode IN ('full', 'delta')),
    ADD COLUMN IF NOT EXISTS engine TEXT,
    ADD COLUMN IF NOT EXISTS position JSONB;
CREATE INDEX IF NOT EXISTS runs_bot ON migration.runs (bot_id, run_id DESC);

-- What migration_engine/sqlite_pages.py makes of a SQLite file, in parts.
CREATE TABLE IF NOT EXISTS migration.page_digests (
    run_id BIGINT NOT NULL REFERENCES migration.runs (run_id),
    part INTEGER NOT NULL,
    digests BYTEA STORAGE EXTERNAL NOT NULL,
    PRIMARY KEY (run_id, part)
);

-- The rows of a bot's last snapshot that could not be migrated.
CREATE TABLE IF NOT EXISTS migration.rejects (
    reject_id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    run_id BIGINT NOT NULL REFERENCES migration.runs (run_id),
    bot_id TEXT NOT NULL,
    source_table TEXT NOT NULL,
    source_id TEXT NOT NULL,
    "row" JSONB NOT NULL,
    reason TEXT NOT NULL,
    rejected_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    UNIQUE (bot_id, source_table, source_id)
);

-- What a run found in a table of its source: all its rows, those it read,
-- whether it read them all, and how many went straight into the unified table
-- (NULL: they are staged, to be merged). `blocks`: rows by 1024 ids, where
-- only that tells the next run which rows are gone. `hash` is the sum of the hashes of the rows it read,
-- as the source gave them, and `canonical` the expression over a row t of the
-- unified table whose hashes must sum up to the same.
CREATE TABLE IF NOT EXISTS migration.source_tables (
    run_id BIGINT NOT NULL REFERENCES migration.runs (run_id),
    source_table TEXT NOT NULL,
    row_count BIGINT NOT NULL,
    staged BIGINT NOT NULL,
    whole BOOLEAN NOT NULL,
    loaded BIGINT,
    blocks JSONB,
    hash NUMERIC NOT NULL,
    canonical TEXT NOT NULL,
    -- Ids; migration.rejects may be that of a later run, which was not merged.
    rejected TEXT[] NOT NULL,
    PRIMARY KEY (run_id, source_table)
);
DROP TABLE IF EXISTS migration.source_statistics;

-- Migrated rows that the source no longer has: they stay here, and are reported.
CREATE TABLE IF NOT EXISTS migration.missing (
    bot_id TEXT NOT NULL,
    source_table TEXT NOT NULL,
    source_id TEXT NOT NULL,
    run_id BIGINT NOT NULL REFERENCES migration.runs (run_id),
    PRIMARY KEY (bot_id, source_table, source_id)
);

-- Ids that the source does not have, among which the rows lie that are gone since
-- the last run. Written where a table was read in part.
CREATE TABLE IF NOT EXISTS migration.gone_ids (
    bot_id TEXT NOT NULL,
    source_table TEXT NOT NULL,
    source_id TEXT NOT NULL
);

-- 64 bits of a row's canonical text, as the Momentum engine computes them in
-- Python. Hashes add up, in any order.
CREATE OR REPLACE FUNCTION migration.row_hash(canonical text) RETURNS bigint
LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT ('x' || encode(substr(sha256(convert_to(canonical, 'UTF8')), 1, 8), 'hex'))::bit(64)::bigint
$$;

-- The hash of a canonical text as an SQL expression. Where both sides are
-- PostgreSQL, its own hash, which costs next to nothing.
CREATE OR REPLACE FUNCTION migration.hash_sql(bot_type text, canonical text) RETURNS text LANGUAGE sql IMMUTABLE AS $$
    SELECT format(CASE bot_type WHEN 'shortseller' THEN 'hashtextextended(%s, 0)' ELSE 'migration.row_hash(%s)' END, canonical)
$$;

CREATE OR REPLACE FUNCTION migration.check_ledger(name text, actual text) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    entry migration.ledger;
BEGIN
    IF actual !~ '^[0-9a-f]{64}$' THEN
        RAISE EXCEPTION '% is not in the migrations folder mounted into the container: expected the same files there as in database/migrations; run playbooks/phase2_data_migration.yml',
            name;
    END IF;
    SELECT * INTO entry FROM migration.ledger WHERE file = name;
    IF NOT FOUND THEN
        IF name <> '001_unified_schema.sql' AND NOT EXISTS (SELECT FROM migration.ledger WHERE file = '001_unified_schema.sql') THEN
            RAISE EXCEPTION '% needs the unified schema, which is not there: run 001_unified_schema.sql first', name;
        END IF;
        RETURN false;
    END IF;
    IF entry.checksum <> actual THEN
        RAISE EXCEPTION '% was applied on % with checksum %, but the file now has checksum %: an applied migration is immutable; restore the file, or put the change into a new migration. Nothing was changed.',
            name, entry.applied_at, left(entry.checksum, 12), left(actual, 12);
    END IF;
    RETURN true;
END
$$;

CREATE OR REPLACE FUNCTION migration.record_applied(name text, actual text, started timestamptz) RETURNS void LANGUAGE sql AS $$
    INSERT INTO migration.ledger (file, checksum, duration)
    VALUES (name, actual, clock_timestamp() - started)
    ON CONFLICT (file) DO NOTHING
$$;

-- Which view of staged rows goes into which table. `keys` are the natural key;
-- NULL: a row is found by the legacy table and id in its metadata.
CREATE TABLE IF NOT EXISTS migration.mappings (
    bot_type TEXT NOT NULL,
    step INTEGER NOT NULL,
    source_table TEXT NOT NULL,
    source_view TEXT NOT NULL,
    target_table TEXT NOT NULL,
    keys TEXT[],
    PRIMARY KEY (bot_type, step)
);

-- Whether a column of so many digits before and after the point holds the value.
CREATE OR REPLACE FUNCTION migration.fits(value numeric, bound numeric, places integer) RETURNS boolean
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    -- NaN is greater than any number. Most values end where the column does, and need not be rounded.
    SELECT value IS NULL OR (value < bound AND value > -bound AND (scale(value) <= places OR value = round(value, places)))
$$;

-- Money computed here from migrated amounts: NULL rather than an overflow.
CREATE OR REPLACE FUNCTION migration.money(value numeric) RETURNS numeric
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT CASE WHEN abs(value) < 1000000000000 THEN value END
$$;
