-- The mapping of docs/data-mapping.md over what pgloader loaded. Variable: bot_id.
\set ON_ERROR_STOP on
BEGIN;
-- round() takes ties away from zero, the engine takes them to the even digit.
CREATE FUNCTION pgloader_staging.half_even(value numeric, places integer) RETURNS numeric
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT CASE WHEN scale(value) = places + 1 AND right(value::text, 1) = '5'
                THEN 2 * round(value * 0.5, places) ELSE round(value, places) END
$$;
-- The value as it was, where the column cannot hold it.
CREATE FUNCTION pgloader_staging.kept(value numeric, places integer) RETURNS numeric
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT CASE WHEN round(value, places) <> value THEN value END
$$;

INSERT INTO trading.trades (
    bot_id, trade_id, symbol, side, quantity, entry_price, exit_price, position_size_usd, stop_loss, take_profit,
    status, entry_time, exit_time, holding_time_seconds, pnl_usd, pnl_pct, fees, exit_reason, signal_strength,
    created_at, metadata)
SELECT :'bot_id', :'bot_id' || '_' || coalesce(trade_id, 'legacy_' || id), symbol, lower(side),
       pgloader_staging.half_even(quantity, 8), pgloader_staging.half_even(entry_price, 8),
       pgloader_staging.half_even(exit_price, 8), pgloader_staging.half_even(position_size_usd, 8),
       pgloader_staging.half_even(stop_loss, 8), pgloader_staging.half_even(take_profit, 8),
       'filled', entry_time::timestamp AT TIME ZONE 'UTC', exit_time::timestamp AT TIME ZONE 'UTC',
       holding_time_seconds, pgloader_staging.half_even(pnl_usd, 8), pgloader_staging.half_even(pnl_pct, 6), NULL,
       exit_reason, pgloader_staging.half_even(signal_strength, 6),
       coalesce(created_at, entry_time)::timestamp AT TIME ZONE 'UTC',
       jsonb_build_object('legacy', jsonb_strip_nulls(jsonb_build_object(
           'table', 'trades', 'id', id, 'trade_id', trade_id, 'mode', mode,
           'side', CASE WHEN side <> lower(side) THEN side END,
           'entry_time', entry_time, 'exit_time', exit_time, 'created_at', created_at,
           'quantity', pgloader_staging.kept(quantity, 8), 'entry_price', pgloader_staging.kept(entry_price, 8),
           'exit_price', pgloader_staging.kept(exit_price, 8),
           'position_size_usd', pgloader_staging.kept(position_size_usd, 8),
           'stop_loss', pgloader_staging.kept(stop_loss, 8), 'take_profit', pgloader_staging.kept(take_profit, 8),
           'pnl_usd', pgloader_staging.kept(pnl_usd, 8), 'pnl_pct', pgloader_staging.kept(pnl_pct, 6),
           'signal_strength', pgloader_staging.kept(signal_strength, 6))))
FROM pgloader_staging.trades;
COMMIT;
