-- History of the Shortseller's database: psql variables trades, positions,
-- candles, signals, balances, risk_days, seed. One transaction; what was seeded
-- is remembered in the comment of schema trading, so a second run does nothing.
-- Every value follows from (seed, row number): the same input gives the same rows.
\set ON_ERROR_STOP on
\set QUIET on

BEGIN;
-- A run that was cut off may still be at work: wait for it.
DO $$ BEGIN PERFORM pg_advisory_xact_lock(4711); END $$;
SELECT coalesce(obj_description('trading'::regnamespace, 'pg_namespace'), '') LIKE 'seeded %' AS seeded \gset
\if :seeded
COMMIT;
\echo already seeded
\quit
\endif

SET LOCAL TimeZone = 'UTC';
SET LOCAL synchronous_commit = off;

-- A number in [0, 1) for row i; each use takes a stream of its own.
CREATE FUNCTION pg_temp.r(i bigint, stream bigint) RETURNS double precision
LANGUAGE sql IMMUTABLE AS
$$ SELECT (hashint8extended(i, stream) & 1073741823) / 1073741824.0::double precision $$;

CREATE TEMPORARY TABLE market (n int PRIMARY KEY, symbol text, price numeric) ON COMMIT DROP;
INSERT INTO market VALUES
    (0, 'BTCUSDT', 67250.1), (1, 'ETHUSDT', 3480.55), (2, 'SOLUSDT', 172.345),
    (3, 'XRPUSDT', 0.52345678), (4, '1000PEPEUSDT', 0.00912345);

INSERT INTO trading.trades (symbol, side, quantity, price, order_id, exchange_order_id, status,
                            strategy, timestamp, executed_at, pnl, fees, notes)
SELECT symbol, side, quantity, price, order_id, exchange_order_id, status, strategy, placed,
       CASE WHEN status IN ('filled', 'partially_filled')
            THEN placed + make_interval(secs => 0.05 + 9 * pg_temp.r(i, :seed * 100 + 6)) END,
       CASE WHEN status = 'filled'
            THEN round(((pg_temp.r(i, :seed * 100 + 7) - 0.48) * 250)::numeric, 8) ELSE 0 END,
       CASE WHEN status IN ('filled', 'partially_filled')
            THEN round(quantity * price * 0.00055, 8) ELSE 0 END,
       notes
FROM (
    SELECT i, m.symbol,
           (ARRAY['Sell', 'Buy', 'SELL', 'buy', 'short', 'Long', 'sell', 'BUY', 'Short', 'long'])
               [1 + floor(pg_temp.r(i, :seed * 100 + 1) * 10)::int] AS side,
           round((0.001 + pg_temp.r(i, :seed * 100 + 2) * 100 / m.price::double precision)::numeric, 8) AS quantity,
           round(m.price * (0.8 + 0.4 * pg_temp.r(i, :seed * 100 + 3))::numeric, 8) AS price,
           CASE WHEN i % 11 <> 3 THEN md5(:seed || '/order/' || i)::uuid::text END AS order_id,
           CASE WHEN i % 7 <> 5 THEN md5(:seed || '/exchange/' || i)::uuid::text END AS exchange_order_id,
           CASE WHEN i > :trades - 5 OR i % 997 = 0 THEN 'pending'
                WHEN i % 53 = 7 THEN 'cancelled'
                WHEN i % 61 = 11 THEN 'rejected'
                WHEN i % 67 = 13 THEN 'partially_filled'
                WHEN i % 71 = 17 THEN 'expired'
                ELSE 'filled' END AS status,
           CASE WHEN i % 5 = 0 THEN 'ema_crossover_v2' ELSE 'ema_crossover' END AS strategy,
           -- Two trades may share an instant; the offset is the exchange's.
           timestamptz '2025-10-24 00:00:00+00'
               - ((:trades - i) / 2) * interval '5 minutes 1.234567 seconds' AS placed,
           CASE i % 40
               WHEN 1 THEN 'Stop nachgezogen – überkauft 📉 清算'
               WHEN 2 THEN E'first line\nsecond\tline, with "quotes"; and ''more'''
               WHEN 3 THEN '\N'
               WHEN 4 THEN ''
               WHEN 5 THEN 'NULL'
               WHEN 6 THEN E'back\\slash, comma, {"not": json'
               WHEN 7 THEN 'Cafe' || U&'\0301' || ' ' || U&'\200B' || 'zero width'
           END AS notes
    FROM generate_series(1, :trades::bigint) AS i
    JOIN market m ON m.n = floor(pg_temp.r(i, :seed * 100 + 4) * 5)::int
) AS t
ORDER BY i;

