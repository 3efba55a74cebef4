-- Decides which staged rows of the bot migration.bot_id cannot be migrated, and
-- why, so that the merge never stumbles over a constraint. The functions are
-- STABLE because format() is: declared IMMUTABLE they would not be inlined. The
-- few rows are found before they are marked, because an UPDATE has one process;
-- the planner takes them for many, which would have to be handed over.
SET LOCAL parallel_tuple_cost = 0;

CREATE FUNCTION pg_temp.misfit(name text, value numeric, bound numeric, places integer) RETURNS text
LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT CASE WHEN NOT migration.fits(value, bound, places)
                THEN format('%s %s does not fit: expected a number below %s with at most %s decimals', name, value, bound, places) END
$$;

CREATE FUNCTION pg_temp.money(name text, value numeric) RETURNS text LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT pg_temp.misfit(name, value, 1000000000000, 8)
$$;

-- As money(), and neither missing nor below zero.
CREATE FUNCTION pg_temp.amount(name text, value numeric) RETURNS text LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT CASE WHEN value IS NULL THEN name || ' is missing'
                WHEN value < 0 THEN format('%s %s is below zero', name, value)
                ELSE pg_temp.money(name, value) END
$$;

CREATE FUNCTION pg_temp.missing(name text, value text) RETURNS text LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT CASE WHEN value IS NULL THEN name || ' is missing' END
$$;

CREATE FUNCTION pg_temp.one_of(name text, value text, known text[]) RETURNS text LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT CASE WHEN value IS NULL THEN name || ' is missing'
                WHEN lower(value COLLATE "C") <> ALL (known) THEN
                    format('unknown %s ''%s'': expected one of %s', name, value, array_to_string(known, ', ')) END
$$;

