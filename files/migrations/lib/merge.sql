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

-- Takes the indexes, keys and foreign keys off a table, where building them again
-- is cheaper than maintaining them: many rows for a table with few. Returns the
-- statements that bring them back, and find out whether keys are held. The table
-- is locked until commit, so never once a bot runs here, and not while someone
-- keeps reading.
DROP FUNCTION IF EXISTS migration.drop_secondary, migration.restore_secondary;
CREATE OR REPLACE FUNCTION migration.drop_indexes(target regclass, arriving bigint) RETURNS text[] LANGUAGE plpgsql AS $$
DECLARE
    item record;
    restore text[] := '{}';
    patience text := current_setting('lock_timeout');
BEGIN
    IF arriving < 20000 OR arriving < (SELECT reltuples / 2 FROM pg_class WHERE oid = target)
       OR EXISTS (SELECT FROM trading.bots WHERE last_heartbeat IS NOT NULL) THEN
        RETURN restore;
    END IF;
    BEGIN
        PERFORM set_config('lock_timeout', '3s', true);
        EXECUTE format('LOCK TABLE %s IN ACCESS EXCLUSIVE MODE', target);
        PERFORM set_config('lock_timeout', patience, true);
    EXCEPTION WHEN lock_not_available THEN
        RETURN restore;
    END;
    FOR item IN
        SELECT format('ALTER TABLE %s DROP CONSTRAINT %I', target, c.conname) AS remove,
               format('ALTER TABLE %s ADD CONSTRAINT %I %s', target, c.conname, pg_get_constraintdef(c.oid)) AS restore,
               c.contype = 'f' AS last
        FROM pg_constraint c
        WHERE c.conrelid = target AND c.contype IN ('p', 'u', 'f')
          -- A key that another table refers to stays.
          AND NOT EXISTS (SELECT FROM pg_constraint f WHERE f.contype = 'f' AND f.confrelid = target AND f.conindid = c.conindid)
        UNION ALL
        SELECT format('DROP INDEX %s', i.indexrelid::regclass), pg_get_indexdef(i.indexrelid), false
        FROM pg_index i
        WHERE i.indrelid = target AND NOT EXISTS (SELECT FROM pg_constraint c WHERE c.conindid = i.indexrelid)
        ORDER BY last
    LOOP
        EXECUTE item.remove;
        restore := restore || item.restore;
    END LOOP;
    RETURN restore;
END
$$;

-- Two processes sort an index if each has 32 MB for it; more would get in each
-- other's way.
CREATE OR REPLACE FUNCTION migration.restore_indexes(statements text[]) RETURNS void LANGUAGE plpgsql
SET maintenance_work_mem = '256MB' SET max_parallel_maintenance_workers = 1 AS $$
DECLARE
    statement text;
BEGIN
    FOREACH statement IN ARRAY statements LOOP
        EXECUTE statement;
    END LOOP;
END
$$;

-- Tells the planner how large a table is now. A small sample does: autovacuum
-- takes a proper one soon after the commit.
CREATE OR REPLACE FUNCTION migration.analyze(target regclass) RETURNS void LANGUAGE plpgsql
SET default_statistics_target = 10 AS $$
BEGIN
    EXECUTE format('ANALYZE %s', target);
END
$$;

-- Whether the bot has no row in the table of a mapping yet.
CREATE OR REPLACE FUNCTION migration.is_first(m migration.mappings, bot text) RETURNS boolean LANGUAGE plpgsql STABLE AS $$
DECLARE
    part jsonb := migration.mapping_sql(m);
    found boolean;
BEGIN
    IF part ->> 't_bot' <> 't.bot_id' THEN
        EXECUTE format('SELECT EXISTS (SELECT FROM %s)', m.target_table) INTO found;
    ELSE
        EXECUTE format('SELECT EXISTS (SELECT FROM %s t WHERE t.bot_id = $1)', m.target_table) INTO found USING bot;
    END IF;
    RETURN NOT found;
END
$$;

