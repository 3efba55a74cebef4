-- What the engine cannot see row by row: ids that two rows of migration.bot_id
-- would share, or that another bot's row holds. Then stores all rejects.
UPDATE legacy_momentum.trades SET _reject = c.reason
FROM (
    SELECT s.ctid AS place, concat_ws('; ',
        CASE WHEN t.id IS NOT NULL THEN format('trade_id %s is already held by another row', s.trade_id) END,
        CASE WHEN p.id IS NOT NULL THEN format('position_id %s is already held by another row', s.trade_id) END,
        CASE WHEN d.keeper <> s.ctid THEN format('trade_id %s is also that of another legacy row', s.trade_id) END) AS reason
    FROM legacy_momentum.trades s
    LEFT JOIN trading.trades t ON t.trade_id = s.trade_id
        AND (t.bot_id, t.metadata #>> '{legacy,table}') IS DISTINCT FROM (s.bot_id, 'trades')
    LEFT JOIN trading.positions p ON p.position_id = s.trade_id AND s.exit_time IS NULL
        AND (p.bot_id, p.position_metadata #>> '{legacy,table}') IS DISTINCT FROM (s.bot_id, 'trades')
    LEFT JOIN (SELECT trade_id, (array_agg(ctid ORDER BY bot_id, id::bigint))[1] AS keeper
               FROM legacy_momentum.trades WHERE _reject IS NULL GROUP BY trade_id HAVING count(*) > 1) AS d
        ON d.trade_id = s.trade_id
    WHERE s.bot_id = current_setting('migration.bot_id') AND s._reject IS NULL
) AS c
WHERE ctid = c.place AND c.reason <> '';

DELETE FROM migration.rejects WHERE bot_id = current_setting('migration.bot_id');
INSERT INTO migration.rejects (run_id, bot_id, source_table, source_id, "row", reason)
SELECT current_setting('migration.run_id')::bigint, bot_id, source_table, source_id, content, reason
FROM (
    -- A trade rejected here was converted: its staged columns and what they do
    -- not hold verbatim are the original row.
    SELECT bot_id, 'trades' AS source_table, id AS source_id,
           coalesce(_row, to_jsonb(s) - '{bot_id,trade_id,legacy,_row,_reject}'::text[] || (legacy - 'table')) AS content,
           _reject AS reason FROM legacy_momentum.trades s
    UNION ALL SELECT bot_id, 'daily_snapshots', id, _row, _reject FROM legacy_momentum.daily_snapshots
    UNION ALL SELECT bot_id, 'system_events', id, _row, _reject FROM legacy_momentum.system_events
    UNION ALL SELECT bot_id, 'risk_events', id, _row, _reject FROM legacy_momentum.risk_events
) AS rejected
WHERE bot_id = current_setting('migration.bot_id') AND reason IS NOT NULL
ORDER BY array_position('{trades,daily_snapshots,system_events,risk_events}'::text[], source_table), length(source_id), source_id;
