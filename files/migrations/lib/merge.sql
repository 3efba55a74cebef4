-- Carries staged rows into the unified tables: new rows are inserted, changed
-- ones updated, everything else left untouched, in the caller's transaction.

-- The parts of statements over one mapping, where t is the target and s the view:
-- columns, matching (a row of t is that of s), differing, s_bot and t_bot (whose
-- row it is), legacy (t's metadata), and legacy_row (a migrated row of this table).
CREATE OR REPLACE FUNCTION migration.mapping_sql(m migration.mappings) RETURNS jsonb LANGUAGE plpgsql STABLE AS $$
DECLARE
    -- Candles carry no bot: whose they are stands in their metadata.
    has_bot boolean := EXISTS (SELECT FROM pg_attribute WHERE attrelid = m.target_table::regclass AND attname = 'bot_id');
    legacy text := CASE WHEN m.target_table = 'trading.positions' THEN 't.position_metadata' ELSE 't.metadata' END;
    t_bot text := CASE WHEN has_bot THEN 't.bot_id' ELSE $sql$(t.metadata #>> '{legacy,bot_id}')$sql$ END;
    s_bot text := CASE WHEN has_bot THEN 's.bot_id' ELSE 's._bot_id' END;
    legacy_row text := format($sql$%1$s ? 'legacy' AND (%1$s #>> '{legacy,table}') = %2$L$sql$, legacy, m.source_table);
    matching text;
    columns text;
    t_columns text;
    s_columns text;
BEGIN
    SELECT string_agg(quote_ident(attname), ', ' ORDER BY attnum), string_agg('t.' || quote_ident(attname), ', ' ORDER BY attnum),
           string_agg('s.' || quote_ident(attname), ', ' ORDER BY attnum)
    INTO columns, t_columns, s_columns
    FROM pg_attribute WHERE attrelid = m.source_view::regclass AND attnum > 0 AND attname NOT LIKE '\_%';
    IF m.keys IS NULL THEN
        matching := format($sql$%s AND t.bot_id = s.bot_id AND (t.metadata #>> '{legacy,id}') = s._source_id$sql$, legacy_row);
    ELSE
        SELECT string_agg(format('t.%1$I = s.%1$I', key), ' AND ') INTO matching FROM unnest(m.keys) AS key;
    END IF;
    RETURN jsonb_build_object(
        'columns', columns, 's_columns', s_columns, 'matching', matching, 't_bot', t_bot, 's_bot', s_bot, 'legacy', legacy,
        'legacy_row', legacy_row, 'differing', format('(%s) IS DISTINCT FROM (%s)', t_columns, s_columns));
END
$$;

-- Counts the rows of bot $1 that the source no longer has: they stay, and are
-- reported. The conditions on metadata are applied last, because the planner
-- cannot estimate them and would choose a nested loop.
CREATE OR REPLACE FUNCTION migration.missing_sql(m migration.mappings) RETURNS text LANGUAGE sql STABLE AS $$
    SELECT format($sql$SELECT count(*) FILTER (WHERE %s AND r.reject_id IS NULL) FROM %s t
                       LEFT JOIN %s s ON %s = $1 AND %s
                       LEFT JOIN migration.rejects r ON r.bot_id = $1 AND r.source_table = %L AND r.source_id = %s #>> '{legacy,id}'
                       WHERE %s = $1 AND s._source_id IS NULL$sql$,
                  part ->> 'legacy_row', m.target_table, m.source_view, part ->> 's_bot', part ->> 'matching',
                  m.source_table, part ->> 'legacy', part ->> 't_bot')
    FROM migration.mapping_sql(m) AS part
$$;

-- One mapping of one bot. Returns its line of the result. `overwrite` is false
-- once the bot runs on the unified database: then its rows are its own, and
-- differing ones are counted as kept.
CREATE OR REPLACE FUNCTION migration.merge_mapping(m migration.mappings, bot text, run bigint, overwrite boolean) RETURNS jsonb
LANGUAGE plpgsql AS $$
DECLARE
    part jsonb := migration.mapping_sql(m);
    -- A second mapping of a table has fewer rows than the table.
    derived boolean := EXISTS (SELECT FROM migration.mappings o
                               WHERE o.bot_type = m.bot_type AND o.source_table = m.source_table AND o.step < m.step);
    staged bigint;
    rejected bigint := 0;
    inserted bigint;
    updated bigint := 0;
    kept bigint := 0;
    missing bigint;
BEGIN
    EXECUTE format('SELECT count(*) FROM %s s WHERE %s = $1', m.source_view, part ->> 's_bot') INTO staged USING bot;
    IF NOT derived THEN
        SELECT count(*) INTO rejected FROM migration.rejects r WHERE r.bot_id = bot AND r.source_table = m.source_table;
    END IF;

    IF overwrite THEN
        EXECUTE format('UPDATE %s t SET (%s) = ROW(%s) FROM %s s WHERE %s AND %s = $1 AND %s = $1 AND %s',
                       m.target_table, part ->> 'columns', part ->> 's_columns', m.source_view, part ->> 'matching',
                       part ->> 't_bot', part ->> 's_bot', part ->> 'differing') USING bot;
        GET DIAGNOSTICS updated = ROW_COUNT;
    ELSE
        EXECUTE format('SELECT count(*) FROM %s t JOIN %s s ON %s WHERE %s = $1 AND %s = $1 AND %s',
                       m.target_table, m.source_view, part ->> 'matching', part ->> 't_bot', part ->> 's_bot',
                       part ->> 'differing') INTO kept USING bot;
    END IF;
    -- In the order of the source, so that neighbours in time are neighbours on disk.
    EXECUTE format('INSERT INTO %s (%s) SELECT %s FROM %s s WHERE %s = $1 AND NOT EXISTS (SELECT FROM %s t WHERE %s)
                    ORDER BY length(s._source_id), s._source_id',
                   m.target_table, part ->> 'columns', part ->> 's_columns', m.source_view, part ->> 's_bot',
                   m.target_table, part ->> 'matching') USING bot;
    GET DIAGNOSTICS inserted = ROW_COUNT;

    -- Without fresh statistics the planner would take a big table for a small one.
    IF inserted + updated > 1000 THEN
        EXECUTE format('ANALYZE %s', m.target_table);
    END IF;

    EXECUTE migration.missing_sql(m) INTO missing USING bot;

    RETURN jsonb_build_object(
        'source_table', m.source_table, 'target_table', m.target_table,
        'source', CASE WHEN derived THEN staged ELSE
            (SELECT row_count FROM migration.source_statistics WHERE run_id = run AND source_table = m.source_table) END,
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

CREATE OR REPLACE FUNCTION migration.is_staged(bot text, kind text) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    PERFORM migration.staged_run(bot, kind);
    RETURN true;
EXCEPTION WHEN SQLSTATE 'MG005' THEN
    RETURN false;
END
$$;

-- The given bots of a type. Raises, changing nothing, where a bot is
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
    dry_run boolean := current_setting('migration.dry_run', true) = '1';
BEGIN
    SELECT string_agg(b, ', ') INTO bot FROM unnest(bots) AS b WHERE b NOT IN (SELECT bot_id FROM trading.bots);
    IF bot IS NOT NULL THEN
        RAISE EXCEPTION '% is not registered in trading.bots: run database/migrations/% first', bot,
            CASE kind WHEN 'momentum' THEN '003_register_momentum_bot.sql' ELSE '002_migrate_shortseller_data.sql' END
            USING ERRCODE = 'MG005';
    END IF;
    -- A dry run stages nothing that outlives it, so there may be nothing to merge.
    IF dry_run THEN
        SELECT coalesce(array_agg(b), '{}'), cardinality(bots) > count(*) INTO bots, any_change
        FROM unnest(bots) AS b WHERE migration.is_staged(b, kind);
    END IF;

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
