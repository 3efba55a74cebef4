-- What the engine cannot see row by row: staged trades of migration.bot_id whose
-- ids two rows would share, or that another bot's row holds.
SELECT s._source_id, concat_ws('; ',
    CASE WHEN t.id IS NOT NULL THEN format('trade_id %s is already held by another row', s.trade_id) END,
    CASE WHEN o.id IS NOT NULL THEN format('row %s was migrated as %s before, now it is %s', s._source_id, o.trade_id, s.trade_id) END,
    CASE WHEN p.id IS NOT NULL THEN format('position_id %s is already held by another row', s.trade_id) END,
    CASE WHEN d.keeper <> s.ctid THEN format('trade_id %s is also that of another legacy row', s.trade_id) END) AS reason
FROM staged_trades s
LEFT JOIN trading.trades t ON t.trade_id = s.trade_id
    AND ((t.bot_id, t.metadata #>> '{legacy,table}') IS DISTINCT FROM (s.bot_id, 'trades')
         -- A row without a name, and one that is named as such a row is here.
         OR (t.metadata #>> '{legacy,id}' <> s._source_id
             AND t.metadata #>> '{legacy,trade_id}' IS DISTINCT FROM s.metadata #>> '{legacy,trade_id}'))
-- A named trade never gets another name: the file was put back and numbers its
-- rows anew, and neither trade may take the other's place.
LEFT JOIN LATERAL (
    SELECT o.id, o.trade_id FROM trading.trades o
    WHERE o.bot_id = s.bot_id AND o.metadata ? 'legacy' AND o.metadata #>> '{legacy,table}' = 'trades'
      AND o.metadata #>> '{legacy,id}' = s._source_id AND o.trade_id <> s.trade_id
      AND o.metadata #>> '{legacy,trade_id}' IS NOT NULL
    -- By its index, one by one: the planner would read the whole table.
    LIMIT 1) AS o ON true
LEFT JOIN trading.positions p ON p.position_id = s.trade_id AND s.exit_time IS NULL
    AND (p.bot_id, p.position_metadata #>> '{legacy,table}') IS DISTINCT FROM (s.bot_id, 'trades')
LEFT JOIN (SELECT trade_id, (array_agg(ctid ORDER BY _source_id::bigint))[1] AS keeper
           FROM staged_trades GROUP BY trade_id HAVING count(*) > 1) AS d ON d.trade_id = s.trade_id
WHERE t.id IS NOT NULL OR o.id IS NOT NULL OR p.id IS NOT NULL OR d.keeper <> s.ctid
