-- Lets each bot in with a role of its own, named as its bot_id and member of
-- trading_bots: row level security shows it its own rows and those of its
-- trial id, <bot_id>_trial, and nobody else's. Market data and symbols are
-- shared. The owner, trading_user, is not restricted.
--
--   docker exec -i trading_postgres psql -U trading_user -d trading_db < database/migrations/005_bot_access.sql
--
-- One transaction, recorded in migration.ledger. A second run does nothing; a
-- run of an edited file is refused. Way back: bot_isolation: false in the
-- inventory lets the bots in as trading_user; nothing here stands in its way.

\set ON_ERROR_STOP on
\if :{?migrations_dir}
\else
  \set migrations_dir /migrations
\endif
\set file 005_bot_access.sql
\i :migrations_dir/lib/ledger_begin.psql
\if :already_applied
  \i :migrations_dir/lib/ledger_skip.psql
  \quit
\endif

-- The roles belong to the server, not to this file.
DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'trading_bots') THEN
        RAISE EXCEPTION 'role trading_bots does not exist on this server: expected the group of the bots that phase 1 creates. Nothing was changed. Run playbooks/phase1_infrastructure.yml, then this again.';
    END IF;
END
$$;

-- How far a bot's outbox was delivered. A delivery writes its rows and moves
-- last_sequence in one transaction, so that a repeated one is recognised.
CREATE SCHEMA delivery;
CREATE TABLE delivery.outboxes (
    bot_id VARCHAR(50) NOT NULL REFERENCES trading.bots (bot_id),
    outbox_id UUID NOT NULL,
    last_sequence BIGINT NOT NULL CHECK (last_sequence >= 0),
    updated_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    PRIMARY KEY (bot_id, outbox_id)
);
CREATE TRIGGER set_updated_at BEFORE UPDATE ON delivery.outboxes FOR EACH ROW
    WHEN (OLD.* IS DISTINCT FROM NEW.*) EXECUTE FUNCTION trading.set_updated_at();

-- Trial ids.
-- A trial run writes like its bot, under an id of its own that counts nowhere
-- and can be removed with all its rows.

-- The type `trial` is nobody's: what a migration does for all bots of a type,
-- it does not do for a trial. `_trial` has to fit into the 50 characters too.
ALTER TABLE trading.bots ADD CONSTRAINT bots_trial_id CHECK (
    CASE WHEN bot_type = 'trial' THEN bot_id LIKE '_%\_trial'
         ELSE bot_id NOT LIKE '%\_trial' AND length(bot_id) <= 44 END);

-- Registers the trial id of a bot. Returns whether it was not there before.
CREATE FUNCTION trading.register_trial(of_bot text) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM trading.bots WHERE bot_id = of_bot AND bot_type <> 'trial') THEN
        RAISE EXCEPTION 'trading.bots has no bot %: expected a registered bot; run playbooks/phase2_data_migration.yml', of_bot
            USING ERRCODE = 'no_data_found';
    END IF;
    INSERT INTO trading.bots (
        bot_id, bot_name, bot_type, strategy_name, description, exchange, status, deployment_mode, initial_capital,
        max_positions, leverage_limit, max_daily_loss_pct, max_weekly_loss_pct, max_drawdown_pct)
    SELECT bot_id || '_trial', bot_name || ' (trial)', 'trial', strategy_name, 'Trial runs of ' || bot_id, exchange,
           'archived', 'backtest', initial_capital,
           max_positions, leverage_limit, max_daily_loss_pct, max_weekly_loss_pct, max_drawdown_pct
    FROM trading.bots WHERE bot_id = of_bot
    ON CONFLICT (bot_id) DO NOTHING;
    RETURN FOUND;
END
$$;

-- Removes the trial id of a bot with all its rows. Returns how many those were,
-- its registration included: 0 where there was none.
CREATE FUNCTION trading.remove_trial(of_bot text) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    holder regclass;
    removed bigint;
    total bigint := 0;
BEGIN
    FOR holder IN
        SELECT conrelid FROM pg_constraint WHERE contype = 'f' AND confrelid = 'trading.bots'::regclass
    LOOP
        EXECUTE format('DELETE FROM %s WHERE bot_id = $1', holder) USING of_bot || '_trial';
        GET DIAGNOSTICS removed = ROW_COUNT;
        total := total + removed;
    END LOOP;
    DELETE FROM trading.bots WHERE bot_id = of_bot || '_trial';
    GET DIAGNOSTICS removed = ROW_COUNT;
    RETURN total + removed;
END
$$;
REVOKE ALL ON FUNCTION trading.register_trial(text), trading.remove_trial(text) FROM PUBLIC;

-- The views as 001 has them, without trial ids.