INSERT INTO trading.positions (symbol, side, size, avg_price, unrealized_pnl, realized_pnl, status,
                               opened_at, closed_at, stop_loss, take_profit, leverage)
SELECT symbol,
       CASE WHEN i % 9 = 0 THEN 'long' WHEN i % 83 = 1 THEN 'Short' ELSE 'short' END,
       size, avg_price,
       CASE WHEN is_open THEN round(((pg_temp.r(i, :seed * 100 + 23) - 0.5) * 40)::numeric, 8) ELSE 0 END,
       CASE WHEN is_open THEN 0 ELSE round(((pg_temp.r(i, :seed * 100 + 24) - 0.47) * 300)::numeric, 8) END,
       CASE WHEN is_open THEN 'open' ELSE 'closed' END,
       opened,
       CASE WHEN NOT is_open THEN opened + make_interval(secs => 60 + 86000 * pg_temp.r(i, :seed * 100 + 25)) END,
       CASE WHEN i % 4 <> 0 THEN round(avg_price * 1.03, 8) END,
       CASE WHEN i % 6 <> 0 THEN round(avg_price * 0.94, 8) END,
       1 + (i % 10)::int
FROM (
    SELECT i, m.symbol,
           round((0.01 + pg_temp.r(i, :seed * 100 + 21) * 500 / m.price::double precision)::numeric, 8) AS size,
           round(m.price * (0.8 + 0.4 * pg_temp.r(i, :seed * 100 + 22))::numeric, 8) AS avg_price,
           i > :positions - 3 AS is_open,
           timestamptz '2025-10-23 22:00:00+00'
               - (:positions - i) * interval '20 minutes 0.000321 seconds' AS opened
    FROM generate_series(1, :positions::bigint) AS i
    JOIN market m ON m.n = i % 5
) AS p
ORDER BY i;

INSERT INTO trading.market_data (symbol, timestamp, open_price, high_price, low_price, close_price,
                                 volume, interval, created_at)
SELECT symbol, opened, open_price,
       CASE WHEN flat THEN open_price
            ELSE round(greatest(open_price, close_price) * (1 + 0.004 * pg_temp.r(i, :seed * 100 + 43))::numeric, 8) END,
       CASE WHEN flat THEN open_price
            ELSE round(least(open_price, close_price) * (1 - 0.004 * pg_temp.r(i, :seed * 100 + 44))::numeric, 8) END,
       CASE WHEN flat THEN open_price ELSE close_price END,
       CASE WHEN flat THEN 0 ELSE round((pg_temp.r(i, :seed * 100 + 45) * 100000)::numeric, 8) END,
       '5m', opened + interval '5 minutes 0.25 seconds'
FROM (
    SELECT i, m.symbol, i % 487 = 0 AS flat,
           timestamptz '2025-10-24 00:00:00+00' - ((:candles - i) / 5 + 1) * interval '5 minutes' AS opened,
           round(m.price * (0.9 + 0.2 * pg_temp.r(i, :seed * 100 + 41))::numeric, 8) AS open_price,
           round(m.price * (0.9 + 0.2 * pg_temp.r(i, :seed * 100 + 42))::numeric, 8) AS close_price
    FROM generate_series(1, :candles::bigint) AS i
    -- Five neighbours share a candle's time and differ in symbol.
    JOIN market m ON m.n = (:candles - i) % 5
) AS c
ORDER BY i;

INSERT INTO trading.signals (symbol, signal_type, strength, price, timestamp, strategy, indicators,
                             executed, execution_id)
