-- Where the Shortseller's rows land as they are, and how they map to the
-- unified tables. In a delta these are only the rows that can have changed, so
-- what a row needs of others is looked up in the unified tables, where they came
-- a step before. Unlogged: staged rows can be fetched again, and a merge refuses
-- to run on fewer rows than were staged.
--
-- `extra` holds columns this project does not know, `metadata` and `trade_id` what
-- the row gets there (migration_engine/shortseller_source.py); `_hash` is the
-- source's hash of the row; `_reject` says why it cannot be migrated. A view has
-- the columns of its target, and `_source_id`.
CREATE SCHEMA IF NOT EXISTS legacy_shortseller;

-- Staged by an earlier version: to be fetched again.
DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_class WHERE oid = to_regclass('legacy_shortseller.trades')
               AND NOT EXISTS (SELECT FROM pg_attribute WHERE attrelid = pg_class.oid AND attname = 'trade_id' AND attgenerated = '')) THEN
        DROP TABLE legacy_shortseller.trades, legacy_shortseller.positions, legacy_shortseller.market_data,
            legacy_shortseller.signals, legacy_shortseller.account_balance, legacy_shortseller.risk_metrics CASCADE;
    END IF;
END
$$;

CREATE UNLOGGED TABLE IF NOT EXISTS legacy_shortseller.trades (
    bot_id text NOT NULL, id bigint NOT NULL, symbol text, side text, quantity numeric, price numeric, order_id text,
    exchange_order_id text, status text, strategy text, timestamp timestamptz, executed_at timestamptz, pnl numeric,
    fees numeric, notes text, trade_id text, extra jsonb, metadata jsonb, _hash bigint, _reject text
);
CREATE UNLOGGED TABLE IF NOT EXISTS legacy_shortseller.positions (
    bot_id text NOT NULL, id bigint NOT NULL, symbol text, side text, size numeric, avg_price numeric,
    unrealized_pnl numeric, realized_pnl numeric, status text, opened_at timestamptz, closed_at timestamptz,
    stop_loss numeric, take_profit numeric, leverage bigint, extra jsonb, metadata jsonb, _hash bigint, _reject text
);
CREATE UNLOGGED TABLE IF NOT EXISTS legacy_shortseller.market_data (
    bot_id text NOT NULL, id bigint NOT NULL, symbol text, timestamp timestamptz, open_price numeric,
    high_price numeric, low_price numeric, close_price numeric, volume numeric, "interval" text,
    created_at timestamptz, extra jsonb, metadata jsonb, _hash bigint, _reject text
);
CREATE UNLOGGED TABLE IF NOT EXISTS legacy_shortseller.signals (
    bot_id text NOT NULL, id bigint NOT NULL, symbol text, signal_type text, strength numeric, price numeric,
    timestamp timestamptz, strategy text, indicators jsonb, executed boolean, execution_id bigint, extra jsonb,
    metadata jsonb, _hash bigint, _reject text
);
CREATE UNLOGGED TABLE IF NOT EXISTS legacy_shortseller.account_balance (
    bot_id text NOT NULL, id bigint NOT NULL, total_balance numeric, available_balance numeric, equity numeric,
    margin_used numeric, unrealized_pnl numeric, timestamp timestamptz, extra jsonb, metadata jsonb, _hash bigint, _reject text
);
CREATE UNLOGGED TABLE IF NOT EXISTS legacy_shortseller.risk_metrics (
    bot_id text NOT NULL, id bigint NOT NULL, date date, total_pnl numeric, max_drawdown numeric, win_rate numeric,
    profit_factor numeric, sharpe_ratio numeric, total_trades bigint, winning_trades bigint, losing_trades bigint,
    extra jsonb, metadata jsonb, _hash bigint, _reject text
);

-- They are filled and emptied, and that would wait for an autovacuum at work on
-- them. It has something to do only where one bot's rows of several are deleted.
DO $$
DECLARE
    staged regclass;
BEGIN
    FOR staged IN SELECT oid FROM pg_class
                  WHERE relnamespace = 'legacy_shortseller'::regnamespace AND relkind = 'r' AND reloptions IS NULL LOOP
        EXECUTE format('ALTER TABLE %s SET (autovacuum_vacuum_insert_threshold = -1, autovacuum_analyze_threshold = 2147483647)', staged);
    END LOOP;