CREATE TEMP TABLE refused AS SELECT c.* FROM (
    SELECT s.ctid AS place, concat_ws('; ',
        CASE WHEN s.symbol IS NULL THEN 'symbol is missing' END,
        CASE WHEN s.side IS NULL OR lower(s.side COLLATE "C") NOT IN ('buy', 'sell', 'long', 'short')
             THEN pg_temp.one_of('side', s.side, '{buy,sell,long,short}') END,
        CASE WHEN s.status IS NULL OR lower(s.status COLLATE "C") NOT IN ('pending', 'partially_filled', 'filled', 'cancelled', 'canceled', 'rejected', 'expired')
             THEN pg_temp.one_of('status', s.status, '{pending,partially_filled,filled,cancelled,rejected,expired}') END,
        pg_temp.amount('quantity', s.quantity), pg_temp.amount('price', s.price),
        pg_temp.money('pnl', s.pnl), pg_temp.money('fees', s.fees),
        CASE WHEN s.timestamp IS NULL THEN 'timestamp is missing' END,
        CASE WHEN length(s.trade_id) > 100 THEN format('trade_id %s would be longer than 100 characters', s.trade_id) END,
        CASE WHEN t.id IS NOT NULL THEN format('trade_id %s is already held by another row', s.trade_id) END) AS reason
    FROM legacy_shortseller.trades s
    LEFT JOIN trading.trades t ON t.trade_id = s.trade_id
        AND (t.bot_id, t.metadata #>> '{legacy,table}', t.metadata #>> '{legacy,id}') IS DISTINCT FROM (s.bot_id, 'trades', s.id::text)
    WHERE s.bot_id = current_setting('migration.bot_id')
) AS c WHERE c.reason <> '';
UPDATE legacy_shortseller.trades s SET _reject = r.reason FROM refused r WHERE s.ctid = r.place;
DROP TABLE refused;
-- A million names are compared in memory. Not rows joined: that memory is
-- shared, and a container has little of it.
SET LOCAL work_mem = '64MB';
CREATE TEMP TABLE repeated AS
    SELECT hashtextextended(trade_id, 0) AS hash FROM legacy_shortseller.trades GROUP BY 1 HAVING count(*) > 1;
RESET work_mem;
UPDATE legacy_shortseller.trades s
SET _reject = concat_ws('; ', s._reject, format('trade_id %s is also that of another legacy row', s.trade_id))
FROM (SELECT trade_id, (array_agg(id ORDER BY bot_id, id))[1] AS id, min(bot_id) AS bot_id FROM legacy_shortseller.trades
      WHERE hashtextextended(trade_id, 0) IN (SELECT hash FROM repeated) GROUP BY trade_id) AS keeper
WHERE s.bot_id = current_setting('migration.bot_id') AND s.trade_id = keeper.trade_id
  AND (s.bot_id, s.id) <> (keeper.bot_id, keeper.id);
DROP TABLE repeated;

CREATE TEMP TABLE refused AS SELECT c.* FROM (
    SELECT s.ctid AS place, concat_ws('; ',
        CASE WHEN s.symbol IS NULL THEN 'symbol is missing' END,
        CASE WHEN s.side IS NULL OR lower(s.side COLLATE "C") NOT IN ('long', 'short', 'buy', 'sell')
             THEN pg_temp.one_of('side', s.side, '{long,short,buy,sell}') END,
        CASE WHEN s.status IS NULL OR lower(s.status COLLATE "C") NOT IN ('open', 'partially_closed', 'closed', 'liquidated')
             THEN pg_temp.one_of('status', s.status, '{open,partially_closed,closed,liquidated}') END,
        pg_temp.amount('size', s.size), pg_temp.amount('avg_price', s.avg_price),
        pg_temp.money('unrealized_pnl', s.unrealized_pnl), pg_temp.money('realized_pnl', s.realized_pnl),
        pg_temp.money('stop_loss', s.stop_loss), pg_temp.money('take_profit', s.take_profit),
        pg_temp.misfit('leverage', s.leverage, 10000, 6),
        CASE WHEN s.opened_at IS NULL THEN 'opened_at is missing' END,
        CASE WHEN t.id IS NOT NULL THEN format('position_id %s_legacy_%s is already held by another row', s.bot_id, s.id) END) AS reason
    FROM legacy_shortseller.positions s
    LEFT JOIN trading.positions t ON t.position_id = s.bot_id || '_legacy_' || s.id
        AND (t.bot_id, t.position_metadata #>> '{legacy,table}') IS DISTINCT FROM (s.bot_id, 'positions')
    WHERE s.bot_id = current_setting('migration.bot_id')
) AS c WHERE c.reason <> '';
UPDATE legacy_shortseller.positions s SET _reject = r.reason FROM refused r WHERE s.ctid = r.place;
DROP TABLE refused;

-- Candles are shared. One that another source brought must be the same, in the
-- table or, where neither is there yet, among the staged ones.
CREATE TEMP TABLE refused AS SELECT c.* FROM (
    SELECT s.ctid AS place, concat_ws('; ',
        CASE WHEN s.symbol IS NULL THEN 'symbol is missing' END,
        CASE WHEN s."interval" IS NULL THEN 'interval is missing' END,
        CASE WHEN s.timestamp IS NULL THEN 'timestamp is missing' END,
        pg_temp.missing('open_price', s.open_price::text), pg_temp.missing('high_price', s.high_price::text),
        pg_temp.missing('low_price', s.low_price::text), pg_temp.missing('close_price', s.close_price::text),
        pg_temp.money('open_price', s.open_price), pg_temp.money('high_price', s.high_price),
        pg_temp.money('low_price', s.low_price), pg_temp.money('close_price', s.close_price),
        CASE WHEN s.volume IS NOT NULL THEN pg_temp.amount('volume', s.volume) END,
        CASE WHEN s.high_price < greatest(s.open_price, s.close_price) OR s.low_price > least(s.open_price, s.close_price)
             THEN 'high and low do not bound open and close' END,
        CASE WHEN t.id IS NOT NULL THEN format('the candle is already held with other values (from %s)', coalesce(t.data_source, 'another source')) END,
        CASE WHEN o.id IS NOT NULL THEN format('the candle has other values in the history of %s', o.bot_id) END) AS reason
    FROM legacy_shortseller.market_data s
    LEFT JOIN trading.market_data t ON t.symbol = s.symbol AND t."interval" = s."interval" AND t.timestamp = s.timestamp
        AND t.metadata #>> '{legacy,bot_id}' IS DISTINCT FROM s.bot_id
        AND (t.open_price, t.high_price, t.low_price, t.close_price, t.volume)
            IS DISTINCT FROM (s.open_price, s.high_price, s.low_price, s.close_price, s.volume)
    LEFT JOIN legacy_shortseller.market_data o ON o.symbol = s.symbol AND o."interval" = s."interval" AND o.timestamp = s.timestamp
        AND o.bot_id <> s.bot_id AND o._reject IS NULL
        AND (o.open_price, o.high_price, o.low_price, o.close_price, o.volume)
            IS DISTINCT FROM (s.open_price, s.high_price, s.low_price, s.close_price, s.volume)
        AND NOT EXISTS (SELECT FROM trading.market_data h WHERE h.symbol = s.symbol AND h."interval" = s."interval" AND h.timestamp = s.timestamp)
    WHERE s.bot_id = current_setting('migration.bot_id')
) AS c WHERE c.reason <> '';
UPDATE legacy_shortseller.market_data s SET _reject = r.reason FROM refused r WHERE s.ctid = r.place;
DROP TABLE refused;

CREATE TEMP TABLE refused AS SELECT c.* FROM (
    SELECT s.ctid AS place, concat_ws('; ',
        CASE WHEN s.symbol IS NULL THEN 'symbol is missing' END,
        CASE WHEN s.signal_type IS NULL OR lower(s.signal_type COLLATE "C") NOT IN ('long', 'short', 'close', 'close_long', 'close_short', 'hold')
             THEN pg_temp.one_of('signal_type', s.signal_type, '{long,short,close,close_long,close_short,hold}') END,
        CASE WHEN s.strength NOT BETWEEN 0 AND 1 THEN format('strength %s is not between 0 and 1', s.strength)
             ELSE pg_temp.misfit('strength', s.strength, 10000, 6) END,
        pg_temp.money('price', s.price),
        CASE WHEN s.timestamp IS NULL THEN 'timestamp is missing' END,
        CASE WHEN t.id IS NOT NULL THEN format('signal_id %s_legacy_%s is already held by another row', s.bot_id, s.id) END) AS reason
    FROM legacy_shortseller.signals s
    LEFT JOIN trading.signals t ON t.signal_id = s.bot_id || '_legacy_' || s.id
        AND (t.bot_id, t.metadata #>> '{legacy,table}') IS DISTINCT FROM (s.bot_id, 'signals')
    WHERE s.bot_id = current_setting('migration.bot_id')
) AS c WHERE c.reason <> '';
UPDATE legacy_shortseller.signals s SET _reject = r.reason FROM refused r WHERE s.ctid = r.place;
DROP TABLE refused;

CREATE TEMP TABLE refused AS SELECT c.* FROM (
    SELECT s.ctid AS place, concat_ws('; ',
        pg_temp.money('total_balance', s.total_balance), pg_temp.money('available_balance', s.available_balance),
        pg_temp.money('equity', s.equity), pg_temp.money('margin_used', s.margin_used),
        pg_temp.money('unrealized_pnl', s.unrealized_pnl),
        CASE WHEN s.timestamp IS NULL THEN 'timestamp is missing' END) AS reason
    FROM legacy_shortseller.account_balance s WHERE s.bot_id = current_setting('migration.bot_id')
) AS c WHERE c.reason <> '';
UPDATE legacy_shortseller.account_balance s SET _reject = r.reason FROM refused r WHERE s.ctid = r.place;
DROP TABLE refused;

CREATE TEMP TABLE refused AS SELECT c.* FROM (
    SELECT s.ctid AS place, concat_ws('; ',
        CASE WHEN s.date IS NULL THEN 'date is missing' WHEN s.date IN ('infinity', '-infinity') THEN 'date is infinite' END,
        pg_temp.money('total_pnl', s.total_pnl), pg_temp.money('max_drawdown', s.max_drawdown),
        pg_temp.misfit('win_rate', s.win_rate, 10000, 6), pg_temp.misfit('profit_factor', s.profit_factor, 1000000, 6),
        pg_temp.misfit('sharpe_ratio', s.sharpe_ratio, 1000000, 6),
        pg_temp.misfit('total_trades', s.total_trades, 2147483648, 0),
        pg_temp.misfit('winning_trades', s.winning_trades, 2147483648, 0),
        pg_temp.misfit('losing_trades', s.losing_trades, 2147483648, 0)) AS reason
    FROM legacy_shortseller.risk_metrics s WHERE s.bot_id = current_setting('migration.bot_id')
) AS c WHERE c.reason <> '';
UPDATE legacy_shortseller.risk_metrics s SET _reject = r.reason FROM refused r WHERE s.ctid = r.place;
DROP TABLE refused;

DROP FUNCTION pg_temp.amount, pg_temp.money, pg_temp.missing, pg_temp.one_of, pg_temp.misfit;

DELETE FROM migration.rejects WHERE bot_id = current_setting('migration.bot_id');
INSERT INTO migration.rejects (run_id, bot_id, source_table, source_id, "row", reason)
SELECT current_setting('migration.run_id')::bigint, bot_id, source_table, source_id,
       content - '{bot_id,extra,metadata,_hash,_reject,trade_id}'::text[] || coalesce(nullif(content -> 'extra', 'null'), '{}'), reason
FROM (
    SELECT bot_id, 'trades' AS source_table, id::text AS source_id, to_jsonb(s) AS content, _reject AS reason FROM legacy_shortseller.trades s
    UNION ALL SELECT bot_id, 'positions', id::text, to_jsonb(s), _reject FROM legacy_shortseller.positions s
    UNION ALL SELECT bot_id, 'market_data', id::text, to_jsonb(s), _reject FROM legacy_shortseller.market_data s
    UNION ALL SELECT bot_id, 'signals', id::text, to_jsonb(s), _reject FROM legacy_shortseller.signals s
    UNION ALL SELECT bot_id, 'account_balance', id::text, to_jsonb(s), _reject FROM legacy_shortseller.account_balance s
    UNION ALL SELECT bot_id, 'risk_metrics', id::text, to_jsonb(s), _reject FROM legacy_shortseller.risk_metrics s
) AS rejected
WHERE bot_id = current_setting('migration.bot_id') AND reason IS NOT NULL
ORDER BY array_position('{trades,positions,market_data,signals,account_balance,risk_metrics}'::text[], source_table), length(source_id), source_id;