-- The bot's staged and rejected rows that the run that is built upon did not
-- find; `known` are the ids that it rejected.
CREATE OR REPLACE FUNCTION migration.new_ids(m migration.mappings, bot text, known text[]) RETURNS SETOF bigint
LANGUAGE plpgsql AS $$
DECLARE
    part jsonb := migration.mapping_sql(m);
    refused text[];
BEGIN
    -- OFFSET: each in an index, see merge_mapping.
    RETURN QUERY EXECUTE format('
        SELECT s._source_id::bigint FROM %1$s s WHERE %2$s = $1 AND NOT s._source_id = ANY ($2)
        AND (NOT EXISTS (SELECT FROM %3$s t WHERE %4$s AND %5$s = %2$s OFFSET 0)
             OR EXISTS (SELECT FROM migration.missing k
                        WHERE k.bot_id = $1 AND k.source_table = %6$L AND k.source_id = s._source_id))',
        m.source_view, part ->> 's_bot', m.target_table, part ->> 'matching', part ->> 't_bot', m.source_table)
    USING bot, known;
    SELECT array_agg(r.source_id) INTO refused FROM migration.rejects r
    WHERE r.bot_id = bot AND r.source_table = m.source_table AND NOT r.source_id = ANY (known);
    IF refused IS NOT NULL THEN
        RETURN QUERY EXECUTE format('
            SELECT n.id::bigint FROM (
                SELECT unnest($2) AS id
                EXCEPT SELECT %4$s #>> ''{legacy,id}'' FROM %1$s t WHERE %2$s = $1 AND %3$s AND %4$s #>> ''{legacy,id}'' = ANY ($2)
                AND NOT EXISTS (SELECT FROM migration.missing k
                                WHERE k.bot_id = $1 AND k.source_table = %5$L AND k.source_id = %4$s #>> ''{legacy,id}'')) AS n',
            m.target_table, part ->> 't_bot', part ->> 'legacy_row', part ->> 'legacy', m.source_table)
        USING bot, refused;
    END IF;
END
$$;

-- Keeps migration.missing true: which migrated rows of a table the source no
-- longer has. Known from the staged rows where a run read the whole table, else
-- found among the ids that the source does not have.
CREATE OR REPLACE FUNCTION migration.note_missing(m migration.mappings, bot text, run bigint, whole boolean) RETURNS bigint
LANGUAGE plpgsql AS $$
DECLARE
    part jsonb := migration.mapping_sql(m);
    staged text := format('SELECT s._source_id FROM %s s WHERE %s = $1', m.source_view, part ->> 's_bot');
    key text := CASE WHEN m.keys IN ('{position_id}', '{signal_id}') THEN m.keys[1] END;
BEGIN
    IF whole THEN
        DELETE FROM migration.missing k WHERE k.bot_id = bot AND k.source_table = m.source_table;
        -- EXCEPT, because the planner cannot estimate conditions on metadata, and
        -- would join row by row.
        EXECUTE format($sql$
            INSERT INTO migration.missing (bot_id, source_table, source_id, run_id)
            SELECT $1, %1$L, gone.id, $2 FROM (
                SELECT %2$s #>> '{legacy,id}' FROM %3$s t WHERE %4$s = $1 AND %5$s
                EXCEPT (%6$s)
                EXCEPT SELECT r.source_id FROM migration.rejects r WHERE r.bot_id = $1 AND r.source_table = %1$L) AS gone (id)$sql$,
            m.source_table, part ->> 'legacy', m.target_table, part ->> 't_bot', part ->> 'legacy_row', staged) USING bot, run;
    ELSE
        EXECUTE format('DELETE FROM migration.missing k WHERE k.bot_id = $1 AND k.source_table = $2 AND k.source_id IN (%s)', staged)
        USING bot, m.source_table;
        DELETE FROM migration.missing k USING migration.rejects r
        WHERE k.bot_id = bot AND k.source_table = m.source_table
          AND (r.bot_id, r.source_table, r.source_id) = (k.bot_id, k.source_table, k.source_id);
        IF EXISTS (SELECT FROM migration.gone_ids g WHERE g.bot_id = bot AND g.source_table = m.source_table) THEN
            -- Each in an index, see merge_mapping; candles have none for it.
            EXECUTE format($sql$
                INSERT INTO migration.missing (bot_id, source_table, source_id, run_id)
                SELECT DISTINCT $1, %1$L, g.source_id, $2 FROM migration.gone_ids g
                WHERE g.bot_id = $1 AND g.source_table = %1$L AND EXISTS (
                    SELECT FROM %2$s t WHERE %3$s AND %4$s = $1 AND %5$s AND %6$s #>> '{legacy,id}' = g.source_id %7$s)
                ON CONFLICT DO NOTHING$sql$,
                m.source_table, m.target_table,
                CASE WHEN key IS NULL THEN 'true' ELSE format('t.%I = $1 || ''_legacy_'' || g.source_id', key) END,
                part ->> 't_bot', part ->> 'legacy_row', part ->> 'legacy',
                CASE WHEN m.target_table <> 'trading.market_data' THEN 'OFFSET 0' END) USING bot, run;
        END IF;
    END IF;
    RETURN (SELECT count(*) FROM migration.missing k WHERE k.bot_id = bot AND k.source_table = m.source_table);
END
$$;

-- Compares what the source said it gave with what the unified table now holds of
-- it, row by row in the sum of their hashes. Raises where they differ. `pairs`:
-- staged rows beside theirs; NULL where all rows of the bot are this run's.
DROP FUNCTION IF EXISTS migration.prove(migration.mappings, text, migration.source_tables, boolean);
CREATE OR REPLACE FUNCTION migration.prove(m migration.mappings, bot text, source migration.source_tables, pairs text) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    part jsonb := migration.mapping_sql(m);
    found numeric;
    t_hash text := migration.hash_sql(m.bot_type, replace(source.canonical, '{row}', 't'));
    s_hash text := migration.hash_sql(m.bot_type, replace(source.canonical, '{row}', 's'));
BEGIN
    IF pairs IS NULL THEN
        EXECUTE format('SELECT coalesce(sum(%s), 0) FROM %s t WHERE %s = $1', t_hash, m.target_table, part ->> 't_bot')
        INTO found USING bot;
    ELSE
        -- A candle that another source brought is there under that source's id:
        -- what the two have in common was compared when rows were classified.
        EXECUTE format('SELECT coalesce(sum(CASE WHEN %s = %s THEN %s ELSE %s END), 0) FROM %s WHERE %2$s = $1',
                       part ->> 't_bot', part ->> 's_bot', t_hash, s_hash, pairs)
        INTO found USING bot;
    END IF;
    IF found <> source.hash THEN
        RAISE EXCEPTION '% of % did not arrive as it was read: the rows'' hashes sum up to %, expected %. Nothing was changed. Run the migration again in full; if it fails again, report a bug with this line.',
            m.source_table, bot, found, source.hash USING ERRCODE = 'MG001';
    END IF;
END
$$;

-- One mapping of one bot. Returns its line of the result. `overwrite` is false
-- once the bot runs on the unified database: then its rows are its own, and
-- differing ones are counted as kept.
CREATE OR REPLACE FUNCTION migration.merge_mapping(m migration.mappings, bot text, run bigint, overwrite boolean) RETURNS jsonb
LANGUAGE plpgsql AS $$
DECLARE
    part jsonb := migration.mapping_sql(m);
    source migration.source_tables;
    -- A second mapping of a table has fewer rows than the table.
    derived boolean := EXISTS (SELECT FROM migration.mappings o
                               WHERE o.bot_type = m.bot_type AND o.source_table = m.source_table AND o.step < m.step);
    first boolean := migration.is_first(m, bot);
    began timestamptz := clock_timestamp();
    mapped bigint;
    rejected bigint := 0;
    inserted bigint;
    updated bigint := 0;
    kept bigint := 0;
    missing bigint := 0;
    restore text[];
    -- The row of the target that a staged one is.
    own text := format('SELECT t.ctid AS place, t.* FROM %s t WHERE %s', m.target_table, part ->> 'matching');
    pairs text;
BEGIN
    SELECT * INTO source FROM migration.source_tables t WHERE t.run_id = run AND t.source_table = m.source_table;
    IF NOT derived THEN
        SELECT count(*) INTO rejected FROM migration.rejects r WHERE r.bot_id = bot AND r.source_table = m.source_table;
        IF source.loaded IS NOT NULL THEN
            PERFORM migration.prove(m, bot, source, NULL);
            RETURN migration.table_result(m, false, source, source.loaded, source.loaded, 0, 0, rejected, 0);
        END IF;
    END IF;
    -- Few rows out of many, by conditions that the planner cannot estimate.
    IF derived THEN
        EXECUTE format('CREATE TEMP TABLE derived_rows ON COMMIT DROP AS SELECT * FROM %s s WHERE %s = %L',
                       m.source_view, part ->> 's_bot', bot);
        GET DIAGNOSTICS mapped = ROW_COUNT;
        ANALYZE derived_rows;
        m.source_view := 'derived_rows';
    ELSE
        mapped := source.staged - rejected;
    END IF;
    -- Few rows are looked up one by one, each in an index, which OFFSET enforces:
    -- the planner, which cannot estimate conditions on metadata, would go through
    -- all rows of the table, and that for each.
    IF mapped < (SELECT reltuples / 20 FROM pg_class WHERE oid = m.target_table::regclass) THEN
        own := own || ' OFFSET 0';
    END IF;
    pairs := format('%s s JOIN LATERAL (%s) AS t ON true', m.source_view, own);

    IF overwrite AND NOT first THEN
        -- A day or a candle that the source wrote anew, under another id.
        IF m.keys NOT IN ('{position_id}', '{signal_id}')
           AND EXISTS (SELECT FROM migration.missing k WHERE k.bot_id = bot AND k.source_table = m.source_table) THEN
            EXECUTE format('DELETE FROM migration.missing k USING %s WHERE k.bot_id = $1 AND k.source_table = $2'
                           ' AND k.source_id = %s #>> ''{legacy,id}'' AND %s = $1 AND %s = $1',
                           pairs, part ->> 'legacy', part ->> 't_bot', part ->> 's_bot') USING bot, m.source_table;
        END IF;
        EXECUTE format('UPDATE %s u SET (%s) = ROW(%s) FROM %s WHERE u.ctid = t.place AND %s = $1 AND %s = $1 AND %s',
                       m.target_table, part ->> 'columns', part ->> 's_columns', pairs,
                       part ->> 't_bot', part ->> 's_bot', part ->> 'differing') USING bot;
        GET DIAGNOSTICS updated = ROW_COUNT;
    ELSIF NOT overwrite THEN
        EXECUTE format('SELECT count(*) FROM %s WHERE %s = $1 AND %s = $1 AND %s', pairs, part ->> 't_bot', part ->> 's_bot',
                       part ->> 'differing') INTO kept USING bot;
    END IF;
    IF first THEN
        restore := migration.drop_indexes(m.target_table::regclass, mapped);
    END IF;
    -- Staged rows lie in the order of the source, and arrive in it.
    EXECUTE format('INSERT INTO %s (%s) SELECT %s FROM %s s WHERE %s = $1', m.target_table, part ->> 'columns', part ->> 's_columns',
                   m.source_view, part ->> 's_bot')
            || CASE WHEN first THEN '' ELSE format(' AND NOT EXISTS (%s)', own) END
    USING bot;
    GET DIAGNOSTICS inserted = ROW_COUNT;
    PERFORM migration.restore_indexes(restore) WHERE cardinality(restore) > 0;

    -- Without fresh statistics the planner would take a big table for a small one.
    IF inserted + updated > greatest(100, (SELECT reltuples / 10 FROM pg_class WHERE oid = m.target_table::regclass)) THEN
        PERFORM migration.analyze(m.target_table::regclass);
    END IF;
    IF derived THEN
        DROP TABLE derived_rows;
    ELSE
        IF NOT first THEN
            missing := migration.note_missing(m, bot, run, source.whole);
        END IF;
        IF overwrite THEN
            PERFORM migration.prove(m, bot, source, CASE WHEN NOT first THEN pairs END);
        END IF;
    END IF;
    IF mapped > 1000 THEN
        RAISE NOTICE '%: %: % rows compared, % new, % changed, % rows/s', bot, m.target_table, mapped, inserted, updated,
            round(mapped / extract(epoch FROM clock_timestamp() - began));
    END IF;
    RETURN migration.table_result(m, derived, source, mapped, inserted, updated, kept, rejected, missing);
END
$$;

-- A mapping's line of the result.
CREATE OR REPLACE FUNCTION migration.table_result(
    m migration.mappings, derived boolean, source migration.source_tables, mapped bigint, inserted bigint, updated bigint,
    kept bigint, rejected bigint, missing bigint) RETURNS jsonb
LANGUAGE sql AS $$
    SELECT jsonb_build_object(
        'source_table', m.source_table, 'target_table', m.target_table,
        'source', CASE WHEN derived THEN mapped ELSE source.row_count END,
        'staged', CASE WHEN derived THEN mapped ELSE source.staged END,
        'inserted', inserted, 'updated', updated, 'unchanged', mapped - inserted - updated - kept, 'kept', kept,
        'rejected', rejected, 'missing_at_source', missing)
$$;

-- The bot's last run. Unless they are merged, the rows that it staged must all
-- still be there: unlogged tables are empty after a crash of the server.
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
    FOR line IN SELECT * FROM migration.source_tables s
                WHERE s.run_id = run.run_id AND run.merged_at IS NULL AND kind = 'shortseller' LOOP
        EXECUTE format('SELECT count(*) FROM legacy_shortseller.%I WHERE bot_id = $1', line.source_table)
        INTO found_rows USING bot;
        IF found_rows <> line.staged THEN
            RAISE EXCEPTION '% staged % rows of % in run %, but % are there: run database/migrations/% again',
                bot, line.staged, line.source_table, run.run_id, found_rows, remedy USING ERRCODE = 'MG005';
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

-- The result of a run that was merged before, now that nothing was left to do.
CREATE OR REPLACE FUNCTION migration.merged_before(run migration.runs) RETURNS jsonb LANGUAGE sql AS $$
    SELECT run.result || jsonb_build_object('changed', false, 'tables', (
        SELECT jsonb_agg(line || jsonb_build_object(
            'inserted', 0, 'updated', 0,
            'unchanged', (line ->> 'inserted')::bigint + (line ->> 'updated')::bigint + (line ->> 'unchanged')::bigint) ORDER BY place)
        FROM jsonb_array_elements(run.result -> 'tables') WITH ORDINALITY AS tables (line, place)))
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
    PERFORM set_config('client_min_messages', 'notice', true);
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
        IF run.merged_at IS NOT NULL THEN
            reports := reports || migration.merged_before(run);
            CONTINUE;
        END IF;
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
            'bot_id', bot, 'run_id', run.run_id, 'mode', run.mode, 'changed', touched, 'tables', tables,
            'rejects', (SELECT coalesce(jsonb_agg(jsonb_build_object('table', source_table, 'id', source_id, 'reason', reason)), '[]')
                        FROM (SELECT * FROM migration.rejects r WHERE r.bot_id = bot ORDER BY reject_id LIMIT 10) AS head),
            'rejected', (SELECT count(*) FROM migration.rejects r WHERE r.bot_id = bot),
            'largest_rounding', '0', 'snapshot_at', run.snapshot_at) || run.notes;
        UPDATE migration.runs SET merged_at = clock_timestamp(), accepted_rejects = accepted, result = report
        WHERE run_id = run.run_id;
        -- Only the last merged run is built upon.
        DELETE FROM migration.page_digests d USING migration.runs r
        WHERE r.run_id = d.run_id AND r.bot_id = bot AND r.run_id < run.run_id;
        DELETE FROM migration.gone_ids g WHERE g.bot_id = bot;
        IF kind = 'shortseller' THEN
            PERFORM legacy_shortseller.empty_staging(bot);
        END IF;
        any_change := any_change OR touched;
        reports := reports || report;
    END LOOP;
    RETURN jsonb_build_object('changed', any_change, 'bots', reports);
END
$$;