END
$$;

-- Forgets what is staged for a bot.
CREATE OR REPLACE FUNCTION legacy_shortseller.empty_staging(bot text) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    staged regclass;
    filled boolean;
    -- The rows themselves may be many. Only a bot on PostgreSQL has such a position.
    others boolean := EXISTS (SELECT FROM migration.runs WHERE bot_id <> bot AND position ? 'server' AND merged_at IS NULL);
BEGIN
    FOR staged IN SELECT oid FROM pg_class WHERE relnamespace = 'legacy_shortseller'::regnamespace AND relkind = 'r' LOOP
        -- A TRUNCATE makes new files, and waits for the disk.
        EXECUTE format('SELECT EXISTS (SELECT FROM %s)', staged) INTO filled;
        IF filled THEN
            EXECUTE format(CASE WHEN others THEN 'DELETE FROM %s WHERE bot_id = %L' ELSE 'TRUNCATE %s' END, staged, bot);
        END IF;
    END LOOP;
END
$$;

DROP VIEW IF EXISTS legacy_shortseller.mapped_trades, legacy_shortseller.mapped_positions,
    legacy_shortseller.mapped_market_data, legacy_shortseller.mapped_signals,
    legacy_shortseller.mapped_account_balance, legacy_shortseller.mapped_risk_metrics;
DROP FUNCTION IF EXISTS legacy_shortseller.legacy;

CREATE VIEW legacy_shortseller.mapped_trades AS
SELECT s.id::text AS _source_id, s.bot_id, s.trade_id, s.symbol, s.exchange_order_id, lower(s.side) AS side, s.quantity,
       s.price AS entry_price, s.timestamp AS entry_time, s.executed_at AS exit_time, s.pnl AS pnl_usd, s.fees,
       CASE lower(s.status) WHEN 'canceled' THEN 'cancelled' ELSE lower(s.status) END AS status,
       s.strategy, s.notes, s.timestamp AS created_at, s.metadata
FROM legacy_shortseller.trades s WHERE s._reject IS NULL;

CREATE VIEW legacy_shortseller.mapped_positions AS
SELECT s.id::text AS _source_id, s.bot_id, s.bot_id || '_legacy_' || s.id AS position_id, s.symbol,
       CASE lower(s.side) WHEN 'buy' THEN 'long' WHEN 'sell' THEN 'short' ELSE lower(s.side) END AS side,
       s.size, s.avg_price AS avg_entry_price, s.leverage, s.unrealized_pnl, s.realized_pnl,
       migration.money(s.unrealized_pnl + s.realized_pnl) AS total_pnl, s.stop_loss, s.take_profit,
       lower(s.status) AS status, s.opened_at, s.closed_at, coalesce(s.closed_at, s.opened_at) AS last_updated,
       s.opened_at AS created_at, s.metadata AS position_metadata
FROM legacy_shortseller.positions s WHERE s._reject IS NULL;

CREATE VIEW legacy_shortseller.mapped_market_data AS
SELECT s.id::text AS _source_id, s.bot_id AS _bot_id, s.symbol, s."interval", s.timestamp, b.exchange, s.open_price,
       s.high_price, s.low_price, s.close_price, s.volume, s.bot_id AS data_source,
       coalesce(s.created_at, s.timestamp) AS created_at, s.metadata
FROM legacy_shortseller.market_data s LEFT JOIN trading.bots b USING (bot_id) WHERE s._reject IS NULL;

