-- Where the Momentum bot's rows land, already converted by the engine
-- (migration_engine/momentum_mapping.py): what has no column of its own is in
-- `legacy`, a row that cannot be converted is whole in `_row` with the reason in
-- `_reject`. Unlogged: a merge refuses to run on fewer rows than were staged.
CREATE SCHEMA IF NOT EXISTS legacy_momentum;

CREATE UNLOGGED TABLE IF NOT EXISTS legacy_momentum.trades (
    bot_id text NOT NULL, id text NOT NULL, trade_id text, symbol text, side text, entry_time timestamptz,
    entry_price numeric, exit_time timestamptz, exit_price numeric, quantity numeric, position_size_usd numeric,
    stop_loss numeric, take_profit numeric, pnl_usd numeric, pnl_pct numeric, exit_reason text,
    holding_time_seconds bigint, signal_strength numeric, created_at timestamptz, legacy jsonb, _row jsonb, _reject text
);
CREATE UNLOGGED TABLE IF NOT EXISTS legacy_momentum.daily_snapshots (
    bot_id text NOT NULL, id text NOT NULL, date date, starting_equity numeric, ending_equity numeric, daily_pnl numeric,
    daily_pnl_pct numeric, total_trades integer, winning_trades integer, losing_trades integer, created_at timestamptz,
    legacy jsonb, _row jsonb, _reject text
);
CREATE UNLOGGED TABLE IF NOT EXISTS legacy_momentum.system_events (
    bot_id text NOT NULL, id text NOT NULL, event_time timestamptz, event_type text, event_level text, message text,
    details jsonb, created_at timestamptz, legacy jsonb, _row jsonb, _reject text
);
CREATE UNLOGGED TABLE IF NOT EXISTS legacy_momentum.risk_events (
    bot_id text NOT NULL, id text NOT NULL, event_time timestamptz, risk_type text, current_value numeric,
    limit_value numeric, action_taken text, created_at timestamptz, legacy jsonb, _row jsonb, _reject text
);

DROP VIEW IF EXISTS legacy_momentum.mapped_trades, legacy_momentum.mapped_positions,
    legacy_momentum.mapped_daily_snapshots, legacy_momentum.mapped_system_events, legacy_momentum.mapped_risk_events;

-- Fees are NULL: this bot did not record them.
CREATE VIEW legacy_momentum.mapped_trades AS
SELECT id AS _source_id, bot_id, trade_id, symbol, side, quantity, entry_price, exit_price, position_size_usd,
       stop_loss, take_profit, 'filled' AS status, entry_time, exit_time, holding_time_seconds, pnl_usd, pnl_pct,
       NULL::numeric AS fees, exit_reason, signal_strength, created_at, jsonb_build_object('legacy', legacy) AS metadata
FROM legacy_momentum.trades WHERE _reject IS NULL;

-- An open trade is a position as well, so that exposure is right after the
-- cut-over. The position is closed when its trade has closed.
CREATE VIEW legacy_momentum.mapped_positions AS
SELECT s.id AS _source_id, s.bot_id, s.trade_id AS position_id, s.symbol,
       CASE WHEN s.side IN ('buy', 'long') THEN 'long' ELSE 'short' END AS side, s.quantity AS size,
       s.entry_price AS avg_entry_price, s.stop_loss, s.take_profit,
       CASE WHEN s.exit_time IS NULL THEN 'open' ELSE 'closed' END AS status,
       coalesce(s.pnl_usd, 0) AS realized_pnl, s.entry_time AS opened_at, s.exit_time AS closed_at,
       coalesce(s.exit_time, s.entry_time) AS last_updated, ARRAY[s.trade_id] AS entry_trade_ids,
       CASE WHEN s.exit_time IS NULL THEN '{}'::text[] ELSE ARRAY[s.trade_id] END AS exit_trade_ids, s.created_at,
       jsonb_build_object('legacy', jsonb_build_object('table', 'trades', 'id', s.legacy -> 'id', 'mode', s.legacy -> 'mode')) AS position_metadata
FROM legacy_momentum.trades s
WHERE s._reject IS NULL
  AND (s.exit_time IS NULL OR EXISTS (
      SELECT FROM trading.positions p
      WHERE p.position_id = s.trade_id AND p.bot_id = s.bot_id AND p.position_metadata #>> '{legacy,table}' = 'trades'));

CREATE VIEW legacy_momentum.mapped_daily_snapshots AS
SELECT id AS _source_id, bot_id, date, starting_equity, ending_equity, daily_pnl, daily_pnl_pct, total_trades,
       winning_trades, losing_trades, created_at AS calculated_at, created_at, jsonb_build_object('legacy', legacy) AS metadata
FROM legacy_momentum.daily_snapshots WHERE _reject IS NULL;

CREATE VIEW legacy_momentum.mapped_system_events AS
SELECT id AS _source_id, bot_id, event_time, event_type, event_level, message, details, 'momentum' AS component,
       created_at, jsonb_build_object('legacy', legacy) AS metadata
FROM legacy_momentum.system_events WHERE _reject IS NULL;

-- Whether an old event was resolved is not known.
CREATE VIEW legacy_momentum.mapped_risk_events AS
SELECT id AS _source_id, bot_id, event_time, risk_type, current_value, limit_value, action_taken,
       NULL::boolean AS resolved, created_at, jsonb_build_object('legacy', legacy) AS metadata
FROM legacy_momentum.risk_events WHERE _reject IS NULL;

DELETE FROM migration.mappings WHERE bot_type = 'momentum';
INSERT INTO migration.mappings VALUES
    ('momentum', 1, 'trades', 'legacy_momentum.mapped_trades', 'trading.trades', '{trade_id}'),
    ('momentum', 2, 'trades', 'legacy_momentum.mapped_positions', 'trading.positions', '{position_id}'),
    ('momentum', 3, 'daily_snapshots', 'legacy_momentum.mapped_daily_snapshots', 'trading.risk_metrics', '{bot_id,date}'),
    ('momentum', 4, 'system_events', 'legacy_momentum.mapped_system_events', 'audit.system_events', NULL),
    ('momentum', 5, 'risk_events', 'legacy_momentum.mapped_risk_events', 'audit.risk_events', NULL);

-- A trade that was migrated before it had a trade_id and has one now keeps its
-- row (and position), under the new id.
CREATE OR REPLACE FUNCTION legacy_momentum.adopt_named_trades(bot text) RETURNS void LANGUAGE sql AS $$
    UPDATE trading.positions p SET position_id = s.trade_id
    FROM legacy_momentum.trades s
    WHERE s.bot_id = bot AND s._reject IS NULL AND s.legacy ->> 'trade_id' IS NOT NULL
      AND p.bot_id = bot AND p.position_id = bot || '_legacy_' || s.id AND p.position_metadata #>> '{legacy,id}' = s.id;
    UPDATE trading.trades t SET trade_id = s.trade_id
    FROM legacy_momentum.trades s
    WHERE s.bot_id = bot AND s._reject IS NULL AND s.legacy ->> 'trade_id' IS NOT NULL
      AND t.bot_id = bot AND t.trade_id = bot || '_legacy_' || s.id AND t.metadata #>> '{legacy,id}' = s.id
$$;