SELECT m.symbol,
       CASE WHEN i % 3 = 0 THEN 'close' WHEN i % 17 = 1 THEN 'long' ELSE 'short' END,
       round(pg_temp.r(i, :seed * 100 + 61)::numeric, 4),
       round(m.price * (0.8 + 0.4 * pg_temp.r(i, :seed * 100 + 62))::numeric, 8),
       timestamptz '2025-10-24 00:00:00+00' - (:signals - i) * interval '20 minutes 0.5 seconds',
       CASE WHEN i % 5 = 0 THEN 'ema_crossover_v2' ELSE 'ema_crossover' END,
       CASE WHEN i % 19 = 2 THEN NULL
            WHEN i % 19 = 3 THEN '[]'::jsonb
            ELSE jsonb_build_object('ema_240', round((m.price * 1.01), 10), 'ema_600', m.price,
                                    'note', 'Kreuzung ✂', 'nested', jsonb_build_object('rsi', i % 100, 'ok', i % 2 = 0)) END,
       i % 4 <> 1,
       -- Some were executed without anybody noting by which trade.
       CASE WHEN i % 4 <> 1 AND i % 23 <> 4 AND :trades > 0
            THEN 1 + floor(pg_temp.r(i, :seed * 100 + 63) * :trades)::int END
FROM generate_series(1, :signals::bigint) AS i
JOIN market m ON m.n = i % 5
ORDER BY i;

-- Balances cover the last three fifths of the days: the others have none.
INSERT INTO trading.account_balance (total_balance, available_balance, equity, margin_used,
                                     unrealized_pnl, timestamp)
SELECT total, total - margin, total + unrealized, margin, unrealized, taken
FROM (
    SELECT i,
           round((10000 + 0.4 * i + (pg_temp.r(i, :seed * 100 + 81) - 0.5) * 300)::numeric, 8) AS total,
           round((pg_temp.r(i, :seed * 100 + 82) * 2500)::numeric, 8) AS margin,
           round(((pg_temp.r(i, :seed * 100 + 83) - 0.5) * 120)::numeric, 8) AS unrealized,
           timestamptz '2025-10-24 00:00:00+00'
               - (:balances - i) * (interval '1 day' * (0.6 * :risk_days / greatest(:balances, 1))) AS taken
    FROM generate_series(1, :balances::bigint) AS i
) AS b
ORDER BY i;

INSERT INTO trading.risk_metrics (date, total_pnl, max_drawdown, win_rate, profit_factor, sharpe_ratio,
                                  total_trades, winning_trades, losing_trades)
SELECT date '2025-10-24' - (:risk_days - i)::int,
       round(((pg_temp.r(i, :seed * 100 + 91) - 0.45) * 400)::numeric, 8),
       CASE WHEN half THEN NULL ELSE round((pg_temp.r(i, :seed * 100 + 92) * 20)::numeric, 4) END,
       CASE WHEN half THEN NULL ELSE round(wins / 20.0, 4) END,
       CASE WHEN half THEN NULL WHEN i % 37 = 3 THEN 999.9900
            ELSE round((pg_temp.r(i, :seed * 100 + 93) * 3)::numeric, 4) END,
       CASE WHEN half THEN NULL ELSE round(((pg_temp.r(i, :seed * 100 + 94) - 0.4) * 5)::numeric, 4) END,
       CASE WHEN half THEN 0 ELSE 20 END,
       CASE WHEN half THEN 0 ELSE wins END,
       CASE WHEN half THEN 0 ELSE 20 - wins END
FROM (
    SELECT i, i % 29 = 5 AS half, floor(pg_temp.r(i, :seed * 100 + 95) * 21)::int AS wins
    FROM generate_series(1, :risk_days::bigint) AS i
) AS d
ORDER BY i;

SELECT format('COMMENT ON SCHEMA trading IS %L',
              format('seeded seed=%s trades=%s positions=%s candles=%s signals=%s balances=%s risk_days=%s',
                     :seed, :trades, :positions, :candles, :signals, :balances, :risk_days)) \gexec
COMMIT;
ANALYZE;
\echo seeded