CREATE FUNCTION analytics.is_trial(bot_id text) RETURNS boolean LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT coalesce(bot_id LIKE '%\_trial', false)
$$;

CREATE OR REPLACE VIEW analytics.active_positions_summary AS
SELECT p.bot_id, b.bot_name, p.symbol, p.side,
       count(*) AS open_positions,
       sum(p.size) AS total_size,
       sum(p.size * p.avg_entry_price) / nullif(sum(p.size), 0) AS avg_entry_price,
       sum(p.size * coalesce(p.current_price, p.avg_entry_price)) AS exposure_usd,
       sum(p.unrealized_pnl) AS unrealized_pnl,
       sum(p.realized_pnl) AS realized_pnl,
       min(p.opened_at) AS oldest_opened_at
FROM trading.positions p JOIN trading.bots b USING (bot_id)
WHERE p.status IN ('open', 'partially_closed') AND NOT analytics.is_demo(p.position_metadata)
  AND NOT analytics.is_trial(p.bot_id)
GROUP BY p.bot_id, b.bot_name, p.symbol, p.side;

CREATE OR REPLACE VIEW analytics.daily_performance_summary AS
SELECT t.bot_id, (t.exit_time AT TIME ZONE 'UTC')::date AS date,
       count(*) AS total_trades,
       count(*) FILTER (WHERE t.pnl_usd > 0) AS winning_trades,
       count(*) FILTER (WHERE t.pnl_usd < 0) AS losing_trades,
       count(*) FILTER (WHERE t.pnl_usd > 0)::numeric / count(*) AS win_rate,
       sum(t.pnl_usd) AS total_pnl,
       sum(t.fees) AS total_fees,
       avg(t.pnl_usd) AS avg_pnl,
       max(t.pnl_usd) AS best_trade,
       min(t.pnl_usd) AS worst_trade
FROM trading.trades t
WHERE t.exit_time IS NOT NULL AND NOT analytics.is_demo(t.metadata) AND NOT analytics.is_trial(t.bot_id)
GROUP BY t.bot_id, (t.exit_time AT TIME ZONE 'UTC')::date;

CREATE OR REPLACE VIEW analytics.system_health_dashboard AS
SELECT now() AS snapshot_time,
       (SELECT count(*) FROM trading.bots WHERE status = 'active' AND bot_type <> 'trial') AS active_bots,
       (SELECT count(*) FROM trading.bots WHERE status = 'paused' AND bot_type <> 'trial') AS paused_bots,
       (SELECT count(*) FROM trading.bots WHERE status = 'stopped' AND bot_type <> 'trial') AS stopped_bots,
       (SELECT count(*) FROM trading.positions
        WHERE status IN ('open', 'partially_closed')
          AND NOT analytics.is_demo(position_metadata) AND NOT analytics.is_trial(bot_id)) AS total_open_positions,
       today.pnl AS today_pnl,
       today.trades AS today_trades,
       (SELECT count(*) FROM trading.orders
        WHERE status IN ('pending', 'submitted', 'partially_filled')
          AND NOT analytics.is_trial(bot_id)) AS active_orders,
       (SELECT count(*) FROM audit.system_events
        WHERE event_level IN ('ERROR', 'CRITICAL') AND event_time > now() - interval '1 hour'
          AND NOT analytics.is_trial(bot_id)) AS errors_last_hour,
       (SELECT coalesce(sum(current_equity), 0) FROM trading.bots
        WHERE status <> 'archived' AND bot_type <> 'trial') AS total_portfolio_equity,
       (SELECT count(*) FROM audit.risk_events
        WHERE resolved IS FALSE AND NOT analytics.is_trial(bot_id)) AS unresolved_risk_events
FROM (SELECT coalesce(sum(total_pnl), 0) AS pnl, coalesce(sum(total_trades), 0)::bigint AS trades
      FROM analytics.daily_performance_summary
      WHERE date = (now() AT TIME ZONE 'UTC')::date) AS today;

