-- Carries staged rows into the unified tables: new rows are inserted, changed
-- ones updated, everything else left untouched, in the caller's transaction.

-- One mapping of one bot. Returns its line of the result. `overwrite` is false
-- once the bot runs on the unified database: then its rows are its own, and
-- differing ones are counted as kept.
CREATE OR REPLACE FUNCTION migration.merge_mapping(m migration.mappings, bot text, run bigint, overwrite boolean) RETURNS jsonb
LANGUAGE plpgsql AS $$
DECLARE
    target regclass := m.target_table::regclass;
    has_bot boolean := EXISTS (SELECT FROM pg_attribute WHERE attrelid = target AND attname = 'bot_id' AND NOT attisdropped);
    metadata text := CASE WHEN m.target_table = 'trading.positions' THEN 't.position_metadata' ELSE 't.metadata' END;
    columns text;
    own_bot text;
    matching text;
    differing text;
    staged bigint;
    rejected bigint;
    inserted bigint;
    updated bigint := 0;
    kept bigint := 0;
    missing bigint;
BEGIN
    SELECT string_agg(quote_ident(attname), ', ' ORDER BY attnum), 
           format('(%s) IS DISTINCT FROM (%s)', string_agg('t.' || quote_ident(attname), ', ' ORDER BY attnum),
                  string_agg('s.' || quote_ident(attname), ', ' ORDER BY attnum))
    INTO columns, differing
    FROM pg_attribute
    WHERE attrelid = m.source_view::regclass AND attnum > 0 AND NOT attisdropped AND attname NOT LIKE '\_%';

    -- Candles carry no bot: whose they are stands in their metadata.
    own_bot := CASE WHEN has_bot THEN 't.bot_id' ELSE $sql$(t.metadata #>> '{legacy,bot_id}')$sql$ END;
    IF m.keys IS NULL THEN
        matching := format($sql$t.metadata ? 'legacy' AND t.bot_id = s.bot_id AND (t.metadata #>> '{legacy,table}') = %L
                                AND (t.metadata #>> '{legacy,id}') = s._source_id$sql$, m.source_table);
    ELSE
        SELECT string_agg(format('t.%1$I = s.%1$I', key), ' AND ') INTO matching FROM unnest(m.keys) AS key;
    END IF;

    EXECUTE format('SELECT count(*) FROM %s s WHERE s.%I = $1', m.source_view, CASE WHEN has_bot THEN 'bot_id' ELSE '_bot_id' END)
    INTO staged USING bot;
    SELECT count(*) INTO rejected FROM migration.rejects r WHERE r.bot_id = bot AND r.source_table = m.source_table;

    IF overwrite THEN
        EXECUTE format('UPDATE %s t SET (%s) = ROW(%s) FROM %s s WHERE %s AND %s = $1 AND s.%I = $1 AND %s',
                       target, columns, regexp_replace(columns, '(^|, )', '\1s.', 'g'), m.source_view, matching, own_bot,
                       CASE WHEN has_bot THEN 'bot_id' ELSE '_bot_id' END, differing) USING bot;
        GET DIAGNOSTICS updated = ROW_COUNT;
    ELSE
        EXECUTE format('SELECT count(*) FROM %s t JOIN %s s ON %s WHERE %s = $1 AND s.%I = $1 AND %s',
                       target, m.source_view, matching, own_bot, CASE WHEN has_bot THEN 'bot_id' ELSE '_bot_id' END, differing)
        INTO kept USING bot;
    END IF;
    EXECUTE format('INSERT INTO %s (%s) SELECT %s FROM %s s WHERE s.%I = $1 AND NOT EXISTS (SELECT FROM %s t WHERE %s)',
                   target, columns, columns, m.source_view, CASE WHEN has_bot THEN 'bot_id' ELSE '_bot_id' END, target, matching) USING bot;
    GET DIAGNOSTICS inserted = ROW_COUNT;

    -- Rows that the source no longer has stay, and are reported.
    EXECUTE format($sql$SELECT count(*) FROM %s t
                        WHERE %s ? 'legacy' AND %s = $1 AND (%s #>> '{legacy,table}') = $2
                          AND NOT EXISTS (SELECT FROM %s s WHERE s.%I = $1 AND %s)
                          AND NOT EXISTS (SELECT FROM migration.rejects r WHERE r.bot_id = $1 AND r.source_table = $2
                                          AND r.source_id = %s #>> '{legacy,id}')$sql$,
                   target, metadata, own_bot, metadata, m.source_view, CASE WHEN has_bot THEN 'bot_id' ELSE '_bot_id' END,
                   matching, metadata)
    INTO missing USING bot, m.source_table;

    RETURN jsonb_build_object(
        'source_table', m.source_table, 'target_table', m.target_table,
        'source', (SELECT row_count FROM migration.source_statistics WHERE run_id = run AND source_table = m.source_table),
        'inserted', inserted, 'updated', updated, 'unchanged', staged - inserted - updated - kept, 'kept', kept,
        'rejected', rejected, 'missing_at_source', missing);
END
$$;

-- The rows staged last for a bot must all still be there: unlogged tables are
-- empty after a crash of the server.
CREATE OR REPLACE FUNCTION migration.staged_run(bot text, kind text) RETURNS migration.runs LANGUAGE plpgsql AS $$
DECLARE
    run migration.runs;
    line record;
    found_rows bigint;
    remedy text := CASE kind WHEN 'shortseller' THEN 'stage_shortseller.py' ELSE 'migrate_momentum_sqlite_to_postgres.py' END;
BEGIN
    SELECT * INTO run FROM migration.runs r WHERE r.bot_id = bot ORDER BY run_id DESC LIMIT 1;
    IF NOT FOUND THEN
        RAISE EXCEPTION '% has not been staged: run database/migrations/% first', bot, remedy USING ERRCODE = 'MG005';
    END IF;
    FOR line IN SELECT * FROM migration.source_statistics s WHERE s.run_id = run.run_id LOOP
        EXECUTE format('SELECT count(*) FROM %I.%I WHERE bot_id = $1', 'legacy_' || kind, line.source_table)
        INTO found_rows USING bot;
        IF found_rows <> line.row_count THEN
            RAISE EXCEPTION '% staged % rows of % in run %, but % are there: run database/migrations/% again',
                bot, line.row_count, line.source_table, run.run_id, found_rows, remedy USING ERRCODE = 'MG005';
        END IF;
    END LOOP;
    RETURN run;
END
$$;

-- All staged bots of a type (or one). Raises, changing nothing, where a bot is
-- not registered or not staged, or more rows were rejected than accepted.
-- Returns the result object.
CREATE OR REPLACE FUNCTION migration.merge(kind text, bots text[], accepted bigint) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
    bot text;
    ran timestamptz;
    run migration.runs;
    mapping migration.mappings;
    total bigint;
    equity numeric;
    touched boolean;
    tables jsonb;
    report jsonb;
    reports jsonb := '[]';
    any_change boolean := false;
BEGIN
    SELECT string_agg(b, ', ') INTO bot FROM unnest(bots) AS b WHERE b NOT IN (SELECT bot_id FROM trading.bots);
    IF bot IS NOT NULL THEN
        RAISE EXCEPTION '% is not registered in trading.bots: run database/migrations/% first', bot,
            CASE kind WHEN 'momentum' THEN '003_register_momentum_bot.sql' ELSE '002_migrate_shortseller_data.sql' END
            USING ERRCODE = 'MG005';
    END IF;
    FOREACH bot IN ARRAY bots LOOP
        PERFORM migration.staged_run(bot, kind);
    END LOOP;

    SELECT count(*) INTO total FROM migration.rejects WHERE bot_id = ANY (bots);
    IF total > accepted THEN
        RAISE EXCEPTION '% rows cannot be migrated, % accepted. %. All of them: SELECT * FROM migration.rejects. Correct them at the source and run this again, or accept them with -e data_migration_accepted_rejects=%. The unified tables were not changed.',
            total, accepted,
            (SELECT string_agg(format('%s %s %s: %s', bot_id, source_table, source_id, reason), ' | ')
             FROM (SELECT * FROM migration.rejects WHERE bot_id = ANY (bots) ORDER BY reject_id LIMIT 5) AS head),
            total USING ERRCODE = 'MG003';
    END IF;

    FOREACH bot IN ARRAY bots LOOP
        run := migration.staged_run(bot, kind);
        SELECT last_heartbeat INTO ran FROM trading.bots WHERE bot_id = bot;
        tables := '[]';
        touched := false;
        IF kind = 'momentum' AND ran IS NULL THEN
            PERFORM legacy_momentum.adopt_named_trades(bot);
        END IF;
        FOR mapping IN SELECT * FROM migration.mappings WHERE bot_type = kind ORDER BY step LOOP
            report := migration.merge_mapping(mapping, bot, run.run_id, ran IS NULL);
            touched := touched OR (report ->> 'inserted')::bigint + (report ->> 'updated')::bigint > 0;
            tables := tables || report;
        END LOOP;

        -- What the bot was worth last, until it reports for itself.
        IF kind = 'shortseller' THEN
            SELECT a.equity INTO equity FROM trading.account_balance a
            WHERE a.bot_id = bot AND a.equity IS NOT NULL ORDER BY a.timestamp DESC, a.id DESC LIMIT 1;
        ELSE
            SELECT r.ending_equity INTO equity FROM trading.risk_metrics r JOIN trading.bots b USING (bot_id)
            WHERE r.bot_id = bot AND r.ending_equity IS NOT NULL
              AND analytics.is_demo(r.metadata) = (b.deployment_mode = 'demo')
            ORDER BY r.date DESC LIMIT 1;
        END IF;
        UPDATE trading.bots b SET current_equity = equity
        WHERE b.bot_id = bot AND b.last_heartbeat IS NULL AND equity IS NOT NULL AND b.current_equity IS DISTINCT FROM equity;
        touched := touched OR FOUND;

        report := jsonb_build_object(
            'bot_id', bot, 'run_id', run.run_id, 'changed', touched, 'tables', tables,
            'rejects', (SELECT coalesce(jsonb_agg(jsonb_build_object('table', source_table, 'id', source_id, 'reason', reason)), '[]')
                        FROM (SELECT * FROM migration.rejects r WHERE r.bot_id = bot ORDER BY reject_id LIMIT 10) AS head),
            'rejected', (SELECT count(*) FROM migration.rejects r WHERE r.bot_id = bot),
            'largest_rounding', '0', 'snapshot_at', run.snapshot_at) || run.notes;
        UPDATE migration.runs SET merged_at = clock_timestamp(), accepted_rejects = accepted, result = report
        WHERE run_id = run.run_id AND (merged_at IS NULL OR touched);
        any_change := any_change OR touched;
        reports := reports || report;
    END LOOP;
    RETURN jsonb_build_object('changed', any_change, 'bots', reports);
END
$$;
