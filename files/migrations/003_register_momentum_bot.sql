-- Registers the Momentum bots of the inventory (bots.json), so that their
-- history finds the row its foreign keys point to.
--
--   docker exec -i trading_postgres psql -U trading_user -d trading_db < database/migrations/003_register_momentum_bot.sql
--
-- One transaction; repeatable: a second run registers what the inventory has
-- gained, brings descriptions and limits up to date, and never resets a bot's
-- equity, status or heartbeat. Variables: only_bot, dry_run=1.

\set ON_ERROR_STOP on
\if :{?migrations_dir}
\else
  \set migrations_dir /migrations
\endif
\set file 003_register_momentum_bot.sql
\i :migrations_dir/lib/ledger_begin.psql
\i :migrations_dir/lib/load_bots.psql

SELECT registration, NOT :'already_applied'::boolean OR registration <> '{"registered": 0, "updated": 0, "configurations": 0}' AS changed
FROM migration.register_bots(:'bots'::jsonb, 'momentum', :'only_bot') AS registration \gset

\i :migrations_dir/lib/registration_end.psql