-- Grants.
-- What no line names, a bot does not get: no TRUNCATE, no way into analytics
-- (its views are the owner's and show all bots), migration or pgbouncer.

GRANT USAGE ON SCHEMA trading, config, audit, delivery TO trading_bots;

-- A bot may change everything in its rows but whose they are (what it could
-- move to its trial id, it could delete) and what they are called.
DO $$
DECLARE
    item regclass;
    columns text;
BEGIN
    FOREACH item IN ARRAY ARRAY[
        'trading.orders', 'trading.fills', 'trading.trades', 'trading.positions', 'trading.signals',
        'trading.account_balance', 'trading.risk_metrics', 'trading.funding_payments', 'trading.bot_heartbeats',
        'delivery.outboxes']
    LOOP
        SELECT string_agg(quote_ident(attname), ', ') INTO columns FROM pg_attribute
        WHERE attrelid = item AND attnum > 0 AND NOT attisdropped AND attname NOT IN ('id', 'bot_id', 'outbox_id');
        EXECUTE format('GRANT SELECT, INSERT, UPDATE (%s), DELETE ON %s TO trading_bots', columns, item);
    END LOOP;
END
$$;
-- What was recorded stays: a bot may only say how a risk event ended.
GRANT SELECT, INSERT, DELETE ON audit.system_events, audit.risk_events TO trading_bots;
GRANT UPDATE (resolved, resolved_at, resolution_notes) ON audit.risk_events TO trading_bots;
-- Registration, limits and configuration are the inventory's.
GRANT SELECT ON trading.bots, config.bot_configurations TO trading_bots;
GRANT UPDATE (status, current_equity, last_heartbeat) ON trading.bots TO trading_bots;
-- Shared by all bots: none takes away what another relies on.
GRANT SELECT, INSERT, UPDATE ON trading.market_data TO trading_bots;
GRANT SELECT, INSERT ON trading.symbols TO trading_bots;

-- A bot reserves the ids of its rows before it can write them. They begin
-- beyond every legacy id (SERIAL ends at 2147483647), because a bot goes on
-- knowing a migrated row by its legacy id.
DO $$
DECLARE
    item regclass;
BEGIN
    FOR item IN
        SELECT pg_get_serial_sequence(oid::regclass::text, 'id') FROM pg_class
        WHERE relkind = 'r' AND relnamespace IN ('trading'::regnamespace, 'audit'::regnamespace)
          AND has_table_privilege('trading_bots', oid, 'INSERT')
    LOOP
        EXECUTE format('GRANT USAGE ON SEQUENCE %s TO trading_bots', item);
        PERFORM setval(item, 3000000000);
    END LOOP;
END
$$;

-- What a bot asks for every few seconds.
CREATE INDEX trades_pending ON trading.trades (bot_id) WHERE status = 'pending';

-- What a bot calls its rows is unique over all bots, so it begins with its bot_id
-- and stays: none takes a name that another's row may want.
CREATE POLICY own_ids ON trading.orders AS RESTRICTIVE FOR INSERT TO trading_bots
    WITH CHECK (starts_with(order_id, bot_id || '_'));
CREATE POLICY own_ids ON trading.positions AS RESTRICTIVE FOR INSERT TO trading_bots
    WITH CHECK (starts_with(position_id, bot_id || '_'));
CREATE POLICY own_ids ON trading.signals AS RESTRICTIVE FOR INSERT TO trading_bots
    WITH CHECK (starts_with(signal_id, bot_id || '_'));
CREATE POLICY own_ids ON trading.trades AS RESTRICTIVE FOR INSERT TO trading_bots
    WITH CHECK (starts_with(trade_id, bot_id || '_'));
REVOKE UPDATE (order_id) ON trading.orders FROM trading_bots;
REVOKE UPDATE (position_id) ON trading.positions FROM trading_bots;
REVOKE UPDATE (signal_id) ON trading.signals FROM trading_bots;
REVOKE UPDATE (trade_id) ON trading.trades FROM trading_bots;

-- Row level security on every table with a bot_id. current_user is the role
-- that PgBouncer logged in for the bot, whatever the bot says; it has names'
-- collation, with which no index on bot_id could be used.
DO $$
DECLARE
    item regclass;
    grafana boolean := EXISTS (SELECT FROM pg_roles WHERE rolname = 'grafana_reader');
BEGIN
    IF grafana THEN
        GRANT USAGE ON SCHEMA delivery TO grafana_reader;
        GRANT SELECT ON delivery.outboxes TO grafana_reader;
    END IF;
    FOR item IN
        SELECT a.attrelid FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
        WHERE c.relkind IN ('r', 'p') AND a.attname = 'bot_id' AND NOT a.attisdropped
          AND c.relnamespace::regnamespace::text IN ('trading', 'analytics', 'config', 'audit', 'delivery')
    LOOP
        EXECUTE format('ALTER TABLE %s ENABLE ROW LEVEL SECURITY', item);
        EXECUTE format('CREATE POLICY own_rows ON %s TO trading_bots '
                       'USING (bot_id = ANY (ARRAY[current_user::text, current_user || ''_trial''] COLLATE "default"))', item);
        EXECUTE format('CREATE POLICY deletes_trials_only ON %s AS RESTRICTIVE FOR DELETE TO trading_bots '
                       'USING (bot_id = current_user || ''_trial'')', item);
        IF grafana THEN
            EXECUTE format('CREATE POLICY grafana_reads_all ON %s FOR SELECT TO grafana_reader USING (true)', item);
        END IF;
    END LOOP;
END
$$;

\i :migrations_dir/lib/ledger_end.psql
