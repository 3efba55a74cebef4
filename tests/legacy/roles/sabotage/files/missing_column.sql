SELECT to_regclass('sabotage.fees') IS NOT NULL AS spoilt \gset
\if :undo
    \if :spoilt
        BEGIN;
        ALTER TABLE trading.trades ADD COLUMN fees DECIMAL(20,8) DEFAULT 0;
        UPDATE trading.trades t SET fees = s.fees FROM sabotage.fees s
        WHERE s.id = t.id AND s.fees IS DISTINCT FROM t.fees;
        DROP SCHEMA sabotage CASCADE;
        COMMIT;
        \echo restored
    \else
        \echo unchanged
    \endif
\else
    \if :spoilt
        \echo unchanged
    \else
        BEGIN;
        LOCK TABLE trading.trades;
        CREATE SCHEMA sabotage;
        CREATE TABLE sabotage.fees AS SELECT id, fees FROM trading.trades;
        ALTER TABLE trading.trades DROP COLUMN fees;
        COMMIT;
        \echo dropped
    \endif
\endif
