-- Registers the Shortseller bots of the inventory and carries their staged
-- history into the unified tables. stage_shortseller.py fetches that history
-- from the legacy server first; lib/staging_shortseller.sql says how it maps.
--
--   python database/migrations/stage_shortseller.py
--   docker exec -i trading_postgres psql -U trading_user -d trading_db < database/migrations/002_migrate_shortseller_data.sql
--
-- One transaction; repeatable: a second run carries what is new or changed and
-- nothing else. Rows that could not be mapped stop it with exit code 3 unless
-- that many are accepted. Variables: only_bot, accepted_rejects=n, dry_run=1.
-- The last line is the result as JSON.

\set ON_ERROR_STOP on
\if :{?migrations_dir}
\else
  \set migrations_dir /migrations
\endif
\if :{?accepted_rejects}
\else
  \set accepted_rejects 0
\endif
\set file 002_migrate_shortseller_data.sql
\i :migrations_dir/lib/ledger_begin.psql
\i :migrations_dir/lib/load_bots.psql
\i :migrations_dir/lib/staging_shortseller.sql
\i :migrations_dir/lib/merge.sql

SELECT migration.register_bots(:'bots'::jsonb, 'shortseller', :'only_bot') AS registration \gset
SELECT migration.merge('shortseller', coalesce(array_agg(b ->> 'bot_id' ORDER BY b ->> 'bot_id'), '{}'), :accepted_rejects) AS result
FROM jsonb_array_elements(:'bots'::jsonb) AS b
WHERE b ->> 'bot_type' = 'shortseller' AND :'only_bot' IN ('', b ->> 'bot_id') \gset

SELECT :'result'::jsonb || jsonb_build_object(
    'dry_run', :'dry_run' <> '0', 'registration', :'registration'::jsonb,
    'changed', (:'result'::jsonb ->> 'changed')::boolean
               OR :'registration'::jsonb <> '{"registered": 0, "updated": 0, "configurations": 0}') AS result \gset
\if :already_applied
\else
SELECT migration.record_applied(:'file', :'checksum', :'started_at') AS recorded \gset
\endif
\if :dry_run
ROLLBACK;
\else
COMMIT;
\endif
\echo :result
