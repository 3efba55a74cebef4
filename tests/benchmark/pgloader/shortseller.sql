-- The mapping of docs/data-mapping.md over what pgloader loaded. Variable: bot_id.
\set ON_ERROR_STOP on
INSERT INTO trading.trades (
    bot_id, trade_id, symbol, exchange_order_id, side, quantity, entry_price, entry_time, exit_time, pnl_usd, fees,
    status, strategy, notes, created_at, metadata)
SELECT :'bot_id', :'bot_id' || '_' || coalesce(order_id, 'legacy_' || id), symbol, exchange_order_id, lower(side),
       quantity, price, timestamp, executed_at, pnl, fees,
       CASE lower(status) WHEN 'canceled' THEN 'cancelled' ELSE lower(status) END, strategy, notes, timestamp,
       jsonb_build_object('legacy', jsonb_strip_nulls(jsonb_build_object(
           'table', 'trades', 'id', id, 'order_id', order_id,
           'side', CASE WHEN side <> lower(side) THEN side END,
           'status', CASE WHEN status NOT IN ('pending', 'partially_filled', 'filled', 'cancelled', 'rejected', 'expired')
                          THEN status END)))
FROM pgloader_staging.trades;
