-- Registers the LXAlgo bots of the inventory (bots.json). LXAlgo keeps no
-- store, so there is no history: it starts with its registration, its
-- configuration and one opening balance.
--
--   docker exec -i trading_postgres psql -U trading_user -d trading_db < database/migrations/004_register_lxalgo_bot.sql
--
-- One transaction; repeatable: a second run never resets a bot's equity, and a
-- bot that has a balance gets no opening one. Variables: only_bot, dry_run=1.

\set ON_ERROR_STOP on
\if :{?migrations_dir}
\else
  \set migrations_dir /migrations
\endif
\set file 004_register_lxalgo_bot.sql
\i :migrations_dir/lib/ledger_begin.psql
\i :migrations_dir/lib/load_bots.psql

SELECT registration FROM migration.register_bots(:'bots'::jsonb, 'lxalgo', :'only_bot') AS registration \gset

WITH opening AS (
    INSERT INTO trading.account_balance (
        bot_id, total_balance, available_balance, locked_balance, equity, margin_used, unrealized_pnl, realized_pnl,
        snapshot_type, data_source)
    SELECT b.bot_id, b.initial_capital, b.initial_capital, 0, b.initial_capital, 0, 0, 0, 'initial', 'registration'
    FROM trading.bots b
    WHERE b.bot_type = 'lxalgo' AND :'only_bot' IN ('', b.bot_id)
      AND NOT EXISTS (SELECT FROM trading.account_balance a WHERE a.bot_id = b.bot_id)
    RETURNING bot_id
), counted AS (
    SELECT :'registration'::jsonb || jsonb_build_object('opening_balances', count(*)) AS registration FROM opening
)
SELECT registration,
       NOT :'already_applied'::boolean
       OR registration <> '{"registered": 0, "updated": 0, "configurations": 0, "opening_balances": 0}' AS changed
FROM counted \gset

\i :migrations_dir/lib/registration_end.psql