-- This bot only opens shorts, so its `close` closes one.
CREATE VIEW legacy_shortseller.mapped_signals AS
SELECT s.id::text AS _source_id, s.bot_id, s.bot_id || '_legacy_' || s.id AS signal_id, s.symbol,
       CASE lower(s.signal_type) WHEN 'close' THEN 'close_short' ELSE lower(s.signal_type) END AS signal_type,
       s.strength, s.price, s.timestamp, s.strategy, s.indicators, coalesce(s.executed, false) AS executed,
       (SELECT t.trade_id FROM trading.trades t
        WHERE t.bot_id = s.bot_id AND t.metadata ? 'legacy' AND t.metadata #>> '{legacy,table}' = 'trades'
          AND t.metadata #>> '{legacy,id}' = s.execution_id::text) AS execution_trade_id,
       s.timestamp AS created_at, s.metadata
FROM legacy_shortseller.signals s WHERE s._reject IS NULL;

CREATE VIEW legacy_shortseller.mapped_account_balance AS
SELECT s.id::text AS _source_id, s.bot_id, s.total_balance, s.available_balance, s.equity, s.margin_used,
       s.unrealized_pnl, s.timestamp, 'periodic' AS snapshot_type, 'legacy' AS data_source, s.timestamp AS created_at,
       s.metadata
FROM legacy_shortseller.account_balance s WHERE s._reject IS NULL;

-- What the bot had before a moment, by its last balance; NULL before the first.
CREATE OR REPLACE FUNCTION legacy_shortseller.equity_before(bot text, moment timestamptz) RETURNS numeric LANGUAGE sql STABLE AS $$
    SELECT a.equity FROM trading.account_balance a
    WHERE a.bot_id = bot AND a.timestamp < moment AND a.equity IS NOT NULL AND a.metadata ? 'legacy'
    ORDER BY a.timestamp DESC, (a.metadata #>> '{legacy,id}')::bigint DESC LIMIT 1
$$;

-- The legacy day has no equity: it is the last balance before the day and at
-- its end (days of the bot's time zone); before the first balance, the initial
-- capital plus the profit until then. metadata.derived says which.
CREATE VIEW legacy_shortseller.mapped_risk_metrics AS
SELECT s.id::text AS _source_id, s.bot_id, s.date,
       coalesce(s.opening, migration.money(b.initial_capital + s.before)) AS starting_equity,
       coalesce(s.closing, migration.money(b.initial_capital + s.before + coalesce(s.total_pnl, 0))) AS ending_equity,
       s.total_pnl AS daily_pnl, s.total_trades, s.winning_trades, s.losing_trades, s.win_rate, s.profit_factor,
       s.max_drawdown, s.sharpe_ratio,
       s.metadata || jsonb_build_object('derived', jsonb_build_object(
           'starting_equity', CASE WHEN s.opening IS NULL THEN 'initial_capital + cumulative total_pnl' ELSE 'account_balance' END,
           'ending_equity', CASE WHEN s.closing IS NULL THEN 'initial_capital + cumulative total_pnl' ELSE 'account_balance' END)
       ) AS metadata
FROM (SELECT r.*, legacy_shortseller.equity_before(r.bot_id, r.date::timestamp AT TIME ZONE zone.name) AS opening,
             legacy_shortseller.equity_before(r.bot_id, (r.date + 1)::timestamp AT TIME ZONE zone.name) AS closing,
             coalesce(sum(r.total_pnl) OVER (PARTITION BY r.bot_id ORDER BY r.date
                      ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING), 0) AS before
      FROM legacy_shortseller.risk_metrics r
      CROSS JOIN LATERAL (
          SELECT coalesce((SELECT config_value #>> '{}' FROM config.bot_configurations c
                           WHERE c.bot_id = r.bot_id AND c.config_key = 'timezone' AND c.is_active), 'UTC') AS name) AS zone
      WHERE r._reject IS NULL) AS s
JOIN trading.bots b USING (bot_id);

DELETE FROM migration.mappings WHERE bot_type = 'shortseller';
INSERT INTO migration.mappings VALUES
    ('shortseller', 1, 'trades', 'legacy_shortseller.mapped_trades', 'trading.trades', NULL),
    ('shortseller', 2, 'positions', 'legacy_shortseller.mapped_positions', 'trading.positions', '{position_id}'),
    ('shortseller', 3, 'market_data', 'legacy_shortseller.mapped_market_data', 'trading.market_data', '{symbol,interval,timestamp}'),
    ('shortseller', 4, 'signals', 'legacy_shortseller.mapped_signals', 'trading.signals', '{signal_id}'),
    ('shortseller', 5, 'account_balance', 'legacy_shortseller.mapped_account_balance', 'trading.account_balance', NULL),
    ('shortseller', 6, 'risk_metrics', 'legacy_shortseller.mapped_risk_metrics', 'trading.risk_metrics', '{bot_id,date}');
