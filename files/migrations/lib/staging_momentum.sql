-- Where the Momentum bot's rows wait that are not known to be new, in the shape
-- of the unified tables: the engine has converted them already
-- (migration_engine/momentum_mapping.py). They last as long as the transaction.
CREATE SCHEMA IF NOT EXISTS legacy_momentum;
DROP TABLE IF EXISTS legacy_momentum.trades, legacy_momentum.daily_snapshots, legacy_momentum.system_events,
    legacy_momentum.risk_events CASCADE;

-- An open trade is a position as well, so that exposure is right after the
-- cut-over. The position is closed when its trade has closed.
CREATE OR REPLACE VIEW legacy_momentum.mapped_positions AS
SELECT t.metadata #>> '{legacy,id}' AS _source_id, t.bot_id, t.trade_id AS position_id, t.symbol,
       CASE WHEN t.side IN ('buy', 'long') THEN 'long' ELSE 'short' END AS side, t.quantity AS size,
       t.entry_price AS avg_entry_price, t.stop_loss, t.take_profit,
       CASE WHEN t.exit_time IS NULL THEN 'open' ELSE 'closed' END AS status,
       coalesce(t.pnl_usd, 0) AS realized_pnl, t.entry_time AS opened_at, t.exit_time AS closed_at,
       coalesce(t.exit_time, t.entry_time) AS last_updated, ARRAY[t.trade_id::text] AS entry_trade_ids,
       CASE WHEN t.exit_time IS NULL THEN '{}'::text[] ELSE ARRAY[t.trade_id::text] END AS exit_trade_ids, t.created_at,
       jsonb_build_object('legacy', jsonb_build_object('table', 'trades', 'id', t.metadata #> '{legacy,id}',
                                                       'mode', t.metadata #> '{legacy,mode}')) AS position_metadata
FROM (SELECT t.* FROM trading.trades t WHERE t.exit_time IS NULL
      UNION ALL
      SELECT t.* FROM trading.positions p JOIN trading.trades t ON t.bot_id = p.bot_id AND t.trade_id = p.position_id
      WHERE t.exit_time IS NOT NULL AND p.position_metadata #>> '{legacy,table}' = 'trades') AS t
WHERE t.metadata #>> '{legacy,table}' = 'trades';

DELETE FROM migration.mappings WHERE bot_type = 'momentum';
INSERT INTO migration.mappings VALUES
    ('momentum', 1, 'trades', 'staged_trades', 'trading.trades', '{trade_id}'),
    ('momentum', 2, 'trades', 'legacy_momentum.mapped_positions', 'trading.positions', '{position_id}'),
    ('momentum', 3, 'daily_snapshots', 'staged_daily_snapshots', 'trading.risk_metrics', '{bot_id,date}'),
    ('momentum', 4, 'system_events', 'staged_system_events', 'audit.system_events', NULL),
    ('momentum', 5, 'risk_events', 'staged_risk_events', 'audit.risk_events', NULL);

-- A trade that was migrated before it had a trade_id and has one now keeps its
-- row (and position), under the new id.
CREATE OR REPLACE FUNCTION legacy_momentum.adopt_named_trades(bot text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    UPDATE trading.positions p SET position_id = s.trade_id
    FROM staged_trades s
    WHERE s.bot_id = bot AND s.metadata #>> '{legacy,trade_id}' IS NOT NULL
      AND p.bot_id = bot AND p.position_id = bot || '_legacy_' || s._source_id AND p.position_metadata #>> '{legacy,id}' = s._source_id;
    UPDATE trading.trades t SET trade_id = s.trade_id
    FROM staged_trades s
    WHERE s.bot_id = bot AND s.metadata #>> '{legacy,trade_id}' IS NOT NULL
      AND t.bot_id = bot AND t.trade_id = bot || '_legacy_' || s._source_id AND t.metadata #>> '{legacy,id}' = s._source_id;
END
$$;
